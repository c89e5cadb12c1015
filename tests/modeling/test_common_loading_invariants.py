"""Invariants of transformers' common tests of saving and loading: shards, precisions, offloading."""

import copy
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from audiollm import AudioLlmForConditionalGeneration
from batches import collate, mixed_rows
from safetensors.torch import load_file
from tiny_models import randomise_trainables
from versions import ALL_CAN_STAY_ON_DISK

FULL_SHARDS = 4
SHARD_SIZE = "100KB"


@pytest.fixture(scope="module")
def model(tiny_bases) -> AudioLlmForConditionalGeneration:
    torch.manual_seed(0)
    return randomise_trainables(AudioLlmForConditionalGeneration.from_audio_text_pretrained(*tiny_bases, lora_rank=4))


@pytest.fixture(scope="module")
def folders(model, tmp_path_factory) -> dict[str, Path]:
    """The model saved in each format; leave them as they are."""
    root = tmp_path_factory.mktemp("saved")
    for weights in ("adapter", "full"):
        copy.deepcopy(model).save_pretrained(root / weights, weights=weights)
    return {weights: root / weights for weights in ("adapter", "full")}


@torch.no_grad()
def logits_of(model) -> torch.Tensor:
    return model(**collate(model.config, mixed_rows(model.config))).logits


load = AudioLlmForConditionalGeneration.from_pretrained


def weight_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if ".safetensors" in path.name)


def test_shards(model, tmp_path: Path) -> None:
    """Of everything there may be many; the adapter is one file, whatever is asked."""
    model.save_pretrained(tmp_path / "full", weights="full", max_shard_size=SHARD_SIZE)
    shards = [f"model-{n:05d}-of-{FULL_SHARDS:05d}.safetensors" for n in range(1, FULL_SHARDS + 1)]
    assert weight_files(tmp_path / "full") == [*shards, "model.safetensors.index.json"]
    assert torch.equal(logits_of(load(tmp_path / "full")), logits_of(model))
    model.save_pretrained(tmp_path / "adapter", max_shard_size="10KB")
    assert weight_files(tmp_path / "adapter") == ["model.safetensors"]
    (tmp_path / "full" / shards[1]).unlink()
    with pytest.raises((FileNotFoundError, OSError), match=shards[1]):
        load(tmp_path / "full")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("weights", ["adapter", "full"])
def test_what_was_loaded_in_half_precision_is_saved_and_loaded(folders, tmp_path: Path, dtype, weights: str) -> None:
    """The bases of a checkpoint are recognised, whatever precision it was used in."""
    half = load(folders["adapter"], dtype=dtype)
    half.save_pretrained(tmp_path, weights=weights)
    for arguments in ({}, {"dtype": "auto"}, {"dtype": str(dtype).removeprefix("torch.")}):
        again = load(tmp_path, **arguments)
        assert again.dtype == dtype and torch.equal(logits_of(again), logits_of(half))
    assert {parameter.dtype for name, parameter in again.named_parameters() if "lora_" in name} == {torch.float32}


def test_a_tied_weight_is_saved_once(folders) -> None:
    names = [
        name for name in load_file(folders["full"] / "model.safetensors") if "lm_head" in name or "embed_tok" in name
    ]
    assert names == ["model.language_model.embed_tokens.weight"]


@pytest.mark.parametrize("how", ["cpu", "disk"])
def test_offloaded_after_loading(model, folders, tmp_path: Path, how: str) -> None:
    """All weights but those in use are elsewhere: no layer may reach for another's."""
    offloaded = load(folders["adapter"])
    if how == "cpu":
        cpu_offload(offloaded)
    else:
        disk_offload(offloaded, str(tmp_path))
    assert all(parameter.is_meta for parameter in offloaded.parameters())
    assert torch.equal(logits_of(offloaded), logits_of(model))
    batch = collate(model.config, mixed_rows(model.config))
    options = {"max_new_tokens": 3, "do_sample": False}
    assert torch.equal(offloaded.generate(**batch, **options), model.generate(**batch, **options))


@pytest.mark.skipif(not ALL_CAN_STAY_ON_DISK, reason="this accelerate leaves nothing but parts of a model on disk")
@pytest.mark.parametrize("weights", ["adapter", "full"])
def test_offloaded_while_loading(model, folders, tmp_path: Path, weights: str) -> None:
    offloaded = load(folders[weights], device_map={"": "disk"}, offload_folder=str(tmp_path))
    assert all(parameter.is_meta for parameter in offloaded.model.language_model.parameters())
    assert torch.equal(logits_of(offloaded), logits_of(model))


def test_embeddings_that_are_read_as_a_table_stay_in_memory(tiny_bases) -> None:
    speaking = AudioLlmForConditionalGeneration.from_audio_text_pretrained(*tiny_bases, projector_readout="pieces")
    cpu_offload(speaking)
    with pytest.raises(
        ValueError, match=r"embeddings, which are offloaded\. Keep 'model\.language_model\.embed_tokens'"
    ):
        logits_of(speaking)

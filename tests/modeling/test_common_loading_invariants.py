"""Invariants of transformers' common tests of saving and loading: shards, precisions, offloading."""

import copy
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from audiollm import AudioLlmForConditionalGeneration
from batches import collate, composed, logits_of, mixed_rows
from versions import ALL_CAN_STAY_ON_DISK

FULL_SHARDS = 4
SHARD_SIZE = "100KB"
load = AudioLlmForConditionalGeneration.from_pretrained


@pytest.fixture(scope="module")
def folders(shared_tiny_model, tmp_path_factory) -> dict[str, Path]:
    """The model saved in each format; leave them as they are."""
    root = tmp_path_factory.mktemp("saved")
    for weights in ("adapter", "full"):
        copy.deepcopy(shared_tiny_model).save_pretrained(root / weights, weights=weights)
    return {weights: root / weights for weights in ("adapter", "full")}


def test_shards(tiny_model, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path, weights="full", max_shard_size=SHARD_SIZE)
    shards = [f"model-{n:05d}-of-{FULL_SHARDS:05d}.safetensors" for n in range(1, FULL_SHARDS + 1)]
    found = sorted(path.name for path in tmp_path.iterdir() if ".safetensors" in path.name)
    assert found == [*shards, "model.safetensors.index.json"]
    assert torch.equal(logits_of(load(tmp_path)), logits_of(tiny_model))
    (tmp_path / shards[1]).unlink()
    with pytest.raises((FileNotFoundError, OSError), match=shards[1]):
        load(tmp_path)


@pytest.mark.parametrize("how", ["cpu", "disk"])
def test_offloaded_after_loading(tiny_model, shared_tiny_model, tmp_path: Path, how: str) -> None:
    """All weights but those in use are elsewhere: no layer may reach for another's."""
    offloaded = cpu_offload(tiny_model) if how == "cpu" else disk_offload(tiny_model, str(tmp_path))
    assert all(parameter.is_meta for parameter in offloaded.parameters())
    assert torch.equal(logits_of(offloaded), logits_of(shared_tiny_model))
    batch = collate(shared_tiny_model.config, mixed_rows(shared_tiny_model.config))
    options = {"max_new_tokens": 3, "do_sample": False}
    assert torch.equal(offloaded.generate(**batch, **options), shared_tiny_model.generate(**batch, **options))


@pytest.mark.skipif(not ALL_CAN_STAY_ON_DISK, reason="this accelerate leaves nothing but parts of a model on disk")
@pytest.mark.parametrize("weights", ["adapter", "full"])
def test_offloaded_while_loading(shared_tiny_model, folders, tmp_path: Path, weights: str) -> None:
    offloaded = load(folders[weights], device_map={"": "disk"}, offload_folder=str(tmp_path))
    assert all(parameter.is_meta for parameter in offloaded.model.language_model.parameters())
    assert torch.equal(logits_of(offloaded), logits_of(shared_tiny_model))


def test_embeddings_that_are_read_as_a_table_stay_in_memory(tiny_bases) -> None:
    speaking = cpu_offload(composed(tiny_bases, projector_readout="pieces"))
    with pytest.raises(
        ValueError, match=r"embeddings, which are offloaded\. Keep 'model\.language_model\.embed_tokens'"
    ):
        logits_of(speaking)

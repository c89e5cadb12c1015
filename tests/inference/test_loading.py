"""Checkpoints by folder, by what the demo left, and by Hub id; and what is said about everything that is none."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from audiollm import shipped_adapter
from audiollm.inference.loading import CheckpointError, check_device, find_checkpoint, load, load_model


@pytest.fixture
def checkpoint(tiny_model, tiny_processor, tmp_path) -> Path:
    tiny_model.save_pretrained(tmp_path / "model")
    tiny_processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_folder_gives_model_and_processor(checkpoint, tiny_model) -> None:
    model, processor = load(str(checkpoint), device="cpu")
    assert not model.training and model.device.type == "cpu"
    ids = processor(text="Hello?")["input_ids"]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, tiny_model.eval()(ids).logits)


def test_without_a_model_it_is_what_the_demo_left(checkpoint, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_checkpoint() == str(shipped_adapter.FOLDER)
    shutil.copytree(checkpoint, tmp_path / "runs/demo/adapter")
    model, _ = load()
    assert model.config.name_or_path == "runs/demo/adapter"


@pytest.mark.parametrize(("faster", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_cpu_that_is_slow_in_bfloat16_computes_in_float32(
    checkpoint, tmp_path, monkeypatch, faster, expected
) -> None:
    shutil.copytree(checkpoint, tmp_path / "half")
    config = tmp_path / "half" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "bfloat16"}))
    monkeypatch.setattr("audiollm.inference.loading.bfloat16_is_faster", lambda: faster)
    assert load_model(str(tmp_path / "half"), device="cpu").dtype == expected
    assert load_model(str(tmp_path / "half"), "bfloat16", "cpu").dtype == torch.bfloat16


def test_precision_and_arguments_of_the_model(checkpoint, tiny_bases, tmp_path) -> None:
    assert load_model(str(checkpoint), dtype="bfloat16").dtype == torch.bfloat16
    assert load_model(str(checkpoint), dtype=torch.float32).dtype == torch.float32
    moved = tmp_path / "moved"
    shutil.copytree(tiny_bases[1], moved)
    assert load_model(str(checkpoint), text_model_id=str(moved)).config.text_model_id == str(moved)
    with pytest.raises(CheckpointError, match="expected one of auto, float32"):
        load_model(str(checkpoint), dtype="float3")


def test_a_hub_id_is_left_to_the_hub() -> None:
    assert find_checkpoint("you/my-audiollm") == "you/my-audiollm"


def test_what_the_hub_does_not_give_is_named(monkeypatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # else it tries for minutes
    with pytest.raises(CheckpointError, match="you/no-such-audiollm-model"):
        load("you/no-such-audiollm-model", revision="v1")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has no config.json, so it is no AudioLLM checkpoint"),
        ({"config.json": "{"}, "its config.json cannot be read"),
        ({"config.json": "[]"}, "model_type None; expected 'audiollm'"),
        ({"config.json": '{"model_type": "llama"}'}, "model_type 'llama'; expected 'audiollm'"),
        ({"adapter_config.json": "{}"}, "it is a PEFT adapter by itself"),
        (
            {"checkpoint-9/config.json": "{}", "checkpoint-10/config.json": "{}"},
            "training has left some in it, the last one in .*checkpoint-10",
        ),
    ],
)
def test_folders_that_are_no_checkpoint(files: dict[str, str], message: str, tmp_path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match=message):
        find_checkpoint(str(tmp_path))


def test_paths_that_are_no_folder(tmp_path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"is a file; expected the checkpoint's folder"):
        find_checkpoint(str(tmp_path / "model.safetensors"))
    with pytest.raises(CheckpointError, match="there is no such folder, and it is no Hub id"):
        find_checkpoint(str(tmp_path / "missing"))


def test_what_a_checkpoint_lacks_is_named(checkpoint, tmp_path) -> None:
    no_processor = tmp_path / "no_processor"
    no_processor.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(checkpoint / name, no_processor)
    with pytest.raises(CheckpointError, match=r"The processor of .*no_processor"):
        load(str(no_processor))
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "text_model_id": "/no/such/base"}))
    with pytest.raises(CheckpointError, match="text base '/no/such/base' is not a folder"):
        load(str(checkpoint))
    (checkpoint / "config.json").write_text(json.dumps(config))
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load(str(checkpoint))


def test_devices() -> None:
    assert check_device(None) == ("cuda" if torch.cuda.is_available() else "cpu")
    assert check_device("cpu") == "cpu" and check_device("auto") == "auto"
    with pytest.raises(CheckpointError, match="--device tpu9 cannot be used"):
        check_device("tpu9")
    if not torch.cuda.is_available():
        with pytest.raises(CheckpointError, match="--device cuda:0 cannot be used"):
            check_device("cuda:0")

"""Checkpoints by folder, by what the demo left, and by Hub id; and what is said about everything that is none."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from audiollm import shipped_adapter
from audiollm.inference.answering import answer, ask
from audiollm.inference.loading import CheckpointError, check_device, find_checkpoint, load, load_model
from audiollm.inference.options import LoadingArguments
from audiollm.inference.session import Session
from torch import nn

SHORT = {"max_new_tokens": 12}


@pytest.fixture
def copied(checkpoint, tmp_path) -> Path:
    """The checkpoint, to be changed."""
    return shutil.copytree(checkpoint, tmp_path / "model")


def test_a_folder_gives_model_and_processor(checkpoint, tiny_model) -> None:
    model, processor = load(str(checkpoint), device="cpu")
    assert not model.training and model.device.type == "cpu"
    ids = processor(text="Hello?")["input_ids"]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, tiny_model.eval()(ids).logits)


def test_without_a_model_it_is_what_the_demo_left(checkpoint, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_checkpoint() == str(shipped_adapter.FOLDER)
    assert "make demo" in capsys.readouterr().err
    shutil.copytree(checkpoint, tmp_path / "runs/demo/adapter")
    model, _ = load()
    assert model.config.name_or_path == "runs/demo/adapter"


@pytest.mark.parametrize(("faster", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_cpu_that_is_slow_in_bfloat16_computes_in_float32(copied, monkeypatch, faster, expected) -> None:
    config = copied / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "bfloat16"}))
    monkeypatch.setattr("audiollm.inference.loading.bfloat16_is_faster", lambda: faster)
    assert load_model(str(copied), device="cpu").dtype == expected
    assert load_model(str(copied), "bfloat16", "cpu").dtype == torch.bfloat16


def test_arguments_reach_the_model(checkpoint, tiny_bases, tmp_path) -> None:
    assert load_model(str(checkpoint), dtype=torch.float32).dtype == torch.float32
    moved = shutil.copytree(tiny_bases[1], tmp_path / "moved")
    assert load_model(str(checkpoint), text_model_id=str(moved)).config.text_model_id == str(moved)
    with pytest.raises(CheckpointError, match="expected one of auto, float32"):
        load_model(str(checkpoint), dtype="float3")
    for name in ("eager", "sdpa"):
        model = LoadingArguments(attn_implementation=name).load_model(str(checkpoint))
        assert model.get_decoder().config._attn_implementation == name


def test_hub_ids_are_left_to_the_hub(monkeypatch) -> None:
    assert find_checkpoint("you/my-audiollm") == "you/my-audiollm"
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


def test_what_a_checkpoint_lacks_is_named(copied, tmp_path) -> None:
    no_processor = tmp_path / "no_processor"
    no_processor.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(copied / name, no_processor)
    with pytest.raises(CheckpointError, match=r"The processor of .*no_processor"):
        load(str(no_processor))
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "text_model_id": "/no/such/base"}))
    with pytest.raises(CheckpointError, match="text base '/no/such/base' is not a folder"):
        load(str(copied))
    (copied / "config.json").write_text(json.dumps(config))
    (copied / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load(str(copied))


def test_devices() -> None:
    assert check_device(None) == ("cuda" if torch.cuda.is_available() else "cpu")
    assert check_device("cpu") == "cpu" and check_device("auto") == "auto"
    for device in ("tpu9", *([] if torch.cuda.is_available() else ["cuda:0"])):
        with pytest.raises(CheckpointError, match=f"--device {device} cannot be used"):
            check_device(device)


# ------------------------------------------------------------------------------------- options that commands share


@pytest.mark.parametrize(("option", "layer"), [("load_in_8bit", "Linear8bitLt"), ("load_in_4bit", "Linear4bit")])
def test_few_bits(checkpoint, clips, tiny_processor, option: str, layer: str) -> None:
    pytest.importorskip("bitsandbytes")
    model = LoadingArguments(**{option: True}).load_model(str(checkpoint))
    linears = [part for name, part in model.get_decoder().named_modules() if name.endswith("down_proj.base_layer")]
    assert {type(part).__name__ for part in linears} == {layer}
    assert isinstance(model.lm_head, nn.Linear) and model.lm_head.weight.dtype == torch.float32
    assert Session(model, tiny_processor, **SHORT).ask("<audio>\nTranscribe the speech.", clips[0])


def test_merged_adapters(checkpoint, clips, tiny_processor, tiny_model, tmp_path) -> None:
    """Answers about audio stay; those to text are the adapted model's, and no more the base's."""
    merged = LoadingArguments(merge_adapters=True).load_model(str(checkpoint))
    assert not merged.config.lora_adapters and not merged.training
    about = [ask("What is said?", clips[0])]
    assert answer(merged, tiny_processor, about, **SHORT) == answer(tiny_model, tiny_processor, about, **SHORT)
    ids = tiny_processor(text="Hello?")["input_ids"]
    with torch.no_grad():
        base = tiny_model.eval()(ids).logits
        adapted = tiny_model(ids, adapter_names=list(tiny_model.config.lora_adapters)).logits
        torch.testing.assert_close(merged(ids).logits, adapted)
        assert not torch.allclose(adapted, base)
    tiny_model.save_pretrained(tmp_path, weights="merged")
    with pytest.raises(CheckpointError, match="has no adapter to merge; leave out --merge_adapters"):
        load_model(str(tmp_path), merge_adapters=True)


def test_attention_that_is_not_there(checkpoint) -> None:
    name = "no_such_attention"
    with pytest.raises(CheckpointError, match=f"cannot be loaded with --attn_implementation {name}: "):
        load_model(str(checkpoint), attn_implementation=name)


def test_contradictions() -> None:
    for others in ({"load_in_8bit": True}, {"merge_adapters": True}):
        with pytest.raises(CheckpointError, match="--load_in_"):
            LoadingArguments(load_in_4bit=True, **others)

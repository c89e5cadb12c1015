"""Checkpoints by folder, by what the demo left, and by Hub id; and what is said about everything that is none."""

import json
import shutil

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


def test_a_folder_gives_model_and_processor(checkpoint, tiny_model, tiny_bases, tmp_path) -> None:
    model, processor = load(str(checkpoint), dtype=torch.float32, device="cpu")
    assert not model.training and model.device.type == "cpu" and model.dtype == torch.float32
    ids = processor(text="Hello?")["input_ids"]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, tiny_model.eval()(ids).logits)
    moved = shutil.copytree(tiny_bases[1], tmp_path / "moved")
    assert load_model(str(checkpoint), text_model_id=str(moved)).config.text_model_id == str(moved)
    model = LoadingArguments(attn_implementation="eager").load_model(str(checkpoint))
    assert model.get_decoder().config._attn_implementation == "eager"


def test_without_a_model_it_is_what_the_demo_left(checkpoint, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_checkpoint() == str(shipped_adapter.FOLDER)
    assert "make demo" in capsys.readouterr().err
    shutil.copytree(checkpoint, tmp_path / "runs/demo/adapter")
    assert find_checkpoint() == "runs/demo/adapter"


def test_a_cpu_that_is_slow_in_bfloat16_computes_in_float32(tiny_model, tmp_path, monkeypatch) -> None:
    tiny_model.to(torch.bfloat16).save_pretrained(tmp_path)
    for faster, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr("audiollm.inference.loading.bfloat16_is_faster", lambda faster=faster: faster)
        assert load_model(str(tmp_path), device="cpu").dtype == expected
    assert load_model(str(tmp_path), "bfloat16", "cpu").dtype == torch.bfloat16


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


def test_what_cannot_be_loaded_is_named(checkpoint, tiny_model, tmp_path) -> None:
    lacking = {name: shutil.copytree(checkpoint, tmp_path / name) for name in ("processor", "weights", "base")}
    for path in lacking["processor"].iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            path.unlink()
    (lacking["weights"] / "model.safetensors").unlink()
    config = lacking["base"] / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "text_model_id": "/no/such/base"}))
    tiny_model.save_pretrained(tmp_path / "merged", weights="merged")
    for place, options, message in (
        (config, {}, r"is a file; expected the checkpoint's folder"),
        (tmp_path / "missing", {}, "there is no such folder, and it is no Hub id"),
        (lacking["processor"], {}, r"The processor of .*processor"),
        (lacking["base"], {}, "text base '/no/such/base' is not a folder"),
        (lacking["weights"], {}, "cannot be loaded"),
        (checkpoint, {"dtype": "float3"}, "expected one of auto, float32"),
        (checkpoint, {"attn_implementation": "none"}, "cannot be loaded with --attn_implementation none: "),
        (checkpoint, {"load_in_4bit": True, "load_in_8bit": True}, "--load_in_8bit contradicts --load_in_4bit"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load(str(place), **options)
    with pytest.raises(CheckpointError, match="has no adapter to merge; leave out --merge_adapters"):
        load_model(str(tmp_path / "merged"), merge_adapters=True)
    with pytest.raises(CheckpointError, match="--load_in_4bit leaves no weights that --merge_adapters"):
        LoadingArguments(load_in_4bit=True, merge_adapters=True)


def test_devices() -> None:
    assert check_device(None) == ("cuda" if torch.cuda.is_available() else "cpu")
    assert check_device("cpu") == "cpu" and check_device("auto") == "auto"
    for device in ("tpu9", *([] if torch.cuda.is_available() else ["cuda:0"])):
        with pytest.raises(CheckpointError, match=f"--device {device} cannot be used"):
            check_device(device)


@pytest.mark.parametrize(("option", "layer"), [("load_in_8bit", "Linear8bitLt"), ("load_in_4bit", "Linear4bit")])
def test_few_bits(checkpoint, clips, tiny_processor, option: str, layer: str) -> None:
    pytest.importorskip("bitsandbytes")
    model = LoadingArguments(**{option: True}).load_model(str(checkpoint))
    linears = [part for name, part in model.get_decoder().named_modules() if name.endswith("down_proj.base_layer")]
    assert {type(part).__name__ for part in linears} == {layer}
    assert isinstance(model.lm_head, nn.Linear) and model.lm_head.weight.dtype == torch.float32
    assert Session(model, tiny_processor, **SHORT).ask("<audio>\nTranscribe the speech.", clips[0])


def test_merged_adapters(checkpoint, clips, tiny_processor, tiny_model) -> None:
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

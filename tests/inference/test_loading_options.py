"""Options of loading, which the commands share: each changes the model that answers, or says why it cannot."""

import importlib.util
from pathlib import Path

import pytest
import torch
from audiollm.corpora.prompts import load_studio_prompts
from audiollm.inference import generate, transcribe
from audiollm.inference.answering import answer, ask
from audiollm.inference.loading import CheckpointError, load_model
from audiollm.inference.options import LoadingArguments
from audiollm.inference.session import Session
from audiollm.inference.transcribing import Transcriber, TranscribingSettings
from audiollm.modeling_audiollm import CACHE_NAME
from tiny_models import randomise_trainables
from torch import nn
from transformers import StaticCache

SHORT = {"max_new_tokens": 12}


@pytest.fixture(scope="module")
def checkpoint(tiny_bases, tmp_path_factory) -> Path:
    """A tiny model on disk."""
    from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor

    folder = tmp_path_factory.mktemp("model")
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(*tiny_bases, lora_rank=4)
    randomise_trainables(model).save_pretrained(folder)
    AudioLlmProcessor.from_audio_text_pretrained(*tiny_bases).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    row = load_studio_prompts("test").sort("duration_s")[0]
    path = tmp_path_factory.mktemp("clips") / row["audio"]["path"]
    path.write_bytes(row["audio"]["bytes"])
    return str(path)


def text_linears(model) -> set[str]:
    layers = model.get_decoder().named_modules()
    return {type(module).__name__ for name, module in layers if name.endswith("down_proj.base_layer")} or {
        type(module).__name__ for name, module in model.get_decoder().named_modules() if name.endswith("down_proj")
    }


@pytest.mark.parametrize(("option", "layer"), [("load_in_8bit", "Linear8bitLt"), ("load_in_4bit", "Linear4bit")])
def test_few_bits(checkpoint, clip, tiny_processor, capsys, option: str, layer: str) -> None:
    pytest.importorskip("bitsandbytes")
    model = LoadingArguments(**{option: True}).load_model(str(checkpoint))
    assert text_linears(model) == {layer}
    assert isinstance(model.lm_head, nn.Linear) and model.lm_head.weight.dtype == torch.float32
    generate.main(["--model", str(checkpoint), "--audio", clip, "--max_new_tokens", "12", f"--{option}"])
    expected = Session(model, tiny_processor, **SHORT).ask("<audio>\nTranscribe the speech.", clip)
    assert capsys.readouterr().out == f"{expected}\n"


def test_merged_adapters(checkpoint, clip, tiny_processor, tiny_model) -> None:
    """Answers about audio stay; those to text are the adapted model's, and no more the base's."""
    merged = LoadingArguments(merge_adapters=True).load_model(str(checkpoint))
    assert not merged.config.lora_adapters and not merged.training
    about = [ask("What is said?", clip)]
    assert answer(merged, tiny_processor, about, **SHORT) == answer(tiny_model, tiny_processor, about, **SHORT)
    ids = tiny_processor(text="Hello?")["input_ids"]
    with torch.no_grad():
        base, adapted = (
            tiny_model.eval()(ids).logits,
            tiny_model(ids, adapter_names=list(tiny_model.config.lora_adapters)).logits,
        )
        torch.testing.assert_close(merged(ids).logits, adapted)
        assert not torch.allclose(adapted, base)


def test_attention(checkpoint) -> None:
    for name in ("eager", "sdpa"):
        model = LoadingArguments(attn_implementation=name).load_model(str(checkpoint))
        assert model.get_decoder().config._attn_implementation == name


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="FlashAttention is installed")
@pytest.mark.parametrize("name", ["flash_attention_2", "no_such_attention"])
def test_attention_that_is_not_there(checkpoint, name: str) -> None:
    with pytest.raises(CheckpointError, match=f"cannot be loaded with --attn_implementation {name}: "):
        load_model(str(checkpoint), attn_implementation=name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--load_in_8bit", "--load_in_4bit"], "--load_in_8bit contradicts --load_in_4bit"),
        (["--load_in_4bit", "--merge_adapters"], "--load_in_4bit leaves no weights that --merge_adapters"),
    ],
)
def test_contradictions(checkpoint, clip, capsys, options: list[str], message: str) -> None:
    for main, arguments in ((generate.main, ["--audio", clip]), (transcribe.main, [clip])):
        with pytest.raises(SystemExit) as caught:
            main([*arguments, "--model", str(checkpoint), *options])
        assert caught.value.code == 2 and message in capsys.readouterr().err


def test_what_is_merged_already(checkpoint, tmp_path, tiny_model) -> None:
    tiny_model.save_pretrained(tmp_path, weights="merged")
    with pytest.raises(CheckpointError, match="has no adapter to merge; leave out --merge_adapters"):
        load_model(str(tmp_path), merge_adapters=True)


def test_options_reach_what_transcribes(checkpoint, clip, tiny_processor, capsys) -> None:
    pytest.importorskip("bitsandbytes")
    said = {}
    for options in ((), ("--merge_adapters",), ("--load_in_4bit",)):
        transcribe.main([clip, "--model", str(checkpoint), "--max_new_tokens", "12", "--no_progress", *options])
        said[options] = capsys.readouterr().out
    assert said["--merge_adapters",] == said[()] != said["--load_in_4bit",]


def test_transcribing_with_a_static_cache(tiny_model, tiny_processor, clip) -> None:
    caches, texts = [], []
    tiny_model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: caches.append(type(kwargs.get(CACHE_NAME))), with_kwargs=True
    )
    for static in (False, True):
        caches.clear()
        settings = TranscribingSettings(max_new_tokens=12, static_cache=static)
        (result,) = Transcriber(tiny_model, tiny_processor, settings, progress=False).transcribe([clip])
        texts.append(result.text)
        assert (set(caches) == {StaticCache}) is static
    assert texts[0] == texts[1]

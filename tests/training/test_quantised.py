"""A base in 8 or 4 bits: text-only rows are its own, LoRA and projector train in float32, the adapter is the usual one."""

from pathlib import Path

import pytest
import torch
from audiollm import AudioLlmForConditionalGeneration
from audiollm.checkpoints import PACKS_FOR_CPU, language_model_only
from audiollm.command_line.machine import quantisation
from audiollm.training.arguments import ModelArguments, check_quantisation
from runs import differing, logged, run
from safetensors.torch import load_file
from tiny_models import llama_config, randomise_trainables, save_audio_base, save_text_base
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TrainingArguments
from transformers.utils import is_bitsandbytes_available

needs_bitsandbytes = pytest.mark.skipif(not is_bitsandbytes_available(), reason="bitsandbytes is not installed")
BITS = pytest.mark.parametrize("bits", [8, 4])
#: Between gradients over the quantised base and over the same weights in float32. With 8 bits, inputs are rounded too.
LEAST_COSINE = {8: 0.95, 4: 0.9999}
SLOTS, MEL_FRAMES = 7, 50


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A text base wide enough for a whole block of 64 weights."""
    folder = tmp_path_factory.mktemp("wide")
    config = llama_config(hidden_size=128, intermediate_size=256)
    return save_audio_base(folder / "audio"), save_text_base(folder / "text", config)


def load(bases: tuple[str, str], bits: int | None) -> AudioLlmForConditionalGeneration:
    torch.manual_seed(0)
    config = quantisation(bits == 8, bits == 4, torch.float32)
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(
        *bases, lora_rank=4, quantization_config=config
    )
    return randomise_trainables(model, std=0.05)


def spoken(config) -> dict[str, torch.Tensor]:
    audio = [config.audio_begin_token_id, *[config.audio_token_id] * SLOTS, config.audio_end_token_id]
    ids = torch.tensor([[7, *audio, 9, 10, 11, 12]])
    features = torch.randn(1, 80, MEL_FRAMES, generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "input_features": features, "labels": ids.where(ids.cumsum(1) > ids.sum() - 33, -100)}


@needs_bitsandbytes
@BITS
def test_text_only_rows_are_the_quantised_bases(bases, bits: int) -> None:
    model = load(bases, bits).eval()
    config = quantisation(bits == 8, bits == 4, torch.float32)
    base = AutoModelForCausalLM.from_pretrained(bases[1], quantization_config=config).eval()
    for module in base.modules():
        if hasattr(module, PACKS_FOR_CPU):
            setattr(module, PACKS_FOR_CPU, False)
    ids = torch.tensor([[7, 8, 9, 10], [20, 21, 22, 23]])
    with torch.no_grad():
        said, exact = model(input_ids=ids).logits, AutoModelForCausalLM.from_pretrained(bases[1])(input_ids=ids).logits
        assert torch.equal(said, base(input_ids=ids).logits) and not torch.equal(said, exact)


def as_stored(layer: torch.nn.Module) -> torch.Tensor:
    """The weight that a quantised layer stands for, in float32."""
    functional = pytest.importorskip("bitsandbytes").functional
    if hasattr(layer.weight, "quant_state"):
        return functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    scales = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
    return functional.int8_vectorwise_dequant(layer.weight.data, scales).float()


@needs_bitsandbytes
@BITS
@pytest.mark.filterwarnings("error:.*autograd kernel was not registered")
def test_gradients_are_those_over_the_same_weights_even_after_an_evaluation(bases, bits: int) -> None:
    quantised, exact = load(bases, bits), load(bases, None)
    for name, module in exact.named_modules():
        if name.endswith(".base_layer"):
            module.weight.data.copy_(as_stored(quantised.get_submodule(name)))
    for model in (quantised, exact):
        batch = spoken(model.config)
        with torch.no_grad():
            model.eval()(**batch)
        model.train()(**batch).loss.backward()
    for name in exact.trainable_names():
        found, expected = (model.get_parameter(name).grad.flatten() for model in (quantised, exact))
        assert torch.nn.functional.cosine_similarity(found, expected, dim=0) > LEAST_COSINE[bits], name


@needs_bitsandbytes
@BITS
def test_the_command_trains_and_leaves_the_usual_adapter(bases, options, tmp_path, bits: int) -> None:
    """The folder loads without quantisation and with it, and says nothing of it."""
    steps = ["--max_steps", "4", "--learning_rate", "0.01", "--warmup_steps", "0", "--logging_steps", "1"]
    run([*options, *steps, "--whisper_path", bases[0], "--llama_path", bases[1], f"--load_in_{bits}bit"])
    folder = tmp_path / "run"
    assert logged(folder)[-1] < 0.9 * logged(folder)[0]
    saved = load_file(folder / "model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.float32}
    assert "quantization_config" not in (folder / "config.json").read_text()
    config = quantisation(bits == 8, bits == 4, torch.float32)
    for given in (None, config):
        model = AudioLlmForConditionalGeneration.from_pretrained(folder, quantization_config=given)
        assert saved.keys() == set(model.trainable_names()) and not differing(saved, dict(model.named_parameters()))
        in_few_bits = {name for name, parameter in model.named_parameters() if not parameter.is_floating_point()}
        assert len(in_few_bits) == (0 if given is None else 14)
        assert all("language_model.layers" in n and n.endswith("_proj.base_layer.weight") for n in in_few_bits)
    for save in (lambda: model.save_pretrained(tmp_path / "whole", weights="full"), model.merge_adapters):
        with pytest.raises(ValueError, match="needs the base's own weights"):
            save()
    assert not (tmp_path / "whole" / "model.safetensors").exists()


def test_widths_mean_what_they_say_and_what_a_user_leaves_out_is_left_out_too() -> None:
    assert quantisation(False, False, torch.float32) is None
    assert quantisation(True, False, torch.float32).load_in_8bit
    four = quantisation(False, True, torch.bfloat16)
    assert four.load_in_4bit and four.bnb_4bit_quant_type == "nf4" and four.bnb_4bit_compute_dtype == torch.bfloat16
    config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["down_proj"])
    for given in (config, config.to_dict()):
        spared = language_model_only(given).llm_int8_skip_modules
        assert spared[0] == "down_proj" and len(spared) > 1 and config.llm_int8_skip_modules == ["down_proj"]
    with pytest.raises(ValueError, match="cannot leave modules out"):
        language_model_only(object.__new__(type("OtherConfig", (), {})))


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    monkeypatch.setattr("audiollm.training.arguments.is_bitsandbytes_available", lambda: False)
    check_quantisation(ModelArguments(), arguments)
    with pytest.raises(ValueError, match=r"pip install 'audiollm\[quantised\]'"):
        check_quantisation(ModelArguments(load_in_8bit=True), arguments)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="cannot be sharded by FSDP"):
        check_quantisation(ModelArguments(load_in_8bit=True), arguments)

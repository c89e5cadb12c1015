"""Saved, a model is a folder; loaded, it is the same model: adapter alone, everything, or merged."""

import copy
import logging
import shutil
from pathlib import Path

import pytest
import torch
from audiollm import AudioLlmConfig, AudioLlmForConditionalGeneration, AudioLlmModel, AudioLlmProcessor
from batches import MIXED_TEXT_ROWS, composed, labelled, logits_of, make_row
from safetensors.torch import load_file
from tiny_models import randomise_trainables, save_audio_base, save_text_base
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    GenerationConfig,
    Trainer,
    TrainingArguments,
)

#: An adapter of the tiny pair: far below the 300 kB of its bases.
ADAPTER_MAX_BYTES = 120_000
AUTO_CLASSES = (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("weights", "dtype", "other"),
    [("adapter", torch.bfloat16, torch.float32)]
    + [(weights, torch.float32, torch.bfloat16) for weights in ("full", "merged")],
    ids=str,
)
def test_what_is_saved_is_what_is_loaded(tiny_bases, tmp_path: Path, weights: str, dtype, other) -> None:
    model = composed(tiny_bases, dtype=dtype)
    expected = logits_of(copy.deepcopy(model).merge_adapters() if weights == "merged" else model)
    model.save_pretrained(tmp_path, weights=weights)
    assert (model.config.weight_format == "merged") is False
    for arguments in ({}, {"dtype": "auto"}):
        loaded = AudioLlmForConditionalGeneration.from_pretrained(tmp_path, **arguments)
        assert loaded.dtype == dtype and loaded.config.weight_format == weights
        assert torch.equal(logits_of(loaded), expected)
        assert not loaded.training
        trained = set(loaded.trainable_names())
        assert {n for n, p in loaded.named_parameters() if p.requires_grad} == trained
        for name, parameter in loaded.named_parameters():
            assert parameter.dtype == (torch.float32 if name in trained else dtype), name
    loaded = AudioLlmForConditionalGeneration.from_pretrained(tmp_path, dtype=other)
    assert {loaded.get_parameter(name).dtype for name in loaded.trainable_names()} == {torch.float32}
    assert loaded.dtype == loaded.model.audio_tower.dtype == other


def test_what_trains_is_float32_in_a_model_made_in_half_precision(tiny_model) -> None:
    model = AutoModelForCausalLM.from_config(tiny_model.config, dtype=torch.bfloat16)
    assert {model.get_parameter(name).dtype for name in model.trainable_names()} == {torch.float32}
    assert model.dtype == model.model.audio_tower.dtype == torch.bfloat16


@pytest.mark.quick
def test_auto_classes(shared_tiny_model, tiny_checkpoint: Path) -> None:
    assert type(AutoConfig.from_pretrained(tiny_checkpoint)) is AudioLlmConfig
    processor, options = AutoProcessor.from_pretrained(tiny_checkpoint), {"max_new_tokens": 5}
    assert type(processor) is AudioLlmProcessor
    inputs = processor(text="Say <audio>", audio=torch.randn(9000).numpy())
    expected = shared_tiny_model.generate(**inputs, **options)
    for auto_class in AUTO_CLASSES:
        loaded = auto_class.from_pretrained(tiny_checkpoint)
        assert type(loaded) is AudioLlmForConditionalGeneration
        assert torch.equal(loaded.generate(**inputs, **options), expected)


@pytest.mark.quick
def test_the_adapter_alone_is_small_and_holds_no_base_weight(tiny_model, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path, max_shard_size="1KB")
    saved = load_file(tmp_path / "model.safetensors")
    assert set(saved) == set(tiny_model.trainable_names())
    assert {value.dtype for value in saved.values()} == {torch.float32}
    assert (tmp_path / "model.safetensors").stat().st_size < ADAPTER_MAX_BYTES
    assert not (tmp_path / "adapter_config.json").exists()  # AutoModel would take the folder for peft's
    files = {path.name for path in tmp_path.iterdir()}
    assert {"config.json", "generation_config.json", "modeling_audiollm.py", "configuration_audiollm.py"} < files
    assert torch.equal(logits_of(AutoModel.from_pretrained(tmp_path)), logits_of(tiny_model))


def test_formats_follow_each_other_and_whole_ones_need_no_bases(tmp_path: Path) -> None:
    bases = save_audio_base(tmp_path / "audio"), save_text_base(tmp_path / "text")
    model = composed(bases)
    expected, merged = logits_of(model), logits_of(copy.deepcopy(model).merge_adapters())
    for index, weights in enumerate(["full", "adapter", None]):
        model.save_pretrained(tmp_path / str(index), weights=weights, max_shard_size="100KB")
        model = AudioLlmForConditionalGeneration.from_pretrained(tmp_path / str(index))
        assert model.config.weight_format == (weights or "adapter")
        assert torch.equal(logits_of(model), expected)
    # And over each other in one folder, as a training run writes.
    for weights in ("adapter", "merged", "full"):
        model.save_pretrained(tmp_path / "same", weights=weights)
    assert [len(list(tmp_path.glob(f"{folder}/*.safetensors"))) for folder in (0, 1, "same")] == [4, 1, 1]
    model.save_pretrained(tmp_path / "merged", weights="merged")
    for base in bases:
        shutil.rmtree(base)
    assert torch.equal(logits_of(AutoModel.from_pretrained(tmp_path / "same")), expected)
    # A merged model saved again is a merged model, whatever it is asked for.
    AutoModel.from_pretrained(tmp_path / "merged").save_pretrained(tmp_path / "again")
    assert torch.equal(logits_of(AutoModel.from_pretrained(tmp_path / "again")), merged)


def test_unfrozen_base_weights_are_saved_with_the_adapter(tiny_model, tmp_path: Path) -> None:
    layer = tiny_model.model.audio_tower.layers[-1].requires_grad_(True)
    with torch.no_grad():
        layer.fc1.weight.add_(0.1)
    tiny_model.save_pretrained(tmp_path)
    names = set(load_file(tmp_path / "model.safetensors")) - set(tiny_model.trainable_names())
    assert names == {f"model.audio_tower.layers.1.{name}" for name, _ in layer.named_parameters()}
    assert torch.equal(logits_of(AutoModel.from_pretrained(tmp_path)), logits_of(tiny_model))


def test_a_given_state_dict_is_saved_and_other_ranks_write_no_code(tiny_model, tmp_path: Path) -> None:
    """As Trainer does it when weights are gathered from several places."""
    other = randomise_trainables(copy.deepcopy(tiny_model), seed=50)
    tiny_model.save_pretrained(tmp_path / "first", True, other.state_dict())
    assert torch.equal(logits_of(AutoModel.from_pretrained(tmp_path / "first")), logits_of(other))
    tiny_model.save_pretrained(tmp_path / "second", is_main_process=False)
    assert not [path for path in tmp_path.glob("second/*") if path.suffix == ".py" or path.name == "config.json"]


def test_generation_config_survives(tiny_model, tiny_bases, tmp_path: Path) -> None:
    bases = GenerationConfig.from_pretrained(tiny_bases[1])
    assert tiny_model.generation_config.eos_token_id == bases.eos_token_id == 4
    tiny_model.generation_config.max_new_tokens = 7
    tiny_model.generation_config.repetition_penalty = 1.25
    for weights in ("adapter", "merged"):
        tiny_model.save_pretrained(tmp_path / weights, weights=weights)
        loaded = AutoModel.from_pretrained(tmp_path / weights).generation_config
        assert (loaded.max_new_tokens, loaded.repetition_penalty, loaded.eos_token_id) == (7, 1.25, 4)
    (tmp_path / "adapter" / "generation_config.json").unlink()
    assert AutoModel.from_pretrained(tmp_path / "adapter").generation_config.repetition_penalty in (None, 1.0)


def test_what_is_chosen_at_loading(tiny_model, tiny_bases, tmp_path: Path) -> None:
    for weights, device_map in (("full", {"": "cpu"}), ("adapter", "auto")):
        tiny_model.save_pretrained(tmp_path, weights=weights)
        loaded = AutoModel.from_pretrained(tmp_path, device_map=device_map)
        assert torch.equal(logits_of(loaded), logits_of(tiny_model))
        eager = AutoModel.from_pretrained(tmp_path, attn_implementation="eager")
        assert eager.model.audio_tower.config._attn_implementation == "eager"
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(
        *tiny_bases, device_map="auto", attn_implementation="eager"
    )
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert {"LlamaDecoderLayer", "WhisperEncoderLayer"} <= set(model._no_split_modules)
    assert model.model.language_model.config._attn_implementation == "eager"
    loaded, info = AudioLlmForConditionalGeneration.from_pretrained(tmp_path, lora_alpha=64, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and loaded.config.lora_alpha == 64
    found, expected = logits_of(loaded), logits_of(tiny_model)
    assert [torch.equal(*rows) for rows in zip(found, expected)] == [row in MIXED_TEXT_ROWS for row in range(5)]


# ---- bad checkpoints (tests/robustness/test_hostile_checkpoints.py spoils weights) -------------------------------------


@pytest.mark.parametrize("role", ["audio", "text"])
def test_a_wrong_and_a_missing_base(tmp_path: Path, role: str, caplog) -> None:
    folders, checkpoint = {name: tmp_path / name for name in ("audio", "text")}, tmp_path / "checkpoint"
    save = {"audio": save_audio_base, "text": save_text_base}
    model = composed((save_audio_base(folders["audio"]), save_text_base(folders["text"])))
    model.save_pretrained(checkpoint)
    expected = logits_of(model)
    folders[role].rename(tmp_path / "elsewhere")
    if role == "text":  # in another precision it is the same base
        save_text_base(folders["text"], dtype=torch.bfloat16)
        assert AutoModel.from_pretrained(checkpoint).config.lora_rank == 4
    save[role](folders[role], seed=77)
    with pytest.raises(ValueError, match=rf"The {role} base .*{role}' is not the one this checkpoint was trained on"):
        AutoModel.from_pretrained(checkpoint)
    loaded = AutoModel.from_pretrained(checkpoint, ignore_base_mismatch=True)
    assert "is not the one this checkpoint was trained on" in caplog.text
    assert not torch.allclose(logits_of(loaded), expected)
    elsewhere = {f"{role}_model_id": str(tmp_path / "elsewhere")}
    assert torch.equal(logits_of(AutoModel.from_pretrained(checkpoint, **elsewhere)), expected)
    shutil.rmtree(folders[role])
    with pytest.raises(FileNotFoundError, match=rf"The {role} base .*{role}' is not a folder.*Pass {role}_model_id="):
        AutoModel.from_pretrained(checkpoint)


def test_unknown_weight_formats_and_models_without_bases(tiny_model, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="weights is 'half'; expected 'adapter', 'full' or 'merged'"):
        tiny_model.save_pretrained(tmp_path / "half", weights="half")
    assert not (tmp_path / "half").exists()
    config = AudioLlmConfig.from_dict({**tiny_model.config.to_dict(), "audio_model_id": None, "weight_format": None})
    model = AudioLlmForConditionalGeneration(config).eval()
    with pytest.raises(ValueError, match=r"not composed from bases with ids\. Save it with weights='full'"):
        model.save_pretrained(tmp_path, weights="adapter")
    model.save_pretrained(tmp_path)
    assert torch.equal(logits_of(AutoModel.from_pretrained(tmp_path)), logits_of(model))


def test_the_plain_trainer_resumes_without_a_warning(tiny_model, tmp_path, caplog, monkeypatch) -> None:
    """Its checkpoints leave the frozen bases out, which are not missing then."""
    batch = labelled(tiny_model.config, [make_row(tiny_model.config, 4, (40,), 3, seed=1)])
    options = {"save_steps": 1, "report_to": "none", "remove_unused_columns": False, "use_cpu": True}
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    for steps in (1, 2):
        arguments = TrainingArguments(str(tmp_path), max_steps=steps, **options)
        rows = [{"id": 0}, {"id": 1}]
        trainer = Trainer(tiny_model, arguments, train_dataset=rows, data_collator=lambda _: dict(batch))
        trainer.train(resume_from_checkpoint=steps == 2)
    assert not [record for record in caplog.records if "missing keys" in record.getMessage()]
    tiny_model.save_pretrained(tmp_path / "full", weights="full")
    assert len(load_file(tmp_path / "full" / "model.safetensors")) > len(tiny_model.trainable_names())


def test_a_headless_model_without_weights_has_the_names_of_a_merged_checkpoint(tiny_model, tmp_path) -> None:
    """As engines build it: from the configuration alone, on the meta device, for weights that they load by name."""
    tiny_model.save_pretrained(tmp_path, weights="merged")
    config = AudioLlmConfig.from_pretrained(tmp_path)
    with torch.device("meta"):
        headless = AudioLlmModel(config)
    assert all(value.is_meta for value in headless.state_dict().values())
    saved = load_file(tmp_path / "model.safetensors")
    expected = {f"model.{name}": value.shape for name, value in headless.state_dict().items()}
    assert {name: value.shape for name, value in saved.items() if not name.startswith("lm_head.")} == expected
    assert headless.get_input_embeddings() is headless.language_model.embed_tokens

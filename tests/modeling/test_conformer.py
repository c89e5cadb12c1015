"""Another encoder than Whisper: Wav2Vec2-BERT, a conformer, through model, processor, training and export."""

from pathlib import Path

import numpy as np
import pytest
import torch
from audiollm import AudioLlmConfig, AudioLlmForConditionalGeneration, AudioLlmProcessor
from audiollm.inference.export_ultravox import ExportError, check_exportable
from audiollm.inference.web.sound import log_mel
from audiollm.processing.processing_audiollm import windows_for
from audiollm.training.train import main as train
from batches import composed
from small_corpus import write_recordings, write_rows
from tiny_models import HIDDEN_SIZE, save_text_base
from transformers import (
    AutoModelForCausalLM,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2BertConfig,
    Wav2Vec2BertForCTC,
    Wav2Vec2BertModel,
    Wav2Vec2FeatureExtractor,
)

RATE = 16_000
#: Shorter than a frame, two ordinary clips, and one that needs a second window.
SECONDS = (0.01, 0.8, 31.0)
TOLERANCE = 1e-4
STACK_FACTOR = 4


def conformer_config(**fields) -> Wav2Vec2BertConfig:
    return Wav2Vec2BertConfig(
        vocab_size=32,
        hidden_size=HIDDEN_SIZE,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        output_hidden_size=HIDDEN_SIZE,
        conv_depthwise_kernel_size=7,
        initializer_range=0.2,
        **fields,
    )


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, int(seconds * RATE)).astype(np.float32)


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> tuple[str, str]:
    """Folders of a tiny conformer and of a tiny Llama."""
    folder = tmp_path_factory.mktemp("conformer")
    torch.manual_seed(0)
    Wav2Vec2BertModel(conformer_config()).save_pretrained(folder / "audio")
    SeamlessM4TFeatureExtractor().save_pretrained(folder / "audio")
    return str(folder / "audio"), save_text_base(folder / "text")


@pytest.fixture(scope="module")
def model(bases) -> AudioLlmForConditionalGeneration:
    return composed(bases, stack_factor=STACK_FACTOR, projector_hidden_size=64)


@pytest.fixture(scope="module")
def processor(bases) -> AudioLlmProcessor:
    return AudioLlmProcessor.from_audio_text_pretrained(*bases, stack_factor=STACK_FACTOR)


def test_frames_are_those_of_the_encoder_and_its_own_extractor(bases, model, processor) -> None:
    stock = Wav2Vec2BertModel.from_pretrained(bases[0]).eval()
    clip = noise(1.3)
    native = processor.feature_extractor(clip, sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        expected = stock(**native).last_hidden_state[0]
        frames, lengths = model.model.encode_audio(**processor.batch_features([clip]))
    length = int(lengths[0])
    assert length == int(native["attention_mask"].sum())
    torch.testing.assert_close(frames[0, :length], expected[:length], atol=TOLERANCE, rtol=0)


def test_as_many_slots_as_frames_and_batched_is_single_whatever_the_neighbours(model, processor) -> None:
    clips = [noise(seconds, seed) for seed, seconds in enumerate(SECONDS)]
    inputs = [processor(text="Say <audio>", audio=clip) for clip in clips]
    for each in inputs:
        _, lengths = model.model.encode_audio(each["input_features"], each["input_features_mask"])
        slots = int((each["input_ids"] == processor.audio_token_id).sum())
        assert slots == sum(-(-length // STACK_FACTOR) for length in lengths.tolist()) > 0
    assert processor.encoder_frames(31 * RATE) == [1499, 49]
    with torch.no_grad():
        together = model(**processor(text=["Say <audio>"] * len(clips), audio=clips)).logits[:, -1]
        alone = [model(**each).logits[0, -1] for each in inputs]
    torch.testing.assert_close(together, torch.stack(alone), atol=TOLERANCE, rtol=0)


def test_text_rows_are_the_base_and_a_checkpoint_rebuilds_it(bases, model, processor, tmp_path) -> None:
    text = processor(text="The capital of France is")
    with torch.no_grad():
        assert torch.equal(model(**text).logits, AutoModelForCausalLM.from_pretrained(bases[1])(**text).logits)
    model.save_pretrained(tmp_path / "adapter")
    processor.save_pretrained(tmp_path / "adapter")
    loaded = AudioLlmForConditionalGeneration.from_pretrained(tmp_path / "adapter")
    inputs, other = (processor(text="<audio>", audio=noise(0.8, seed)) for seed in (0, 1))
    again = AudioLlmProcessor.from_pretrained(tmp_path / "adapter")(text="<audio>", audio=noise(0.8))
    with torch.no_grad():
        assert torch.equal(loaded(**again).logits, model(**inputs).logits)
        assert not torch.equal(model(**other).logits, model(**inputs).logits)
        assert torch.equal(loaded.generate(**inputs, max_new_tokens=4), model.generate(**inputs, max_new_tokens=4))
    torch.manual_seed(1)
    Wav2Vec2BertModel(conformer_config()).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"audio base .* is not the one"):
        AudioLlmForConditionalGeneration.from_pretrained(tmp_path / "adapter", audio_model_id=str(tmp_path / "other"))


def test_the_encoder_of_a_recogniser_will_do(bases, tmp_path) -> None:
    torch.manual_seed(0)
    recogniser = Wav2Vec2BertForCTC(conformer_config())
    recogniser.save_pretrained(tmp_path)
    SeamlessM4TFeatureExtractor().save_pretrained(tmp_path)
    found = composed((str(tmp_path), bases[1]), lora_rank=0).model.audio_tower.state_dict()
    expected = recogniser.wav2vec2_bert.state_dict()
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_it_trains_by_the_command(bases, tmp_path: Path) -> None:
    write_recordings(tmp_path, 4)
    rows = [
        {"text": "<audio>", "audio_paths": f"{n}.wav", "response": word} for n, word in enumerate(("one", "two") * 2)
    ]
    paths = {"data_path": write_rows(tmp_path / "data.json", rows), "audio_dir": tmp_path, "whisper_path": bases[0]}
    paths |= {"llama_path": bases[1], "output_dir": tmp_path / "run", "feature_cache": tmp_path / "cache"}
    options = [word for name, path in paths.items() for word in (f"--{name}", str(path))]
    train([*options, "--max_steps", "2", "--batch_size", "2", "--use_cpu", "True"])
    trained = AudioLlmForConditionalGeneration.from_pretrained(tmp_path / "run")
    assert trained.config.audio_config.model_type == "wav2vec2-bert"
    assert any((tmp_path / "cache").rglob("*.safetensors"))


def test_what_is_not_supported_is_refused_by_name(model, processor) -> None:
    with pytest.raises(ValueError, match=r"hubert.*wav2vec2-bert"):
        AudioLlmConfig(audio_config={"model_type": "hubert"})
    with pytest.raises(ValueError, match="add_adapter"):
        AudioLlmForConditionalGeneration(AudioLlmConfig(audio_config=conformer_config(add_adapter=True).to_dict()))
    with pytest.raises(ValueError, match="stack_factor"):
        AudioLlmConfig(audio_config=conformer_config().to_dict(), stack_factor=1501)
    with pytest.raises(ValueError, match=r"Wav2Vec2FeatureExtractor.*SeamlessM4TFeatureExtractor"):
        windows_for(Wav2Vec2FeatureExtractor())
    with pytest.raises(ExportError, match=r"wav2vec2-bert.*Ultravox's is a Whisper"):
        check_exportable(model.config)
    assert log_mel(noise(31.0), processor, max_columns=100).shape[1] <= 102

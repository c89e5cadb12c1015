"""The slots that the processor writes are the audio tokens that the model makes, for any length and stack factor."""

import math

import numpy as np
import pytest
import torch
from audiollm import AudioLlmConfig, AudioLlmProcessor
from audiollm.audio_tower import AudioTower, encoder_frame_counts
from audiollm.projector import AudioLlmProjector, slot_counts
from tiny_models import character_tokenizer, llama_config, whisper_config
from transformers import WhisperFeatureExtractor

RATE_HZ = 16_000
HOP_SAMPLES = 160
WINDOW_SAMPLES = 30 * RATE_HZ
LONGEST_SAMPLES = 95 * RATE_HZ
STACK_FACTORS = range(1, 17)
EDGES = (1, 159, 160, 161, 319, 320, 321, 401, 479_999, 480_000, 480_001, 960_001)
#: Of log-mel features in float32, which lie around [-1, 1].
ROUNDING = 1e-6
#: Lengths that are encoded for real; the arithmetic is checked for all.
ENCODED = (1, 161, 4_000, 480_001)


@pytest.fixture(scope="module")
def processors(extractor: WhisperFeatureExtractor) -> dict[int, AudioLlmProcessor]:
    """A processor for every stack factor."""
    return {k: AudioLlmProcessor(extractor, character_tokenizer(), stack_factor=k) for k in STACK_FACTORS}


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    return 0.1 * np.random.default_rng(0).standard_normal(LONGEST_SAMPLES).astype(np.float32)


def slots_by_mask(processor: AudioLlmProcessor, num_samples: int) -> int:
    """The model's own arithmetic on the mask of the windows' log-mel frames."""
    frames = [math.ceil(length / HOP_SAMPLES) for length in processor.window_lengths(num_samples)]
    return int(slot_counts(encoder_frame_counts(torch.tensor(frames)), processor.stack_factor).sum())


@pytest.mark.parametrize("stack_factor", (1, 4, 7))
def test_slots_are_the_models_at_every_edge(processors, noise, stack_factor):
    processor = processors[stack_factor]
    for num_samples in EDGES:
        assert processor.num_audio_slots(num_samples) == slots_by_mask(processor, num_samples)
    for num_samples in EDGES[:8]:  # below a second: features as well
        batch = processor(text="<audio>", audio=noise[:num_samples])
        frames = batch["input_features_mask"].sum(dim=1)
        slots = int((batch["input_ids"] == processor.audio_token_id).sum())
        assert slots == processor.num_audio_slots(num_samples)
        assert slots == int(slot_counts(encoder_frame_counts(frames), stack_factor).sum())


@pytest.fixture(scope="module")
def tower() -> AudioTower:
    torch.manual_seed(0)
    return AudioTower(whisper_config(encoder_layers=1, d_model=16, encoder_attention_heads=2)).eval()


@pytest.mark.parametrize("num_samples", ENCODED)
def test_the_projector_really_gives_as_many_tokens(processors, tower, noise, num_samples):
    batch = processors[4].batch_features([noise[:num_samples]])
    mask = batch["input_features_mask"]
    with torch.no_grad():
        frames = tower(batch["input_features"], attention_mask=mask).last_hidden_state
        for stack_factor in (1, 3, 4, 16):
            fields = {"stack_factor": stack_factor, "projector_hidden_size": 8}
            config = AudioLlmConfig(audio_config=tower.config, text_config=llama_config(), **fields)
            tokens = AudioLlmProjector(config)(frames, encoder_frame_counts(mask.sum(dim=1)))
            assert len(tokens) == processors[stack_factor].num_audio_slots(num_samples)


def test_thirty_five_seconds_are_two_windows_and_lose_nothing(processors, noise):
    batch = processors[4](text="<audio>", audio=noise[: 35 * RATE_HZ])
    assert batch["input_features_mask"].sum(dim=1).tolist() == [3000, 500]
    assert int((batch["input_ids"] == processors[4].audio_token_id).sum()) == 375 + 63
    later = processors[4].batch_features([noise[WINDOW_SAMPLES : 35 * RATE_HZ]])["input_features"]
    assert batch["input_features"][1, :, :500].equal(later[0])


@pytest.mark.parametrize("num_samples", [*EDGES[:-2], 7777])
def test_frames_are_those_of_whispers_own_extractor(processors, extractor, noise, num_samples):
    waveform = noise[:num_samples]
    padded = extractor(waveform, sampling_rate=RATE_HZ, return_tensors="np")["input_features"][0]  # to 30 s
    expected = padded[:, : math.ceil(len(waveform) / HOP_SAMPLES)]
    (found,) = processors[4].extract_features(waveform)
    assert found.shape == expected.shape
    # Bit for bit from 0.1 s on, on the machine this was written on; matrix kernels for narrower inputs round otherwise.
    np.testing.assert_allclose(found, expected, atol=ROUNDING, rtol=0)
    if num_samples == WINDOW_SAMPLES:
        np.testing.assert_array_equal(found, expected)

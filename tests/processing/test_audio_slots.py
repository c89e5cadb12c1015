"""The slots that the processor writes are the audio tokens that the model makes; long waveforms are cut where it is quiet."""

import math

import numpy as np
import pytest
import torch
from audiollm import AudioLlmConfig, AudioLlmProcessor
from audiollm.audio_tower import AudioTower, encoder_frame_counts
from audiollm.processing.cutting import QUIET_SECONDS, cut_at_quiet, quietest_moment
from audiollm.projector import AudioLlmProjector, slot_counts
from tiny_models import character_tokenizer, llama_config, whisper_config

RATE_HZ = 16_000
HOP_SAMPLES = 160
WINDOW_SAMPLES = 30 * RATE_HZ
STACK_FACTORS = (1, 4, 7)
EDGES = (1, 159, 160, 161, 319, 320, 321, 401, 479_999, 480_000, 480_001, 960_001)
#: Of log-mel features in float32, which lie around [-1, 1].
ROUNDING = 1e-6
NOISE = 0.1 * np.random.default_rng(0).standard_normal(61 * RATE_HZ).astype(np.float32)


@pytest.fixture(scope="module")
def processors(extractor) -> dict[int, AudioLlmProcessor]:
    """A processor for each stack factor."""
    return {k: AudioLlmProcessor(extractor, character_tokenizer(), stack_factor=k) for k in STACK_FACTORS}


def test_slots_are_the_models_at_every_edge(processors):
    torch.manual_seed(0)
    tower = AudioTower(whisper_config(encoder_layers=1, d_model=16, encoder_attention_heads=2)).eval()
    for stack_factor, processor in processors.items():
        fields = {"stack_factor": stack_factor, "projector_hidden_size": 8}
        projector = AudioLlmProjector(AudioLlmConfig(audio_config=tower.config, text_config=llama_config(), **fields))
        for num_samples in EDGES:
            frames = [math.ceil(length / HOP_SAMPLES) for length in processor.window_lengths(num_samples)]
            counts = slot_counts(encoder_frame_counts(torch.tensor(frames)), stack_factor)
            assert processor.num_audio_slots(num_samples) == int(counts.sum())
            if num_samples > RATE_HZ:  # encoding takes long
                continue
            batch = processor(text="<audio>", audio=NOISE[:num_samples])
            mask = batch["input_features_mask"]
            assert int((batch["input_ids"] == processor.audio_token_id).sum()) == int(counts.sum())
            with torch.no_grad():
                encoded = tower(batch["input_features"], attention_mask=mask).last_hidden_state
                assert len(projector(encoded, encoder_frame_counts(mask.sum(dim=1)))) == int(counts.sum())


def test_thirty_five_seconds_are_two_windows_and_lose_nothing(processors):
    """(tests/modeling/test_batching.py encodes as many.)"""
    batch = processors[4](text="<audio>", audio=NOISE[: 35 * RATE_HZ])
    assert batch["input_features_mask"].sum(dim=1).tolist() == [3000, 500]
    assert int((batch["input_ids"] == processors[4].audio_token_id).sum()) == 375 + 63
    later = processors[4].batch_features([NOISE[WINDOW_SAMPLES : 35 * RATE_HZ]])["input_features"]
    assert batch["input_features"][1, :, :500].equal(later[0])


def test_frames_are_those_of_whispers_own_extractor(processors, extractor):
    for num_samples in (*EDGES[:-2], 7777):
        waveform = NOISE[:num_samples]
        padded = extractor(waveform, sampling_rate=RATE_HZ, return_tensors="np")["input_features"][0]  # to 30 s
        (found,) = processors[4].extract_features(waveform)
        # Bit for bit from 0.1 s on, on the machine this was written on; kernels for narrower inputs round otherwise.
        np.testing.assert_allclose(found, padded[:, : math.ceil(num_samples / HOP_SAMPLES)], atol=ROUNDING, rtol=0)
        if num_samples == WINDOW_SAMPLES:
            np.testing.assert_array_equal(found, padded)


# ---- cutting at quiet moments -----------------------------------------------------------------------------------------


RATE = 1_000


@pytest.mark.parametrize("seed", range(4))
def test_the_moment_is_the_one_that_a_plain_sum_finds(seed: int) -> None:
    generator = np.random.default_rng(seed)
    waveform = generator.standard_normal(3 * RATE).astype(np.float32)
    sums = np.convolve(
        np.square(waveform[RATE : 2 * RATE], dtype=np.float64), np.ones(int(QUIET_SECONDS * RATE)), "same"
    )
    assert quietest_moment(waveform, RATE, 2 * RATE, RATE) == RATE + int(sums.argmin())


def test_pieces_are_the_waveform_and_end_in_its_gaps() -> None:
    waveform = np.random.default_rng(0).standard_normal(10 * RATE).astype(np.float32)
    for second in range(10):
        waveform[second * RATE + 600 : second * RATE + 900] = 0
    pieces = cut_at_quiet(waveform, 3 * RATE, RATE)
    assert np.array_equal(np.concatenate(pieces), waveform) and len(pieces) > 3
    ends = np.cumsum([len(piece) for piece in pieces])[:-1]
    assert max(map(len, pieces)) <= 3 * RATE and all(600 <= end % RATE <= 900 for end in ends)

"""The gate: no speech is dropped, clean, soft or in noise; silence, noise and hum are, at any level."""

import numpy as np
import pytest
from audiollm.inference.windows import HOP_SECONDS, detect_voice
from long_recordings import RATE, noises, prompts, silence

ALL_TEST_PROMPTS, LONGEST_PROMPT_S = 69, 32.0


@pytest.fixture(scope="module")
def speech() -> list[np.ndarray]:
    return prompts(ALL_TEST_PROMPTS)


@pytest.mark.parametrize("gain_db", [0, -20, -40])
def test_no_prompt_is_dropped_however_soft(speech, gain_db: int) -> None:
    assert all(detect_voice(clip * np.float32(10 ** (gain_db / 20)), RATE).active.any() for clip in speech)


@pytest.mark.parametrize("snr_db", [20, 5, 0])
@pytest.mark.parametrize("noise", ["white", "pink"])
def test_no_prompt_is_dropped_in_noise(speech, noise: str, snr_db: int) -> None:
    loud = noises(LONGEST_PROMPT_S, -20)[noise]
    for clip in speech:
        sound = loud[: len(clip)]
        assert len(sound) == len(clip)
        level = clip.std() / sound.std() * 10 ** (-snr_db / 20)
        assert detect_voice(clip + level * sound, RATE).active.any()


@pytest.mark.parametrize("seconds", [0.4, 5.0, 30.0])
@pytest.mark.parametrize("level_dbfs", [-15, -40, -60])
def test_what_nobody_speaks_in_is_dropped(level_dbfs: int, seconds: float) -> None:
    for name, sound in noises(seconds, level_dbfs).items():
        assert not detect_voice(sound, RATE).active.any(), name
    assert not detect_voice(silence(seconds), RATE).active.any()
    assert not detect_voice(np.zeros(int(seconds * RATE), dtype=np.float32), RATE).active.any()


def test_speech_is_found_where_it_is(speech) -> None:
    waveform = np.concatenate([silence(2), speech[0], silence(3)])
    active = np.flatnonzero(detect_voice(waveform, RATE).active) * HOP_SECONDS
    assert 1.8 <= active[0] <= 2.5 and active[-1] <= 2.2 + len(speech[0]) / RATE


def test_the_threshold_decides_and_reasons_are_given(speech) -> None:
    white = noises(2.0, -30)["white"]
    assert detect_voice(white, RATE, rise_db=0.5).active.any()
    assert detect_voice(white, RATE, rise_db=0).active.all()
    assert not detect_voice(speech[0], RATE, rise_db=90).active.any()
    assert detect_voice(silence(1), RATE).describe() == "silence"
    assert "no voice: level -3" in detect_voice(white, RATE).describe()


@pytest.mark.parametrize("samples", [1, 100, 512, 513])
def test_waveforms_shorter_than_a_frame_are_looked_at_too(samples: int) -> None:
    assert len(detect_voice(np.full(samples, 0.1, dtype=np.float32), RATE).active) >= 1

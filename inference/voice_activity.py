"""
Is anybody speaking? A gate of energy, so that a model is not asked what is said where nothing is.

Speech comes in syllables: its level rises and falls by tens of decibels within a second, where silence, noise and hum stay
at theirs. What tells them apart is therefore not how loud a moment is but how far it rises above the quietest ones around.
"""

from dataclasses import dataclass

import numpy as np

#: Frames, and from one to the next.
FRAME_SECONDS, HOP_SECONDS = 0.032, 0.01
#: The band that carries speech; hum lies below.
LOWEST_HZ, HIGHEST_HZ = 200, 4_000
#: Levels are means, in decibels, of so many frames, so that the chance peaks of noise are not taken for syllables.
SMOOTHED_FRAMES = 5
#: The noise floor is the level that so many percent of all frames lie below.
FLOOR_PERCENTILE = 5
#: What is quieter is silence, whatever its ups and downs: speech turned down by 40 dB still is louder.
MIN_LEVEL_DBFS = -70.0
#: Rise above the floor from which a moment is speech. Speech in white noise as loud as itself rises by 6.4 dB and more
#: (by 95 percent against 5), in silence by 27; white, pink and brown noise, hum and tones by at most 2.5.
RISE_DB = 6.0
POWER_FLOOR = 1e-12


@dataclass(frozen=True)
class VoiceActivity:
    """
    Where in a stretch of sound somebody may be speaking.

    Attributes:
        active: `(frames,)` booleans, one each `HOP_SECONDS`.
        floor_dbfs: the level of its quietest moments.
        peak_dbfs: the level of its loudest moment.
    """

    active: np.ndarray
    floor_dbfs: float
    peak_dbfs: float

    def describe(self) -> str:
        """Why nothing of it is taken for speech, in figures."""
        if self.peak_dbfs <= MIN_LEVEL_DBFS:
            return "silence"
        return (
            f"no voice: level {self.floor_dbfs:.0f} to {self.peak_dbfs:.0f} dBFS, "
            f"a rise of {self.peak_dbfs - self.floor_dbfs:.1f} dB"
        )


def frame_levels(waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
    """
    Level of the band of speech in dBFS, `(frames,)`, of a waveform `(samples,)`; frame `i` is centred at `i * HOP_SECONDS`.
    """
    size, hop = int(FRAME_SECONDS * sampling_rate), int(HOP_SECONDS * sampling_rate)
    padded = np.pad(waveform, size // 2, mode="reflect" if len(waveform) > size else "edge")
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop]
    window = np.hanning(size).astype(np.float32)
    spectrum = np.abs(np.fft.rfft(frames * window, axis=1)) ** 2
    frequencies = np.fft.rfftfreq(size, 1 / sampling_rate)
    band = (frequencies >= LOWEST_HZ) & (frequencies <= HIGHEST_HZ)
    power = spectrum[:, band].sum(axis=1) / (size * float(np.square(window).sum()) / 2)
    levels = 10 * np.log10(power + POWER_FLOOR)
    around = SMOOTHED_FRAMES // 2
    return np.convolve(np.pad(levels, around, mode="edge"), np.full(SMOOTHED_FRAMES, 1 / SMOOTHED_FRAMES), "valid")


def detect_voice(waveform: np.ndarray, sampling_rate: int, rise_db: float = RISE_DB) -> VoiceActivity:
    """
    Finds where in a waveform `(samples,)` somebody may be speaking. Its own quietest moments are what noise is taken to be.

    Music, knocks and noise that swells are taken for speech; what is dropped is what can hold none.

    Args:
        rise_db: how far above the quietest moments speech rises; 0 takes all that is no silence for speech.
    """
    levels = frame_levels(waveform, sampling_rate)
    floor = float(np.percentile(levels, FLOOR_PERCENTILE))
    active = (levels >= floor + rise_db) if rise_db > 0 else np.ones(len(levels), dtype=bool)
    active &= levels > MIN_LEVEL_DBFS
    return VoiceActivity(active, floor, float(levels.max()))


__all__ = ["HOP_SECONDS", "MIN_LEVEL_DBFS", "RISE_DB", "VoiceActivity", "detect_voice", "frame_levels"]

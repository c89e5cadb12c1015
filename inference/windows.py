"""
Windows of long recordings, cut at pauses, and a gate of energy that leaves out stretches without a voice.

Speech comes in syllables: its level rises and falls by tens of decibels within a second. Silence, noise and hum stay at
their level. The gate therefore looks at how far a moment rises above the quietest ones around it, not at loudness.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from audiollm.processing.cutting import QUIET_SECONDS, quietest_moment

#: Length of a frame, and distance from one to the next.
FRAME_SECONDS, HOP_SECONDS = 0.032, 0.01
#: The band that carries speech; hum lies below.
LOWEST_HZ, HIGHEST_HZ = 200, 4_000
#: Frames that a level is the mean of, in decibels, so that chance peaks of noise do not look like syllables.
SMOOTHED_FRAMES = 5
#: Percentile of the frames' levels that is the noise floor.
FLOOR_PERCENTILE = 5
#: Anything quieter is silence: speech turned down by 40 dB is still louder.
MIN_LEVEL_DBFS = -70.0
#: Rise above the floor from which a moment is speech. Speech in white noise as loud as itself rises by 6.4 dB and more
#: (by 95 percent against 5), in silence by 27; white, pink and brown noise, hum and tones by at most 2.5.
RISE_DB = 6.0
POWER_FLOOR = 1e-12
#: Margin on both sides of speech, for soft first and last sounds.
MARGIN_SECONDS = 0.4
#: Pauses of this length end a window and are skipped; shorter ones are part of their window.
LONG_PAUSE_SECONDS = 2.0


# ---- voice activity -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VoiceActivity:
    """
    Moments of a stretch of sound at which somebody may be speaking.

    Attributes:
        active: `(frames,)` booleans, one each `HOP_SECONDS`.
        floor_dbfs: level of the quietest moments.
        peak_dbfs: level of the loudest moment.
    """

    active: np.ndarray
    floor_dbfs: float
    peak_dbfs: float

    def describe(self) -> str:
        """Return the reason why nothing of it is taken for speech, in figures."""
        if self.peak_dbfs <= MIN_LEVEL_DBFS:
            return "silence"
        return (
            f"no voice: level {self.floor_dbfs:.0f} to {self.peak_dbfs:.0f} dBFS, "
            f"a rise of {self.peak_dbfs - self.floor_dbfs:.1f} dB"
        )


def frame_levels(waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Return the level of the band of speech in dBFS, `(frames,)`; frame `i` is centred at `i * HOP_SECONDS`."""
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
    Find the moments of a waveform `(samples,)` that rise by `rise_db` above its quietest ones; 0 leaves out silence alone.

    Music, knocks and swelling noise are taken for speech: only stretches that cannot hold any are dropped.
    """
    levels = frame_levels(waveform, sampling_rate)
    floor = float(np.percentile(levels, FLOOR_PERCENTILE))
    active = (levels >= floor + rise_db) if rise_db > 0 else np.ones(len(levels), dtype=bool)
    active &= levels > MIN_LEVEL_DBFS
    return VoiceActivity(active, floor, float(levels.max()))


# ---- windows --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Window:
    """
    A part of a recording, from sample to sample; windows follow each other without a gap.

    `waveform` is None in a stretch without speech, and `reason` says why that is skipped.
    """

    start: int
    end: int
    sampling_rate: int
    waveform: np.ndarray | None
    reason: str = ""

    @property
    def start_s(self) -> float:
        """Start in seconds."""
        return self.start / self.sampling_rate

    @property
    def end_s(self) -> float:
        """End in seconds."""
        return self.end / self.sampling_rate


def cut_into_windows(
    blocks: Iterable[np.ndarray],
    sampling_rate: int,
    max_seconds: float,
    voice_activity: bool = True,
    rise_db: float = RISE_DB,
) -> Iterator[Window]:
    """
    Cut a recording into windows that hold whole phrases, and stretches without a voice.

    A window ends before a pause of `LONG_PAUSE_SECONDS`, else in the middle of the longest pause of its second half, else
    at the quietest moment there. The division into blocks makes no difference.

    Args:
        blocks: waveforms `(samples,)`, one after the other.
        max_seconds: longest window.
        voice_activity: without it nothing is skipped, and windows end at the quietest moment of their second half.
        rise_db: see [`detect_voice`].
    """
    max_samples = int(max_seconds * sampling_rate)
    blocks, start = iter(blocks), 0
    held = np.zeros(0, dtype=np.float32)
    while True:
        pieces = [held]
        while sum(map(len, pieces)) <= max_samples and (block := next(blocks, None)) is not None:
            pieces.append(block)
        held = np.concatenate(pieces)
        if not len(held):
            return
        if voice_activity:
            length, reason = _next_cut(held, max_samples, sampling_rate, rise_db)
        else:
            length, reason = _quiet_end(held, max_samples, sampling_rate), ""
        yield Window(start, start + length, sampling_rate, None if reason else held[:length].copy(), reason)
        held = held[length:].copy()
        start += length


def _quiet_end(held: np.ndarray, max_samples: int, sampling_rate: int) -> int:
    if len(held) <= max_samples:
        return len(held)
    return max(1, quietest_moment(held, max_samples // 2, max_samples, sampling_rate))


def _next_cut(all_held: np.ndarray, max_samples: int, sampling_rate: int, rise_db: float) -> tuple[int, str]:
    """Return the samples until the next cut, and the reason to skip them, which is empty for speech."""
    is_last = len(all_held) <= max_samples
    held = all_held[:max_samples]
    activity = detect_voice(held, sampling_rate, rise_db)
    hop, margin = int(HOP_SECONDS * sampling_rate), int(MARGIN_SECONDS * sampling_rate)
    long_pause = int(LONG_PAUSE_SECONDS * sampling_rate)
    spoken = np.flatnonzero(activity.active) * hop
    if not len(spoken):
        # Speech that begins at the very end is found with the samples after it.
        return (len(held) if is_last else max(1, len(held) - margin)), activity.describe()
    if spoken[0] - margin >= long_pause:
        pause = int(spoken[0]) - margin
        return pause, f"pause of {pause / sampling_rate:.1f} s"
    ends = np.append(spoken, len(held))  # a moment of speech, and the next
    pauses = np.diff(ends)
    long = np.flatnonzero(pauses >= long_pause + 2 * margin)
    if len(long):
        return int(spoken[long[0]]) + margin, ""
    if is_last:
        return len(held), ""
    half = max_samples // 2
    middles = spoken + pauses // 2
    fitting = np.flatnonzero((middles >= half) & (pauses >= QUIET_SECONDS * sampling_rate))
    if len(fitting):
        return int(middles[fitting[pauses[fitting].argmax()]]), ""
    return _quiet_end(all_held, max_samples, sampling_rate), ""

"""Recordings of hours in windows of seconds: cut where nobody speaks, with nothing lost and nothing held but one window."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from audiollm.processing.audio import QUIET_SECONDS, quietest_moment

from .voice_activity import HOP_SECONDS, RISE_DB, detect_voice

#: Kept on both sides of speech, for soft first and last sounds.
MARGIN_SECONDS = 0.4
#: Pauses from here on end a window, and are not listened to; shorter ones are heard with the speech around them.
LONG_PAUSE_SECONDS = 2.0


@dataclass(frozen=True, eq=False)
class Window:
    """
    A part of a recording; those of one follow each other without a gap.

    Attributes:
        start, end: in samples at `sampling_rate`, from the recording's beginning.
        sampling_rate: in Hz.
        waveform: `(end - start,)`; None where nothing is to be heard.
        reason: why nothing is; empty where something may be.
    """

    start: int
    end: int
    sampling_rate: int
    waveform: np.ndarray | None
    reason: str = ""

    @property
    def start_s(self) -> float:
        """Where it starts, in seconds."""
        return self.start / self.sampling_rate

    @property
    def end_s(self) -> float:
        """Where it ends, in seconds."""
        return self.end / self.sampling_rate


def cut_into_windows(
    blocks: Iterable[np.ndarray],
    sampling_rate: int,
    max_seconds: float,
    voice_activity: bool = True,
    rise_db: float = RISE_DB,
) -> Iterator[Window]:
    """
    Cuts a recording into windows that hold whole phrases, and stretches without a voice.

    A window ends before a pause of `LONG_PAUSE_SECONDS`, else in the middle of the longest pause of its second half, else
    at the quietest moment there. How the recording was divided into blocks makes no difference.

    Args:
        blocks: waveforms `(samples,)`, one after the other.
        sampling_rate: theirs, in Hz.
        max_seconds: longest window.
        voice_activity: tell speech from what is none; without it every window is to be heard, and ends where it is
            quietest.
        rise_db: see [`detect_voice`].
    """
    max_samples = int(max_seconds * sampling_rate)
    start = 0
    for buffer in _Buffer(blocks, max_samples):
        if voice_activity:
            length, reason = _next_cut(buffer, max_samples, sampling_rate, rise_db)
        else:
            length, reason = _quiet_end(buffer.held, max_samples, sampling_rate), ""
        waveform = buffer.take(length)
        yield Window(start, start + length, sampling_rate, None if reason else waveform, reason)
        start += length


class _Buffer:
    """The part of a stream that is looked at: filled to one sample more than a window, where there is as much."""

    def __init__(self, blocks: Iterable[np.ndarray], max_samples: int):
        self._blocks = iter(blocks)
        self._max_samples = max_samples
        self.held = np.zeros(0, dtype=np.float32)

    def __iter__(self) -> Iterator["_Buffer"]:
        while True:
            pieces, length = [self.held], len(self.held)
            while length <= self._max_samples and (block := next(self._blocks, None)) is not None:
                pieces.append(block)
                length += len(block)
            self.held = np.concatenate(pieces)
            if not length:
                return
            yield self

    def take(self, length: int) -> np.ndarray:
        """Removes the first samples, and returns them."""
        taken, self.held = self.held[:length].copy(), self.held[length:].copy()
        return taken


def _quiet_end(held: np.ndarray, max_samples: int, sampling_rate: int) -> int:
    if len(held) <= max_samples:
        return len(held)
    return max(1, quietest_moment(held, max_samples // 2, max_samples, sampling_rate))


def _next_cut(buffer: _Buffer, max_samples: int, sampling_rate: int, rise_db: float) -> tuple[int, str]:
    """Samples until the next cut, and why they are not to be heard; empty where they are."""
    is_last = len(buffer.held) <= max_samples
    held = buffer.held[:max_samples]
    activity = detect_voice(held, sampling_rate, rise_db)
    hop, margin = int(HOP_SECONDS * sampling_rate), int(MARGIN_SECONDS * sampling_rate)
    long_pause = int(LONG_PAUSE_SECONDS * sampling_rate)
    spoken = np.flatnonzero(activity.active) * hop
    if not len(spoken):
        # Speech that begins at the very end is seen with what follows it.
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
    return _quiet_end(buffer.held, max_samples, sampling_rate), ""


__all__ = ["LONG_PAUSE_SECONDS", "Window", "cut_into_windows"]

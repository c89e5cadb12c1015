"""Long recordings in windows: where to cut so that no word is cut in two."""

import numpy as np

#: Length of the quiet moment that a long recording is cut at.
QUIET_SECONDS = 0.2


def quietest_moment(waveform: np.ndarray, first: int, last: int, sampling_rate: int) -> int:
    """
    The sample of a waveform `(samples,)` in the middle of its quietest `QUIET_SECONDS`, between `first` and `last`.

    What lies outside counts as silence, so that of equally loud moments it is the first.
    """
    span = max(1, int(QUIET_SECONDS * sampling_rate))
    before = (span - 1) // 2
    power = np.square(waveform[first:last], dtype=np.float64)
    total = np.concatenate([[0.0], np.cumsum(power)])
    middles = np.arange(len(power))
    ends = np.minimum(middles + before + 1, len(power))
    starts = np.maximum(middles - (span - 1 - before), 0)
    return first + int((total[ends] - total[starts]).argmin())


def cut_at_quiet(waveform: np.ndarray, max_samples: int, sampling_rate: int) -> list[np.ndarray]:
    """
    Cuts a waveform `(samples,)` into pieces of at most `max_samples`, each ending at the quietest moment of its second
    half. Nothing is lost: the pieces one after the other are the waveform.
    """
    pieces = []
    while len(waveform) > max_samples:
        end = quietest_moment(waveform, max_samples // 2, max_samples, sampling_rate)
        pieces.append(waveform[:end])
        waveform = waveform[end:]
    return [*pieces, waveform]


__all__ = ["cut_at_quiet", "quietest_moment"]

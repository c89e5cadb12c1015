"""Long waveforms cut where it is quiet."""

import numpy as np

#: Length of the quiet moment that a long recording is cut at.
QUIET_SECONDS = 0.2


def quietest_moment(waveform: np.ndarray, first: int, last: int, sampling_rate: int) -> int:
    """
    Return the sample in the middle of the quietest `QUIET_SECONDS` of a waveform between `first` and `last`.

    Samples outside count as silence; of equally quiet moments it is the first.
    """
    span = max(1, int(QUIET_SECONDS * sampling_rate))
    before = (span - 1) // 2
    total = np.concatenate([[0.0], np.cumsum(np.square(waveform[first:last], dtype=np.float64))])
    middles = np.arange(len(total) - 1)
    ends = np.minimum(middles + before + 1, len(middles))
    starts = np.maximum(middles - (span - 1 - before), 0)
    return first + int((total[ends] - total[starts]).argmin())


def cut_at_quiet(waveform: np.ndarray, max_samples: int, sampling_rate: int) -> list[np.ndarray]:
    """Cut a waveform into pieces of at most `max_samples`, each at the quietest moment of its second half."""
    pieces = []
    while len(waveform) > max_samples:
        end = quietest_moment(waveform, max_samples // 2, max_samples, sampling_rate)
        pieces.append(waveform[:end])
        waveform = waveform[end:]
    return [*pieces, waveform]

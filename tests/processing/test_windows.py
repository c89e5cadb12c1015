"""Cutting at the quietest moment: nothing is lost, and the moment is the one a plain sum finds."""

import numpy as np
import pytest
from audiollm.processing.cutting import QUIET_SECONDS, cut_at_quiet, quietest_moment

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

"""Recordings of any length made of the embedded prompts, for benchmarks of what long recordings cost."""

from itertools import cycle

import numpy as np
from audiollm.corpora.prompts import load_studio_prompts

#: Pauses as between sentences that are read aloud; long ones as between paragraphs, after every so many prompts.
PAUSE_S, LONG_PAUSE_S, PROMPTS_PER_LONG_PAUSE = 0.5, 4.0, 12
#: A 16-bit recorder's, as a share of full scale.
PAUSE_NOISE = 1e-5
#: Splits in the order in which they are joined; together 24 minutes of speech, which longer recordings repeat.
SPLITS = ("train", "validation", "test")


def joined_speech(seconds: float, processor, pauses: bool = False) -> np.ndarray:
    """
    Studio prompts one after the other at the processor's rate, cut to exactly `seconds`: float32 `(samples,)`.

    Args:
        processor: decodes and resamples.
        pauses: puts near silence between them, as in somebody's reading.
    """
    rate = processor.sampling_rate
    num_samples = int(seconds * rate)
    rows = [row for split in SPLITS for row in load_studio_prompts(split)]
    waveform, end = np.zeros(num_samples, dtype=np.float32), 0
    if pauses:
        waveform += PAUSE_NOISE * np.random.default_rng(0).standard_normal(num_samples, dtype=np.float32)
    decoded: dict[str, np.ndarray] = {}
    for index, row in enumerate(cycle(rows)):
        if row["id"] not in decoded:
            decoded[row["id"]] = processor.load_audio(row["audio"])
        part = decoded[row["id"]][: num_samples - end]
        waveform[end : end + len(part)] = part
        end += len(part)
        if pauses:
            end += int(rate * (PAUSE_S if (index + 1) % PROMPTS_PER_LONG_PAUSE else LONG_PAUSE_S))
        if end >= num_samples:
            return waveform
    raise AssertionError("unreachable: the prompts are repeated until the recording is full")

"""Parts that the benchmarks share: options, result files, processes of their own, and recordings of any length."""

import argparse
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from audiollm.command_line.files import write_json
from audiollm.corpora.prompts import load_studio_prompts
from audiollm.publishing.record import library_versions, machine_facts

RESULTS = Path(__file__).parent / "results"
#: Pauses as between sentences that are read aloud; long ones as between paragraphs, after every so many prompts.
PAUSE_S, LONG_PAUSE_S, PROMPTS_PER_LONG_PAUSE = 0.5, 4.0, 12
#: A 16-bit recorder's, as a share of full scale.
PAUSE_NOISE = 1e-5
#: Splits in the order in which they are joined; together 24 minutes of speech, which longer recordings repeat.
SPLITS = ("train", "validation", "test")


class Clip(NamedTuple):
    """A recording, as a path or as a waveform `(samples,)` at 16 kHz, and its transcript."""

    audio: Any
    text: str


def parser_of(name: str, description: str | None, model: bool = True) -> argparse.ArgumentParser:
    """Return the parser of a benchmark, whose result file is called by its name; with `model` it has a --model."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS / f"{name}.json", help="default: %(default)s")
    if model:
        parser.add_argument("--model", help="folder or Hub id; by default the adapter that comes with the package")
    return parser


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write a result with the machine and the versions it was measured with."""
    write_json(path, {"machine": machine_facts(), "versions": library_versions(), **result})


def grouped(runs: list[dict[str, Any]], *keys: str) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Return the runs that have the same values of some keys, with these values."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault(tuple(run[key] for key in keys), []).append(run)
    return [(dict(zip(keys, values)), chosen) for values, chosen in groups.items()]


def own_process() -> ProcessPoolExecutor:
    """Return an executor of one new process, so that a side's peak memory is its own."""
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def read_clips(path: Path) -> list[Clip]:
    """Return the recordings of an examples file whose responses are transcripts."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    return [Clip(str(path.parent / row["audio_paths"]), row["response"]) for row in rows]


def joined_speech(seconds: float, processor: Any, pauses: bool = False) -> np.ndarray:
    """
    Return studio prompts one after the other at the processor's rate, cut to exactly `seconds`: float32 `(samples,)`.

    With `pauses` there is near silence between them, as in somebody's reading.
    """
    rate = processor.sampling_rate
    waveform, end = np.zeros(int(seconds * rate), dtype=np.float32), 0
    if pauses:
        waveform += PAUSE_NOISE * np.random.default_rng(0).standard_normal(len(waveform), dtype=np.float32)
    rows = [row for split in SPLITS for row in load_studio_prompts(split)]
    decoded: dict[str, np.ndarray] = {}
    for index, row in enumerate(cycle(rows)):
        if row["id"] not in decoded:
            decoded[row["id"]] = processor.load_audio(row["audio"])
        part = decoded[row["id"]][: len(waveform) - end]
        waveform[end : end + len(part)] = part
        end += len(part)
        if pauses:
            end += int(rate * (PAUSE_S if (index + 1) % PROMPTS_PER_LONG_PAUSE else LONG_PAUSE_S))
        if end >= len(waveform):
            break
    return waveform

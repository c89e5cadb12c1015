"""A handful of noise recordings and examples over them: enough to train a tiny model on, meaning nothing."""

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from audiollm.corpora.examples import ExamplesError

SAMPLING_RATE_HZ = 16_000
SHORTEST_S, STEP_S = 0.3, 0.07
NUM_RECORDINGS = 10


def write_recordings(folder: Path, count: int = NUM_RECORDINGS) -> list[str]:
    """Writes `0.wav`, `1.wav`, … each a little longer than the one before; returns the names."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    names = []
    for index in range(count):
        samples = int((SHORTEST_S + STEP_S * index) * SAMPLING_RATE_HZ)
        names.append(f"{index}.wav")
        soundfile.write(folder / names[-1], 0.1 * generator.standard_normal(samples), SAMPLING_RATE_HZ)
    return names


def example_rows(names: list[str]) -> list[dict[str, Any]]:
    """One transcription row per recording, one row with two recordings, and one without any."""
    rows: list[dict[str, Any]] = [
        {"text": "Say: <audio>", "audio_paths": name, "response": "one two three four"[: 4 + 4 * (index % 4)]}
        for index, name in enumerate(names)
    ]
    rows.append({"text": "<audio> or <audio>?", "audio_paths": names[:2], "response": "the first"})
    rows.append({"text": "What is 2 + 2?", "response": "four"})
    return rows


def write_rows(path: Path, rows: Any) -> str:
    """Writes a JSON file; returns its path."""
    path.write_text(json.dumps(rows), encoding="utf-8")
    return str(path)


def write_chapter(split: Path, speaker: int, said: Iterable[tuple[np.ndarray, str]]) -> None:
    """Write a chapter as a split of LibriSpeech has it: waveforms at 16 kHz and their transcripts, in capitals."""
    chapter = split / str(speaker) / "121123"
    chapter.mkdir(parents=True)
    lines = []
    for number, (waveform, text) in enumerate(said):
        name = f"{speaker}-121123-{number:04d}"
        soundfile.write(chapter / f"{name}.flac", waveform, SAMPLING_RATE_HZ)
        lines.append(f"{name} {text.upper().strip('.')}\n")
    (chapter / f"{speaker}-121123.trans.txt").write_text("".join(lines), encoding="utf-8")


def assert_rows_refused(read: Callable[[list], Any], rows: list[dict], where: set[str], reason: str) -> None:
    """Exactly the rows called `where` are refused, each for `reason` among others."""
    with pytest.raises(ExamplesError) as error:
        read(rows)
    assert {at for at, _ in error.value.problems} == where
    assert all(any(reason in why for at, why in error.value.problems if at == row) for row in where)


def contents(folder: Path) -> dict[str, str]:
    """Returns the checksum of every file below a folder, by its path; locks hold nothing."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith("lock")
    }

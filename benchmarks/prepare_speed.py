"""
Preparing a corpus beside `datasets.map` doing the same naively: hours of audio a minute, and peak memory.

    .venv/bin/python benchmarks/prepare_speed.py

A LibriSpeech-like folder is made of the bundled speech (clips of 5 to 15 s, FLAC, sidecar transcripts), 1,000 clips and 10,000 of
them; each side runs in a process of its own, one after the other, and its memory is that of the process and its children. The
naive side reads the same files with `Dataset.from_generator` and `map(num_proc=...)`: decodes, resamples, writes FLAC, and
saves Parquet with `to_parquet`.
"""

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import soundfile
from audiollm.corpora.prompts import load_studio_prompts
from audiollm.processing import load_waveform
from common import parser_of, write_result
from tqdm.auto import tqdm

CLIPS = (1_000, 10_000)
CLIP_SECONDS = (5.0, 15.0)
#: Rate of the made recordings: one that has to be resampled, as most of users' own have.
SOURCE_RATE_HZ = 44_100
FILES_PER_FOLDER = 500
POLL_SECONDS = 0.05
MIB = 1 << 20
SECONDS_PER_HOUR, SECONDS_PER_MINUTE = 3600, 60


def make_corpus(folder: Path, clips: int) -> float:
    """Write clips cut at random from the bundled speech, each with its transcript; return hours of audio."""
    rows = load_studio_prompts()
    speech = np.concatenate([load_waveform(audio, target_rate=SOURCE_RATE_HZ) for audio in rows["audio"]])
    generator = np.random.default_rng(0)
    seconds = 0.0
    for index in tqdm(range(clips), desc="Making the corpus", unit="clip"):
        length = int(generator.uniform(*CLIP_SECONDS) * SOURCE_RATE_HZ)
        start = int(generator.integers(len(speech) - length))
        path = folder / f"{index // FILES_PER_FOLDER:03d}" / f"{index:06d}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, speech[start : start + length], SOURCE_RATE_HZ)
        path.with_suffix(".txt").write_text(f"Clip number {index} of this corpus.\n")
        seconds += length / SOURCE_RATE_HZ
    return seconds / SECONDS_PER_HOUR


OURS = """
import sys
from audiollm.corpora.prepare import main
main(["folder", sys.argv[1], "--output", sys.argv[2], "--workers", sys.argv[3]])
"""

NAIVE = """
import io, sys
from pathlib import Path
import datasets, soundfile
from audiollm.processing import load_waveform
source, output, workers = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
output.mkdir(parents=True)
def rows():
    for path in sorted(source.rglob("*.flac")):
        yield {"audio": str(path), "response": path.with_suffix(".txt").read_text().strip()}
def convert(row):
    waveform = load_waveform(row["audio"])
    path = output / (Path(row["audio"]).stem + ".flac")
    soundfile.write(path, waveform, 16_000)
    audio = {"bytes": path.read_bytes(), "path": path.name}
    return {"text": "Transcribe the audio: <audio>", "audio": audio, "audio_paths": path.name, "duration": len(waveform) / 16_000}
table = datasets.Dataset.from_generator(rows, cache_dir=str(output / "cache"))
table = table.map(convert, num_proc=workers)
table.remove_columns(["audio_paths", "duration"]).to_parquet(output / "train.parquet")
table.remove_columns("audio").to_json(output / "instruction_examples.json")
"""


def measure(script: str, *arguments: str) -> dict[str, float]:
    """Return seconds that a script takes, and the most memory that it and its children have had at once, in MiB."""
    start = time.perf_counter()
    process = psutil.Popen([sys.executable, "-c", script, *arguments])
    peak = 0.0
    while process.poll() is None:
        total = 0
        for each in (process, *process.children(recursive=True)):
            try:
                total += each.memory_full_info().pss
            except psutil.Error:  # it has ended
                continue
        peak = max(peak, total / MIB)
        time.sleep(POLL_SECONDS)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise RuntimeError(f"A side of the comparison ended with status {process.returncode}.")
    return {"seconds": seconds, "peak_mib": peak}


def main() -> None:
    """Entry of the script."""
    parser = parser_of("prepare_speed", __doc__, model=False)
    parser.add_argument("--clips", type=int, nargs="+", default=CLIPS, help="default: 1000 10000")
    parser.add_argument("--workers", type=int, default=2, help="default: %(default)s")
    options = parser.parse_args()
    runs: list[dict[str, Any]] = []
    for clips in options.clips:
        with tempfile.TemporaryDirectory() as scratch:
            corpus, output = Path(scratch) / "corpus", Path(scratch) / "output"
            hours = make_corpus(corpus, clips)
            for name, script in (("audiollm prepare", OURS), ("datasets.map", NAIVE)):
                found = measure(script, str(corpus), str(output), str(options.workers))
                shutil.rmtree(output)
                runs.append({"side": name, "clips": clips, "hours": hours, **found})
                runs[-1]["hours_per_minute"] = hours / found["seconds"] * SECONDS_PER_MINUTE
                print(json.dumps(runs[-1]))
    write_result(options.output, {"workers": options.workers, "runs": runs})


if __name__ == "__main__":
    main()

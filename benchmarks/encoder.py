"""
Encoding real clips: AudioLLM's audio tower and its feature cache beside Whisper's stock encoder and Ultravox's way of it.

    python benchmarks/encoder.py     # writes benchmarks/results/encoder.json and prints a table

Batches are those of `training_step.py`: 8 short studio prompts (1.4 s), 8 clips of 10 s, 4 full windows of 30 s. Log-mel
features are made before the clock starts, and timed by themselves. "whisper" is transformers' encoder, which takes 30 s and
nothing else; "ultravox" runs it over the batch's longest clip, "ultravox of 30 s" over 30 s, with padding masked
(`recipe_peers.py`). "feature cache, filling" is what `audiollm train` does at first, recording by recording, log-mel features
and writing included; "feature cache, reading" is what every later epoch does instead, up to a padded batch. All sides take turns in one process.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor
from audiollm.checkpoints import load_audio_base
from audiollm.training.dataset import load_encoded_audio
from audiollm.training.feature_cache import FeatureCache
from recipe_peers import features_of_30_s, features_to_the_longest, masked_whisper
from training_peers import AUDIO_BASE, SAMPLE_RATE_HZ, SHAPES, TEXT_BASE, base_configs, make_clips
from transformers.models.whisper.modeling_whisper import WhisperEncoder

RESULTS = Path(__file__).parent / "results" / "encoder.json"
PRECISIONS = ("float32", "bfloat16")
OURS, FILLING, READING, LOG_MEL = "audiollm", "feature cache, filling", "feature cache, reading", "log-mel features"
SECONDS_PER_HOUR, BYTES_PER_MB = 3600, 1_000_000


class Encoders:
    """
    Every side at one precision.

    Args:
        precision: name of a torch dtype.
        folder: for feature caches; each filling begins with an empty one.
    """

    def __init__(self, precision: str, folder: Path):
        dtype = getattr(torch, precision)
        self.processor = AudioLlmProcessor.from_audio_text_pretrained(AUDIO_BASE, TEXT_BASE)
        self.model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(AUDIO_BASE, TEXT_BASE, dtype=dtype)
        self.model.eval()
        self.masked = masked_whisper(dtype)
        whisper, _ = base_configs()
        self.whisper = WhisperEncoder(whisper)
        self.whisper.load_state_dict(load_audio_base(AUDIO_BASE, whisper))
        self.whisper.to(dtype).eval()
        self.dtype, self.folder, self.fillings = dtype, folder, 0

    def sides(self, shape: str) -> dict[str, Callable[[], Any]]:
        """What each side does with a batch, ready to be timed."""
        clips = make_clips(SHAPES[shape])
        waveforms = [clip.waveform for clip in clips]
        ours = self.processor.batch_features(waveforms)
        windows, lengths = features_of_30_s(clips)
        longest, longest_lengths = features_to_the_longest(clips)
        windows, longest = windows.to(self.dtype), longest.to(self.dtype)
        warm = self.new_cache()
        keys = warm.add(waveforms, progress=False)
        return {
            OURS: lambda: self.model.model.encode_audio(ours["input_features"], ours["input_features_mask"]),
            "whisper": lambda: self.whisper(windows),
            "ultravox": lambda: self.masked(longest, longest_lengths),
            "ultravox of 30 s": lambda: self.masked(windows, lengths),
            FILLING: lambda: self.new_cache().add(waveforms, progress=False),
            READING: lambda: load_encoded_audio(warm, keys),
            LOG_MEL: lambda: self.processor.batch_features(waveforms),
        }

    def new_cache(self) -> FeatureCache:
        """An empty one."""
        self.fillings += 1
        return FeatureCache(self.model, self.processor, self.folder / str(self.fillings))

    def cache_mb_per_hour(self) -> float:
        """What an hour of the training prompts takes on disk, in MB, the files' own headers included."""
        cache = self.new_cache()
        waveforms = [clip.waveform for shape in SHAPES.values() for clip in make_clips(shape)]
        keys = cache.add(waveforms, progress=False)
        seconds = sum(map(len, waveforms)) / SAMPLE_RATE_HZ
        return cache.size_bytes(keys) / BYTES_PER_MB / seconds * SECONDS_PER_HOUR

    def windows_encoded_with_a_warm_cache(self) -> int:
        """How many windows the encoder runs over where all recordings are in the cache already."""
        cache, encoded = self.new_cache(), []
        waveforms = [clip.waveform for clip in make_clips(SHAPES["short"])]
        cache.add(waveforms, progress=False)
        watch = self.model.model.audio_tower.register_forward_pre_hook(lambda *_: encoded.append(1))
        keys = cache.add(waveforms, progress=False)
        load_encoded_audio(cache, keys)
        watch.remove()
        return len(encoded)


@torch.inference_mode()
def measure(encoders: Encoders, shape: str, rounds: int) -> list[dict[str, Any]]:
    """Rows of the table for a batch: medians over rounds in which all sides take turns, after one to warm up."""
    sides = encoders.sides(shape)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - start)
    clips = SHAPES[shape].num_clips
    rows = []
    for name, taken in seconds.items():
        median = statistics.median(taken) / clips
        rows.append({"shape": shape, "side": name, "seconds_per_clip": median})
        rows[-1]["range"] = [min(taken) / clips, max(taken) / clips]
    return rows


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All measurements."""
    rows: list[dict[str, Any]] = []
    per_hour = {}
    encoded = []
    for precision in options.precisions:
        with tempfile.TemporaryDirectory() as folder:
            encoders = Encoders(precision, Path(folder))
            for shape in options.shapes:
                rows += [{"precision": precision, **row} for row in measure(encoders, shape, options.rounds)]
                print(f"{precision} {shape}: done", flush=True)
            per_hour[precision] = encoders.cache_mb_per_hour()
            encoded.append(encoders.windows_encoded_with_a_warm_cache())
    return {
        "what": "seconds to encode a clip, medians over rounds in which all sides take turns",
        "rounds": options.rounds,
        "summary": rows,
        "cache_mb_per_hour": per_hour,
        "windows_encoded_with_a_warm_cache": max(encoded),
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "load_at_end": os.getloadavg(),
        },
        "torch": torch.__version__,
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    """One line per precision, batch and side, with how many times as soon AudioLLM is done."""
    print(f"\n{'precision':10}{'batch':7}{'side':24}{'ms a clip':>10}{'x audiollm':>12}")
    ours = {(row["precision"], row["shape"]): row["seconds_per_clip"] for row in rows if row["side"] == OURS}
    for row in rows:
        ratio = row["seconds_per_clip"] / ours[row["precision"], row["shape"]]
        milliseconds = 1000 * row["seconds_per_clip"]
        print(f"{row['precision']:10}{row['shape']:7}{row['side']:24}{milliseconds:10.2f}{ratio:12.2f}")


def read_options(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=SHAPES, help="batches to compare on")
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--rounds", type=int, default=3, help="of which the median; default: %(default)s")
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON to write; default: %(default)s")
    options = parser.parse_args(argv)
    if options.rounds < 1:
        parser.error(f"--rounds is {options.rounds}; expected at least 1.")
    return options


def main() -> None:
    """Measures, writes and prints."""
    options = read_options()
    results = run(options)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print_table(results["summary"])


if __name__ == "__main__":
    main()

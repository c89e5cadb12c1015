"""
Count how often `audiollm transcribe` writes text for clips without speech: silence, noise and music, beside real prompts.

    python benchmarks/no_speech.py                              # the adapter that comes with the package
    python benchmarks/no_speech.py --model runs/read --recordings my_noises/ -- --min_logprob -1

Everything behind `--` goes to `audiollm transcribe`, whose defaults are measured otherwise.
"""

import json
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from audiollm.command_line.files import is_audio
from audiollm.corpora.prompts import load_studio_prompts
from audiollm.inference.transcribe import main as transcribe
from common import parser_of, write_result

RATE_HZ = 16_000
LEVELS_DBFS = (-20.0, -40.0)
LENGTHS_S = (1.0, 2.5, 5.0, 12.0)
#: Share of clips without speech that should get no text.
TARGET = 0.95
CHORD_HZ = (220.0, 277.2, 329.6, 440.0)
#: Notes of the melody, each of which begins loud and fades, as a plucked string does.
NOTES_HZ, NOTES_PER_SECOND, FADING_PER_SECOND = (262.0, 330.0, 392.0, 523.0, 392.0, 330.0), 3, 6.0


def sounds(seconds: float, level_dbfs: float, seed: int) -> dict[tuple[str, str], np.ndarray]:
    """Return waveforms `(samples,)` by (group, kind), at a level (RMS); silence is digital, or nearly."""
    generator = np.random.default_rng(seed)
    samples = int(seconds * RATE_HZ)
    times = np.arange(samples) / RATE_HZ
    frequencies = np.maximum(np.fft.rfftfreq(samples), 1 / samples)
    spectrum = np.fft.rfft(generator.standard_normal(samples))
    note = (times * NOTES_PER_SECOND).astype(int)
    fading = np.exp(-FADING_PER_SECOND * (times - note / NOTES_PER_SECOND))
    shift = 2 ** generator.uniform(-1, 1)
    bursts = np.repeat(generator.random(samples // 800 + 1) < 0.15, 800)[:samples]
    kinds = {
        ("noise", "white"): generator.standard_normal(samples),
        ("noise", "pink"): np.fft.irfft(spectrum / np.sqrt(frequencies), samples),
        ("noise", "hum"): sum(np.sin(2 * np.pi * 50 * harmonic * times) / harmonic for harmonic in (1, 3, 5)),
        ("noise", "knocks"): generator.standard_normal(samples) * (bursts + 0.01),
        ("music", "tone"): np.sin(2 * np.pi * 440 * shift * times),
        ("music", "chord"): sum(np.sin(2 * np.pi * hertz * shift * times) for hertz in CHORD_HZ),
        ("music", "melody"): fading * np.sin(2 * np.pi * shift * np.asarray(NOTES_HZ)[note % len(NOTES_HZ)] * times),
    }
    scale = 10 ** (level_dbfs / 20)
    made = {name: np.clip(scale * sound / np.std(sound), -1, 1) for name, sound in kinds.items()}
    quiet = 0.0 if level_dbfs == LEVELS_DBFS[0] else 1e-5
    made["silence", "silence"] = quiet * generator.standard_normal(samples)
    return made


def write_clips(folder: Path, recordings: Path | None, prompts: int) -> dict[str, list[Path]]:
    """Write all clips to one folder; return those of each group."""
    groups: dict[str, list[Path]] = {"silence": [], "noise": [], "music": [], "speech": []}
    for level, (seed, seconds) in product(LEVELS_DBFS, enumerate(LENGTHS_S)):
        for (group, kind), waveform in sounds(seconds, level, seed).items():
            groups[group].append(folder / f"{group}-{kind}-{seconds:g}s{level:g}dB.wav")
            soundfile.write(groups[group][-1], waveform.astype(np.float32), RATE_HZ, subtype="FLOAT")
    for index, row in enumerate(load_studio_prompts("test").select(range(prompts))):
        groups["speech"].append(folder / f"speech-{index}.ogg")
        groups["speech"][-1].write_bytes(row["audio"]["bytes"])
    if recordings is not None:
        groups["recordings"] = [path for path in sorted(recordings.rglob("*")) if is_audio(path)]
    return groups


def main() -> None:
    """Measure, print and write the result."""
    parser = parser_of("no_speech", __doc__)
    parser.add_argument("--recordings", type=Path, help="folder of further recordings without speech")
    parser.add_argument("--prompts", type=int, default=20, help="real prompts, for comparison; default: %(default)s")
    parser.add_argument("options", nargs="*", help="options of `audiollm transcribe`, behind --")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made, tempfile.TemporaryDirectory() as written:
        clips = write_clips(Path(made), options.recordings, options.prompts)
        model = ["--model", options.model] if options.model else []
        paths = [str(path) for group in clips.values() for path in group]
        transcribe([*model, *paths, "--output_dir", written, "--output_format", "json", *options.options])
        texts = {path.stem: json.loads(path.read_text())["text"].strip() for path in Path(written).glob("*.json")}
    groups: dict[str, dict[str, Any]] = {}
    for name, group in clips.items():
        heard = {path.stem: texts[path.stem] for path in group if texts[path.stem]}
        examples = sorted(f"{stem}: {text}" for stem, text in heard.items())[:12]
        groups[name] = {"clips": len(group), "no_text": len(group) - len(heard), "written": examples}
    without = [name for name in groups if name != "speech"]
    share = sum(groups[name]["no_text"] for name in without) / sum(len(clips[name]) for name in without)
    report = {
        "what": "share of clips without speech for which `audiollm transcribe` writes no text",
        "command": sys.argv[1:],
        "no_text": round(share, 4),
        "target": TARGET,
        "groups": groups,
    }
    write_result(options.output, report)
    print(json.dumps(report, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()

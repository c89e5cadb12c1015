"""
An hour of speech through `audiollm transcribe`: memory that does not grow with the recording, and speed.

    python benchmarks/hour_long.py --model runs/mine     # writes benchmarks/results/hour_long.json

Recordings of several lengths are studio prompts with pauses, as WAV files; the command runs as a user runs it, in a
process of its own, whose peak memory is the system's own figure for it.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import soundfile
from audiollm.inference.loading import find_checkpoint, load_processor
from audiollm.publishing.record import MEMORY_UNIT_BYTES, MIB
from common import joined_speech, parser_of, write_result

LENGTHS_MIN = (6.0, 20.0, 60.0)
#: Memory of the longest run over that of the shortest: noise of the allocator, and the text itself.
MEMORY_TOLERANCE = 1.1


def transcribe(recording: Path, output: Path, options: list[str]) -> dict[str, Any]:
    """
    Return seconds and peak memory of `audiollm transcribe` on a recording, and what it wrote.

    Raises:
        RuntimeError: the command failed.
    """
    command = [sys.executable, "-m", "audiollm.command_line.cli", "transcribe", str(recording)]
    start = time.monotonic()
    process = subprocess.Popen([*command, "--output_dir", str(output), "--output_format", "json", *options])
    _, status, usage = os.wait4(process.pid, 0)
    seconds, process.returncode = time.monotonic() - start, os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"audiollm transcribe ended with {process.returncode}.")
    transcript = json.loads((output / f"{recording.stem}.json").read_text(encoding="utf-8"))
    audio_s = soundfile.info(recording).duration
    return {
        "audio_s": audio_s,
        "run_s": round(seconds, 1),
        "times_real_time": round(audio_s / seconds, 2),
        "peak_memory_mib": round(usage.ru_maxrss * MEMORY_UNIT_BYTES / MIB, 1),
        "windows": len(transcript["windows"]),
        "skipped_s": round(sum(each["end_s"] - each["start_s"] for each in transcript["skipped"]), 1),
        "covered_s": transcript["seconds"],
        "characters": len(transcript["text"]),
    }


def main() -> None:
    """Run all, write what was seen, and end with 1 where memory grows."""
    parser = parser_of("hour_long", __doc__)
    parser.add_argument("--minutes", nargs="+", type=float, default=list(LENGTHS_MIN), help="recordings' lengths")
    parser.add_argument("--dtype", default="float32", help="precision of the bases; default: %(default)s")
    options = parser.parse_args()
    checkpoint = find_checkpoint(options.model)
    processor, further = load_processor(checkpoint), ["--model", checkpoint, "--dtype", options.dtype]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for minutes in sorted(options.minutes):
            recording = Path(folder, f"minutes_{minutes:g}.wav")
            waveform = joined_speech(minutes * 60, processor, pauses=True)
            soundfile.write(recording, waveform, processor.sampling_rate, "PCM_16")
            rows.append({"minutes": minutes, **transcribe(recording, Path(folder, "transcripts"), further)})
            print(json.dumps(rows[-1]), flush=True)
            recording.unlink()
    growth = rows[-1]["peak_memory_mib"] / rows[0]["peak_memory_mib"]
    report = {
        "what": "audiollm transcribe on recordings of several lengths, each in a process of its own",
        "recordings": rows,
        "longest_over_shortest_peak_memory": round(growth, 3),
        "memory_does_not_grow": growth <= MEMORY_TOLERANCE,
    }
    write_result(options.output, report)
    print(f"peak memory of the longest over the shortest: {growth:.3f}")
    sys.exit(not report["memory_does_not_grow"])


if __name__ == "__main__":
    main()

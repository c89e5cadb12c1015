"""
An hour of speech through `audiollm transcribe`: memory that does not grow with the recording, speed, partial results on
disk, and a run that is killed half-way and goes on to the same bytes.

    python benchmarks/hour_long.py --model runs/demo/adapter     # writes benchmarks/results/hour_long.json

Recordings of several lengths are studio prompts with pauses, as WAV files; the command runs as a user runs it, in a
process of its own, whose peak memory is the system's own figure for it. The run that is killed (SIGKILL) is that of
`--kill_minutes`; all its output files are compared with those of the run that was left alone.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import soundfile
import torch
from audiollm.inference.loading import find_checkpoint, load_processor
from audiollm.inference.transcribe import PARTIAL_ENDING
from joined_speech import joined_speech

RESULTS = Path(__file__).parent / "results" / "hour_long.json"
LENGTHS_MIN = (6.0, 20.0, 60.0)
KILL_MIN = 6.0
#: How far the killed run has come, as a share of the recording.
KILL_AT = 0.5
POLL_S = 0.05
BYTES_PER_MIB, KIB_PER_MIB = 1 << 20, 1 << 10
#: What the longest run may take above the shortest: noise of the allocator, and the text itself.
MEMORY_TOLERANCE = 1.1


@dataclass
class Run:
    """
    One run of the command.

    Attributes:
        seconds: how long it took, loading included.
        peak_memory_mib: of its process.
        returncode: as `subprocess` gives it.
        partial_windows: windows in the partial transcript whenever it was longer than before.
        stderr: what it said, where it failed.
    """

    seconds: float
    peak_memory_mib: float
    returncode: int
    partial_windows: list[int] = field(default_factory=list)
    stderr: str = ""


def write_recording(path: Path, minutes: float, processor) -> Path:
    """Writes studio prompts with pauses as a 16-bit WAV file of that length."""
    soundfile.write(path, joined_speech(minutes * 60, processor, pauses=True), processor.sampling_rate, "PCM_16")
    return path


def transcribe(recording: Path, output: Path, options: list[str], kill_at: float | None = None) -> Run:
    """
    Runs `audiollm transcribe` on a recording, and kills it when it has heard so much.

    Args:
        output: folder for transcripts, in every format.
        options: further ones of the command.
        kill_at: share of the recording from which on it is killed; None lets it end.
    """
    command = [sys.executable, "-m", "audiollm.cli", "transcribe", str(recording), "--output_dir", str(output)]
    partial = output / f"{recording.stem}.{PARTIAL_ENDING}"
    kill_after = None if kill_at is None else kill_at * soundfile.info(recording).frames
    counts: list[int] = []
    with tempfile.TemporaryFile() as said:
        start = time.monotonic()
        process = subprocess.Popen([*command, "--output_format", "all", *options], stdout=said, stderr=said)
        while (ended := os.wait4(process.pid, os.WNOHANG))[0] == 0:
            entries = partial_entries(partial)
            if len(entries) > (counts[-1] if counts else 0):
                counts.append(len(entries))
            if kill_after is not None and entries and entries[-1]["end"] >= kill_after:
                process.send_signal(signal.SIGKILL)
                kill_after = None
            time.sleep(POLL_S)
        seconds = time.monotonic() - start
        said.seek(0)
        stderr = said.read().decode(errors="replace")
    _, status, usage = ended
    process.returncode = os.waitstatus_to_exitcode(status)  # it has been waited for
    unit = BYTES_PER_MIB if sys.platform == "darwin" else KIB_PER_MIB  # Linux reports KiB, macOS bytes
    return Run(seconds, usage.ru_maxrss / unit, process.returncode, counts, stderr[-2000:])


def partial_entries(path: Path) -> list[dict[str, Any]]:
    """Whole lines of a partial transcript after its header; none where there is no file."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)[1:]
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def must_end_well(run: Run) -> Run:
    """Raises RuntimeError, with what it said, where a run failed."""
    if run.returncode:
        raise RuntimeError(f"audiollm transcribe ended with {run.returncode}: {run.stderr}")
    return run


def whole_run(recording: Path, output: Path, options: list[str]) -> dict[str, Any]:
    """A run that is left alone, as a row of the report."""
    run = must_end_well(transcribe(recording, output, options))
    transcript = json.loads((output / f"{recording.stem}.json").read_text(encoding="utf-8"))
    audio_s = soundfile.info(recording).duration
    return {
        "audio_s": audio_s,
        "run_s": round(run.seconds, 1),
        "times_real_time": round(audio_s / run.seconds, 2),
        "peak_memory_mib": round(run.peak_memory_mib, 1),
        "windows": len(transcript["windows"]),
        "skipped_s": round(sum(each["end_s"] - each["start_s"] for each in transcript["skipped"]), 1),
        "covered_s": transcript["seconds"],
        "characters": len(transcript["text"]),
        "times_partial_results_grew_on_disk": len(run.partial_windows),
        "files": sorted(contents(output)),
    }


def killed_run(recording: Path, whole: Path, output: Path, options: list[str]) -> dict[str, Any]:
    """
    A run that is killed on its way and given again, beside the output of one that was left alone.

    Raises:
        RuntimeError: it was over before the kill, or the second run failed.
    """
    killed = transcribe(recording, output, options, KILL_AT)
    if killed.returncode != -signal.SIGKILL:
        raise RuntimeError(f"The run to be killed ended with {killed.returncode} before: {killed.stderr}")
    left = sorted(contents(output))
    kept = len(partial_entries(output / f"{recording.stem}.{PARTIAL_ENDING}"))
    second = must_end_well(transcribe(recording, output, options))
    return {
        "audio_s": soundfile.info(recording).duration,
        "killed_after_s": round(killed.seconds, 1),
        "files_after_the_kill": left,
        "windows_kept": kept,
        "second_run_s": round(second.seconds, 1),
        "windows_when_first_written_again": second.partial_windows[0] if second.partial_windows else kept,
        "same_bytes": contents(output) == contents(whole),
        "files": sorted(contents(output)),
    }


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All runs; recordings and transcripts go to `folder`."""
    checkpoint = find_checkpoint(options.model)
    processor = load_processor(checkpoint)
    further = ["--model", checkpoint, "--dtype", options.dtype, *options.transcribe_options]
    lengths = sorted({*options.minutes, options.kill_minutes})
    rows = []
    for minutes in lengths:
        recording = write_recording(folder / f"minutes_{minutes:g}.wav", minutes, processor)
        rows.append({"minutes": minutes, **whole_run(recording, folder / f"whole_{minutes:g}", further)})
        print(json.dumps(rows[-1]), flush=True)
        if minutes == options.kill_minutes:
            whole = folder / f"whole_{minutes:g}"
            killed = {"minutes": minutes, **killed_run(recording, whole, folder / "killed", further)}
            print(json.dumps(killed), flush=True)
        recording.unlink()
    growth = rows[-1]["peak_memory_mib"] / rows[0]["peak_memory_mib"]
    return {
        "what": "audiollm transcribe on recordings of several lengths, each in a process of its own",
        "options": further[2:],
        "recordings": rows,
        "longest_over_shortest_peak_memory": round(growth, 3),
        "memory_does_not_grow": growth <= MEMORY_TOLERANCE,
        "killed": killed,
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "load_at_end": os.getloadavg(),
        },
        "torch": torch.__version__,
    }


def main(argv: list[str] | None = None) -> None:
    """Runs all, writes what was seen, and ends with 1 where memory grows or bytes differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="AudioLLM checkpoint; that of make demo when not given")
    parser.add_argument("--minutes", nargs="+", type=float, default=list(LENGTHS_MIN), help="recordings' lengths")
    parser.add_argument("--kill_minutes", type=float, default=KILL_MIN, help="length of the one whose run is killed")
    parser.add_argument("--dtype", default="float32", help="precision of the bases; default: %(default)s")
    parser.add_argument("--transcribe_options", nargs=argparse.REMAINDER, default=[], help="further ones, put last")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(argv)
    if min(*options.minutes, options.kill_minutes) <= 0:
        parser.error("--minutes and --kill_minutes must be above 0.")
    with tempfile.TemporaryDirectory() as folder:
        report = run(options, Path(folder))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"peak memory of the longest over the shortest: {report['longest_over_shortest_peak_memory']}")
    if not (report["memory_does_not_grow"] and report["killed"]["same_bytes"]):
        sys.exit(1)


if __name__ == "__main__":
    main()

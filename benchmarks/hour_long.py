"""
An hour of speech through `audiollm transcribe`: memory that does not grow with the recording, speed, partial results on
disk, and a run that is killed half-way and goes on to the same bytes.

    python benchmarks/hour_long.py --model runs/mine     # writes benchmarks/results/hour_long.json

Recordings of several lengths are studio prompts with pauses, as WAV files; the command runs as a user runs it, in a
process of its own, whose peak memory is the system's own figure for it. The run that is killed (SIGKILL) is that of
`--kill_minutes`; all its output files are compared with those of the run that was left alone.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile
from audiollm.command_line.files import Journal
from audiollm.inference.loading import find_checkpoint, load_processor
from audiollm.inference.transcribe import PARTIAL_ENDING
from audiollm.publishing.record import MEMORY_UNIT_BYTES, MIB
from common import joined_speech, parser_of, write_result

LENGTHS_MIN = (6.0, 20.0, 60.0)
KILL_MIN = 6.0
#: How far the killed run has come, as a share of the recording.
KILL_AT = 0.5
POLL_S = 0.05
#: Memory of the longest run over that of the shortest: noise of the allocator, and the text itself.
MEMORY_TOLERANCE = 1.1


@dataclass
class Run:
    """
    One run of the command.

    Attributes:
        seconds: how long it took, loading included.
        peak_memory_mib: of its process.
        returncode: as `subprocess` gives it.
        said: the end of what it printed.
        times_grown: how often its partial transcript was longer than before.
    """

    seconds: float
    peak_memory_mib: float
    returncode: int
    said: str
    times_grown: int

    def must_have_ended(self, expected: int = 0) -> "Run":
        """
        Return the run.

        Raises:
            RuntimeError: it ended otherwise.
        """
        if self.returncode != expected:
            raise RuntimeError(f"audiollm transcribe ended with {self.returncode}: {self.said}")
        return self


def transcribe(recording: Path, output: Path, options: list[str], kill_at: float | None = None) -> Run:
    """
    Run `audiollm transcribe` on a recording, and kill it when it has heard so much.

    Args:
        output: folder for transcripts, in every format.
        options: further ones of the command.
        kill_at: share of the recording from which on it is killed; None lets it end.
    """
    command = [
        sys.executable,
        "-m",
        "audiollm.command_line.cli",
        "transcribe",
        str(recording),
        "--output_dir",
        str(output),
    ]
    kill_after = None if kill_at is None else kill_at * soundfile.info(recording).frames
    longest = times_grown = 0
    with tempfile.TemporaryFile() as said:
        start = time.monotonic()
        process = subprocess.Popen([*command, "--output_format", "all", *options], stdout=said, stderr=said)
        while (ended := os.wait4(process.pid, os.WNOHANG))[0] == 0:
            windows = windows_in(partial_of(recording, output))
            if len(windows) > longest:
                longest, times_grown = len(windows), times_grown + 1
            if kill_after is not None and windows and windows[-1]["end"] >= kill_after:
                process.send_signal(signal.SIGKILL)
                kill_after = None
            time.sleep(POLL_S)
        seconds = time.monotonic() - start
        said.seek(0)
        printed = said.read().decode(errors="replace")[-2000:]
    _, status, usage = ended
    process.returncode = os.waitstatus_to_exitcode(status)  # it has been waited for
    return Run(seconds, usage.ru_maxrss * MEMORY_UNIT_BYTES / MIB, process.returncode, printed, times_grown)


def partial_of(recording: Path, output: Path) -> Path:
    """Return where the partial transcript of a recording is."""
    return output / f"{recording.stem}.{PARTIAL_ENDING}"


def windows_in(path: Path) -> list[dict[str, Any]]:
    """Return the windows of a partial transcript, behind its header; none where there is no file."""
    return list(Journal(path).entries())[1:]


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def whole_run(recording: Path, output: Path, options: list[str]) -> dict[str, Any]:
    """Return the row of a run that is left alone."""
    run = transcribe(recording, output, options).must_have_ended()
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
        "times_partial_results_grew_on_disk": run.times_grown,
        "files": sorted(contents(output)),
    }


def killed_run(recording: Path, whole: Path, output: Path, options: list[str]) -> dict[str, Any]:
    """Return the row of a run that is killed on its way and given again, beside the output of one that was left alone."""
    killed = transcribe(recording, output, options, KILL_AT).must_have_ended(-signal.SIGKILL)
    left, kept = sorted(contents(output)), len(windows_in(partial_of(recording, output)))
    second = transcribe(recording, output, options).must_have_ended()
    return {
        "audio_s": soundfile.info(recording).duration,
        "killed_after_s": round(killed.seconds, 1),
        "files_after_the_kill": left,
        "windows_kept": kept,
        "second_run_s": round(second.seconds, 1),
        "same_bytes": contents(output) == contents(whole),
    }


def main() -> None:
    """Run all, write what was seen, and end with 1 where memory grows or bytes differ."""
    parser = parser_of("hour_long", __doc__)
    parser.add_argument("--minutes", nargs="+", type=float, default=list(LENGTHS_MIN), help="recordings' lengths")
    parser.add_argument("--kill_minutes", type=float, default=KILL_MIN, help="length of the one whose run is killed")
    parser.add_argument("--dtype", default="float32", help="precision of the bases; default: %(default)s")
    options = parser.parse_args()
    checkpoint = find_checkpoint(options.model)
    processor, further = load_processor(checkpoint), ["--model", checkpoint, "--dtype", options.dtype]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for minutes in sorted({*options.minutes, options.kill_minutes}):
            recording, whole = Path(folder, f"minutes_{minutes:g}.wav"), Path(folder, f"whole_{minutes:g}")
            waveform = joined_speech(minutes * 60, processor, pauses=True)
            soundfile.write(recording, waveform, processor.sampling_rate, "PCM_16")
            rows.append({"minutes": minutes, **whole_run(recording, whole, further)})
            print(json.dumps(rows[-1]), flush=True)
            if minutes == options.kill_minutes:
                killed = {"minutes": minutes, **killed_run(recording, whole, Path(folder, "killed"), further)}
                print(json.dumps(killed), flush=True)
            recording.unlink()
    growth = rows[-1]["peak_memory_mib"] / rows[0]["peak_memory_mib"]
    report = {
        "what": "audiollm transcribe on recordings of several lengths, each in a process of its own",
        "recordings": rows,
        "longest_over_shortest_peak_memory": round(growth, 3),
        "memory_does_not_grow": growth <= MEMORY_TOLERANCE,
        "killed": killed,
    }
    write_result(options.output, report)
    print(f"peak memory of the longest over the shortest: {growth:.3f}")
    sys.exit(not (report["memory_does_not_grow"] and killed["same_bytes"]))


if __name__ == "__main__":
    main()

"""
All measurements beside peers, one after the other on one machine, and a table of them with their targets.

    python benchmarks/bench.py               # everything; a run that was interrupted goes on where it was
    python benchmarks/bench.py --list        # what there is, and how long each takes
    python benchmarks/bench.py --only encoder growth
    python benchmarks/bench.py --table       # the table and plots alone, from the results that are there

Measures stand in `bench.yaml`. Each runs in a process of its own, whose words go to `build/bench/NAME.log`; one that fails
is named and does not stop the others. The machine should have nothing else to do. Writes `results/bench.md`, its plots, and
`results/bench.json` with every line of the table.
"""

import argparse
import dataclasses
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bench_report import write_report
from bench_table import HERE, MEASURES_FILE, RESULTS, Measure, lines_of, load_measures
from tqdm.auto import tqdm

ROOT = HERE.parent
SUMMARY_FILE = "bench.json"
#: Logs, and which measures of an unfinished bench are done; not kept in git.
WORK = ROOT / "build" / "bench"
JOURNAL_FILE = "journal.json"
POLL_S = 0.5
SECONDS_PER_MINUTE = 60
#: A measure that takes longer than planned keeps so much of its part of the bar until it ends.
NEARLY = 0.98
ERROR_CHARACTERS = 200
#: A process that is asked to end gets so long before it is killed.
PATIENCE_S = 10.0


class Journal:
    """Which measures of a bench that has not come to its end are done; gone when it has."""

    def __init__(self, folder: Path):
        self.path = folder / JOURNAL_FILE

    def done(self, measure: Measure) -> dict[str, Any] | None:
        """What is known of a measure's run, if it was done with the same script and arguments."""
        run = self._read().get(measure.name)
        return run if run and run["command"] == [measure.script, measure.arguments] else None

    def add(self, measure: Measure, run: dict[str, Any]) -> None:
        """Notes that a measure is done."""
        runs = self._read() | {measure.name: {**run, "command": [measure.script, measure.arguments]}}
        write_whole(self.path, runs)

    def clear(self) -> None:
        """The bench is over, or is to begin anew."""
        self.path.unlink(missing_ok=True)

    def _read(self) -> dict[str, Any]:
        try:
            return json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}


def write_whole(path: Path, content: Any) -> None:
    """Writes JSON aside and renames it, so that the file is never there by half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(unfinished, path)


def run_measure(measure: Measure, scripts: Path, work: Path, bar: tqdm) -> dict[str, Any]:
    """
    Runs a measure's script; how it ended, how long it took, and of which commit.

    Args:
        scripts: folder of the scripts.
        work: folder for its log.
        bar: moves on by the measure's planned seconds.
    """
    work.mkdir(parents=True, exist_ok=True)
    log = work / f"{measure.name}.log"
    command = [sys.executable, str(scripts / measure.script), *shlex.split(measure.arguments)]
    commit = git("rev-parse", "--short", "HEAD")
    planned, before = measure.minutes * SECONDS_PER_MINUTE, bar.n
    start = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, cwd=ROOT, start_new_session=True)
        try:
            while process.poll() is None:
                time.sleep(POLL_S)
                bar.n = before + min(time.monotonic() - start, NEARLY * planned)
                bar.set_postfix_str(last_line(log), refresh=True)
        finally:
            end_all(process)
    seconds = time.monotonic() - start
    bar.n = before + planned
    run = {
        "status": "done",
        "seconds": round(seconds, 1),
        "ended": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit,
        "load_at_end": os.getloadavg(),
    }
    if process.returncode:
        said = last_line(log)[-ERROR_CHARACTERS:]
        run |= {"status": "failed", "error": f"ended with {process.returncode}: {said} (see {log.name})"}
    return run


def end_all(process: "subprocess.Popen[bytes]") -> None:
    """Ends a measure's process and what it has started, where the bench itself was told to end."""
    if process.poll() is not None:
        return
    for kind in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, kind)
            process.wait(PATIENCE_S)
            return
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def last_line(log: Path) -> str:
    """The last thing that was said, in one line."""
    lines = log.read_bytes()[-4096:].decode(errors="replace").replace("\r", "\n").strip().splitlines()
    return lines[-1].strip()[:100] if lines else ""


def git(*arguments: str) -> str:
    """What git says, or "unknown" where there is none."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def machine() -> dict[str, Any]:
    """What the figures are measured on."""
    import torch
    import transformers

    names = [line.split(":")[1] for line in _cpu_lines() if line.startswith("model name")]
    return {
        "CPU": names[0].strip() if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _cpu_lines() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


class Bench:
    """
    Measures, and what has been seen of them.

    Args:
        measures: all of the table.
        results: folder of the scripts' results and of the report.
        scripts: folder of the scripts.
        work: folder for logs and the journal.
    """

    def __init__(self, measures: Sequence[Measure], results: Path = RESULTS, scripts: Path = HERE, work: Path = WORK):
        self.measures, self.results, self.scripts, self.work = measures, results, scripts, work
        self.journal = Journal(work)
        self.summary = results / SUMMARY_FILE

    def known(self) -> dict[str, Any]:
        """What is kept of the last bench."""
        try:
            return json.loads(self.summary.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {"machine": {}, "runs": {}}

    def run(self, chosen: Sequence[Measure], go_on: bool) -> list[str]:
        """
        Runs measures, notes each as it ends, and writes the report.

        Args:
            chosen: which, in this order.
            go_on: passes over those that an interrupted bench has done; when all are done, the next one begins anew.

        Returns:
            The names of those that failed.
        """
        failed = []
        waiting = [measure for measure in chosen if not (go_on and self.journal.done(measure))]
        for measure in chosen:
            if measure not in waiting:
                done = self.journal.done(measure)
                assert done is not None
                print(f"{measure.name}: done before, at {done['ended']} of commit {done['commit']}; kept.")
        total = sum(measure.minutes for measure in waiting) * SECONDS_PER_MINUTE
        shape = "{desc}{percentage:3.0f}%|{bar:20}| {elapsed}, {remaining} left {postfix}"
        with tqdm(total=total, bar_format=shape) as bar:
            for measure in waiting:
                bar.set_description(measure.name)
                run = run_measure(measure, self.scripts, self.work, bar)
                self._note(measure, run)
                if run["status"] == "failed":
                    failed.append(measure.name)
                    bar.write(f"{measure.name} {run['error']}")
                elif go_on:
                    self.journal.add(measure, run)
        if go_on and not failed:
            self.journal.clear()
        self.write()
        return failed

    def _note(self, measure: Measure, run: dict[str, Any]) -> None:
        known = self.known()
        known["machine"] = machine()
        known["runs"][measure.name] = run
        write_whole(self.summary, known)

    def write(self) -> Path:
        """Table, plots and their JSON from the result files that are there."""
        known = self.known()
        lines = [line for measure in self.measures for line in lines_of(measure, measure.data(self.results))]
        path = write_report(self.measures, known["runs"], known["machine"], self.results)
        write_whole(self.summary, {**known, "table": [dataclasses.asdict(line) for line in lines]})
        return path


def read_options(measures: Sequence[Measure], argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [measure.name for measure in measures]
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=names, help="run these, whatever was done before")
    parser.add_argument(
        "--again", action="store_true", help="begin anew instead of going on with an interrupted bench"
    )
    parser.add_argument("--table", action="store_true", help="run nothing; write table and plots")
    parser.add_argument("--list", action="store_true", help="run nothing; say what there is")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Runs what was asked for; ends with 1 where a measure failed."""
    measures = load_measures(MEASURES_FILE)
    options = read_options(measures, argv)
    bench = Bench(measures)
    if options.list:
        for measure in measures:
            minutes = f"{measure.minutes:4.1f} min" if measure.runs else "  quoted"
            print(f"{measure.name:16}{minutes}  {measure.script} {measure.arguments}  -> results/{measure.result}")
        print(f"{sum(measure.minutes for measure in measures if measure.runs):.0f} min in all")
        return
    failed = []
    if not options.table:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        if options.again:
            bench.journal.clear()
        chosen = [measure for measure in measures if (measure.name in options.only if options.only else measure.runs)]
        failed = bench.run(chosen, go_on=not options.only)
    print(f"Table: {bench.write()}")
    if failed:
        sys.exit(f"These failed: {', '.join(failed)}. Their logs are in {WORK}; run again to go on with them.")


if __name__ == "__main__":
    main()

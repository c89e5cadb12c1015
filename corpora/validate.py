"""
`audiollm validate`: find everything that is wrong with training data, at once, before any training.

    audiollm validate data.json --audio_dir recordings
    audiollm validate train=train.json test=test.parquet --report report.json
    audiollm validate train.json --against test.json --strict

DATA is whatever `audiollm train --data_path` reads, or split=DATA. The exit status is 0 without errors, 1 with errors, and
2 where nothing could be checked.
"""

import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from audiollm.command_line.files import check_writable, naming_the_disk, written
from audiollm.command_line.interruption import TerminatedError, ended_by_signals, exit_status
from audiollm.command_line.option_parser import option, parser_of

from .clips import CorpusError
from .parallel import available_cpus
from .sources import parse_source
from .validation import ERROR, FAULTS, WARNING, DataFile, Limits, Validation
from .values import check_at_least, check_known, counted

ERRORS_EXIT, UNCHECKED_EXIT = 1, 2
#: Split of files that are given without one.
UNNAMED_SPLIT = "data"
NAMED_FILE = re.compile(r"(\w[\w.-]*)=(.+)", re.DOTALL)
#: Raised when a field of the report changes its name or meaning.
REPORT_VERSION = 1
HOURS_DIGITS = 6
#: Figures of each file in the report, besides name and hours.
REPORTED = ("split", "judged", "rows", "recordings", "transcripts", "not_compared")


@dataclass
class ValidateArguments(Limits):
    """Data to check, limits, and places for the findings."""

    audio_dir: str | None = option(None, "Folder that relative audio paths start from and that none may leave.")
    against: list[str] = option(
        [], "Other files that nothing may leak into. Of their own faults only what cannot be compared is reported."
    )
    strict: bool = option(False, "Take warnings for errors.")
    ignore: list[str] = option([], f"Faults that are not wanted, of {', '.join(FAULTS)}.")
    response_is_transcript: bool = option(
        False,
        "Take every response about one recording for its transcript, not only those to prompts of the task "
        "transcribe and of tables of clips.",
    )
    report: str | None = option(None, "JSON file to write everything to.")
    shown: int = option(5, "Rows shown of each fault; the report has all.")
    workers: int | None = option(None, "Processes that decode audio. Default: one for each CPU.")

    def __post_init__(self):
        super().__post_init__()
        if self.ignore:
            check_known("ignore", self.ignore, FAULTS)
        check_at_least(self, 0, "shown")
        check_at_least(self, 1, "workers")


def data_files(given: Sequence[str], against: Sequence[str]) -> list[DataFile]:
    """
    Return the files that the command line names as `path` or `split=path`, to judge and to compare with.

    Files to judge without a split are of one; a file to compare with is a split named after its file.
    """
    files = [_data_file(each, UNNAMED_SPLIT, judged=True) for each in given]
    others = [_data_file(each, None, judged=False) for each in against]
    for other in others:
        if other.split in {file.split for file in files}:
            name, advice = other.source.name, f"Name another, as in --against held_out={other.source.name}"
            raise ValueError(f"--against {name} is of split {other.split!r}, like the data that is checked. {advice}.")
    return files + others


def _data_file(given: str, split: str | None, judged: bool) -> DataFile:
    named = None if os.path.exists(given) else NAMED_FILE.fullmatch(given)
    path = named[2] if named else given
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise ValueError(f"Data {path!r} is a pipe, socket or device; expected a file or folder.")
    source = parse_source(path)
    return DataFile(source, named[1] if named else split or Path(source.path).stem, judged)


class Report:
    """The findings, for people and as a file; `totals` are the numbers of errors and warnings."""

    def __init__(self, found: Validation, arguments: ValidateArguments):
        self.found, self.arguments, self.counts = found, arguments, found.counts()
        self.totals = {ERROR: 0, WARNING: 0}
        for fault, count in self.counts.items():
            self.totals[self.severity(fault)] += count

    def severity(self, fault: str) -> str:
        """Return the severity of a fault; with --strict every fault is an error."""
        return ERROR if self.arguments.strict else FAULTS[fault].severity

    def summary(self) -> str:
        """Return the findings as text without characters that command a terminal: of each fault the first rows."""
        text = "\n".join(line.replace("\n", " ") for line in self._lines())
        shown = (one if one.isprintable() or one == "\n" else one.encode("unicode_escape").decode() for one in text)
        return "".join(shown)

    def _lines(self) -> Iterator[str]:
        for file in self.found.files:
            numbers = [counted(file.rows, "row"), counted(file.recordings, "recording")]
            numbers += [f"{file.hours:.2f} h", counted(file.transcripts, "transcript")]
            role = f"split {file.split}" if file.judged else f"split {file.split}, compared with only"
            yield f"{file.name} ({role}): {', '.join(numbers)}"
            if file.not_compared:
                yield f"  {counted(file.not_compared, 'row')} not compared with others: unusable, too long or silent"
        findings = self.found.findings()
        if not findings:
            yield "No faults."
            return
        errors, warnings = counted(self.totals[ERROR], "error"), counted(self.totals[WARNING], "warning")
        yield f"{errors} and {warnings} in {counted(len({(one.file, one.row) for one in findings}), 'row')}:"
        for fault in sorted(self.counts, key=lambda name: self.severity(name) != ERROR):
            yield ""
            yield f"{self.severity(fault):7}  {fault}: {self.counts[fault]} ({FAULTS[fault].meaning})"
            for finding in [one for one in findings if one.fault == fault][: self.arguments.shown]:
                where = f"{self.found.files[finding.file].name} {finding.where}".strip()
                audio = f"{finding.audio}: " if finding.audio and finding.audio not in finding.reason else ""
                yield f"         {where}: {audio}{finding.reason}"
            if self.counts[fault] > self.arguments.shown:
                yield f"         ... and {self.counts[fault] - self.arguments.shown} more"

    def write(self, path: str) -> None:
        """
        Write everything that was found as one JSON object, whole or not at all.

        Its fields: `version`; `limits`, `ignored` and `strict` as given; `files`, each with `name`, `split`, `judged` and
        its counts; `hours`, `errors`, `warnings` and `counts` by fault; and `faults`, in the order of files and rows, each
        with `file` (name), `row` (from 0, null for the whole file), `where`, `fault`, `severity`, `reason` and `audio`.
        """
        files = self.found.files
        content = {
            "version": REPORT_VERSION,
            "limits": {each.name: getattr(self.arguments, each.name) for each in fields(Limits)},
            "ignored": sorted(self.arguments.ignore),
            "strict": self.arguments.strict,
            "files": [
                {"name": file.name}
                | {name: getattr(file, name) for name in REPORTED}
                | {"hours": round(file.hours, HOURS_DIGITS)}
                for file in files
            ],
            "hours": round(sum(file.hours for file in files), HOURS_DIGITS),
            "errors": self.totals[ERROR],
            "warnings": self.totals[WARNING],
            "counts": self.counts,
            "faults": [
                {**one._asdict(), "file": files[one.file].name, "severity": self.severity(one.fault)}
                for one in self.found.findings()
            ],
        }
        with written(path, errors="backslashreplace") as file:  # a name that is no Unicode, as JSON's own escape of it
            file.write(json.dumps(content, ensure_ascii=False, indent=2) + "\n")


def run(given: Sequence[str], arguments: ValidateArguments) -> Report:
    """Check files, each a path or `split=path`, and write the report; raises as [`Validation`], ValueError and OSError."""
    files = data_files(given, arguments.against)
    if arguments.report is not None:  # before the work
        if os.path.isdir(arguments.report):
            raise ValueError(f"--report {arguments.report} is a folder; give it a file of its own.")
        if os.path.realpath(arguments.report) in {os.path.realpath(file.source.path) for file in files}:
            raise ValueError(f"--report {arguments.report} is the data; give it a file of its own.")
        check_writable(Path(arguments.report).parent)
    found = Validation(files, arguments.audio_dir, arguments, arguments.ignore, arguments.response_is_transcript)
    found.run(arguments.workers or available_cpus())
    report = Report(found, arguments)
    if arguments.report is not None:
        with naming_the_disk(arguments.report, "make room and give the command again"):
            report.write(arguments.report)
    return report


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = parser_of(ValidateArguments, "validate", "DATA... [options]", __doc__)
    parser.add_argument("data", nargs="+", help="files to check, or split=file; see above")
    options = vars(parser.parse_args(list(sys.argv[1:] if argv is None else argv)))
    given = options.pop("data")
    try:
        arguments = ValidateArguments(**options)
        with ended_by_signals():
            report = run(given, arguments)
    except (CorpusError, OSError, ValueError) as error:
        print(f"audiollm validate: {error}", file=sys.stderr)
        sys.exit(UNCHECKED_EXIT)
    except KeyboardInterrupt as interrupt:
        how = "Ended" if isinstance(interrupt, TerminatedError) else "Interrupted"
        print(f"\n{how}, with nothing written. Give the same command again.", file=sys.stderr)
        sys.exit(exit_status(interrupt))
    print(report.summary())
    if report.totals[ERROR]:
        sys.exit(ERRORS_EXIT)

"""
`audiollm validate`: find everything that is wrong with training data, at once, before any training.

    audiollm validate data.json --audio_dir recordings
    audiollm validate train=train.json test=test.parquet --report report.json
    audiollm validate train.json --against test.json --strict

DATA is whatever `audiollm train --data_path` reads, or split=DATA. The exit status is 0 without errors, 1 with errors, and
2 where nothing could be checked.
"""

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from audiollm.base_models import audiollm_cache_dir
from audiollm.corpora.normalisers import normaliser_for
from audiollm.disks import check_writable, naming_the_disk
from audiollm.interruption import TerminatedError, ended_by_signals, exit_status
from audiollm.option_parser import parser_of

from .clips import CorpusError
from .faults import ERROR, FAULTS, Limits
from .parallel import available_cpus
from .sources import parse_source
from .validation import DataFile, Validation, validate
from .validation_report import count_severities, summarize, write_report

ERRORS_EXIT, UNCHECKED_EXIT = 1, 2
#: Folder of transcripts in the cache folder, and the value of --transcript_cache that keeps none.
HEARD_FOLDER, CACHE_OFF = "heard", "off"
#: Split of files that are given without one.
UNNAMED_SPLIT = "data"
NAMED_FILE = re.compile(r"(\w[\w.-]*)=(.+)", re.DOTALL)


@dataclass
class ValidateArguments(Limits):
    """Data to check, limits, and places for the findings."""

    audio_dir: str | None = field(
        default=None, metadata={"help": "Folder that relative audio paths start from and that none may leave."}
    )
    against: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Other files that nothing may leak into. Of their own faults only what cannot be compared is reported."
        },
    )
    strict: bool = field(default=False, metadata={"help": "Take warnings for errors."})
    ignore: list[str] = field(
        default_factory=list, metadata={"help": f"Faults that are not wanted, of {', '.join(FAULTS)}."}
    )
    response_is_transcript: bool = field(
        default=False,
        metadata={
            "help": "Take every response about one recording for its transcript, not only those to prompts of the task "
            "transcribe and of tables of clips."
        },
    )
    transcribe_with: str | None = field(
        default=None,
        metadata={"help": "A Whisper to compare transcripts with: a Hub id, a folder, or pypi:whisper-tiny.en."},
    )
    transcript_cache: str | None = field(
        default=None,
        metadata={
            "help": f"Folder that keeps what --transcribe_with hears; '{CACHE_OFF}' for none. Default: {HEARD_FOLDER!r} "
            "in AudioLLM's cache folder."
        },
    )
    language: str | None = field(
        default=None, metadata={"help": "Language of the transcripts, for word error. Default: English."}
    )
    report: str | None = field(
        default=None,
        metadata={
            "help": "JSON file to write everything to, histograms of durations, speech rate and word error too."
        },
    )
    shown: int = field(default=5, metadata={"help": "Rows shown of each fault; the report has all."})
    workers: int | None = field(
        default=None, metadata={"help": "Processes that decode audio. Default: one for each CPU."}
    )

    def __post_init__(self):
        super().__post_init__()
        unknown = [name for name in self.ignore if name not in FAULTS]
        if unknown:
            raise ValueError(f"--ignore has {unknown[0]!r}; expected some of {', '.join(FAULTS)}.")
        if self.shown < 0:
            raise ValueError(f"--shown is {self.shown}; expected 0 or more.")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"--workers is {self.workers}; expected 1 or more.")
        if self.transcript_cache is not None and self.transcribe_with is None:
            raise ValueError("--transcript_cache needs --transcribe_with.")
        if self.language is not None and self.transcribe_with is None and self.max_wer is None:
            raise ValueError("--language is for word error: it needs --transcribe_with or --max_wer.")


def data_files(given: Sequence[str], against: Sequence[str]) -> list[DataFile]:
    """
    Return the files that the command line names as `path` or `split=path`.

    Args:
        given: Files to judge; those without a split are of one.
        against: Files to compare with; each is a split named after its file, unless it is named.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no file of examples, or is of a split that is both judged and compared with.
    """
    files = [_data_file(each, UNNAMED_SPLIT, judged=True) for each in given]
    others = [_data_file(each, None, judged=False) for each in against]
    for other in others:
        if other.split in {file.split for file in files}:
            raise ValueError(
                f"--against {other.source.name} is of split {other.split!r}, like the data that is checked. Name another, "
                f"as in --against held_out={other.source.name}."
            )
    return files + others


def _data_file(given: str, split: str | None, judged: bool) -> DataFile:
    named = None if os.path.exists(given) else NAMED_FILE.fullmatch(given)
    path = named[2] if named else given
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise ValueError(f"Data {path!r} is a pipe, socket or device; expected a file or folder.")
    source = parse_source(path)
    return DataFile(source, named[1] if named else split or Path(source.path).stem, judged)


def run(given: Sequence[str], arguments: ValidateArguments) -> Validation:
    """
    Check files and write the report. Close the result after use.

    Args:
        given: Files, or `split=file`.

    Raises:
        FileNotFoundError, ValueError: a file does not exist, or cannot be used.
        CorpusError: a process that measured a recording died.
        OSError: the report cannot be written.
    """
    files = data_files(given, arguments.against)
    _check_report(files, arguments.report)
    decoder = journal = None
    if arguments.transcribe_with is not None:
        from .hypotheses import WhisperDecoder, transcript_journal

        decoder = WhisperDecoder(arguments.transcribe_with, language=arguments.language)
        if arguments.transcript_cache != CACHE_OFF:
            folder = check_writable(arguments.transcript_cache or audiollm_cache_dir() / HEARD_FOLDER)
            journal = transcript_journal(folder, arguments.transcribe_with, language=arguments.language)
    found = validate(
        files,
        arguments.audio_dir,
        arguments,
        arguments.ignore,
        arguments.response_is_transcript,
        arguments.workers or available_cpus(),
        normaliser_for(arguments.language),
        decoder,
        journal,
    )
    try:
        if arguments.report is not None:
            with naming_the_disk(arguments.report, "make room and give the command again"):
                write_report(Path(arguments.report), found, arguments, arguments.ignore, arguments.strict)
    except BaseException:
        found.close()
        raise
    return found


def _check_report(files: Sequence[DataFile], path: str | None) -> None:
    """Refuse to write over data, and find out before the work whether the report can be written."""
    if path is None:
        return
    if os.path.isdir(path):
        raise ValueError(f"--report {path} is a folder; give it a file of its own.")
    if os.path.realpath(path) in {os.path.realpath(file.source.path) for file in files}:
        raise ValueError(f"--report {path} is the data; give it a file of its own.")
    check_writable(Path(path).parent)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = parser_of(ValidateArguments, "validate", "DATA... [options]", __doc__)
    parser.add_argument("data", nargs="+", help="files to check, or split=file; see above")
    options = vars(parser.parse_args(list(sys.argv[1:] if argv is None else argv)))
    given = options.pop("data")
    try:
        arguments = ValidateArguments(**options)
        with ended_by_signals():
            found = run(given, arguments)
    except (CorpusError, OSError, ValueError) as error:
        print(f"audiollm validate: {error}", file=sys.stderr)
        sys.exit(UNCHECKED_EXIT)
    except KeyboardInterrupt as interrupt:
        how = "Ended" if isinstance(interrupt, TerminatedError) else "Interrupted"
        kept = " What was heard is kept." if options["transcribe_with"] else ""
        print(f"\n{how}, with nothing written.{kept} Give the same command again.", file=sys.stderr)
        sys.exit(exit_status(interrupt))
    try:
        print(summarize(found, arguments.shown, arguments.strict))
        if count_severities(found, arguments.strict)[ERROR]:
            sys.exit(ERRORS_EXIT)
    finally:
        found.close()


if __name__ == "__main__":
    main()

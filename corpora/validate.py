"""
`audiollm validate`: everything that is wrong with training data, at once, before any training.

    audiollm validate data.json --audio_dir recordings
    audiollm validate train=train.json test=test.parquet --report report.json --plot report.png
    audiollm validate train.json --against test.json --strict

Reads whatever `audiollm train --data_path` reads. Ends with 0 where there are no errors, 1 where there are some, and 2
where nothing could be checked.
"""

import math
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from audiollm.base_models import audiollm_cache_dir
from audiollm.disks import check_writable, naming_the_disk
from audiollm.interruption import TerminatedError, ended_by_signals, exit_status
from audiollm.option_parser import parser_of
from audiollm.processing.normalisers import normaliser_for

from .clips import CorpusError
from .faults import ERROR, FAULTS, Limits
from .prepare_arguments import available_cpus
from .sources import parse_source
from .validation import DataFile, Validation, validate
from .validation_report import count_severities, summarize, write_plot, write_report

ERRORS_EXIT, UNCHECKED_EXIT = 1, 2
#: Where transcripts are kept in the cache folder, and what keeps none.
HEARD_FOLDER, CACHE_OFF = "heard", "off"
REPORT_ADVICE = "make room and give the command again"
#: What files without a name of their own are one split of.
UNNAMED_SPLIT = "data"
NAMED_FILE = re.compile(r"(\w[\w.-]*)=(.+)", re.DOTALL)


@dataclass
class ValidateArguments:
    """What to look at, what is allowed, and where the findings go."""

    audio_dir: str | None = field(
        default=None, metadata={"help": "Folder that relative audio paths start from and that none may leave."}
    )
    against: list[str] = field(
        default_factory=list,
        metadata={"help": "Other files that nothing may leak into; their own faults are not reported."},
    )
    strict: bool = field(default=False, metadata={"help": "Take warnings for errors."})
    ignore: list[str] = field(
        default_factory=list, metadata={"help": f"Faults that are not wanted, of {', '.join(FAULTS)}."}
    )
    response_is_transcript: bool = field(
        default=False,
        metadata={
            "help": "Take every response about one recording for its transcript, instead of those to prompts of the "
            "task transcribe and of tables of clips."
        },
    )
    min_seconds: float = field(default=Limits.min_seconds, metadata={"help": "Shorter recordings are errors."})
    max_seconds: float = field(
        default=Limits.max_seconds, metadata={"help": "Longer recordings are errors; they are not read further."}
    )
    min_level_dbfs: float = field(
        default=Limits.min_level_dbfs,
        metadata={"help": "Recordings whose level (RMS, dB relative to full scale) is lower are silent."},
    )
    max_clipped_share: float = field(
        default=Limits.max_clipped_share, metadata={"help": "Share of samples that may be at full scale, 0 to 1."}
    )
    max_dc_offset: float = field(
        default=Limits.max_dc_offset, metadata={"help": "How far the samples' mean may be from zero, 0 to 1."}
    )
    max_characters_per_second: float = field(
        default=Limits.max_characters_per_second, metadata={"help": "Letters and digits that can be said in a second."}
    )
    max_words_per_second: float = field(
        default=Limits.max_words_per_second, metadata={"help": "Words that can be said in a second."}
    )
    min_characters_per_second: float = field(
        default=Limits.min_characters_per_second,
        metadata={"help": "Letters and digits that the transcript of a recording of 5 s or more has each second."},
    )
    max_wer: float | None = field(
        default=None,
        metadata={
            "help": "Word error, in percent, above which a transcript is wrong: by --transcribe_with, or the columns "
            "wer or pred_text of a table."
        },
    )
    transcribe_with: str | None = field(
        default=None,
        metadata={"help": "A Whisper (Hub id, folder, pypi:whisper-tiny.en) to hold transcripts against."},
    )
    transcript_cache: str | None = field(
        default=None,
        metadata={
            "help": "Folder where what --transcribe_with hears is kept, so that a command that was broken off goes on; "
            f"{HEARD_FOLDER!r} in AudioLLM's cache folder when not given, '{CACHE_OFF}' for none."
        },
    )
    language: str | None = field(
        default=None, metadata={"help": "Of the transcripts, for word error; English when not given."}
    )
    report: str | None = field(default=None, metadata={"help": "JSON file to write everything to."})
    plot: str | None = field(
        default=None, metadata={"help": "Image to write: durations, speech rate, word error (.png, .svg, .pdf)."}
    )
    shown: int = field(default=5, metadata={"help": "Rows that are shown of each fault; the report has all."})
    workers: int | None = field(
        default=None, metadata={"help": "Processes that decode audio; as many as there are CPUs when not given."}
    )

    def __post_init__(self):
        unknown = [name for name in self.ignore if name not in FAULTS]
        if unknown:
            raise ValueError(f"--ignore has {unknown[0]!r}; expected some of {', '.join(FAULTS)}.")
        if not (0 <= self.min_seconds < self.max_seconds and math.isfinite(self.max_seconds)):
            raise ValueError(
                f"--min_seconds {self.min_seconds:g} and --max_seconds {self.max_seconds:g}: expected 0 or more, and less "
                "than the longest, which must be finite."
            )
        for name in ("max_clipped_share", "max_dc_offset"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name} is {getattr(self, name):g}; expected 0 to 1.")
        for name in ("max_characters_per_second", "max_words_per_second"):
            if not getattr(self, name) > 0:
                raise ValueError(f"--{name} is {getattr(self, name):g}; expected more than 0.")
        if self.min_level_dbfs > 0 or math.isnan(self.min_level_dbfs):
            raise ValueError(f"--min_level_dbfs is {self.min_level_dbfs:g}; expected 0 or less: full scale is 0.")
        if not 0 <= self.min_characters_per_second < self.max_characters_per_second:
            raise ValueError(
                f"--min_characters_per_second is {self.min_characters_per_second:g}; expected 0 or more, and less than "
                f"--max_characters_per_second {self.max_characters_per_second:g}."
            )
        if self.max_wer is not None and not self.max_wer >= 0:
            raise ValueError(f"--max_wer is {self.max_wer:g}; expected a percentage of 0 or more.")
        if self.shown < 0:
            raise ValueError(f"--shown is {self.shown}; expected 0 or more.")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"--workers is {self.workers}; expected 1 or more.")
        if self.transcript_cache is not None and self.transcribe_with is None:
            raise ValueError("--transcript_cache is for what --transcribe_with hears; give both, or neither.")
        if self.language is not None and self.transcribe_with is None and self.max_wer is None:
            raise ValueError("--language is for word error; give --transcribe_with or --max_wer with it.")

    @property
    def limits(self) -> Limits:
        """What is allowed."""
        return Limits(**{each.name: getattr(self, each.name) for each in fields(Limits)})


def data_files(given: Sequence[str], against: Sequence[str]) -> list[DataFile]:
    """
    Files as the command line names them: `path`, or `split=path`.

    Args:
        given: to judge; those without a split's name are of one.
        against: to compare with; each is a split called after its file, unless named.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no file of examples; or is of a split that is both judged and compared with.
    """
    files = [_data_file(each, UNNAMED_SPLIT, judged=True) for each in given]
    others = [_data_file(each, None, judged=False) for each in against]
    for other in others:
        if other.split in {file.split for file in files}:
            raise ValueError(
                f"--against {other.source.name} is of split {other.split!r}, as what is checked against it; name it "
                f"otherwise, as in --against held_out={other.source.name}."
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
    Checks files and writes report and plot. Close the result's `index` after use.

    Args:
        given: files, or `split=file`.

    Raises:
        FileNotFoundError, ValueError: what is given is not there, or cannot be used.
        CorpusError: a process that measured a recording died.
        OSError: report or plot cannot be written.
    """
    files = data_files(given, arguments.against)
    _check_outputs(files, arguments)
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
        arguments.limits,
        arguments.ignore,
        arguments.response_is_transcript,
        arguments.workers or available_cpus(),
        normaliser_for(arguments.language),
        decoder,
        journal,
    )
    try:
        if arguments.report is not None:
            with naming_the_disk(arguments.report, REPORT_ADVICE):
                write_report(Path(arguments.report), found, arguments.limits, arguments.ignore, arguments.strict)
        if arguments.plot is not None:
            with naming_the_disk(arguments.plot, REPORT_ADVICE):
                write_plot(Path(arguments.plot), found, arguments.limits, arguments.strict)
    except BaseException:
        found.index.close()
        raise
    return found


def _check_outputs(files: Sequence[DataFile], arguments: ValidateArguments) -> None:
    """Refuses to write where there is data, and finds out before the work whether it can be written at all."""
    taken = {os.path.realpath(file.source.path): "is the data" for file in files}
    for name in ("report", "plot"):
        path = getattr(arguments, name)
        if path is None:
            continue
        if (reason := taken.get(os.path.realpath(path))) or os.path.isdir(path):
            raise ValueError(f"--{name} {path} {reason or 'is a folder'}; give it a file of its own.")
        taken[os.path.realpath(path)] = f"is the --{name} as well"
        if name == "plot" and Path(path).suffix.lower() not in (".png", ".svg", ".pdf"):
            raise ValueError(f"--plot {path}: expected a name that ends in .png, .svg or .pdf.")
        check_writable(Path(path).parent)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry of the command; exits with 1 where there are errors, and with 2 where nothing could be checked."""
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
        found.index.close()


if __name__ == "__main__":
    main()

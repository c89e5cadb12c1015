"""Options and endings that the commands of this room share."""

import ipaddress
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar
from urllib.parse import unquote, urlparse

from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor
from audiollm.command_line.files import AUDIO_SUFFIXES, GOES_ON, check_writable, is_audio, naming_the_disk
from audiollm.command_line.interruption import INTERRUPTED_EXIT, ended_by_signals
from audiollm.command_line.machine import is_out_of_memory
from audiollm.command_line.option_parser import option, parser_of
from audiollm.processing import AudioError
from transformers import set_seed

from .loading import (
    DEFAULT_MODEL,
    DTYPES,
    check_device,
    check_few_bits,
    find_checkpoint,
    load_generation_config,
    load_model,
    load_processor,
)
from .recordings import check_file, is_remote, path_of
from .session import DEFAULT_MAX_NEW_TOKENS, MEMORY_ADVICE, AnswerMemoryError, sampling_options
from .transcribing import Failure, TranscribingSettings, check_window, stored_settings
from .transcripts import with_ending

FAILURES_EXIT, NOTHING_DONE_EXIT = 1, 2
KEPT = " What is done is kept: the same command goes on."
UNNAMED = "recording"
MAX_PORT = 65_535
LOCAL_NAMES = ("localhost",)


@dataclass
class LoadingArguments:
    """Options that choose a model and how it is loaded."""

    MODEL_GROUP: ClassVar = {
        "model": ("model", "revision", "dtype", "device"),
        "memory and speed": ("load_in_8bit", "load_in_4bit", "attn_implementation", "merge_adapters"),
    }

    model: str | None = option(None, f"AudioLLM checkpoint: a folder or a Hub id. By default {DEFAULT_MODEL}.")
    revision: str | None = option(None, "Branch, tag or commit of a Hub id.")
    dtype: str = option("auto", "Precision of the bases.", choices=DTYPES)
    device: str | None = option(None, "Device of the model: cpu, cuda:0, or auto to spread it; a GPU if there is one.")
    load_in_8bit: bool = option(False, "Language model in 8 bits, by bitsandbytes: less memory, other rounding.")
    load_in_4bit: bool = option(False, "Language model in 4 bits, by bitsandbytes.")
    attn_implementation: str | None = option(
        None, "Attention: sdpa, eager, flash_attention_2, ...; sdpa where the bases have it."
    )
    merge_adapters: bool = option(
        False,
        "Fold the adapter into the language model, which makes answers faster. Questions without audio are then "
        "answered by the adapted model too, no longer by the unchanged base.",
    )

    def __post_init__(self):
        check_few_bits(self.load_in_8bit, self.load_in_4bit, self.merge_adapters)

    def find(self) -> tuple[str, AudioLlmProcessor]:
        """Return the place of the checkpoint, and its processor. The model, which takes longer, is not loaded."""
        checkpoint = find_checkpoint(self.model)
        check_device(self.device)
        return checkpoint, load_processor(checkpoint, self.revision)

    def load_model(self, checkpoint: str) -> AudioLlmForConditionalGeneration:
        """Load the model of a checkpoint that [`find`] has found; see [`loading.load_model`]."""
        options = {name: getattr(self, name) for name in self.MODEL_GROUP["memory and speed"]}
        return load_model(checkpoint, self.dtype, self.device, self.revision, **options)

    def transcribing_settings(
        self, checkpoint: str, processor: AudioLlmProcessor, given: Mapping[str, Any], **others: Any
    ) -> TranscribingSettings:
        """
        Return the settings of transcription that the checkpoint brings along, with those that options override.

        Args:
            given: options; None stands for one that is not given.
            others: settings that no checkpoint holds.
        """
        stored = stored_settings(load_generation_config(checkpoint, self.revision))
        own = {name: value for name, value in given.items() if value is not None}
        settings = TranscribingSettings(**{**stored, **own}, **others)
        if settings.window_seconds is not None:
            check_window(
                settings.window_seconds, processor.window_samples / processor.sampling_rate, "--window_seconds"
            )
        return settings


@dataclass
class AnswerArguments(LoadingArguments):
    """Options of commands that answer: the model, and how it chooses its words."""

    ANSWER_GROUP: ClassVar = {"answers": ("system", "max_new_tokens", "temperature", "top_p", "seed")}

    system: str | None = option(None, "System message to begin with.")
    max_new_tokens: int = option(DEFAULT_MAX_NEW_TOKENS, "Bound on each answer, in tokens; says so when it is met.")
    temperature: float = option(0.0, "Above 0, words are sampled, more freely the higher it is; 0 is greedy.")
    top_p: float = option(1.0, "Sample from the likeliest tokens with this total probability.")
    seed: int | None = option(None, "Makes sampling repeatable; needs --temperature.")

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "max_new_tokens")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"--temperature is {self.temperature:g}; expected 0 or more.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"--top_p is {self.top_p:g}; expected more than 0, and at most 1.")
        for name, is_given in (("--top_p", self.top_p != 1), ("--seed", self.seed is not None)):
            if is_given and not self.temperature:
                raise ValueError(f"{name} does nothing without sampling; give --temperature above 0 too.")

    def generate_options(self) -> dict[str, Any]:
        """Return options of `generate`; seeds the random numbers if there is a seed."""
        if self.seed is not None:
            set_seed(self.seed)
        return {"max_new_tokens": self.max_new_tokens, **sampling_options(self.temperature, self.top_p)}


@dataclass
class OutputArguments(LoadingArguments):
    """Options of commands that write something about each of many recordings."""

    #: Ending of what is kept of a recording until it is done.
    PARTIAL_ENDING: ClassVar = ""
    #: Endings of the files that are written for each recording.
    endings: Sequence[str] = field(default=(), init=False)

    output_dir: str | None = option(None, "Folder for what is written. By default it is printed, and nothing is kept.")
    overwrite: bool = option(False, "Write over files that are there already.")
    progress: bool = option(True, "Show a bar of audio seconds, with speed and time left.")

    def __post_init__(self):
        super().__post_init__()
        if self.overwrite and self.output_dir is None:
            raise ValueError("--overwrite is about files; give --output_dir with it.")


def is_loopback(host: str) -> bool:
    """Return whether a name or address is this machine's own, which others cannot reach."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() in LOCAL_NAMES


def check_port(port: int, least: int = 0) -> None:
    """Raise ValueError unless it is a port."""
    if not least <= port <= MAX_PORT:
        raise ValueError(f"--port is {port}; expected {least} to {MAX_PORT}.")


def check_positive(options: Any, *names: str) -> None:
    """Raise ValueError where an option is not a finite number above 0, or, where it is a whole number, not at least 1."""
    for name in names:
        value = getattr(options, name)
        if isinstance(value, int) and value < 1:
            raise ValueError(f"--{name} is {value}; expected at least 1.")
        if not 0 < value < float("inf"):
            raise ValueError(f"--{name} is {value:g}; expected more than 0.")


def parse(
    kind: type[Any],
    command: str,
    description: str | None,
    arguments: Sequence[str] | None,
    usage: str = "[options]",
    **recordings: Any,
) -> Any:
    """
    Return a command's options, of the dataclass `kind`; end with the usual message where they are wrong.

    Args:
        recordings: arguments of `add_argument` for recordings; with them, these are returned as well, first.
    """
    parser = parser_of(kind, command, usage, description)
    if recordings:
        parser.add_argument("recordings", metavar="AUDIO", **recordings)
    given = vars(parser.parse_args(arguments))
    named = given.pop("recordings", None)
    try:
        options = kind(**given)
    except ValueError as error:
        parser.error(str(error))
    return (named, options) if recordings else options


def tell(line: str) -> None:
    """Write a line about an answer, rather than part of it, to standard error."""
    print(line, file=sys.stderr, flush=True)


class MissingLibraryError(ImportError):
    """A library of an extra that is not installed. The message names the extra."""


@contextmanager
def ending(command: str, kept: str = "") -> Iterator[None]:
    """
    End the program with one line on standard error where the block fails in a way that a user can mend.

    The status is 2 where something is wrong with what was given, 1 where memory ran out or a library is missing, and 130
    after Ctrl-C. `kept` is a sentence about what is left after an interruption.
    """
    try:
        with ended_by_signals((signal.SIGINT,)):
            yield
    except (OSError, ValueError) as error:  # CheckpointError and AudioError are ValueErrors
        tell(f"audiollm {command}: {error}")
        sys.exit(NOTHING_DONE_EXIT)
    except (AnswerMemoryError, MissingLibraryError) as error:
        tell(f"audiollm {command}: {error}")
        sys.exit(FAILURES_EXIT)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        tell(f"audiollm {command}: memory ran out. {MEMORY_ADVICE}{kept}")
        sys.exit(FAILURES_EXIT)
    except KeyboardInterrupt:
        tell(f"\nInterrupted.{kept}")
        sys.exit(INTERRUPTED_EXIT)


# ---- commands that take many recordings ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """A recording named on a command line: its path or URL, and the path of its output without ending, where it has one."""

    location: str
    stem: Path | None = None


def find_recordings(given: Sequence[str], folder: Path | None = None) -> tuple[list[Source], list[Failure]]:
    """
    Return everything that is named on a command line, in order, each once, and failures for what is not there.

    Args:
        given: files, URLs, and folders, whose recordings are all taken, by name, those of folders within too.
        folder: the output folder.
    """
    found: dict[str, tuple[str, PurePosixPath]] = {}
    failures: dict[str, Failure] = {}
    for one in given:
        try:
            for location, relative in _find(one):
                identity = location if is_remote(location) else os.path.realpath(location)
                found.setdefault(identity, (location, relative))
        except (AudioError, OSError) as error:
            failures[one] = Failure(one, str(error))
    stems = Counter(relative.with_suffix("") for _, relative in found.values())
    sources: dict[str, Source] = {}
    for location, relative in found.values():
        name = str(relative.with_suffix("") if stems[relative.with_suffix("")] == 1 else relative)
        if name in sources:
            raise ValueError(
                f"{sources[name].location} and {location} would both be written to {name!r}. Give the folder that holds "
                "both, or run the command twice with output folders of their own."
            )
        sources[name] = Source(location, None if folder is None else folder / name)
    return list(sources.values()), list(failures.values())


def _find(given: str) -> list[tuple[str, PurePosixPath]]:
    """Return the recordings that a word of the command line stands for, with the names of their outputs."""
    if is_remote(given):
        name = PurePosixPath(unquote(urlparse(given).path).replace("\\", "/")).name.replace("\0", "")
        return [(given, PurePosixPath(name if name.strip(".") else UNNAMED))]  # which leads out of no folder
    path = path_of(given)
    if not path.is_dir():
        check_file(path, given)
        return [(str(path), PurePosixPath(path.name))]
    files = sorted(file for file in path.rglob("*") if is_audio(file) and file.is_file())
    if not files:
        raise AudioError(f"Folder {given!r} holds no recordings ({', '.join(AUDIO_SUFFIXES)}).")
    return [(str(file), PurePosixPath(file.relative_to(path).as_posix())) for file in files]


def run_over_recordings(
    command: str,
    arguments_class: type[OutputArguments],
    description: str | None,
    run: Callable[[list[Source], Any, bool], list[Failure]],
    undone: str,
    argv: Sequence[str] | None = None,
) -> None:
    """
    Read a command line of recordings and options, run the command, and list the recordings that failed.

    Ends as [`ending`] does, and with 1 where some recordings failed.

    Args:
        run: takes the recordings, the options, and whether several were named; returns failures.
        undone: past participle for the message about failures.
    """
    usage, arguments = "AUDIO... [options]", {"nargs": "+", "help": "files, folders or URLs"}
    given, options = parse(arguments_class, command, description, argv, usage, **arguments)
    folder = None if options.output_dir is None else Path(options.output_dir).expanduser()
    disk = nullcontext() if folder is None else naming_the_disk(folder, GOES_ON)
    with ending(command, "" if folder is None else KEPT), disk:
        sources, failures = find_recordings(given, folder)
        for stem in [one.stem for one in sources if one.stem is not None and not options.overwrite]:
            there = [path for path in (with_ending(stem, one) for one in options.endings) if path.exists()]
            if there and not with_ending(stem, options.PARTIAL_ENDING).exists():  # not of an interrupted run
                raise ValueError(f"{there[0]} is there already; give --overwrite, or another --output_dir.")
        if sources and folder is not None:
            check_writable(folder)
        if sources:
            failures += run(sources, options, len(sources) + len(failures) > 1)
    if failures:
        tell(f"audiollm {command}: {len(failures)} could not be {undone}:")
        for failure in failures:
            tell(f"  {failure.audio}: {failure.reason}")
        sys.exit(FAILURES_EXIT)

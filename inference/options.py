"""Options and endings that the commands of this room share."""

import ipaddress
import signal
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, TypeVar
from urllib.parse import unquote, urlparse

from audiollm import AudioLlmForConditionalGeneration
from audiollm.command_line.files import AUDIO_SUFFIXES, GOES_ON, is_audio, naming_the_disk
from audiollm.command_line.interruption import INTERRUPTED_EXIT, ended_by_signals
from audiollm.command_line.machine import is_out_of_memory
from audiollm.command_line.option_parser import OptionParser, option, parser_of
from audiollm.processing import AudioError
from transformers import set_seed

from .loading import DEFAULT_MODEL, DTYPES, CheckpointError, check_few_bits, load_model
from .recordings import check_file, is_remote, path_of
from .session import DEFAULT_MAX_NEW_TOKENS
from .transcribing import Failure
from .transcripts import with_ending

FAILURES_EXIT, NOTHING_DONE_EXIT = 1, 2
KEPT = " What is done is kept: the same command goes on."
MEMORY_ADVICE = "Give a smaller --batch_size, shorter windows or parts, --dtype bfloat16, or --load_in_8bit."
UNNAMED = "recording"
MAX_PORT = 65_535
LOCAL_NAMES = ("localhost",)

Arguments = TypeVar("Arguments")


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
    load_in_4bit: bool = option(False, "Language model in 4 bits, likewise.")
    attn_implementation: str | None = option(
        None, "Attention: sdpa, eager, flash_attention_2, ...; sdpa where the bases have it."
    )
    merge_adapters: bool = option(
        False,
        "Fold the adapter into the language model, which makes answers faster. Questions without audio are then "
        "answered by the adapted model, too, and no longer by the unchanged base.",
    )

    def __post_init__(self):
        check_few_bits(self.load_in_8bit, self.load_in_4bit, self.merge_adapters)

    def load_model(self, checkpoint: str) -> AudioLlmForConditionalGeneration:
        """Load the model of a checkpoint that `find_checkpoint` has found; see [`loading.load_model`]."""
        return load_model(checkpoint, self.dtype, self.device, self.revision, **self.loading_options())

    def loading_options(self) -> dict[str, Any]:
        """Return the arguments of `loading.load` beside precision, device and revision."""
        return {name: getattr(self, name) for name in self.MODEL_GROUP["memory and speed"]}


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
        if self.max_new_tokens < 1:
            raise ValueError(f"--max_new_tokens is {self.max_new_tokens}; expected at least 1.")
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
        options: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "do_sample": self.temperature > 0}
        if self.temperature > 0:  # top_k: transformers' own default would cut the choice to 50 tokens
            options.update(temperature=self.temperature, top_p=self.top_p, top_k=0)
        return options


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
    kind: type[Arguments], command: str, description: str, arguments: Sequence[str] | None
) -> tuple[OptionParser, Arguments]:
    """Return a command's parser and options; ends with the usual message where they are wrong."""
    parser = parser_of(kind, command, "[options]", description)
    try:
        (options,) = parser.parse_args_into_dataclasses(arguments, look_for_args_file=False)
    except ValueError as error:
        parser.error(str(error))
    return parser, options


def tell(line: str) -> None:
    """Write a line about an answer, rather than part of it, to standard error."""
    print(line, file=sys.stderr, flush=True)


# ---- commands that take many recordings ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """
    A recording named on a command line: its path or URL, and the name of its output without ending.

    The name is relative to the output folder: of a folder's recordings, it has the folders between.
    """

    location: str
    name: str


def find_recordings(given: Sequence[str]) -> list[Source | Failure]:
    """
    Return everything that is named on a command line, in order, each once; a [`Failure`] for what is not there.

    Args:
        given: files, URLs, and folders, whose recordings are all taken, by name, those of folders within too.

    Raises:
        ValueError: two recordings would have outputs of the same name.
    """
    distinct: dict[str, tuple[str, PurePosixPath] | Failure] = {}
    for one in (one for each in given for one in _find(each)):
        distinct.setdefault(_identity(one), one)
    stems = Counter(str(one[1].with_suffix("")) for one in distinct.values() if not isinstance(one, Failure))
    recordings: list[Source | Failure] = []
    owners: dict[str, str] = {}
    for one in distinct.values():
        if isinstance(one, Failure):
            recordings.append(one)
            continue
        location, relative = one
        stem = str(relative.with_suffix(""))
        name = stem if stems[stem] == 1 else str(relative)
        if name in owners:
            raise ValueError(
                f"{owners[name]} and {location} would both be written to {name!r}. Give the folder that holds both, or run "
                "the command twice with output folders of their own."
            )
        owners[name] = location
        recordings.append(Source(location, name))
    return recordings


def output_stems(
    recordings: Sequence[Source], folder: str | None, endings: Sequence[str], partial_ending: str, overwrite: bool
) -> list[Path | None]:
    """
    Return the paths of outputs without their endings; None for each where there is no folder.

    Raises:
        ValueError: there are outputs that were not begun by an interrupted run of this command, or the folder is a file.
    """
    if folder is None:
        return [None] * len(recordings)
    place = Path(folder).expanduser()
    if place.is_file():
        raise ValueError(f"--output_dir {folder} is a file; expected a folder.")
    stems = [place / one.name for one in recordings]
    begun = [stem for stem in stems if not with_ending(stem, partial_ending).exists()]
    there = [path for stem in begun for path in (with_ending(stem, one) for one in endings) if path.exists()]
    if there and not overwrite:
        more = f" and {len(there) - 1} more are" if len(there) > 1 else " is"
        raise ValueError(f"{there[0]}{more} there already; give --overwrite, or another --output_dir.")
    return [*stems]


def _find(given: str) -> list[tuple[str, PurePosixPath] | Failure]:
    if is_remote(given):
        return [(given, _url_name(given))]
    path = path_of(given)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if is_audio(file) and file.is_file())
        if not files:
            return [Failure(given, f"Folder {given!r} holds no recordings ({', '.join(AUDIO_SUFFIXES)}).")]
        return [(str(file), PurePosixPath(file.relative_to(path).as_posix())) for file in files]
    try:
        check_file(path, given)
    except (AudioError, OSError) as error:
        return [Failure(given, str(error))]
    return [(str(path), PurePosixPath(path.name))]


def _url_name(url: str) -> PurePosixPath:
    """Return a file name for a URL: its last part, which cannot lead out of a folder."""
    name = PurePosixPath(unquote(urlparse(url).path).replace("\\", "/")).name.replace("\0", "")
    return PurePosixPath(name if name.strip(".") else UNNAMED)


def _identity(found: tuple[str, PurePosixPath] | Failure) -> str:
    if isinstance(found, Failure):
        return found.audio
    return found[0] if is_remote(found[0]) else str(Path(found[0]).resolve())


def run_over_recordings(
    command: str,
    arguments_class: type[Any],
    description: str | None,
    run: Callable[[list[str], Any], list[Failure]],
    undone: str,
    argv: Sequence[str] | None = None,
) -> None:
    """
    Read a command line of recordings and options, run the command, and list the recordings that failed.

    Ends with 1 where some recordings failed or memory ran out, with 2 where nothing was done, and with 130 when
    interrupted.

    Args:
        command: name after `audiollm`.
        arguments_class: dataclass of its options, with `output_dir`, without which nothing is kept.
        run: takes the files, folders and URLs, and the options; returns failures.
        undone: past participle for the message about failures.
    """
    parser = parser_of(arguments_class, command, "AUDIO... [options]", description)
    parser.add_argument("audio", nargs="+", help="files, folders or URLs")
    options = vars(parser.parse_args(list(sys.argv[1:] if argv is None else argv)))
    given = options.pop("audio")
    kept = KEPT if options["output_dir"] else ""
    try:
        arguments = arguments_class(**options)
        disk = naming_the_disk(options["output_dir"], GOES_ON) if options["output_dir"] else nullcontext()
        with ended_by_signals((signal.SIGINT,)), disk:
            failures = run(given, arguments)
    except (CheckpointError, OSError, ValueError) as error:
        tell(f"audiollm {command}: {error}")
        sys.exit(NOTHING_DONE_EXIT)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        tell(f"audiollm {command}: memory ran out. {MEMORY_ADVICE}{kept}")
        sys.exit(FAILURES_EXIT)
    except KeyboardInterrupt:
        tell(f"\nInterrupted.{kept}")
        sys.exit(INTERRUPTED_EXIT)
    if failures:
        tell(f"audiollm {command}: {len(failures)} could not be {undone}:")
        for failure in failures:
            tell(f"  {failure.audio}: {failure.reason}")
        sys.exit(FAILURES_EXIT)

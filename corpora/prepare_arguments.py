"""Options that every `audiollm prepare` command has, whatever it prepares."""

import math
from dataclasses import dataclass, field

from .parallel import available_cpus
from .prepared_files import FORMATS
from .preparing import PrepareSettings
from .recordings import AUDIO_FORMATS, AudioSettings
from .tasks import known_tasks

ON_BAD_EXAMPLE = ("error", "skip")


@dataclass
class PrepareArguments:
    """Where the prepared corpus goes, and in what form."""

    output: str | None = field(
        default=None, metadata={"help": "Folder to write to; one named after the command, below data, when not given."}
    )
    tasks: list[str] | None = field(
        default=None,
        metadata={"help": f"What to ask about each clip, of {', '.join(known_tasks())}; the corpus' own by default."},
    )
    formats: list[str] = field(
        default_factory=lambda: ["json", "parquet"],
        metadata={
            "help": "What examples are written as: json (instruction_examples.json), jsonl, and parquet (with the "
            "audio inside, as load_dataset reads it)."
        },
    )
    audio_format: str = field(
        default="flac", metadata={"help": "flac (nothing is lost) or opus (a tenth of the size); 16 kHz, mono."}
    )
    min_seconds: float = field(default=0.1, metadata={"help": "Shorter clips cannot be used."})
    max_seconds: float = field(default=600.0, metadata={"help": "Longer clips cannot be used; none is cut short."})
    workers: int | None = field(
        default=None, metadata={"help": "Processes that decode audio; as many as there are CPUs when not given."}
    )
    shard_mib: int = field(default=500, metadata={"help": "Audio in one Parquet file, in MiB."})
    on_bad_example: str = field(
        default="error",
        metadata={
            "help": "What becomes of clips that cannot be used: all are listed, and 'error' writes no examples, 'skip' "
            "leaves them out.",
            "choices": list(ON_BAD_EXAMPLE),
        },
    )
    retry_bad: bool = field(
        default=False,
        metadata={"help": "Try clips again that an earlier run into the folder could not use, once they are mended."},
    )
    restart: bool = field(
        default=False, metadata={"help": "Discard what an earlier run wrote to the folder, instead of going on."}
    )

    def __post_init__(self):
        _check_names("--formats", self.formats, FORMATS)
        _check_names("--audio_format", [self.audio_format], tuple(AUDIO_FORMATS))
        if self.tasks is not None:
            _check_names("--tasks", self.tasks, tuple(known_tasks()))
        if not 0 <= self.min_seconds < self.max_seconds or not math.isfinite(self.max_seconds):
            raise ValueError(
                f"--min_seconds {self.min_seconds:g} and --max_seconds {self.max_seconds:g}: expected 0 or more, and less "
                "than the longest, which must be finite."
            )
        if self.restart and self.retry_bad:
            raise ValueError("--restart does everything anew; --retry_bad would do nothing beside it.")
        for name in ("workers", "shard_mib"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} is {value}; expected 1 or more.")

    def settings(self) -> PrepareSettings:
        """As [`prepare`] takes them."""
        return PrepareSettings(
            audio=AudioSettings(self.audio_format, self.min_seconds, self.max_seconds),
            workers=self.workers or available_cpus(),
            formats=tuple(dict.fromkeys(self.formats)),
            shard_mib=self.shard_mib,
            skip_bad=self.on_bad_example == "skip",
            restart=self.restart,
            retry_bad=self.retry_bad,
        )


def _check_names(option: str, given: list[str], known: tuple[str, ...]) -> None:
    unknown = [name for name in given if name not in known]
    if unknown or not given:
        found = repr(unknown[0]) if unknown else "none"
        raise ValueError(f"{option} has {found}; expected some of {', '.join(known)}.")


__all__ = ["PrepareArguments"]

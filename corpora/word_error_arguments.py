"""Options of `audiollm prepare` that hold transcripts against what is heard: the limit of word error, copied punctuation."""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from audiollm.base_models import EMBEDDED_PREFIX
from audiollm.embedded_bases import fetch
from audiollm.processing.normalisers import NORMALISERS

from .clip_errors import (
    BY_LANGUAGE,
    PERCENT_DECIMALS,
    UNITS,
    WORD_ERROR_SOURCES,
    check_max_wer,
    is_kept,
    limit_hint,
    settle_word_errors,
)
from .clips import STATE_FOLDER
from .conversion import Row
from .hypotheses import DEFAULT_WHISPER, WhisperTranscriber
from .letter_case import has_punctuation, restore_from

JOURNAL_FOLDER = "heard"


@dataclass
class WordErrorArguments:
    """Which clips are kept, by how wrong their transcripts are."""

    max_wer: float | None = field(
        default=None,
        metadata={
            "help": "Keep clips whose word error is at most so many percent: the corpus' own figure, or its own "
            "hypothesis or what Whisper hears against the transcript, both normalised. All are kept when not given."
        },
    )
    wer_from: list[str] = field(
        default_factory=lambda: list(WORD_ERROR_SOURCES),
        metadata={
            "help": "Where word errors may come from, best first: dataset (the corpus' own), hypothesis (a transcript by "
            "another model that it brings), whisper."
        },
    )
    wer_normaliser: str = field(
        default=BY_LANGUAGE,
        metadata={
            "help": f"What makes texts alike before words are compared: {', '.join(NORMALISERS)}, or language, the one "
            "that fits each clip's language."
        },
    )
    whisper_path: str | None = field(
        default=None,
        metadata={"help": f"Whisper that hears clips: a Hub id or a folder; {DEFAULT_WHISPER} when not given."},
    )
    whisper_language: str | None = field(
        default=None,
        metadata={"help": "Language that a multilingual Whisper is told; it finds it out when not given."},
    )
    whisper_batch_size: int = field(default=8, metadata={"help": "Clips heard at once."})
    copy_punctuation: bool = field(
        default=False,
        metadata={
            "help": "Copy capitals and punctuation from what Whisper hears, where its words are those of a transcript "
            "that has none of its own, such as LibriSpeech's."
        },
    )

    def __post_init__(self):
        if self.max_wer is not None:
            check_max_wer(self.max_wer)
        for name in ("wer_from", "wer_normaliser"):
            _only_with(self, name, self.max_wer is not None, "--max_wer")
        for name in ("whisper_path", "whisper_language", "whisper_batch_size"):
            _only_with(self, name, self.needs_whisper, "--max_wer, with whisper in --wer_from, or --copy_punctuation")
        if self.wer_normaliser not in (*NORMALISERS, BY_LANGUAGE):
            raise ValueError(
                f"--wer_normaliser is {self.wer_normaliser!r}; expected one of {', '.join(NORMALISERS)}, {BY_LANGUAGE}."
            )
        unknown = [name for name in self.wer_from if name not in WORD_ERROR_SOURCES]
        if unknown or not self.wer_from:
            raise ValueError(f"--wer_from is {self.wer_from}; expected some of {', '.join(WORD_ERROR_SOURCES)}.")
        if self.whisper_batch_size < 1:
            raise ValueError(f"--whisper_batch_size is {self.whisper_batch_size}; expected 1 or more.")

    @property
    def needs_whisper(self) -> bool:
        """Whether clips may have to be heard."""
        return self.copy_punctuation or (self.max_wer is not None and "whisper" in self.wer_from)

    @property
    def uses_own_figures(self) -> bool:
        """Return whether the corpus' own word errors decide, so that their unit matters."""
        return self.max_wer is not None and "dataset" in self.wer_from


class WordErrorFilter:
    """
    The second pass' part in it: completes rows with what is heard and how wrong they are, and says which are kept.

    Args:
        arguments: as on the command line.
        output: the folder of the prepared corpus; its state keeps what was heard.
        unit: of the corpus' own word errors: percent, fraction, or None for percent unless it cannot be.
    """

    def __init__(self, arguments: WordErrorArguments, output: Path, unit: str | None = None):
        if unit not in (None, *UNITS):
            raise ValueError(f"--wer_unit {unit!r}: expected {' or '.join(UNITS)}.")
        self.arguments, self.output, self.unit = arguments, output, unit
        self.transcriber: WhisperTranscriber | None = None

    def settle(self, rows: Iterator[Row], total: int) -> Iterator[Row]:
        """Rows with the fields `pred_text`, `wer` (percent), `model`, `normaliser` and `wer_source`, as options ask."""
        arguments = self.arguments
        if arguments.copy_punctuation:
            rows = self._punctuated(rows, total)
        if arguments.max_wer is None:
            yield from (_in_percent(row, self.unit) for row in rows)
            return
        whisper = self._whisper() if "whisper" in arguments.wer_from else None
        flat = (row["fields"] | row for row in rows)
        for row in settle_word_errors(
            flat, self.output, whisper, arguments.wer_normaliser, arguments.wer_from, self.unit, total
        ):
            problem = row.pop("wer_problem")
            if problem is not None:
                row["problem"] = f"has no word error for --max_wer: {problem}"
            found = ("pred_text", "wer", "model", "normaliser", "wer_source")
            yield _without(row, found) | {"fields": row["fields"] | {name: row[name] for name in found}}

    def is_kept(self, row: Row) -> bool:
        """Whether a settled row becomes examples."""
        return self.arguments.max_wer is None or is_kept(row["fields"]["wer"], self.arguments.max_wer)

    def hint(self) -> str | None:
        """What to tell someone whose limit may be meant as a fraction."""
        return None if self.arguments.max_wer is None else limit_hint(self.arguments.max_wer)

    def _punctuated(self, rows: Iterator[Row], total: int) -> Iterator[Row]:
        waiting: list[Row] = []

        def paths() -> Iterator[Path | None]:
            for row in rows:
                waiting.append(row)
                yield None if has_punctuation(row["text"]) else self.output / row["audio"]

        for heard in self._whisper().transcribe(paths(), total):
            row = waiting.pop(0)
            yield row if heard is None else row | {"text": restore_from(row["text"], heard)}

    def _whisper(self) -> WhisperTranscriber:
        """Made when it is needed, and once."""
        if self.transcriber is None:
            arguments = self.arguments
            model = arguments.whisper_path or DEFAULT_WHISPER
            if model.startswith(EMBEDDED_PREFIX):
                fetch(model)
            self.transcriber = WhisperTranscriber(
                model,
                device="cuda" if torch.cuda.is_available() else "cpu",
                batch_size=arguments.whisper_batch_size,
                language=arguments.whisper_language,
                journal_folder=self.output / STATE_FOLDER / JOURNAL_FOLDER,
            )
        return self.transcriber


def _only_with(arguments: WordErrorArguments, name: str, allowed: bool, what: str) -> None:
    """Refuses an option that would do nothing."""
    if allowed:
        return
    (default,) = (
        one.default_factory() if callable(one.default_factory) else one.default
        for one in fields(arguments)
        if one.name == name
    )
    if getattr(arguments, name) != default:
        raise ValueError(f"--{name} is of {what}; without it, it would do nothing.")


def _in_percent(row: Row, unit: str | None) -> Row:
    """Return a row with the corpus' own word error in percent."""
    wer = row["fields"].get("wer")
    if unit != "fraction" or not isinstance(wer, float):
        return row
    return row | {"fields": row["fields"] | {"wer": round(100 * wer, PERCENT_DECIMALS)}}


def _without(row: Row, names: tuple[str, ...]) -> Row:
    """The row as the first pass wrote it: fields that were spread out for the word error are in `fields` again."""
    spread = {*names, *row["fields"]} - {"id", "split", "audio", "text", "duration", "bytes", "sha256", "fields"}
    return {name: value for name, value in row.items() if name not in spread}


__all__ = ["WordErrorArguments", "WordErrorFilter"]

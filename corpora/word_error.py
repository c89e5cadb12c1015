"""Word error of a clip's transcript, in percent: the figure by which `--max_wer` keeps or drops clips."""

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from audiollm.base_models import EMBEDDED_PREFIX
from audiollm.command_line.embedded_bases import fetch
from audiollm.command_line.option_parser import option
from tqdm.auto import tqdm

from .clips import STATE_FOLDER
from .hypotheses import DEFAULT_WHISPER, WhisperTranscriber
from .normalisers import clip_word_error, has_words, normaliser_for
from .prepared_files import Row
from .values import check_at_least, number

#: Decimals that are kept when a fraction becomes percent: 100 * 0.07 is not 7 in binary.
PERCENT_DECIMALS = 9
JOURNAL_FOLDER = "heard"
#: Recordings are sorted by length among this many batches.
BATCHES_AT_ONCE = 32
#: Fields that settling a row adds: the hypothesis, percent, names of Whisper and normaliser, and where it comes from.
SETTLED_FIELDS = ("pred_text", "wer", "model", "normaliser", "wer_source")


@dataclass
class WordErrorArguments:
    """Limit of word error, and the Whisper that hears clips without one."""

    max_wer: float | None = option(
        None,
        "Keep clips whose word error is at most so many percent: the corpus' own figure, or its own hypothesis or "
        "what Whisper hears against the transcript, both normalised. Default: all clips.",
    )
    whisper_path: str | None = option(
        None, f"Whisper that hears clips: a Hub id or a folder. Default: {DEFAULT_WHISPER}."
    )
    whisper_language: str | None = option(None, "Language for a multilingual Whisper. Default: the one it finds.")
    whisper_batch_size: int = option(8, "Clips heard at once.")

    def __post_init__(self):
        if self.max_wer is not None and not 0 <= self.max_wer < math.inf:
            raise ValueError(f"--max_wer is {self.max_wer}; expected percent, from 0 on: 5 is 5 %, 0 is no error.")
        for one in fields(self):
            if self.max_wer is None and getattr(self, one.name) != one.default:
                raise ValueError(f"--{one.name} needs --max_wer.")
        check_at_least(self, 1, "whisper_batch_size")


class WordErrorFilter:
    """
    Filter of the second pass: completes rows with their word error, and says which are kept.

    A row's word error is the first that it has: its own field `wer`, in percent or the corpus' `unit`; its `pred_text`
    against its text; what Whisper hears against its text. Texts are normalised as fits the row's `language`. What was
    heard is kept in the state of the output folder.
    """

    def __init__(self, arguments: WordErrorArguments, output: Path, unit: str | None = None):
        self.arguments, self.output, self.unit = arguments, output, unit

    def settle(self, rows: Iterator[Row], total: int) -> Iterator[Row]:
        """
        Yield rows with the fields `SETTLED_FIELDS`, `wer` in percent; without --max_wer only the unit changes.

        A row without a word error has a `problem`. Whisper hears a window of rows at once, sorted by length.
        """
        if self.arguments.max_wer is None:
            for row in rows:
                wer = row["fields"].get("wer")
                if self.unit == "fraction" and isinstance(wer, float):
                    row["fields"]["wer"] = round(100 * wer, PERCENT_DECIMALS)
                yield row
            return
        size = BATCHES_AT_ONCE * self.arguments.whisper_batch_size
        with tqdm(total=total, desc="Hearing", unit="clip", disable=None) as bar:
            while window := list(itertools.islice(rows, size)):
                asked = sorted(filter(_must_be_heard, window), key=lambda row: (row["duration"], row["sha256"]))
                recordings = {row["sha256"]: self.output / row["audio"] for row in asked}
                bar.update(len(window) - len(recordings))
                texts: dict[str, str] = {}
                for batch in self.transcriber.transcribe(recordings) if recordings else ():
                    texts |= batch
                    bar.set_postfix_str(f"{self.transcriber.journal.recalled} clips known", refresh=False)
                    bar.update(len(batch))
                yield from (self._settled(row, texts.get(row["sha256"])) for row in window)

    def is_kept(self, row: Row) -> bool:
        """Return whether a settled row becomes examples."""
        wer, limit = row["fields"].get("wer"), self.arguments.max_wer
        return limit is None or (wer is not None and wer <= limit)

    def _settled(self, row: Row, heard: str | None) -> Row:
        fields = row["fields"]
        own, hypothesis = fields.get("wer"), fields.get("pred_text")
        found = dict.fromkeys(SETTLED_FIELDS) | {"pred_text": hypothesis}
        try:
            if not _is_missing(own):
                found |= {"wer": _percent(own, self.unit), "wer_source": "dataset"}
            else:
                is_own, normaliser = isinstance(hypothesis, str), normaliser_for(fields.get("language"))
                said = hypothesis if is_own else heard or ""
                found |= {"wer": clip_word_error(row["text"], said, normaliser), "pred_text": said}
                found |= {"normaliser": normaliser, "wer_source": "hypothesis" if is_own else "whisper"}
                found |= {} if is_own else {"model": self.transcriber.name}
        except ValueError as error:
            row["problem"] = f"has no word error for --max_wer: {error}"
        fields |= found
        return row

    @functools.cached_property
    def transcriber(self) -> WhisperTranscriber:
        """Return the Whisper that hears clips, made when it is needed."""
        model = self.arguments.whisper_path or DEFAULT_WHISPER
        if model.startswith(EMBEDDED_PREFIX):
            fetch(model)
        return WhisperTranscriber(
            model,
            self.output / STATE_FOLDER / JOURNAL_FOLDER,
            device="cuda" if torch.cuda.is_available() else "cpu",
            batch_size=self.arguments.whisper_batch_size,
            language=self.arguments.whisper_language,
        )


def _must_be_heard(row: Row) -> bool:
    """Return whether a row has neither a word error nor a hypothesis, and words that could be heard."""
    fields = row["fields"]
    is_known = not _is_missing(fields.get("wer")) or isinstance(fields.get("pred_text"), str)
    return not is_known and has_words(row["text"], normaliser_for(fields.get("language")))


def _is_missing(value: Any) -> bool:
    """Return whether a table has no value there: null, an empty text, or the NaN that tables write for it."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _percent(own: Any, unit: str | None) -> float:
    """Return a corpus' own word error in percent; raise ValueError if it is none."""
    wer = number(own, "its word error") or 0.0
    return round(100 * wer, PERCENT_DECIMALS) if unit == "fraction" else wer

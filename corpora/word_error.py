"""
Word error of a clip's transcript, in percent: the figure by which `--max_wer` keeps or drops clips.

It comes from the corpus itself, from a hypothesis that the corpus brings, or from what a Whisper model hears.
"""

import math
import os
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import jiwer
import torch
from audiollm.base_models import EMBEDDED_PREFIX
from audiollm.corpora.normalisers import NORMALISERS, has_words, normaliser_for
from audiollm.embedded_bases import fetch

from .clips import STATE_FOLDER
from .hypotheses import DEFAULT_WHISPER, WhisperTranscriber
from .letter_case import has_punctuation, restore_from
from .prepared_files import Row

#: Sources of a word error, best first: the corpus' own figure, its hypothesis, what Whisper hears.
DATASET, HYPOTHESIS, WHISPER = "dataset", "hypothesis", "whisper"
#: Decimals that are kept when a fraction becomes percent: 100 * 0.07 is not 7 in binary.
PERCENT_DECIMALS = 9
JOURNAL_FOLDER = "heard"
#: Fields that settling a row adds.
SETTLED_FIELDS = ("pred_text", "wer", "model", "normaliser", "wer_source")


def clip_word_error(reference: str, hypothesis: str, normaliser: str = "english") -> float:
    """
    Return substitutions, deletions and insertions in percent of the reference's words, both normalised; may exceed 100.

    Whisper's normalisers leave out punctuation, and whatever stands in brackets, as `<unk>` or `[noise]`. With
    `characters` it is the character error.

    Raises:
        ValueError: there is no such normaliser, or the reference has no word left once normalised.
    """
    if normaliser not in NORMALISERS:
        raise ValueError(f"There is no normaliser {normaliser!r}; expected one of {', '.join(NORMALISERS)}.")
    if not has_words(reference, normaliser):
        raise ValueError(f"its transcript {reference!r} has no word left after the normaliser {normaliser!r}")
    result = jiwer.process_words(NORMALISERS[normaliser](reference), NORMALISERS[normaliser](hypothesis))
    errors = result.substitutions + result.deletions + result.insertions
    # One division, so that 7 errors in 100 words are 7 and not a little more.
    return 100 * errors / (result.hits + result.substitutions + result.deletions)


def settle_word_errors(
    rows: Iterable[Row],
    audio_folder: str | os.PathLike[str],
    whisper: WhisperTranscriber | None = None,
    unit: str | None = None,
    total: int | None = None,
) -> Iterator[Row]:
    """
    Yield rows with their word error, in order.

    A row's word error is the first that it has: its own `wer`; its `pred_text` against its `text`; what Whisper hears in
    its `audio` against its `text`. Texts are normalised as fits the row's `language`.

    Args:
        rows: Each with `text` and `audio`; `wer`, `pred_text` and `language` where they are known.
        audio_folder: Where relative `audio` starts.
        whisper: Hears rows with neither `wer` nor `pred_text`.
        unit: `percent` or `fraction`, which becomes percent, of the rows' own `wer`; percent by default.
        total: How many rows there are, for the time left.

    Yields:
        The row with `pred_text`, `wer` (percent), `model` (Whisper's name), `normaliser`, `wer_source` and `wer_problem`.
        Without a word error, `wer` and `wer_source` are None and `wer_problem` says why. With the corpus' own `wer`,
        model and normaliser are None.

    Raises:
        FileNotFoundError, AudioError: as [`WhisperTranscriber.transcribe`].
    """
    waiting: deque[Row] = deque()

    def unheard() -> Iterator[Path | None]:
        for row in rows:
            settled = _without_hearing(row, unit, is_heard=whisper is not None)
            waiting.append(settled)
            must_be_heard = settled["wer_source"] == WHISPER and settled["wer"] is None
            yield Path(audio_folder, row["audio"]) if must_be_heard else None

    # Without a model every row is settled unheard.
    hypotheses = whisper.transcribe(unheard(), total) if whisper else (None for _ in unheard())
    for hypothesis in hypotheses:
        row = waiting.popleft()
        yield row if hypothesis is None else _against(row, hypothesis, WHISPER, whisper.name if whisper else None)


def _without_hearing(row: Row, unit: str | None, is_heard: bool) -> Row:
    """Return the row settled, or with `whisper` as its source and no word error if it must be heard."""
    own, hypothesis = row.get("wer"), row.get("pred_text")
    if not _is_missing(own):
        return _take_own(row, own, unit)
    if isinstance(hypothesis, str):
        return _against(row, hypothesis, HYPOTHESIS)
    if not is_heard:
        return _settled(row, problem="it has no 'wer', no 'pred_text', and no Whisper hears it")
    if not has_words(row["text"], normaliser_for(row.get("language"))):  # not worth hearing
        return _against(row, "", WHISPER)
    return _settled(row, source=WHISPER)


def _against(row: Row, hypothesis: str, source: str, model: str | None = None) -> Row:
    """Return the row with the word error of its transcript against a hypothesis."""
    normaliser = normaliser_for(row.get("language"))
    try:
        wer = clip_word_error(row["text"], hypothesis, normaliser)
    except ValueError as error:
        return _settled(row, row.get("pred_text"), problem=str(error))
    return _settled(row, hypothesis, wer, source, model, normaliser)


def _take_own(row: Row, own: Any, unit: str | None) -> Row:
    hypothesis = row.get("pred_text")
    try:
        wer = math.nan if isinstance(own, bool) else float(own)
    except (TypeError, ValueError):
        wer = math.nan
    if not 0 <= wer < math.inf:
        return _settled(row, hypothesis, problem=f"its word error is {own!r}; expected a number of percent, from 0 on")
    return _settled(row, hypothesis, round(100 * wer, PERCENT_DECIMALS) if unit == "fraction" else wer, DATASET)


def _is_missing(value: Any) -> bool:
    """Return whether a table has no value there: null, an empty text, or the NaN that tables write for it."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _settled(
    row: Row,
    pred_text: str | None = None,
    wer: float | None = None,
    source: str | None = None,
    model: str | None = None,
    normaliser: str | None = None,
    problem: str | None = None,
) -> Row:
    found = {"pred_text": pred_text, "wer": wer, "model": model, "normaliser": normaliser}
    return {**row, **found, "wer_source": source, "wer_problem": problem}


# ------------------------------------------------------------------------------------------------------------- options


@dataclass
class WordErrorArguments:
    """Limit of word error, and the Whisper that hears clips without one."""

    max_wer: float | None = field(
        default=None,
        metadata={
            "help": "Keep clips whose word error is at most so many percent: the corpus' own figure, or its own hypothesis or "
            "what Whisper hears against the transcript, both normalised. Default: all clips."
        },
    )
    whisper_path: str | None = field(
        default=None, metadata={"help": f"Whisper that hears clips: a Hub id or a folder. Default: {DEFAULT_WHISPER}."}
    )
    whisper_language: str | None = field(
        default=None, metadata={"help": "Language for a multilingual Whisper. Default: the one it finds."}
    )
    whisper_batch_size: int = field(default=8, metadata={"help": "Clips heard at once."})
    copy_punctuation: bool = field(
        default=False,
        metadata={
            "help": "Copy capitals and punctuation from what Whisper hears, where its words are those of a transcript that "
            "has none of its own, such as LibriSpeech's."
        },
    )

    def __post_init__(self):
        if self.max_wer is not None and not 0 <= self.max_wer < math.inf:
            raise ValueError(f"--max_wer is {self.max_wer}; expected percent, from 0 on: 5 is 5 %, 0 is no error.")
        for one in fields(self):
            if one.name.startswith("whisper_") and not self.needs_whisper and getattr(self, one.name) != one.default:
                raise ValueError(
                    f"--{one.name} needs --max_wer or --copy_punctuation; without them it would do nothing."
                )
        if self.whisper_batch_size < 1:
            raise ValueError(f"--whisper_batch_size is {self.whisper_batch_size}; expected 1 or more.")

    @property
    def needs_whisper(self) -> bool:
        """Return whether clips may have to be heard."""
        return self.copy_punctuation or self.max_wer is not None


class WordErrorFilter:
    """
    Filter of the second pass: completes rows with their word error, and says which are kept.

    Args:
        arguments: As on the command line.
        output: Folder of the prepared corpus; its state keeps what was heard.
        unit: Of the corpus' own word errors: percent (by default) or fraction.
    """

    def __init__(self, arguments: WordErrorArguments, output: Path, unit: str | None = None):
        self.arguments, self.output, self.unit = arguments, output, unit
        self.transcriber: WhisperTranscriber | None = None

    def settle(self, rows: Iterator[Row], total: int) -> Iterator[Row]:
        """Yield rows with the fields `pred_text`, `wer` (percent), `model`, `normaliser` and `wer_source`, as options ask."""
        arguments = self.arguments
        if arguments.copy_punctuation:
            rows = self._punctuated(rows, total)
        if arguments.max_wer is None:
            yield from (self._in_percent(row) for row in rows)
            return
        # Fields are spread out, with the row's own parts in one that no field is called.
        flat = ({**row["fields"], "text": row["text"], "audio": row["audio"], "": row} for row in rows)
        for found in settle_word_errors(flat, self.output, self._whisper(), self.unit, total):
            row = found[""]
            row["fields"] |= {name: found[name] for name in SETTLED_FIELDS}
            if found["wer_problem"] is not None:
                row["problem"] = f"has no word error for --max_wer: {found['wer_problem']}"
            yield row

    def is_kept(self, row: Row) -> bool:
        """Return whether a settled row becomes examples."""
        wer, limit = row["fields"].get("wer"), self.arguments.max_wer
        return limit is None or (wer is not None and wer <= limit)

    def _in_percent(self, row: Row) -> Row:
        wer = row["fields"].get("wer")
        if self.unit == "fraction" and isinstance(wer, float):
            row["fields"]["wer"] = round(100 * wer, PERCENT_DECIMALS)
        return row

    def _punctuated(self, rows: Iterator[Row], total: int) -> Iterator[Row]:
        waiting: deque[Row] = deque()

        def paths() -> Iterator[Path | None]:
            for row in rows:
                waiting.append(row)
                yield None if has_punctuation(row["text"]) else self.output / row["audio"]

        for heard in self._whisper().transcribe(paths(), total):
            row = waiting.popleft()
            yield row if heard is None else row | {"text": restore_from(row["text"], heard)}

    def _whisper(self) -> WhisperTranscriber:
        """Return the transcriber, made once when it is needed."""
        if self.transcriber is None:
            model = self.arguments.whisper_path or DEFAULT_WHISPER
            if model.startswith(EMBEDDED_PREFIX):
                fetch(model)
            self.transcriber = WhisperTranscriber(
                model,
                device="cuda" if torch.cuda.is_available() else "cpu",
                batch_size=self.arguments.whisper_batch_size,
                language=self.arguments.whisper_language,
                journal_folder=self.output / STATE_FOLDER / JOURNAL_FOLDER,
            )
        return self.transcriber

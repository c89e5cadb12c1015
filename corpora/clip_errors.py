"""
How wrong a clip's transcript is, in percent of its words: the figure that `--max_wer` keeps or drops clips by.

It comes from the corpus itself, from a hypothesis that the corpus brings, or from what a Whisper model hears.
"""

import math
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jiwer
from audiollm.processing.normalisers import NORMALISERS, has_words, normaliser_for

from .clips import CorpusError
from .columns import WER_UNITS
from .hypotheses import WhisperTranscriber

#: Where a word error may come from, best first: the corpus' own figure, its hypothesis, what Whisper hears.
DATASET, HYPOTHESIS, WHISPER = WORD_ERROR_SOURCES = ("dataset", "hypothesis", "whisper")
#: Chooses the normaliser by each row's `language`.
BY_LANGUAGE = "language"
#: What a corpus' own word error may be in; percent where it is not said, and then checked.
UNITS = tuple(WER_UNITS)
#: Own word errors that cannot be percent, with none that must be, after which a corpus is refused without reading on.
MAX_IMPOSSIBLE = 1000
#: Decimals that are kept when a fraction becomes percent: 100 * 0.07 is not 7 in binary.
PERCENT_DECIMALS = 9
#: Limits below this are more often meant as fractions: of a clip with fewer than 100 words they keep the perfect ones.
SMALLEST_USUAL_LIMIT = 1.0


def clip_word_error(reference: str, hypothesis: str, normaliser: str = "english") -> float:
    """
    Substitutions, deletions and insertions in percent of the reference's words, both sides normalised; it may exceed 100.

    What Whisper's normalisers leave out does not count: punctuation, and whatever stands in brackets, as `<unk>` or
    `[noise]`. With `characters` it is the character error.

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


def check_max_wer(max_wer: float) -> float:
    """
    A limit on word error, as it is.

    Raises:
        ValueError: it is not a number of percent that is finite and not negative.
    """
    if isinstance(max_wer, bool) or not isinstance(max_wer, (int, float)):
        raise ValueError(f"--max_wer is {max_wer!r}; expected a number, in percent.")
    if not math.isfinite(max_wer) or max_wer < 0:
        raise ValueError(
            f"--max_wer is {max_wer}; expected a finite number from 0 on, in percent: 5 is 5 %, 0 is none."
        )
    return float(max_wer)


def limit_hint(max_wer: float) -> str | None:
    """What to tell someone whose limit may be meant as a fraction; None of any other limit."""
    if not 0 < max_wer < SMALLEST_USUAL_LIMIT:
        return None
    return (
        f"--max_wer is in percent: {max_wer:g} keeps hardly any clip that has an error. If a fraction is meant, pass "
        f"--max_wer {100 * max_wer:g}."
    )


def is_kept(wer: float | None, max_wer: float) -> bool:
    """Whether a clip stays: its word error, in percent, is known and at most the limit."""
    return wer is not None and wer <= max_wer


def settle_word_errors(
    rows: Iterable[dict[str, Any]],
    audio_folder: str | os.PathLike[str],
    whisper: WhisperTranscriber | None = None,
    normaliser: str = BY_LANGUAGE,
    sources: Sequence[str] = WORD_ERROR_SOURCES,
    unit: str | None = None,
    total: int | None = None,
) -> Iterator[dict[str, Any]]:
    """
    Rows with their word error, in order, whatever the limit: another one needs none of this again.

    A row's word error is, of `sources` the first that it has: its own `wer`, as it is; its `pred_text` against its
    `text`; what Whisper hears in its `audio` against its `text`. Rows that come from here may be given again, with
    another normaliser too: what Whisper of the same name heard is not heard again.

    Args:
        rows: each with `text` and `audio`; `wer`, `pred_text` and `language` where they are known.
        audio_folder: where relative `audio` starts.
        whisper: hears what has neither `wer` nor `pred_text`.
        normaliser: a name of `NORMALISERS`, or `language` for the one that fits each row's language.
        sources: which to use, of `dataset`, `hypothesis` and `whisper`, in that order.
        unit: `percent` or `fraction`, which becomes percent, of the rows' own `wer`. None is percent, refused where
            it cannot be.
        total: how many rows there are, for the time left.

    Yields:
        The row with `pred_text`, `wer` (percent), `model` (what Whisper is called), `normaliser`, `wer_source` (one of
        the sources) and `wer_problem`. Where no word error is to be had, `wer` and `wer_source` are None and
        `wer_problem` says why. Of the corpus' own `wer`, model and normaliser are None.

    Raises:
        ValueError: no such normaliser, source or unit.
        CorpusError: the corpus' own word errors are fractions, and it was not said that they are.
        FileNotFoundError, AudioError: as [`WhisperTranscriber.transcribe`].
    """
    _check_options(normaliser, sources, unit)
    settling = _Settling(whisper.name if whisper else None, normaliser, sources, unit)
    waiting: deque[dict[str, Any]] = deque()

    def unheard() -> Iterator[Path | None]:
        for row in rows:
            settled = settling.without_hearing(row)
            waiting.append(settled)
            must_be_heard = settled["wer_source"] == WHISPER and settled["wer"] is None
            yield Path(audio_folder, row["audio"]) if must_be_heard else None

    # Without a model every row is settled unheard.
    hypotheses = whisper.transcribe(unheard(), total) if whisper else (None for _ in unheard())
    for hypothesis in hypotheses:
        row = waiting.popleft()
        yield row if hypothesis is None else settling.against(row, hypothesis, WHISPER)
    settling.check_unit()


def _check_options(normaliser: str, sources: Sequence[str], unit: str | None) -> None:
    for given, known, what in (
        (normaliser, (*NORMALISERS, BY_LANGUAGE), "normaliser"),
        (unit or UNITS[0], UNITS, "unit of word error"),
        *((source, WORD_ERROR_SOURCES, "source of word error") for source in sources or ("",)),
    ):
        if given not in known:
            raise ValueError(f"There is no {what} {given!r}; expected one of {', '.join(known)}.")


class _Settling:
    """The rule by which a row's word error is found, and what the corpus' own word errors looked like so far."""

    def __init__(self, model: str | None, normaliser: str, sources: Sequence[str], unit: str | None):
        self.model, self.normaliser, self.sources, self.unit = model, normaliser, sources, unit
        self.impossible, self.possible, self.example = 0, 0, ""

    def without_hearing(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row settled, or with `whisper` as its source and no word error where it must be heard."""
        before, model = row.get("wer_source"), row.get("model")
        own = None if before in (HYPOTHESIS, WHISPER) else row.get("wer")
        hypothesis = None if before == WHISPER else row.get("pred_text")
        if before == WHISPER and WHISPER in self.sources and self.model in (None, model):
            return self.against(row, row["pred_text"], WHISPER, model)
        if DATASET in self.sources and not _is_missing(own):
            return self._take_own(row, own)
        if HYPOTHESIS in self.sources and isinstance(hypothesis, str):
            return self.against(row, hypothesis, HYPOTHESIS)
        return self._hear(row)

    def _hear(self, row: dict[str, Any]) -> dict[str, Any]:
        if WHISPER not in self.sources or self.model is None:
            wanted = {DATASET: "no 'wer'", HYPOTHESIS: "no 'pred_text'", WHISPER: "no Whisper model to hear it"}
            return _settled(row, problem=f"it has {', '.join(wanted[source] for source in self.sources)}")
        normaliser = self._normaliser_of(row)
        if not has_words(row["text"], normaliser):  # not worth hearing
            return self.against(row, "", WHISPER)
        return _settled(row, source=WHISPER)

    def against(self, row: dict[str, Any], hypothesis: str, source: str, model: str | None = None) -> dict[str, Any]:
        """The row with the word error of its transcript against a hypothesis."""
        normaliser = self._normaliser_of(row)
        try:
            wer = clip_word_error(row["text"], hypothesis, normaliser)
        except ValueError as error:
            return _settled(row, pred_text=row.get("pred_text"), problem=str(error))
        model = (model or self.model) if source == WHISPER else None
        return _settled(row, hypothesis, wer, source, model, normaliser)

    def _normaliser_of(self, row: dict[str, Any]) -> str:
        return normaliser_for(row.get("language")) if self.normaliser == BY_LANGUAGE else self.normaliser

    def _take_own(self, row: dict[str, Any], own: Any) -> dict[str, Any]:
        hypothesis = row.get("pred_text")
        try:
            wer = math.nan if isinstance(own, bool) else float(own)
        except (TypeError, ValueError):
            wer = math.nan
        if not math.isfinite(wer) or wer < 0:
            problem = f"its word error is {own!r}; expected a number of percent, from 0 on"
            return _settled(row, hypothesis, problem=problem)
        if row.get("wer_source") != DATASET:
            wer = round(100 * wer, PERCENT_DECIMALS) if self.unit == "fraction" else wer
            self._look_at(row, wer)
        return _settled(row, hypothesis, wer, DATASET)

    def _look_at(self, row: dict[str, Any], wer: float) -> None:
        """Counts word errors smaller than one error in the whole transcript, which percent cannot be, and others."""
        words = len(str(row["text"]).split())
        if self.unit is not None or wer == 0 or words == 0:
            return
        if wer <= 1 and wer < 100 / (2 * words):  # half of it, because others may count words otherwise
            self.impossible += 1
            self.example = self.example or f"{wer:g} of a transcript of {words} words"
        else:
            self.possible += 1
        if self.impossible >= MAX_IMPOSSIBLE:
            self.check_unit()

    def check_unit(self) -> None:
        """Refuses word errors none of which can be percent."""
        if self.impossible and not self.possible:
            raise CorpusError(
                f"The word errors of this corpus look like fractions, not percent: the first is {self.example}, where "
                "one wrong word alone is more. Say which they are: --wer_unit fraction, or --wer_unit percent."
            )


def _is_missing(value: Any) -> bool:
    """Whether a table has no value there: null, an empty text, or the NaN that tables write for it."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _settled(
    row: dict[str, Any],
    pred_text: str | None = None,
    wer: float | None = None,
    source: str | None = None,
    model: str | None = None,
    normaliser: str | None = None,
    problem: str | None = None,
) -> dict[str, Any]:
    found = {"pred_text": pred_text, "wer": wer, "model": model, "normaliser": normaliser}
    return {**row, **found, "wer_source": source, "wer_problem": problem}


__all__ = [
    "BY_LANGUAGE",
    "UNITS",
    "WORD_ERROR_SOURCES",
    "check_max_wer",
    "clip_word_error",
    "is_kept",
    "limit_hint",
    "settle_word_errors",
]

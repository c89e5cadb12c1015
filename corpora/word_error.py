"""
Word error of a clip's transcript, in percent: the figure by which `--max_wer` keeps or drops clips.

It comes from the corpus itself, from a hypothesis that the corpus brings, or from what a Whisper model hears.
"""

import math
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import jiwer
import torch
from audiollm.base_models import EMBEDDED_PREFIX
from audiollm.corpora.normalisers import NORMALISERS, has_words, normaliser_for
from audiollm.embedded_bases import fetch

from .clips import STATE_FOLDER, CorpusError
from .columns import WER_UNITS
from .hypotheses import DEFAULT_WHISPER, WhisperTranscriber
from .letter_case import has_punctuation, restore_from
from .prepared_files import Row

#: Sources of a word error, best first: the corpus' own figure, its hypothesis, what Whisper hears.
DATASET, HYPOTHESIS, WHISPER = WORD_ERROR_SOURCES = ("dataset", "hypothesis", "whisper")
#: Chooses the normaliser by each row's `language`.
BY_LANGUAGE = "language"
#: Units of a corpus' own word error; percent where it is not said, and then checked.
UNITS = tuple(WER_UNITS)
#: Own word errors that cannot be percent, with none that must be, after which a corpus is refused without reading on.
MAX_IMPOSSIBLE = 1000
#: Decimals that are kept when a fraction becomes percent: 100 * 0.07 is not 7 in binary.
PERCENT_DECIMALS = 9
#: Limits below this are more often meant as fractions: of a clip with fewer than 100 words they keep the perfect ones.
SMALLEST_USUAL_LIMIT = 1.0
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
    normaliser: str = BY_LANGUAGE,
    sources: Sequence[str] = WORD_ERROR_SOURCES,
    unit: str | None = None,
    total: int | None = None,
) -> Iterator[Row]:
    """
    Yield rows with their word error, in order.

    A row's word error is the first that it has, of `sources`: its own `wer`; its `pred_text` against its `text`; what
    Whisper hears in its `audio` against its `text`.

    Args:
        rows: Each with `text` and `audio`; `wer`, `pred_text` and `language` where they are known.
        audio_folder: Where relative `audio` starts.
        whisper: Hears rows with neither `wer` nor `pred_text`.
        normaliser: A name of `NORMALISERS`, or `language` for the one that fits each row's language.
        sources: Of `dataset`, `hypothesis` and `whisper`, in that order.
        unit: `percent` or `fraction`, which becomes percent, of the rows' own `wer`. None is percent, refused where it
            cannot be.
        total: How many rows there are, for the time left.

    Yields:
        The row with `pred_text`, `wer` (percent), `model` (Whisper's name), `normaliser`, `wer_source` and `wer_problem`.
        Without a word error, `wer` and `wer_source` are None and `wer_problem` says why. With the corpus' own `wer`,
        model and normaliser are None.

    Raises:
        ValueError: no such normaliser, source or unit.
        CorpusError: the corpus' own word errors are fractions, and it was not said that they are.
        FileNotFoundError, AudioError: as [`WhisperTranscriber.transcribe`].
    """
    for given, known, what in (
        (normaliser, (*NORMALISERS, BY_LANGUAGE), "normaliser"),
        (unit or UNITS[0], UNITS, "unit of word error"),
        *((source, WORD_ERROR_SOURCES, "source of word error") for source in sources or ("",)),
    ):
        if given not in known:
            raise ValueError(f"There is no {what} {given!r}; expected one of {', '.join(known)}.")
    settling = _Settling(whisper.name if whisper else None, normaliser, sources, unit)
    waiting: deque[Row] = deque()

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


class _Settling:
    """Rule by which a row's word error is found, and what the corpus' own word errors looked like so far."""

    def __init__(self, model: str | None, normaliser: str, sources: Sequence[str], unit: str | None):
        self.model, self.normaliser, self.sources, self.unit = model, normaliser, sources, unit
        self.impossible, self.possible, self.example = 0, 0, ""

    def without_hearing(self, row: Row) -> Row:
        """Return the row settled, or with `whisper` as its source and no word error if it must be heard."""
        own, hypothesis = row.get("wer"), row.get("pred_text")
        if DATASET in self.sources and not _is_missing(own):
            return self._take_own(row, own)
        if HYPOTHESIS in self.sources and isinstance(hypothesis, str):
            return self.against(row, hypothesis, HYPOTHESIS)
        if WHISPER not in self.sources or self.model is None:
            wanted = {DATASET: "no 'wer'", HYPOTHESIS: "no 'pred_text'", WHISPER: "no Whisper model to hear it"}
            return _settled(row, problem=f"it has {', '.join(wanted[source] for source in self.sources)}")
        if not has_words(row["text"], self._normaliser_of(row)):  # not worth hearing
            return self.against(row, "", WHISPER)
        return _settled(row, source=WHISPER)

    def against(self, row: Row, hypothesis: str, source: str) -> Row:
        """Return the row with the word error of its transcript against a hypothesis."""
        normaliser = self._normaliser_of(row)
        try:
            wer = clip_word_error(row["text"], hypothesis, normaliser)
        except ValueError as error:
            return _settled(row, row.get("pred_text"), problem=str(error))
        return _settled(row, hypothesis, wer, source, self.model if source == WHISPER else None, normaliser)

    def _normaliser_of(self, row: Row) -> str:
        return normaliser_for(row.get("language")) if self.normaliser == BY_LANGUAGE else self.normaliser

    def _take_own(self, row: Row, own: Any) -> Row:
        hypothesis = row.get("pred_text")
        try:
            wer = math.nan if isinstance(own, bool) else float(own)
        except (TypeError, ValueError):
            wer = math.nan
        if not 0 <= wer < math.inf:
            problem = f"its word error is {own!r}; expected a number of percent, from 0 on"
            return _settled(row, hypothesis, problem=problem)
        wer = round(100 * wer, PERCENT_DECIMALS) if self.unit == "fraction" else wer
        self._look_at(row, wer)
        return _settled(row, hypothesis, wer, DATASET)

    def _look_at(self, row: Row, wer: float) -> None:
        """Count word errors smaller than one error in the whole transcript, which percent cannot be, and others."""
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
        """Refuse word errors none of which can be percent."""
        if self.impossible and not self.possible:
            raise CorpusError(
                f"The word errors of this corpus look like fractions, not percent: the first is {self.example}, where one "
                "wrong word alone is more. Give --wer_unit fraction or --wer_unit percent."
            )


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
    """Which clips are kept, by how wrong their transcripts are."""

    max_wer: float | None = field(
        default=None,
        metadata={
            "help": "Keep clips whose word error is at most so many percent: the corpus' own figure, or its own hypothesis or "
            "what Whisper hears against the transcript, both normalised. Default: all clips."
        },
    )
    wer_from: list[str] = field(
        default_factory=lambda: list(WORD_ERROR_SOURCES),
        metadata={
            "help": "Sources of word errors, best first: dataset (the corpus' own), hypothesis (a transcript by another "
            "model that it brings), whisper."
        },
    )
    wer_normaliser: str = field(
        default=BY_LANGUAGE,
        metadata={
            "help": f"Makes texts alike before words are compared: {', '.join(NORMALISERS)}, or language, the one that fits "
            "each clip's language."
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
        defaults = {one.name: one.default for one in fields(self)} | {"wer_from": list(WORD_ERROR_SOURCES)}
        whisper = ("whisper_path", "whisper_language", "whisper_batch_size")
        for names, is_used, what in (
            (("wer_from", "wer_normaliser"), self.max_wer is not None, "--max_wer"),
            (whisper, self.needs_whisper, "--max_wer with whisper in --wer_from, or --copy_punctuation"),
        ):
            for name in names:
                if not is_used and getattr(self, name) != defaults[name]:
                    raise ValueError(f"--{name} needs {what}; without it, it would do nothing.")
        normalisers = (*NORMALISERS, BY_LANGUAGE)
        if self.wer_normaliser not in normalisers:
            raise ValueError(f"--wer_normaliser is {self.wer_normaliser!r}; expected one of {', '.join(normalisers)}.")
        unknown = [name for name in self.wer_from if name not in WORD_ERROR_SOURCES]
        if unknown or not self.wer_from:
            raise ValueError(f"--wer_from is {self.wer_from}; expected some of {', '.join(WORD_ERROR_SOURCES)}.")
        if self.whisper_batch_size < 1:
            raise ValueError(f"--whisper_batch_size is {self.whisper_batch_size}; expected 1 or more.")

    @property
    def needs_whisper(self) -> bool:
        """Return whether clips may have to be heard."""
        return self.copy_punctuation or (self.max_wer is not None and WHISPER in self.wer_from)

    @property
    def uses_own_figures(self) -> bool:
        """Return whether the corpus' own word errors decide, so that their unit matters."""
        return self.max_wer is not None and DATASET in self.wer_from


class WordErrorFilter:
    """
    Filter of the second pass: completes rows with their word error, and says which are kept.

    Args:
        arguments: As on the command line.
        output: Folder of the prepared corpus; its state keeps what was heard.
        unit: Of the corpus' own word errors: percent, fraction, or None for percent unless it cannot be.
    """

    def __init__(self, arguments: WordErrorArguments, output: Path, unit: str | None = None):
        if unit not in (None, *UNITS):
            raise ValueError(f"--wer_unit {unit!r}: expected {' or '.join(UNITS)}.")
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
        whisper = self._whisper() if WHISPER in arguments.wer_from else None
        # Fields are spread out, with the row's own parts in one that no field is called.
        flat = ({**row["fields"], "text": row["text"], "audio": row["audio"], "": row} for row in rows)
        for found in settle_word_errors(
            flat, self.output, whisper, arguments.wer_normaliser, arguments.wer_from, self.unit, total
        ):
            row = found[""]
            row["fields"] |= {name: found[name] for name in SETTLED_FIELDS}
            if found["wer_problem"] is not None:
                row["problem"] = f"has no word error for --max_wer: {found['wer_problem']}"
            yield row

    def is_kept(self, row: Row) -> bool:
        """Return whether a settled row becomes examples."""
        wer, limit = row["fields"].get("wer"), self.arguments.max_wer
        return limit is None or (wer is not None and wer <= limit)

    def hint(self) -> str | None:
        """Return what to tell someone whose limit may be meant as a fraction."""
        limit = self.arguments.max_wer
        if limit is None or not 0 < limit < SMALLEST_USUAL_LIMIT:
            return None
        return (
            f"--max_wer is in percent: {limit:g} keeps hardly any clip that has an error. If a fraction is meant, pass "
            f"--max_wer {100 * limit:g}."
        )

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


__all__ = [
    "UNITS",
    "WORD_ERROR_SOURCES",
    "WordErrorArguments",
    "WordErrorFilter",
    "clip_word_error",
    "settle_word_errors",
]

"""
Word and character error by any normaliser, as jiwer counts them, or kaldialign for the leaderboard.

The Open ASR Leaderboard's convention is `normaliser="leaderboard"`: its own normaliser and rule of which references count,
and kaldialign, to which split compounds ("white paper" for "whitepaper") are right.
"""

import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import jiwer
import yaml
from audiollm.corpora.normalisers import NORMALISERS as BASIC_NORMALISERS
from transformers.models.whisper.english_normalizer import EnglishSpellingNormalizer, EnglishTextNormalizer

TABLES_FILE = Path(__file__).parent / "open_asr_leaderboard" / "english.yaml"
#: Pattern that Whisper's own normaliser replaces everywhere, and the leaderboard only after some words.
IS_CONTRACTION = r"'s\b"
#: A normalised reference that is not to be scored (of TED-LIUM's format).
IGNORED_SEGMENT = "ignore time segment in scoring"
#: Letters that are words, so that only longer runs of single characters are held to be an acronym.
ONE_LETTER_WORDS = frozenset("ai")
MIN_ACRONYM, MIN_ACRONYM_WITH_WORDS = 2, 3
LEADERBOARD = "leaderboard"
#: Units that errors are counted in; also the normaliser that makes every character a word, between spaces of its own.
WORDS, CHARACTERS = "words", "characters"
JIWER, KALDIALIGN = "jiwer", "kaldialign"
#: Reasons for which a reference is left out.
EMPTY_REFERENCE, IGNORED_REFERENCE = "skipped_empty_reference", "skipped_ignored_segment"


def join_acronyms(text: str) -> str:
    """
    Return a text with runs of single letters and digits as one word: `b b c` is `bbc`; with `a` or `i`, which are words, a
    run takes three: `a b` stays, `a b c` becomes `abc`.
    """
    words: list[str] = []
    run: list[str] = []
    for word in [*text.split(), ""]:
        if len(word) == 1 and word.isalnum():
            run.append(word)
            continue
        shortest = MIN_ACRONYM if ONE_LETTER_WORDS.isdisjoint(run) else MIN_ACRONYM_WITH_WORDS
        words += ["".join(run)] if len(run) >= shortest else run
        words.append(word)
        run = []
    return " ".join(words[:-1])


@lru_cache(maxsize=1)
def _normaliser() -> EnglishTextNormalizer:
    """Whisper's English normaliser with the leaderboard's additions: more fillers and compounds, names, acronyms."""
    tables = yaml.safe_load(TABLES_FILE.read_text(encoding="utf-8"))
    normaliser: Any = EnglishTextNormalizer(tables["spellings"])
    normaliser.ignore_patterns = rf"\b({'|'.join(tables['ignored'])})\b"
    is_after_word = rf"\b({'|'.join(tables['followed_by_is'])})'s\b"
    renamed = {IS_CONTRACTION: (is_after_word, r"\1 is")}
    normaliser.replacers = dict(
        renamed.get(pattern, (pattern, with_)) for pattern, with_ in normaliser.replacers.items()
    )
    compounds = [(re.compile(pattern), replacement) for pattern, replacement in tables["compounds"].items()]
    numbers, spellings = normaliser.standardize_numbers, normaliser.standardize_spellings
    names = EnglishSpellingNormalizer(tables["names"])

    def compounds_and_numbers(text: str) -> str:
        for pattern, replacement in compounds:
            text = pattern.sub(replacement, text)
        return numbers(text)

    normaliser.standardize_numbers = compounds_and_numbers
    normaliser.standardize_spellings = lambda text: join_acronyms(names(spellings(text)))
    return normaliser


def normalize_leaderboard(text: str) -> str:
    """Return a text as `normalizer.EnglishTextNormalizer` of huggingface/open_asr_leaderboard does (commit d1e99b2)."""
    return _normaliser()(text)


#: Normalisers by name: that of the Open ASR Leaderboard, and those of `audiollm.corpora.normalisers`.
NORMALISERS: dict[str, Callable[[str], str]] = {**BASIC_NORMALISERS, LEADERBOARD: normalize_leaderboard}


@dataclass(frozen=True)
class WordErrorScore:
    """A corpus' word error rate and what it is made of."""

    word_error: float  # substitutions, deletions and insertions over reference words; a fraction, which can exceed 1
    substitutions: int  # as the next ones, a count over the corpus
    deletions: int
    insertions: int
    reference_words: int
    clips: int  # pairs scored
    skipped: int  # pairs whose reference has no word once normalised, which are left out

    def to_dict(self) -> dict[str, float | int]:
        """Return the fields, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class TextErrors:
    """Errors of one hypothesis, in words or characters."""

    reference: str  # the texts as compared, normalised
    hypothesis: str
    length: int = 0  # of the reference
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    skipped: str | None = None  # reason for which the pair does not count; None where it does

    @property
    def errors(self) -> int:
        """All of them."""
        return self.substitutions + self.deletions + self.insertions


def optional_library(name: str, extra: str) -> ModuleType:
    """Return a library of one of this package's extras; an ImportError names the extra if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f'{name} is missing: {error}. `pip install "audiollm[{extra}]"` installs it.') from error


def aligner_for(normaliser: str, unit: str = WORDS) -> str:
    """Return the aligner of a normaliser: kaldialign for words by the leaderboard's, jiwer otherwise."""
    return KALDIALIGN if normaliser == LEADERBOARD and unit == WORDS else JIWER


def word_errors(
    references: Sequence[str], hypotheses: Sequence[str], normaliser: str = "english", unit: str = WORDS
) -> list[TextErrors]:
    """
    Return word or character errors of each pair, both sides normalised.

    Spaces between words are characters, as in jiwer; those that the normaliser "characters" makes are not.

    Args:
        references, hypotheses: texts that were said and heard, one each; ValueError if they differ in number.
        normaliser: a name of `NORMALISERS`; it decides the aligner, see [`aligner_for`].
        unit: `WORDS` or `CHARACTERS`.
    """
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references but {len(hypotheses)} hypotheses; expected one each.")
    if normaliser not in NORMALISERS:
        raise ValueError(f"There is no normaliser {normaliser!r}; expected one of {', '.join(NORMALISERS)}.")
    normalise = NORMALISERS[normaliser]
    return [_errors(normalise(one), normalise(other), normaliser, unit) for one, other in zip(references, hypotheses)]


def _errors(reference: str, hypothesis: str, normaliser: str, unit: str) -> TextErrors:
    """Return the errors of a pair of normalised texts."""
    skipped = None
    if reference.strip().lower() == IGNORED_SEGMENT:
        skipped = IGNORED_REFERENCE
    elif not (reference.strip() if normaliser == LEADERBOARD else any(map(str.isalnum, reference))):
        skipped = EMPTY_REFERENCE
    if unit == CHARACTERS:
        space = "" if normaliser == CHARACTERS else " "
        reference, hypothesis = space.join(reference.split()), space.join(hypothesis.split())
    if skipped is not None:
        return TextErrors(reference, hypothesis, skipped=skipped)
    if aligner_for(normaliser, unit) == KALDIALIGN:
        edit_distance = optional_library("kaldialign", "evaluation").edit_distance
        found = edit_distance(reference.split(), hypothesis.split(), merge_compounds=True)
        return TextErrors(reference, hypothesis, found["ref_len"], found["sub"], found["del"], found["ins"])
    process = jiwer.process_characters if unit == CHARACTERS else jiwer.process_words
    counted = process(reference, hypothesis)
    wrong, missing = counted.substitutions, counted.deletions
    return TextErrors(reference, hypothesis, counted.hits + wrong + missing, wrong, missing, counted.insertions)


def score_word_error(
    references: Sequence[str], hypotheses: Sequence[str], normaliser: str = "english"
) -> WordErrorScore:
    """
    Return the word error of a whole corpus, both sides normalised; for arguments and errors, see [`word_errors`].

    ValueError is also raised if no reference has a word.
    """
    pairs = word_errors(references, hypotheses, normaliser)
    scored = [pair for pair in pairs if pair.skipped is None]
    names = ("substitutions", "deletions", "insertions", "length")
    wrong, missing, added, words = (sum(getattr(pair, name) for pair in scored) for name in names)
    if not words:
        raise ValueError("No reference has a word left after normalisation; there is nothing to score.")
    rate = (wrong + missing + added) / words
    return WordErrorScore(rate, wrong, missing, added, words, clips=len(scored), skipped=len(pairs) - len(scored))


def convention(unit: str, normaliser: str) -> str:
    """Return the signature of a figure, as sacreBLEU writes them: `unit:words|normaliser:...|aligner:...`."""
    aligner = aligner_for(normaliser, unit)
    signature = f"unit:{unit}|normaliser:{normaliser}|aligner:{aligner}-{metadata.version(aligner)}"
    return f"{signature}|compounds:merged" if aligner == KALDIALIGN else signature

"""
Word and character error by any normaliser, as jiwer counts them, or kaldialign for the leaderboard.

The Open ASR Leaderboard's convention is `normaliser="leaderboard"`: its own normaliser, and kaldialign, to which split
compounds ("white paper" for "whitepaper") are right.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata

import jiwer
from audiollm.corpora.normalisers import NORMALISERS as BASIC_NORMALISERS

from .leaderboard import IGNORED_SEGMENT, normalize_leaderboard
from .optional import optional_library

LEADERBOARD = "leaderboard"
#: What makes texts alike before they are compared, by name: that of the Open ASR Leaderboard, and those of
#: `audiollm.corpora.normalisers`.
NORMALISERS: dict[str, Callable[[str], str]] = {**BASIC_NORMALISERS, LEADERBOARD: normalize_leaderboard}
#: The normaliser that makes every character a word, between spaces of its own.
CHARACTERS = "characters"
JIWER, KALDIALIGN = "jiwer", "kaldialign"
#: Why a reference is left out.
EMPTY_REFERENCE, IGNORED_REFERENCE = "skipped_empty_reference", "skipped_ignored_segment"


@dataclass(frozen=True)
class WordErrorScore:
    """
    A corpus' word error rate and what it is made of.

    Attributes:
        word_error: substitutions, deletions and insertions over reference words; a fraction, which can exceed 1.
        substitutions, deletions, insertions, reference_words: counts over the corpus.
        clips: pairs scored. skipped: pairs whose reference has no word once normalised, which are left out.
    """

    word_error: float
    substitutions: int
    deletions: int
    insertions: int
    reference_words: int
    clips: int
    skipped: int

    def to_dict(self) -> dict[str, float | int]:
        """Return the fields, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class TextErrors:
    """
    Errors of one hypothesis.

    Attributes:
        reference, hypothesis: the texts as compared, normalised.
        length: words, or characters, of the reference.
        substitutions, deletions, insertions: words, or characters.
        skipped: why the pair does not count, `EMPTY_REFERENCE` or `IGNORED_REFERENCE`; None where it does.
    """

    reference: str
    hypothesis: str
    length: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    skipped: str | None = None

    @property
    def errors(self) -> int:
        """All of them."""
        return self.substitutions + self.deletions + self.insertions


def check_normaliser(normaliser: str) -> None:
    """
    Raises:
        ValueError: there is no such normaliser.
    """
    if normaliser not in NORMALISERS:
        raise ValueError(f"There is no normaliser {normaliser!r}; expected one of {', '.join(NORMALISERS)}.")


def aligner_for(normaliser: str) -> str:
    """Return the aligner that belongs to a normaliser: kaldialign to the leaderboard's, jiwer to any other."""
    return KALDIALIGN if normaliser == LEADERBOARD else JIWER


def word_errors(references: Sequence[str], hypotheses: Sequence[str], normaliser: str = "english") -> list[TextErrors]:
    """
    Return word errors of each pair, both sides normalised.

    Args:
        references, hypotheses: what was said and what was heard, one each.
        normaliser: a name of `NORMALISERS`; it decides the aligner, see [`aligner_for`].

    Raises:
        ValueError: the lists differ in length, or there is no such normaliser.
        ImportError: kaldialign is not installed.
    """
    pairs, scored = _normalised(references, hypotheses, normaliser)
    chosen = [pairs[index] for index in scored]
    if aligner_for(normaliser) == KALDIALIGN:
        counts = _kaldialign_counts(chosen)
    else:
        counts = _jiwer_counts(jiwer.process_words, chosen)
    return _text_errors(pairs, dict(zip(scored, counts)), normaliser)


def character_errors(
    references: Sequence[str], hypotheses: Sequence[str], normaliser: str = "basic"
) -> list[TextErrors]:
    """
    Return character errors of each pair, both sides normalised, aligned by jiwer.

    Spaces between words are characters, as in jiwer; those that the normaliser "characters" puts between characters are
    not.

    Raises:
        ValueError: the lists differ in length, or there is no such normaliser.
    """
    pairs, scored = _normalised(references, hypotheses, normaliser)
    if normaliser == CHARACTERS:
        pairs = [("".join(reference.split()), "".join(hypothesis.split())) for reference, hypothesis in pairs]
    else:
        pairs = [(" ".join(reference.split()), " ".join(hypothesis.split())) for reference, hypothesis in pairs]
    counts = _jiwer_counts(jiwer.process_characters, [pairs[index] for index in scored])
    return _text_errors(pairs, dict(zip(scored, counts)), normaliser)


def _normalised(
    references: Sequence[str], hypotheses: Sequence[str], normaliser: str
) -> tuple[list[tuple[str, str]], list[int]]:
    """Return pairs as they are compared, and the places of those that count."""
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references but {len(hypotheses)} hypotheses; expected one each.")
    check_normaliser(normaliser)
    normalise = NORMALISERS[normaliser]
    pairs = [(normalise(reference), normalise(hypothesis)) for reference, hypothesis in zip(references, hypotheses)]
    return pairs, [index for index, (reference, _) in enumerate(pairs) if _why_skipped(reference, normaliser) is None]


def _why_skipped(reference: str, normaliser: str) -> str | None:
    """Return why a normalised reference does not count: the leaderboard's rule for its normaliser; else, that it has no word."""
    if reference.strip().lower() == IGNORED_SEGMENT:
        return IGNORED_REFERENCE
    has_any = bool(reference.strip()) if normaliser == LEADERBOARD else any(map(str.isalnum, reference))
    return None if has_any else EMPTY_REFERENCE


Counts = tuple[int, int, int, int]


def _text_errors(pairs: Sequence[tuple[str, str]], counts: dict[int, Counts], normaliser: str) -> list[TextErrors]:
    return [
        TextErrors(*pair, *counts[index])
        if index in counts
        else TextErrors(*pair, skipped=_why_skipped(pair[0], normaliser) or EMPTY_REFERENCE)
        for index, pair in enumerate(pairs)
    ]


def _jiwer_counts(process: Callable, pairs: Sequence[tuple[str, str]]) -> list[Counts]:
    """Return length, substitutions, deletions and insertions of each pair."""
    if not pairs:
        return []
    result = process([reference for reference, _ in pairs], [hypothesis for _, hypothesis in pairs])
    counts = []
    for reference, chunks in zip(result.references, result.alignments):
        found = {"substitute": 0, "delete": 0, "insert": 0}
        for chunk in chunks:
            if chunk.type in found:
                spans = (chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
                found[chunk.type] += max(spans)
        counts.append((len(reference), found["substitute"], found["delete"], found["insert"]))
    return counts


def _kaldialign_counts(pairs: Sequence[tuple[str, str]]) -> list[Counts]:
    """Return length, substitutions, deletions and insertions of each pair, word for word."""
    edit_distance = optional_library("kaldialign", "evaluation").edit_distance
    found = [
        edit_distance(reference.split(), hypothesis.split(), merge_compounds=True) for reference, hypothesis in pairs
    ]
    return [(each["ref_len"], each["sub"], each["del"], each["ins"]) for each in found]


def score_word_error(
    references: Sequence[str], hypotheses: Sequence[str], normaliser: str = "english"
) -> WordErrorScore:
    """
    Return the word error of a whole corpus, both sides normalised; for the arguments, see [`word_errors`].

    Raises:
        ValueError: the lists differ in length, no reference has a word, or there is no such normaliser.
        ImportError: kaldialign is not installed.
    """
    pairs = word_errors(references, hypotheses, normaliser)
    scored = [pair for pair in pairs if pair.skipped is None]
    words = sum(pair.length for pair in scored)
    if not words:
        raise ValueError("No reference has a word left after normalisation; there is nothing to score.")
    return WordErrorScore(
        word_error=sum(pair.errors for pair in scored) / words,
        substitutions=sum(pair.substitutions for pair in scored),
        deletions=sum(pair.deletions for pair in scored),
        insertions=sum(pair.insertions for pair in scored),
        reference_words=words,
        clips=len(scored),
        skipped=len(pairs) - len(scored),
    )


def convention(unit: str, normaliser: str, aligner: str = JIWER) -> str:
    """Return what a figure was counted by, in one line, as sacreBLEU's signatures: `unit:words|normaliser:...|aligner:...`."""
    parts = {"unit": unit, "normaliser": normaliser, "aligner": f"{aligner}-{metadata.version(aligner)}"}
    if aligner == KALDIALIGN:
        parts["compounds"] = "merged"
    return "|".join(f"{name}:{value}" for name, value in parts.items())

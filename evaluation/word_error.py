"""Word error rate, by the convention of the Open ASR Leaderboard's normaliser: Whisper's English one."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import jiwer
from audiollm.processing.normalisers import NORMALISERS, has_words


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
        """For JSON."""
        return asdict(self)


def score_word_error(
    references: Sequence[str], hypotheses: Sequence[str], normaliser: str = "english"
) -> WordErrorScore:
    """
    Word error of a whole corpus, both sides normalised, aligned by jiwer.

    Args:
        references, hypotheses: what was said and what was heard, one each.
        normaliser: a name of `NORMALISERS`.

    Raises:
        ValueError: the lists differ in length, or no reference has a word.
        KeyError: there is no such normaliser.
    """
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references but {len(hypotheses)} hypotheses; expected one each.")
    normalise = NORMALISERS[normaliser]
    pairs = [(normalise(r), normalise(h)) for r, h in zip(references, hypotheses)]
    scored = [(reference, hypothesis) for reference, hypothesis in pairs if any(map(str.isalnum, reference))]
    if not scored:
        raise ValueError("No reference has a word left after normalisation; there is nothing to score.")
    result = jiwer.process_words([r for r, _ in scored], [h for _, h in scored])
    return WordErrorScore(
        word_error=result.wer,
        substitutions=result.substitutions,
        deletions=result.deletions,
        insertions=result.insertions,
        reference_words=result.hits + result.substitutions + result.deletions,
        clips=len(scored),
        skipped=len(pairs) - len(scored),
    )


__all__ = ["WordErrorScore", "has_words", "score_word_error"]

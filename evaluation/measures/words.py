"""Word error and character error of a set of answers."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from ..word_error import (
    JIWER,
    TextErrors,
    character_errors,
    convention,
    word_errors,
)
from .measure import FRACTION, Answer, Convention, Measured

#: Texts as they are written: words with their capitals and punctuation.
AS_WRITTEN = "none"


def word_error(answers: Sequence[Answer], by: Convention) -> Measured:
    """Corpus word error; see [`audiollm.evaluation.word_error.word_errors`]."""
    errors = word_errors(*_texts(answers), normaliser=by.normaliser, aligner=by.aligner)
    return _measured(answers, errors, "words", convention("words", by.normaliser, by.aligner))


def plain_word_error(answers: Sequence[Answer], by: Convention) -> Measured:
    """Corpus word error of texts as they are written, nothing made alike."""
    errors = word_errors(*_texts(answers), normaliser=AS_WRITTEN, aligner=JIWER)
    measured = _measured(answers, errors, "words", convention("words", AS_WRITTEN, JIWER))
    return Measured(measured.statistics, measured.ids, FRACTION, measured.signature, dropped=measured.dropped)


def character_error(answers: Sequence[Answer], by: Convention) -> Measured:
    """Corpus character error; see [`audiollm.evaluation.word_error.character_errors`]."""
    errors = character_errors(*_texts(answers), normaliser=by.normaliser)
    return _measured(answers, errors, "characters", convention("characters", by.normaliser, JIWER))


def _texts(answers: Sequence[Answer]) -> tuple[list[str], list[str]]:
    return [answer.reference for answer in answers], [answer.text for answer in answers]


def _measured(answers: Sequence[Answer], errors: Sequence[TextErrors], unit: str, signature: str) -> Measured:
    scored = [(answer.id, found) for answer, found in zip(answers, errors) if found.skipped is None]
    prefix = "" if unit == "words" else "character_"
    items = {
        one: {
            "normalised_reference": found.reference,
            "normalised_output": found.hypothesis,
            f"{prefix}errors": found.errors,
            unit: found.length,
            f"{prefix}substitutions": found.substitutions,
            f"{prefix}deletions": found.deletions,
            f"{prefix}insertions": found.insertions,
        }
        for one, found in scored
    }
    return Measured(
        statistics=np.array([(found.errors, found.length) for _, found in scored], dtype=np.float64).reshape(-1, 2),
        ids=[one for one, _ in scored],
        unit=FRACTION,
        signature=signature,
        items=items,
        dropped=Counter(found.skipped for found in errors if found.skipped is not None),
    )


__all__ = ["character_error", "plain_word_error", "word_error"]

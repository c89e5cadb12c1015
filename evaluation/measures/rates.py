"""Rates and marks that need no right answer: a judge's marks, speech heard in silence, what a full fine-tune did to text."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..word_error import has_words
from .measure import FRACTION, POINTS, RATIO, Answer, Convention, Measured, mean_of

#: Of a verdict's `scores`: the mark of the answer, whatever else is marked beside it.
ANSWER_MARK = "answer"
#: What a transcript must hold for it to be one, whatever its language: a letter or digit.
ANY_LANGUAGE = "basic"
#: Of an item's `extra`, as the retention system measures it.
TOKENS, NEGATIVE_LOG_LIKELIHOOD, SAME_LOGITS = "tokens", "negative_log_likelihood", "same_logits_as_base"


def mark_of(verdict: Mapping[str, Any]) -> float | None:
    """The mark that a verdict gives the answer; None where the judge failed or its reply could not be read."""
    scores = verdict.get("scores") or {}
    mark = scores.get(ANSWER_MARK)
    return None if mark is None else float(mark)


def judge_score(answers: Sequence[Answer], by: Convention) -> Measured:
    """
    Mean over answers of the mean of their verdicts' marks: over both orders, or all samples.

    Answers without a verdict that gives a mark do not count; they and the verdicts that failed are counted.
    """
    marks = {answer.id: [mark_of(verdict) for verdict in answer.verdicts] for answer in answers}
    given = {one: [mark for mark in each if mark is not None] for one, each in marks.items()}
    scores = {one: float(np.mean(each)) for one, each in given.items() if each}
    failed = sum(len(each) for each in marks.values()) - sum(len(each) for each in given.values())
    dropped = {"unjudged": len(answers) - len(scores), "judge_failures": failed}
    orders = sorted({str(verdict.get("order")) for answer in answers for verdict in answer.verdicts})
    signature = f"mean of verdicts|orders:{'+'.join(orders) or 'none'}"
    return mean_of(scores, POINTS, signature, dropped={reason: count for reason, count in dropped.items() if count})


def no_speech_rate(answers: Sequence[Answer], by: Convention) -> Measured:
    """Share of clips without speech in which some is heard: transcripts with a letter or digit in them."""
    heard = {answer.id: has_words(answer.text, ANY_LANGUAGE) for answer in answers}
    return mean_of(
        {one: float(each) for one, each in heard.items()},
        FRACTION,
        "transcripts with a letter or digit",
        items={one: {"heard_speech": each, "score": float(each)} for one, each in heard.items()},
    )


def bitwise_equal(answers: Sequence[Answer], by: Convention) -> Measured:
    """Share of texts whose logits are the base model's in every bit."""
    same = {answer.id: answer.extra[SAME_LOGITS] for answer in answers if answer.extra.get(SAME_LOGITS) is not None}
    missing = len(answers) - len(same)
    return mean_of(
        {one: float(each) for one, each in same.items()},
        FRACTION,
        "torch.equal of logits",
        items={one: {SAME_LOGITS: each} for one, each in same.items()},
        dropped={"not_compared": missing} if missing else {},
    )


def perplexity(answers: Sequence[Answer], by: Convention) -> Measured:
    """Perplexity per token over all texts: exp of the summed negative log likelihood (nats) over the tokens foretold."""
    measured = [answer for answer in answers if answer.extra.get(NEGATIVE_LOG_LIKELIHOOD) is not None]
    rows = [(float(answer.extra[NEGATIVE_LOG_LIKELIHOOD]), float(answer.extra[TOKENS])) for answer in measured]
    missing = len(answers) - len(measured)
    return Measured(
        statistics=np.array(rows, dtype=np.float64).reshape(-1, 2),
        ids=[answer.id for answer in measured],
        unit=RATIO,
        signature="per token, all texts pooled",
        pooled=perplexity_of_sums,
        items={answer.id: {NEGATIVE_LOG_LIKELIHOOD: row[0], TOKENS: row[1]} for answer, row in zip(measured, rows)},
        dropped={"not_measured": missing} if missing else {},
    )


def perplexity_of_sums(sums: np.ndarray) -> np.ndarray:
    """Perplexities `(...)` of summed nats and tokens `(..., 2)`; NaN where there is no token."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.where(sums[..., 1] > 0, np.exp(sums[..., 0] / sums[..., 1]), np.nan)


__all__ = ["bitwise_equal", "judge_score", "mark_of", "no_speech_rate", "perplexity", "perplexity_of_sums"]

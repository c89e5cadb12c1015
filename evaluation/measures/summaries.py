"""ROUGE, by Google's rouge_score: F1 of each summary against the reference it is closest to, averaged."""

from collections.abc import Sequence
from functools import partial
from importlib import metadata

from ..optional import optional_library
from .measure import FRACTION, Answer, Convention, Measured, mean_of

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def rouge_scores(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    rouge_types: Sequence[str] = ROUGE_TYPES,
    use_stemmer: bool = True,
) -> list[dict[str, float]]:
    """
    F1 of every summary, by ROUGE type; of several references, the one with the highest F1 counts.

    Args:
        predictions: summaries. references: one or more of each.
        rouge_types: names as rouge_score has them.
        use_stemmer: compare stems of words (Porter), as papers do that follow ROUGE-1.5.5's `-m`.

    Raises:
        ImportError: rouge_score is not installed.
        ValueError: they differ in number, or a summary has no reference.
    """
    if len(predictions) != len(references):
        raise ValueError(f"{len(references)} references but {len(predictions)} summaries; expected one each.")
    if not all(references):
        raise ValueError("A summary has no reference; expected one or more of each.")
    scorer = optional_library("rouge_score.rouge_scorer", "evaluation").RougeScorer(list(rouge_types), use_stemmer)
    found = (scorer.score_multi(list(right), said) for right, said in zip(references, predictions))
    return [{name: score.fmeasure for name, score in each.items()} for each in found]


def _rouge(rouge_type: str, answers: Sequence[Answer], by: Convention) -> Measured:
    kept = [(answer, [text for text in answer.references if text.strip()]) for answer in answers]
    kept = [(answer, references) for answer, references in kept if references]
    scores = rouge_scores([answer.text for answer, _ in kept], [references for _, references in kept], [rouge_type])
    dropped = {"skipped_empty_reference": len(answers) - len(kept)} if len(kept) < len(answers) else {}
    signature = f"{rouge_type}|f1|stemmer:yes|rouge_score-{metadata.version('rouge_score')}"
    by_id = {answer.id: each[rouge_type] for (answer, _), each in zip(kept, scores)}
    return mean_of(by_id, FRACTION, signature, dropped=dropped)


#: How each type is measured, by its name.
ROUGE = {rouge_type: partial(_rouge, rouge_type) for rouge_type in ROUGE_TYPES}

__all__ = ["ROUGE", "ROUGE_TYPES", "rouge_scores"]

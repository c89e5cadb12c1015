"""A judge's marks as an `evaluate` metric: `evaluate.load("evaluation/metrics/judge_score")`."""

import datasets
import evaluate

DESCRIPTION = """
Mean mark in the judge's own points: of each answer the mean of its marks, in both orders or of all samples, and of those the
mean. Answers that got no mark leave the denominator and are counted.
"""
INPUTS = """
Args:
    predictions: the marks of each answer, none where the judge failed.
Returns:
    judge_score (points; none where no answer was marked), answers, unjudged.
Examples:
    >>> metric = evaluate.load("evaluation/metrics/judge_score")
    >>> metric.compute(predictions=[[7.0, 9.0], [4.0], []])
    {'judge_score': 6.0, 'answers': 3, 'unjudged': 1}
"""


class JudgeScore(evaluate.Metric):
    """The mean of means; `audiollm score` makes it of the verdicts in a folder."""

    def _info(self):
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": datasets.Sequence(datasets.Value("float64"))}),
        )

    def _compute(self, predictions):
        means = [sum(marks) / len(marks) for marks in predictions if len(marks)]
        score = sum(means) / len(means) if means else None
        return {"judge_score": score, "answers": len(predictions), "unjudged": len(predictions) - len(means)}

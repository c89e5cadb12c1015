"""Choice accuracy as an `evaluate` metric, by AIR-Bench's rule: `evaluate.load("evaluation/metrics/choice_accuracy")`."""

import datasets
import evaluate
from audiollm.evaluation.measures.choices import score_choices

DESCRIPTION = """
Share of right letters, as a fraction. An answer's letter is its first character, or else its last but one, if that is one of
A to D (AIR-Bench). Answers with neither leave the denominator and are counted; the strict accuracy has them as wrong.
"""
INPUTS = """
Args:
    predictions: answers. references: the right letters.
    parsing: the rule; air_bench.
Returns:
    choice_accuracy, strict_choice_accuracy (fractions; none where nothing was readable), answers, unparsable.
Examples:
    >>> metric = evaluate.load("evaluation/metrics/choice_accuracy")
    >>> metric.compute(predictions=["B. a dog", "The answer is A.", "no idea"], references=["B", "C", "A"])
    {'choice_accuracy': 0.5, 'strict_choice_accuracy': 0.3333333333333333, 'answers': 3, 'unparsable': 1}
"""
CITATION = """
@inproceedings{yang2024airbench, title = {{AIR}-Bench: Benchmarking Large Audio-Language Models via Generative Comprehension},
  author = {Yang, Qian and others}, booktitle = {ACL}, year = {2024}}
"""


class ChoiceAccuracy(evaluate.Metric):
    """See [`audiollm.evaluation.measures.choices`]."""

    def _info(self):
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": text, "references": text}),
            reference_urls=["https://github.com/OFA-Sys/AIR-Bench"],
        )

    def _compute(self, predictions, references, parsing="air_bench"):
        return score_choices(predictions, references, parsing)

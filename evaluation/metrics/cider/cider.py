"""CIDEr-D as an `evaluate` metric, without COCO's Java: `evaluate.load("evaluation/metrics/cider")`."""

import datasets
import evaluate
from audiollm.evaluation.measures.descriptions import cider_d

DESCRIPTION = """
CIDEr-D of descriptions, on COCO's scale of 0 to 10. SPIDEr, its mean with SPICE, is not computed: SPICE is a Java program.
"""
INPUTS = """
Args:
    predictions: descriptions, two or more. references: one or more of each.
Returns:
    cider_d (0 to 10).
Examples:
    >>> cider = evaluate.load("evaluation/metrics/cider")
    >>> found = cider.compute(predictions=["a man is speaking", "rain falls"], references=[["a man speaks.", "someone speaks.",
    ...     "a man is speaking while a bird is chirping in the background"], ["rain is falling hard on a surface"]])
    >>> round(found["cider_d"], 4)
    0.9614
"""
CITATION = """
@inproceedings{vedantam2015cider, title = {CIDEr: Consensus-based Image Description Evaluation},
  author = {Vedantam, Ramakrishna and Zitnick, C. Lawrence and Parikh, Devi}, booktitle = {CVPR}, year = {2015}}
"""


class Cider(evaluate.Metric):
    """See [`audiollm.evaluation.measures.descriptions.cider_d`]."""

    def _info(self):
        text = datasets.Value("string")
        several = datasets.Features({"predictions": text, "references": datasets.Sequence(text)})
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=[several, datasets.Features({"predictions": text, "references": text})],
            reference_urls=["https://arxiv.org/abs/1411.5726"],
        )

    def _compute(self, predictions, references):
        references = [[each] if isinstance(each, str) else each for each in references]
        scores = cider_d(predictions, references)
        return {"cider_d": sum(scores) / len(scores)}

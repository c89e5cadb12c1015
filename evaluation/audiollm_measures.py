"""
Every measure as a metric of the `evaluate` library, by its name:

    evaluate.load(audiollm.evaluation.METRIC, "bleu").compute(predictions=[...], references=[...], language="de")
"""

from dataclasses import fields

import datasets
import evaluate
from audiollm.evaluation.measures import Convention, measure


class Measures(evaluate.Metric):
    """See [`audiollm.evaluation.measures.measure`]."""

    def _info(self):
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="A measure of audiollm.evaluation.measures, by its name, as audiollm evaluate counts it.",
            citation="",
            inputs_description="predictions: texts. references: one right text of each, or several. Besides, the fields "
            f"of a Convention: {', '.join(field.name for field in fields(Convention))}.",
            features=[
                datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
                datasets.Features({"predictions": text, "references": text}),
            ],
        )

    def _compute(self, predictions, references, **convention):
        found = measure(self.config_name, predictions, references, Convention(**convention))
        known = {"unit": found.unit, "scored": len(found.ids), "signature": found.signature}
        return {self.config_name: found.value, **known, **found.dropped}

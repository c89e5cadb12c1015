"""Perplexity of texts as an `evaluate` metric, from likelihoods: `evaluate.load("evaluation/metrics/perplexity")`."""

import math

import datasets
import evaluate

DESCRIPTION = """
Perplexity per token over all texts: exp of the summed negative log likelihoods, in nats, over the tokens they are of. What a
full fine-tune did to a language model is the perplexity after beside the one before, on the same texts and tokens.
"""
INPUTS = """
Args:
    predictions: the summed negative log likelihood of each text, in nats.
    references: how many tokens each sum is of.
Returns:
    perplexity, tokens.
Examples:
    >>> metric = evaluate.load("evaluation/metrics/perplexity")
    >>> metric.compute(predictions=[math.log(4)], references=[1])
    {'perplexity': 4.0, 'tokens': 1}
"""


class Perplexity(evaluate.Metric):
    """The model is not run here; `audiollm evaluate --tasks text_retention` does."""

    def _info(self):
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references):
        tokens = sum(references)
        if tokens < 1 or min(references) < 0:
            raise ValueError(f"Likelihoods are of {tokens} tokens; expected one or more, and none below 0.")
        return {"perplexity": math.exp(sum(predictions) / tokens), "tokens": tokens}

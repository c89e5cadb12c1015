"""Speech heard where there is none, as an `evaluate` metric: `evaluate.load("evaluation/metrics/no_speech_rate")`."""

import datasets
import evaluate
from audiollm.evaluation.word_error import has_words

DESCRIPTION = """
Share of clips of silence, noise or anything else without speech that got a transcript, as a fraction: one with a letter or
digit in it. Remarks in brackets, such as [noise], are none.
"""
INPUTS = """
Args:
    predictions: transcripts of clips without speech.
Returns:
    no_speech_rate (a fraction), clips, heard.
Examples:
    >>> metric = evaluate.load("evaluation/metrics/no_speech_rate")
    >>> metric.compute(predictions=["", "...", "[noise]", "Thank you."])
    {'no_speech_rate': 0.25, 'clips': 4, 'heard': 1}
"""


class NoSpeechRate(evaluate.Metric):
    """See [`audiollm.evaluation.word_error.has_words`]."""

    def _info(self):
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(self, predictions):
        heard = sum(has_words(text, "basic") for text in predictions)
        return {"no_speech_rate": heard / len(predictions), "clips": len(predictions), "heard": heard}

"""Character error as an `evaluate` metric: `evaluate.load("evaluation/metrics/cer")`, counted by jiwer."""

import datasets
import evaluate
from audiollm.evaluation.word_error import score_character_error

DESCRIPTION = """
Character error of a corpus: substitutions, deletions and insertions over reference characters, as a fraction. Spaces between
words are characters; with the normaliser "characters", for languages that put none, they are not.
"""
INPUTS = """
Args:
    predictions: transcripts. references: what was said, one each.
    normaliser: none, english, basic, characters or leaderboard; see the metric wer.
Returns:
    character_error (a fraction), substitutions, deletions, insertions, reference_characters, clips, skipped.
Examples:
    >>> cer = evaluate.load("evaluation/metrics/cer")
    >>> cer.compute(predictions=["this is the prediction", "there is an other sample"],
    ...             references=["this is the reference", "there is another one"])["character_error"]
    0.34146341463414637
"""


class CharacterError(evaluate.Metric):
    """See [`audiollm.evaluation.word_error.score_character_error`]."""

    def _info(self):
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": text, "references": text}),
            reference_urls=["https://github.com/jitsi/jiwer"],
        )

    def _compute(self, predictions, references, normaliser="basic"):
        return score_character_error(references, predictions, normaliser)

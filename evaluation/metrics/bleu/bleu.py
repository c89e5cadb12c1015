"""BLEU as an `evaluate` metric, by sacreBLEU: `evaluate.load("evaluation/metrics/bleu")`."""

import datasets
import evaluate
from audiollm.evaluation.measures.translations import corpus_bleu

DESCRIPTION = """
BLEU of a corpus in sacreBLEU's points (0 to 100), on texts as they are written, with the tokenizer that sacreBLEU has for the
language, and the signature to print beside the figure.
"""
INPUTS = """
Args:
    predictions: translations. references: one or more of each.
    language: code of the language that is translated into: zh takes the tokenizer zh, ja ja-mecab, any other 13a.
    tokenizer: of sacreBLEU, instead.
Returns:
    bleu_points, signature.
Examples:
    >>> bleu = evaluate.load("evaluation/metrics/bleu")
    >>> found = bleu.compute(predictions=["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."],
    ...     references=[["The dog bit the man.", "The dog had bit the man."], ["It was not unexpected.", "No one was surprised."],
    ...                 ["The man bit him first.", "The man had bitten the dog."]])
    >>> round(found["bleu_points"], 2)
    48.53
"""
CITATION = """
@inproceedings{post-2018-call, title = {A Call for Clarity in Reporting {BLEU} Scores}, author = {Post, Matt},
  booktitle = {Proceedings of the Third Conference on Machine Translation}, year = {2018}, pages = {186--191}}
"""


class Bleu(evaluate.Metric):
    """See [`audiollm.evaluation.measures.translations.corpus_bleu`]."""

    def _info(self):
        text = datasets.Value("string")
        several = datasets.Features({"predictions": text, "references": datasets.Sequence(text)})
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=[several, datasets.Features({"predictions": text, "references": text})],
            reference_urls=["https://github.com/mjpost/sacrebleu"],
        )

    def _compute(self, predictions, references, language=None, tokenizer=None):
        references = [[each] if isinstance(each, str) else each for each in references]
        points, signature = corpus_bleu(predictions, references, language, tokenizer)
        return {"bleu_points": points, "signature": signature}

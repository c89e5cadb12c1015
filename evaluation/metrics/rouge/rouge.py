"""ROUGE as an `evaluate` metric, by Google's rouge_score: `evaluate.load("evaluation/metrics/rouge")`."""

import datasets
import evaluate
from audiollm.evaluation.measures.summaries import ROUGE_TYPES, rouge_scores

DESCRIPTION = """
Mean F1 of summaries, as a fraction, by ROUGE-1, ROUGE-2, ROUGE-L and ROUGE-Lsum (sentences on lines of their own). Of several
references, the one with the highest F1 counts.
"""
INPUTS = """
Args:
    predictions: summaries. references: one or more of each.
    rouge_types: some of rouge1, rouge2, rougeL, rougeLsum.
    use_stemmer: compare stems of words.
Returns:
    rouge1, rouge2, rougeL, rougeLsum (fractions), use_stemmer.
Examples:
    >>> rouge = evaluate.load("evaluation/metrics/rouge")
    >>> rouge.compute(predictions=["The quick brown dog jumps on the log."],
    ...               references=["The quick brown fox jumps over the lazy dog"])["rouge1"]
    0.7058823529411765
"""
CITATION = """
@inproceedings{lin-2004-rouge, title = {{ROUGE}: A Package for Automatic Evaluation of Summaries}, author = {Lin, Chin-Yew},
  booktitle = {Text Summarization Branches Out}, year = {2004}, pages = {74--81}}
"""


class Rouge(evaluate.Metric):
    """See [`audiollm.evaluation.measures.summaries.rouge_scores`]."""

    def _info(self):
        text = datasets.Value("string")
        several = datasets.Features({"predictions": text, "references": datasets.Sequence(text)})
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=[several, datasets.Features({"predictions": text, "references": text})],
            reference_urls=["https://github.com/google-research/google-research/tree/master/rouge"],
        )

    def _compute(self, predictions, references, rouge_types=ROUGE_TYPES, use_stemmer=True):
        references = [[each] if isinstance(each, str) else each for each in references]
        scores = rouge_scores(predictions, references, rouge_types, use_stemmer)
        means = {name: sum(each[name] for each in scores) / len(scores) for name in rouge_types}
        return {**means, "use_stemmer": use_stemmer}

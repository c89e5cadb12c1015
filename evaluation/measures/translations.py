"""BLEU, by sacreBLEU, on texts as they are written: its tokenizer by language, its signature beside the figure."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..optional import optional_library
from .measure import POINTS, Answer, Convention, Measured

#: sacreBLEU's tokenizer by code of the language that is translated into.
TOKENIZERS = {"zh": "zh", "zho": "zh", "cmn": "zh", "yue": "zh", "ja": "ja-mecab", "jpn": "ja-mecab"}
DEFAULT_TOKENIZER = "13a"
NGRAMS = 4
SMOOTHING = "exp"


def bleu_tokenizer(language: str | None) -> str:
    """sacreBLEU's tokenizer for a language: `zh` for Chinese, `ja-mecab` for Japanese, `13a` for any other."""
    return TOKENIZERS.get(re.split(r"[-_]", (language or "").lower())[0], DEFAULT_TOKENIZER)


def bleu_metric(language: str | None = None, tokenizer: str | None = None, **options: Any) -> Any:
    """
    sacreBLEU's metric as its command line sets it up; `options` are its own.

    Raises:
        ImportError: sacreBLEU, or for Japanese MeCab, is not installed.
        ValueError: sacreBLEU has no such tokenizer.
    """
    optional_library("sacrebleu", "evaluation")
    BLEU = optional_library("sacrebleu.metrics", "evaluation").BLEU
    chosen = tokenizer or bleu_tokenizer(language)
    if chosen not in BLEU.TOKENIZERS:
        raise ValueError(f"sacreBLEU has no tokenizer {chosen!r}; expected one of {', '.join(BLEU.TOKENIZERS)}.")
    if chosen == "ja-mecab":
        optional_library("MeCab", "evaluation")
        optional_library("ipadic", "evaluation")
    return BLEU(tokenize=chosen, **options)


def reference_streams(references: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """References as sacreBLEU takes them: the first of every sentence, the second of every one, ...; None where there is none."""
    most = max(map(len, references))
    return [[one[k] if k < len(one) else None for one in references] for k in range(most)]


def corpus_bleu(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    language: str | None = None,
    tokenizer: str | None = None,
) -> tuple[float, str]:
    """
    BLEU of a corpus in sacreBLEU's points, and its signature.

    Args:
        hypotheses: translations. references: one or more of each.
        language: translated into. tokenizer: instead of the one for that language.

    Raises:
        ValueError: they differ in number, there is nothing to score, or a sentence has no reference.
    """
    if len(hypotheses) != len(references):
        raise ValueError(f"{len(references)} references but {len(hypotheses)} translations; expected one each.")
    if not hypotheses or not all(references):
        raise ValueError("There is nothing to score: no translation, or one without a reference.")
    metric = bleu_metric(language, tokenizer)
    score = metric.corpus_score(list(hypotheses), reference_streams(references))
    return score.score, str(metric.get_signature())


def bleu(answers: Sequence[Answer], by: Convention) -> Measured:
    """Corpus BLEU, from the n-gram counts of each sentence, which add up to sacreBLEU's own of the corpus."""
    metric = bleu_metric(by.language, by.bleu_tokenizer)
    sentences = bleu_metric(by.language, by.bleu_tokenizer, effective_order=True)
    rows, items, kept = [], {}, []
    for answer in answers:
        references = [text for text in answer.references if text.strip()]
        if references:
            found = sentences.sentence_score(answer.text, references)
            rows.append([*found.counts, *found.totals, found.sys_len, found.ref_len])
            items[answer.id] = {"score": found.score}
            kept.append((answer, references))
    signature = ""
    if kept:
        metric.corpus_score([answer.text for answer, _ in kept], reference_streams([texts for _, texts in kept]))
        signature = str(metric.get_signature())
    return Measured(
        statistics=np.array(rows, dtype=np.float64).reshape(-1, 2 * NGRAMS + 2),
        ids=[answer.id for answer, _ in kept],
        unit=POINTS,
        signature=signature,
        pooled=bleu_of_sums,
        items=items,
        dropped={"skipped_empty_reference": len(answers) - len(kept)} if len(kept) < len(answers) else {},
    )


def paired_bleu_p(
    first: Sequence[Answer], second: Sequence[Answer], by: Convention, samples: int
) -> tuple[float, str]:
    """
    p of two systems' BLEU on the same sentences, by sacreBLEU's own approximate randomisation, and its signature.

    Its draws are seeded by sacreBLEU itself: 12345, or what the environment variable SACREBLEU_SEED says.
    """
    test = optional_library("sacrebleu.significance", "evaluation").PairedTest
    references = reference_streams([[text for text in each.references if text.strip()] for each in first])
    named = [("first", [each.text for each in first]), ("second", [each.text for each in second])]
    metric = bleu_metric(by.language, by.bleu_tokenizer)
    signatures, scores = test(named, {"BLEU": metric}, references, test_type="ar", n_samples=samples)()
    return float(scores["BLEU"][1].p_value), f"sacreBLEU's paired approximate randomisation, {signatures['BLEU']}"


def bleu_of_sums(sums: np.ndarray) -> np.ndarray:
    """
    BLEU in points `(...)` of summed counts `(..., 10)`: right n-grams, n-grams, length and reference length.

    By sacreBLEU's own function, with the smoothing of its command line.
    """
    compute = optional_library("sacrebleu.metrics", "evaluation").BLEU.compute_bleu
    flat = np.asarray(sums, dtype=np.float64).reshape(-1, 2 * NGRAMS + 2)
    counts = np.rint(flat).astype(int).tolist()
    points = [compute(row[:NGRAMS], row[NGRAMS : 2 * NGRAMS], *row[2 * NGRAMS :], SMOOTHING).score for row in counts]
    return np.array(points).reshape(np.shape(sums)[:-1])


__all__ = [
    "bleu",
    "bleu_metric",
    "bleu_of_sums",
    "bleu_tokenizer",
    "corpus_bleu",
    "paired_bleu_p",
    "reference_streams",
]

"""
CIDEr-D of descriptions (Vedantam et al. 2015), as COCO's evaluation code has it, without its Java.

SPIDEr is the mean of CIDEr-D and SPICE; SPICE is a Java program with models of its own and is not computed here. Words are
those of COCO's tokenizer for plain captions: lower case, punctuation left out.
"""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from .measure import RATIO, Answer, Convention, Measured, mean_of

NGRAMS = 4
#: Width of the penalty for a length that is not the reference's, in words.
SIGMA_WORDS = 6.0
#: COCO's figures are ten times the mean cosine.
SCALE = 10.0
MIN_ITEMS = 2
WORD = re.compile(r"\w+(?:['’]\w+)*")

NGram = tuple[str, ...]


def words_of(text: str) -> list[str]:
    """Words of a caption, in lower case; clitics are cut off as in the Penn Treebank (`it's`: `it`, `'s`)."""
    words: list[str] = []
    for word in WORD.findall(text.lower().replace("’", "'")):
        if word.endswith("n't") and len(word) > len("n't"):
            words += [word[: -len("n't")], "n't"]
        elif "'" in word:
            head, _, tail = word.rpartition("'")
            words += [head, "'" + tail]
        else:
            words.append(word)
    return words


def _ngrams(words: Sequence[str]) -> Counter[NGram]:
    return Counter(
        tuple(words[start : start + size]) for size in range(1, NGRAMS + 1) for start in range(len(words) - size + 1)
    )


def cider_d(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """
    CIDEr-D of every description, on COCO's scale of 0 to 10; a corpus' is their mean.

    How rare an n-gram is comes from the references of the whole corpus, so a score depends on what it is scored with.

    Args:
        predictions: descriptions. references: one or more of each.

    Raises:
        ValueError: they differ in number, one has no reference, or there are fewer than two items, for which it is not defined.
    """
    if len(predictions) != len(references):
        raise ValueError(f"{len(references)} references but {len(predictions)} descriptions; expected one each.")
    if not all(references):
        raise ValueError("A description has no reference; expected one or more of each.")
    if len(predictions) < MIN_ITEMS:
        raise ValueError(
            f"CIDEr-D weighs n-grams by how rare they are among items; expected {MIN_ITEMS} or more, not {len(predictions)}."
        )
    counted = [[_ngrams(words_of(text)) for text in texts] for texts in references]
    seen_in = Counter(ngram for texts in counted for ngram in set().union(*texts))
    log_items = float(np.log(len(references)))

    def weigh(counts: Counter[NGram]) -> list[dict[NGram, float]]:
        """Term frequency times inverse document frequency, by length of n-gram."""
        vectors: list[dict[NGram, float]] = [{} for _ in range(NGRAMS)]
        for ngram, count in counts.items():
            vectors[len(ngram) - 1][ngram] = count * (log_items - float(np.log(max(1, seen_in[ngram]))))
        return vectors

    scores = []
    for text, texts in zip(predictions, counted):
        own = _ngrams(words_of(text))
        said = weigh(own)
        similar = [_similarity(said, weigh(other), _bigrams(own) - _bigrams(other)) for other in texts]
        scores.append(SCALE * float(np.mean(similar)))
    return scores


def _bigrams(counts: Counter[NGram]) -> int:
    """How many bigrams a text has: what COCO's code takes for its length."""
    return sum(count for ngram, count in counts.items() if len(ngram) == 2)


def _similarity(said: list[dict[NGram, float]], right: list[dict[NGram, float]], length_difference: int) -> float:
    """Mean over n-gram lengths of the cosine of clipped weights, less for another length."""
    cosines = []
    for own, other in zip(said, right):
        norms = np.sqrt(sum(weight**2 for weight in own.values())) * np.sqrt(
            sum(weight**2 for weight in other.values())
        )
        product = sum(min(weight, other[ngram]) * other[ngram] for ngram, weight in own.items() if ngram in other)
        cosines.append(product / norms if norms else 0.0)
    return float(np.mean(cosines)) * float(np.exp(-(length_difference**2) / (2 * SIGMA_WORDS**2)))


def cider(answers: Sequence[Answer], by: Convention) -> Measured:
    """Corpus CIDEr-D; no figure of a single item, for which it is not defined."""
    kept = [(answer, [text for text in answer.references if text.strip()]) for answer in answers]
    kept = [(answer, references) for answer, references in kept if references]
    dropped = {"skipped_empty_reference": len(answers) - len(kept)} if len(kept) < len(answers) else {}
    if len(kept) < MIN_ITEMS:
        dropped, kept = {**dropped, **({"too_few_items": len(kept)} if kept else {})}, []
    scores = cider_d([answer.text for answer, _ in kept], [references for _, references in kept]) if kept else []
    by_id = {answer.id: score for (answer, _), score in zip(kept, scores)}
    return mean_of(by_id, RATIO, f"cider-d|n:{NGRAMS}|sigma:{SIGMA_WORDS:g}|scale:{SCALE:g}|no SPICE", dropped=dropped)


__all__ = ["cider", "cider_d", "words_of"]

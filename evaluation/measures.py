"""
Measures of answers: figures that add up over items, and the share of each item.

Errors and accuracies are fractions; BLEU is in sacreBLEU's points. To measure texts of your own, without a run:

    measure("bleu", ["The cat sat."], [["The cat sat."]], Convention(language="en")).value
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import metadata
from itertools import zip_longest
from typing import Any

import numpy as np
from audiollm.corpora.normalisers import has_words, language_of

from .bootstrap import Difference, Pooled, interval, means, paired_test, ratio
from .word_error import CHARACTERS, EMPTY_REFERENCE, WORDS, convention, optional_library, word_errors

FRACTION, POINTS, RATIO = "fraction", "points", "ratio"
EXTRA = "evaluation"


@dataclass(frozen=True)
class Answer:
    """Answer of a system to one item."""

    id: str  # the item's, or that of a session whose chunks were put together
    text: str  # empty where nothing was said, or the system failed
    references: Sequence[str] = ()  # the item's
    extra: Mapping[str, Any] = field(default_factory=dict)  # the item's
    duration_s: float = 0.0  # of all recordings
    seconds: float = 0.0  # of computing
    finish: str = "stop"  # stop, length, repeated or error
    verdicts: Sequence[Mapping[str, Any]] = ()  # the judge's, as they are in the folder

    @property
    def reference(self) -> str:
        """The first right answer; empty where there is none."""
        return next(iter(self.references), "")


@dataclass(frozen=True)
class Convention:
    """Rules for comparing answers."""

    normaliser: str = "english"  # a name of `word_error.NORMALISERS`
    language: str | None = None  # of the answers, for the tokenizer of BLEU


@dataclass(frozen=True)
class Measured:
    """One figure of a set of answers."""

    statistics: np.ndarray  # `(scored, columns)`, which add up, of the answers that count
    ids: Sequence[str]  # of those answers
    unit: str  # fraction (0 to 1; word error may exceed it), points (a scale of its own) or ratio
    signature: str  # the way of counting, in one line, with the library
    pooled: Pooled = ratio  # makes the figure of their sums
    items: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # facts about single answers, by id
    dropped: Mapping[str, int] = field(default_factory=dict)  # answers that do not count, by reason

    @property
    def value(self) -> float:
        """The figure of all answers that count; NaN where there is none."""
        if not len(self.statistics):
            return float("nan")
        return float(self.pooled(self.statistics.sum(axis=0, dtype=np.float64)))

    def of(self, ids: Iterable[str]) -> "Measured":
        """Return the same of some items, in the order given; ids that do not count are passed over."""
        places = {one: place for place, one in enumerate(self.ids)}
        kept = [one for one in ids if one in places]
        return replace(self, ids=kept, statistics=self.statistics[[places[one] for one in kept]])

    def interval(self, samples: int, seed: int) -> tuple[float, float]:
        """Return the bootstrap interval of the figure; NaN where there is none."""
        if not len(self.statistics):
            return float("nan"), float("nan")
        found = interval(self.statistics, self.pooled, samples, seed)
        return found.low, found.high


def paired(first: Measured, second: Measured, samples: int, seed: int) -> tuple[list[str], Difference | None]:
    """Return the items that count in both, and how the second differs on them; None where there is no such item."""
    both = list(second.of(first.ids).ids)
    if not both:
        return both, None
    rows = [each.of(both).statistics for each in (first, second)]
    return both, paired_test(rows[0], rows[1], first.pooled, samples, seed)


def _pairs(rows: Iterable[Iterable[float]]) -> np.ndarray:
    return np.array([list(row) for row in rows], dtype=np.float64).reshape(-1, 2)


def _mean(scores: Mapping[str, float], unit: str, signature: str, **fields: Any) -> Measured:
    """Return a figure that is the mean of `scores`, by the answer's id; `fields` are those of [`Measured`]."""
    values = np.array(list(scores.values()), dtype=np.float64)
    fields = {"items": {one: {"score": score} for one, score in scores.items()}, **fields}
    return Measured(means(values), list(scores), unit, signature, **fields)


def _with_references(answers: Sequence[Answer]) -> tuple[list[tuple[Answer, list[str]]], dict[str, int]]:
    """Return answers that have references, with those that are not empty, and how many have none."""
    found = [(answer, [text for text in answer.references if text.strip()]) for answer in answers]
    kept = [(answer, references) for answer, references in found if references]
    return kept, {EMPTY_REFERENCE: len(answers) - len(kept)}


def text_error(unit: str, answers: Sequence[Answer], by: Convention) -> Measured:
    """Measure corpus word or character error."""
    errors = word_errors([each.reference for each in answers], [each.text for each in answers], by.normaliser, unit)
    scored = {answer.id: found for answer, found in zip(answers, errors) if found.skipped is None}
    prefix = "" if unit == WORDS else "character_"
    items = {
        one: {
            **{"normalised_reference": found.reference, "normalised_output": found.hypothesis, unit: found.length},
            **{prefix + kind: getattr(found, kind) for kind in ("errors", "substitutions", "deletions", "insertions")},
        }
        for one, found in scored.items()
    }
    dropped = Counter(found.skipped for found in errors if found.skipped is not None)
    statistics = _pairs((found.errors, found.length) for found in scored.values())
    return Measured(statistics, list(scored), FRACTION, convention(unit, by.normaliser), items=items, dropped=dropped)


def plain_word_error(answers: Sequence[Answer], by: Convention) -> Measured:
    """Measure corpus word error of texts as they are written: capitals and punctuation count."""
    return replace(text_error(WORDS, answers, Convention("none")), items={})


BLEU_NGRAMS = 4
#: sacreBLEU's tokenizer by code of the language that is translated into; 13a otherwise.
BLEU_TOKENIZERS = {"zh": "zh", "zho": "zh", "cmn": "zh", "yue": "zh", "ja": "ja-mecab", "jpn": "ja-mecab"}


def bleu_metric(by: Convention, **options: Any) -> Any:
    """Return sacreBLEU's metric as its command line sets it up; `options` are its own."""
    BLEU = optional_library("sacrebleu.metrics", EXTRA).BLEU
    chosen = BLEU_TOKENIZERS.get(language_of(by.language), "13a")
    for library in ("MeCab", "ipadic") if chosen == "ja-mecab" else ():
        optional_library(library, EXTRA)
    return BLEU(tokenize=chosen, **options)


def bleu(answers: Sequence[Answer], by: Convention) -> Measured:
    """Measure corpus BLEU of texts as they are written, from counts of each sentence, which add up to sacreBLEU's own."""
    metric, sentences = bleu_metric(by), bleu_metric(by, effective_order=True)
    kept, dropped = _with_references(answers)
    rows, items, signature = [], {}, ""
    for answer, references in kept:
        found = sentences.sentence_score(answer.text, references)
        rows.append([*found.counts, *found.totals, found.sys_len, found.ref_len])
        items[answer.id] = {"score": found.score}
    if kept:
        metric.corpus_score([answer.text for answer, _ in kept], list(zip_longest(*(texts for _, texts in kept))))
        signature = str(metric.get_signature())
    statistics = np.array(rows, dtype=np.float64).reshape(-1, 2 * BLEU_NGRAMS + 2)
    ids = [answer.id for answer, _ in kept]
    return Measured(statistics, ids, POINTS, signature, bleu_of_sums, items=items, dropped=dropped)


def bleu_of_sums(sums: np.ndarray) -> np.ndarray:
    """Return sacreBLEU's BLEU `(...)` of summed counts `(..., 10)`: right n-grams, n-grams, length, reference length."""
    compute = optional_library("sacrebleu.metrics", EXTRA).BLEU.compute_bleu
    counts = np.rint(np.asarray(sums, dtype=np.float64)).astype(int).reshape(-1, 2 * BLEU_NGRAMS + 2).tolist()
    n = BLEU_NGRAMS
    points = [compute(row[:n], row[n : 2 * n], *row[2 * n :], "exp").score for row in counts]
    return np.array(points).reshape(np.shape(sums)[:-1])


def paired_bleu_p(
    first: Sequence[Answer], second: Sequence[Answer], by: Convention, samples: int
) -> tuple[float, str]:
    """
    Return p of two systems' BLEU on the same sentences, by sacreBLEU's own approximate randomisation, and its signature.

    Its draws are seeded by sacreBLEU itself: 12345, or the environment variable SACREBLEU_SEED.
    """
    test = optional_library("sacrebleu.significance", EXTRA).PairedTest
    references = list(zip_longest(*([text for text in each.references if text.strip()] for each in first)))
    named = [("first", [each.text for each in first]), ("second", [each.text for each in second])]
    signatures, scores = test(named, {"BLEU": bleu_metric(by)}, references, test_type="ar", n_samples=samples)()
    return float(scores["BLEU"][1].p_value), f"sacreBLEU's paired approximate randomisation, {signatures['BLEU']}"


ROUGE_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def rouge(rouge_type: str, answers: Sequence[Answer], by: Convention) -> Measured:
    """Measure mean F1 by Google's rouge_score with Porter's stemmer; of several references, that of the highest F1 counts."""
    kept, dropped = _with_references(answers)
    scorer = optional_library("rouge_score.rouge_scorer", EXTRA).RougeScorer([rouge_type], use_stemmer=True)
    signature = f"{rouge_type}|f1|stemmer:yes|rouge_score-{metadata.version('rouge_score')}"
    scores = {answer.id: scorer.score_multi(texts, answer.text)[rouge_type].fmeasure for answer, texts in kept}
    return _mean(scores, FRACTION, signature, dropped=dropped)


LETTERS = "ABCD"


def air_bench_letter(text: str) -> str | None:
    """Return the letter of an answer by AIR-Bench's rule (`score_foundation.py`): its first character, or last but one."""
    answer = text.strip().replace("\n", "")
    return next((letter for letter in (answer[:1], answer[-2:-1]) if letter and letter in LETTERS), None)


def choice_accuracy(strict: bool, answers: Sequence[Answer], by: Convention) -> Measured:
    """Right answers over readable ones, as AIR-Bench counts; strict: over all, where one that cannot be read is wrong."""
    kept = [answer for answer in answers if answer.reference.strip()]
    read = [(answer, air_bench_letter(answer.text)) for answer in kept]
    scored = [(answer, letter) for answer, letter in read if strict or letter is not None]
    right = {answer.id: letter == answer.reference.strip().strip("().").upper() for answer, letter in scored}
    items = {answer.id: {"chosen": letter, "right": right[answer.id]} for answer, letter in scored}
    dropped = {EMPTY_REFERENCE: len(answers) - len(kept), "unparsable": len(kept) - len(scored)}
    signature = f"parsing:air_bench|unparsable:{'wrong' if strict else 'left out'}"
    return _mean(right, FRACTION, signature, items=items, dropped=dropped)


#: Of an item's `extra`, as the retention system measures it.
TOKENS, NEGATIVE_LOG_LIKELIHOOD, SAME_LOGITS = "tokens", "negative_log_likelihood", "same_logits_as_base"


def judge_score(answers: Sequence[Answer], by: Convention) -> Measured:
    """Mean over answers of the mean of their verdicts' marks; answers without a mark and failed verdicts are counted."""
    verdicts = [(answer.id, verdict) for answer in answers for verdict in answer.verdicts]
    marks: dict[str, list[float]] = {}
    for one, verdict in verdicts:
        if verdict["scores"] is not None:
            marks.setdefault(one, []).append(verdict["scores"]["answer"])
    scores = {one: float(np.mean(each)) for one, each in marks.items()}
    failed = len(verdicts) - sum(map(len, marks.values()))
    orders = sorted({verdict["order"] for _, verdict in verdicts})
    signature = f"mean of verdicts|orders:{'+'.join(orders) or 'none'}"
    dropped = {"unjudged": len(answers) - len(scores), "judge_failures": failed}
    return _mean(scores, POINTS, signature, dropped=dropped)


def no_speech_rate(answers: Sequence[Answer], by: Convention) -> Measured:
    """Share of clips without speech in which some is heard: transcripts with a letter or digit in them."""
    heard = {answer.id: has_words(answer.text, "basic") for answer in answers}
    items = {one: {"heard_speech": each, "score": float(each)} for one, each in heard.items()}
    return _mean(heard, FRACTION, "transcripts with a letter or digit", items=items)


def bitwise_equal(answers: Sequence[Answer], by: Convention) -> Measured:
    """Share of texts whose logits are the base model's in every bit."""
    same = {answer.id: answer.extra[SAME_LOGITS] for answer in answers if answer.extra.get(SAME_LOGITS) is not None}
    items = {one: {SAME_LOGITS: each} for one, each in same.items()}
    dropped = {"not_compared": len(answers) - len(same)}
    return _mean(same, FRACTION, "torch.equal of logits", items=items, dropped=dropped)


def perplexity(answers: Sequence[Answer], by: Convention) -> Measured:
    """Perplexity per token over all texts: exp of the summed negative log likelihood (nats) over the tokens scored."""
    kept = [answer for answer in answers if answer.extra.get(NEGATIVE_LOG_LIKELIHOOD) is not None]
    fields = (NEGATIVE_LOG_LIKELIHOOD, TOKENS)
    items = {answer.id: {name: float(answer.extra[name]) for name in fields} for answer in kept}
    statistics, dropped = _pairs(each.values() for each in items.values()), {"not_measured": len(answers) - len(items)}
    signature = "per token, all texts pooled"
    return Measured(statistics, list(items), RATIO, signature, perplexity_of_sums, items=items, dropped=dropped)


def perplexity_of_sums(sums: np.ndarray) -> np.ndarray:
    """Return perplexities `(...)` of summed nats and tokens `(..., 2)`; NaN where there is no token."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.where(sums[..., 1] > 0, np.exp(sums[..., 0] / sums[..., 1]), np.nan)


Score = Callable[[Sequence[Answer], Convention], Measured]
#: Every measure by its name.
MEASURES: dict[str, Score] = {
    "word_error": partial(text_error, WORDS),
    "plain_word_error": plain_word_error,
    "character_error": partial(text_error, CHARACTERS),
    "bleu": bleu,
    **{name: partial(rouge, name) for name in ROUGE_TYPES},
    "choice_accuracy": partial(choice_accuracy, False),
    "strict_choice_accuracy": partial(choice_accuracy, True),
    "judge_score": judge_score,
    "no_speech_rate": no_speech_rate,
    "bitwise_equal": bitwise_equal,
    "perplexity": perplexity,
}
#: Of these, less is better.
LOWER_IS_BETTER = ("word_error", "plain_word_error", "character_error", "no_speech_rate", "perplexity")
#: Measures of a task's metric, if it is not one measure of that name: the first is the one to look at.
ALIASES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("word_error", "wer"), ("word_error", "plain_word_error")),
    "cer": ("character_error",),
    "rouge": ROUGE_TYPES,
    **dict.fromkeys(("accuracy", "choice_accuracy"), ("choice_accuracy", "strict_choice_accuracy")),
    "text_retention": ("bitwise_equal", "perplexity"),
}


def measures_of(metrics: Iterable[str]) -> dict[str, Score]:
    """Return the measures that a task's metrics stand for, by name, each once, in order."""
    names = [name for metric in metrics for name in ALIASES.get(metric, (metric,))]
    for name in names:
        if name not in MEASURES:
            known = ", ".join(sorted({*MEASURES, *ALIASES}))
            raise ValueError(f"There is no metric {name!r}; expected some of {known}.")
    return {name: MEASURES[name] for name in names}


def measure(
    metric: str, predictions: Sequence[str], references: Sequence[str | Sequence[str]], by: Convention | None = None
) -> Measured:
    """
    Measure texts by a metric, a name of `MEASURES` or `ALIASES`, of which the first counts.

    There are one right text, or several, for each prediction; they are compared as English texts by default.
    """
    if len(predictions) != len(references):
        raise ValueError(f"There are {len(references)} references for {len(predictions)} predictions.")
    score = next(iter(measures_of([metric]).values()))
    each = [[one] if isinstance(one, str) else list(one) for one in references]
    return score([Answer(str(i), text, each[i]) for i, text in enumerate(predictions)], by or Convention())

"""Every measure by the name of its metric, and the names that tasks may call several of them by."""

from .choices import choice_accuracy, strict_choice_accuracy
from .descriptions import cider
from .measure import FRACTION, POINTS, RATIO, Answer, Convention, Measure, Measured
from .rates import bitwise_equal, judge_score, no_speech_rate, perplexity
from .summaries import ROUGE
from .translations import bleu
from .words import character_error, plain_word_error, word_error

#: All measures. Errors and accuracies are fractions; BLEU is in sacreBLEU's points; CIDEr-D is on COCO's scale of 0 to 10.
MEASURES: dict[str, Measure] = {
    each.name: each
    for each in (
        Measure("word_error", word_error, lower_is_better=True),
        Measure("plain_word_error", plain_word_error, lower_is_better=True),
        Measure("character_error", character_error, lower_is_better=True),
        Measure("bleu", bleu),
        *(Measure(name, measure) for name, measure in ROUGE.items()),
        Measure("cider_d", cider),
        Measure("choice_accuracy", choice_accuracy),
        Measure("strict_choice_accuracy", strict_choice_accuracy),
        Measure("judge_score", judge_score),
        Measure("no_speech_rate", no_speech_rate, lower_is_better=True),
        Measure("bitwise_equal", bitwise_equal),
        Measure("perplexity", perplexity, lower_is_better=True),
    )
}
#: What a task's metric stands for, where it is not one measure of that name: the first is the one to look at.
ALIASES: dict[str, tuple[str, ...]] = {
    "word_error": ("word_error", "plain_word_error"),
    "wer": ("word_error", "plain_word_error"),
    "cer": ("character_error",),
    "rouge": tuple(ROUGE),
    "cider": ("cider_d",),
    "accuracy": ("choice_accuracy", "strict_choice_accuracy"),
    "choice_accuracy": ("choice_accuracy", "strict_choice_accuracy"),
    "text_retention": ("bitwise_equal", "perplexity"),
}


def measures_of(metrics: list[str] | tuple[str, ...]) -> list[Measure]:
    """
    The measures that a task's metrics stand for, each once, in order.

    Raises:
        ValueError: there is no such metric.
    """
    names: list[str] = []
    for metric in metrics:
        names += ALIASES.get(metric, (metric,))
    unknown = [name for name in names if name not in MEASURES]
    if unknown:
        known = ", ".join(sorted({*MEASURES, *ALIASES}))
        raise ValueError(f"There is no metric {unknown[0]!r}; expected some of {known}.")
    return [MEASURES[name] for name in dict.fromkeys(names)]


__all__ = [
    "ALIASES",
    "FRACTION",
    "MEASURES",
    "POINTS",
    "RATIO",
    "Answer",
    "Convention",
    "Measure",
    "Measured",
    "measures_of",
]

"""The options of evaluation while training: what is scored and shown, which checkpoint is best, when to stop."""

from dataclasses import dataclass, field

from audiollm.corpora.normalisers import NORMALISERS
from audiollm.evaluation.listening import MAX_NEW_TOKENS
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy

WORD_ERROR = "word_error"
#: What a checkpoint can be the best by, without `eval_`; the control is not among them, as it should be high.
METRICS = ("loss", WORD_ERROR)
#: Options that do nothing unless there is evaluation, and what they are when not given.
EVALUATION_DEFAULTS = {
    "eval_max_samples": 100,
    "eval_samples_shown": 5,
    "eval_max_new_tokens": MAX_NEW_TOKENS,
    "eval_normaliser": "english",
}
SMALLEST = {"eval_max_samples": 1, "eval_samples_shown": 0, "eval_max_new_tokens": 1, "early_stopping_patience": 1}


@dataclass
class EvaluationArguments(TrainingArguments):
    """What evaluation by generation adds to transformers' `TrainingArguments`."""

    # None until they are checked, so that options that would do nothing are known from their defaults.
    eval_max_samples: int | None = field(
        default=None,
        metadata={
            "help": "Held-out rows that word error is scored on, evenly spaced over the file; "
            f"{EVALUATION_DEFAULTS['eval_max_samples']} when not given. The loss is that of all rows."
        },
    )
    eval_samples_shown: int | None = field(
        default=None,
        metadata={
            "help": "How many of them are printed and sent to trackers, reference beside what was heard; "
            f"{EVALUATION_DEFAULTS['eval_samples_shown']} when not given. eval_samples.jsonl has all."
        },
    )
    eval_max_new_tokens: int | None = field(
        default=None,
        metadata={"help": f"Longest answer in tokens; {EVALUATION_DEFAULTS['eval_max_new_tokens']} when not given."},
    )
    eval_normaliser: str | None = field(
        default=None,
        metadata={
            "help": "What makes texts alike before words are compared: english (Whisper's normaliser), basic (any "
            "language with spaces: lower case, no punctuation) or none; english when not given."
        },
    )
    metric_for_best_model: str | None = field(
        default=None,
        metadata={"help": "What the best checkpoint is best by, for --load_best_model_at_end: loss or word_error."},
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={
            "help": "Stop after so many evaluations in a row without a better --metric_for_best_model; never when not "
            "given. Needs --load_best_model_at_end."
        },
    )

    def infer_direction(self) -> None:
        """Makes less of a word error the better; transformers takes every metric but a loss for one to raise."""
        name = (self.metric_for_best_model or "").removeprefix("eval_")
        if name == WORD_ERROR and self.greater_is_better is None:
            self.greater_is_better = False

    def check_evaluation(self) -> None:
        """
        Refuses options of evaluation that contradict each other or would do nothing, and sets those not given.

        Raises:
            ValueError: they do.
        """
        for name, least in SMALLEST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"--{name} is {value}; expected {least} or more.")
        if self.eval_normaliser not in (None, *NORMALISERS):
            raise ValueError(f"--eval_normaliser is {self.eval_normaliser!r}; expected one of {sorted(NORMALISERS)}.")
        metric = self.metric_for_best_model
        if metric is not None and metric.removeprefix("eval_") not in METRICS:
            raise ValueError(f"--metric_for_best_model is {metric!r}; expected one of {', '.join(METRICS)}.")
        if metric is not None and self.greater_is_better:
            raise ValueError(
                f"--greater_is_better contradicts --metric_for_best_model {metric}: less of it is better."
            )
        if self.eval_strategy == IntervalStrategy.NO:
            needing = [*EVALUATION_DEFAULTS, "metric_for_best_model", "early_stopping_patience"]
            given = [f"--{name}" for name in needing if getattr(self, name) is not None]
            if given:
                raise ValueError(f"{', '.join(given)} need evaluation: give --eval_data_path and --eval_strategy.")
        if self.early_stopping_patience is not None and not self.load_best_model_at_end:
            raise ValueError(
                "--early_stopping_patience needs --load_best_model_at_end: the run would end with the weights that "
                "had stopped getting better."
            )
        if self.eval_strategy != IntervalStrategy.NO:
            for name, default in EVALUATION_DEFAULTS.items():
                if getattr(self, name) is None:
                    setattr(self, name, default)

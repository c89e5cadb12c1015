"""Options of the stages `distill` and `prefer`."""

from dataclasses import dataclass, field

#: Losses on the difference of log-ratios; where each comes from is said in `preference_loss`.
PREFERENCE_LOSSES = ("sigmoid", "hinge", "ipo")


@dataclass
class DistillArguments:
    """How the audio row is drawn to what the base says of the transcript."""

    _argument_group_name = "stage distill"

    temperature: float = field(
        default=2.0, metadata={"help": "Softens both distributions; above 1, unlikely tokens count for more."}
    )
    distill_weight: float = field(
        default=1.0,
        metadata={"help": "Share of the distillation loss; the rest is cross-entropy on the responses."},
    )
    max_answer_tokens: int = field(
        default=256,
        metadata={
            "help": "Bound on answers that the teacher writes, for rows without a response. Examples whose answer does "
            "not end within it are left out, and named."
        },
    )
    response_is_transcript: bool = field(
        default=False,
        metadata={
            "help": "Rows of one recording and no transcripts are transcriptions: their response is what is said."
        },
    )

    def __post_init__(self):
        if not self.temperature > 0:
            raise ValueError(f"--temperature is {self.temperature}; expected a number above 0.")
        if not 0 <= self.distill_weight <= 1:
            raise ValueError(f"--distill_weight is {self.distill_weight}; expected a number from 0 to 1.")
        if self.max_answer_tokens < 1:
            raise ValueError(f"--max_answer_tokens is {self.max_answer_tokens}; expected at least 1.")


@dataclass
class PreferArguments:
    """How strongly chosen answers are preferred to rejected ones."""

    _argument_group_name = "stage prefer"

    beta: float = field(
        default=0.1,
        metadata={"help": "How dear it is to leave the reference: the higher, the nearer the model stays to it."},
    )
    preference_loss: str = field(default="sigmoid", metadata={"help": "sigmoid (DPO), hinge (SLiC) or ipo."})
    preference_smoothing: float = field(
        default=0.0,
        metadata={"help": "Share of pairs that may be labelled the wrong way round, below 0.5; for sigmoid only."},
    )
    lora_dropout_in_preference: bool = field(
        default=False,
        metadata={"help": "Keep LoRA's dropout, which is noise in every comparison with the reference."},
    )

    def __post_init__(self):
        if not self.beta > 0:
            raise ValueError(f"--beta is {self.beta}; expected a number above 0.")
        if self.preference_loss not in PREFERENCE_LOSSES:
            raise ValueError(f"--preference_loss is {self.preference_loss!r}; expected one of {PREFERENCE_LOSSES}.")
        if not 0 <= self.preference_smoothing < 0.5:
            raise ValueError(
                f"--preference_smoothing is {self.preference_smoothing}; expected a number from 0 to below 0.5."
            )
        if self.preference_smoothing and self.preference_loss != "sigmoid":
            raise ValueError(f"--preference_smoothing is not defined for --preference_loss {self.preference_loss}.")

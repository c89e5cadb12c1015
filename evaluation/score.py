"""
Score the raw outputs of an evaluation again, without running the model: other normalisers, other aligners, other metrics.

    audiollm score runs/evaluation
    audiollm score runs/evaluation --normaliser leaderboard --aligner kaldialign
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from audiollm.option_parser import parser_of

from .bootstrap import SAMPLES
from .reporting import told_of_report
from .scoring import SCORES_FILE, score_run, score_table
from .word_error import ALIGNERS, NORMALISERS


@dataclass
class ScoringOptions:
    """By what answers are scored."""

    normaliser: str | None = field(
        default=None,
        metadata={
            "help": "What makes texts alike before words are compared; each task's own if not given.",
            "choices": list(NORMALISERS),
        },
    )
    aligner: str | None = field(
        default=None,
        metadata={
            "help": "What counts word errors: jiwer, or kaldialign, to which split compounds are right; the one that "
            "belongs to the normaliser if not given.",
            "choices": list(ALIGNERS),
        },
    )
    samples: int = field(default=SAMPLES, metadata={"help": "Samples drawn for intervals and tests."})
    seed: int = field(default=0, metadata={"help": "Seed of the draws."})

    def __post_init__(self):
        if self.samples < 1:
            raise ValueError(f"--samples is {self.samples}; expected 1 or more")
        if self.seed < 0:
            raise ValueError(f"--seed is {self.seed}; expected 0 or more")


@dataclass
class ScoreOptions(ScoringOptions):
    """By what answers are scored, and whether the report is written anew."""

    no_report: bool = field(
        default=False, metadata={"help": "Leave out the report for people, which `audiollm report` writes as well."}
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Entry of `audiollm score` and `python -m audiollm.evaluation.score`."""
    parser = parser_of(ScoreOptions, "score", "FOLDER [options]", __doc__)
    parser.add_argument("folder", help="the --output_dir of audiollm evaluate")
    given = vars(parser.parse_args(list(sys.argv[1:] if argv is None else argv)))
    folder = given.pop("folder")
    try:
        options = ScoreOptions(**given)
        scores = score_run(folder, options.normaliser, options.aligner, options.samples, options.seed)
        print(score_table(scores))
        print(f"Written to {folder}/{SCORES_FILE}.")
        if not options.no_report:
            print(told_of_report(folder))
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"audiollm score: {error}")


if __name__ == "__main__":
    main()

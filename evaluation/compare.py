"""
Compare two models on the items that both have answered: differences with intervals, and whether they may be chance.

    audiollm compare runs/evaluation_a runs/evaluation_b
    audiollm compare runs/evaluation runs/evaluation --systems model whisper
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from audiollm.option_parser import parser_of

from .comparing import MODEL, compare_runs, comparison_table
from .outputs import write_whole
from .score import ScoringOptions


@dataclass
class CompareOptions(ScoringOptions):
    """What is compared."""

    systems: list[str] = field(
        default_factory=lambda: [MODEL],
        metadata={"help": "Which system of each: one name for both, or two, such as model whisper."},
    )
    tasks: list[str] = field(default_factory=list, metadata={"help": "Only these tasks; all in common if not given."})
    output: Path | None = field(default=None, metadata={"help": "Where to write the comparison as JSON."})

    def __post_init__(self):
        super().__post_init__()
        if len(self.systems) not in (1, 2):
            raise ValueError(f"--systems names {len(self.systems)}; expected one for both, or two")
        if self.output is not None and not self.output.parent.is_dir():
            raise ValueError(f"--output {self.output}: there is no folder {self.output.parent}")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry of `audiollm compare` and `python -m audiollm.evaluation.compare`."""
    parser = parser_of(CompareOptions, "compare", "FIRST SECOND [options]", __doc__)
    parser.add_argument("first", help="the --output_dir of audiollm evaluate")
    parser.add_argument("second", help="another, or the same with two --systems")
    given = vars(parser.parse_args(list(sys.argv[1:] if argv is None else argv)))
    first, second = given.pop("first"), given.pop("second")
    try:
        options = CompareOptions(**given)
        systems = (options.systems[0], options.systems[-1])
        if first == second and systems[0] == systems[1]:
            raise ValueError(f"{first} is compared with itself; name two --systems of it, or another folder")
        found = compare_runs(
            *(first, second, systems, options.tasks or None, options.normaliser, options.aligner),
            samples=options.samples,
            seed=options.seed,
        )
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"audiollm compare: {error}")
    print(comparison_table(found))
    if options.output is not None:
        write_whole(options.output, json.dumps(found, indent=1, ensure_ascii=False).encode())


if __name__ == "__main__":
    main()

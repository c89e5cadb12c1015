"""
Write the report of an evaluation: one page for people, the same in Markdown, and its figures as JSON.

    audiollm report runs/evaluation
    audiollm report runs/evaluation --worst 20 --max_html_mb 25 --data librispeech_clean=LibriSpeech/test-clean
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from audiollm.option_parser import parser_of

from .reporting import write_report
from .reporting.writing import MAX_HTML_MB, WORST


@dataclass
class ReportOptions:
    """What a report shows."""

    worst: int = field(default=WORST, metadata={"help": "Worst examples of each task that are shown."})
    max_html_mb: float = field(
        default=MAX_HTML_MB,
        metadata={
            "help": "Bound on the page, in MB; recordings that do not fit have no player, and the page says so."
        },
    )
    data: list[str] = field(
        default_factory=list,
        metadata={
            "aliases": ["--data_path"],
            "help": "TASK=COPY of tasks whose recordings are to be played and lie elsewhere than when they were read.",
        },
    )

    def __post_init__(self):
        if self.worst < 0:
            raise ValueError(f"--worst is {self.worst}; expected 0 or more")
        if not self.max_html_mb > 0:
            raise ValueError(f"--max_html_mb is {self.max_html_mb}; expected more than 0")
        wrong = [given for given in self.data if not all(given.partition("="))]
        if wrong:
            raise ValueError(f"--data is {wrong[0]!r}; expected TASK=COPY")

    def copies(self) -> dict[str, str]:
        """Copies by task."""
        return dict(given.split("=", 1) for given in self.data)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry of `audiollm report` and `python -m audiollm.evaluation.report`."""
    parser = parser_of(ReportOptions, "report", "FOLDER [options]", __doc__)
    parser.add_argument("folder", help="the --output_dir of audiollm evaluate")
    given = vars(parser.parse_args(list(sys.argv[1:] if argv is None else argv)))
    folder = given.pop("folder")
    try:
        options = ReportOptions(**given)
        written = write_report(folder, options.worst, options.max_html_mb, options.copies())
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"audiollm report: {error}")
    for sentence in written.left_out:
        print(sentence)
    print(f"Written to {written.page}, {written.markdown.name} and {written.figures.name}; {written.players} players.")


if __name__ == "__main__":
    main()

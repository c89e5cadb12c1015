"""
Choice accuracy by AIR-Bench's rule (`score_foundation.py` of OFA-Sys/AIR-Bench).

A letter from A to D counts where it is the first character of an answer, or else the last but one ("The answer is A.").
Answers with neither leave the denominator, as they do there, and are counted; the strict accuracy has them as wrong.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .measure import FRACTION, Answer, Convention, Measured

LETTERS = "ABCD"
#: What AIR-Bench holds to be no answer at all.
NO_ANSWER = "None"


def air_bench_letter(text: str) -> str | None:
    """The letter that an answer chooses by AIR-Bench's rule; None where it cannot be read."""
    answer = text.strip().replace("\n", "")
    if not answer or answer == NO_ANSWER:
        return None
    if answer[0] in LETTERS:
        return answer[0]
    return answer[-2] if len(answer) > 1 and answer[-2] in LETTERS else None


#: Rules by which an answer becomes a letter, by name.
PARSERS: dict[str, Callable[[str], str | None]] = {"air_bench": air_bench_letter}


def parser_named(name: str) -> Callable[[str], str | None]:
    """
    The rule of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in PARSERS:
        raise ValueError(f"There is no rule {name!r} to read choices by; expected one of {', '.join(PARSERS)}.")
    return PARSERS[name]


def right_letter(reference: str) -> str:
    """A reference as a letter: `B`, `b`, `B.` and `(B)` are the same."""
    return reference.strip().strip("().").upper()


def score_choices(answers: Sequence[str], references: Sequence[str], parsing: str = "air_bench") -> dict[str, Any]:
    """
    Both accuracies of answers, given as texts, and how many could not be read.

    Raises:
        ValueError: they differ in number, there is none, or no such rule.
    """
    if len(answers) != len(references) or not answers:
        raise ValueError(f"{len(references)} references but {len(answers)} answers; expected one each, and some.")
    given = [Answer(str(place), said, [right]) for place, (said, right) in enumerate(zip(answers, references))]
    by = Convention(parsing=parsing)
    readable, every = choice_accuracy(given, by), strict_choice_accuracy(given, by)
    return {
        "choice_accuracy": readable.value if readable.ids else None,
        "strict_choice_accuracy": every.value if every.ids else None,
        "answers": len(answers),
        "unparsable": readable.dropped.get("unparsable", 0),
    }


def choice_accuracy(answers: Sequence[Answer], by: Convention) -> Measured:
    """Right answers over readable ones."""
    return _accuracy(answers, by, unreadable_is_wrong=False)


def strict_choice_accuracy(answers: Sequence[Answer], by: Convention) -> Measured:
    """Right answers over all; one that cannot be read is wrong."""
    return _accuracy(answers, by, unreadable_is_wrong=True)


def _accuracy(answers: Sequence[Answer], by: Convention, unreadable_is_wrong: bool) -> Measured:
    parse = parser_named(by.parsing)
    kept = [answer for answer in answers if answer.reference.strip()]
    read = [(answer, parse(answer.text)) for answer in kept]
    scored = [(answer, letter) for answer, letter in read if letter is not None or unreadable_is_wrong]
    right = [letter == right_letter(answer.reference) for answer, letter in scored]
    dropped = {"skipped_empty_reference": len(answers) - len(kept), "unparsable": len(kept) - len(scored)}
    rule = "wrong" if unreadable_is_wrong else "left out"
    return Measured(
        statistics=np.array([(one, 1) for one in right], dtype=np.float64).reshape(-1, 2),
        ids=[answer.id for answer, _ in scored],
        unit=FRACTION,
        signature=f"parsing:{by.parsing}|unparsable:{rule}",
        items={answer.id: {"chosen": letter, "right": one} for (answer, letter), one in zip(scored, right)},
        dropped={reason: count for reason, count in dropped.items() if count},
    )


__all__ = [
    "PARSERS",
    "air_bench_letter",
    "choice_accuracy",
    "parser_named",
    "right_letter",
    "score_choices",
    "strict_choice_accuracy",
]

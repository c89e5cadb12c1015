"""The items that a model did worst on, with what the others wrote, for a reader's own eyes."""

from collections.abc import Mapping, Sequence
from typing import Any

from .alignment import aligned, as_json, shortened
from .breakdown import SPELLED

Row = Mapping[str, Any]
#: Characters of one text that are shown; longer ones say how much is left out.
MAX_CHARACTERS_SHOWN = 600
#: Measures whose items are worse the lower their `score` is.
SCORED_LOWER_IS_WORSE = ("bleu", "rouge1", "cider_d", "judge_score")


def worst_rows(rows: Sequence[Row], metric: str, count: int) -> list[Row]:
    """
    The items that cost a figure most, worst first; none that are right.

    By number of wrong words or characters, then by their share; wrong choices and words in silence in the order of the
    items; else the lowest scores.
    """
    scored = [row for row in rows if row.get("scored", True)]
    if metric in SPELLED:
        errors, length = SPELLED[metric] + "errors", "words" if metric == "word_error" else "characters"
        wrong = [row for row in scored if row.get(errors)]
        return sorted(wrong, key=lambda row: (-row[errors], -row[errors] / max(row.get(length) or 0, 1)))[:count]
    if metric == "choice_accuracy":
        return [row for row in rows if row.get("right") is False][:count]
    if metric == "no_speech_rate":
        heard = [row for row in scored if row.get("heard_speech")]
        return sorted(heard, key=lambda row: -len(row.get("output") or ""))[:count]
    if metric in SCORED_LOWER_IS_WORSE:
        return sorted((row for row in scored if row.get("score") is not None), key=lambda row: row["score"])[:count]
    return []


def order_told(metric: str) -> str:
    """By what the worst items are chosen, in words."""
    if metric in SPELLED:
        return "most wrong words first" if metric == "word_error" else "most wrong characters first"
    if metric == "choice_accuracy":
        return "wrong or unreadable choices, in the order of the questions"
    if metric == "no_speech_rate":
        return "longest answers to recordings without speech first"
    return "lowest scores first"


def example(row: Row, metric: str, others: Mapping[str, Row], question: str | None) -> dict[str, Any]:
    """
    One item as a report shows it.

    Args:
        row: of the model.
        others: rows of the other systems, by system.
        question: what was asked in words besides the recording, if anything.
    """
    shown: dict[str, Any] = {
        "id": row["id"],
        "duration_s": row.get("duration_s") or None,
        "question": cut(question) if question else None,
        "reference": cut(row.get("reference") or ""),
        "output": cut(row.get("output") or ""),
        "finish": row.get("finish"),
        "others": {system: cut(other.get("output") or "") for system, other in others.items()},
        "score": row.get("score") if metric in SCORED_LOWER_IS_WORSE else None,
        "chosen": row.get("chosen"),
        "alignment": None,
        "errors": None,
    }
    if metric in SPELLED and row.get("normalised_reference"):
        length = "words" if metric == "word_error" else "characters"
        shown["errors"] = {"count": row[SPELLED[metric] + "errors"], "of": row[length], "unit": length}
        pairs = aligned(row["normalised_reference"], row["normalised_output"], metric == "character_error")
        shown["alignment"] = as_json(shortened(pairs))
    return shown


def cut(text: str) -> str:
    """A text, or its beginning and how much more there is."""
    if len(text) <= MAX_CHARACTERS_SHOWN:
        return text
    return f"{text[:MAX_CHARACTERS_SHOWN]} … ({len(text) - MAX_CHARACTERS_SHOWN:,} more characters)"


def ids_of(examples: Sequence[Mapping[str, Any]]) -> list[str]:
    """Whose examples these are."""
    return [each["id"] for each in examples]


__all__ = ["cut", "example", "ids_of", "order_told", "worst_rows"]

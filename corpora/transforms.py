"""What columns of real corpora need before they are fields of a clip: a fixed vocabulary that tables refer to by name."""

import re
from collections.abc import Callable
from typing import Any

from . import letter_case

#: What GigaSpeech writes for punctuation, and in place of a transcript where nobody speaks.
GIGASPEECH_PUNCTUATION = {"<COMMA>": ",", "<PERIOD>": ".", "<QUESTIONMARK>": "?", "<EXCLAMATIONPOINT>": "!"}
GIGASPEECH_NOT_SPEECH = ("<SIL>", "<NOISE>", "<MUSIC>", "<OTHER>")
SENTENCE = re.compile(r"[^.!?]+[.!?]*")


class UnusableValueError(ValueError):
    """A value that a row cannot be used with; the message says why."""


def gigaspeech_tags(text: Any) -> str:
    """
    A transcript of GigaSpeech with its punctuation as marks.

    Raises:
        UnusableValueError: it is the tag of a recording without speech.
    """
    words = str(text).split()
    tags = [word for word in words if word in GIGASPEECH_NOT_SPEECH]
    if tags:
        raise UnusableValueError(f"is tagged {tags[0]}: nothing is said in it that could be transcribed")
    marked = " ".join(GIGASPEECH_PUNCTUATION.get(word, word) for word in words)
    for mark in GIGASPEECH_PUNCTUATION.values():
        marked = marked.replace(f" {mark}", mark)
    return marked


def sentence_case(text: Any) -> str:
    """English that was all capitals, as its sentences are written."""
    return SENTENCE.sub(lambda match: letter_case.sentence(match[0]), str(text))


def first_item(values: Any) -> Any:
    """
    The first of several right answers.

    Raises:
        UnusableValueError: there is none.
    """
    if not isinstance(values, (list, tuple)):
        return values
    if not values:
        raise UnusableValueError("is an empty list")
    return values[0]


def yes_or_no(value: Any) -> str:
    """A truth value as a spoken question is answered."""
    return "Yes." if value else "No."


TRANSFORMS: dict[str, Callable[[Any], Any]] = {
    "first_item": first_item,
    "gigaspeech_tags": gigaspeech_tags,
    "sentence_case": sentence_case,
    "yes_or_no": yes_or_no,
}

__all__ = ["TRANSFORMS", "UnusableValueError", "first_item", "gigaspeech_tags", "sentence_case", "yes_or_no"]

"""Letter case for transcripts that have none, such as LibriSpeech's, which are all capitals."""

import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import yaml

WORDS_FILE = Path(__file__).parent / "cased_words.yaml"
#: A word: letters and digits of any script, and apostrophes and hyphens inside.
WORD = re.compile(r"\w+(?:['’-]\w+)*")
#: The word "I" and its contractions.
FIRST_PERSON = re.compile(r"i(?:'(?:m|ll|d|ve))?")


@lru_cache(maxsize=1)
def _cased_words() -> dict[str, str]:
    """Return words that are never in lower case, by their lower case."""
    table = yaml.safe_load(WORDS_FILE.read_text(encoding="utf-8"))
    return {word.lower(): word for words in table.values() for word in words.split()}


def _cased(word: str) -> str:
    """Return a word in the case that it has inside a sentence."""
    lower = word.lower()
    if FIRST_PERSON.fullmatch(lower.replace("’", "'")):
        return lower.capitalize()
    stem, apostrophe, ending = lower.partition("'")
    known = _cased_words().get(lower) or (apostrophe and ending == "s" and _cased_words().get(stem))
    if not known:
        return lower
    return known if known.lower() == lower else f"{known}'s"


def _capitalized(text: str) -> str:
    """Return a text with its first letter as a capital, if no digit comes first; the others stay as they are."""
    for index, character in enumerate(text):
        if character.isalnum():
            return text[:index] + character.upper() + text[index + 1 :]
    return text


def sentence(text: str) -> str:
    """Return a text in lower case, but for its first letter, "I", and words that are never in lower case."""
    return _capitalized(WORD.sub(lambda match: _cased(match[0]), text))


#: Changes to a transcript's case, by name.
LETTER_CASES: dict[str, Callable[[str], str]] = {"sentence": sentence, "lower": str.lower, "keep": str}

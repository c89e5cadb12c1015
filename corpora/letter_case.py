"""
Letter case for transcripts that have none, such as LibriSpeech's, which are all capitals.

[`sentence`] guesses from the words alone; [`restore_from`] copies case and punctuation from a cased transcript of the same
recording, such as Whisper's, wherever its words are the same. The words themselves never change.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import jiwer
import yaml

WORDS_FILE = Path(__file__).parent / "cased_words.yaml"
#: A word: letters and digits of any script, and apostrophes and hyphens inside.
WORD = re.compile(r"\w+(?:['’-]\w+)*")
#: The same without hyphens, which one transcript has where another has a space.
PIECE = re.compile(r"\w+(?:['’]\w+)*")
#: A word of a transcript without punctuation, with apostrophes at its ends as in 'tis.
TOKEN = re.compile(r"[^\s-]+")
#: What follows "I" in its contractions.
FIRST_PERSON = re.compile(r"i(?:'(?:m|ll|d|ve))?")
SENTENCE_ENDS = ".?!"
#: Punctuation that is copied from behind a word.
CLOSING_MARKS = re.compile(r"[.,?!;:]+")
#: Such a mark where it is punctuation: not that of 3.5 or 7:30.
OWN_MARK = re.compile(r"[.,?!;:…。，、？！；：](?:\W|$)")


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
    """
    Return a text as a sentence: lower case, but for its first letter, "I", and words that are never in lower case.

    A transcript that is cut out of the middle of a sentence gets its capital all the same.
    """
    return _capitalized(WORD.sub(lambda match: _cased(match[0]), text))


#: Changes to a transcript's case, by name.
LETTER_CASES: dict[str, Callable[[str], str]] = {"sentence": sentence, "lower": str.lower, "keep": str}


def has_punctuation(text: str) -> bool:
    """Return whether a transcript has full stops, commas or their like at the end of any word."""
    return OWN_MARK.search(text) is not None


def restore_from(reference: str, hypothesis: str) -> str:
    """
    Return a reference without case or punctuation, with those of a hypothesis of the same recording.

    Words are aligned by least edits, and none changes but in case. A word of both is written as in the hypothesis; where
    the hypothesis has another word, only a capital is copied; a word of the reference alone is cased as in a sentence.
    Full stops, commas and their like are copied from behind the aligned words; hyphens, dashes and quotation marks are
    not.
    """
    hypothesis = hypothesis.replace("’", "'")
    said, heard = list(TOKEN.finditer(reference)), list(PIECE.finditer(hypothesis))
    if not said or not heard:
        return sentence(reference)
    partners = _aligned([_core(match[0]) for match in said], [match[0].lower() for match in heard])
    written, held = "", ""
    for index, match in enumerate(said):
        partner, last = partners[index], index + 1 == len(said)
        starts = not written or written.rstrip()[-1] in SENTENCE_ENDS
        written += _word_like(match[0], heard[partner][0] if partner is not None else None, starts)
        if partner is not None:
            marks = CLOSING_MARKS.match(hypothesis, heard[partner].end())
            held = marks[0] if marks else ""
        # Marks wait for the end of the words that the hypothesis lacks: they close the same phrase.
        if last or partners[index + 1] is not None:
            written, held = written + held, ""
        written += "" if last else reference[match.end() : said[index + 1].start()]
    return written


def _core(word: str) -> str:
    """Return the part of a word that is compared: lower case, without apostrophes at its ends."""
    lower = word.replace("’", "'").lower()
    found = PIECE.search(lower)
    return found[0] if found else lower


def _aligned(said: list[str], heard: list[str]) -> list[int | None]:
    """Return for each word that was said the place of the one that was heard for it, if any."""
    partners: list[int | None] = [None] * len(said)
    # Words that come in no text, so that jiwer, which joins and splits them, finds each as it was.
    for chunk in jiwer.process_words(" ".join(said), " ".join(heard)).alignments[0]:
        if chunk.type in ("equal", "substitute"):
            for offset in range(chunk.ref_end_idx - chunk.ref_start_idx):
                partners[chunk.ref_start_idx + offset] = chunk.hyp_start_idx + offset
    return partners


def _word_like(word: str, heard: str | None, starts: bool) -> str:
    """Return a word in the case of the one that was heard for it."""
    core = _core(word)
    if heard is not None and heard.lower() == core:
        return word.replace("’", "'").lower().replace(core, heard, 1)
    cased = WORD.sub(lambda match: _cased(match[0]), word)
    # A capital at a sentence's start says nothing of the word, except that there it has one.
    if starts or (heard is not None and heard[0].isupper() and not FIRST_PERSON.fullmatch(heard.lower())):
        return _capitalized(cased)
    return cased

"""Normalisers by name: they make texts alike before their words are compared."""

import re
from collections.abc import Callable
from functools import lru_cache

from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

#: Codes of English by BCP 47 and by ISO 639-3.
ENGLISH = frozenset({"en", "eng"})
#: Languages that put no spaces between words, as BCP 47 and ISO 639-3 call them.
LANGUAGES_WITHOUT_SPACES = frozenset(
    {"zh", "zho", "cmn", "yue", "wuu", "nan", "hak"}  # Chinese
    | {"ja", "jpn", "th", "tha", "lo", "lao", "km", "khm", "my", "mya", "bo", "bod"}  # Japanese to Tibetan
)


@lru_cache(maxsize=1)
def _normalizer() -> EnglishTextNormalizer:
    return EnglishTextNormalizer({})


def normalize_english(text: str) -> str:
    """Whisper's English text normaliser (Radford et al. 2022, appendix C): lower case, no punctuation, numbers alike."""
    return _normalizer()(text)


#: Functions that make texts alike before their words are compared, by name: Whisper's normaliser for English; its own for any
#: language that puts spaces between words (lower case, no punctuation); the same with every character a word of its
#: own, for languages that put none, so that word error is character error; nothing.
NORMALISERS: dict[str, Callable[[str], str]] = {
    "english": normalize_english,
    "basic": BasicTextNormalizer(),
    "characters": BasicTextNormalizer(split_letters=True),
    "none": str,
}


def has_words(text: str, normaliser: str = "english") -> bool:
    """Return whether a text has a word left once normalised; of an ellipsis the English normaliser leaves a full stop."""
    return any(map(str.isalnum, NORMALISERS[normaliser](text)))


def language_of(language: str | None) -> str:
    """
    Return a language's code without its region; that of English where nothing is said.

    A language is called as a corpus does: `en`, `en-GB`, `en_us`, `english`, `cmn_hans_cn`.
    """
    name = (language or "english").strip().lower()
    return re.split(r"[-_]", TO_LANGUAGE_CODE.get(name, name))[0]


def is_english(language: str | None) -> bool:
    """Return whether a language is English, as it is where nothing is said."""
    return language_of(language) in ENGLISH


def normaliser_for(language: str | None) -> str:
    """Return the normaliser that fits a language, as Whisper's authors scored it; see [`language_of`]."""
    if language_of(language) in LANGUAGES_WITHOUT_SPACES:
        return "characters"
    return "english" if is_english(language) else "basic"


def clip_word_error(reference: str, hypothesis: str, normaliser: str = "english") -> float:
    """
    Return substitutions, deletions and insertions in percent of the reference's words, both normalised; may exceed 100.

    Whisper's normalisers leave out punctuation, and whatever stands in brackets, as `<unk>` or `[noise]`. With
    `characters` it is the character error. ValueError is raised if the reference has no word left once normalised.
    """
    import jiwer  # of the extras, which whoever normalises alone may lack

    if not has_words(reference, normaliser):
        raise ValueError(f"its transcript {reference!r} has no word left after the normaliser {normaliser!r}")
    result = jiwer.process_words(NORMALISERS[normaliser](reference), NORMALISERS[normaliser](hypothesis))
    errors = result.substitutions + result.deletions + result.insertions
    # One division, so that 7 errors in 100 words are 7 and not a little more.
    return 100 * errors / (result.hits + result.substitutions + result.deletions)

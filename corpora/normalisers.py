"""Normalisers by name: they make texts alike before their words are compared."""

import re
from collections.abc import Callable
from functools import lru_cache

from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

#: What English is called: by BCP 47, by ISO 639-3.
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


#: What makes texts alike before their words are compared, by name: Whisper's normaliser for English; its own for any
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


def normaliser_for(language: str | None) -> str:
    """
    The normaliser that fits a language, as Whisper's authors scored it.

    Args:
        language: as a corpus calls it: `en`, `en-GB`, `en_us`, `english`, `cmn_hans_cn`; English where it says nothing.
    """
    name = (language or "english").strip().lower()
    code = re.split(r"[-_]", TO_LANGUAGE_CODE.get(name, name))[0]
    if code in LANGUAGES_WITHOUT_SPACES:
        return "characters"
    return "english" if code in ENGLISH else "basic"

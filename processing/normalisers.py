"""What makes texts alike before their words are compared, each normaliser by its name."""

from collections.abc import Callable
from functools import lru_cache

from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer


@lru_cache(maxsize=1)
def _normalizer() -> EnglishTextNormalizer:
    return EnglishTextNormalizer({})


def normalize_english(text: str) -> str:
    """Whisper's English text normaliser (Radford et al. 2022, appendix C): lower case, no punctuation, numbers alike."""
    return _normalizer()(text)


#: What makes texts alike before their words are compared, by name: Whisper's normaliser for English; its own for any
#: language that puts spaces between words (lower case, no punctuation); nothing.
NORMALISERS: dict[str, Callable[[str], str]] = {
    "english": normalize_english,
    "basic": BasicTextNormalizer(),
    "none": str,
}


__all__ = ["NORMALISERS", "normalize_english"]

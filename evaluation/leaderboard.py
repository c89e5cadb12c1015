"""The Open ASR Leaderboard's text normaliser and its rule of which references count, so that its figures can be compared."""

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from transformers.models.whisper.english_normalizer import EnglishSpellingNormalizer, EnglishTextNormalizer

TABLES_FILE = Path(__file__).parent / "open_asr_leaderboard" / "english.yaml"
#: Pattern that Whisper's own normaliser replaces everywhere, and the leaderboard only after some words.
IS_CONTRACTION = r"'s\b"
#: A normalised reference that is not to be scored (of TED-LIUM's format).
IGNORED_SEGMENT = "ignore time segment in scoring"
#: Letters that are words, so that only longer runs of single characters are held to be an acronym.
ONE_LETTER_WORDS = frozenset("ai")
MIN_ACRONYM, MIN_ACRONYM_WITH_WORDS = 2, 3


def join_acronyms(text: str) -> str:
    """
    Return a text with runs of single letters and digits as one word: `b b c` is `bbc`, `5 g` is `5g`.

    A run with `a` or `i` in it, which are words, takes three: `a b` stays, `a b c` becomes `abc`.
    """
    words: list[str] = []
    run: list[str] = []
    for word in [*text.split(), ""]:
        if len(word) == 1 and word.isalnum():
            run.append(word)
            continue
        shortest = MIN_ACRONYM if ONE_LETTER_WORDS.isdisjoint(run) else MIN_ACRONYM_WITH_WORDS
        words += ["".join(run)] if len(run) >= shortest else run
        words.append(word)
        run = []
    return " ".join(words[:-1])


@lru_cache(maxsize=1)
def _normaliser() -> EnglishTextNormalizer:
    """Whisper's English normaliser with the leaderboard's additions: more fillers and compounds, names, acronyms."""
    tables = yaml.safe_load(TABLES_FILE.read_text(encoding="utf-8"))
    normaliser: Any = EnglishTextNormalizer(tables["spellings"])
    normaliser.ignore_patterns = rf"\b({'|'.join(tables['ignored'])})\b"
    is_after_word = rf"\b({'|'.join(tables['followed_by_is'])})'s\b"
    renamed = {IS_CONTRACTION: (is_after_word, r"\1 is")}
    normaliser.replacers = dict(
        renamed.get(pattern, (pattern, with_)) for pattern, with_ in normaliser.replacers.items()
    )
    compounds = [(re.compile(pattern), replacement) for pattern, replacement in tables["compounds"].items()]
    numbers, spellings = normaliser.standardize_numbers, normaliser.standardize_spellings
    names = EnglishSpellingNormalizer(tables["names"])

    def compounds_and_numbers(text: str) -> str:
        for pattern, replacement in compounds:
            text = pattern.sub(replacement, text)
        return numbers(text)

    normaliser.standardize_numbers = compounds_and_numbers
    normaliser.standardize_spellings = lambda text: join_acronyms(names(spellings(text)))
    return normaliser


def normalize_leaderboard(text: str) -> str:
    """
    Return a text as `normalizer.EnglishTextNormalizer` of huggingface/open_asr_leaderboard does (commit d1e99b2).

    Its tables are in `open_asr_leaderboard/english.yaml`.
    """
    return _normaliser()(text)

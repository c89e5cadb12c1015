"""The Open ASR Leaderboard's text normaliser and its rule of which references count, so that its figures can be compared."""

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import yaml
from transformers.models.whisper.english_normalizer import (
    EnglishNumberNormalizer,
    EnglishSpellingNormalizer,
    EnglishTextNormalizer,
)

TABLES_FILE = Path(__file__).parent / "open_asr_leaderboard" / "english.yaml"
#: What Whisper's own normaliser does with every 's, and the leaderboard only after some words.
IS_CONTRACTION = r"'s\b"
#: A reference that says that nothing of it is to be scored, once normalised (of TED-LIUM's format).
IGNORED_SEGMENT = "ignore time segment in scoring"
#: Letters that are words, so that only longer runs of single characters are held to be an acronym.
ONE_LETTER_WORDS = frozenset("ai")
MIN_ACRONYM, MIN_ACRONYM_WITH_WORDS = 2, 3


class LeaderboardNormaliser(EnglishTextNormalizer):
    """
    Whisper's English normaliser with the leaderboard's additions: more fillers and compounds, names, acronyms.

    Gives what `normalizer.EnglishTextNormalizer` of huggingface/open_asr_leaderboard gives (commit d1e99b2), whose tables
    are in `open_asr_leaderboard/english.yaml`.
    """

    def __init__(self) -> None:
        tables = yaml.safe_load(TABLES_FILE.read_text(encoding="utf-8"))
        super().__init__(tables["spellings"])
        self.ignore_patterns = rf"\b({'|'.join(tables['ignored'])})\b"
        is_after_word = rf"\b({'|'.join(tables['followed_by_is'])})'s\b"
        renamed = {IS_CONTRACTION: (is_after_word, r"\1 is")}
        self.replacers = dict(renamed.get(pattern, (pattern, with_)) for pattern, with_ in self.replacers.items())
        self.standardize_numbers = CompoundsAndNumbers(tables["compounds"])
        self.standardize_spellings = SpellingsAndNames(tables["spellings"], tables["names"])


class CompoundsAndNumbers(EnglishNumberNormalizer):
    """Compounds become one word, then numbers digits, as in Whisper's normaliser."""

    def __init__(self, compounds: Mapping[str, str]):
        super().__init__()
        self.compounds = [(re.compile(pattern), replacement) for pattern, replacement in compounds.items()]

    def __call__(self, s: str) -> str:
        for pattern, replacement in self.compounds:
            s = pattern.sub(replacement, s)
        return super().__call__(s)


class SpellingsAndNames(EnglishSpellingNormalizer):
    """One spelling of each word, as in Whisper's normaliser, then one of each name, then acronyms in one word."""

    def __init__(self, spellings: Mapping[str, str], names: Mapping[str, str]):
        super().__init__(spellings)
        self.names = EnglishSpellingNormalizer(names)

    def __call__(self, s: str) -> str:
        return join_acronyms(self.names(super().__call__(s)))


def join_acronyms(text: str) -> str:
    """
    Runs of single letters and digits as one word: `b b c` is `bbc`, `5 g` is `5g`.

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
def _normaliser() -> LeaderboardNormaliser:
    return LeaderboardNormaliser()


def normalize_leaderboard(text: str) -> str:
    """See [`LeaderboardNormaliser`]."""
    return _normaliser()(text)

"""Case for transcripts that are all capitals: words never change, and most of them come out right."""

import re

import pytest
from audiollm.corpora.letter_case import LETTER_CASES, sentence
from audiollm.corpora.prompts import load_studio_prompts


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("I THOUGHT I'D SEE WHAT I'LL DO", "I thought I'd see what I'll do"),
        ("ON MONDAY MISTER BROWN WENT TO LONDON", "On Monday mister brown went to London"),
        ("'TIS GOD'S WILL", "'Tis God's will"),
        ("ÉTÉ", "Été"),
        ("", ""),
        ("2 OR I", "2 or I"),
    ],
)
def test_sentence_case(given: str, expected: str) -> None:
    assert sentence(given) == expected


def test_real_transcripts_are_guessed_better_than_in_lower_case() -> None:
    texts = [re.findall(r"[\w']+", text) for text in load_studio_prompts("test")["text"]]

    def share_right(letter_case: str) -> float:
        made = [LETTER_CASES[letter_case](" ".join(words).upper()).split() for words in texts]
        pairs = [pair for one, other in zip(texts, made) for pair in zip(one, other, strict=True)]
        assert all(left.lower() == right.lower() for left, right in pairs)
        return sum(left == right for left, right in pairs) / len(pairs)

    assert share_right("keep") < share_right("lower") < share_right("sentence")

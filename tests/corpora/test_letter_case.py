"""Case and punctuation for transcripts that are all capitals: words never change, and most of them come out right."""

import re

import pytest
from audiollm.corpora.letter_case import (
    LETTER_CASES,
    has_punctuation,
    letter_case_named,
    restore_from,
    sentence,
)
from audiollm.corpora.prompts import load_studio_prompts
from hypothesis import given
from hypothesis import strategies as st


def capitals(text: str) -> str:
    """As LibriSpeech would have it."""
    return " ".join(re.findall(r"[\w']+", text.replace("-", " "))).upper()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("I THOUGHT I'D SEE WHAT I'LL DO", "I thought I'd see what I'll do"),
        ("ON MONDAY MISTER BROWN WENT TO LONDON", "On Monday mister brown went to London"),
        ("'TIS GOD'S WILL", "'Tis God's will"),
        ("THE FRENCHMEN'S BOATS IN IT", "The Frenchmen's boats in it"),
        ("ÉTÉ", "Été"),
        ("", ""),
        ("2 OR I", "2 or I"),
    ],
)
def test_sentence_case(given: str, expected: str) -> None:
    assert sentence(given) == expected


def test_each_letter_case_does_what_it_says() -> None:
    text = "MAY I COME ON MONDAY"
    made = {name: letter_case_named(name)(text) for name in LETTER_CASES}
    assert made == {"sentence": "May I come on Monday", "lower": "may i come on monday", "keep": text}
    with pytest.raises(ValueError, match=r"no letter case 'title'; expected one of sentence, lower, keep"):
        letter_case_named("title")


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("WELL I MET CAROLINE IN OSLO", "Well, I met Caroline in Oslo.", "Well, I met Caroline in Oslo."),
        ("WELL I MET CAROLINE IN OSLO", "Well, I met Carolyn in Oslo.", "Well, I met Caroline in Oslo."),
        ("WE HAVE TWENTY OPEN SOURCE USB KEYS", "We have 20 open-source USB keys!", "We have twenty open source USB keys!"),
        ("AND THEN HE LEFT US THERE", "and then he left.", "and then he left us there."),
        ("HE LEFT", "He really left, you know.", "He left,"),
        ("'TIS THE BOYS' HOME", "Tis the boys’ home.", "'Tis the boys' home."),
        ("NO SHE SAID", "“No,” she said.", "No, she said."),
        ("I DO", "", "I do"),
        ("", "Thank you.", ""),
        ("RE-RECORD IT", "Re-record it.", "Re-record it."),
    ],
)  # fmt: skip
def test_case_and_punctuation_are_copied_where_words_agree(reference: str, hypothesis: str, expected: str) -> None:
    assert restore_from(reference, hypothesis) == expected


@given(
    st.lists(st.sampled_from(["THE", "I'M", "'TIS", "BOYS'", "CAT", "PARIS", "TWO", "É", "A"]), max_size=8),
    st.text(alphabet="thecaTtwo I'm,.?! -“Paris", max_size=40),
)
def test_words_never_change(reference: list[str], hypothesis: str) -> None:
    made = restore_from(" ".join(reference), hypothesis)
    assert [re.sub(r"[.,?!;:]+$", "", word).upper() for word in made.split()] == reference
    assert [word.upper() for word in sentence(" ".join(reference)).split()] == reference


def share_right(references: list[str], made: list[str]) -> float:
    pairs = [
        pair
        for reference, text in zip(references, made, strict=True)
        for pair in zip(re.findall(r"[\w']+", reference), re.findall(r"[\w']+", text), strict=True)
    ]
    return sum(left == right for left, right in pairs) / len(pairs)


def test_on_real_transcripts_a_cased_hypothesis_is_better_than_guessing() -> None:
    texts = load_studio_prompts("test")["text"]
    lower = share_right(texts, [LETTER_CASES["lower"](capitals(text)) for text in texts])
    guessed = share_right(texts, [sentence(capitals(text)) for text in texts])
    copied = share_right(texts, [restore_from(capitals(text), text) for text in texts])
    assert lower < guessed < copied == 1.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("HELLO WORLD", False),
        ("On Monday at 7:30 it was 3.5 degrees", False),
        ("the U.S. army", True),
        ("Well, yes", True),
        ("Yes.", True),
        ('"Yes!"', True),
        ("你好。", True),
    ],
)
def test_punctuation_of_its_own_is_seen(text: str, expected: bool) -> None:
    assert has_punctuation(text) is expected

"""Case and punctuation for transcripts that are all capitals: words never change, and most of them come out right."""

import re

import pytest
from audiollm.corpora.letter_case import LETTER_CASES, has_punctuation, restore_from, sentence
from audiollm.corpora.prompts import load_studio_prompts
from hypothesis import given
from hypothesis import strategies as st


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


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
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


def test_on_real_transcripts_a_cased_hypothesis_is_better_than_guessing() -> None:
    texts = load_studio_prompts("test")["text"]
    capitals = [" ".join(re.findall(r"[\w']+", text.replace("-", " "))).upper() for text in texts]

    def share_right(made: list[str]) -> float:
        words = [[re.findall(r"[\w']+", text) for text in some] for some in (texts, made)]
        pairs = [pair for one, other in zip(*words) for pair in zip(one, other, strict=True)]
        return sum(left == right for left, right in pairs) / len(pairs)

    lower, guessed = (share_right(list(map(LETTER_CASES[name], capitals))) for name in ("lower", "sentence"))
    assert lower < guessed < share_right(list(map(restore_from, capitals, texts))) == 1.0


def test_punctuation_of_its_own_is_seen() -> None:
    assert not any(map(has_punctuation, ("HELLO WORLD", "On Monday at 7:30 it was 3.5 degrees")))
    assert all(map(has_punctuation, ("the U.S. army", "Well, yes", "Yes.", '"Yes!"', "你好。")))

"""Word error: against examples counted by hand, and against jiwer on its own."""

import jiwer
import pytest
from audiollm.corpora.normalisers import has_words
from audiollm.evaluation import normalize_english, score_word_error


@pytest.mark.parametrize(
    ("reference", "hypothesis", "substitutions", "deletions", "insertions", "words"),
    [
        ("the cat sat", "the cat sat", 0, 0, 0, 3),
        ("the cat sat", "the hat sat", 1, 0, 0, 3),
        ("the cat sat", "the sat", 0, 1, 0, 3),
        ("the cat sat", "the cat sat down", 0, 0, 1, 3),
        ("the cat sat", "", 0, 3, 0, 3),
        ("yes", "no no no", 1, 0, 2, 1),
        ("a b c d", "b c x d e", 0, 1, 2, 4),
        ("The cat, sat!", "the CAT sat.", 0, 0, 0, 3),
        ("I'm twenty one", "I am 21", 0, 0, 0, 3),
    ],
)
def test_counts_by_hand(reference, hypothesis, substitutions, deletions, insertions, words) -> None:
    score = score_word_error([reference], [hypothesis])
    assert (score.substitutions, score.deletions, score.insertions) == (substitutions, deletions, insertions)
    assert score.reference_words == words
    assert score.word_error == pytest.approx((substitutions + deletions + insertions) / words)


def test_a_corpus_is_scored_by_words_not_by_clips() -> None:
    references = ["press the star key", "goodbye", "please hold the line"]
    hypotheses = ["press the star key", "hello", "please hold a line now"]
    score = score_word_error(references, hypotheses)
    assert score.word_error == pytest.approx(3 / 9)
    assert (score.clips, score.skipped) == (3, 0)
    normalised = [[normalize_english(text) for text in texts] for texts in (references, hypotheses)]
    assert score.word_error == pytest.approx(jiwer.wer(*normalised))
    assert score.to_dict() == {
        "word_error": score.word_error,
        "substitutions": 2,
        "deletions": 0,
        "insertions": 1,
        "reference_words": 9,
        "clips": 3,
        "skipped": 0,
    }


def test_references_without_a_word_are_dropped_and_counted() -> None:
    score = score_word_error(["yes", "...", "[noise]", ""], ["yes", "a", "b", "c"])
    assert (score.word_error, score.clips, score.skipped) == (0.0, 1, 3)


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(ValueError, match="2 references but 1 hypotheses"):
        score_word_error(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="No reference has a word"):
        score_word_error(["..."], ["a"])


@pytest.mark.parametrize(
    ("normaliser", "errors"),
    [("english", [0, 0, 1 / 2]), ("basic", [1, 0, 1 / 2]), ("none", [1, 1, 1])],
)
def test_the_normaliser_says_what_is_alike(normaliser, errors) -> None:
    pairs = [("Ten dollars.", "$10"), ("Oui, été!", "oui été"), ("Ja, nein.", "ja ein")]
    assert [score_word_error([r], [h], normaliser).word_error for r, h in pairs] == errors
    assert has_words("été", normaliser) and not has_words("...", normaliser)

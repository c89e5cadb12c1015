"""Our word error is the Open ASR Leaderboard's, on real pairs: what its own code made of them lies in leaderboard/pairs.json."""

import json
from pathlib import Path

import pytest
from audiollm.evaluation.leaderboard import join_acronyms, normalize_leaderboard
from audiollm.evaluation.word_error import score_word_error, word_errors

PAIRS_FILE = Path(__file__).parent / "leaderboard" / "pairs.json"
LEADERBOARD = {"normaliser": "leaderboard"}


@pytest.fixture(scope="module")
def scored() -> dict:
    """Pairs of prompt and transcript with the leaderboard's normalised texts and counts."""
    return json.loads(PAIRS_FILE.read_text(encoding="utf-8"))


def test_texts_are_normalised_alike(scored) -> None:
    pairs = scored["pairs"] + scored["written"]
    assert len(scored["pairs"]) >= 200
    for pair in pairs:
        for text in ("text", "heard"):
            assert normalize_leaderboard(pair[text]) == pair[f"normalised_{text}"], pair[text]


def test_every_pair_has_the_same_errors(scored) -> None:
    pairs = scored["pairs"] + scored["written"]
    found = word_errors([pair["text"] for pair in pairs], [pair["heard"] for pair in pairs], **LEADERBOARD)
    for pair, ours in zip(pairs, found):
        counts = [ours.substitutions, ours.deletions, ours.insertions]
        assert (counts, ours.length) == (pair["errors"], pair["words"]), pair["text"]


def test_the_corpus_has_the_figure_that_the_leaderboard_prints(scored) -> None:
    pairs, totals = scored["pairs"], scored["totals"]
    score = score_word_error([pair["text"] for pair in pairs], [pair["heard"] for pair in pairs], **LEADERBOARD)
    assert round(100 * score.word_error, 2) == totals["word_error_percent"]
    for kind in ("substitutions", "deletions", "insertions"):
        assert getattr(score, kind) == totals[kind]


def test_the_convention_is_another_than_whispers(scored) -> None:
    pairs = scored["pairs"] + scored["written"]
    texts = [pair["text"] for pair in pairs], [pair["heard"] for pair in pairs]
    assert score_word_error(*texts, "leaderboard").word_error < score_word_error(*texts, "english").word_error


def test_its_references_without_a_word_are_dropped_by_its_rule() -> None:
    said = ["", "um", "Ignore time segment in scoring.", "yes"]
    found = word_errors(said, ["a", "b", "c", "yes"], **LEADERBOARD)
    assert [pair.skipped for pair in found] == [
        "skipped_empty_reference",
        "skipped_empty_reference",
        "skipped_ignored_segment",
        None,
    ]
    assert score_word_error(said, ["a", "b", "c", "yes"], **LEADERBOARD).skipped == 3


@pytest.mark.parametrize(
    ("text", "joined"),
    [
        ("b b c news", "bbc news"),
        ("5 g", "5g"),
        ("a b", "a b"),
        ("a b c", "abc"),
        ("i a", "i a"),
        ("", ""),
        ("x", "x"),
    ],
)
def test_acronyms_are_one_word(text, joined) -> None:
    assert join_acronyms(text) == joined

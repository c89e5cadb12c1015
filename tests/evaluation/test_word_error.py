"""Word error: against examples counted by hand, jiwer on its own, and the Open ASR Leaderboard's own code on real pairs."""

import json
from pathlib import Path

import jiwer
import pytest
from audiollm.corpora.normalisers import has_words
from audiollm.evaluation import score_word_error
from audiollm.evaluation.word_error import join_acronyms, normalize_leaderboard, word_errors

#: Pairs of prompt and transcript with the leaderboard's normalised texts and counts, as its own code made them.
PAIRS_FILE = Path(__file__).parent / "leaderboard" / "pairs.json"


@pytest.mark.parametrize(
    ("reference", "hypothesis", "counts"),
    [
        ("the cat sat", "the hat sat", (1, 0, 0, 3)),
        ("the cat sat", "", (0, 3, 0, 3)),
        ("a b c d", "b c x d e", (0, 1, 2, 4)),
        ("I'm twenty one, Sir!", "I am 21 sir", (0, 0, 0, 4)),
    ],
)
def test_counts_by_hand(reference, hypothesis, counts) -> None:
    score = score_word_error([reference], [hypothesis])
    assert (score.substitutions, score.deletions, score.insertions, score.reference_words) == counts
    assert score.word_error == pytest.approx(sum(counts[:3]) / counts[3])


def test_a_corpus_is_scored_by_words_not_by_clips() -> None:
    """And references without a word are dropped and counted."""
    references = ["press the star key", "goodbye", "please hold the line"]
    hypotheses = ["press the star key", "hello", "please hold a line now"]
    score = score_word_error([*references, "...", "[noise]", ""], [*hypotheses, "a", "b", "c"])
    assert score.word_error == pytest.approx(jiwer.wer(references, hypotheses)) == pytest.approx(3 / 9)
    counts = {"substitutions": 2, "deletions": 0, "insertions": 1, "reference_words": 9, "clips": 3, "skipped": 3}
    assert score.to_dict() == {"word_error": score.word_error, **counts}
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


def test_the_leaderboards_word_error_is_that_of_its_own_code() -> None:
    scored = json.loads(PAIRS_FILE.read_text(encoding="utf-8"))
    pairs, totals = [*scored["pairs"], *scored["written"]], scored["totals"]
    for pair in pairs:
        for text in ("text", "heard"):
            assert normalize_leaderboard(pair[text]) == pair[f"normalised_{text}"], pair[text]
    found = word_errors([pair["text"] for pair in pairs], [pair["heard"] for pair in pairs], "leaderboard")
    for pair, ours in zip(pairs, found):
        counts = [ours.substitutions, ours.deletions, ours.insertions]
        assert (counts, ours.length) == (pair["errors"], pair["words"]), pair["text"]
    texts = [[pair[side] for pair in scored["pairs"]] for side in ("text", "heard")]
    score = score_word_error(*texts, "leaderboard")
    assert len(scored["pairs"]) >= 200 and round(100 * score.word_error, 2) == totals["word_error_percent"]


def test_the_leaderboard_drops_references_by_its_rule() -> None:
    said = ["", "um", "Ignore time segment in scoring.", "yes"]
    empty, ignored = "skipped_empty_reference", "skipped_ignored_segment"
    found = word_errors(said, ["a", "b", "c", "yes"], "leaderboard")
    assert [pair.skipped for pair in found] == [empty, empty, ignored, None]
    acronyms = {"b b c news": "bbc news", "5 g": "5g", "a b": "a b", "a b c": "abc", "i a": "i a", "x": "x"}
    assert {text: join_acronyms(text) for text in acronyms} == acronyms

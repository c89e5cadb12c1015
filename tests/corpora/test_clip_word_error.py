"""Word error of single clips: where it comes from, what it is in, and what cannot be scored."""

import math
from pathlib import Path
from typing import Any

import pytest
from audiollm.corpora.normalisers import clip_word_error, normaliser_for
from audiollm.corpora.word_error import WordErrorArguments, WordErrorFilter


def test_percent_by_hand() -> None:
    for reference, hypothesis, normaliser, percent in (
        ("The cat, sat!", "the CAT sat.", "english", 0.0),
        ("the cat sat", "the hat sat down", "english", 200 / 3),
        ("the cat sat", "", "english", 100.0),
        ("yes", "no no no", "english", 300.0),
        ("Ten dollars.", "$10", "english", 0.0),
        ("Ten dollars.", "$10", "basic", 100.0),
        ("Oui, été!", "oui été", "basic", 0.0),
        ("Oui, été!", "oui été", "none", 100.0),
        ("<unk> the cat [noise] sat", "the cat sat", "english", 0.0),
        ("今天天气很好。", "今天天氣很好", "basic", 100.0),
        ("今天天气很好。", "今天天氣很好", "characters", 100 / 6),
    ):
        assert clip_word_error(reference, hypothesis, normaliser) == pytest.approx(percent)


def test_each_language_has_its_normaliser() -> None:
    for normaliser, languages in {
        "english": (None, "en-GB", "en_us", "English"),
        "basic": ("ko_kr", "german"),
        "characters": ("zh-CN", "cmn_hans_cn", "japanese"),
    }.items():
        assert {normaliser_for(language) for language in languages} == {normaliser}


def settled(*fields: dict[str, Any], text: str = "a b c d", unit: str | None = None) -> list[dict]:
    """Settle rows that have these fields; none of them has to be heard, so that no model is needed."""
    kept = WordErrorFilter(WordErrorArguments(max_wer=25.0), Path("."), unit)
    rows = ({"id": "a", "sha256": "", "text": text, "fields": each} for each in fields)
    return [row["fields"] | {"problem": row.get("problem", "")} for row in kept.settle(rows, len(fields))]


def test_the_corpus_own_word_error_is_taken_in_its_unit() -> None:
    rows = settled({"wer": 25, "pred_text": "x y z"}, {"wer": "50.0"}, {"wer": 0.0})
    assert [row["wer"] for row in rows] == [25.0, 50.0, 0.0]
    assert all((row["model"], row["normaliser"], row["wer_source"]) == (None, None, "dataset") for row in rows)
    fractions = settled(*({"wer": wer} for wer in (0.0, 0.25, 0.07, 1.0)), unit="fraction")
    assert [row["wer"] for row in fractions] == [0.0, 25.0, 7.0, 100.0]
    for row in settled(*({"wer": wrong} for wrong in (-1.0, math.inf, "much", True))):
        assert row["wer"] is None and "expected a number" in row["problem"]


def test_a_hypothesis_is_scored_where_there_is_no_word_error() -> None:
    missing = [{"wer": math.nan}, {"wer": None}, {"wer": ""}, {}]
    rows = settled(*({**each, "pred_text": "A b, c!"} for each in missing))
    assert all((row["wer"], row["normaliser"], row["wer_source"]) == (25.0, "english", "hypothesis") for row in rows)
    (french,) = settled({"pred_text": "été", "language": "fr"}, text="Été!")
    assert (french["wer"], french["normaliser"]) == (0.0, "basic")
    for text in ("", "...", "[noise]"):  # nor would they be heard
        for row in settled({"pred_text": "something"}, {}, text=text):
            assert row["wer"] is None and "no word left" in row["problem"]


def test_the_limit_itself_is_kept() -> None:
    def is_kept(wer: float | None, limit: float) -> bool:
        return WordErrorFilter(WordErrorArguments(max_wer=limit), Path(".")).is_kept({"fields": {"wer": wer}})

    assert [is_kept(wer, 5.0) for wer in (0.0, 5.0, 5.0001, None)] == [True, True, False, False]
    assert is_kept(0.0, 0.0) and not is_kept(0.1, 0.0)

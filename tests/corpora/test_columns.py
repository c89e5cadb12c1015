"""Columns are guessed from names and types, shown, and overridable; what cannot be told is asked for."""

from typing import Any

import pytest
from audiollm.corpora.clips import CorpusError
from audiollm.corpora.columns import (
    ColumnMapping,
    ColumnSpec,
    column_kind,
    first_item,
    gigaspeech_tags,
    map_columns,
    parse_overrides,
    sentence_case,
    wer_unit,
    yes_or_no,
)
from datasets import Audio, ClassLabel, List, Value

STRING, REAL, LONG = Value("string"), Value("float64"), Value("int64")


def guess(features: dict[str, Any], rows: list[dict[str, Any]] | None = None, *overrides: str):
    kinds = {name: column_kind(feature) for name, feature in features.items()}
    return map_columns("data", kinds, rows or [], parse_overrides(overrides))


def taken(features: dict[str, Any], rows: list[dict[str, Any]] | None = None, *overrides: str) -> dict[str, str]:
    return {name: spec.columns[0] for name, spec in guess(features, rows, *overrides).specs.items()}


def test_columns_are_guessed() -> None:
    plain = {"audio": Audio(), "text": STRING}
    more = {"whisper_transcript": STRING, "wer": REAL, "client_id": STRING, "lang_id": ClassLabel(names=["de"])}
    for features, expected in (
        ({"Speech": Audio(), "Sentence": STRING, "raw_text": STRING}, "audio=Speech text=Sentence"),
        ({"audio": {"bytes": Value("binary"), "path": STRING}, "text": STRING}, "audio=audio text=text"),
        ({"wav": Value("binary"), "text": STRING}, "audio=wav text=text"),
        (plain | {"prompt_audio": Audio()}, "audio=audio text=text"),
        (
            plain | more,
            "audio=audio text=text pred_text=whisper_transcript wer=wer speaker=client_id language=lang_id",
        ),
        # A name alone does not make a column fit: these hold other things.
        (plain | {"wer": STRING, "speaker": List(STRING)}, "audio=audio text=text"),
        ({"audio": Audio(), "caption": STRING}, "audio=audio caption=caption"),
    ):
        assert taken(features) == dict(pair.split("=") for pair in expected.split())


def test_texts_are_audio_where_they_are_paths_of_recordings() -> None:
    features = {"file": STRING, "text": STRING, "id": STRING}
    rows = [{"file": "a/1.wav", "text": "one", "id": "x"}, {"file": "a/2.FLAC", "text": "two", "id": "x"}]
    assert taken(features, rows) == {"audio": "file", "text": "text"}  # and ids that repeat are none
    rows[1] |= {"id": "y"}
    assert taken(features, rows)["id"] == "id"
    with pytest.raises(CorpusError, match="which column is the audio: none has recordings"):
        taken(features, [{**row, "file": "a.txt"} for row in rows])


def test_what_cannot_be_told_is_asked_for() -> None:
    for features, message in (
        ({"text": STRING}, r"audio: none has recordings.*Its columns are: text \(text\)\. .*--columns"),
        ({"first": Audio(), "second": Audio(), "text": STRING}, "audio: it may be any of first, second"),
        ({"audio": Audio(), "words": STRING}, r"which column is the transcript.*words \(text\)"),
    ):
        with pytest.raises(CorpusError, match=message):
            taken(features)


def test_overrides_replace_guesses_and_add_fields() -> None:
    features = {"audio": Audio(), "sentence": STRING, "words": STRING, "passage": STRING, "wer": REAL}
    made = taken(features, None, "text=words", "topic=passage", "wer=")
    assert made == {"audio": "audio", "text": "words", "topic": "passage"}
    assert set(taken({"audio": Audio(), "sentence": STRING}, None, "text=")) == {"audio"}
    wanted = {"audio": ColumnSpec(("audio",)), "text": ColumnSpec(("text",), ("sentence_case",))}
    mapping = map_columns("data", {"audio": "audio", "text": "text", "other": "text"}, [], {"text": "other"}, wanted)
    assert mapping.specs["text"] == ColumnSpec(("other",), ("sentence_case",)), "a table's transforms stay"
    for override, message in (
        ("text=wrods", "no column 'wrods', perhaps 'words'\\? for 'text'"),
        ("audio=wer", "column 'wer' for 'audio' holds number"),
        ("text=audio", "column 'audio' for 'text' holds audio"),
    ):
        with pytest.raises(CorpusError, match=message):
            taken(features, None, override)
    for given, message in (
        (["text"], "expected field=column"),
        (["text=a", "text=b"], "gives 'text' twice"),
        (["audio="], "needs audio"),
        (["sha256=length"], "every clip has its own 'sha256'"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_overrides(given)


def test_the_unit_of_word_errors() -> None:
    def unit(column: str, values: list[float | None], given: str | None = None) -> tuple[str | None, str | None]:
        return wer_unit("data", ColumnMapping({"wer": ColumnSpec((column,))}), values, given)

    for column, values, given, expected in (
        ("wer", [0.0, 7.7, 50.0], None, "percent"),
        ("wer", [0.0, 0.077, 0.5, 1.0], None, "fraction"),
        ("wer", [None, 100.0], None, "percent"),
        ("wer_percent", [0.0], None, "percent"),
        ("WER_ratio", [0.0], None, "fraction"),
        ("wer_percent", [50.0], "fraction", "fraction"),
    ):
        assert unit(column, values, given) == (expected, None)
    for values in ([], [0.0, None], [1.0], [0.5, 1.2], [1.0, 2.0], [0.5, 20.0]):
        found, doubt = unit("wer", values)
        assert found is None and "--wer_unit percent or --wer_unit fraction" in str(doubt)
    with pytest.raises(CorpusError, match="does not hold numbers"):
        unit("wer", [True])


def test_transforms_of_transcripts() -> None:
    assert gigaspeech_tags("AND <COMMA> SO <QUESTIONMARK> YES <EXCLAMATIONPOINT> NO <PERIOD>") == "AND, SO? YES! NO."
    with pytest.raises(ValueError, match="<MUSIC>"):
        gigaspeech_tags("<MUSIC>")
    assert sentence_case("I'M HERE. WHERE AM I? ÜBER ALL") == "I'm here. Where am I? Über all"
    assert yes_or_no(True) == "Yes." and yes_or_no(0) == "No."
    assert first_item(["a", "b"]) == "a" and first_item("c") == "c"
    with pytest.raises(ValueError, match="empty list"):
        first_item([])

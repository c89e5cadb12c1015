"""Columns are guessed from names and types, shown, and overridable; what cannot be told is asked for."""

from typing import Any

import datasets
import pytest
from audiollm.corpora.clips import CorpusError
from audiollm.corpora.columns import (
    ANY,
    ColumnSpec,
    UnusableValueError,
    column_kinds,
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
    kinds = column_kinds(datasets.Features(features), rows or [])
    return map_columns("data", kinds, rows or [], parse_overrides(overrides))


def taken(features: dict[str, Any], rows: list[dict[str, Any]] | None = None, *overrides: str) -> dict[str, str]:
    return {name: spec.columns[0] for name, spec in guess(features, rows, *overrides).specs.items()}


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({"audio": Audio(), "text": STRING}, {"audio": "audio", "text": "text"}),
        ({"Speech": Audio(), "Sentence": STRING}, {"audio": "Speech", "text": "Sentence"}),
        ({"clip": Audio(), "transcription": STRING}, {"audio": "clip", "text": "transcription"}),
        (
            {"raw_text": STRING, "normalized_text": STRING, "audio": Audio()},
            {"audio": "audio", "text": "normalized_text"},
        ),
        ({"audio": {"bytes": Value("binary"), "path": STRING}, "text": STRING}, {"audio": "audio", "text": "text"}),
        ({"wav": Value("binary"), "text": STRING}, {"audio": "wav", "text": "text"}),
        ({"audio": Audio(), "prompt_audio": Audio(), "text": STRING}, {"audio": "audio", "text": "text"}),
        (
            {"audio": Audio(), "sentence": STRING, "whisper_transcript": STRING, "wer": REAL, "client_id": STRING},
            {
                "text": "sentence",
                "audio": "audio",
                "pred_text": "whisper_transcript",
                "wer": "wer",
                "speaker": "client_id",
            },
        ),
        # A name alone does not make a column fit: these hold other things.
        (
            {"audio": Audio(), "text": STRING, "wer": STRING, "speaker": List(STRING)},
            {"audio": "audio", "text": "text"},
        ),
        ({"audio": Audio(), "caption": STRING}, {"audio": "audio", "caption": "caption"}),
        (
            {"audio": Audio(), "text": STRING, "lang_id": ClassLabel(names=["de"])},
            {"audio": "audio", "text": "text", "language": "lang_id"},
        ),
    ],
)
def test_columns_are_guessed(features, expected: dict[str, str]) -> None:
    assert taken(features) == expected


def test_texts_are_audio_where_they_are_paths_of_recordings() -> None:
    features = {"file": STRING, "text": STRING, "id": STRING}
    rows = [{"file": "a/1.wav", "text": "one", "id": "x"}, {"file": "a/2.FLAC", "text": "two", "id": "x"}]
    assert taken(features, rows) == {"audio": "file", "text": "text"}  # and ids that repeat are none
    rows[1] |= {"id": "y"}
    assert taken(features, rows)["id"] == "id"
    with pytest.raises(CorpusError, match="which column is the audio: none has recordings"):
        taken(features, [{**row, "file": "a.txt"} for row in rows])


def test_kinds_come_from_rows_where_a_stream_does_not_say() -> None:
    rows: list[dict[str, Any]] = [
        {"a": None, "b": "x", "c": 1, "d": True, "e": [1], "f": {"path": "x.wav"}},
        {"a": b"x", "b": None, "c": 1.5, "d": False, "e": None, "f": None},
    ]
    kinds = column_kinds(None, rows)
    assert kinds == {"a": "audio", "b": "text", "c": "number", "d": "truth", "e": "list", "f": "audio"}


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"text": STRING}, r"audio: none has recordings.*Its columns are: text \(text\)\. .*--columns"),
        ({"first": Audio(), "second": Audio(), "text": STRING}, "audio: it may be any of first, second"),
        ({"audio": Audio(), "words": STRING}, r"which column is the transcript.*words \(text\)"),
        ({"audio": Audio(), "text": List(STRING)}, "which column is the transcript"),
    ],
)
def test_what_cannot_be_told_is_asked_for(features, message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        taken(features)


def test_overrides_replace_guesses_and_add_fields() -> None:
    features = {"audio": Audio(), "sentence": STRING, "words": STRING, "passage": STRING, "wer": REAL}
    assert taken(features, None, "text=words", "topic=passage", "wer=") == {
        "audio": "audio",
        "text": "words",
        "topic": "passage",
    }
    assert set(taken({"audio": Audio(), "sentence": STRING}, None, "text=")) == {"audio"}
    for override, message in (
        ("text=wrods", "no column 'wrods', perhaps 'words'\\? for 'text'"),
        ("audio=wer", "column 'wer' for 'audio' holds number"),
        ("text=audio", "column 'audio' for 'text' holds audio"),
    ):
        with pytest.raises(CorpusError, match=message):
            taken(features, None, override)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["text"], "expected field=column"),
        (["Text Field=a"], "expected field=column"),
        (["text=a", "text=b"], "gives 'text' twice"),
        (["audio="], "needs audio"),
        (["sha256=length"], "every clip has its own 'sha256'"),
    ],
)
def test_wrong_overrides_are_refused(given: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_overrides(given)


def test_columns_of_a_table_keep_their_transforms_when_another_is_named() -> None:
    wanted = {"audio": ColumnSpec(("audio",)), "text": ColumnSpec(("text",), ("sentence_case",))}
    kinds = {"audio": "audio", "text": "text", "other": "text"}
    mapping = map_columns("data", kinds, [], {"text": "other"}, wanted)
    assert mapping.specs["text"] == ColumnSpec(("other",), ("sentence_case",))


def test_a_table_without_types_is_read_by_names() -> None:
    names = ("client_id", "path", "Sentence", "locale", "up_votes")
    mapping = map_columns("list.tsv", dict.fromkeys(names, ANY), [], {})
    assert {name: spec.columns[0] for name, spec in mapping.specs.items()} == {
        **{"audio": "path", "text": "Sentence", "speaker": "client_id", "language": "locale"}
    }
    with pytest.raises(CorpusError, match=r"list.tsv.*which column is the audio.*where, text\."):
        map_columns("list.tsv", {"where": ANY, "text": ANY}, [], {})
    with pytest.raises(CorpusError, match="which column is the transcript"):
        map_columns("list.tsv", {"path": ANY, "words": ANY}, [], {})
    with pytest.raises(CorpusError, match="no column 'words', perhaps"):
        map_columns("list.tsv", {"path": ANY, "word": ANY}, [], {"text": "words"})


# --------------------------------------------------------------------------------------------------- the unit of errors


@pytest.mark.parametrize(
    ("column", "values", "given", "unit"),
    [
        ("wer", [0.0, 7.7, 50.0], None, "percent"),
        ("wer", [0.0, 0.077, 0.5, 1.0], None, "fraction"),
        ("wer", [None, 100.0], None, "percent"),
        ("wer_percent", [0.0], None, "percent"),
        ("WER_ratio", [0.0], None, "fraction"),
        ("wer", [0.0, 7.7, 50.0], "fraction", "fraction"),
        ("wer_percent", [50.0], "fraction", "fraction"),
    ],
)
def test_the_unit_of_word_errors(column: str, values, given: str | None, unit: str) -> None:
    assert wer_unit("data", column, values, given) == (unit, None)


@pytest.mark.parametrize("values", [[], [0.0, None], [1.0], [0.5, 1.2], [1.0, 2.0], [0.5, 20.0]])
def test_a_unit_in_doubt_is_asked_for(values) -> None:
    unit, doubt = wer_unit("data", "wer", values, None)
    assert unit is None and "--wer_unit percent or --wer_unit fraction" in str(doubt)


# ---------------------------------------------------------------------------------------------------------- transforms


def test_transforms_of_transcripts() -> None:
    assert gigaspeech_tags("AND <COMMA> SO <QUESTIONMARK> YES <EXCLAMATIONPOINT> NO <PERIOD>") == "AND, SO? YES! NO."
    for tag in ("<SIL>", "<MUSIC>", "<NOISE>", "<OTHER>"):
        with pytest.raises(UnusableValueError, match=tag):
            gigaspeech_tags(tag)
    assert sentence_case("I'M HERE. WHERE AM I? ÜBER ALL") == "I'm here. Where am I? Über all"
    assert yes_or_no(True) == "Yes." and yes_or_no(0) == "No."
    assert first_item(["a", "b"]) == "a" and first_item("c") == "c"
    with pytest.raises(UnusableValueError, match="empty list"):
        first_item([])


def test_a_field_comes_from_one_column_or_from_each_of_several() -> None:
    for arguments, message in (
        ((("a", "b"),), "one column"),
        (((),), "one column"),
        ((("a",), ("shout",)), "no transform 'shout'"),
    ):
        with pytest.raises(ValueError, match=message):
            ColumnSpec(*arguments)

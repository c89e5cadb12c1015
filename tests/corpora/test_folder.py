"""A folder of audio in every usual shape is read as the same clips, found by looking, in an order that is fixed."""

import re
from pathlib import Path

import pytest
from audiollm.corpora.folder import FolderArguments, open_source
from folder_shapes import (
    MAKERS,
    SENTENCES,
    make_audiofolder,
    make_nemo,
    read,
    said,
    source_of,
    tone,
    write_lines,
)


@pytest.mark.parametrize("shape", MAKERS)
def test_each_shape_is_found_and_read(tmp_path: Path, shape: str, capsys: pytest.CaptureFixture[str]):
    MAKERS[shape](tmp_path)
    clips = read(tmp_path)
    assert {re.sub("^(audio|clips)/", "", name): text for name, text in said(clips).items()} == SENTENCES
    source = open_source(FolderArguments(str(tmp_path)))
    assert "read as: " in capsys.readouterr().out.splitlines()[0] and source.count() == 3


def test_what_tables_say_beside_the_text(tmp_path: Path):
    for shape in ("nemo", "tsv", "csv"):
        MAKERS[shape](tmp_path / shape)
    fields = {shape.name: dict(read(shape)[0].fields) for shape in tmp_path.iterdir()}
    assert fields["nemo"] == {"language": "en", "pred_text": "one two.", "declared_seconds": 0.2}
    assert fields["tsv"] == {"speaker": "v1", "up_votes": "2", "language": "en"}
    assert fields["csv"] == {"words": "2"}


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_audiofolder_metadata_in_every_form_and_split(tmp_path: Path, ending: str):
    for split in ("test", "train", "validation"):
        make_audiofolder(tmp_path / split, ending)
    clips = read(tmp_path)
    assert [clip.split for clip in clips] == ["train"] * 3 + ["validation"] * 3 + ["test"] * 3
    assert said(clips) == {
        f"{split}/{name}": text for split in ("train", "validation", "test") for name, text in SENTENCES.items()
    }


def test_a_header_is_no_row(tmp_path: Path):
    tone(tmp_path / "a.wav", 0.2)
    (tmp_path / "list.csv").write_text('path,text\na.wav,"one,\ntwo"\na.wav,three\n\n')
    source = source_of(tmp_path)
    assert "list.csv, 2 rows " in source.description and source.count() == 2 == len(list(source.clips()))


# ------------------------------------------------------------------------------------------------ parts of recordings


def test_parts_of_recordings(tmp_path: Path):
    long = tone(tmp_path / "long.wav", 4.0)
    row = {"path": "long.wav", "text": "t"}
    rows = [row | {"offset": 0.5, "duration": 1.0}, row | {"start": "2", "end": "3.5"}, row | {"start": 3, "end": 1}]
    for number, each in enumerate(rows):
        write_lines(tmp_path / str(number) / "m.json", [each])
    found = [read(tmp_path / str(number), audio_dir=str(tmp_path))[0] for number in range(3)]
    assert [(clip.id, clip.start_seconds, clip.end_seconds) for clip in found[:2]] == [
        ("long@0.5-1.5", 0.5, 1.5),
        ("long@2-3.5", 2.0, 3.5),
    ]
    assert found[0].recording == str(long) and "not after its start" in found[2].reason


def test_a_duration_alone_cuts_nothing_off(tmp_path: Path):
    make_nemo(tmp_path)
    assert {(clip.start_seconds, clip.end_seconds) for clip in read(tmp_path)} == {(0.0, None)}


@pytest.mark.parametrize("wrong", [-1, "soon", True, [1]])
@pytest.mark.parametrize("name", ["offset", "duration", "wer"])
def test_numbers_that_are_none_are_named(tmp_path: Path, name: str, wrong):
    tone(tmp_path / "a.wav")
    write_lines(tmp_path / "m.jsonl", [{"path": "a.wav", "text": "t", name: wrong}])
    assert "expected a number" in read(tmp_path)[0].reason


def test_fields_have_the_kinds_that_tasks_expect(tmp_path: Path):
    tone(tmp_path / "a.wav")
    values = {
        **{"audio_filepath": "a.wav", "text": "t", "duration": "2.5", "wer": "12.5", "speaker": 7, "tags": ["a"]},
        **{"snr": 1.5, "big": 2**70, "none": None, "lang": "en", "split": "dev", "raw": "this", "sha256": "x"},
    }
    write_lines(tmp_path / "m.jsonl", [values])
    (clip,) = read(tmp_path, columns=["text=raw"])
    assert (clip.text, clip.split, clip.start_seconds, clip.end_seconds) == ("this", "validation", 0.0, None)
    assert clip.fields == {
        **{"wer": 12.5, "speaker": "7", "tags": '["a"]', "snr": 1.5, "big": str(2**70), "none": None},
        **{"language": "en", "declared_seconds": 2.5, "original_text": "t", "original_sha256": "x"},
    }

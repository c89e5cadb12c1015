"""
A folder of audio in every usual shape is read as the same clips, in an order that is fixed.

What is told wins over what is found by looking; what fits in two ways, or none, is refused and named.
"""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from audiollm.corpora.clips import BadClip, CorpusError
from audiollm.corpora.prepare import run
from folder_shapes import (
    MAKERS,
    SENTENCES,
    make_audiofolder,
    make_csv,
    make_nemo,
    make_sidecar,
    read,
    said,
    source_of,
    tone,
    write,
    write_lines,
)


@pytest.mark.parametrize("shape", MAKERS)
def test_each_shape_is_found_and_read(tmp_path: Path, shape: str):
    MAKERS[shape](tmp_path)
    clips = read(tmp_path)
    assert {re.sub("^(audio|clips)/", "", name): text for name, text in said(clips).items()} == SENTENCES
    source = source_of(tmp_path)
    assert "read as: " in source.summary and source.count() == 3


def test_what_tables_say_beside_the_text(tmp_path: Path):
    for shape in ("nemo", "tsv", "csv"):
        MAKERS[shape](tmp_path / shape)
    fields = {shape.name: dict(read(shape)[0].fields) for shape in tmp_path.iterdir()}
    assert fields["nemo"] == {"language": "en", "pred_text": "one two."}
    assert {(clip.start_seconds, clip.end_seconds) for clip in read(tmp_path / "nemo")} == {(0.0, None)}
    assert fields["tsv"] == {"speaker": "v1", "language": "en"} and fields["csv"] == {}


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
    assert "list.csv, 2 rows" in source.summary and source.count() == 2 == len(list(source.clips()))


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


def test_numbers_that_are_none_are_named(tmp_path: Path):
    tone(tmp_path / "a.wav")
    wrong = [{"offset": -1, "duration": 1}, {"duration": "soon"}, {"wer": True}]
    write_lines(tmp_path / "m.jsonl", [{"path": "a.wav", "text": "t", "offset": 0, "wer": 0} | each for each in wrong])
    assert all("expected a number" in clip.reason for clip in read(tmp_path))


def test_fields_have_the_kinds_that_tasks_expect(tmp_path: Path):
    tone(tmp_path / "a.wav")
    values = {
        **{"audio_filepath": "a.wav", "text": "t", "duration": "2.5", "wer": "12.5", "speaker": 7, "tags": ["a"]},
        **{"snr": 1.5, "lang": "en", "split": "dev", "raw": "this"},
    }
    write_lines(tmp_path / "m.jsonl", [values])
    (clip,) = read(tmp_path, columns=["text=raw", "noise=snr"])
    assert (clip.text, clip.split, clip.start_seconds, clip.end_seconds) == ("this", "validation", 0.0, None)
    assert clip.fields == {"wer": 12.5, "speaker": 7, "language": "en", "noise": 1.5}
    (bad,) = read(tmp_path, columns=["noise=tags"])
    assert "noise is ['a']; expected a plain value" in bad.reason


# ------------------------------------------------------------------------------------------------------------ options


def test_manifest_of_any_name_and_columns(tmp_path: Path):
    make_csv(tmp_path)
    (tmp_path / "list.csv").rename(tmp_path / "list.data")
    write(tmp_path / "other.csv", "a,b\na.wav,hello\n")
    assert said(read(tmp_path, manifest="list.data")) == SENTENCES
    with pytest.raises(CorpusError, match=r"other\.csv.*--columns"):
        source_of(tmp_path, manifest="other.csv")
    assert said(read(tmp_path, manifest="other.csv", columns=["audio=a", "text=b"])) == {"a": "hello"}
    assert said(read(tmp_path, columns=["audio=a", "text=b"])) == {"a": "hello"}  # found by them
    with pytest.raises(CorpusError, match=r"none\.csv"):
        source_of(tmp_path, manifest="none.csv")


def test_audio_dir_is_where_paths_start_and_may_lie(tmp_path: Path):
    make_csv(tmp_path / "audio")
    (tmp_path / "lists").mkdir()
    shutil.move(tmp_path / "audio" / "list.csv", tmp_path / "lists" / "list.csv")
    assert all("--audio_dir" in clip.reason for clip in read(tmp_path / "lists"))
    assert said(read(tmp_path / "lists", audio_dir=str(tmp_path / "audio"))) == SENTENCES
    with pytest.raises(CorpusError, match="--audio_dir"):
        source_of(tmp_path / "lists", audio_dir=str(tmp_path / "nowhere"))


def test_paths_start_where_the_manifest_lies_and_may_rise_within_the_folder(tmp_path: Path):
    tone(tmp_path / "audio" / "a.wav")
    write(tmp_path / "lists" / "l.csv", f"path,text\n../audio/a.wav,hello\n{tmp_path}/audio/a.wav,again\n")
    good, double = read(tmp_path)
    assert (good.id, good.text, double.id, double.text) == ("audio/a", "hello", "audio/a", "again")


@pytest.mark.parametrize("suffix", [".lab", ".normalized.txt", ".trans"])
def test_transcripts_of_other_endings(tmp_path: Path, suffix: str):
    make_sidecar(tmp_path, suffix)
    if suffix == ".trans":
        with pytest.raises(CorpusError, match="3 audio files"):
            source_of(tmp_path)
    assert said(read(tmp_path, transcript_suffix=None if suffix != ".trans" else suffix)) == SENTENCES
    make_sidecar(tmp_path, ".original.txt")
    write(tmp_path / "a.original.txt", "The original.")
    if suffix != ".trans":
        with pytest.raises(CorpusError, match=r" and in \.original\.txt.*--transcript_suffix"):
            source_of(tmp_path)
    assert said(read(tmp_path, transcript_suffix=".original.txt"))["a"] == "The original."


def test_splits_by_names_and_options(tmp_path: Path):
    for name in ("train-clean/a", "dev/b", "my_test 2/c", "contest/d"):
        tone(tmp_path / f"{name}.wav")
        write(tmp_path / f"{name}.txt", name)
    splits = {clip.id: clip.split for clip in read(tmp_path)}
    assert splits == {"contest/d": "train", "dev/b": "validation", "my_test 2/c": "test", "train-clean/a": "train"}
    assert {clip.split for clip in read(tmp_path, split="mine")} == {"mine"}
    write(tmp_path / "list.csv", "path,text,split\ndev/b.wav,x,dev\ndev/b.wav,y,\ncontest/d.wav,z,extra\n")
    assert [clip.split for clip in read(tmp_path, manifest="list.csv")] == ["validation", "validation", "extra"]


def test_encodings_of_transcripts(tmp_path: Path):
    tone(tmp_path / "a.wav")
    write(tmp_path / "a.txt", "café", "latin-1")
    (bad,) = read(tmp_path)
    assert isinstance(bad, BadClip) and "a.txt" in bad.reason and "UTF-8" in bad.reason
    write(tmp_path / "a.txt", "سلام", "utf-16")
    assert said(read(tmp_path)) == {"a": "سلام"}


# ---------------------------------------------------------------------------------------------- which way to read it


def test_two_ways_to_read_a_folder_are_both_named(tmp_path: Path):
    make_sidecar(tmp_path)
    write_lines(tmp_path / "m.json", [{"audio_filepath": "a.flac", "text": "t"}])
    with pytest.raises(CorpusError, match=r"\*\.txt.*m\.json.*--transcript_suffix or --manifest"):
        source_of(tmp_path)
    assert len(read(tmp_path, transcript_suffix=".txt")) == 3 and len(read(tmp_path, manifest="m.json")) == 1
    make_csv(tmp_path / "tables")
    shutil.copy(tmp_path / "tables" / "list.csv", tmp_path / "tables" / "again.csv")
    with pytest.raises(CorpusError, match=r"'again\.csv' and 'list\.csv'.*--manifest"):
        source_of(tmp_path / "tables")


def test_nothing_to_read_says_what_was_looked_for(tmp_path: Path):
    with pytest.raises(CorpusError, match="CSV, TSV, JSON"):
        source_of(tmp_path)
    tone(tmp_path / "a.wav")
    (tmp_path / "train.tsv").touch()
    with pytest.raises(CorpusError, match=r"1 audio files.*train\.tsv has no rows"):
        source_of(tmp_path)
    write(tmp_path / "list.csv", "Recording No;Words\n1;hello\n")
    with pytest.raises(CorpusError, match=r"list\.csv: it cannot be told .* audio.*Recording No, Words\..*--columns"):
        source_of(tmp_path)
    with pytest.raises(CorpusError, match="not a folder"):
        source_of(tmp_path / "none")


def test_identity_changes_with_what_is_read(tmp_path: Path):
    make_sidecar(tmp_path / "s")
    make_nemo(tmp_path / "n")
    seen = [source_of(tmp_path / "s").identity, source_of(tmp_path / "n").identity]
    (tmp_path / "s" / "a.flac").write_bytes(b"mended")
    write(tmp_path / "s" / "b.txt", (tmp_path / "s" / "b.txt").read_text())  # touched, and the same
    assert source_of(tmp_path / "s").identity == seen[0]
    write(tmp_path / "s" / "a.txt", "Something else.")
    write_lines(tmp_path / "n" / "manifest.json", [{"audio_filepath": "audio/a.wav", "text": "t"}])
    seen += [source_of(tmp_path / "s").identity, source_of(tmp_path / "n").identity]
    seen.append(source_of(tmp_path / "n", split="x").identity)
    assert len({json.dumps(identity) for identity in seen}) == len(seen)


def test_the_unit_of_word_errors_is_of_a_column(tmp_path: Path):
    make_csv(tmp_path / "table")
    make_sidecar(tmp_path / "beside")
    for folder in ("table", "beside"):
        with pytest.raises(CorpusError, match="--wer_unit percent is given, but there is no column of word errors"):
            source_of(tmp_path / folder, wer_unit="percent")
    write(tmp_path / "table" / "list.csv", "path,text,wer\na.wav,hello,0.5\n")
    assert source_of(tmp_path / "table", wer_unit="fraction").count() == 1


def test_the_order_is_not_that_of_the_file_system(tmp_path: Path):
    names = ["é", "z", "a", "B", "10", "9", "سلام", "🎵"]
    for folder, order in ((tmp_path / "one", names), (tmp_path / "two", names[::-1])):
        for name in order:
            tone(folder / name / f"{name}.wav")
            write(folder / name / f"{name}.txt", name)
    ids = [clip.id for clip in read(tmp_path / "one")]
    assert ids == [clip.id for clip in read(tmp_path / "two")]
    assert ids == sorted((f"{name}/{name}" for name in names), key=os.fsencode)


def test_what_was_prepared_below_the_folder_is_no_part_of_it(tmp_path: Path):
    """The same command a second time finds its work done, though its output lies in the folder that it reads."""
    make_sidecar(tmp_path)
    command = [str(tmp_path), "--output", str(tmp_path / "out"), "--workers", "1"]
    run("folder", command)
    before = source_of(tmp_path).identity
    run("folder", command)
    assert source_of(tmp_path).identity == before and said(read(tmp_path)) == SENTENCES

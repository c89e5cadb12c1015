"""
A folder of audio in every usual shape is read as the same clips, in an order that is fixed.

What is told wins over what is found by looking; what fits in two ways, or none, is refused and named.
"""

import json
import os
from pathlib import Path

import pytest
from audiollm.corpora.clips import BadClip, Clip, CorpusError
from audiollm.corpora.folder import FolderArguments, open_source
from audiollm.corpora.prepare import run
from made_clips import tone

pytestmark = pytest.mark.usefixtures("own_datasets_cache")

SENTENCES = {"a": "One two.", "b": "Three, four.", "sub/c": "Five \N{EM DASH} six."}
BY_NAME = {Path(name).name: text for name, text in SENTENCES.items()}


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


def write_lines(path: Path, rows: list[dict]) -> Path:
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def make_text_beside(
    folder: Path, suffix: str = ".txt", texts: dict[str, str] = SENTENCES, audio: str = ".wav"
) -> None:
    for name, text in texts.items():
        tone(folder / f"{name}{audio}")
        write(folder / f"{name}{suffix}", text)


def make_csv(folder: Path) -> None:
    for name in SENTENCES:
        tone(folder / f"{name}.wav")
    write(folder / "list.csv", "file,words,transcript\n" + "".join(f'{n}.wav,2,"{t}"\n' for n, t in SENTENCES.items()))


def make_tsv(folder: Path) -> None:
    """As Common Voice has it."""
    header = "client_id\tpath\tsentence\tup_votes\tlocale\n"
    for table, names in {"train": "ab", "dev": ["sub/c"]}.items():
        rows = "".join(f"v1\tclips/{name}.mp3\t{SENTENCES[name]}\t2\ten\n" for name in names)
        write(folder / f"{table}.tsv", header + rows)
    write(folder / "reported.tsv", "sentence\tsentence_id\tlocale\treason\n")
    for name in SENTENCES:
        tone(folder / "clips" / f"{name}.mp3")


def make_nemo(folder: Path) -> None:
    more = {"duration": 0.2, "lang": "en"}
    rows = [{"audio_filepath": f"{n}.wav", "text": t, "pred_text": t.lower(), **more} for n, t in SENTENCES.items()]
    for name in SENTENCES:
        tone(folder / f"{name}.wav")
    write_lines(folder / "manifest.json", rows)


def make_json(folder: Path) -> None:
    for name in SENTENCES:
        tone(folder / f"{name}.wav")
    write(
        folder / "data.json", json.dumps([{"id": n, "path": f"{n}.wav", "sentence": t} for n, t in SENTENCES.items()])
    )


def make_audiofolder(folder: Path) -> None:
    for name in SENTENCES:
        tone(folder / f"{name}.wav")
    rows = [{"file_name": f"{name}.wav", "transcription": text} for name, text in SENTENCES.items()]
    write_lines(folder / "metadata.jsonl", rows)


MAKERS = {name.removeprefix("make_"): make for name, make in globals().items() if name.startswith("make_")}


def source_of(folder: Path, **options):
    return open_source(FolderArguments(str(folder), **options))


def read(folder: Path, **options) -> list[Clip | BadClip]:
    """All clips, after checking that they come the same again, and from any start."""
    source = source_of(folder, **options)
    clips = list(source.clips())
    assert list(source_of(folder, **options).clips()) == clips
    for start in (1, len(clips) - 1, len(clips), len(clips) + 3):
        assert list(source.clips(start)) == clips[start:]
    assert source.count() in (None, len(clips))
    json.dumps([source.identity, [clip.id for clip in clips]]).encode()
    return clips


def said(clips: list[Clip | BadClip]) -> dict[str, str]:
    """Texts by id of clips that are all good, with their recordings there."""
    assert [clip for clip in clips if isinstance(clip, BadClip)] == []
    assert all(os.path.isabs(clip.recording) and os.path.isfile(clip.recording) for clip in clips)
    return {clip.id: clip.text for clip in clips}


def texts(clips: list) -> dict[str, str]:
    """Texts by the names of the recordings."""
    assert not [clip for clip in clips if isinstance(clip, BadClip)]
    return {Path(clip.recording).stem: clip.text for clip in clips}


def problems(clips: list) -> dict[str, str]:
    return {clip.id: clip.reason for clip in clips if isinstance(clip, BadClip)}


@pytest.mark.parametrize("shape", MAKERS)
def test_each_shape_is_found_and_read(tmp_path: Path, shape: str):
    MAKERS[shape](tmp_path)
    assert texts(read(tmp_path)) == BY_NAME and source_of(tmp_path).count() == 3


def test_what_tables_say_beside_the_text(tmp_path: Path):
    for shape in ("nemo", "tsv", "csv"):
        MAKERS[shape](tmp_path / shape)
    fields = {shape.name: dict(read(shape)[0].fields) for shape in tmp_path.iterdir()}
    assert fields["nemo"] == {"language": "en", "pred_text": "one two."}
    assert {(clip.start_seconds, clip.end_seconds) for clip in read(tmp_path / "nemo")} == {(0.0, None)}
    assert fields["tsv"] == {"speaker": "v1", "language": "en"} and fields["csv"] == {}
    assert {clip.split for clip in read(tmp_path / "tsv")} == {"train", "validation"}
    assert dict(read(tmp_path / "csv", columns=["count=words"])[0].fields) == {"count": 2}


def test_parts_of_recordings_and_splits_of_rows(tmp_path: Path):
    long = tone(tmp_path / "long.wav", 4.0)
    row = {"path": "long.wav", "text": "t", "offset": 0.5, "duration": 1.0, "end": None, "split": "dev"}
    rows = [row, row | {"offset": 2.0, "end": 3.5, "split": ""}, row | {"offset": 3.0, "end": 1.0}]
    write_lines(tmp_path / "m.json", [*rows, row | {"offset": -1.0}])
    first, second, *bad = read(tmp_path)
    assert (first.start_seconds, first.end_seconds, first.split) == (0.5, 1.5, "validation")
    assert (second.start_seconds, second.end_seconds, second.split) == (2.0, 3.5, "train")
    assert first.recording == str(long) and first.fields == {}
    assert "not after its start" in bad[0].reason and "expected a number" in bad[1].reason
    assert {clip.split for clip in read(tmp_path, split="mine")} == {"mine"}


# ------------------------------------------------------------------------------------------------------------ options


def test_manifest_of_any_name_and_columns(tmp_path: Path):
    make_csv(tmp_path)
    write(tmp_path / "other.csv", "a,b\na.wav,hello\n")
    assert texts(read(tmp_path)) == BY_NAME, "the other has no usual columns"
    assert texts(read(tmp_path, manifest="list.csv")) == BY_NAME
    with pytest.raises(CorpusError, match=r"which column is the audio.*--columns"):
        source_of(tmp_path, manifest="other.csv")
    assert texts(read(tmp_path, manifest="other.csv", columns=["audio=a", "text=b"])) == {"a": "hello"}
    assert texts(read(tmp_path, columns=["audio=a", "text=b"])) == {"a": "hello"}  # found by them
    for name in ("none.csv", "a.wav"):
        with pytest.raises(CorpusError, match=name):
            source_of(tmp_path, manifest=name)


def test_paths_start_where_the_table_lies_and_may_rise_within_the_folder(tmp_path: Path):
    tone(tmp_path / "audio" / "a.wav")
    write(
        tmp_path / "lists" / "l.csv", f"path,text\n../audio/a.wav,hello\n{tmp_path}/audio/a.wav,again\n../../b.wav,x\n"
    )
    good, double, bad = read(tmp_path)
    assert good.recording == double.recording == str(tmp_path / "audio" / "a.wav")
    assert isinstance(bad, BadClip) and "leads out" in bad.reason


@pytest.mark.parametrize("suffix", [".lab", ".normalized.txt", ".trans"])
def test_transcripts_of_other_endings(tmp_path: Path, suffix: str):
    make_text_beside(tmp_path, suffix)
    if suffix == ".trans":
        with pytest.raises(CorpusError, match="3 audio files"):
            source_of(tmp_path)
    assert said(read(tmp_path, transcript_suffix=None if suffix != ".trans" else suffix)) == SENTENCES
    make_text_beside(tmp_path, ".original.txt", SENTENCES | {"a": "The original."})
    if suffix != ".trans":
        with pytest.raises(CorpusError, match=r"\.original\.txt beside audio.*--transcript_suffix"):
            source_of(tmp_path)
    assert said(read(tmp_path, transcript_suffix=".original.txt"))["a"] == "The original."


def test_splits_by_names_and_options(tmp_path: Path):
    make_text_beside(tmp_path, texts=dict.fromkeys(("train-clean/a", "dev/b", "my_test 2/c", "contest/d"), "Words."))
    splits = {clip.id: clip.split for clip in read(tmp_path)}
    assert splits == {"contest/d": "train", "dev/b": "validation", "my_test 2/c": "test", "train-clean/a": "train"}
    assert {clip.split for clip in read(tmp_path, split="mine")} == {"mine"}


def test_encodings_of_transcripts(tmp_path: Path):
    tone(tmp_path / "a.wav")
    write(tmp_path / "a.txt", "café", "latin-1")
    (bad,) = read(tmp_path)
    assert isinstance(bad, BadClip) and "a.txt" in bad.reason and "UTF-8" in bad.reason
    for encoding in ("utf-16", "utf-8-sig"):
        write(tmp_path / "a.txt", "سلام", encoding)
        assert said(read(tmp_path)) == {"a": "سلام"}


# ---------------------------------------------------------------------------------------------- which way to read it


def test_two_ways_to_read_a_folder_are_both_named(tmp_path: Path):
    make_text_beside(tmp_path)
    write_lines(tmp_path / "m.json", [{"audio_filepath": "a.wav", "text": "t"}])
    with pytest.raises(CorpusError, match=r"\*\.txt.*m\.json.*--transcript_suffix or --manifest"):
        source_of(tmp_path)
    with pytest.raises(CorpusError, match="--wer_unit percent is given, but there is no column of word errors"):
        source_of(tmp_path, transcript_suffix=".txt", wer_unit="percent")
    assert len(read(tmp_path, transcript_suffix=".txt")) == 3 and len(read(tmp_path, manifest="m.json")) == 1
    for name in ("list.csv", "again.csv"):
        write(tmp_path / "tables" / name, "path,text\na.wav,t\n")
    with pytest.raises(CorpusError, match=r"again\.csv' and .*list\.csv'.*--manifest"):
        source_of(tmp_path / "tables")


def test_nothing_to_read_says_what_was_looked_for(tmp_path: Path):
    with pytest.raises(CorpusError, match="CSV, TSV, JSON"):
        source_of(tmp_path)
    tone(tmp_path / "a.wav")
    write(tmp_path / "list.csv", "Recording No,Words\n1,hello\n")
    with pytest.raises(CorpusError, match=r"1 audio files.*cannot be told .* audio.*Recording No.*--columns"):
        source_of(tmp_path)
    with pytest.raises(CorpusError, match="not a folder"):
        source_of(tmp_path / "none")


def test_identity_changes_with_what_is_read(tmp_path: Path):
    make_text_beside(tmp_path / "s")
    make_nemo(tmp_path / "n")
    seen = [source_of(tmp_path / "s").identity, source_of(tmp_path / "n").identity]
    (tmp_path / "s" / "a.wav").write_bytes(b"mended")
    write(tmp_path / "s" / "b.txt", (tmp_path / "s" / "b.txt").read_text())  # touched, and the same
    assert source_of(tmp_path / "s").identity == seen[0]
    write(tmp_path / "s" / "a.txt", "Something else.")
    write_lines(tmp_path / "n" / "manifest.json", [{"audio_filepath": "a.wav", "text": "t"}])
    seen += [source_of(tmp_path / "s").identity, source_of(tmp_path / "n").identity]
    seen.append(source_of(tmp_path / "n", split="x").identity)
    assert len({json.dumps(identity) for identity in seen}) == len(seen)


def test_the_order_is_not_that_of_the_file_system(tmp_path: Path):
    names = ["é", "z", "a", "B", "10", "9", "سلام", "🎵"]
    for folder, order in ((tmp_path / "one", names), (tmp_path / "two", names[::-1])):
        make_text_beside(folder, texts={f"{name}/{name}": name for name in order})
    ids = [clip.id for clip in read(tmp_path / "one")]
    assert ids == [clip.id for clip in read(tmp_path / "two")]
    assert ids == sorted((f"{name}/{name}" for name in names), key=os.fsencode)


@pytest.mark.parametrize("make", [make_text_beside, make_csv])
def test_what_was_prepared_below_the_folder_is_no_part_of_it(tmp_path: Path, make):
    """The same command a second time finds its work done, though its output lies in the folder that it reads."""
    make(tmp_path)
    command = [str(tmp_path), "--output", str(tmp_path / "out"), "--workers", "1"]
    run("folder", command)
    before = source_of(tmp_path).identity
    run("folder", command)
    assert source_of(tmp_path).identity == before and texts(read(tmp_path)) == BY_NAME


# ------------------------------------------------------------------------------------------------------ broken, hostile


def test_links_that_lead_out_are_refused(tmp_path: Path):
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    tone(outside / "o.wav")
    write(outside / "o.txt", "a secret")
    make_text_beside(inside, texts={"same": "the same"})
    tone(inside / "good.wav")
    (inside / "same.wav").unlink()
    (inside / "link.wav").symlink_to(outside / "o.wav")
    (inside / "good.txt").symlink_to(outside / "o.txt")
    write(inside / "link.txt", "linked")
    (inside / "below").symlink_to(outside)
    (inside / "same.wav").symlink_to("good.wav")
    clips = read(inside)
    assert [clip.id for clip in clips if not isinstance(clip, BadClip)] == ["same"], "whose link stays inside"
    assert set(problems(clips)) == {"below", "good", "link"}
    assert all("leads out" in reason for reason in problems(clips).values())


def test_audio_without_transcripts(tmp_path: Path):
    make_text_beside(tmp_path)
    tone(tmp_path / "good.wav")
    write(tmp_path / "README.txt", "about")
    write(tmp_path / "empty.txt", " \n")
    tone(tmp_path / "empty.wav")
    found = problems(read(tmp_path))
    assert set(found) == {"good", "empty"} and "no 'good.txt'" in found["good"] and "no words" in found["empty"]


NAMES = ["سلام", "🎵", "new\nline", "tab\tand space", "-rf", "a'b\"c", "e\u0301", "%s{0}"]


def test_names_of_any_script(tmp_path: Path):
    make_text_beside(tmp_path / "s", texts={name: name for name in NAMES})
    for name in NAMES:
        tone(tmp_path / "m" / f"{name}.wav")
    write_lines(tmp_path / "m" / "m.jsonl", [{"path": f"{name}.wav", "text": name} for name in NAMES])
    assert said(read(tmp_path / "s")) == {name: " ".join(name.split()) for name in NAMES}
    assert texts(read(tmp_path / "m")) == {name: name for name in NAMES}
    tone(tmp_path / "a" / "e\u0301.wav")
    write(tmp_path / "a" / "\u00e9.txt", "accent")
    assert list(said(read(tmp_path / "a")).values()) == ["accent"], "written apart it is the same name"


def test_names_that_are_no_text(tmp_path: Path):
    """A file name in another encoding is read, and is called by escapes; it never ends the run."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    try:
        folder.mkdir()
    except (OSError, UnicodeError):
        pytest.skip("this file system takes no such names")
    for name in (b"\xff.wav", b"\xfe.wav"):
        tone(tmp_path / "plain.wav").rename(folder / os.fsdecode(name))
    write(folder / os.fsdecode(b"\xff.txt"), "heard")
    bad, good = read(folder)
    assert (good.id, good.text) == ("\\udcff", "heard") and os.path.isfile(good.recording)
    assert bad.id == "\\udcfe" and "\\udcfe" in bad.reason
    bad.reason.encode()


def test_a_broken_table_is_named(tmp_path: Path):
    for name, content in (("m.jsonl", '{"path": "a.wav", "text": "t"}\n{"path"'), ("m.csv", "")):
        write(tmp_path / name, content)
        with pytest.raises(CorpusError, match="split 'train' "):
            source_of(tmp_path, manifest=name)

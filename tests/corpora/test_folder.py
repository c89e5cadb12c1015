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


def write(path: Path, text: str, encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))


def write_lines(path: Path, rows: list[dict]) -> None:
    write(path, "".join(json.dumps(row) + "\n" for row in rows))


def beside(folder: Path, suffix: str = ".txt", texts: dict[str, str] = SENTENCES) -> None:
    """Recordings with a text file beside each."""
    for name, text in texts.items():
        tone(folder / f"{name}.wav")
        write(folder / f"{name}{suffix}", text)


def table(folder: Path, name: str, content: str) -> None:
    """Recordings, and a table of them: `content` is of each, in which {name} and {text} stand for what it is."""
    head, _, line = content.rpartition("\n")
    lines = [line.replace("{name}", name).replace("{text}", text) for name, text in SENTENCES.items()]
    write(folder / name, "\n".join([head, *lines, ""]).lstrip())
    for recording in SENTENCES:
        tone(folder / f"{recording}.wav")


def tsv(folder: Path) -> None:
    """As Common Voice has it."""
    header = "client_id\tpath\tsentence\tup_votes\tlocale\n"
    for name, names in {"train": "ab", "dev": ["sub/c"]}.items():
        rows = "".join(f"v1\tclips/{name}.mp3\t{SENTENCES[name]}\t2\ten\n" for name in names)
        write(folder / f"{name}.tsv", header + rows)
    write(folder / "reported.tsv", "sentence\tsentence_id\tlocale\treason\n")
    for name in SENTENCES:
        tone(folder / "clips" / f"{name}.mp3")


def json_list(folder: Path) -> None:
    write(
        folder / "data.json", json.dumps([{"id": n, "path": f"{n}.wav", "sentence": t} for n, t in SENTENCES.items()])
    )
    for name in SENTENCES:
        tone(folder / f"{name}.wav")


NEMO = '{"audio_filepath": "{name}.wav", "text": "{text}", "pred_text": "said", "duration": 0.2, "lang": "en"}'
SHAPES = {
    "text": beside,
    "csv": lambda folder: table(folder, "list.csv", 'file,words,transcript\n{name}.wav,2,"{text}"'),
    "tsv": tsv,
    "nemo": lambda folder: table(folder, "manifest.json", NEMO),
    "json": json_list,
    "audiofolder": lambda folder: table(
        folder, "metadata.jsonl", '{"file_name": "{name}.wav", "transcription": "{text}"}'
    ),
}


def source_of(folder: Path, **options):
    return open_source(FolderArguments(str(folder), **options))


def read(folder: Path, **options) -> list[Clip | BadClip]:
    """All clips, after checking that they come the same again, and from any start."""
    source = source_of(folder, **options)
    clips = list(source.clips())
    assert list(source_of(folder, **options).clips()) == clips
    for start in (1, len(clips) - 1, len(clips), len(clips) + 3):
        assert list(source.clips(start)) == clips[start:]
    assert source.count() == len(clips)
    json.dumps([source.identity, [clip.id for clip in clips]]).encode()
    return clips


def texts(folder: Path, by_id: bool = False, **options) -> dict[str, str]:
    """Texts of clips that are all good, with their recordings there, by id or by the recordings' names."""
    clips = read(folder, **options)
    assert all(isinstance(clip, Clip) and os.path.isabs(clip.recording) for clip in clips), clips
    assert all(os.path.isfile(clip.recording) for clip in clips)
    return {clip.id if by_id else Path(clip.recording).stem: clip.text for clip in clips}


def problems(clips: list) -> dict[str, str]:
    return {clip.id: clip.reason for clip in clips if isinstance(clip, BadClip)}


@pytest.mark.parametrize("shape", SHAPES)
def test_each_shape_is_found_and_read(tmp_path: Path, shape: str):
    SHAPES[shape](tmp_path)
    assert texts(tmp_path) == BY_NAME
    first = read(tmp_path)[0]
    fields = {"nemo": {"language": "en", "pred_text": "said"}, "tsv": {"speaker": "v1", "language": "en"}}
    assert dict(first.fields) == fields.get(shape, {}) and (first.start_seconds, first.end_seconds) == (0.0, None)
    assert {clip.split for clip in read(tmp_path)} == ({"train", "validation"} if shape == "tsv" else {"train"})
    assert {clip.split for clip in read(tmp_path, manifest="dev.tsv" if shape == "tsv" else None, split="x")} == {"x"}


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


def test_manifest_of_any_name_and_columns(tmp_path: Path):
    SHAPES["csv"](tmp_path)
    write(tmp_path / "other.csv", "a,b\na.wav,hello\n")
    assert texts(tmp_path) == BY_NAME, "the other has no usual columns"
    assert texts(tmp_path, manifest="list.csv") == BY_NAME
    assert dict(read(tmp_path, columns=["count=words"])[0].fields) == {"count": 2}
    for name, message in (
        ("other.csv", r"which column is the audio.*--columns"),
        ("none.csv", "none"),
        ("a.wav", "a"),
    ):
        with pytest.raises(CorpusError, match=message):
            source_of(tmp_path, manifest=name)
    for manifest in ("other.csv", None):  # found by its columns
        assert texts(tmp_path, manifest=manifest, columns=["audio=a", "text=b"]) == {"a": "hello"}


def test_paths_start_where_the_table_lies_and_may_rise_within_the_folder(tmp_path: Path):
    recording = tone(tmp_path / "audio" / "a.wav")
    write(tmp_path / "lists" / "l.csv", f"path,text\n../audio/a.wav,hello\n{recording},again\n../../b.wav,x\n")
    good, double, bad = read(tmp_path)
    assert good.recording == double.recording == str(recording)
    assert isinstance(bad, BadClip) and "leads out" in bad.reason


def test_transcripts_of_other_endings(tmp_path: Path):
    beside(tmp_path / "x", ".trans")
    with pytest.raises(CorpusError, match="3 audio files"):
        source_of(tmp_path / "x")
    assert texts(tmp_path / "x", by_id=True, transcript_suffix=".trans") == SENTENCES
    beside(tmp_path / "y", ".normalized.txt")
    assert texts(tmp_path / "y", by_id=True) == SENTENCES
    beside(tmp_path / "y", ".original.txt", SENTENCES | {"a": "The original."})
    with pytest.raises(CorpusError, match=r"\.original\.txt beside audio.*--transcript_suffix"):
        source_of(tmp_path / "y")
    assert texts(tmp_path / "y", transcript_suffix=".original.txt")["a"] == "The original."


def test_splits_by_names_of_folders(tmp_path: Path):
    beside(tmp_path, texts=dict.fromkeys(("train-clean/a", "dev/b", "my_test 2/c", "contest/d"), "Words."))
    splits = {clip.id: clip.split for clip in read(tmp_path)}
    assert splits == {"contest/d": "train", "dev/b": "validation", "my_test 2/c": "test", "train-clean/a": "train"}


def test_encodings_of_transcripts(tmp_path: Path):
    beside(tmp_path, texts={"a": ""})
    write(tmp_path / "a.txt", "café", "latin-1")
    (bad,) = read(tmp_path)
    assert isinstance(bad, BadClip) and "a.txt" in bad.reason and "UTF-8" in bad.reason
    for encoding in ("utf-16", "utf-8-sig"):
        write(tmp_path / "a.txt", "سلام", encoding)
        assert texts(tmp_path) == {"a": "سلام"}


def test_two_ways_to_read_a_folder_are_both_named(tmp_path: Path):
    beside(tmp_path)
    write_lines(tmp_path / "m.json", [{"audio_filepath": "a.wav", "text": "t"}])
    for name in ("list.csv", "again.csv"):
        write(tmp_path / "tables" / name, "path,text\na.wav,t\n")
    for folder, options, message in (
        ("tables", {}, r"again\.csv' and .*list\.csv'.*--manifest"),
        (
            ".",
            {"transcript_suffix": ".txt", "wer_unit": "percent"},
            "--wer_unit percent is given, but there is no column",
        ),
    ):
        with pytest.raises(CorpusError, match=message):
            source_of(tmp_path / folder, **options)
    for name in ("list.csv", "again.csv"):
        (tmp_path / "tables" / name).unlink()
    with pytest.raises(CorpusError, match=r"\*\.txt.*m\.json.*--transcript_suffix or --manifest"):
        source_of(tmp_path)
    assert len(read(tmp_path, transcript_suffix=".txt")) == 3 and len(read(tmp_path, manifest="m.json")) == 1


def test_nothing_to_read_says_what_was_looked_for(tmp_path: Path):
    with pytest.raises(CorpusError, match="CSV, TSV, JSON"):
        source_of(tmp_path)
    tone(tmp_path / "a.wav")
    write(tmp_path / "list.csv", "Recording No,Words\n1,hello\n")
    with pytest.raises(CorpusError, match=r"1 audio files.*cannot be told .* audio.*Recording No.*--columns"):
        source_of(tmp_path)
    with pytest.raises(CorpusError, match="not a folder"):
        source_of(tmp_path / "none")
    for name, content in (("m.jsonl", '{"path": "a.wav", "text": "t"}\n{"path"'), ("m.csv", "")):
        write(tmp_path / name, content)
        with pytest.raises(CorpusError, match="split 'train' "):
            source_of(tmp_path, manifest=name)


def test_identity_changes_with_what_is_read(tmp_path: Path):
    beside(tmp_path / "s")
    SHAPES["nemo"](tmp_path / "n")
    seen = [source_of(tmp_path / "s").identity, source_of(tmp_path / "n").identity]
    (tmp_path / "s" / "a.wav").write_bytes(b"mended")
    write(tmp_path / "s" / "b.txt", (tmp_path / "s" / "b.txt").read_text())  # touched, and the same
    assert source_of(tmp_path / "s").identity == seen[0]
    write(tmp_path / "s" / "a.txt", "Something else.")
    write_lines(tmp_path / "n" / "manifest.json", [{"audio_filepath": "a.wav", "text": "t"}])
    seen += [source_of(tmp_path / "s").identity, source_of(tmp_path / "n").identity]
    seen.append(source_of(tmp_path / "n", split="x").identity)
    assert len({json.dumps(identity) for identity in seen}) == len(seen)


@pytest.mark.parametrize("shape", ["text", "csv"])
def test_what_was_prepared_below_the_folder_is_no_part_of_it(tmp_path: Path, shape: str):
    """The same command a second time finds its work done, though its output lies in the folder that it reads."""
    SHAPES[shape](tmp_path)
    command = [str(tmp_path), "--output", str(tmp_path / "out"), "--workers", "1"]
    run("folder", command)
    before = source_of(tmp_path).identity
    run("folder", command)
    assert source_of(tmp_path).identity == before and texts(tmp_path) == BY_NAME


def test_links_that_lead_out_and_audio_without_transcripts_are_refused(tmp_path: Path):
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    beside(outside, texts={"o": "a secret"})
    beside(inside, texts={"same": "the same", "empty": " \n"})
    for name in ("good", "alone"):
        tone(inside / f"{name}.wav")
    write(inside / "README.txt", "about")
    write(inside / "link.txt", "linked")
    (inside / "same.wav").unlink()
    for name, target in (("link.wav", outside / "o.wav"), ("good.txt", outside / "o.txt"), ("below", outside), ("same.wav", "good.wav")):  # fmt: skip
        (inside / name).symlink_to(target)
    clips = read(inside)
    assert [clip.id for clip in clips if not isinstance(clip, BadClip)] == ["same"], "whose link stays inside"
    expected = dict.fromkeys(("below", "good", "link"), "leads out") | {"alone": "no 'alone.txt'", "empty": "no words"}
    assert problems(clips).keys() == expected.keys()
    assert all(expected[name] in reason for name, reason in problems(clips).items())


NAMES = ["سلام", "🎵", "new\nline", "tab\tand space", "-rf", "a'b\"c", "e\u0301", "%s{0}", "z", "B", "10", "9"]


def test_names_of_any_script_come_in_an_order_that_is_not_that_of_the_file_system(tmp_path: Path):
    for folder, order in (("one", NAMES), ("two", NAMES[::-1])):
        beside(tmp_path / folder, texts={f"{name}/{name}": name for name in order})
        said = texts(tmp_path / folder, by_id=True)
        assert list(said) == sorted((f"{name}/{name}" for name in NAMES), key=os.fsencode)
        assert list(said.values()) == [" ".join(identity.split("/")[0].split()) for identity in said]
    for name in NAMES:
        tone(tmp_path / "m" / f"{name}.wav")
    write_lines(tmp_path / "m" / "m.jsonl", [{"path": f"{name}.wav", "text": name} for name in NAMES])
    assert texts(tmp_path / "m") == {name: name for name in NAMES}
    tone(tmp_path / "a" / "e\u0301.wav")
    write(tmp_path / "a" / "\u00e9.txt", "accent")
    assert list(texts(tmp_path / "a").values()) == ["accent"], "written apart it is the same name"


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

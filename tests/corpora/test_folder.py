"""A folder of audio in every usual shape is read as the same clips, found by looking or told, in an order that is fixed."""

import gzip
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile
from audiollm.corpora.clips import BadClip, Clip, CorpusError
from audiollm.corpora.folder import DEFAULT_TASKS, FolderArguments, FolderSource, open_source
from audiollm.corpora.folder_layouts import LAYOUTS
from audiollm.corpora.prompts import load_studio_prompts
from audiollm.corpora.tasks import tasks_named
from transformers import HfArgumentParser

RATE_HZ = 16_000
SENTENCES = {"a": "One two.", "b": "Three, four.", "sub/c": "Five \N{EM DASH} six."}


def tone(path: Path, seconds: float = 0.2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    times = np.arange(round(RATE_HZ * seconds)) / RATE_HZ
    file_format = {".mp3": "MP3", ".flac": "FLAC"}.get(path.suffix, "WAV")
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * 440 * times), RATE_HZ, format=file_format)
    return path


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


def write_lines(path: Path, rows: list[dict]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix != ".gz":
        return write(path, text)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()))
    return path


def source_of(folder: Path, **options) -> FolderSource:
    return FolderSource(FolderArguments(str(folder), **options))


def read(folder: Path, **options) -> list[Clip | BadClip]:
    """All clips, after checking that they come the same again, and from any start."""
    source = source_of(folder, **options)
    clips = list(source.clips())
    assert list(source_of(folder, **options).clips()) == clips
    for start in (1, len(clips) - 1, len(clips), len(clips) + 3):
        assert list(source.clips(start)) == clips[start:]
    assert source.count() in (None, len(clips))
    assert len({clip.id for clip in clips}) >= len([clip for clip in clips if isinstance(clip, Clip)])
    json.dumps([source.identity, [clip.id for clip in clips]]).encode()
    return clips


def said(clips: list[Clip | BadClip]) -> dict[str, str]:
    """Texts by id of clips that are all good, with their recordings there."""
    assert [clip for clip in clips if isinstance(clip, BadClip)] == []
    assert all(os.path.isabs(clip.recording) and os.path.isfile(clip.recording) for clip in clips)
    return {clip.id: clip.text for clip in clips}


def make_sidecar(folder: Path, suffix: str = ".txt") -> None:
    for name, text in SENTENCES.items():
        tone(folder / f"{name}.flac")
        write(folder / f"{name}{suffix}", text + "\n")


def make_csv(folder: Path) -> None:
    for name in SENTENCES:
        tone(folder / f"{name}.wav")
    write(folder / "list.csv", "file,words,transcript\n" + "".join(f'{n}.wav,2,"{t}"\n' for n, t in SENTENCES.items()))


def make_ljspeech(folder: Path) -> None:
    for name in SENTENCES:
        tone(folder / "wavs" / f"{name}.wav")
    write(folder / "metadata.csv", "".join(f"{name}|{text}|{text.lower()}\n" for name, text in SENTENCES.items()))


def make_commonvoice(folder: Path) -> None:
    header = "client_id\tpath\tsentence\tup_votes\tlocale\n"
    for table, names in {"train": "ab", "dev": ["sub/c"], "validated": ["a", "b", "sub/c"]}.items():
        rows = "".join(f"v1\t{name}.mp3\t{SENTENCES[name]}\t2\ten\n" for name in names)
        write(folder / f"{table}.tsv", header + rows)
    write(folder / "reported.tsv", "sentence\tsentence_id\tlocale\treason\n")
    for name in SENTENCES:
        tone(folder / "clips" / f"{name}.mp3")


def make_nemo(folder: Path) -> None:
    rows = [
        {"audio_filepath": f"audio/{name}.wav", "text": text, "duration": 0.2, "lang": "en", "pred_text": text.lower()}
        for name, text in SENTENCES.items()
    ]
    for name in SENTENCES:
        tone(folder / "audio" / f"{name}.wav")
    write_lines(folder / "manifest.json", rows)


def make_jsonl(folder: Path) -> None:
    for name in SENTENCES:
        tone(folder / f"{name}.wav")
    write_lines(folder / "data.jsonl", [{"id": n, "path": f"{n}.wav", "sentence": t} for n, t in SENTENCES.items()])


def recording(name: str, seconds: float = 0.2) -> dict:
    sources = [{"type": "file", "channels": [0], "source": f"{name}.wav"}]
    samples = round(RATE_HZ * seconds)
    return {
        "id": f"r-{name}",
        "sources": sources,
        "sampling_rate": RATE_HZ,
        "num_samples": samples,
        "duration": seconds,
    }


def supervision(name: str, text: str, start: float = 0.0, seconds: float = 0.2) -> dict:
    place = {"id": name, "recording_id": f"r-{name}", "start": start, "duration": seconds, "channel": 0}
    return {**place, "text": text, "language": "English", "speaker": "ann"}


def make_lhotse(folder: Path) -> None:
    for name in SENTENCES:
        tone(folder / f"{name}.wav")
    write_lines(folder / "x_recordings_train.jsonl.gz", [recording(name) for name in SENTENCES])
    write_lines(folder / "x_supervisions_train.jsonl.gz", [supervision(n, t) for n, t in SENTENCES.items()])


def make_kaldi(folder: Path) -> None:
    for name in SENTENCES:
        tone(folder / f"{name} x.wav")
    write(folder / "wav.scp", "".join(f"{name} {name} x.wav\n" for name in SENTENCES))
    write(folder / "text", "".join(f"{name} {text}\n" for name, text in reversed(SENTENCES.items())))
    write(folder / "utt2spk", "".join(f"{name}\tann\n" for name in SENTENCES))


def make_audiofolder(folder: Path, ending: str = ".jsonl") -> None:
    rows = [{"file_name": f"{name}.wav", "transcription": text} for name, text in SENTENCES.items()]
    for name in SENTENCES:
        tone(folder / f"{name}.wav")
    if ending == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "metadata.parquet")
    elif ending == ".csv":
        lines = "".join(f'{row["file_name"]},"{row["transcription"]}"\n' for row in rows)
        write(folder / "metadata.csv", "file_name,transcription\n" + lines)
    else:
        write_lines(folder / "metadata.jsonl", rows)


MAKERS = {name.removeprefix("make_"): make for name, make in globals().items() if name.startswith("make_")}


def test_every_layout_has_a_maker():
    assert MAKERS.keys() == LAYOUTS.keys()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_is_found_and_read(tmp_path: Path, layout: str, capsys: pytest.CaptureFixture[str]):
    MAKERS[layout](tmp_path)
    clips = read(tmp_path)
    texts = said(clips)
    assert {name.removeprefix("audio/"): text for name, text in texts.items()} == SENTENCES
    assert said(read(tmp_path, layout=layout)) == texts  # as when it is told
    source = open_source(FolderArguments(str(tmp_path)))
    (line,) = capsys.readouterr().out.splitlines()
    assert source.layout == layout and f"read as: {LAYOUTS[layout]} " in line
    assert source.identity["layout"] == layout


def test_what_layouts_say_beside_the_text(tmp_path: Path):
    for layout in ("nemo", "lhotse", "kaldi", "ljspeech", "commonvoice", "csv"):
        MAKERS[layout](tmp_path / layout)
    fields = {layout.name: dict(read(layout)[0].fields) for layout in tmp_path.iterdir()}
    assert fields["nemo"] == {"language": "en", "pred_text": "one two.", "declared_seconds": 0.2}
    assert fields["lhotse"] == {"speaker": "ann", "language": "English", "declared_seconds": 0.2}
    assert fields["kaldi"] == {"speaker": "ann"}
    assert fields["ljspeech"] == {"normalized_text": "one two."}
    assert fields["commonvoice"] == {"speaker": "v1", "up_votes": "2", "language": "en"}
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


def test_the_line_says_what_is_read(tmp_path: Path):
    make_nemo(tmp_path)
    description = source_of(tmp_path).description
    assert description.startswith("read as: NeMo manifest manifest.json, 3 lines (audio=audio_filepath, text=text")


# ------------------------------------------------------------------------------------------------ parts of recordings


def test_parts_of_nemo_lhotse_and_kaldi(tmp_path: Path):
    long = tone(tmp_path / "long.wav", 4.0)
    parts = [{"start": 0.5, "seconds": 1.0}, {"start": 2.0, "seconds": 1.5}]
    rows = [{"audio_filepath": "long.wav", "text": "t", "offset": p["start"], "duration": p["seconds"]} for p in parts]
    write_lines(tmp_path / "nemo" / "m.json", rows)
    said_of = [
        {**supervision(f"s{n}", "t", p["start"], p["seconds"]), "recording_id": "r-long"} for n, p in enumerate(parts)
    ]
    write_lines(tmp_path / "lhotse" / "supervisions.jsonl", said_of)
    write_lines(tmp_path / "lhotse" / "recordings.jsonl", [recording("long", 4.0)])
    cuts = [
        {
            **{"id": f"c{n}", "type": "MonoCut", "start": p["start"], "duration": p["seconds"], "channel": 0},
            **{"recording": recording("long", 4.0), "supervisions": [supervision("x", "t")]},
        }
        for n, p in enumerate(parts)
    ]
    write_lines(tmp_path / "cuts" / "cuts.jsonl.gz", cuts)
    write(tmp_path / "kaldi" / "wav.scp", "long long.wav\n")
    write(tmp_path / "kaldi" / "segments", "u0 long 0.5 1.5\nu1 long 2.0 3.5\nu2 long 3.0 -1\n")
    write(tmp_path / "kaldi" / "text", "u0 t\nu1 t\nu2 t\n")
    found = {name: read(tmp_path / name, audio_dir=str(tmp_path)) for name in ("nemo", "lhotse", "cuts", "kaldi")}
    for clips in found.values():
        assert all(clip.recording == str(long) for clip in clips)
        assert [(clip.start_seconds, clip.end_seconds) for clip in clips][:2] == [(0.5, 1.5), (2.0, 3.5)]
    assert found["kaldi"][2].end_seconds is None
    assert [clip.id for clip in found["nemo"]] == ["long@0.5-1.5", "long@2-3.5"]


def test_a_duration_alone_cuts_nothing_off(tmp_path: Path):
    make_nemo(tmp_path)
    assert {(clip.start_seconds, clip.end_seconds) for clip in read(tmp_path)} == {(0.0, None)}


def test_words_of_a_cut_come_in_the_order_of_time(tmp_path: Path):
    tone(tmp_path / "a.wav")
    words = [supervision("2", "later", 0.1), supervision("1", "first", -0.05) | {"speaker": "bob"}]
    cut = {"id": "c", "type": "MonoCut", "start": 0, "duration": 0.2, "channel": 0, "custom": {"translation": "dann"}}
    write_lines(tmp_path / "cuts.jsonl", [{**cut, "supervisions": words, "recording": recording("a")}])
    (clip,) = read(tmp_path)
    assert clip.text == "first later"
    assert clip.fields == {"translation": "dann", "language": "English", "declared_seconds": 0.2}


# ------------------------------------------------------------------------------------------------------------ options


def test_manifest_of_any_name_and_columns(tmp_path: Path):
    make_csv(tmp_path)
    (tmp_path / "list.csv").rename(tmp_path / "list.txt")
    write(tmp_path / "other.csv", "a,b\na.wav,hello\n")
    assert said(read(tmp_path, manifest="list.txt")) == SENTENCES
    with pytest.raises(CorpusError, match=r"other\.csv.*--layout"):
        source_of(tmp_path, manifest="other.csv")
    assert said(read(tmp_path, manifest="other.csv", columns=["audio=a", "text=b"])) == {"a": "hello"}
    assert said(read(tmp_path, manifest=str(tmp_path / "other.csv"), layout="csv", columns=["audio=a", "text=b"]))
    with pytest.raises(CorpusError, match="no column 'c'"):
        source_of(tmp_path, manifest="other.csv", layout="csv", columns=["audio=a", "text=c"])
    with pytest.raises(CorpusError, match="does not exist"):
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
    assert (good.id, good.text, double.id) == ("audio/a", "hello", "audio/a")
    assert "is already that of the clip from" in double.reason


@pytest.mark.parametrize("suffix", [".lab", ".normalized.txt", ".trans"])
def test_transcripts_of_other_endings(tmp_path: Path, suffix: str):
    make_sidecar(tmp_path, suffix)
    if suffix == ".trans":
        with pytest.raises(CorpusError, match="3 audio files"):
            source_of(tmp_path)
    assert said(read(tmp_path, transcript_suffix=None if suffix != ".trans" else suffix)) == SENTENCES


def test_two_kinds_of_transcripts_must_be_told_apart(tmp_path: Path):
    make_sidecar(tmp_path, ".normalized.txt")
    make_sidecar(tmp_path, ".original.txt")
    write(tmp_path / "a.original.txt", "The original.")
    with pytest.raises(CorpusError, match=r"\.normalized\.txt and in \.original\.txt.*--transcript_suffix"):
        source_of(tmp_path)
    assert said(read(tmp_path, transcript_suffix=".original.txt"))["a"] == "The original."


def test_splits_by_names_and_options(tmp_path: Path):
    for name in ("train-clean/a", "dev/b", "my_test 2/c", "contest/d"):
        tone(tmp_path / f"{name}.wav")
        write(tmp_path / f"{name}.txt", name)
    splits = {clip.id: clip.split for clip in read(tmp_path)}
    assert splits == {"contest/d": "train", "dev/b": "validation", "my_test 2/c": "test", "train-clean/a": "train"}
    assert {clip.split for clip in read(tmp_path, split="mine")} == {"mine"}
    assert [clip.id for clip in read(tmp_path, splits=["dev", "test"])] == ["dev/b", "my_test 2/c"]


def test_a_column_of_splits(tmp_path: Path):
    make_csv(tmp_path)
    write(tmp_path / "list.csv", "path,text,split\na.wav,x,dev\nb.wav,y,\nsub/c.wav,z,extra\n")
    assert [clip.split for clip in read(tmp_path)] == ["validation", "train", "extra"]


def test_encoding_of_transcripts_and_manifests(tmp_path: Path):
    tone(tmp_path / "s" / "a.wav")
    write(tmp_path / "s" / "a.txt", "café", "latin-1")
    (bad,) = read(tmp_path / "s")
    assert isinstance(bad, BadClip) and "a.txt" in bad.reason and "--encoding latin-1" in bad.reason
    assert said(read(tmp_path / "s", encoding="latin-1")) == {"a": "café"}
    write(tmp_path / "s" / "a.txt", "سلام", "utf-16")
    assert said(read(tmp_path / "s")) == {"a": "سلام"}
    tone(tmp_path / "m" / "é.wav")
    write(tmp_path / "m" / "l.csv", "path,text\né.wav,café\n", "latin-1")
    assert "--encoding" in read(tmp_path / "m")[0].reason
    assert said(read(tmp_path / "m", encoding="latin-1")) == {"é": "café"}


def test_quotes_of_a_table(tmp_path: Path):
    tone(tmp_path / "a.wav")
    write(tmp_path / "l.csv", 'path,text\na.wav,"yes"\n')
    assert said(read(tmp_path)) == {"a": "yes"}
    assert said(read(tmp_path, quotes="none")) == {"a": '"yes"'}


def test_arguments_come_from_the_command_line():
    given = [
        "--folder",
        "x",
        "--columns",
        "text=a",
        "audio=b",
        "--follow-symlinks",
        "--splits",
        "dev",
        "test",
        "--audio_dir",
        "y",
    ]
    (arguments,) = HfArgumentParser(FolderArguments).parse_args_into_dataclasses(given)
    assert arguments == FolderArguments(
        "x", columns=["text=a", "audio=b"], follow_symlinks=True, splits=["dev", "test"], audio_dir="y"
    )
    assert tasks_named(DEFAULT_TASKS)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"layout": "tables"}, "--layout"),
        ({"quotes": "single"}, "--quotes"),
        ({"split": "a", "splits": ["b"]}, "--splits"),
        ({"layout": "sidecar", "manifest": "m"}, "--manifest"),
        ({"transcript_suffix": ".txt", "manifest": "m"}, "--transcript_suffix"),
        ({"transcript_suffix": ".txt", "layout": "csv"}, "--transcript_suffix"),
        ({"transcript_suffix": ""}, "--transcript_suffix"),
        ({"columns": ["text"]}, "--columns"),
        ({"encoding": "latin-99"}, "--encoding"),
        ({"split": ""}, "--split"),
    ],
)
def test_options_that_contradict_are_refused(options: dict, named: str):
    with pytest.raises(ValueError, match=named):
        FolderArguments("x", **options)


@pytest.mark.parametrize(
    ("layout", "options"),
    [
        ("sidecar", {"columns": ["text=a"]}),
        ("kaldi", {"columns": ["text=a"]}),
        ("nemo", {"quotes": "csv"}),
        ("sidecar", {"audio_dir": "/"}),
    ],
)
def test_options_without_use_for_a_layout_are_refused(tmp_path: Path, layout: str, options: dict):
    MAKERS[layout](tmp_path)
    with pytest.raises(CorpusError, match=f"--{next(iter(options))} .*is given"):
        source_of(tmp_path, **options)


# ---------------------------------------------------------------------------------------------- which way to read it


def test_two_ways_to_read_a_folder_are_both_named(tmp_path: Path):
    make_sidecar(tmp_path)
    write_lines(tmp_path / "m.json", [{"audio_filepath": "a.flac", "text": "t"}])
    with pytest.raises(CorpusError, match=r"as sidecar .*\*\.txt.*as nemo .*m\.json.*--layout.*--manifest"):
        source_of(tmp_path)
    assert len(read(tmp_path, layout="sidecar")) == 3 and len(read(tmp_path, layout="nemo")) == 1
    assert len(read(tmp_path, manifest="m.json")) == 1


def test_two_manifests_of_one_split_are_both_named(tmp_path: Path):
    make_csv(tmp_path)
    shutil.copy(tmp_path / "list.csv", tmp_path / "again.csv")
    with pytest.raises(CorpusError, match=r"'again\.csv' and 'list\.csv'.*--manifest"):
        source_of(tmp_path)


def test_nothing_to_read_says_what_was_looked_for(tmp_path: Path):
    with pytest.raises(CorpusError, match="NeMo, Lhotse"):
        source_of(tmp_path)
    tone(tmp_path / "a.wav")
    (tmp_path / "train.tsv").touch()
    with pytest.raises(CorpusError, match=r"1 audio files.*train\.tsv.*0 bytes"):
        source_of(tmp_path)
    with pytest.raises(CorpusError, match="--layout kaldi"):
        source_of(tmp_path, layout="kaldi")
    with pytest.raises(CorpusError, match="not a folder"):
        source_of(tmp_path / "none")


def test_identity_changes_with_what_is_read(tmp_path: Path):
    make_sidecar(tmp_path / "s")
    make_nemo(tmp_path / "n")
    seen = [source_of(tmp_path / "s").identity, source_of(tmp_path / "n").identity]
    write(tmp_path / "s" / "a.txt", "Something else.")
    write_lines(tmp_path / "n" / "manifest.json", [{"audio_filepath": "audio/a.wav", "text": "t"}])
    seen += [source_of(tmp_path / "s").identity, source_of(tmp_path / "n").identity]
    seen += [source_of(tmp_path / "n", split="x").identity, source_of(tmp_path / "n", follow_symlinks=True).identity]
    assert len({json.dumps(identity) for identity in seen}) == len(seen)


def test_the_order_is_not_that_of_the_file_system(tmp_path: Path):
    names = ["é", "z", "a", "B", "10", "9", "سلام", "🎵"]
    for folder, order in ((tmp_path / "one", names), (tmp_path / "two", names[::-1])):
        for name in order:
            tone(folder / name / f"{name}.wav")
            write(folder / name / f"{name}.txt", name)
    ids = [clip.id for clip in read(tmp_path / "one")]
    assert ids == [clip.id for clip in read(tmp_path / "two")]
    assert ids == sorted((f"{name}/{name}" for name in names), key=os.fsencode)


def test_speech_is_prepared_from_end_to_end(tmp_path: Path):
    """Real prompts beside their transcripts, through the command, to examples that name the prepared recordings."""
    from audiollm.corpora.prepare import run

    rows = load_studio_prompts("test").select(range(3))
    for row in rows:
        write(tmp_path / "in" / f"{row['id']}.txt", row["text"])
        (tmp_path / "in" / f"{row['id']}.opus").write_bytes(row["audio"]["bytes"])
    run("folder", [str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--workers", "1"])
    examples = json.loads((tmp_path / "out" / "instruction_examples.json").read_text())
    assert sorted(example["response"] for example in examples) == sorted(row["text"] for row in rows)

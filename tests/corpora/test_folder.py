"""A folder of audio in every usual shape is read as the same clips, found by looking, in an order that is fixed."""

from pathlib import Path

import pytest
from audiollm.corpora.folder import FolderArguments, open_source
from audiollm.corpora.folder_layouts import LAYOUTS
from folder_shapes import (
    MAKERS,
    SENTENCES,
    make_audiofolder,
    make_nemo,
    read,
    recording,
    said,
    source_of,
    supervision,
    tone,
    write,
    write_lines,
)


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
    assert description.startswith("read as: NeMo manifest manifest.json, 3 rows (audio=audio_filepath, text=text")


def test_a_header_is_no_row(tmp_path: Path):
    tone(tmp_path / "a.wav", 0.2)
    (tmp_path / "list.csv").write_text('path,text\na.wav,"one,\ntwo"\na.wav,three\n\n')
    source = source_of(tmp_path)
    assert "list.csv, 2 rows " in source.description and source.count() == 2 == len(list(source.clips()))


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

"""Cuts of Lhotse become clips; what would run a command, fetch a URL or leave the folder is reported."""

import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from audiollm.corpora.clips import BadClip, Clip, CorpusError
from audiollm.corpora.lhotse_cuts import LhotseArguments, open_source
from audiollm.corpora.prepare import run
from audiollm.corpora.prompts import load_studio_prompts
from audiollm.corpora.recordings import AudioSettings, load_clip
from audiollm.processing import load_waveform
from made_clips import tone

ANY_LENGTH = AudioSettings(0.0, 60.0)


@pytest.fixture
def lhotse():
    return pytest.importorskip("lhotse")


def cut_of(lhotse, path: Path, name: str, text: str | None = "words", **supervision):
    recording = lhotse.Recording.from_file(path)
    said = lhotse.SupervisionSegment(name, recording.id, 0.0, recording.duration, text=text, **supervision)
    return lhotse.MonoCut(name, 0.0, recording.duration, 0, [said], recording=recording)


def test_cuts_become_clips_with_what_is_said_of_them(lhotse, tmp_path: Path) -> None:
    path = tone(tmp_path / "a.wav", 2.0)
    whole = cut_of(lhotse, path, "whole", speaker="ann", language="English", custom={"translation": "dann"})
    part = cut_of(lhotse, path, "part").truncate(offset=0.5, duration=1.0)
    mixed = cut_of(lhotse, path, "one").append(cut_of(lhotse, path, "two"))
    fast = cut_of(lhotse, path, "fast").perturb_speed(2.0)
    lhotse.CutSet.from_cuts([whole, part, mixed, fast]).to_file(tmp_path / "cuts.jsonl.gz")
    source = open_source(LhotseArguments(str(tmp_path / "cuts.jsonl.gz"), split="dev"))
    clips = list(source.clips())
    assert all(isinstance(clip, Clip) and clip.split == "dev" for clip in clips)
    assert [clip.text for clip in clips] == ["words", "words", "words words", "words"]
    assert clips[0].fields == {"speaker": "ann", "language": "English", "translation": "dann"}
    seconds = [len(load_clip(clip, ANY_LENGTH)) / 16_000 for clip in clips]
    assert seconds == pytest.approx([2.0, 1.0, 4.0, 1.0], abs=0.01)
    assert [clip.id for clip in source.clips(2)] == [clip.id for clip in clips[2:]]


def test_only_audio_files_are_read(lhotse, tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    outside, inside = tone(tmp_path / "o.wav"), tone(tmp_path / "inside" / "i.wav")
    cuts = [cut_of(lhotse, outside, name) for name in ("outside", "command", "url", "gone")]
    cuts += [cut_of(lhotse, inside, "silent", text=None), cut_of(lhotse, inside, "good")]
    cuts[1].recording.sources[0].type, cuts[1].recording.sources[0].source = "command", f"touch {tmp_path}/witness"
    cuts[2].recording.sources[0].type, cuts[2].recording.sources[0].source = "url", "http://127.0.0.1:9/a.wav"
    cuts[3].recording.sources[0].source = str(tmp_path / "inside" / "gone.wav")
    lhotse.CutSet.from_cuts(cuts).to_file(tmp_path / "cuts.jsonl")
    *bad, good = open_source(LhotseArguments(str(tmp_path / "cuts.jsonl"), str(tmp_path / "inside"))).clips()
    reasons = ["leads out of --audio_dir", "from a command", "from a url", "does not exist", "no transcript"]
    assert all(isinstance(clip, BadClip) and why in clip.reason for clip, why in zip(bad, reasons, strict=True))
    assert isinstance(good, Clip) and not (tmp_path / "witness").exists()


def test_other_files_and_a_missing_lhotse_are_named(lhotse, tmp_path: Path, monkeypatch) -> None:
    for name, content in (("empty.jsonl", ""), ("other.jsonl", '{"a": 1}\n'), ("text.jsonl", "hello\n")):
        (tmp_path / name).write_text(content)
        with pytest.raises(CorpusError, match=name):
            open_source(LhotseArguments(str(tmp_path / name)))
    with pytest.raises(CorpusError, match="no such file"):
        open_source(LhotseArguments(str(tmp_path / "none.jsonl")))
    monkeypatch.setitem(sys.modules, "lhotse", None)
    with pytest.raises(CorpusError, match=r"pip install 'audiollm\[lhotse\]'"):
        open_source(LhotseArguments(str(tmp_path / "text.jsonl")))


def test_a_kaldi_folder_is_prepared_by_way_of_lhotse(lhotse, tmp_path: Path, monkeypatch) -> None:
    """Relative paths of a manifest start where it lies; real speech comes out as it went in."""
    row = load_studio_prompts("test")[0]
    waveform = load_waveform(row["audio"])
    (tmp_path / "data").mkdir()
    soundfile.write(tmp_path / "data" / "u1.wav", waveform, 16_000, subtype="FLOAT")
    for name, said in (("wav.scp", "data/u1.wav"), ("text", row["text"]), ("utt2spk", "ann")):
        (tmp_path / "data" / name).write_text(f"u1 {said}\n")
    monkeypatch.chdir(tmp_path)
    recordings, supervisions, _ = lhotse.kaldi.load_kaldi_data_dir("data", sampling_rate=16_000)
    cuts = lhotse.CutSet.from_manifests(recordings=recordings, supervisions=supervisions)
    cuts.trim_to_supervisions().to_file("cuts.jsonl.gz")
    run("lhotse", ["cuts.jsonl.gz", "--output", "out", "--workers", "1"])
    (heard,) = (tmp_path / "out" / "audio").rglob("*.flac")
    assert np.abs(load_waveform(heard) - waveform).max() < 1e-4

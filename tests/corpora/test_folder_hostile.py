"""Folders that are broken or mean harm: every problem is named, nothing outside is read, and nothing is run."""

import os
from pathlib import Path

import pytest
from audiollm.corpora.clips import BadClip, Clip
from folder_shapes import make_sidecar, read, said, source_of, tone, write, write_lines


def problems(clips: list[Clip | BadClip]) -> dict[str, str]:
    return {clip.id: clip.reason for clip in clips if isinstance(clip, BadClip)}


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder beside the one that is read, with a recording and a secret in it."""
    tone(tmp_path / "outside" / "o.wav")
    write(tmp_path / "outside" / "o.txt", "a secret")
    return tmp_path / "outside"


@pytest.fixture
def inside(tmp_path: Path) -> Path:
    """The folder that is read, with one good recording."""
    tone(tmp_path / "inside" / "good.wav")
    return tmp_path / "inside"


def test_paths_that_lead_out_are_refused(inside: Path, outside: Path):
    paths = [str(outside / "o.wav"), "../outside/o.wav", "x/../../outside/o.wav", "/etc/passwd", "../inside2/o.wav"]
    write_lines(inside / "m.jsonl", [{"path": path, "text": "t"} for path in [*paths, "../inside/good.wav"]])
    *bad, good = read(inside)
    assert isinstance(good, Clip) and good.recording == str(inside / "good.wav")
    for path, clip in zip(paths, bad, strict=True):
        assert isinstance(clip, BadClip) and repr(path) in clip.reason and "--audio_dir" in clip.reason
        assert clip.reason.startswith("m.jsonl, line ")
    allowed = read(inside, audio_dir=str(outside.parent))
    assert [clip.id for clip in allowed if isinstance(clip, Clip)] == ["outside/o"]


def test_paths_that_are_none_are_named(inside: Path):
    (inside / "folder.wav").mkdir()
    os.mkfifo(inside / "pipe.wav")
    wrong = {
        "": "has no audio",
        " ": "has no audio",
        "a\0b.wav": "null byte",
        "http://example.org/a.wav": "URL",
        "file:///etc/passwd": "URL",
        "none.wav": "is no file",
        "folder.wav": "is no file",
        "pipe.wav": "is no file",
        "n" * 300 + ".wav": "is no file",
        "lone\ud800.wav": "surrogates",
    }
    write_lines(inside / "m.jsonl", [{"path": path, "text": "t"} for path in wrong])
    clips = read(inside)
    for clip, reason in zip(clips, wrong.values(), strict=True):
        assert isinstance(clip, BadClip) and reason in clip.reason


def test_links_that_lead_out_are_refused(inside: Path, outside: Path):
    (inside / "link.wav").symlink_to(outside / "o.wav")
    (inside / "good.txt").symlink_to(outside / "o.txt")
    write(inside / "link.txt", "linked")
    (inside / "below").symlink_to(outside)
    (inside / "same.wav").symlink_to("good.wav")
    write(inside / "same.txt", "the same")
    clips = read(inside)
    assert [clip.id for clip in clips if isinstance(clip, Clip)] == ["same"], "whose link stays inside the folder"
    assert all("leads out" in reason or "lead out" in reason for reason in problems(clips).values())
    assert set(problems(clips)) == {"below", "good", "link"}


def test_audio_and_transcripts_without_each_other(inside: Path):
    make_sidecar(inside)
    write(inside / "README.txt", "about")
    write(inside / "empty.txt", " \n")
    tone(inside / "empty.wav")
    found = problems(read(inside))
    assert set(found) == {"good", "empty"} and "no 'good.txt'" in found["good"] and "no words" in found["empty"]


NAMES = ["سلام", "🎵", "new\nline", "tab\tand space", "-rf", "a'b\"c", "e\u0301", "%s{0}"]


def test_names_of_any_script(tmp_path: Path):
    for name in NAMES:
        tone(tmp_path / "s" / f"{name}.wav")
        write(tmp_path / "s" / f"{name}.txt", name)
        tone(tmp_path / "m" / f"{name}.wav")
    write_lines(tmp_path / "m" / "m.jsonl", [{"path": f"{name}.wav", "text": name} for name in NAMES])
    assert said(read(tmp_path / "s")) == {name: " ".join(name.split()) for name in NAMES}
    assert said(read(tmp_path / "m")) == {name: name for name in NAMES}


def test_accents_written_apart_are_the_same_name(tmp_path: Path):
    tone(tmp_path / "s" / "e\u0301.wav")
    write(tmp_path / "s" / "\u00e9.txt", "accent")
    assert list(said(read(tmp_path / "s")).values()) == ["accent"]
    tone(tmp_path / "m" / "e\u0301.wav")
    write(tmp_path / "m" / "m.csv", "path,text\n\u00e9.wav,accent\n")
    assert list(said(read(tmp_path / "m")).values()) == ["accent"]


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
    (folder / "m.csv").write_bytes(b"path,text\n\xff.wav,heard\n\xfd.wav,not there\n")
    good, bad = read(folder, manifest="m.csv")
    assert good.text == "heard" and "is no file" in bad.reason
    source_of(folder, manifest="m.csv").summary.encode()


def test_a_manifest_that_changes_its_columns_or_breaks_is_named_by_line(inside: Path):
    rows = ['{"path": "good.wav", "text": "t"}', '{"text": "t"}', '{"path": 3, "text": "t"}', "[]", '{"path"']
    rows += ['{"path": "good.wav", "text": " "}']
    write(inside / "m.jsonl", "\n".join(rows))
    _, *bad = read(inside)
    assert [clip.id for clip in bad] == [f"m.jsonl, line {n}" for n in range(2, 7)]
    assert "has no audio" in bad[0].reason and "no transcript" in bad[-1].reason

"""Files written whole or not at all, journals with torn and corrupt lines, and names."""

import os
from pathlib import Path

import pytest
from audiollm.command_line.files import (
    AUDIO_SUFFIXES,
    Journal,
    JournalError,
    is_audio,
    is_inside,
    partial_path,
    sha256_of,
    write_json,
    write_whole,
    written,
)


def test_a_file_is_there_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "made" / "file.txt"
    write_whole(path, "first\n")
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    with pytest.raises(RuntimeError, match="stop"), written(path) as file:
        file.write("half")
        file.flush()
        assert path.read_text() == "first\n"
        raise RuntimeError("stop")
    assert path.read_text() == "first\n" and os.listdir(path.parent) == ["file.txt"]
    write_whole(path, b"\xff\n")
    write_json(tmp_path / "value.json", {"ü": 1})
    assert path.read_bytes() == b"\xff\n" and (tmp_path / "value.json").read_text() == '{\n  "ü": 1\n}\n'


def test_no_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("mine")
    for name in ("file", ".file.partial"):
        (tmp_path / name).symlink_to(tmp_path / "other")
    write_whole(tmp_path / "file", "new", tag="")
    assert (tmp_path / "other").read_text() == "mine" and (tmp_path / "file").read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == ["file", "other"] and partial_path(tmp_path / "a").name == ".a.partial"


@pytest.mark.parametrize("torn", [b"", b'{"n": 3', b"\0" * 5, b"x" * (3 << 20)])
def test_a_torn_line_is_ignored_and_goes_with_the_next_write(tmp_path: Path, torn: bytes) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    assert list(journal.entries()) == [] and journal.mend() == 0
    journal.append([{"n": 1}, {"n": 2}])
    with open(journal.path, "ab") as file:
        file.write(torn)
    assert [entry["n"] for entry in journal.entries()] == [1, 2]
    journal.append([{"n": 3}], sync=False)
    assert [entry["n"] for entry in journal.entries()] == [1, 2, 3]
    starts = [line.start for line in journal.lines()]
    assert journal.at(starts[1]) == {"n": 2} and [line.entry for line in journal.lines(starts[2])] == [{"n": 3}]


@pytest.mark.parametrize("corrupt", [b"{no JSON}\n", b"[1]\n", b"\n", b"\xff\n", b"[" * 100_000 + b"\n"])
def test_a_corrupt_line_is_named_and_mending_cuts_there(tmp_path: Path, corrupt: bytes) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.path.write_bytes(b'{"n": 1}\n' + corrupt + b'{"n": 3}\n')
    with pytest.raises(JournalError, match="line 2 "):
        list(journal.entries())
    assert [line.entry for line in journal.lines()] == [{"n": 1}, None, {"n": 3}]
    assert journal.mend() == 1 and journal.path.read_bytes() == b'{"n": 1}\n'
    assert journal.mend(lambda entry: entry["n"] > 1) == 0 and journal.path.read_bytes() == b""


def test_names_and_checksums(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_of(tmp_path / "file") == sha256_of(b"abc") == expected
    assert is_audio("a/b.WAV") and is_audio(Path("x.m4a")) and not is_audio("wav") and not is_audio("a.txt")
    assert len(set(AUDIO_SUFFIXES)) == len(AUDIO_SUFFIXES)
    assert is_inside("/a/b/c", "/a/b") and is_inside("/a/b/../b/c", "/a/b/") and is_inside("x", ".")
    assert not is_inside("/a/b", "/a/b") and not is_inside("/a/b2", "/a/b") and not is_inside("/a/b/../c", "/a/b")

"""LibriSpeech end to end on archives of its real form, made of real speech and served by a server that breaks off."""

import gzip
import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audiollm.command_line import downloads
from audiollm.command_line.downloads import ChecksumError
from audiollm.corpora import librispeech
from audiollm.corpora.clips import BadClip, Clip, CorpusError
from audiollm.corpora.librispeech import (
    ArchiveError,
    LibriSpeechArguments,
    PublishedArchive,
    open_source,
    openslr,
    unpack,
)
from audiollm.corpora.prompts import load_studio_prompts
from audiollm.processing import load_waveform
from loopback_site import Site, serving
from small_corpus import write_chapter

#: Speakers of each split, as sorted by name, and clips of each.
SPEAKERS = {"dev-clean": (2035, 84, 85), "train-clean-5": (1088, 60)}
CLIPS = 3
Files = dict[str, bytes]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both splits, unpacked."""
    tree = tmp_path_factory.mktemp("tree")
    rows = iter(load_studio_prompts("test"))
    for split, speakers in SPEAKERS.items():
        for speaker in speakers:
            said = [(load_waveform(row["audio"]), row["text"]) for row in islice(rows, CLIPS)]
            write_chapter(tree / "LibriSpeech" / split, speaker, said)
    (tree / "LibriSpeech" / "README.TXT").touch()
    return tree


@pytest.fixture(scope="module")
def archives(tree: Path) -> dict[str, bytes]:
    """Archives of each split as OpenSLR would publish them."""
    files = {path.relative_to(tree).as_posix(): path.read_bytes() for path in tree.rglob("*.*")}
    return {split: packed({name: files[name] for name in sorted(files) if split in name}) for split in SPEAKERS}


def packed(files: Files, mode: str = "w:gz", extra: tuple[tarfile.TarInfo, ...] = (), **options: int) -> bytes:
    """A tar.gz of files, and of further members without content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, **options) as tar:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for member in extra:
            tar.addfile(member)
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AUDIOLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(downloads, "RETRY_WAIT_SECONDS", 0.001)


@pytest.fixture
def table(archives: dict[str, bytes]) -> dict[str, PublishedArchive]:
    sums = {split: hashlib.md5(data, usedforsecurity=False).hexdigest() for split, data in archives.items()}
    return {split: PublishedArchive(openslr()[1][split].resource, len(archives[split]), sums[split]) for split in sums}


@pytest.fixture
def mirror(archives: dict[str, bytes]) -> Iterator[Site]:
    with serving() as site:
        names = {split: f"/resources/{openslr()[1][split].resource}/{split}.tar.gz" for split in archives}
        site.files = {names[split]: data for split, data in archives.items()}
        yield site


def opened(source_path: Path, table: dict[str, PublishedArchive] | None = None, **options: Any) -> Any:
    return open_source(LibriSpeechArguments(source_path=str(source_path), **options), table)


def good(source: Any, start: int = 0) -> list[Clip]:
    clips = list(source.clips(start))
    assert all(isinstance(clip, Clip) for clip in clips), clips
    return clips


def test_downloaded_over_a_connection_that_breaks_twice(mirror: Site, table, tmp_path: Path) -> None:
    first = table["dev-clean"].bytes // 3
    mirror.break_after = [first, 5000]
    arguments = LibriSpeechArguments(
        splits=["dev-clean,train-clean-5"], archives=str(tmp_path / "kept"), mirrors=[f"{mirror.url}/resources/"]
    )
    source = open_source(arguments, table)
    assert mirror.requests == [
        ("/resources/12/dev-clean.tar.gz", None),
        ("/resources/12/dev-clean.tar.gz", f"bytes={first}-"),
        ("/resources/12/dev-clean.tar.gz", f"bytes={first + 5000}-"),
        ("/resources/31/train-clean-5.tar.gz", None),
    ]
    clips = good(source)
    assert source.count() == len(clips) == 15
    assert [clip.split for clip in clips] == ["dev-clean"] * 9 + ["train-clean-5"] * 6
    speakers = [speaker for speakers in SPEAKERS.values() for speaker in speakers]
    assert [clip.id for clip in clips] == [f"{one}-121123-000{number}" for one in speakers for number in range(CLIPS)]
    (tmp_path / "kept" / "dev-clean.tar.gz").unlink()
    again = open_source(arguments, table)
    assert len(mirror.requests) == 4, "what has been unpacked is not asked for again"
    assert again.identity == source.identity and good(again) == clips


def test_a_corrupted_archive_is_refused_and_named(mirror: Site, archives, table, tmp_path: Path) -> None:
    served = archives["dev-clean"]
    damaged = served[:5000] + bytes([served[5000] ^ 1]) + served[5001:]
    mirror.files["/resources/12/dev-clean.tar.gz"] = damaged
    arguments = LibriSpeechArguments(["dev-clean"], archives=str(tmp_path), mirrors=[f"{mirror.url}/resources"])
    found = hashlib.md5(damaged, usedforsecurity=False).hexdigest()
    expected = rf"dev-clean\.tar\.gz.*expected md5 {table['dev-clean'].md5}, found {found}"
    with pytest.raises(ChecksumError, match=expected):
        open_source(arguments, table)
    assert not (tmp_path / "dev-clean.tar.gz").exists()
    (tmp_path / "dev-clean.tar.gz").write_bytes(damaged)  # as a disk may do to it
    with pytest.raises(ChecksumError, match=r"dev-clean\.tar\.gz: expected md5 .* run again"):
        open_source(arguments, table)
    mirror.files["/resources/12/dev-clean.tar.gz"] = served
    assert len(good(open_source(arguments, table))) == 9


def test_folder_and_archive_hold_the_same_clips(tree: Path, archives, table, tmp_path: Path) -> None:
    for split, data in archives.items():
        (tmp_path / f"{split}.tar.gz").write_bytes(data)
    (tree / "LibriSpeech" / "dev-clean" / "84" / "121123" / "._84-121123-0000.flac").write_bytes(b"mac")
    folder, archive = opened(tree), opened(tmp_path, table)
    clips = good(folder)
    assert folder.count() == archive.count() == 15
    waveforms = [[load_waveform(clip.recording) for clip in each] for each in (clips, good(archive))]
    assert all(map(np.array_equal, *waveforms)) and len({len(waveform) for waveform in waveforms[0]}) > 9
    assert [replace(clip, recording="") for clip in clips] == [replace(clip, recording="") for clip in good(archive)]
    assert clips[-1].fields == {"speaker": "60", "chapter": "121123", "language": "en"}
    assert not any(clip.text.isupper() for clip in clips if len(clip.text) > 1)
    inside = good(opened(tree / "LibriSpeech", splits=["train-clean-5"], letter_case="keep"))
    assert [(clip.id, clip.text) for clip in inside] == [(clip.id, clip.text.upper()) for clip in clips[9:]]
    said = "".join(path.read_text() for path in tree.rglob("*.txt"))
    assert all(f"{clip.id} {clip.text}\n" in said for clip in inside)
    for start in (1, 9, 15, 20):
        assert good(folder, start) == clips[start:] and good(archive, start) == good(archive)[start:]


def test_an_archive_at_hand_is_verified_under_its_published_name(archives, table, tmp_path: Path) -> None:
    path = tmp_path / "dev-clean.tar.gz"
    path.write_bytes(archives["dev-clean"])
    assert len(good(opened(path, table))) == 9
    with pytest.raises(CorpusError, match=r"no split 'dev-other'; found dev-clean"):
        opened(path, table, splits=["dev-other"])
    with pytest.raises(CorpusError, match=r"no archive dev-other\.tar\.gz, but those of dev-clean"):
        opened(tmp_path, table, splits=["dev-other"])
    wrong_sum = {"dev-clean": replace(table["dev-clean"], md5="0" * 32)}
    with pytest.raises(ChecksumError, match=rf"{path}: expected md5 0+, found {table['dev-clean'].md5}"):
        opened(path, wrong_sum)
    path.write_bytes(archives["dev-clean"][:-100])
    with pytest.raises(ChecksumError, match=rf"{path}: expected \d+ bytes, found \d+"):
        opened(tmp_path, table)
    path = path.rename(tmp_path / "mine.tar.gz")  # of no published name: damage shows where it is
    with pytest.raises(ArchiveError, match=r"mine\.tar\.gz is damaged at member 'LibriSpeech/dev-clean/85/"):
        opened(path)


def test_what_cannot_become_a_clip_is_said_with_its_reason(tree: Path, tmp_path: Path) -> None:
    split = Path(shutil.copytree(tree, tmp_path / "tree")) / "LibriSpeech" / "dev-clean"
    chapter, broken = split / "84" / "121123", split / "85" / "121123" / "85-121123.trans.txt"
    lines = (chapter / "84-121123.trans.txt").read_text().splitlines()
    (chapter / "84-121123.trans.txt").write_text("\n".join(["84-121123-0000", *lines[1:]]))  # without text
    (chapter / "84-121123-0002.flac").rename(chapter / "84-121123-0003.flac")
    broken.write_bytes(broken.read_bytes().replace(b" ", b" \xff", 1))
    clips = list(opened(tmp_path / "tree", splits=["dev-clean"]).clips())
    untold = ("84-121123-0000", "84-121123-0003", "85-121123-0000", "85-121123-0001", "85-121123-0002")
    assert {clip.id: clip.reason for clip in clips if isinstance(clip, BadClip)} == {
        **dict.fromkeys(untold, "has a recording and no transcript"),
        "84-121123-0002": "has a transcript and no recording",
        "dev-clean/85/121123/85-121123.trans.txt": "is not UTF-8 text: invalid start byte at byte 15",
    }
    whole = [*(f"2035-121123-000{number}" for number in range(CLIPS)), "84-121123-0001"]
    assert [clip.id for clip in clips if isinstance(clip, Clip)] == whole


def test_a_folder_of_something_else_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"no LibriSpeech tree; expected LibriSpeech/<split>"):
        opened(tmp_path)
    with pytest.raises(FileNotFoundError, match="gone"):
        opened(tmp_path / "gone")
    (tmp_path / "x.tar.gz").write_bytes(packed({"notes.txt": b"nothing"}))
    with pytest.raises(CorpusError, match="there is no LibriSpeech tree"):
        opened(tmp_path / "x.tar.gz")


# ---------------------------------------------------------------------------------------------------------- archives


@pytest.fixture
def members(tmp_path: Path):
    """Unpacks an archive of these bytes; returns the files by their paths."""

    def read(data: bytes) -> Files:
        (tmp_path / "x.tar.gz").write_bytes(data)
        unpack(tmp_path / "x.tar.gz", tmp_path / "x", progress=False)
        return {
            path.relative_to(tmp_path / "x").as_posix(): path.read_bytes() for path in (tmp_path / "x").rglob("*.*")
        }

    return read


@pytest.mark.parametrize(("mode", "format"), [("w:gz", tarfile.GNU_FORMAT), ("w", tarfile.PAX_FORMAT)])
def test_files_of_chapters_are_unpacked(members, tmp_path: Path, mode: str, format: int) -> None:
    folder = tarfile.TarInfo("LibriSpeech/a folder")
    folder.type = tarfile.DIRTYPE
    wanted = {"dev/1/2/1-2-0000.flac": bytes(range(256)) * 40, f"dev/{'long' * 40}/Ünï日/1-2.trans.txt": b"text"}
    files = {
        "LibriSpeech/README.TXT": b"read me",
        "a/b/c/d.txt": b"",
        **{f"./L/{name}": wanted[name] for name in wanted},
    }
    files |= {"L/test/x/../1/2/3.flac": b"within"}
    wanted |= {"test/1/2/3.flac": b"within"}
    (tmp_path / ".x.partial-1" / "of").mkdir(parents=True)  # a run that was killed
    assert members(packed(files, mode, (folder,), format=format)) == wanted
    assert members(b"is not looked at again") == wanted and not list(tmp_path.glob(".x.partial*"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.GNUTYPE_SPARSE])
def test_names_that_lead_elsewhere_links_out_and_devices_are_refused(members, tmp_path: Path, kind: bytes) -> None:
    for name in ("/../etc/1/2/3.flac", "a/../../1/2/3.flac"):
        with pytest.raises(ArchiveError, match=r"x\.tar\.gz is refused at member"):
            members(packed({"good": b"1", name: b"2"}))
    member = tarfile.TarInfo("LibriSpeech/dev/1/2/trap.flac")
    member.type, member.linkname = kind, "/etc/passwd"
    with pytest.raises(ArchiveError, match=r"x\.tar\.gz is refused at member 'LibriSpeech/dev/1/2/trap\.flac'"):
        members(packed({"good": b"1"}, extra=(member,)))
    assert not (tmp_path / "x").exists()


def test_a_huge_file_is_refused_before_it_is_unpacked(members, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(librispeech, "MAX_MEMBER_BYTES", 1 << 20)
    with pytest.raises(ArchiveError, match=r"at member 'd/1/2/zeros\.flac': it is sparse, or larger"):
        members(packed({"d/1/2/zeros.flac": bytes(2 << 20)}))
    assert members(packed({"zeros.bin": bytes(2 << 20)})) == {}


def test_an_archive_cut_off_or_changed_anywhere_or_none_is_damaged(members) -> None:
    whole = packed({f"d/1/2/{index}.flac": os.urandom(700) for index in range(5)})
    damaged = [whole[:length] for length in range(300, len(whole), 197)]
    damaged += [whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :] for at in range(100, len(whole) - 100, 161)]
    for data in (*damaged, b"<html>", gzip.compress(b"<html>"), b""):
        with pytest.raises(ArchiveError, match=r"x\.tar\.gz is"):
            members(data)

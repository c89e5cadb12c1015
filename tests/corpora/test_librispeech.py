"""LibriSpeech end to end on archives of its real form, made of real speech and served by a server that breaks off."""

import gzip
import hashlib
import io
import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from audiollm.command_line import downloads
from audiollm.command_line.downloads import ChecksumError
from audiollm.corpora import librispeech
from audiollm.corpora.clips import BadClip, Clip, CorpusError
from audiollm.corpora.librispeech import (
    ArchiveError,
    LibriSpeechArguments,
    PublishedArchive,
    archive_members,
    open_source,
    openslr,
)
from audiollm.corpora.prompts import load_studio_prompts
from audiollm.processing import load_waveform
from loopback_site import Site, serving

SPLITS = ("dev-clean", "train-clean-5")
#: Speaker and chapter of each split, in the order of the archive, which is not sorted.
CHAPTERS = {
    "dev-clean": [("2035", "147960"), ("84", "121550"), ("84", "121123")],
    "train-clean-5": [("1088", "129236"), ("60", "121082")],
}
CLIPS_PER_CHAPTER = 3
Files = dict[str, bytes]
#: A recording as FLAC, its transcript as LibriSpeech writes it, and the samples that must come back.
Recording = tuple[bytes, str, np.ndarray]


@lru_cache(maxsize=1)
def real_speech() -> list[Recording]:
    """As many recordings as the archives hold."""
    rows = load_studio_prompts("test").select(range(sum(map(len, CHAPTERS.values())) * CLIPS_PER_CHAPTER))
    made = []
    for row in rows:
        waveform = load_waveform(row["audio"])
        file = io.BytesIO()
        soundfile.write(file, waveform, 16_000, format="FLAC", subtype="PCM_16")
        words = "".join(letter if letter.isalnum() or letter in " '" else " " for letter in row["text"])
        made.append((file.getvalue(), " ".join(words.upper().split()), soundfile.read(io.BytesIO(file.getvalue()))[0]))
    return made


@lru_cache(maxsize=1)
def librispeech_trees() -> dict[str, Files]:
    """Return what each split's archive holds, by path, in archive order: transcripts last, first, and in between."""
    recordings = iter(real_speech())
    trees = {}
    for split, chapters in CHAPTERS.items():
        files = {"LibriSpeech/README.TXT": b""}
        for position, (speaker, chapter) in enumerate(chapters):
            folder = f"LibriSpeech/{split}/{speaker}/{chapter}"
            clips = [(f"{speaker}-{chapter}-{n:04}", *next(recordings)[:2]) for n in range(CLIPS_PER_CHAPTER)]
            entries = [(f"{folder}/{name}.flac", flac) for name, flac, _ in reversed(clips)]
            lines = "".join(f"{name} {text}\n" for name, _, text in clips)
            entries.insert([3, 0, 1][position], (f"{folder}/{speaker}-{chapter}.trans.txt", lines.encode()))
            files |= dict(entries)
        trees[split] = files
    return trees


def clip_ids(split: str) -> list[str]:
    """Ids of a split's clips, in order."""
    return [
        f"{speaker}-{chapter}-{number:04}"
        for speaker, chapter in CHAPTERS[split]
        for number in range(CLIPS_PER_CHAPTER)
    ]


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


def unpacked(files: Files, folder: Path) -> Path:
    """Files in a folder."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@lru_cache(maxsize=1)
def librispeech_archives() -> dict[str, bytes]:
    """Both splits' archives."""
    return {split: packed(files) for split, files in librispeech_trees().items()}


def published(archives: dict[str, bytes]) -> dict[str, PublishedArchive]:
    """Return what OpenSLR would publish of them."""
    return {
        split: PublishedArchive(
            resource=openslr()[1][split].resource,
            bytes=len(data),
            md5=hashlib.md5(data, usedforsecurity=False).hexdigest(),
            clips=len(CHAPTERS[split]) * CLIPS_PER_CHAPTER,
        )
        for split, data in archives.items()
    }


@pytest.fixture
def table() -> dict[str, PublishedArchive]:
    return published(librispeech_archives())


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A site with both archives."""
    monkeypatch.setattr(downloads, "RETRY_WAIT_SECONDS", 0.001)
    with serving() as site:
        site.files = {
            f"/resources/{openslr()[1][split].resource}/{split}.tar.gz": data
            for split, data in librispeech_archives().items()
        }
        yield site


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder of both archives, with the unpacked tree in a folder of it."""
    for split, files in librispeech_trees().items():
        unpacked(files, tmp_path / "tree")
        (tmp_path / f"{split}.tar.gz").write_bytes(librispeech_archives()[split])
    return tmp_path


def opened(source_path: Path, table: dict[str, PublishedArchive] | None = None, **options: Any) -> Any:
    return open_source(LibriSpeechArguments(source_path=str(source_path), **options), table)


def good(source: Any, start: int = 0) -> list[Clip]:
    clips = list(source.clips(start))
    assert all(isinstance(clip, Clip) for clip in clips), clips
    return clips


# ---------------------------------------------------------------------------------------------------------- download


def test_downloaded_over_a_connection_that_breaks_twice(mirror: Site, table, tmp_path: Path) -> None:
    speech = real_speech()
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
    assert [clip.id for clip in clips] == [name for split in SPLITS for name in clip_ids(split)]
    assert [clip.text.upper() for clip in clips] == [text for _, text, _ in speech]
    assert not any(clip.text.isupper() for clip in clips if len(clip.text) > 1)
    for clip, (_, _, waveform) in zip(clips, speech, strict=True):
        assert np.array_equal(load_waveform(clip.recording), waveform.astype(np.float32))
    again = open_source(arguments, table)
    assert len(mirror.requests) == 4, "what is there and right is not asked for again"
    assert again.identity == source.identity and good(again) == clips


def test_a_corrupted_archive_is_refused_and_named(mirror: Site, table, tmp_path: Path) -> None:
    served = librispeech_archives()["dev-clean"]
    damaged = served[:5000] + bytes([served[5000] ^ 1]) + served[5001:]
    mirror.files["/resources/12/dev-clean.tar.gz"] = damaged
    arguments = LibriSpeechArguments(["dev-clean"], archives=str(tmp_path), mirrors=[f"{mirror.url}/resources"])
    found = hashlib.md5(damaged, usedforsecurity=False).hexdigest()
    with pytest.raises(
        ChecksumError, match=rf"dev-clean\.tar\.gz.*expected md5 {table['dev-clean'].md5}, found {found}"
    ):
        open_source(arguments, table)
    assert not (tmp_path / "dev-clean.tar.gz").exists()
    mirror.files["/resources/12/dev-clean.tar.gz"] = served
    assert len(good(open_source(arguments, table))) == 9
    (tmp_path / "dev-clean.tar.gz").write_bytes(damaged)  # as a disk may do to it later
    with pytest.raises(ChecksumError, match=r"dev-clean\.tar\.gz: expected md5 .* run again"):
        open_source(arguments, table)
    assert len(good(open_source(arguments, table))) == 9


# ------------------------------------------------------------------------------------------- archives and folders


def test_folder_and_archive_hold_the_same_clips(table, corpus: Path) -> None:
    (corpus / "tree" / "LibriSpeech" / "dev-clean" / "84" / "121123" / "._84-121123-0000.flac").write_bytes(b"mac")
    folder, archive = opened(corpus / "tree"), opened(corpus, table)
    assert folder.count() == archive.count() == 15

    def known(clip: Clip) -> tuple:
        return clip.split, clip.id, clip.text, dict(clip.fields), load_waveform(clip.recording).tobytes()

    in_folder, in_archive = [known(clip) for clip in good(folder)], [known(clip) for clip in good(archive)]
    assert sorted(in_folder, key=lambda clip: clip[:2]) == sorted(in_archive, key=lambda clip: clip[:2])
    chapters = ["2035-147960", "84-121123", "84-121550", "1088-129236", "60-121082"]
    assert [clip[1][:-5] for clip in in_folder[::CLIPS_PER_CHAPTER]] == chapters
    fields = {clip[1]: clip[3] for clip in in_folder}
    assert fields["60-121082-0000"] == {"speaker": "60", "chapter": "121082", "language": "en"}
    inside = opened(corpus / "tree" / "LibriSpeech", splits=["train-clean-5"], letter_case="keep")
    assert [clip.id for clip in good(inside)] == [clip[1] for clip in in_folder[9:]]
    assert [clip.text for clip in good(inside)] == [clip[2].upper() for clip in in_folder[9:]]
    for source in (folder, archive):
        for start in (1, 8, 9, 14, 15, 20):
            assert good(source, start) == good(source)[start:]


def test_an_archive_at_hand_is_verified_under_its_published_name(table, tmp_path: Path) -> None:
    path = tmp_path / "dev-clean.tar.gz"
    path.write_bytes(librispeech_archives()["dev-clean"])
    assert len(good(opened(path, table))) == 9
    other = opened(path, table, splits=["dev-other"])
    with pytest.raises(CorpusError, match=r"no split 'dev-other'; found dev-clean"):
        list(other.clips(start=100))
    assert other.count() is None
    wrong_sum = {"dev-clean": replace(table["dev-clean"], md5="0" * 32)}
    with pytest.raises(ChecksumError, match=rf"{path}: expected md5 0+, found {table['dev-clean'].md5}"):
        opened(path, wrong_sum)
    path.write_bytes(librispeech_archives()["dev-clean"][:-100])
    with pytest.raises(ChecksumError, match=rf"{path}: expected \d+ bytes, found \d+"):
        opened(tmp_path, table)
    path = path.rename(tmp_path / "mine.tar.gz")  # of no published name: damage shows where it is
    with pytest.raises(ArchiveError, match=r"mine\.tar\.gz is damaged at member 'LibriSpeech/dev-clean/84/"):
        list(opened(path).clips())


# --------------------------------------------------------------------------------------------------- what is wrong


def with_faults(files: Files) -> Files:
    """A split with one fault of every kind."""
    faulty = dict(files)
    folder = "LibriSpeech/dev-clean/84/121123"
    lines = faulty[f"{folder}/84-121123.trans.txt"].decode().splitlines()
    lines[0] = "84-121123-0000"  # a line without text
    faulty[f"{folder}/84-121123.trans.txt"] = "\n".join(lines).encode()
    faulty[f"{folder}/84-121123-0003.flac"] = faulty.pop(f"{folder}/84-121123-0002.flac")
    broken = "LibriSpeech/dev-clean/84/121550/84-121550.trans.txt"
    faulty[broken] = faulty[broken].replace(b" ", b" \xff", 1)
    return faulty


FAULTS = [
    *(
        (name, "has a recording and no transcript")
        for name in ("84-121123-0000", "84-121123-0003", *(f"84-121550-000{number}" for number in range(3)))
    ),
    ("84-121123-0002", "has a transcript and no recording"),
    ("dev-clean/84/121550/84-121550.trans.txt", "is not UTF-8 text: invalid start byte at byte 15"),
]


def test_what_cannot_become_a_clip_is_said_with_its_reason(tmp_path: Path) -> None:
    files = with_faults(librispeech_trees()["dev-clean"])
    unpacked(files, tmp_path / "tree")
    (tmp_path / "mine.tar.gz").write_bytes(packed(dict(sorted(files.items()))))
    for given in ("tree", "mine.tar.gz"):
        clips = list(opened(tmp_path / given).clips())
        assert sorted((c.id, c.reason) for c in clips if isinstance(c, BadClip)) == sorted(FAULTS)
        whole = [*(f"2035-147960-000{n}" for n in range(3)), "84-121123-0001"]
        assert [c.id for c in clips if isinstance(c, Clip)] == whole
    assert opened(tmp_path / "tree").count() == len(clips)


def test_a_folder_of_something_else_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"holds no LibriSpeech tree; expected LibriSpeech/<split>"):
        opened(tmp_path)
    unpacked(librispeech_trees()["dev-clean"], tmp_path)
    with pytest.raises(CorpusError, match=r"holds no split 'test-clean'; it holds dev-clean"):
        opened(tmp_path, splits=["test-clean"])
    with pytest.raises(FileNotFoundError, match="gone"):
        opened(tmp_path / "gone")
    (tmp_path / "x.tar.gz").write_bytes(packed({"notes.txt": b"nothing"}))
    with pytest.raises(CorpusError, match="there is no LibriSpeech tree"):
        list(opened(tmp_path / "x.tar.gz").clips())


# ---------------------------------------------------------------------------------------------------------- streams

FILES = {
    "LibriSpeech/README.TXT": b"read me",
    "LibriSpeech/dev/1/2/1-2-0000.flac": bytes(range(256)) * 40,
    "LibriSpeech/dev/" + "long" * 40 + "/Ünïcode 日本.txt": b"text",
    "empty": b"",
}


@pytest.fixture
def members(tmp_path: Path):
    """Reads an archive of these bytes: the members that are wanted."""

    def read(data: bytes, wanted: Callable[[str], bool] = bool) -> Iterator[tuple[str, bytes]]:
        (tmp_path / "x.tar.gz").write_bytes(data)
        return archive_members(tmp_path / "x.tar.gz", wanted)

    return read


@pytest.mark.parametrize(("mode", "format"), [("w:gz", tarfile.GNU_FORMAT), ("w", tarfile.PAX_FORMAT)])
def test_members_come_whole_and_in_order(members, mode: str, format: int) -> None:
    folder = tarfile.TarInfo("LibriSpeech/a folder")
    folder.type = tarfile.DIRTYPE
    archive = packed(FILES, mode, (folder,), format=format)
    assert list(members(archive)) == list(FILES.items())
    assert [name for name, _ in members(archive, lambda name: name.endswith(".flac"))] == [list(FILES)[1]]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.GNUTYPE_SPARSE])
def test_names_that_lead_elsewhere_links_out_and_devices_are_refused(members, kind: bytes) -> None:
    for name in ("/../etc/passwd", "a/../../b"):
        with pytest.raises(ArchiveError, match=r"x\.tar\.gz is refused at member"):
            list(members(packed({"good": b"1", name: b"2"})))
    member = tarfile.TarInfo("LibriSpeech/trap.flac")
    member.type, member.linkname = kind, "/etc/passwd"
    found = members(packed({"good": b"1"}, extra=(member,)))
    assert next(found) == ("good", b"1")
    with pytest.raises(ArchiveError, match=r"x\.tar\.gz is refused at member 'LibriSpeech/trap\.flac'"):
        next(found)


def test_a_huge_file_is_refused_before_it_is_unpacked(members, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(librispeech, "MAX_MEMBER_BYTES", 1 << 20)
    archive = packed({"zeros.flac": bytes(2 << 20)})
    with pytest.raises(ArchiveError, match=r"at member 'zeros\.flac': it is sparse, or larger"):
        list(members(archive))
    assert list(members(archive, lambda name: False)) == []


def test_an_archive_cut_off_or_changed_anywhere_or_none_is_damaged(members) -> None:
    whole = packed({f"member {index}": os.urandom(700) for index in range(5)})
    damaged = [whole[:length] for length in range(300, len(whole), 197)]
    damaged += [whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :] for at in range(100, len(whole) - 100, 161)]
    for data in (*damaged, b"<html>", gzip.compress(b"<html>"), b""):
        with pytest.raises(ArchiveError, match=r"x\.tar\.gz is"):
            list(members(data))

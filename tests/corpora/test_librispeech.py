"""LibriSpeech end to end on archives of its real form, made of real speech and served by a server that breaks off."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audiollm import downloads
from audiollm.corpora.clips import BadClip, Clip, CorpusError
from audiollm.corpora.librispeech import (
    ArchiveError,
    LibriSpeechArguments,
    PublishedArchive,
    open_source,
)
from audiollm.downloads import ChecksumError
from audiollm.processing import load_waveform
from librispeech_archives import (
    CLIPS_PER_CHAPTER,
    SPLITS,
    Files,
    Recording,
    clip_ids,
    librispeech_archives,
    librispeech_trees,
    packed,
    published,
    real_speech,
    served,
    unpacked,
)
from loopback_site import Site, serving


@pytest.fixture(scope="module")
def speech() -> list[Recording]:
    return real_speech()


@pytest.fixture(scope="module")
def trees() -> dict[str, Files]:
    return librispeech_trees()


@pytest.fixture(scope="module")
def archives() -> dict[str, bytes]:
    return librispeech_archives()


@pytest.fixture
def table(archives: dict[str, bytes]) -> dict[str, PublishedArchive]:
    return published(archives)


@pytest.fixture
def mirror(archives: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(downloads, "RETRY_WAIT_SECONDS", 0.001)
    with serving() as site:
        site.files = served(archives)
        yield site


def good(source: Any, start: int = 0) -> list[Clip]:
    clips = list(source.clips(start))
    assert all(isinstance(clip, Clip) for clip in clips), clips
    return clips


# ---------------------------------------------------------------------------------------------------------- download


def test_downloaded_over_a_connection_that_breaks_twice(
    mirror: Site,
    table: dict[str, PublishedArchive],
    speech: list[Recording],
    tmp_path: Path,
) -> None:
    first = table["dev-clean"].bytes // 3
    mirror.break_after = [first, 5000]
    arguments = LibriSpeechArguments(
        splits=["dev-clean,train-clean-5"], archives=str(tmp_path / "kept"), mirrors=[f"{mirror.url}/resources/"]
    )
    source = open_source(arguments, table, progress=False)
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
    again = open_source(arguments, table, progress=False)
    assert len(mirror.requests) == 4, "what is there and right is not asked for again"
    assert again.identity == source.identity and good(again) == clips


def test_a_corrupted_archive_is_refused_and_named(
    mirror: Site, table: dict[str, PublishedArchive], archives: dict[str, bytes], tmp_path: Path
) -> None:
    served = archives["dev-clean"]
    damaged = served[:5000] + bytes([served[5000] ^ 1]) + served[5001:]
    mirror.files["/resources/12/dev-clean.tar.gz"] = damaged
    arguments = LibriSpeechArguments(["dev-clean"], archives=str(tmp_path), mirrors=[f"{mirror.url}/resources"])
    found = hashlib.md5(damaged, usedforsecurity=False).hexdigest()
    with pytest.raises(
        ChecksumError, match=rf"dev-clean\.tar\.gz.*expected md5 {table['dev-clean'].md5}, found {found}"
    ):
        open_source(arguments, table, progress=False)
    assert not (tmp_path / "dev-clean.tar.gz").exists()
    mirror.files["/resources/12/dev-clean.tar.gz"] = served
    assert len(good(open_source(arguments, table, progress=False))) == 9
    (tmp_path / "dev-clean.tar.gz").write_bytes(damaged)  # as a disk may do to it later
    with pytest.raises(ChecksumError, match=r"dev-clean\.tar\.gz: expected md5 .* run again"):
        open_source(arguments, table, progress=False)
    assert len(good(open_source(arguments, table, progress=False))) == 9


# ------------------------------------------------------------------------------------------- archives and folders


def test_folder_and_archive_hold_the_same_clips(
    trees: dict[str, Files], table: dict[str, PublishedArchive], archives: dict[str, bytes], tmp_path: Path
) -> None:
    for split, files in trees.items():
        unpacked(files, tmp_path / "tree")
        (tmp_path / f"{split}.tar.gz").write_bytes(archives[split])
    (tmp_path / "tree" / "LibriSpeech" / "dev-clean" / "84" / "121123" / "._84-121123-0000.flac").write_bytes(b"mac")
    folder = open_source(LibriSpeechArguments(source_path=str(tmp_path / "tree")))
    archive = open_source(LibriSpeechArguments(source_path=str(tmp_path)), table, progress=False)
    assert folder.count() == archive.count() == 15

    def known(clip: Clip) -> tuple:
        return clip.split, clip.id, clip.text, dict(clip.fields), load_waveform(clip.recording).tobytes()

    in_folder, in_archive = [known(clip) for clip in good(folder)], [known(clip) for clip in good(archive)]
    assert sorted(in_folder, key=lambda clip: clip[:2]) == sorted(in_archive, key=lambda clip: clip[:2])
    assert [clip[1][:-5] for clip in in_folder[::CLIPS_PER_CHAPTER]] == [
        "2035-147960", "84-121123", "84-121550", "1088-129236", "60-121082",
    ]  # fmt: skip
    fields = {clip[1]: clip[3] for clip in in_folder}
    assert fields["60-121082-0000"] == {
        "speaker": "60",
        "speaker_sex": "M",
        "speaker_name": "|CBW|Simon",
        "chapter": "121082",
        "language": "en",
    }
    inside = open_source(
        LibriSpeechArguments(source_path=str(tmp_path / "tree" / "LibriSpeech"), splits=["train-clean-5"])
    )
    assert [clip.id for clip in good(inside)] == [clip[1] for clip in in_folder[9:]]


@pytest.mark.parametrize("start", [0, 1, 8, 9, 10, 14, 15, 20])
def test_clips_go_on_from_any_of_them(
    trees: dict[str, Files],
    table: dict[str, PublishedArchive],
    archives: dict[str, bytes],
    tmp_path: Path,
    start: int,
) -> None:
    for split in SPLITS:
        (tmp_path / f"{split}.tar.gz").write_bytes(archives[split])
        unpacked(trees[split], tmp_path / "tree")
    for given in (tmp_path, tmp_path / "tree"):
        source = open_source(LibriSpeechArguments(source_path=str(given)), table, progress=False)
        assert good(source, start) == good(source)[start:]


def test_an_archive_at_hand_is_verified_under_its_published_name(
    table: dict[str, PublishedArchive], archives: dict[str, bytes], tmp_path: Path
) -> None:
    path = tmp_path / "dev-clean.tar.gz"
    path.write_bytes(archives["dev-clean"])
    assert len(good(open_source(LibriSpeechArguments(source_path=str(path)), table, progress=False))) == 9
    other = open_source(LibriSpeechArguments(source_path=str(path), splits=["dev-other"]), table, progress=False)
    with pytest.raises(CorpusError, match=r"no split 'dev-other'; found dev-clean"):
        list(other.clips(start=100))
    assert other.count() is None
    wrong_sum = {"dev-clean": replace(table["dev-clean"], md5="0" * 32)}
    with pytest.raises(ChecksumError, match=rf"{path}: expected md5 0+, found {table['dev-clean'].md5}"):
        open_source(LibriSpeechArguments(source_path=str(path)), wrong_sum, progress=False)
    path.write_bytes(archives["dev-clean"][:-100])
    with pytest.raises(ChecksumError, match=rf"{path}: expected \d+ bytes, found \d+"):
        open_source(LibriSpeechArguments(source_path=str(tmp_path)), table, progress=False)
    path = path.rename(tmp_path / "mine.tar.gz")  # of no published name: damage shows where it is
    with pytest.raises(ArchiveError, match=r"mine\.tar\.gz is damaged at member 'LibriSpeech/dev-clean/84/"):
        list(open_source(LibriSpeechArguments(source_path=str(path))).clips())


# --------------------------------------------------------------------------------------------------- what is wrong


def with_faults(files: Files) -> Files:
    """A split with one fault of every kind."""
    faulty = dict(files)
    folder = "LibriSpeech/dev-clean/84/121123"
    lines = faulty[f"{folder}/84-121123.trans.txt"].decode().splitlines()
    flac = faulty.pop(f"{folder}/84-121123-0002.flac")
    lines[0] = "84-121123-0000"  # a line without text
    lines.append("84-121123-0001 AGAIN")
    faulty[f"{folder}/84-121123.trans.txt"] = "\n".join(lines).encode()
    faulty[f"{folder}/84-121123-0003.flac"] = flac
    faulty[f"{folder}/other.flac"] = flac
    broken = "LibriSpeech/dev-clean/84/121550/84-121550.trans.txt"
    faulty[broken] = faulty[broken].replace(b" ", b" \xff", 1)
    return faulty


FAULTS = [
    ("84-121123-0000", "has a recording and no transcript"),
    ("84-121123-0001", "has two lines in its transcript file"),
    ("84-121123-0002", "has a transcript and no recording"),
    ("84-121123-0003", "has a recording and no transcript"),
    ("dev-clean/84/121123/other.flac", "is not named 84-121123-<number>.flac"),
    ("84-121550-0000", "has a recording and no transcript"),
    ("84-121550-0001", "has a recording and no transcript"),
    ("84-121550-0002", "has a recording and no transcript"),
    ("dev-clean/84/121550/84-121550.trans.txt", "is not UTF-8 text: invalid start byte at byte 15"),
]


def test_what_cannot_become_a_clip_is_said_with_its_reason(trees: dict[str, Files], tmp_path: Path) -> None:
    files = with_faults(trees["dev-clean"])
    unpacked(files, tmp_path / "tree")
    (tmp_path / "mine.tar.gz").write_bytes(packed(dict(sorted(files.items()))))
    for given in ("tree", "mine.tar.gz"):
        source = open_source(LibriSpeechArguments(source_path=str(tmp_path / given)))
        clips = list(source.clips())
        assert sorted((c.id, c.reason) for c in clips if isinstance(c, BadClip)) == sorted(FAULTS)
        assert [c.id for c in clips if isinstance(c, Clip)] == [f"2035-147960-000{n}" for n in range(3)] + [
            "84-121123-0001"
        ]
    assert open_source(LibriSpeechArguments(source_path=str(tmp_path / "tree"))).count() == len(clips)


def test_links_out_of_a_folder_are_not_followed(trees: dict[str, Files], tmp_path: Path) -> None:
    tree = unpacked(trees["dev-clean"], tmp_path / "tree") / "LibriSpeech"
    secret = unpacked({"84-121123-0001.flac": b"elsewhere"}, tmp_path / "secret") / "84-121123-0001.flac"
    trap = tree / "dev-clean" / "84" / "121123" / "84-121123-0001.flac"
    trap.unlink()
    trap.symlink_to(secret)
    clips = list(open_source(LibriSpeechArguments(source_path=str(tree))).clips())
    bad = {c.id: c.reason for c in clips if isinstance(c, BadClip)}
    assert bad.pop("84-121123-0001") == "has a transcript and no recording"
    assert list(bad) == ["dev-clean/84/121123/84-121123-0001.flac"] and "leads out" in bad.popitem()[1]
    (tmp_path / "elsewhere").mkdir()
    (tree / "dev-clean").rename(tmp_path / "elsewhere" / "dev-clean")  # a split may live on another disk
    trap = tmp_path / "elsewhere" / "dev-clean" / "84" / "121123" / "84-121123-0001.flac"
    trap.unlink()
    trap.write_bytes(b"")
    (tree / "dev-clean").symlink_to(tmp_path / "elsewhere" / "dev-clean")
    assert len(good(open_source(LibriSpeechArguments(source_path=str(tree))))) == 9


def test_a_folder_of_something_else_is_said_so(trees: dict[str, Files], tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"holds no LibriSpeech tree; expected LibriSpeech/<split>"):
        open_source(LibriSpeechArguments(source_path=str(tmp_path)))
    unpacked(trees["dev-clean"], tmp_path)
    with pytest.raises(CorpusError, match=r"holds no split 'test-clean'; it holds dev-clean"):
        open_source(LibriSpeechArguments(source_path=str(tmp_path), splits=["test-clean"]))
    with pytest.raises(FileNotFoundError, match="gone"):
        open_source(LibriSpeechArguments(source_path=str(tmp_path / "gone")))
    (tmp_path / "x.tar.gz").write_bytes(packed({"notes.txt": b"nothing"}))
    with pytest.raises(CorpusError, match="there is no LibriSpeech tree"):
        list(open_source(LibriSpeechArguments(source_path=str(tmp_path / "x.tar.gz"))).clips())


# ----------------------------------------------------------------------------------------------------------- options


def test_letter_case_is_what_was_asked_for(trees: dict[str, Files], tmp_path: Path) -> None:
    tree = str(unpacked(trees["dev-clean"], tmp_path))
    made = {
        case: [clip.text for clip in good(open_source(LibriSpeechArguments(source_path=tree, letter_case=case)))]
        for case in ("sentence", "lower", "keep")
    }
    assert made["keep"] == [text.upper() for text in made["sentence"]]
    assert made["lower"] == [text.lower() for text in made["keep"]]
    assert all(text[0].isupper() or not text[0].isalpha() for text in made["sentence"])
    assert made["sentence"] != made["keep"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"splits": ["dev-clean,dev-dirty"]}, r"no split 'dev-dirty'; expected some of dev-clean, dev-other"),
        ({"letter_case": "title"}, r"--letter_case 'title': expected one of sentence, lower, keep"),
        ({"source_path": "hub:openslr/librispeech_asr"}, r"audiollm prepare huggingface --dataset librispeech"),
        ({"source_path": "x", "mirrors": ["http://a"]}, r"--mirrors is for downloads"),
        ({"source_path": "x", "archives": "y"}, r"--archives is for downloads"),
        ({"mirrors": ["file:///etc"]}, r"--mirrors has 'file:///etc'; expected URLs"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LibriSpeechArguments(**options)

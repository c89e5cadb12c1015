"""Archives read as streams: good ones whole, hostile and damaged ones refused by the name of the member."""

import gzip
import io
import os
import tarfile
from pathlib import Path

import pytest
from audiollm.corpora.librispeech import ArchiveError, archive_members

FILES = {
    "LibriSpeech/README.TXT": b"read me",
    "LibriSpeech/dev/1/2/1-2-0000.flac": bytes(range(256)) * 40,
    "LibriSpeech/dev/" + "long" * 40 + "/Ünïcode 日本.txt": b"text",
    "empty": b"",
}


def tar_file(
    path: Path, files: dict[str, bytes], mode: str = "w:gz", extra: tuple[tarfile.TarInfo, ...] = (), format: int = 2
) -> Path:
    with tarfile.open(path, mode, format=format) as tar:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for member in extra:
            tar.addfile(member)
    return path


def read(path: Path, wanted: bool = True) -> dict[str, bytes]:
    return dict(archive_members(path, lambda name: wanted))


@pytest.mark.parametrize("mode", ["w:gz", "w"])
@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_come_whole_and_in_order(tmp_path: Path, mode: str, format: int) -> None:
    folder = tarfile.TarInfo("LibriSpeech/a folder")
    folder.type = tarfile.DIRTYPE
    archive = tar_file(tmp_path / "x", FILES, mode, (folder,), format)
    assert list(archive_members(archive, lambda name: True)) == list(FILES.items())
    assert [name for name, _ in archive_members(archive, lambda name: name.endswith(".flac"))] == [list(FILES)[1]]


@pytest.mark.parametrize("name", ["/../etc/passwd", "a/../../b", ".."])
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArchiveError, match="x is refused at member"):
        read(tar_file(tmp_path / "x", {"good": b"1", name: b"2"}))


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE],
)
def test_links_out_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    member = tarfile.TarInfo("LibriSpeech/trap.flac")
    member.type, member.linkname = kind, "/etc/passwd"
    names = []
    with pytest.raises(ArchiveError, match=r"x\.tar\.gz is refused at member 'LibriSpeech/trap\.flac'"):
        for name, _ in archive_members(tar_file(tmp_path / "x.tar.gz", {"good": b"1"}, extra=(member,)), bool):
            names.append(name)
    assert names == ["good"]


@pytest.mark.parametrize("wanted", [True, False])
def test_archives_that_explode_are_refused(tmp_path: Path, wanted: bool) -> None:
    seen = 0
    with pytest.raises(ArchiveError, match="out of proportion"):  # 24 MiB in 24 kB
        archive = tar_file(tmp_path / "t.tgz", {f"zeros {index}": bytes(4 << 20) for index in range(6)})
        for _ in archive_members(archive, lambda name: wanted):
            seen += 1
    assert seen <= 4
    tar = tar_file(tmp_path / "x.tar", {"good": b"1"}, "w").read_bytes()
    (tmp_path / "x.tgz").write_bytes(gzip.compress(tar + bytes(40 << 20)))  # in what pads the end
    with pytest.raises(ArchiveError, match="out of proportion"):
        read(tmp_path / "x.tgz")


@pytest.mark.parametrize("mode", ["w:gz", "w"])
def test_an_archive_cut_off_anywhere_is_damaged(tmp_path: Path, mode: str) -> None:
    files = {f"member {index}": os.urandom(700) for index in range(5)}
    whole = tar_file(tmp_path / "whole", files, mode).read_bytes()
    end = len(whole) if mode == "w:gz" else whole.rindex(files["member 4"]) + 700
    for length in range(300, end, 97):
        (tmp_path / "x.tar.gz").write_bytes(whole[:length])
        with pytest.raises(ArchiveError, match=r"x\.tar\.gz is damaged"):
            read(tmp_path / "x.tar.gz")


def test_damage_inside_is_noticed(tmp_path: Path) -> None:
    files = {f"member {index}": os.urandom(700) for index in range(5)}
    whole = tar_file(tmp_path / "whole", files).read_bytes()
    for place in range(100, len(whole) - 100, 61):
        (tmp_path / "x.tar.gz").write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(ArchiveError, match=r"x\.tar\.gz is"):
            read(tmp_path / "x.tar.gz")
    tar = bytearray(
        tar_file(tmp_path / "plain", {"one": bytes(512), "two": bytes(512), "three": b"3"}, "w").read_bytes()
    )
    tar[2048:2060] = b"\xff" * 12  # the header of "three"
    (tmp_path / "x.tar").write_bytes(tar)
    with pytest.raises(ArchiveError, match="damaged at member 'two'"):
        read(tmp_path / "x.tar")


def test_what_is_no_archive_is_said_so(tmp_path: Path) -> None:
    for content in (b"<html>", gzip.compress(b"<html>"), b""):
        (tmp_path / "x.tar.gz").write_bytes(content)
        with pytest.raises(ArchiveError, match=r"x\.tar\.gz is damaged at its start"):
            read(tmp_path / "x.tar.gz")

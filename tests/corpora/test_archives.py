"""Archives read as streams: good ones whole, hostile and damaged ones refused by the name of the member."""

import gzip
import io
import os
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest
from audiollm.corpora.archives import ArchiveError, ArchiveLimits, iterate

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


def zip_file(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("mode", ["w:gz", "w"])
@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_members_come_whole_and_in_order(tmp_path: Path, mode: str, format: int) -> None:
    folder = tarfile.TarInfo("LibriSpeech/a folder")
    folder.type = tarfile.DIRTYPE
    archive = tar_file(tmp_path / "x", FILES, mode, (folder,), format)
    assert list(iterate(archive)) == list(FILES.items())


def test_zip_members_come_whole_and_in_order(tmp_path: Path) -> None:
    assert list(iterate(zip_file(tmp_path / "x", FILES))) == list(FILES.items())


def test_only_what_is_wanted_is_yielded(tmp_path: Path) -> None:
    for archive in (tar_file(tmp_path / "tar", FILES), zip_file(tmp_path / "zip", FILES)):
        assert [name for name, _ in iterate(archive, lambda name: name.endswith(".flac"))] == [list(FILES)[1]]


HOSTILE_NAMES = ["/etc/passwd", "a/../../b", "..", "\\windows\\x", "C:/x", "a\\..\\..\\b"]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    # `endswith`: zipfile itself turns backslashes into slashes on the way in
    for archive in (tar_file(tmp_path / "tar", {"good": b"1", name: b"2"}), zip_file(tmp_path / "zip", {name: b""})):
        with pytest.raises(ArchiveError, match=r"is refused at member .*its path (is absolute|leads out)"):
            list(iterate(archive))


def test_names_with_nul_are_refused(tmp_path: Path) -> None:
    path = zip_file(tmp_path / "x.zip", {"aXb.flac": b"data"})
    path.write_bytes(path.read_bytes().replace(b"aXb", b"a\0b"))
    with pytest.raises(ArchiveError, match="NUL"):
        list(iterate(path))
    member = tarfile.TarInfo("plain")
    member.pax_headers = {"path": "a\0b.flac"}
    with pytest.raises(ArchiveError, match="NUL"):
        list(iterate(tar_file(tmp_path / "x.tar", {}, extra=(member,), format=tarfile.PAX_FORMAT)))


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE],
)
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    member = tarfile.TarInfo("LibriSpeech/trap.flac")
    member.type, member.linkname = kind, "/etc/passwd"
    read = []
    with pytest.raises(ArchiveError, match=r"x\.tar\.gz is refused at member 'LibriSpeech/trap\.flac'"):
        for name, _ in iterate(tar_file(tmp_path / "x.tar.gz", {"good": b"1"}, extra=(member,))):
            read.append(name)
    assert read == ["good"]


def test_links_in_a_zip_are_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("trap.flac")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(ArchiveError, match=r"trap\.flac.*link"):
        list(iterate(tmp_path / "x.zip"))


def test_large_members_are_refused_before_they_are_read(tmp_path: Path) -> None:
    limits = ArchiveLimits(member_bytes=1000)
    for archive in (tar_file(tmp_path / "t", {"big": bytes(1001)}), zip_file(tmp_path / "z", {"big": bytes(1001)})):
        with pytest.raises(ArchiveError, match="member 'big': it has 1001 bytes; expected at most 1000"):
            list(iterate(archive, limits=limits))
    exact = tar_file(tmp_path / "e", {"big": bytes(1000)})
    assert len(list(iterate(exact, limits=limits))) == 1


@pytest.mark.parametrize("wanted", [True, False])
def test_archives_that_explode_are_refused(tmp_path: Path, wanted: bool) -> None:
    members = {f"zeros {index}": bytes(4 << 20) for index in range(6)}  # 24 MiB in 24 kB
    for archive in (tar_file(tmp_path / "t.tgz", members), zip_file(tmp_path / "z.zip", members)):
        seen = 0
        with pytest.raises(ArchiveError, match="out of proportion"):
            for _ in iterate(archive, lambda name: wanted):
                seen += 1
        assert seen <= 4
        assert sum(1 for _ in iterate(archive, limits=ArchiveLimits(expansion=2000))) == 6


def test_what_pads_the_end_may_not_explode_either(tmp_path: Path) -> None:
    tar = tar_file(tmp_path / "x.tar", {"good": b"1"}, "w").read_bytes()
    (tmp_path / "x.tgz").write_bytes(gzip.compress(tar + bytes(40 << 20)))
    with pytest.raises(ArchiveError, match="out of proportion"):
        list(iterate(tmp_path / "x.tgz"))


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_headers_that_claim_to_be_huge_are_refused(tmp_path: Path, kind: bytes) -> None:
    header = tarfile.TarInfo("header")
    header.type, header.size = kind, 1 << 40
    tar = tar_file(tmp_path / "x.tar", {"good": b"1"}, "w").read_bytes()[:1024]
    (tmp_path / "x.tar").write_bytes(tar + header.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    with pytest.raises(ArchiveError, match=r"member 'good': the header after it claims \d+ bytes"):
        list(iterate(tmp_path / "x.tar"))


@pytest.mark.parametrize("mode", ["w:gz", "w"])
def test_an_archive_cut_off_anywhere_is_damaged(tmp_path: Path, mode: str) -> None:
    files = {f"member {index}": os.urandom(700) for index in range(5)}
    whole = tar_file(tmp_path / "whole", files, mode).read_bytes()
    end = len(whole) if mode == "w:gz" else whole.rindex(files["member 4"]) + 700
    for length in range(300, end, 97):
        (tmp_path / "x.tar.gz").write_bytes(whole[:length])
        with pytest.raises(ArchiveError, match=r"x\.tar\.gz is damaged.*delete it and download it again"):
            list(iterate(tmp_path / "x.tar.gz"))


def test_any_flipped_bit_of_a_gzip_archive_is_noticed(tmp_path: Path) -> None:
    files = {f"member {index}": os.urandom(700) for index in range(5)}
    whole = tar_file(tmp_path / "whole", files).read_bytes()
    for place in range(100, len(whole), 61):
        (tmp_path / "x.tar.gz").write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(ArchiveError, match=r"x\.tar\.gz is (damaged|refused) at"):
            list(iterate(tmp_path / "x.tar.gz"))


def test_damage_names_the_last_good_member(tmp_path: Path) -> None:
    files = {"one": bytes(512), "two": bytes(512), "three": bytes(512)}
    tar = bytearray(tar_file(tmp_path / "whole", files, "w").read_bytes())
    tar[2048:2060] = b"\xff" * 12  # the header of "three"
    (tmp_path / "x.tar").write_bytes(tar)
    with pytest.raises(ArchiveError, match=r"damaged at member 'two': what follows it is no tar header"):
        list(iterate(tmp_path / "x.tar"))


def test_a_damaged_zip_names_the_member(tmp_path: Path) -> None:
    path = zip_file(tmp_path / "x.zip", {"one": b"1", "two": os.urandom(1000)})
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArchiveError, match=r"x\.zip is damaged at member 'two'"):
        list(iterate(path))


def test_what_is_no_archive_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "x.tar.gz").write_bytes(b"<html>")
    with pytest.raises(ArchiveError, match=r"x\.tar\.gz is no archive"):
        list(iterate(tmp_path / "x.tar.gz"))
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(b"<html>"))
    with pytest.raises(ArchiveError, match=r"x\.tar\.gz is damaged"):
        list(iterate(tmp_path / "x.tar.gz"))
    with pytest.raises(FileNotFoundError, match="gone"):
        list(iterate(tmp_path / "gone"))

"""Downloads from real servers on the loopback interface that break, forget, refuse and serve the wrong thing."""

import hashlib
import multiprocessing
import os
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest
from audiollm.command_line import downloads
from audiollm.command_line.downloads import ChecksumError, DownloadError, download
from loopback_site import Site, serving

BODY = bytes(range(256)) * 4096  # 1 MiB
MD5 = f"md5:{hashlib.md5(BODY, usedforsecurity=False).hexdigest()}"
SHA256 = f"sha256:{hashlib.sha256(BODY).hexdigest()}"
NOBODY = "http://127.0.0.1:9"  # the discard port: nobody listens


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "RETRY_WAIT_SECONDS", 0.001)


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as served:
        served.files["/x.tar.gz"] = BODY
        yield served


other_site = site


def fetched(tmp_path: Path, *urls: str, checksum: str = MD5) -> bytes:
    return download(urls, tmp_path / "x.tar.gz", checksum, len(BODY), progress=False).read_bytes()


def test_breaks_are_continued_from_where_they_were(site: Site, tmp_path: Path) -> None:
    site.break_after = [300_000, 200_000]
    for checksum in (f"md5:{MD5[4:].upper()}", SHA256):  # the second time it is verified, and not asked for
        assert fetched(tmp_path, f"{site.url}/x.tar.gz", checksum=checksum) == BODY
    assert site.ranges("/x.tar.gz") == [None, "bytes=300000-", "bytes=500000-"]
    assert not (tmp_path / "x.tar.gz.part").exists()


def test_many_breaks_are_survived_while_each_attempt_brings_enough(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.break_after = [100_000] * 9
    with pytest.raises(DownloadError, match=r"failed 5 times.*500000 bytes are kept.*run again"):
        fetched(tmp_path, f"{site.url}/x.tar.gz")
    (tmp_path / "x.tar.gz.part").unlink()
    monkeypatch.setattr(downloads, "MIN_PROGRESS_BYTES", 50_000)
    site.break_after = [100_000] * 9
    assert fetched(tmp_path, f"{site.url}/x.tar.gz") == BODY


def test_wrong_bytes_are_refused_with_both_sums_and_running_again_restarts(site: Site, tmp_path: Path) -> None:
    site.files["/x.tar.gz"] = BODY[::-1]
    found = hashlib.md5(BODY[::-1], usedforsecurity=False).hexdigest()
    with pytest.raises(ChecksumError, match=rf"x\.tar\.gz.*expected md5 {MD5[4:]}, found {found}.*{site.url}"):
        fetched(tmp_path, f"{site.url}/x.tar.gz")
    assert not (tmp_path / "x.tar.gz").exists()
    site.files["/x.tar.gz"] = BODY
    assert fetched(tmp_path, f"{site.url}/x.tar.gz") == BODY
    assert site.ranges("/x.tar.gz") == [None, None]


def test_a_server_that_hangs_is_left_after_a_while_and_gone_on_with(site: Site, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(downloads, "SOCKET_TIMEOUT_SECONDS", 0.2)
    site.stall, site.break_after = True, [300_000, 400_000]
    assert fetched(tmp_path, f"{site.url}/x.tar.gz") == BODY
    assert site.ranges("/x.tar.gz") == [None, "bytes=300000-", "bytes=700000-"]


def test_a_part_of_another_file_is_started_over(site: Site, tmp_path: Path) -> None:
    (tmp_path / "x.tar.gz.part").write_bytes(bytes(1000))
    assert fetched(tmp_path, f"{site.url}/x.tar.gz") == BODY and site.ranges("/x.tar.gz")[0] == "bytes=1000-"


def test_mirrors_are_tried_in_turn_and_continue_each_other(site: Site, other_site: Site, tmp_path: Path) -> None:
    site.break_after = [400_000] + [0] * 10
    assert fetched(tmp_path, f"{NOBODY}/x.tar.gz", f"{site.url}/x.tar.gz", f"{other_site.url}/x.tar.gz") == BODY
    assert other_site.ranges("/x.tar.gz") == ["bytes=400000-"]


def test_when_no_mirror_has_it_each_is_named_with_its_reason(site: Site, tmp_path: Path) -> None:
    with pytest.raises(DownloadError) as caught:
        fetched(tmp_path, f"{NOBODY}/x.tar.gz", f"{site.url}/gone", f"{site.url}/locked")
    said = str(caught.value)
    assert "None of 3 mirrors gave x.tar.gz" in said and f"{NOBODY}/x.tar.gz failed 5 times" in said
    assert "/gone failed: HTTP Error 404" in said and "/locked failed: HTTP Error 404" in said


def test_a_busy_server_is_asked_again_and_a_locked_one_is_not(site: Site, tmp_path: Path) -> None:
    site.statuses = [503, 429]
    assert fetched(tmp_path, f"{site.url}/x.tar.gz") == BODY
    (tmp_path / "x.tar.gz").unlink()
    site.statuses = [403]
    with pytest.raises(DownloadError, match="403"):
        fetched(tmp_path, f"{site.url}/x.tar.gz")


@pytest.mark.parametrize("manner", ["honour_range", "wrong_range"])
def test_a_server_that_does_not_know_range_restarts_cleanly(site: Site, tmp_path: Path, manner: str) -> None:
    setattr(site, manner, manner == "wrong_range")
    (tmp_path / "x.tar.gz.part").write_bytes(BODY[:1000])
    if manner == "wrong_range":
        site.break_after = [0]  # the first answer is to the wrong range: nothing of it may be kept
    assert fetched(tmp_path, f"{site.url}/x.tar.gz") == BODY
    assert site.ranges("/x.tar.gz")[0] == "bytes=1000-"


def test_an_answer_without_a_length_that_ends_early_is_noticed_by_the_size(site: Site, tmp_path: Path) -> None:
    site.announce_length = False
    site.break_after = [1000]
    assert fetched(tmp_path, f"{site.url}/x.tar.gz") == BODY
    assert site.ranges("/x.tar.gz") == [None, "bytes=1000-"]


def test_a_disk_too_small_is_said_before_it_is_filled(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda path: usage(10, 10, 1000))
    with pytest.raises(OSError, match=rf"{len(BODY)} more bytes are needed.*1000 left.*x\.tar\.gz\.part"):
        fetched(tmp_path, f"{site.url}/x.tar.gz", f"{site.url}/x.tar.gz")
    assert len(site.requests) == 1  # another mirror would not make room


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_disk_that_fills_up_is_named(site: Site, tmp_path: Path) -> None:
    (tmp_path / "x.tar.gz.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"no room left.*make room.*x\.tar\.gz\.part"):
        fetched(tmp_path, f"{site.url}/x.tar.gz", checksum=SHA256)


def test_two_processes_write_one_file_once(site: Site, tmp_path: Path) -> None:
    site.break_after = [100_000, 100_000]
    arguments = ([f"{site.url}/x.tar.gz"], tmp_path / "x.tar.gz", MD5, len(BODY), False)
    both = [multiprocessing.get_context("fork").Process(target=download, args=arguments) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(timeout=60)
    assert [process.exitcode for process in both] == [0, 0]
    assert (tmp_path / "x.tar.gz").read_bytes() == BODY
    assert site.ranges("/x.tar.gz") == [None, "bytes=100000-", "bytes=200000-"]

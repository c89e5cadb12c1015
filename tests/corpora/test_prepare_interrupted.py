"""`audiollm prepare` killed, interrupted and out of room: the same command goes on, and ends with the same bytes."""

import contextlib
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from audiollm.command_line.downloads import BLOCK_BYTES
from audiollm.corpora.prompts import load_studio_prompts
from librispeech_archives import librispeech_archives, librispeech_trees, packed, published, served
from loopback_site import Site
from prepare_process import Command, Launcher
from small_corpus import contents
from small_disk import mounted

CLIPS = 40
KILLS = 4
#: How long what a command has started may outlive it.
ORPHAN_SECONDS = 10
GOES_ON = "the same command goes on"
TABLE = {split: vars(row) for split, row in published(librispeech_archives()).items()}
#: Most that more clips may add to a process' memory, once the smaller corpus fills a row group of 1000 as well.
MEMORY_GROWTH_MIB = 16
FEW_CLIPS, MANY_CLIPS = 2000, 5000


def recordings_in(folder: Path, clips: int = CLIPS) -> Path:
    """Write recordings with their transcripts beside them, and return their folder."""
    folder.mkdir(exist_ok=True)
    for number, row in enumerate(load_studio_prompts("train").select(range(clips))):
        file = folder / f"{number:03}.ogg"
        file.write_bytes(row["audio"]["bytes"])
        file.with_suffix(".txt").write_text(row["text"])
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return recordings_in(tmp_path_factory.mktemp("corpus") / "recordings")


@pytest.fixture(scope="module")
def whole(launcher, folder, tmp_path_factory) -> Path:
    """Return the files of an uninterrupted run."""
    output = tmp_path_factory.mktemp("whole") / "out"
    launcher.succeed(*command_of(folder, output))
    return output


def command_of(folder: Path, output: Path, *more: Any) -> list[Any]:
    return ["folder", folder, "--output", output, *(more or ("--workers", "1"))]


def librispeech(site: Site, folder: Path, output: Path) -> list[Any]:
    where = ["--mirrors", f"{site.url}/resources", "--archives", folder / "archives", "--output", output]
    return ["librispeech", "--splits", "dev-clean", "train-clean-5", *where, "--workers", "1"]


def finished(launcher: Launcher, command: list[Any], output: Path, **options: Any) -> dict[str, str]:
    """Checksums of what the last of several runs leaves."""
    launcher.succeed(*command, **options)
    return contents(output)


def clips_done(output: Path) -> int:
    path = output / ".prepare" / "clips.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


# ------------------------------------------------------------------------------------------------------------- killed


def test_killed_in_either_pass_it_ends_with_the_same_bytes(launcher, folder, whole, tmp_path) -> None:
    output = tmp_path / "killed"
    generator = random.Random(0)
    killed = 0
    for number in range(KILLS):  # each further on than the last
        command = launcher.start(*command_of(folder, output))
        if command.until(lambda wanted=number * CLIPS // KILLS: clips_done(output) >= wanted):
            killed += command.end(signal.SIGKILL) == -signal.SIGKILL
    for _ in range(KILLS):
        command = launcher.start(*command_of(folder, output))
        if command.until((output / ".prepare" / "new").exists):
            time.sleep(generator.uniform(0, 0.02))
            killed += command.end(signal.SIGKILL) == -signal.SIGKILL
    assert killed > 1, "every run was over before it was killed"
    made = finished(launcher, command_of(folder, output), output)
    assert made == contents(whole) and "manifest.json" in made and any(name.startswith("parquet/") for name in made)


def test_killed_while_downloading_it_goes_on_where_it_was(launcher, site, tmp_path) -> None:
    generator = random.Random(0)
    large = librispeech_trees()["dev-clean"] | {"LibriSpeech/README.TXT": generator.randbytes(6 * BLOCK_BYTES)}
    archives = librispeech_archives() | {"dev-clean": packed(large)}
    site.files = served(archives)
    table = {split: vars(row) for split, row in published(archives).items()}
    expected = finished(launcher, librispeech(site, tmp_path, tmp_path / "whole"), tmp_path / "whole", table=table)
    shutil.rmtree(tmp_path / "archives")
    site.requests.clear()
    output, part, size = tmp_path / "killed", tmp_path / "archives" / "dev-clean.tar.gz.part", 0
    for blocks in (1, 4):  # the site sends so much, and then hangs
        site.stall, site.break_after = True, [blocks * BLOCK_BYTES + generator.randrange(BLOCK_BYTES) - size]
        command = launcher.start(*librispeech(site, tmp_path, output), table=table)
        assert command.until(lambda former=size: part.exists() and part.stat().st_size > former), command.stderr
        assert command.end(signal.SIGKILL) == -signal.SIGKILL
        size = part.stat().st_size
        assert not output.exists(), "nothing is written before archives are verified"
    site.stall, site.break_after = False, []
    assert finished(launcher, librispeech(site, tmp_path, output), output, table=table) == expected
    asked = site.ranges("/resources/12/dev-clean.tar.gz")
    assert asked[0] is None and all(asked[1:]) and asked[-1] == f"bytes={size}-", "each went on where the last was"


def test_an_archive_that_no_mirror_has_is_named(launcher, site, tmp_path) -> None:
    site.files.clear()
    refused = launcher.run(*librispeech(site, tmp_path, tmp_path / "out"), table=TABLE)
    assert refused.code == 1 and f"{site.url}/resources/12/dev-clean.tar.gz failed" in refused.stderr
    assert "404" in refused.stderr and "Traceback" not in refused.stderr


# -------------------------------------------------------------------------------------------------------- interrupted


def stopped_halfway(launcher: Launcher, folder: Path, output: Path) -> Command:
    """Return the command, stopped where it is in the first pass."""
    for _ in range(5):
        command = launcher.start(*command_of(folder, output))
        if (
            command.until((output / ".prepare" / "state.json").exists)
            and command.stop()
            and clips_done(output) < CLIPS
        ):
            return command
        command.end(signal.SIGKILL)
        shutil.rmtree(output)
    pytest.fail("it was not interrupted in the middle")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_it_says_so_and_goes_on(number, code, launcher, folder, whole, tmp_path) -> None:
    output = tmp_path / "interrupted"
    command = stopped_halfway(launcher, folder, output)
    os.kill(command.pid, number)  # waits for it, as it is stopped
    assert command.end(signal.SIGCONT) == code, command.stderr
    # Last, and no traceback behind it; before it, callbacks from C may say that they have swallowed the interrupt.
    assert command.stderr.rstrip().endswith(f"{GOES_ON}."), command.stderr
    assert not (output / "manifest.json").exists()
    assert finished(launcher, command_of(folder, output), output) == contents(whole)


def session(leader: int) -> list[int]:
    """Return the processes of a session, as Linux lists them."""
    found = []
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if name.isdigit() and os.getsid(int(name)) == leader:
                found.append(int(name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
@pytest.mark.parametrize(
    ("number", "group", "code"),
    [
        (signal.SIGINT, True, 130),  # Ctrl-C, which a terminal sends to the workers as well
        (signal.SIGTERM, False, 143),
        (signal.SIGKILL, False, -signal.SIGKILL),
    ],
)
def test_no_worker_outlives_the_command(number, group, code, launcher, folder, whole, tmp_path) -> None:
    output = tmp_path / "interrupted"
    command = launcher.start(*command_of(folder, output, "--workers", "2"), fresh=True)
    assert command.until(lambda: clips_done(output) >= 1)
    assert len(session(command.pid)) > 1
    assert command.end(number, group) == code, command.stderr
    if code > 0:
        assert GOES_ON in command.stderr and "Traceback" not in command.stderr, command.stderr
    deadline = time.monotonic() + ORPHAN_SECONDS
    while (left := session(command.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left
    assert finished(launcher, command_of(folder, output), output) == contents(whole)


# ---------------------------------------------------------------------------------------------------- two at one time


def test_a_second_process_is_refused_in_the_same_folder(launcher, folder, whole, tmp_path) -> None:
    output = tmp_path / "out"
    first = stopped_halfway(launcher, folder, output)  # still at it, for sure
    second = launcher.run(*command_of(folder, output))
    assert second.code == 1 and f"Another process prepares a corpus into {output}" in second.stderr
    os.kill(first.pid, signal.SIGCONT)
    assert first.wait() == 0, first.stderr
    assert contents(output) == contents(whole)


def test_two_processes_share_their_downloads(launcher, site, tmp_path) -> None:
    outputs = [tmp_path / name for name in ("one", "two")]
    for command in [launcher.start(*librispeech(site, tmp_path, output), table=TABLE) for output in outputs]:
        assert command.wait() == 0, command.stderr
    assert contents(outputs[0]) == contents(outputs[1])
    assert len(site.requests) == 2, "each archive came once"


# ------------------------------------------------------------------------------------------------- no room, and memory


@pytest.mark.parametrize("full_in", ["first pass", "second pass"])
def test_a_full_disk_is_named_and_with_room_it_goes_on(full_in, launcher, folder, whole, tmp_path) -> None:
    audio = sum(path.stat().st_size for path in (whole / "audio").rglob("*.flac")) >> 10
    with mounted(tmp_path / "disk", audio // 2 if full_in == "first pass" else audio * 3 // 2) as remount:
        output = tmp_path / "disk" / "out"
        command = launcher.run(*command_of(folder, output))
        assert command.code == 1
        assert "there is no room left (No space left on device)" in command.stderr, command.stderr
        assert str(output) in command.stderr and GOES_ON in command.stderr and "Traceback" not in command.stderr
        assert not (output / "manifest.json").exists() and not list(output.glob("instruction_examples*"))
        assert (clips_done(output) < CLIPS) == (full_in == "first pass")
        remount("size=1g")
        assert finished(launcher, command_of(folder, output), output) == contents(whole)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is measured as Linux counts it")
def test_memory_does_not_grow_with_the_corpus(launcher, tmp_path) -> None:
    generator = np.random.default_rng(0)
    peaks = []
    for count in (FEW_CLIPS, MANY_CLIPS):
        folder = tmp_path / str(count)
        folder.mkdir()
        for number in range(count):
            noise = generator.integers(-3000, 3000, 2400).astype(np.int16)
            soundfile.write(folder / f"{number}.wav", noise, 16_000)
            (folder / f"{number}.txt").write_text(f"Noise {number}.")
        done = launcher.succeed(*command_of(folder, tmp_path / f"{count}.out"))
        peaks.append(done.peak_bytes / (1 << 20))
        assert f"{count} examples" in done.stdout
    assert peaks[1] - peaks[0] < MEMORY_GROWTH_MIB, peaks

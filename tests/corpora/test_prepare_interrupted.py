"""`audiollm prepare` killed, interrupted and out of room: the same command goes on, and ends with the same bytes."""

import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from audiollm.corpora.prompts import load_studio_prompts
from small_corpus import contents
from small_disk import mounted

CLIPS = 40
KILLS = 3
PATIENCE_SECONDS = 600
#: Time that processes of a command may outlive it.
ORPHAN_SECONDS = 10
GOES_ON = "the same command goes on"
#: Most that more clips may add to a process' memory, once the smaller corpus fills a row group of 1000 as well.
MEMORY_GROWTH_MIB = 16
FEW_CLIPS, MANY_CLIPS = 2000, 5000
#: Processes are forked from one that has imported what takes longer than what is tested.
FORKING = multiprocessing.get_context("forkserver")
FORKING.set_forkserver_preload(["audiollm.corpora.prepare", "audiollm.corpora.folder", "audiollm.corpora.respond"])


def _become(arguments: list[str], stderr: str) -> None:
    """In the forked process: run the command as the console script does."""
    from audiollm.corpora.prepare import main

    os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main(arguments)


@dataclass
class Command:
    """A running `audiollm prepare`."""

    process: Any
    stderr_file: Path

    @property
    def stderr(self) -> str:
        return self.stderr_file.read_text(encoding="utf-8", errors="replace")

    def until(self, reached: Callable[[], bool]) -> bool:
        """Wait for something, or for the end; say whether it was reached before the end."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            if not self.process.is_alive():
                return False
            if reached():
                return True
            time.sleep(0.001)
        raise AssertionError(f"waited too long: {self.stderr}")

    def end(self, number: int | None = None) -> int:
        """Send a signal, if any, and wait for the end; return the exit code, negative for a signal."""
        if number is not None and self.process.is_alive():
            os.kill(self.process.pid, number)
        self.process.join(PATIENCE_SECONDS)
        return self.process.exitcode


def line_of(folder: Path, output: Path, workers: int = 1) -> list[str]:
    return ["folder", str(folder), "--output", str(output), "--workers", str(workers)]


def start(folder: Path, output: Path) -> Command:
    stderr = folder.parent / f"{time.monotonic_ns()}.stderr"  # not on a disk that may be full
    stderr.touch()
    process = FORKING.Process(target=_become, args=(line_of(folder, output), str(stderr)))
    process.start()
    return Command(process, stderr)


def finished(folder: Path, output: Path) -> dict[str, str]:
    """Checksums of what the last of several runs leaves."""
    command = start(folder, output)
    assert command.end() == 0, command.stderr
    return contents(output)


def clips_done(output: Path) -> int:
    path = output / ".prepare" / "clips.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Recordings with their transcripts beside them."""
    folder = tmp_path_factory.mktemp("corpus") / "recordings"
    folder.mkdir()
    for number, row in enumerate(load_studio_prompts("train").select(range(CLIPS))):
        (folder / f"{number:03}.ogg").write_bytes(row["audio"]["bytes"])
        (folder / f"{number:03}.txt").write_text(row["text"])
    return folder


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory) -> Path:
    """Return the files of an uninterrupted run."""
    output = tmp_path_factory.mktemp("whole") / "out"
    finished(folder, output)
    return output


def test_killed_in_either_pass_it_ends_with_the_same_bytes(folder, whole, tmp_path) -> None:
    output = tmp_path / "killed"
    generator = random.Random(0)
    killed = 0
    for number in range(KILLS):  # each further on than the last
        command = start(folder, output)
        if command.until(lambda wanted=number * CLIPS // KILLS: clips_done(output) >= wanted):
            killed += command.end(signal.SIGKILL) == -signal.SIGKILL
    for _ in range(KILLS):
        command = start(folder, output)
        if command.until((output / ".prepare" / "new").exists):
            time.sleep(generator.uniform(0, 0.02))
            killed += command.end(signal.SIGKILL) == -signal.SIGKILL
    assert killed > 1, "every run was over before it was killed"
    made = finished(folder, output)
    assert made == contents(whole) and "manifest.json" in made and any(name.startswith("parquet/") for name in made)


def stopped_halfway(folder: Path, output: Path) -> Command:
    """Return the command, stopped where it is in the first pass."""
    for _ in range(5):
        command = start(folder, output)
        if command.until((output / ".prepare" / "state.json").exists):
            os.kill(command.process.pid, signal.SIGSTOP)
            if command.process.is_alive() and clips_done(output) < CLIPS:
                return command
        command.end(signal.SIGKILL)
        shutil.rmtree(output)
    pytest.fail("it was not interrupted in the middle")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_it_says_so_and_goes_on(number, code, folder, whole, tmp_path) -> None:
    output = tmp_path / "interrupted"
    command = stopped_halfway(folder, output)
    second = start(folder, output)
    assert second.end() == 1 and f"Another process prepares a corpus into {output}" in second.stderr
    os.kill(command.process.pid, number)  # waits for it, as it is stopped
    assert command.end(signal.SIGCONT) == code, command.stderr
    # Last, and no traceback behind it; before it, callbacks from C may say that they have swallowed the interrupt.
    assert command.stderr.rstrip().endswith(f"{GOES_ON}."), command.stderr
    assert not (output / "manifest.json").exists()
    assert finished(folder, output) == contents(whole)


def session(leader: int) -> list[int]:
    """Return the processes of a session, as Linux lists them."""
    found = []
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if name.isdigit() and os.getsid(int(name)) == leader:
                found.append(int(name))
    return found


def as_users_start_it(folder: Path, output: Path, workers: int) -> subprocess.Popen:
    words = [sys.executable, "-m", "audiollm.command_line.cli", "prepare", *line_of(folder, output, workers)]
    return subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True)


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
def test_no_worker_outlives_the_command(number, group, code, folder, whole, tmp_path) -> None:
    output = tmp_path / "interrupted"
    process = as_users_start_it(folder, output, workers=2)
    while process.poll() is None and not clips_done(output):
        time.sleep(0.001)
    assert len(session(process.pid)) > 1
    (os.killpg if group else os.kill)(process.pid, number)
    said = process.communicate(timeout=PATIENCE_SECONDS)[1] if code > 0 else ""
    assert process.wait() == code, said
    assert code < 0 or (GOES_ON in said and "Traceback" not in said), said
    deadline = time.monotonic() + ORPHAN_SECONDS
    while (left := session(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left
    assert finished(folder, output) == contents(whole)


@pytest.mark.parametrize("full_in", ["first pass", "second pass"])
def test_a_full_disk_is_named_and_with_room_it_goes_on(full_in, folder, whole, tmp_path) -> None:
    audio = sum(path.stat().st_size for path in (whole / "audio").rglob("*.flac")) >> 10
    with mounted(tmp_path / "disk", audio // 2 if full_in == "first pass" else audio * 3 // 2) as remount:
        output = tmp_path / "disk" / "out"
        command = start(folder, output)
        assert command.end() == 1
        assert "there is no room left (No space left on device)" in command.stderr, command.stderr
        assert str(output) in command.stderr and GOES_ON in command.stderr and "Traceback" not in command.stderr
        assert not (output / "manifest.json").exists() and not list(output.glob("instruction_examples*"))
        assert (clips_done(output) < CLIPS) == (full_in == "first pass")
        remount("size=1g")
        assert finished(folder, output) == contents(whole)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is measured as Linux counts it")
def test_memory_does_not_grow_with_the_corpus(tmp_path) -> None:
    generator = np.random.default_rng(0)
    peaks = []
    for count in (FEW_CLIPS, MANY_CLIPS):
        folder = tmp_path / str(count)
        folder.mkdir()
        for number in range(count):
            noise = generator.integers(-3000, 3000, 2400).astype(np.int16)
            soundfile.write(folder / f"{number}.wav", noise, 16_000)
            (folder / f"{number}.txt").write_text(f"Noise {number}.")
        process = as_users_start_it(folder, tmp_path / f"{count}.out", workers=1)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        peaks.append(usage.ru_maxrss / (1 << 10))
    assert peaks[1] - peaks[0] < MEMORY_GROWTH_MIB, peaks

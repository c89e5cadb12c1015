"""`audiollm prepare` killed, interrupted and out of room: the same command goes on, and ends with the same bytes."""

import contextlib
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from audiollm.corpora.prompts import load_studio_prompts
from audiollm.downloads import BLOCK_BYTES
from librispeech_archives import librispeech_archives, librispeech_trees, packed, published, served
from prepare_process import Command, Launcher, contents
from small_disk import mounted

CLIPS = 40
KILLS = 5
KINDS = ("librispeech", "huggingface", "folder", "synthesize")
#: How long what a command has started may outlive it.
ORPHAN_SECONDS = 10
GOES_ON = "the same command goes on"
TABLE = {split: vars(row) for split, row in published(librispeech_archives()).items()}


@dataclass
class Corpus:
    """A corpus to prepare, without the output."""

    arguments: list[str]
    options: dict[str, Any] = field(default_factory=dict)


@pytest.fixture
def corpus_named(tmp_path, site) -> Callable[..., Corpus]:
    """Makes a small corpus of a kind; only LibriSpeech's archives are kept outside the output."""

    def make(kind: str, clips: int = CLIPS) -> Corpus:
        rows = load_studio_prompts("train").select(range(clips))
        if kind == "librispeech":
            arguments = ["--splits", "dev-clean", "train-clean-5", "--mirrors", f"{site.url}/resources"]
            return Corpus([*arguments, "--archives", str(tmp_path / "archives")], {"table": TABLE})
        if kind == "huggingface":
            path = tmp_path / "data.parquet"
            rows.to_parquet(path)
            return Corpus(["--dataset", str(path)])
        if kind == "folder":
            for number, row in enumerate(rows):
                file = tmp_path / "recordings" / f"{number:03}.ogg"
                file.parent.mkdir(exist_ok=True)
                file.write_bytes(row["audio"]["bytes"])
                file.with_suffix(".txt").write_text(row["text"])
            return Corpus([str(tmp_path / "recordings")])
        if shutil.which("espeak-ng") is None:
            pytest.skip("espeak-ng is not installed")
        (tmp_path / "texts.txt").write_text("\n".join(rows["text"][: clips // 2]))
        return Corpus([str(tmp_path / "texts.txt"), "--voices", "espeak-ng:en-us"])

    return make


def started(launcher: Launcher, kind: str, corpus: Corpus, output: Path, *more: Any, **options: Any) -> Command:
    arguments = [kind, *corpus.arguments, "--output", output, *(more or ("--workers", "1"))]
    return launcher.start(*arguments, **corpus.options | options)


def prepared(launcher: Launcher, kind: str, corpus: Corpus, output: Path, *more: Any) -> dict[str, str]:
    """Checksums of what an uninterrupted run, or the last of several, leaves."""
    command = started(launcher, kind, corpus, output, *more)
    assert command.wait() == 0, command.stderr
    return contents(output)


def lines_of(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def clips_done(output: Path) -> int:
    return lines_of(output / ".prepare" / "clips.jsonl")


# ------------------------------------------------------------------------------------------------------------- killed


@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_random_it_ends_with_the_same_bytes(kind, launcher, corpus_named, tmp_path) -> None:
    corpus = corpus_named(kind)
    began = time.monotonic()
    whole = prepared(launcher, kind, corpus, tmp_path / "whole")
    seconds = time.monotonic() - began
    assert any(name.startswith("parquet/") for name in whole) and "manifest.json" in whole
    if kind == "librispeech":
        shutil.rmtree(tmp_path / "archives")
    generator = random.Random(kind)
    killed = 0
    for number in range(KILLS):
        command = started(launcher, kind, corpus, tmp_path / "killed")
        # The first ones early: where one came to its end, there is nothing left to kill.
        time.sleep(generator.uniform(0, seconds * (number + 1) / KILLS))
        killed += command.end(signal.SIGKILL) == -signal.SIGKILL
    assert killed, "every run was over before it was killed"
    assert prepared(launcher, kind, corpus, tmp_path / "killed") == whole


@pytest.mark.parametrize("kind", KINDS)
def test_killed_in_the_second_pass_it_ends_with_the_same_bytes(kind, launcher, corpus_named, tmp_path) -> None:
    corpus = corpus_named(kind)
    whole = prepared(launcher, kind, corpus, tmp_path / "whole")
    output = tmp_path / "killed"
    generator = random.Random(kind)
    killed = 0
    for _ in range(KILLS):
        command = started(launcher, kind, corpus, output)
        if command.until((output / ".prepare" / "new").exists):
            time.sleep(generator.uniform(0, 0.02))
            killed += command.end(signal.SIGKILL) == -signal.SIGKILL
    assert killed, "every run was over before it was killed"
    assert prepared(launcher, kind, corpus, output) == whole


def test_killed_while_downloading_it_goes_on_where_it_was(launcher, corpus_named, site, tmp_path) -> None:
    generator = random.Random(0)
    large = librispeech_trees()["dev-clean"] | {"LibriSpeech/README.TXT": generator.randbytes(6 * BLOCK_BYTES)}
    archives = librispeech_archives() | {"dev-clean": packed(large)}
    site.files = served(archives)
    corpus = corpus_named("librispeech")
    corpus.options["table"] = {split: vars(row) for split, row in published(archives).items()}
    whole = prepared(launcher, "librispeech", corpus, tmp_path / "whole")
    shutil.rmtree(tmp_path / "archives")
    site.requests.clear()
    part = tmp_path / "archives" / "dev-clean.tar.gz.part"
    size = 0
    for blocks in (1, 3, 4):  # the site sends so much, and then hangs
        site.stall, site.break_after = True, [blocks * BLOCK_BYTES + generator.randrange(BLOCK_BYTES) - size]
        command = started(launcher, "librispeech", corpus, tmp_path / "killed")
        assert command.until(lambda former=size: part.exists() and part.stat().st_size > former), command.stderr
        assert command.end(signal.SIGKILL) == -signal.SIGKILL
        size = part.stat().st_size
        assert not (tmp_path / "killed").exists(), "nothing is written before archives are verified"
    site.stall, site.break_after = False, []
    assert prepared(launcher, "librispeech", corpus, tmp_path / "killed") == whole
    asked = site.ranges("/resources/12/dev-clean.tar.gz")
    assert asked[0] is None and all(asked[1:]) and asked[-1] == f"bytes={size}-", "each went on where the last was"


@pytest.mark.slow
def test_killed_while_hearing_it_ends_with_the_same_bytes(launcher, corpus_named, tmp_path, real_bases) -> None:
    corpus = corpus_named("folder", clips=10)
    options = ("--workers", "1", "--max_wer", "30", "--whisper_batch_size", "2")
    whole = prepared(launcher, "folder", corpus, tmp_path / "whole", *options)
    (heard,) = (name for name in whole if name.startswith(".prepare/heard/"))
    output = tmp_path / "killed"
    for entries in (1, 4, 7):
        command = started(launcher, "folder", corpus, output, *options)
        assert command.until(lambda wanted=entries: lines_of(output / heard) >= wanted), command.stderr
        assert command.end(signal.SIGKILL) == -signal.SIGKILL
    kept = (output / heard).read_bytes()
    assert kept.count(b"\n") < (tmp_path / "whole" / heard).read_bytes().count(b"\n")
    (output / heard).write_bytes(kept[:-7])  # as a kill in the middle of a write leaves it
    assert prepared(launcher, "folder", corpus, output, *options) == whole


# -------------------------------------------------------------------------------------------------------- interrupted


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("kind", KINDS)
def test_interrupted_it_says_so_and_goes_on(kind, number, code, launcher, corpus_named, tmp_path) -> None:
    for clips in (CLIPS, 2 * CLIPS, 4 * CLIPS):  # more where the signal would come too late
        corpus = corpus_named(kind, clips)
        output = tmp_path / f"interrupted-{clips}"
        command = started(launcher, kind, corpus, output)
        if command.until((output / ".prepare" / "state.json").exists) and command.stop():
            if lines_of(output / ".prepare" / "clips.jsonl") < clips // 2:
                break
            command.end(signal.SIGKILL)
    else:
        pytest.fail("it was not interrupted in the middle")
    os.kill(command.pid, number)  # waits for it, as it is stopped
    assert command.end(signal.SIGCONT) == code, command.stderr
    # Last, and no traceback behind it; before it, callbacks from C may say that they have swallowed the interrupt.
    assert command.stderr.rstrip().endswith(f"{GOES_ON}."), command.stderr
    assert not (output / "manifest.json").exists()
    assert prepared(launcher, kind, corpus, output) == prepared(launcher, kind, corpus, tmp_path / "whole")


def session(leader: int) -> list[int]:
    """Processes of a session, as Linux lists them."""
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
        (signal.SIGINT, False, 130),
        (signal.SIGTERM, False, 143),
        (signal.SIGKILL, False, -signal.SIGKILL),
    ],
)
@pytest.mark.parametrize("clips", [0, 1])
def test_no_worker_outlives_the_command(number, group, code, clips, launcher, corpus_named, tmp_path) -> None:
    """Ended while workers start, and while they are at work."""
    corpus = corpus_named("folder")
    output = tmp_path / "interrupted"
    command = started(launcher, "folder", corpus, output, "--workers", "2", fresh=True)
    journal = output / ".prepare" / "clips.jsonl"
    assert command.until(lambda: journal.exists() and clips_done(output) >= clips)
    assert len(session(command.pid)) > 1 or not clips
    assert command.end(number, group) == code, command.stderr
    if code > 0:
        assert GOES_ON in command.stderr and "Traceback" not in command.stderr, command.stderr
    deadline = time.monotonic() + ORPHAN_SECONDS
    while (left := session(command.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left
    assert prepared(launcher, "folder", corpus, output) == prepared(launcher, "folder", corpus, tmp_path / "whole")


# ---------------------------------------------------------------------------------------------------- two at one time


def test_a_second_process_is_refused_in_the_same_folder(launcher, corpus_named, tmp_path) -> None:
    corpus = corpus_named("folder")
    output = tmp_path / "out"
    first = started(launcher, "folder", corpus, output)
    assert first.until(lambda: clips_done(output) >= 1)
    os.kill(first.pid, signal.SIGSTOP)  # the first is still at it, for sure
    second = started(launcher, "folder", corpus, output)
    assert second.wait() == 1 and f"Another process prepares a corpus into {output}" in second.stderr
    os.kill(first.pid, signal.SIGCONT)
    assert first.wait() == 0, first.stderr
    assert contents(output) == prepared(launcher, "folder", corpus, tmp_path / "whole")


def test_two_processes_share_their_downloads(launcher, corpus_named, site, tmp_path) -> None:
    corpus = corpus_named("librispeech")
    both = [started(launcher, "librispeech", corpus, tmp_path / name) for name in ("one", "two")]
    for command in both:
        assert command.wait() == 0, command.stderr
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len(site.requests) == 2, "each archive came once"


# ------------------------------------------------------------------------------------------------------------ no room


def size_kib(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) >> 10


@pytest.mark.parametrize("full_in", ["first pass", "second pass"])
@pytest.mark.parametrize("kind", ["folder", "librispeech"])
def test_a_full_disk_is_named_and_with_room_it_goes_on(kind, full_in, launcher, corpus_named, tmp_path) -> None:
    corpus = corpus_named(kind)
    whole = prepared(launcher, kind, corpus, tmp_path / "whole")
    audio = size_kib(tmp_path / "whole" / "audio")
    with mounted(tmp_path / "disk", audio // 2 if full_in == "first pass" else audio * 3 // 2) as remount:
        output = tmp_path / "disk" / "out"
        command = started(launcher, kind, corpus, output)
        assert command.wait() == 1
        assert "there is no room left (No space left on device)" in command.stderr, command.stderr
        assert str(output) in command.stderr and GOES_ON in command.stderr and "Traceback" not in command.stderr
        assert not (output / "manifest.json").exists() and not list(output.glob("instruction_examples*"))
        assert (clips_done(output) < clips_done(tmp_path / "whole")) == (full_in == "first pass")
        remount("size=1g")
        assert prepared(launcher, kind, corpus, output) == whole

"""Signals that a library swallows end a command all the same; a command that was killed goes on; two write into one file."""

import contextlib
import json
import multiprocessing
import os
import signal
from pathlib import Path

import datasets
import pytest
from audiollm.command_line.files import appearing_whole
from audiollm.command_line.interruption import (
    TerminatedError,
    check_interrupted,
    ended_by_signals,
    exit_status,
    interruptible,
)
from audiollm.corpora import prepare
from audiollm.corpora.prompts import load_studio_prompts
from audiollm.inference.transcribing import PartialTranscript, Phrase

SIGNALS = [(signal.SIGINT, KeyboardInterrupt, 130), (signal.SIGTERM, TerminatedError, 143)]


# ---------------------------------------------------------------------------------------------------------- swallowed


@pytest.mark.parametrize("rows", [5, 3], ids=["in the middle", "in the last row"])
@pytest.mark.parametrize(("number", "kind", "code"), SIGNALS)
def test_what_a_library_swallows_is_raised_at_the_next_row(number, kind, code, rows) -> None:
    seen = []
    with pytest.raises(kind) as raised, ended_by_signals():
        for row in interruptible(range(rows)):
            seen.append(row)
            if row == 2:
                with contextlib.suppress(BaseException):
                    signal.raise_signal(number)
    assert seen == [0, 1, 2] and exit_status(raised.value) == code
    check_interrupted()  # what ended one command does not end the next


def test_signals_that_are_ignored_stay_so_and_handlers_come_back() -> None:
    former = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as under `nohup`, and in jobs in the background
    before = signal.getsignal(signal.SIGINT)
    try:
        with ended_by_signals():
            assert signal.getsignal(signal.SIGINT) != before
            signal.raise_signal(signal.SIGTERM)
            check_interrupted()
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN and signal.getsignal(signal.SIGINT) == before
    finally:
        signal.signal(signal.SIGTERM, former)


@pytest.mark.parametrize(("number", "code"), [(number, code) for number, _, code in SIGNALS])
def test_prepare_ends_though_datasets_swallows_the_signal(number, code, tmp_path, monkeypatch, capsys) -> None:
    """The fingerprints of datasets are made behind an `except:` that goes on."""
    rows = load_studio_prompts("train").select(range(4))
    rows.to_parquet(tmp_path / "data.parquet")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    output = tmp_path / "out"
    sent = []

    def update(hasher: datasets.fingerprint.Hasher, value: object) -> None:
        if isinstance(value, range) and (output / ".prepare" / "state.json").exists() and not sent:
            sent.append(number)
            signal.raise_signal(number)
        original(hasher, value)

    original = datasets.fingerprint.Hasher.update
    command = ["huggingface", "--dataset", str(tmp_path / "data.parquet"), "--output", str(output), "--workers", "1"]
    with monkeypatch.context() as patch:
        patch.setattr(datasets.fingerprint.Hasher, "update", update)
        with pytest.raises(SystemExit) as ended:
            prepare.main(command)
    assert sent and ended.value.code == code
    assert "the same command goes on" in capsys.readouterr().err
    assert not (output / "manifest.json").exists()
    prepare.main(command)
    assert len(json.loads(Path(output / "instruction_examples.json").read_text())) == 4


# ------------------------------------------------------------------------------------------------------------- killed


def _killed_while_writing(output: Path) -> None:
    with appearing_whole(output) as partial:
        (partial / "config.json").write_text("{")
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_folder_that_appears_whole_is_not_there_when_its_writer_is_killed(tmp_path) -> None:
    """The folders of `audiollm shrink` and `export`."""
    output = tmp_path / "exported"
    writer = multiprocessing.get_context("fork").Process(target=_killed_while_writing, args=(output,))
    writer.start()
    writer.join(10)
    assert writer.exitcode == -signal.SIGKILL and not output.exists()
    with appearing_whole(output) as partial:
        (partial / "config.json").write_text("{}")
    assert (output / "config.json").read_text() == "{}"


# ---- two processes at once --------------------------------------------------------------------------------------------


WINDOWS = 400
MADE_WITH = {"audio_sha256": "0", "weights": "1"}


def _add_windows(path: Path, first: int, step: int) -> None:
    partial = PartialTranscript(path, MADE_WITH)
    for start in range(first, WINDOWS, step):
        partial.add({(start, start + 1): [Phrase(f"é {start}\\n", False)]})


def test_two_processes_keep_partial_transcripts_in_one_file(tmp_path) -> None:
    path = tmp_path / "long.partial.jsonl"
    PartialTranscript(path, MADE_WITH).add({(-1, 0): [Phrase("begun", False)]})
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_add_windows, args=(path, first, 2)) for first in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    kept = PartialTranscript(path, MADE_WITH)
    assert len(kept) == WINDOWS + 1
    assert all(kept.get(start, start + 1) == [Phrase(f"é {start}\\n", False)] for start in range(WINDOWS))


def test_what_the_other_process_has_removed_is_written_anew(tmp_path) -> None:
    """Whoever is done first removes the partial transcript; the other goes on."""
    path = tmp_path / "long.partial.jsonl"
    ours, theirs = PartialTranscript(path, MADE_WITH), PartialTranscript(path, MADE_WITH)
    ours.add({(0, 1): [Phrase("one", False)]})
    theirs.add({(0, 1): [Phrase("one", False)]})
    theirs.journal.path.unlink()
    ours.add({(1, 2): [Phrase("two", False)]})
    assert PartialTranscript(path, MADE_WITH).get(1, 2) == [Phrase("two", False)]
    assert all(json.loads(line) for line in path.read_text().splitlines())

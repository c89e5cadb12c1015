"""Signals that a library swallows end a command all the same, and a command that was killed goes on where it was."""

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

"""Two processes in one place at once: both end with the same bytes, or the second says who is there."""

import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
from audiollm.inference.transcribing import PartialTranscript
from audiollm.training.arguments import AudioLlmTrainingArguments, TrainingError
from audiollm.training.checkpointing import held
from command_calls import Place, call, make_place

WINDOWS = 400
MADE_WITH = {"audio_sha256": "0", "weights": "1"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"))


def _add_windows(path: Path, first: int, step: int) -> None:
    partial = PartialTranscript(path, MADE_WITH)
    for start in range(first, WINDOWS, step):
        partial.add({(start, start + 1): (f"é {start}\\n", False)})


def test_two_processes_keep_partial_transcripts_in_one_file(tmp_path) -> None:
    path = tmp_path / "long.partial.jsonl"
    PartialTranscript(path, MADE_WITH).add({(-1, 0): ("begun", False)})
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_add_windows, args=(path, first, 2)) for first in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    kept = PartialTranscript(path, MADE_WITH)
    assert len(kept) == WINDOWS + 1
    assert all(kept.get(start, start + 1) == (f"é {start}\\n", False) for start in range(WINDOWS))


def test_what_the_other_process_has_removed_is_written_anew(tmp_path) -> None:
    """Whoever is done first removes the partial transcript; the other goes on."""
    path = tmp_path / "long.partial.jsonl"
    ours, theirs = PartialTranscript(path, MADE_WITH), PartialTranscript(path, MADE_WITH)
    ours.add({(0, 1): ("one", False)})
    theirs.add({(0, 1): ("one", False)})
    theirs.remove()
    ours.add({(1, 2): ("two", False)})
    assert PartialTranscript(path, MADE_WITH).get(1, 2) == ("two", False)
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_two_runs_do_not_train_into_one_folder(place: Place, tmp_path) -> None:
    here = Place(**{**vars(place), "outputs": tmp_path})
    run = tmp_path / "run"
    run.mkdir()
    with held(AudioLlmTrainingArguments(output_dir=str(run), report_to="none")):
        assert f"Another run trains into --output_dir {run}" in str(call(here.line("train")))
        with pytest.raises(TrainingError), held(AudioLlmTrainingArguments(output_dir=str(run), report_to="none")):
            pass
    assert [path.name for path in run.iterdir() if not path.name.endswith("lock")] == []
    assert call(here.line("train")) == 0


def _hold(folder: Path, ready) -> None:
    with held(AudioLlmTrainingArguments(output_dir=str(folder), report_to="none")):
        ready.send(True)
        signal.pause()


def test_a_killed_run_holds_nothing(place: Place, tmp_path) -> None:
    here = Place(**{**vars(place), "outputs": tmp_path})
    (tmp_path / "run").mkdir()
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    holder = context.Process(target=_hold, args=(tmp_path / "run", theirs))
    holder.start()
    assert ours.recv()
    assert "Another run trains" in str(call(here.line("train")))
    os.kill(holder.pid, signal.SIGKILL)
    holder.join(10)
    assert call(here.line("train")) == 0
    assert (tmp_path / "run" / "model.safetensors").is_file()

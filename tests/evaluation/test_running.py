"""Runs of `audiollm evaluate`: whole, cut off and given again, dealt among processes, refused where they would mix."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import psutil
import pytest
import torch
from audiollm import AudioLlmForConditionalGeneration
from audiollm.evaluation.generating import Generator
from audiollm.evaluation.outputs import SystemOutputs
from audiollm.evaluation.readers import read_local_set
from audiollm.evaluation.run import (
    answer_job,
    batches_of,
    index,
    recording_identity,
    windows_of,
    wrong_recordings,
)
from audiollm.evaluation.systems import listen
from audiollm.evaluation.tasks import Item
from audiollm.evaluation.word_error import score_word_error
from audiollm.inference.answering import answer, ask
from evaluation_runs import all_rows, evaluate, rows_of, scores_of
from filelock import FileLock
from small_corpus import example_rows, write_recordings, write_rows

SYSTEMS = "model,wrong_audio,whisper,cascade,deaf"
TITLES = {"model": "this model", "wrong_audio": "given the wrong recordings", "whisper": "Whisper's own decoder"}
PATIENCE_S = 300
DDP_CPU = Path(__file__).parents[2] / "training" / "distributed" / "ddp_cpu.yaml"
LAUNCH = ["-m", "accelerate.commands.launch", "--main_process_port", "0", "--config_file", str(DDP_CPU)]
LAUNCH += ["-m", "audiollm.evaluation.evaluate"]


class Given(NamedTuple):
    """A tiny_checkpoint, the data, and the options of a run over them."""

    model: Path
    rows: list[dict]
    data_path: str
    audio_dir: Path
    options: list[str]


@pytest.fixture(scope="module")
def given(tiny_checkpoint, talking_whisper, tmp_path_factory) -> Given:
    folder = tmp_path_factory.mktemp("evaluated")
    names = write_recordings(folder / "recordings")
    rows = example_rows(names)[: len(names)]
    rows[1]["text"] = "<audio>\nWhat do you hear?"
    rows[3]["response"] = "..."  # without a word to say
    data_path = write_rows(folder / "data.json", rows)
    options = f"--whisper {talking_whisper} --data_path {data_path} --audio_dir {folder / 'recordings'}"
    options += " --max_new_tokens 6 --batch_size 3"
    return Given(tiny_checkpoint, rows, data_path, folder / "recordings", options.split())


@pytest.fixture(scope="module")
def undisturbed(given, tmp_path_factory) -> Path:
    """The folder of a run of all systems that nothing has interrupted."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    evaluate(given.model, folder, *given.options, "--systems", SYSTEMS)
    return folder


@pytest.fixture
def copied(undisturbed, tmp_path) -> Path:
    """A copy of that folder, one's own to change."""
    return Path(shutil.copytree(undisturbed, tmp_path / "run"))


def test_a_run_leaves_whole_rows_in_the_order_of_the_items(
    given, undisturbed, shared_tiny_model, tiny_processor, tmp_path, capsys
) -> None:
    rows = all_rows(undisturbed)
    assert set(rows) == {f"local/{system}" for system in SYSTEMS.split(",")}
    assert all(row["output"] for row in rows["local/whisper"])
    for system, found in rows.items():
        assert [row["id"] for row in found] == [f"row {number}" for number in range(10)]
        assert {row["system"] for row in found} == {system.partition("/")[2]}
        assert all(row["references"] and row["error"] is None and row["finish"] in ("stop", "length") for row in found)
    own = rows["local/model"]
    questions = [(f"{given.audio_dir}/{row['audio_paths']}", row["text"]) for row in given.rows]
    assert [(row["audio"], row["prompt"]) for row in own] == [([file], text) for file, text in questions]
    asked = [ask(text, file) for file, text in questions]
    assert [row["output"] for row in own] == answer(shared_tiny_model, tiny_processor, asked, max_new_tokens=6)
    lines = (undisturbed / "outputs/local/model.jsonl").read_text().splitlines()
    assert all(json.loads(line)["seconds"] > 0 for line in lines)
    record = json.loads((undisturbed / "run.json").read_text())
    assert record["dtype"] == "float32" and record["versions"]["torch"] == torch.__version__
    assert record["tasks"]["local"]["items"] == 10 and record["arguments"]["batch_size"] == 3

    # Scores are printed; by default, with the systems that fit.
    evaluate(given.model, tmp_path / "run", *given.options, "--limit", 4)
    printed = capsys.readouterr().out
    assert set(scores_of(tmp_path / "run", "local")) == set(TITLES)
    for system, title in TITLES.items():
        outputs = [row["output"] for row in rows_of(tmp_path / "run", "local", system)]
        score = score_word_error([row["response"] for row in given.rows[:4]], outputs)
        figure = rf"^local  word_error \(fraction\) +{title} +{score.word_error:.3g} \[.*\]  \(3 scored\)$"
        assert score.skipped == 1 and re.search(figure, printed, re.MULTILINE)
    assert "1 of 4 left out" in printed


def test_cut_off_anywhere_it_goes_on_to_the_same_rows(given, undisturbed, copied, capsys) -> None:
    """As a kill leaves it: some systems whole, some begun by one or two processes, a last line torn."""
    drawn = random.Random(0)
    (copied / "scores.json").unlink()
    for system in SYSTEMS.split(",")[1:]:
        path = copied / "outputs" / "local" / f"{system}.jsonl"
        written = path.read_bytes()
        path.unlink()
        lines = written.splitlines(keepends=True)
        drawn.shuffle(lines)
        for rank in range(drawn.choice((0, 1, 2))):
            share = b"".join(lines[rank::2])
            path.with_name(f"{system}.rank{rank}.partial.jsonl").write_bytes(share[: drawn.randrange(len(share))])
    evaluate(given.model, copied, *given.options, "--systems", SYSTEMS)
    assert all_rows(copied) == all_rows(undisturbed)
    assert (copied / "scores.json").is_file()
    # What is done is not done again.
    before = {path: path.stat().st_mtime_ns for path in (copied / "outputs").rglob("*.jsonl")}
    capsys.readouterr()
    evaluate(given.model, copied, *given.options, "--systems", SYSTEMS)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "answer" not in capsys.readouterr().err  # no bar: nothing was asked


def test_several_processes_answer_as_one(given, undisturbed, shared_tiny_model, tiny_processor, tmp_path) -> None:
    """Each in its turn here; see below for two that run at the same time."""

    job = index(read_local_set(given.data_path, str(given.audio_dir)), None, None, 6)
    system = partial(listen, Generator(shared_tiny_model, tiny_processor))
    shares = []
    for rank in range(3):
        state = SimpleNamespace(process_index=rank, num_processes=3)
        answer_job(tmp_path, job, {"model": system}, tiny_processor, 3, state, progress=False)
        shares.append(len(SystemOutputs(tmp_path, "local", "model").read()) - sum(shares))
    assert all(shares) and sum(shares) == 10
    SystemOutputs(tmp_path, "local", "model").merge(job.ids)
    assert rows_of(tmp_path, "local", "model") == rows_of(undisturbed, "local", "model")


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        ("--dtype bfloat16", "dtype was 'auto' and is 'bfloat16'"),
        ("--batch_size 4", "batch_size was 3 and is 4"),
        ("--limit 5 --max_new_tokens 7", "local: limit was None and is 5.*local: max_new_tokens was 6 and is 7"),
        ("--language de", "local: language was 'en' and is 'de'"),
        ("--device_map meta", "device was 'cpu' and is 'meta'"),
        ("--whisper BASE", "whisper was"),
    ],
)
def test_runs_of_other_settings_are_not_mixed(given, undisturbed, tiny_bases, changed, difference) -> None:
    with pytest.raises(SystemExit, match=r"(?s)made otherwise.*" + difference + r".*choose another --output_dir"):
        evaluate(given.model, undisturbed, *given.options, *changed.replace("BASE", tiny_bases[0]).split())


def test_another_models_answers_are_not_mixed(given, copied, tmp_path) -> None:
    """Trained on in the same folder: by name it is the same."""
    trained = tmp_path / "model"
    shutil.copytree(given.model, trained)
    record = json.loads((copied / "run.json").read_text())
    record["settings"]["model"] = str(trained)
    (copied / "run.json").write_text(json.dumps(record))
    (copied / "outputs/local/deaf.jsonl").unlink()
    model = AudioLlmForConditionalGeneration.from_pretrained(trained)
    with torch.no_grad():
        model.model.audio_boundary_embeds.mul_(1.5)
    model.save_pretrained(trained)
    with pytest.raises(SystemExit, match=r"(?s)made otherwise.*weights was"):
        evaluate(trained, copied, *given.options, "--systems", SYSTEMS)


def test_data_that_have_changed_are_noticed(given, copied) -> None:
    kept = copied / "outputs/local/model.rank0.partial.jsonl"
    (copied / "outputs/local/model.jsonl").rename(kept)
    kept.write_bytes(b"".join(kept.read_bytes().splitlines(keepends=True)[:4]).replace(b"one two", b"two one"))
    with pytest.raises(SystemExit, match="references of 'row 1' are not those"):
        evaluate(given.model, copied, *given.options, "--systems", SYSTEMS)


def test_two_runs_do_not_write_to_one_folder(given, tmp_path) -> None:
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"), pytest.raises(SystemExit, match="Another run is writing to"):
        evaluate(given.model, tmp_path / "run", *given.options)


def test_recordings_that_cannot_be_read_are_rows_and_tried_again(given, tmp_path, capsys) -> None:
    audio = tmp_path / "recordings"
    shutil.copytree(given.audio_dir, audio)
    whole = (audio / "4.wav").read_bytes()
    (audio / "4.wav").write_bytes(b"junk" * 99)
    options = [str(audio) if one == str(given.audio_dir) else one for one in given.options]
    evaluate(given.model, tmp_path / "run", *options, "--systems", "model")
    broken = rows_of(tmp_path / "run", "local", "model")[4]
    assert (broken["output"], broken["finish"]) == (None, "error") and "4.wav" in broken["error"]
    assert "1 of 10 failed" in capsys.readouterr().out
    (audio / "4.wav").write_bytes(whole)
    evaluate(given.model, tmp_path / "run", *options, "--systems", "model")
    mended = rows_of(tmp_path / "run", "local", "model")
    assert mended[4]["finish"] != "error" and len(mended) == 10


def test_wrong_recordings_are_never_ones_own() -> None:
    """Of questions about few recordings too, or about two at once."""
    clips = [[0.1 * n] * 200 for n in range(1, 4)]
    items = [Item(f"{n}", "<audio>", [clips[n % 3]], [], {}) for n in range(9)]
    items.append(Item("both", "<audio><audio>", clips[:2], [], {}))
    items.append(Item("text", "no recording", [], [], {}))
    wrong = wrong_recordings(items)
    assert [len(item.recordings) for item in wrong] == [1] * 9 + [2, 0]
    for item, swapped in zip(items, wrong):
        own = list(map(recording_identity, item.recordings))
        assert all(recording_identity(played) != one for played, one in zip(swapped.recordings, own))
    alone = wrong_recordings([items[0], items[3]])
    assert all("no other recording beside it" in str(item.problem) for item in alone)


def test_windows_and_batches_hold_everything_once_and_are_bounded(tiny_processor) -> None:
    """Batches in items and in seconds; the last window takes what is left over."""
    seconds = [1, 30, 2, 2, 90, 1, 1]
    items = [Item(f"{n}", "<audio>", [[0.1] * (16_000 * length)]) for n, length in enumerate(seconds)]
    windows = list(windows_of(iter(items), len(items), 3))
    assert [len(window) for window in windows] == [3, 4] and [*windows[0], *windows[1]] == items
    assert list(windows_of(iter(items[:2]), 2, 3)) == [items[:2]]
    batches = batches_of(items, tiny_processor, batch_size=3, max_batch_seconds=60)
    assert [[item.id for item in batch] for batch in batches] == [["0", "5", "6"], ["2", "3"], ["1"], ["4"]]


def start(given: Given, folder: Path) -> subprocess.Popen:
    arguments = ["--model", str(given.model), "--output_dir", str(folder), *given.options, "--systems", SYSTEMS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, *LAUNCH, *arguments], env=environment, start_new_session=True, **streams)


@pytest.mark.slow
def test_two_processes_answer_as_one_and_go_on_when_one_dies(given, undisturbed, tmp_path) -> None:
    folder = tmp_path / "run"
    process = start(given, folder)
    outputs = folder / "outputs"
    while process.poll() is None and sum(path.read_bytes().count(b"\n") for path in outputs.rglob("*.jsonl")) < 8:
        time.sleep(0.002)
    children = psutil.Process(process.pid).children()
    ranks = [child.pid for child in children if "multiprocessing" not in " ".join(child.cmdline())]
    os.kill(ranks[0], signal.SIGKILL)
    printed, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode != 0, printed[-2000:]
    assert not (folder / "scores.json").exists()
    process = start(given, folder)
    printed, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, printed[-4000:]
    assert printed.count("word_error (") == 10  # five systems, two word errors each, said by one process alone
    assert all_rows(folder) == all_rows(undisturbed)
    found, expected = scores_of(folder, "local"), scores_of(undisturbed, "local")
    for system, scored in found.items():
        assert scored["counts"] == expected[system]["counts"]
        assert scored["metrics"]["word_error"] == expected[system]["metrics"]["word_error"]

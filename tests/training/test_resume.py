"""A run that is killed and started again ends, bit for bit, as one that was not; half-written checkpoints are passed over."""

import hashlib
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from audiollm.training.checkpointing import last_complete_checkpoint
from audiollm.training.train import parse_arguments, train

PATIENCE_S = 90
#: 12 examples, 4 a step: three steps an epoch, so that the kill falls inside one.
LONG_RUN = [
    "--max_steps",
    "40",
    "--save_steps",
    "2",
    "--save_total_limit",
    "2",
    "--augment",
    "--lora_dropout",
    "0.2",
    "--learning_rate",
    "0.005",
]


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def command(options: list[str]) -> list[str]:
    return [sys.executable, "-m", "audiollm.training.train", *options]


def killed_after(step: int, options: list[str], output_dir: Path) -> None:
    """Starts the command and kills it, unasked, once the checkpoint of a step is there."""
    process = subprocess.Popen(
        command(options), env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    deadline = time.time() + PATIENCE_S
    while time.time() < deadline and process.poll() is None:
        done = last_complete_checkpoint(output_dir)
        if done is not None and int(done.rpartition("-")[2]) >= step:
            break
        time.sleep(0.005)
    process.kill()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == -9, f"it was not running any more: {errors.decode()}"


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, tiny_bases, corpus, shared_features) -> tuple[list[str], str]:
    """The options of the run without its folder, and what it ends with when nothing happens to it."""
    audio, text = tiny_bases
    options = (
        f"--data_path {corpus.data_path} --audio_dir {corpus.audio_dir} --whisper_path {audio} --llama_path {text} "
        f"--feature_cache {shared_features} --batch_size 4 --disable_tqdm True"
    ).split() + LONG_RUN
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(*parse_arguments([*options, "--output_dir", str(folder)]))
    return options, digest(folder)


def test_killed_in_the_middle_and_started_again(uninterrupted, tmp_path, capsys) -> None:
    options, expected = uninterrupted
    options = [*options, "--output_dir", str(tmp_path)]
    killed_after(10, options, tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    train(*parse_arguments(options))
    resumed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Resuming from ")]
    assert len(resumed) == 1 and 10 <= int(resumed[0].rstrip(".").rpartition("-")[2]) < 40
    assert digest(tmp_path) == expected


@pytest.mark.parametrize("strategy", ["group_by_length", "random"])
@pytest.mark.parametrize("first_steps", [4, 6])
def test_cut_off_within_an_epoch_or_at_its_end(uninterrupted, tmp_path, first_steps: int, strategy: str) -> None:
    options = [*uninterrupted[0], "--train_sampling_strategy", strategy, "--max_steps", "9", "--save_total_limit", "9"]
    train(*parse_arguments([*options, "--output_dir", str(tmp_path / "a")]))
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / f"checkpoint-{first_steps}").rename(tmp_path / "b" / f"checkpoint-{first_steps}")
    train(*parse_arguments([*options, "--output_dir", str(tmp_path / "b")]))
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


def test_a_finished_run_is_left_as_it_is(options, tmp_path) -> None:
    first = train(*parse_arguments(options))
    expected = digest(tmp_path / "run")
    again = train(*parse_arguments(options))
    assert again.state.global_step == first.state.global_step == 2
    assert digest(tmp_path / "run") == expected


@pytest.mark.parametrize("damage", ["no state", "truncated state", "another kind of state", "not a folder"])
def test_a_checkpoint_that_was_being_written_is_passed_over(uninterrupted, tmp_path, damage: str) -> None:
    options = [*uninterrupted[0], "--max_steps", "6", "--output_dir", str(tmp_path)]
    train(*parse_arguments(options))
    expected = digest(tmp_path)
    newest = tmp_path / "checkpoint-6"
    state = newest / "trainer_state.json"
    if damage == "no state":
        state.unlink()
        (newest / "model.safetensors").write_bytes(b"half")
    elif damage == "truncated state":
        state.write_bytes(state.read_bytes()[:40])
    elif damage == "another kind of state":
        state.write_bytes(b"[]")
    else:
        for file in newest.iterdir():
            file.unlink()
        newest.rmdir()
        newest.write_text("a file")
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")
    if damage != "not a folder":
        train(*parse_arguments(options))
        assert digest(tmp_path) == expected
        assert json.loads(state.read_text())["global_step"] == 6


def test_without_checkpoints_there_is_none(tmp_path) -> None:
    assert last_complete_checkpoint(tmp_path) is None
    assert last_complete_checkpoint(tmp_path / "nowhere") is None


def test_the_newest_is_by_step_not_by_name(tmp_path) -> None:
    for step in (9, 10, 100, 20):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
        (folder / "rng_state.pth").touch()
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-100")


def test_checkpoints_of_weights_alone_are_not_gone_on_from(options, tmp_path, capsys) -> None:
    train(*parse_arguments([*options, "--save_only_model"]))
    expected = digest(tmp_path / "run")
    assert (tmp_path / "run" / "checkpoint-2" / "trainer_state.json").exists()
    assert last_complete_checkpoint(tmp_path / "run") is None
    train(*parse_arguments([*options, "--save_only_model"]))
    assert "Resuming" not in capsys.readouterr().out
    assert digest(tmp_path / "run") == expected


def test_loading_does_not_warn_of_the_frozen_bases(options, corpus, tmp_path, caplog) -> None:
    logger = logging.getLogger("transformers.trainer")
    logger.addHandler(caplog.handler)
    try:
        evaluation = f"--eval_data_path {corpus.data_path} --eval_strategy steps --eval_steps 1 --save_steps 1"
        evaluation = f"{evaluation} --eval_max_new_tokens 4".split()
        best = [*options, *evaluation, "--load_best_model_at_end", "--save_total_limit", "9"]
        trainer = train(*parse_arguments(best))
        assert trainer.state.best_model_checkpoint is not None
        train(*parse_arguments([*best, "--max_steps", "3"]))
    finally:
        logger.removeHandler(caplog.handler)
    assert "missing keys" not in caplog.text


def test_a_folder_of_another_model_is_refused(options, tmp_path) -> None:
    train(*parse_arguments(options))
    with pytest.raises((RuntimeError, ValueError), match=r"size mismatch|lora_rank"):
        train(*parse_arguments([*options, "--lora_rank", "3", "--max_steps", "4"]))

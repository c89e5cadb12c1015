"""A run that is killed and started again ends, bit for bit, as one that was not; half-written checkpoints are passed over."""

import json
import logging
from pathlib import Path

import pytest
from audiollm.training.checkpointing import last_complete_checkpoint
from runs import digest, resumed, run, stage_options, started, until_checkpoint

#: Ten rows, four a step: three steps an epoch, so that the kill falls inside one.
EVERYTHING_DRAWS = ["--augment", "--lora_rank=4", "--lora_dropout=0.2", "--learning_rate=0.005"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_bases, corpus, shared_features) -> tuple[list[str], Path]:
    """Options of a run of nine steps with a checkpoint at each, and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    steps = ["--max_steps=9", "--save_steps=1", "--save_total_limit=9"]
    options = stage_options("instruct", corpus, tiny_bases, shared_features, folder, *EVERYTHING_DRAWS, *steps)
    run(options)
    return options, folder / "instruct"


def test_killed_in_the_middle_and_started_again(whole, tmp_path, capsys) -> None:
    options = [*whole[0], "--max_steps=40", "--save_steps=2", "--save_total_limit=2"]
    run([*options, f"--output_dir={tmp_path / 'a'}"])
    folder, log = tmp_path / "b", tmp_path / "log"
    options = [*options, f"--output_dir={folder}"]
    process = started(options, log)
    until_checkpoint(process, folder, log, step=10)
    process.kill()
    process.join(30)
    assert process.exitcode == -9 and not (folder / "model.safetensors").exists()
    capsys.readouterr()
    run(options)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Resuming from ")]
    assert 10 <= int(line.rstrip(".").rpartition("-")[2]) < 40
    assert digest(folder) == digest(tmp_path / "a")


@pytest.mark.parametrize("step", [4, 6, 9], ids=["within an epoch", "at its end", "finished"])
def test_cut_off_batches_of_like_length(whole, tmp_path, step: int) -> None:
    assert resumed(whole[0], whole[1], step, tmp_path).state.global_step == 9
    assert digest(tmp_path) == digest(whole[1])


def test_cut_off_batches_at_random(whole, tmp_path) -> None:
    options = [*whole[0], "--train_sampling_strategy=random", "--max_steps=6", f"--output_dir={tmp_path / 'a'}"]
    run(options)
    resumed(options, tmp_path / "a", 4, tmp_path / "b")
    assert digest(tmp_path / "a") == digest(tmp_path / "b") != digest(whole[1])


def test_a_checkpoint_that_was_being_written_is_passed_over(whole, tmp_path) -> None:
    resumed(whole[0], whole[1], 7, tmp_path)
    newest, before = tmp_path / "checkpoint-9", str(tmp_path / "checkpoint-8")
    state = newest / "trainer_state.json"
    content = state.read_bytes()
    for damage in (content[:40], b"[]"):
        state.write_bytes(damage)
        assert last_complete_checkpoint(tmp_path) == before
    state.unlink()
    (newest / "model.safetensors").write_bytes(b"half")
    assert last_complete_checkpoint(tmp_path) == before
    run([*whole[0], f"--output_dir={tmp_path}"])
    assert digest(tmp_path) == digest(whole[1]) and json.loads(state.read_text())["global_step"] == 9


def test_the_newest_is_by_step_and_none_of_weights_alone(tmp_path) -> None:
    assert last_complete_checkpoint(tmp_path) is None and last_complete_checkpoint(tmp_path / "nowhere") is None
    for step in (9, 10, 100, 20):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
        (folder / "rng_state.pth").touch()
    (tmp_path / "checkpoint-200").write_text("a file")
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-100")
    (tmp_path / "checkpoint-100" / "rng_state.pth").unlink()  # as --save_only_model leaves it
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-20")


def test_loading_does_not_warn_of_the_frozen_bases_and_another_shape_is_refused(
    options, corpus, tmp_path, caplog
) -> None:
    logger = logging.getLogger("transformers.trainer")
    logger.addHandler(caplog.handler)
    try:
        evaluation = f"--eval_data_path {corpus.data_path} --eval_strategy steps --eval_steps 1 --save_steps 1"
        best = [*options, *evaluation.split(), "--eval_max_new_tokens", "4", "--load_best_model_at_end"]
        trainer = run([*best, "--save_total_limit", "9"])
        assert trainer.state.best_model_checkpoint is not None
        run([*best, "--max_steps", "3"])
    finally:
        logger.removeHandler(caplog.handler)
    assert "missing keys" not in caplog.text
    with pytest.raises((RuntimeError, ValueError), match=r"size mismatch|lora_rank"):
        run([*options, "--lora_rank", "3", "--max_steps", "4"])

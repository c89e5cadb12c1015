"""Evaluation by generation over two processes: the same answers and scores as in one, whoever gave them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from audiollm.training import sharding
from audiollm.training.evaluating import SAMPLES_FILE
from audiollm.training.train import parse_arguments, train

CONFIGS = Path(sharding.__file__).parent / "distributed"
PATIENCE_S = 180
TRAIN = ["-m", "audiollm.training.train"]
LOSS_TOLERANCE = 0.05
METRICS = ("eval_loss", "eval_word_error", "eval_wrong_audio_word_error")


@pytest.fixture(scope="module")
def given(tiny_bases, corpus, shared_features) -> list[str]:
    """Options of a run that is evaluated on 11 questions, of which two processes cannot each have as many."""
    audio, text = tiny_bases
    return (
        f"--data_path {corpus.data_path} --audio_dir {corpus.audio_dir} --whisper_path {audio} --llama_path {text} "
        f"--feature_cache {shared_features} --max_steps 2 --learning_rate 0.01 --warmup_steps 0 --lora_dropout 0 "
        "--train_sampling_strategy sequential --speed 0.8 1.2 --disable_tqdm True --use_cpu True "
        f"--eval_data_path {corpus.data_path} --eval_strategy steps --eval_steps 1 --eval_max_new_tokens 4 "
        "--per_device_eval_batch_size 2 --save_strategy steps --save_steps 1 --load_best_model_at_end "
        "--metric_for_best_model word_error --early_stopping_patience 5"
    ).split()


def start(module: list[str], options: list[str]) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *module, *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    return done.stdout


def evaluations(folder: Path) -> tuple[list[dict[str, float]], list[dict]]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    found = [{name: entry[name] for name in METRICS} for entry in history if "eval_loss" in entry]
    return found, [json.loads(line) for line in (folder / SAMPLES_FILE).read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(given, tmp_path_factory) -> Path:
    """The run of one process with twice the batch."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    train(*parse_arguments([*given, "--batch_size", "4", "--output_dir", str(folder)]))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("config", ["ddp_cpu.yaml", "fsdp2.yaml"])
def test_two_processes_evaluate_as_one(given, alone, tmp_path, config: str) -> None:
    launch = ["-m", "accelerate.commands.launch", "--main_process_port", "0", "--config_file", str(CONFIGS / config)]
    printed = start([*launch, *TRAIN], [*given, "--batch_size", "2", "--output_dir", str(tmp_path)])
    assert printed.count("Evaluation at step 1: ") == printed.count("Evaluation: word error on 11") == 1
    assert printed.count("variants of each of 10 recordings are cached") == 1
    (one, said), (two, said_by_two) = evaluations(alone), evaluations(tmp_path)
    assert len(one) == len(two) == 2
    for first, second in zip(one, two):
        # The Trainer's loss is a mean of batches' means, of other batches here.
        assert second.pop("eval_loss") == pytest.approx(first.pop("eval_loss"), rel=LOSS_TOLERANCE)
        assert second == first
    assert one != [{}, {}]
    assert said_by_two == said and len(said) == 22

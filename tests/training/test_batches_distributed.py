"""Two processes share budgeted batches and streams: their steps are those of one process, also when they resume."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_corpus import example_rows

PATIENCE_S = 240
#: Sums over a batch are made in another order; the losses are about 5.
TOLERANCE = 1e-4
TRAIN = "audiollm.training.train"
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", TRAIN]


def start(module: list[str], options: list[str], folder: Path) -> list[float]:
    """The losses of a run in processes of its own."""
    done = subprocess.run(
        [sys.executable, "-m", *module, *options, "--output_dir", str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


@pytest.fixture
def common(corpus, tiny_bases, shared_features, tmp_path) -> list[str]:
    """Options of both runs, on rows of which some have no audio."""
    rows = example_rows(corpus.paths)
    rows += [{"text": f"What is {number} + 2?", "response": "more"} for number in range(3)]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    audio, text = tiny_bases
    return (
        f"--data_path {data} --whisper_path {audio} --llama_path {text} --feature_cache {shared_features} "
        "--logging_steps 1 --save_steps 1 --save_total_limit 99 --learning_rate 0.01 --warmup_steps 0 --lora_dropout 0 "
        "--lora_rank 4 --disable_tqdm True --use_cpu True"
    ).split()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("alone", "together", "resumed_step"),
    [
        # 15 rows in five batches: each epoch's third step has one batch, which two processes halve.
        (
            "--max_tokens_per_batch 165 --num_epochs 2 --gradient_accumulation_steps 2",
            "--max_tokens_per_batch 165 --num_epochs 2",
            4,
        ),
        (
            "--streaming --shuffle_rows 6 --max_steps 6 --batch_size 4",
            "--streaming --shuffle_rows 6 --max_steps 6 --batch_size 2",
            3,
        ),
    ],
    ids=["budget", "stream"],
)
def test_the_losses_are_those_of_one_process(common, tmp_path, alone, together, resumed_step) -> None:
    expected = start([TRAIN], [*common, *alone.split()], tmp_path / "one")
    found = start(TORCHRUN, [*common, *together.split()], tmp_path / "two")
    assert len(expected) > resumed_step and found == pytest.approx(expected, abs=TOLERANCE)
    shutil.copytree(tmp_path / "two" / f"checkpoint-{resumed_step}", tmp_path / "on" / f"checkpoint-{resumed_step}")
    assert start(TORCHRUN, [*common, *together.split()], tmp_path / "on") == found

"""Runs of the command over the small corpus: in this process, and in forked ones that can be killed or share a run."""

import contextlib
import hashlib
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from audiollm.training.checkpointing import last_complete_checkpoint
from audiollm.training.train import main, parse_arguments, train
from prepared_python import prepared_context
from small_corpus import example_rows, write_rows

STAGES = ("align", "instruct", "distill", "prefer")
PATIENCE_S = 240


def run(options: list[str], **kwargs: Any):
    """The Trainer of a run, after it."""
    return train(*parse_arguments(options), **kwargs)


def refused(options: list[str], capsys: pytest.CaptureFixture[str], early: bool = True) -> str:
    """The message that the command ends with; `early` is before it has loaded, encoded or made anything."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(options)
    printed = capsys.readouterr()
    assert caught.value.code and not (early and "trainable params" in printed.out), "a model was loaded first"
    return f"{caught.value.code} {printed.err}"


def without(options: list[str], *names: str) -> list[str]:
    """Options but those named, given as `--name value` or `--name=value`."""
    kept: list[str] = []
    words = iter(options)
    for word in words:
        if word in [f"--{name}" for name in names]:
            next(words)
        elif not word.startswith(tuple(f"--{name}=" for name in names)):
            kept.append(word)
    return kept


def digest(folder: Path) -> str:
    """The weights that a run ended with."""
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def logged(run: Any, name: str = "loss") -> list[float]:
    """The values that a run, given by its Trainer or folder, logged under a name."""
    if isinstance(run, Path):
        history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    else:
        history = run.state.log_history
    return [entry[name] for entry in history if name in entry]


def differing(first: Any, second: Any) -> set[str]:
    """The names of the tensors of a batch, a state or a model that are not those of another, bit for bit."""
    first, second = (dict(one.named_parameters()) if hasattr(one, "eval") else one for one in (first, second))
    return {name for name, value in first.items() if not torch.equal(value, second[name])}


def resumed(options: list[str], whole: Path, step: int, folder: Path):
    """The run that goes on in a folder of its own from a checkpoint of another."""
    shutil.copytree(whole / f"checkpoint-{step}", folder / f"checkpoint-{step}")
    return run([*options, f"--output_dir={folder}"])


def stage_rows(stage: str, names: list[str]) -> list[dict[str, Any]]:
    """Rows that a stage reads, one per recording."""
    rows = [row for row in example_rows(names) if isinstance(row.get("audio_paths"), str)]
    if stage == "distill":
        return [{**row, "transcripts": row["response"]} for row in rows]
    if stage == "prefer":
        asked = [{name: row[name] for name in ("text", "audio_paths")} for row in rows]
        return [{**one, "chosen": row["response"], "rejected": "no"} for one, row in zip(asked, rows)]
    return rows


def command_options(data_path: str, corpus, bases: tuple[str, str], features: Path, output_dir: Path) -> list[str]:
    """The command's options for a run of the bases over the corpus, four rows a step."""
    return (
        f"--data_path={data_path} --audio_dir={corpus.audio_dir} --whisper_path={bases[0]} --llama_path={bases[1]} "
        f"--feature_cache={features} --output_dir={output_dir} --batch_size=4 --disable_tqdm=True"
    ).split()


def stage_options(stage: str, corpus, bases: tuple[str, str], features: Path, folder: Path, *extra: str) -> list[str]:
    """The command's options for a stage into `folder / stage`: ten rows, so that an epoch is three steps."""
    folder.mkdir(parents=True, exist_ok=True)
    data_path = write_rows(folder / f"{stage}.json", stage_rows(stage, corpus.names))
    options = command_options(data_path, corpus, bases, features, folder / stage)
    return [f"--config={stage}", *options, "--max_steps=3", "--logging_steps=1", *extra]


def _command(target: Callable[[list[str]], None], options: list[str], log: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = ["audiollm train", *options]
    target(options)


def started(options: list[str], log: Path, rank: int = 0, ranks: int = 1, port: int = 0, target=main) -> Any:
    """A process that runs the command, with what it prints in a file; one of several as torchrun would start them."""
    environment = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    if ranks > 1:
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        environment |= dict(zip(names, map(str, (rank, rank, ranks, ranks, "127.0.0.1", port))))
    process = prepared_context().Process(target=_command, args=(target, options, str(log), environment))
    process.start()
    return process


def in_processes(options: list[str], folder: Path, ranks: int = 2, target=main) -> str:
    """Runs the command in several processes that share its work; returns what all printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logs = [folder / f"rank-{rank}.log" for rank in range(ranks)]
    processes = [started(options, log, rank, ranks, port, target) for rank, log in enumerate(logs)]
    for process in processes:
        process.join(PATIENCE_S)
    printed = "".join(log.read_text() for log in logs)
    assert [process.exitcode for process in processes] == [0] * ranks, printed[-8000:]
    return printed


def until_checkpoint(process: Any, output_dir: Path, log: Path, step: int = 1) -> None:
    """Waits until a run has written a whole checkpoint of a step or a later one."""
    deadline, newest = time.monotonic() + PATIENCE_S, None
    while time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError):  # an old one may be deleted while it is looked at
            newest = last_complete_checkpoint(output_dir)
        if newest is not None and int(newest.rpartition("-")[2]) >= step:
            break
        assert process.is_alive(), f"it is not running any more: {log.read_text()}"
        time.sleep(0.002)
    assert process.is_alive(), f"it is not running any more: {log.read_text()}"

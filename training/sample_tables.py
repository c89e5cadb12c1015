"""Samples of an evaluation where people look: the console, Weights & Biases, TensorBoard, trackio."""

import textwrap
from collections.abc import Sequence
from typing import Any

from transformers import Trainer
from transformers.integrations import TensorBoardCallback

#: What trackers show the table under.
TABLE_NAME = "eval/samples"
CONSOLE_WIDTH = 100  # characters


def print_samples(step: int, scores: dict[str, float], samples: Sequence[dict[str, Any]]) -> None:
    """Prints an evaluation's figures, and its samples with the reference above what was heard."""
    figures = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in scores.items())
    print(f"Evaluation at step {step}: {figures}")
    for sample in samples:
        for name, value in (("reference", sample["reference"]), ("heard", sample["hypothesis"])):
            text = textwrap.shorten(value, CONSOLE_WIDTH, placeholder=" …")
            print(f"  {name:>9} | {text}")


def markdown_table(samples: Sequence[dict[str, Any]]) -> str:
    """Samples as a Markdown table, a row each."""
    columns = list(samples[0])
    lines = [columns, ["---"] * len(columns)]
    lines += [[_cell(sample[column]) for column in columns] for sample in samples]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: Any) -> str:
    return "" if value is None else " ".join(str(value).replace("|", "\\|").split())


def track_samples(trainer: Trainer, samples: Sequence[dict[str, Any]]) -> None:
    """
    Sends samples as a table to the trackers of `--report_to` that show one, through their own public interfaces.

    Args:
        trainer: whose evaluation it was; its tracker callbacks have begun their runs.
        samples: one or more rows with the same columns.
    """
    trackers = trainer.args.report_to or []
    columns, step = list(samples[0]), trainer.state.global_step
    data = [[sample[column] for column in columns] for sample in samples]
    if "tensorboard" in trackers:
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
                callback.tb_writer.add_text(TABLE_NAME, markdown_table(samples), step)
    if "wandb" in trackers:
        import wandb

        if wandb.run is not None:
            wandb.log({TABLE_NAME: wandb.Table(columns=columns, data=data), "train/global_step": step})
    if "trackio" in trackers:
        import pandas
        import trackio

        table = trackio.Table(dataframe=pandas.DataFrame(data, columns=columns))
        trackio.log({TABLE_NAME: table, "train/global_step": step})

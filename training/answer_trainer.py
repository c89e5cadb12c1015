"""Base of distillation and preferences: losses on the logits at answer positions, and metrics to log."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from audiollm.processing.conversations import IGNORED_LABEL
from torch import nn

from .arguments import DataArguments
from .trainer import AudioLlmTrainer


@dataclass(frozen=True)
class AnswerLogits:
    """Logits at the positions before each answer token of a batch, rows one after the other."""

    logits: torch.Tensor  # (answer_tokens, vocab_size)
    targets: torch.Tensor  # the answer tokens themselves, the end of the turn included, (answer_tokens,)
    counts: list[int]  # of them in each row


def answer_logits(model: nn.Module, batch: dict[str, Any], **kwargs: Any) -> AnswerLogits:
    """Run a model, or a wrapper of one, on a batch of [`AudioLlmCollator`], and its head on the answer positions alone."""
    labels = batch["labels"]
    next_labels = nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED_LABEL)
    is_answer = next_labels != IGNORED_LABEL
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits = model(**inputs, logits_to_keep=is_answer, use_cache=False, **kwargs).logits
    return AnswerLogits(logits, next_labels[is_answer], is_answer.sum(dim=1).tolist())


@contextmanager
def without_learning(model: nn.Module) -> Iterator[None]:
    """Turn gradients and dropout off, as for a teacher or a reference."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def read_data_and_held_out(arguments: DataArguments, read: Callable[..., Sequence[Any]], *options: Any):
    """Return examples of the one file to train on, and of the held-out one, if there is one."""
    held_out, folder = arguments.eval_data_path, arguments.audio_dir
    examples = read(arguments.data_path[0], folder, *options)
    return examples, None if held_out is None else read(held_out, folder, *options)


class AnswerTrainer(AudioLlmTrainer):
    """An [`AudioLlmTrainer`] whose subclasses compute a loss of their own, with metrics to log beside it."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        #: Sums and counts of each figure since it was last logged, in training and in evaluation.
        self._figures: dict[str, dict[str, torch.Tensor]] = {"train": {}, "eval": {}}

    def record(self, count: int, **sums: torch.Tensor) -> None:
        """Keep sums over so many items for the next log, which shows their means; `__` in a name stands for a slash."""
        figures = self._figures["train" if self.model.training else "eval"]
        for name, total in sums.items():
            name = name.replace("__", "/")
            sum_and_count = torch.stack([total.detach().float(), total.new_tensor(count, dtype=torch.float32)])
            figures[name] = figures[name] + sum_and_count if name in figures else sum_and_count

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as the Trainer does, with the means of what was recorded."""
        names = [name for name in logs if name == "loss" or (name.startswith("eval") and name.endswith("_loss"))]
        if names:
            mode = "train" if names[0] == "loss" else "eval"
            figures, self._figures[mode] = self._figures[mode], {}
            for name, sum_and_count in figures.items():
                total, count = self.accelerator.reduce(sum_and_count, "sum").tolist()
                logs[names[0].removesuffix("loss") + name] = total / count
        super().log(logs, start_time)

    def normalised(self, total: torch.Tensor, count: int, num_items_in_batch: Any) -> torch.Tensor:
        """
        Return a sum over this batch as its share of the mean over all batches of a step.

        `num_items_in_batch` are the items of the whole step, on all devices, as the Trainer counts them. It does not in
        evaluation, where the sum is divided by those of this batch, `count`.
        """
        if num_items_in_batch is None:
            return total / count
        # As in Trainer.compute_loss: gradients are averaged over devices, but the count is that of all of them.
        scale = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return total * scale / num_items_in_batch

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Return the loss alone; logits of all positions are never made."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, _ = self.compute_loss(model, inputs, return_outputs=True)
        return loss.detach(), None, None

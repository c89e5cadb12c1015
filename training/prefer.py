"""
Preferences: direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290) on pairs of answers about audio.

The reference is the adapter as the stage finds it; its log-probabilities of all answers are computed once, before training.
Only LoRA trains: a few hundred opinions cannot spoil what hours of speech have taught the projector.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import datasets
import torch
from accelerate.utils import gather_object
from audiollm.command_line.option_parser import POSITIVE, CheckedOptions, option
from audiollm.corpora.audio_rows import AudioRow, read_audio_rows
from audiollm.corpora.examples import Example
from audiollm.processing import AudioLlmProcessor
from peft.tuners.lora import LoraLayer
from torch import nn
from tqdm.auto import tqdm

from .arguments import DataArguments, set_trainable
from .collator import AudioLlmCollator
from .feature_cache import FeatureCache
from .preparing import Prepared
from .rows import build_dataset
from .trainer import AnswerTrainer, answer_logits, without_learning

ANSWERS = ("chosen", "rejected")


@dataclass
class PreferArguments(CheckedOptions):
    """Options of stage prefer."""

    _argument_group_name = "stage prefer"

    beta: Annotated[float, POSITIVE] = option(
        0.1, "Strength of the pull towards the reference: the higher, the closer the model stays to it."
    )


def read_preference_examples(source: Any, audio_dir: str | os.PathLike[str] | None = None) -> list[AudioRow]:
    """Read rows `{"text", "audio_paths", "chosen", "rejected"}` or a file of them; ExamplesError names all bad ones."""

    def problems(row: dict[str, Any]) -> list[str]:
        is_same = row["chosen"].strip() == row["rejected"].strip()
        return ["'chosen' and 'rejected' are the same: there is nothing to prefer"] if is_same else []

    return read_audio_rows(source, audio_dir, ANSWERS, problems_of=problems)


def build_preference_dataset(
    examples: Sequence[AudioRow], processor: AudioLlmProcessor, cache: FeatureCache | None, progress: bool = True
) -> datasets.Dataset:
    """Return columns `chosen_…` and `rejected_…` as [`build_dataset`] has them, and the `length` of both rows together."""
    parts = []
    for answer in ANSWERS:
        said = [Example(each.text, each.audio_paths, each.fields[answer], each.index) for each in examples]
        rows = build_dataset(said, processor, cache, progress and answer == "chosen")
        parts.append(rows.rename_columns({name: f"{answer}_{name}" for name in rows.column_names}))
    pairs = datasets.concatenate_datasets(parts, axis=1)
    lengths = zip(pairs["chosen_length"], pairs["rejected_length"])
    return pairs.add_column("length", [sum(pair) for pair in lengths])


class PreferenceCollator(AudioLlmCollator):
    """Pads rows of [`build_preference_dataset`] as one batch of twice as many rows."""

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return the batch of [`AudioLlmCollator`]: the chosen answer of every pair, then the rejected one of every pair."""
        names = ("input_ids", "labels", "audio")
        both = [{name: row[f"{answer}_{name}"] for name in names} for answer in ANSWERS for row in rows]
        batch = super().__call__(both)
        if "chosen_reference" in rows[0]:
            batch["reference"] = torch.tensor([row[f"{answer}_reference"] for answer in ANSWERS for row in rows])
        return batch


def answer_log_probabilities(model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    """Return the log-probability of each row's answer, end of turn included, `(rows,)`."""
    said = answer_logits(model, {name: value for name, value in batch.items() if name != "reference"})
    per_token = -nn.functional.cross_entropy(said.logits.float(), said.targets, reduction="none")
    return torch.stack([part.sum() for part in per_token.split(said.counts)])


class PreferTrainer(AnswerTrainer):
    """
    Trains LoRA by DPO; the model as it is at the start is the reference, also of a run that resumes.

    Logs `rewards/chosen`, `rewards/rejected`, `rewards/margins`, `rewards/accuracies`, and the policy's own
    log-probabilities `logps/chosen` and `logps/rejected`.
    """

    def __init__(self, *args, beta: float, **kwargs):
        super().__init__(*args, **kwargs)
        self.beta = beta
        self.train_dataset = self.with_reference(self.train_dataset)
        if self.eval_dataset is not None:
            self.eval_dataset = self.with_reference(self.eval_dataset)

    def with_reference(self, pairs: Any) -> datasets.Dataset:
        """Return rows with the log-probabilities of the model as it is, in `chosen_reference` and `rejected_reference`."""
        size, found = self.args.per_device_eval_batch_size, []  # type: int, list[tuple[int, list[float]]]
        share = range(self.args.process_index, len(pairs), self.args.world_size)
        with without_learning(self.model), self.compute_loss_context_manager():
            for start in tqdm(range(0, len(share), size), desc="Reference", disable=self.args.disable_tqdm):
                chosen = list(share[start : start + size])
                batch: Any = self._prepare_inputs(self.data_collator([pairs[index] for index in chosen]))
                both = answer_log_probabilities(self.model, batch).view(2, -1)
                found += zip(chosen, both.T.tolist())
        values = dict(gather_object(found))
        for place, answer in enumerate(ANSWERS):
            pairs = pairs.add_column(f"{answer}_reference", [values[index][place] for index in range(len(pairs))])
        return pairs

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Count pairs instead of tokens: each counts alike, however its batch was cut."""
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not samples:
            return samples, None
        pairs = torch.tensor(sum(len(batch["labels"]) // 2 for batch in samples), device=device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            pairs = self.accelerator.gather(pairs).sum()
        return samples, pairs

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Return the loss per pair, and record the metrics to log."""
        policy = answer_log_probabilities(model, inputs)
        pairs = len(policy) // 2
        rewards = self.beta * (policy - inputs["reference"].to(policy))
        margins = rewards[:pairs] - rewards[pairs:]
        self.record(
            pairs,
            rewards__chosen=rewards[:pairs].sum(),
            rewards__rejected=rewards[pairs:].sum(),
            rewards__margins=margins.sum(),
            rewards__accuracies=(margins > 0).sum(),
            logps__chosen=policy[:pairs].sum(),
            logps__rejected=policy[pairs:].sum(),
        )
        loss = self.normalised(-nn.functional.logsigmoid(margins).sum(), pairs, num_items_in_batch)
        return (loss, {}) if return_outputs else loss


def open_data(data_arguments: DataArguments, own: PreferArguments) -> list[Any]:
    """Return examples of prompt, audio and two answers, and held-out ones."""
    paths = data_arguments.data_path[0], data_arguments.eval_data_path
    return [path and read_preference_examples(path, data_arguments.audio_dir) for path in paths]


def build(
    prepared: Prepared, examples: Sequence[AudioRow], held_out: Sequence[AudioRow] | None, own: PreferArguments
) -> PreferTrainer:
    """Return the Trainer of this stage, which trains LoRA alone. Raises ValueError where the model has none."""
    layers = [module for module in prepared.model.modules() if isinstance(module, LoraLayer)]
    if not layers:
        raise ValueError("The model has no LoRA, which preferences train. Start from one with lora_rank above 0.")
    set_trainable(prepared.model, "lora")
    for layer in layers:  # dropout would be noise in every comparison with the reference
        for name in layer.lora_dropout:
            layer.lora_dropout[name] = nn.Identity()
    given = prepared.processor, prepared.cache, prepared.progress
    return PreferTrainer(
        **prepared.for_trainer(),
        train_dataset=build_preference_dataset(examples, *given),
        eval_dataset=held_out and build_preference_dataset(held_out, *given),
        data_collator=PreferenceCollator(prepared.processor, prepared.cache),
        beta=own.beta,
    )

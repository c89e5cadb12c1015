"""
Preferences: direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290) on pairs of answers about audio.

The reference is the adapter as it was at the start, held as a second named adapter of the same model, not as a second
model: a few MB. Only LoRA trains here; projector and boundary vectors stay as they are. So the reference hears exactly
what the policy hears and needs no projector of its own, and a few hundred opinions about answers cannot spoil what
hours of speech have taught the projector.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import datasets
import torch
from audiollm.corpora.audio_rows import read_audio_rows
from audiollm.corpora.examples import Example
from audiollm.lora import inject_adapter
from audiollm.processing import AudioLlmProcessor
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import TrainerCallback

from .answer_trainer import AnswerTrainer, answer_logits, without_learning
from .arguments import AudioLlmTrainingArguments
from .dataset import AudioLlmCollator, build_dataset
from .feature_cache import FeatureCache, FeatureStore

#: Name of the adapter that holds the reference while a model is trained.
REFERENCE_ADAPTER = "preference_reference"
#: In every checkpoint: the hash of the reference that it was trained against.
REFERENCE_FILE = "preference_reference.json"
#: Losses on the difference of log-ratios; where each comes from is said in `preference_loss`.
PREFERENCE_LOSSES = ("sigmoid", "hinge", "ipo")


@dataclass
class PreferArguments:
    """How strongly chosen answers are preferred to rejected ones."""

    _argument_group_name = "stage prefer"

    beta: float = field(
        default=0.1,
        metadata={"help": "How dear it is to leave the reference: the higher, the nearer the model stays to it."},
    )
    preference_loss: str = field(default="sigmoid", metadata={"help": "sigmoid (DPO), hinge (SLiC) or ipo."})
    preference_smoothing: float = field(
        default=0.0,
        metadata={"help": "Share of pairs that may be labelled the wrong way round, below 0.5; for sigmoid only."},
    )
    lora_dropout_in_preference: bool = field(
        default=False,
        metadata={"help": "Keep LoRA's dropout, which is noise in every comparison with the reference."},
    )

    def __post_init__(self):
        if not self.beta > 0:
            raise ValueError(f"--beta is {self.beta}; expected a number above 0.")
        if self.preference_loss not in PREFERENCE_LOSSES:
            raise ValueError(f"--preference_loss is {self.preference_loss!r}; expected one of {PREFERENCE_LOSSES}.")
        if not 0 <= self.preference_smoothing < 0.5:
            raise ValueError(
                f"--preference_smoothing is {self.preference_smoothing}; expected a number from 0 to below 0.5."
            )
        if self.preference_smoothing and self.preference_loss != "sigmoid":
            raise ValueError(f"--preference_smoothing is not defined for --preference_loss {self.preference_loss}.")


@dataclass(frozen=True)
class PreferenceExample:
    """A prompt about recordings, with the answer that is wanted and one that is not."""

    text: str  # holds one `<audio>` per recording
    audio_paths: tuple[str, ...]
    chosen: str
    rejected: str
    index: int = 0  # place in the file it came from, counting from 0

    @property
    def recordings(self) -> tuple[str, ...]:
        """What stands for each `<audio>`, in reading order."""
        return self.audio_paths


def read_preference_examples(source: Any, audio_dir: str | os.PathLike[str] | None = None) -> list[PreferenceExample]:
    """
    Reads rows `{"text", "audio_paths", "chosen", "rejected"}`.

    Args:
        source: a JSON list, JSON Lines, or the rows themselves.
        audio_dir: folder that relative audio paths start from; the file's own by default.

    Raises:
        FileNotFoundError: no such file or folder.
        ExamplesError: rows are malformed, or chosen and rejected are the same; all are listed, by index.
    """
    rows = read_audio_rows(source, audio_dir, ("chosen", "rejected"), problems_of=_problems)
    return [
        PreferenceExample(row.text, row.audio_paths, row.fields["chosen"], row.fields["rejected"], row.index)
        for row in rows
    ]


def _problems(row: dict[str, Any]) -> list[str]:
    if row["chosen"].strip() == row["rejected"].strip():
        return ["'chosen' and 'rejected' are the same: there is nothing to prefer"]
    return []


# --------------------------------------------------------------------------------------------------------- the reference


def hold_reference(model) -> str:
    """
    Copies the model's first adapter into a second, frozen one, and freezes all but the first.

    Returns:
        The name of the adapter that trains, which rows with audio use.

    Raises:
        ValueError: the model has no LoRA, or already holds a reference.
    """
    config = model.config
    if REFERENCE_ADAPTER in config.lora_adapters:
        raise ValueError(f"The model already holds {REFERENCE_ADAPTER!r}; call release_reference first.")
    if not config.lora_adapters:
        raise ValueError(
            "The model has no LoRA, which is what preferences train. Start from one with lora_rank above 0."
        )
    policy = next(iter(config.lora_adapters))
    settings = config.adapter_settings(policy)
    inject_adapter(model.get_decoder(), REFERENCE_ADAPTER, settings)
    for layer in _adapted_layers(model, policy):
        for weights in (layer.lora_A, layer.lora_B):
            # A copy of the very weight: injection would have given it the base's precision.
            copied = cast(nn.Linear, weights[policy]).weight.detach().clone()
            weights[REFERENCE_ADAPTER].weight = nn.Parameter(copied, requires_grad=False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(f".lora_A.{policy}." in name or f".lora_B.{policy}." in name)
    config.lora_adapters[REFERENCE_ADAPTER] = dict(settings)
    return policy


def release_reference(model) -> None:
    """Takes the reference out again; what trains by default requires gradients again."""
    model.config.lora_adapters.pop(REFERENCE_ADAPTER)
    for layer in _adapted_layers(model, REFERENCE_ADAPTER):
        layer.set_adapter([name for name in layer.lora_A if name != REFERENCE_ADAPTER])
        layer.delete_adapter(REFERENCE_ADAPTER)
    decoder: Any = model.get_decoder()
    decoder.peft_config.pop(REFERENCE_ADAPTER)
    model.freeze_bases()


def reference_weights(model) -> dict[str, torch.Tensor]:
    """The reference's weights by name."""
    return {name: value.detach() for name, value in model.named_parameters() if f".{REFERENCE_ADAPTER}." in name}


def reference_hash(model) -> str:
    """A hash of every bit of the reference and of what it hears through: its LoRA, projector and boundary vectors."""
    heard = {
        n: p.detach() for n, p in model.named_parameters() if "multi_modal_projector." in n or "audio_boundary" in n
    }
    digest = hashlib.sha256()
    for name, value in sorted({**reference_weights(model), **heard}.items()):
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _adapted_layers(model, adapter: str) -> list[LoraLayer]:
    return [module for module in model.modules() if isinstance(module, LoraLayer) and adapter in module.lora_A]


# -------------------------------------------------------------------------------------------------------------- training


def build_preference_dataset(
    examples: Sequence[PreferenceExample],
    processor: AudioLlmProcessor,
    cache: FeatureCache | None,
    progress: bool = True,
) -> datasets.Dataset:
    """
    Token ids and labels of both answers of each pair, as `chosen_…` and `rejected_…`.

    Beside them are `audio`, and `length` and `audio_frames` of both rows together.

    Raises:
        ExamplesError: a recording cannot be used, or an example cannot be shown as a conversation; all are listed.
    """
    wanted = [Example(e.text, e.audio_paths, e.chosen, e.index) for e in examples]
    unwanted = [Example(e.text, e.audio_paths, e.rejected, e.index) for e in examples]
    chosen = build_dataset(wanted, processor, cache, progress=progress)
    rejected = build_dataset(unwanted, processor, cache, progress=False)
    lengths = [sum(pair) for pair in zip(chosen["length"], rejected["length"])]
    # Every recording is heard twice.
    frames = [2 * count for count in chosen["audio_frames"]]
    shared = chosen.remove_columns(["input_ids", "labels", "length", "audio_frames"])
    parts = [shared, *(_answers_of(name, rows) for name, rows in (("chosen", chosen), ("rejected", rejected)))]
    pairs = datasets.concatenate_datasets(parts, axis=1)
    return pairs.add_column("length", lengths).add_column("audio_frames", frames)


def _answers_of(name: str, rows: datasets.Dataset) -> datasets.Dataset:
    columns = {column: f"{name}_{column}" for column in ("input_ids", "labels")}
    return rows.select_columns(list(columns)).rename_columns(columns)


@dataclass
class PreferenceCollator:
    """Pads rows of [`build_preference_dataset`] as one batch of twice as many rows."""

    processor: AudioLlmProcessor
    cache: FeatureStore | None = None

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """What [`AudioLlmCollator`] gives: the chosen answer of every pair, then the rejected one of every pair."""
        both = [
            {"input_ids": row[f"{answer}_input_ids"], "labels": row[f"{answer}_labels"], "audio": row["audio"]}
            for answer in ("chosen", "rejected")
            for row in rows
        ]
        return AudioLlmCollator(self.processor, self.cache)(both)


def answer_log_probabilities(
    model: nn.Module, batch: dict[str, Any], adapter: str, mean: bool = False
) -> torch.Tensor:
    """
    Log-probability of each row's answer, end of turn included, through one adapter, `(rows,)`.

    Args:
        mean: per token instead of summed.
    """
    said = answer_logits(model, batch, adapter_names=[adapter] * len(batch["labels"]))
    per_token = -nn.functional.cross_entropy(said.logits.float(), said.targets, reduction="none")
    return torch.stack([part.mean() if mean else part.sum() for part in per_token.split(said.counts)])


def preference_loss(difference: torch.Tensor, arguments: PreferArguments) -> torch.Tensor:
    """
    Loss of each pair, `(pairs,)`.

    Args:
        difference: how much further the policy is from the reference in favour of chosen than of rejected: the
            difference of both log-ratios, `(pairs,)`.
        arguments: which loss: sigmoid is DPO, smoothed as in Mitchell 2023 ("cDPO"); hinge is SLiC's (Zhao et al.
            2023, arXiv:2305.10425); ipo is that of Azar et al. 2023 (arXiv:2310.12036), on means per token.
    """
    beta, smoothing = arguments.beta, arguments.preference_smoothing
    if arguments.preference_loss == "hinge":
        return torch.relu(1 - beta * difference)
    if arguments.preference_loss == "ipo":
        return (difference - 1 / (2 * beta)).square()
    logsigmoid = nn.functional.logsigmoid
    return -(1 - smoothing) * logsigmoid(beta * difference) - smoothing * logsigmoid(-beta * difference)


class PreferTrainer(AnswerTrainer):
    """
    Trains the LoRA of a model that holds its reference; see [`hold_reference`].

    Logs `rewards/chosen`, `rewards/rejected`, `rewards/margins`, `rewards/accuracies`, and the policy's own
    log-probabilities `logps/chosen` and `logps/rejected`. Checkpoints are adapters like any other, without the
    reference; a run resumes from one only with the reference that it was trained against.

    Args:
        preference: beta and loss.
        policy: name of the adapter that trains.
        args, kwargs: the Trainer's.
    """

    def __init__(self, *args, preference: PreferArguments, policy: str, **kwargs):
        super().__init__(*args, **kwargs)
        self.preference = preference
        self.policy = policy
        # It does not change, and is in pieces once the model is sharded.
        self.reference_hash = reference_hash(self.model)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The Trainer's, with pairs counted instead of tokens: each counts alike, however its batch was cut."""
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not samples:
            return samples, None
        pairs = torch.tensor(sum(len(batch["labels"]) // 2 for batch in samples), device=device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            pairs = self.accelerator.gather(pairs).sum()
        return samples, pairs

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss per pair, and the figures to log."""
        per_token = self.preference.preference_loss == "ipo"
        policy = answer_log_probabilities(model, inputs, self.policy, per_token)
        with without_learning(model):
            reference = answer_log_probabilities(model, inputs, REFERENCE_ADAPTER, per_token)
        pairs = len(policy) // 2
        log_ratios = policy - reference
        difference = log_ratios[:pairs] - log_ratios[pairs:]
        total = preference_loss(difference, self.preference).sum()
        rewards = self.preference.beta * log_ratios.detach()
        self.record(
            pairs,
            rewards__chosen=rewards[:pairs].sum(),
            rewards__rejected=rewards[pairs:].sum(),
            rewards__margins=self.preference.beta * difference.sum(),
            rewards__accuracies=(difference > 0).sum(),
            logps__chosen=policy[:pairs].sum(),
            logps__rejected=policy[pairs:].sum(),
        )
        loss = self.normalised(total, pairs, num_items_in_batch)
        return (loss, {}) if return_outputs else loss

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """
        The Trainer's.

        Raises:
            ValueError: the checkpoint was trained against another reference.
        """
        self._check_reference(Path(resume_from_checkpoint) / REFERENCE_FILE)
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _check_reference(self, file: Path) -> None:
        recorded = json.loads(file.read_text())["sha256"] if file.is_file() else None
        if recorded != self.reference_hash:
            raise ValueError(
                f"{file.parent} was not trained against the adapter that this run starts from, which is its reference. "
                "Start from the same model as before, or give another output_dir."
            )

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """The Trainer's, without the reference, but for its hash."""
        state_dict = self.model.state_dict() if state_dict is None else state_dict
        state_dict = {name: value for name, value in state_dict.items() if f".{REFERENCE_ADAPTER}." not in name}
        adapters = self.model.config.lora_adapters
        reference = adapters.pop(REFERENCE_ADAPTER)
        try:
            super()._save(output_dir, state_dict)
        finally:
            adapters[REFERENCE_ADAPTER] = reference
        if self.args.should_save:
            file = Path(output_dir or str(self.args.output_dir)) / REFERENCE_FILE
            file.write_text(json.dumps({"sha256": self.reference_hash}) + "\n")

    def _issue_warnings_after_load(self, load_result) -> None:
        missing = [name for name in load_result.missing_keys if f".{REFERENCE_ADAPTER}." not in name]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))


def build_trainer(
    model,
    processor: AudioLlmProcessor,
    examples: Sequence[PreferenceExample],
    cache: FeatureCache | None,
    training_arguments: AudioLlmTrainingArguments,
    prefer_arguments: PreferArguments,
    callbacks: Sequence[TrainerCallback] = (),
    eval_examples: Sequence[PreferenceExample] | None = None,
) -> PreferTrainer:
    """
    The trainer of this stage; the model, as it is now, becomes the reference.

    Args:
        model, processor: a pair that belongs together, the model after supervised training. It is trained in place,
            and holds the reference until [`release_reference`].
        examples, eval_examples: as [`read_preference_examples`] gives them.
        cache: holds, or is given, the encoder's output; None to encode in every batch anew.

    Raises:
        ValueError: the model has no LoRA, or trains what would change the reference as well.
    """
    by_default = set(model.trainable_names())
    more = [name for name, parameter in model.named_parameters() if parameter.requires_grad and name not in by_default]
    if more:
        raise ValueError(
            f"Preferences train LoRA alone, which leaves the reference as it was; {len(more)} weights of the bases, "
            f"such as {more[0]}, are to train as well. Leave them frozen in this stage."
        )
    if training_arguments.projector_learning_rate is not None:
        raise ValueError("--projector_learning_rate does nothing here: the projector stays frozen in this stage.")
    policy = hold_reference(model)
    if not prefer_arguments.lora_dropout_in_preference:
        for layer in _adapted_layers(model, policy):
            layer.lora_dropout[policy] = nn.Identity()
    progress = not training_arguments.disable_tqdm
    train_dataset = build_preference_dataset(examples, processor, cache, progress)
    eval_dataset = None
    if eval_examples is not None:
        eval_dataset = build_preference_dataset(eval_examples, processor, cache, progress)
    return PreferTrainer(
        model=model,
        args=training_arguments,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        data_collator=PreferenceCollator(processor, None if cache is None else cache.store),
        processing_class=processor,
        callbacks=list(callbacks),
        preference=prefer_arguments,
        policy=policy,
    )

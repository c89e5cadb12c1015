"""The Hugging Face Trainer for an adapter on frozen bases."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, save_fsdp_optimizer
from audiollm.checkpoints import is_adapter_key
from audiollm.command_line.interruption import check_interrupted
from audiollm.corpora.examples import ExamplesError
from audiollm.processing.conversations import IGNORED_LABEL
from audiollm.publishing.card import CardError, write_card
from audiollm.publishing.push import upload_checkpoint
from huggingface_hub import HfApi
from safetensors.torch import load_file
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer import SCHEDULER_NAME
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import EvalLoopOutput, seed_worker
from transformers.utils import SAFE_WEIGHTS_NAME

from .arguments import AudioLlmTrainingArguments, asks_for_fsdp, check_distributed, part_of
from .batching import BatchBudget, BudgetBatchSampler
from .checkpointing import StopOnSignal, StoppedBySignalError, step_of
from .rows import StreamedExamples, collate_stream

#: Prefix that the Trainer puts before the names of an evaluation's figures, unless it is one of several sets.
EVALUATION_PREFIX = "eval"
AUDIO_TOWER = "model.audio_tower"


def write_card_if_mine(folder: str | Path, repo: str | None = None) -> None:
    """Write or renew a checkpoint's card; one that somebody wrote without our sections is left."""
    try:
        card = write_card(folder, repo=repo)
    except CardError as error:
        print(f"No model card was written: {error}")
        return
    for remark in card.remarks:
        print(f"Model card: {remark}")


def sampling_seed(arguments: TrainingArguments) -> int:
    """Return the seed of the order of rows."""
    return arguments.seed if arguments.data_seed is None else arguments.data_seed


class EpochLengthSampler(LengthGroupedSampler):
    """
    Like lengths together, in an order that depends on seed and epoch alone.

    transformers' own draws from the global generator, which a run that resumes within an epoch has in another state.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int, current_epoch: Callable[[], int]):
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.seed, self.current_epoch = seed, current_epoch

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(self.seed + self.current_epoch())
        return super().__iter__()


class AudioLlmTrainer(Trainer):
    """
    Trains projector and LoRA with their own learning rates, and resumes exactly, from what was trained alone.

    Checkpoints hold the adapter only (a few MB), besides optimizer, schedule and random states; SIGTERM leaves one after
    the step. Batches are of so many rows, within a budget, or of a stream. FSDP2 shards the language model's layers.
    """

    args: AudioLlmTrainingArguments
    model: PreTrainedModel

    def __init__(self, *args: Any, budget: BatchBudget | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.budget = budget
        #: Vary and join the rows of a training batch, in its own step: where batches are made ahead, a resumed run does
        #: not yet have the random state.
        self.augmentation: Callable[[dict], dict] | None = None
        self.pack: Callable[[dict], dict] | None = None
        #: Gives each evaluation metrics besides the loss.
        self.more_metrics: Callable[[Trainer], dict[str, float]] | None = None
        self.stop_on_signal = StopOnSignal()
        self.add_callback(self.stop_on_signal)
        check_distributed(self.args)
        if self.is_fsdp_enabled:
            plugin = self.accelerator.state.fsdp_plugin
            if plugin.transformer_cls_names_to_wrap is None:  # the decoder layers, one by one
                layers = getattr(self.model.get_submodule("model.language_model"), "_no_split_modules", None)
                plugin.transformer_cls_names_to_wrap = sorted(layers or [])
            # Run by some processes in a step and by others not, it would wait for them if it were sharded.
            tower_trains = any(weight.requires_grad for weight in self.model.get_submodule(AUDIO_TOWER).parameters())
            if plugin.ignored_modules is None and not tower_trains:
                plugin.ignored_modules = AUDIO_TOWER.replace(".", r"\.")

    def get_train_dataloader(self) -> DataLoader:
        """The Trainer's, or one of a stream, or one whose batches keep within the budget."""
        stream = self.train_dataset if isinstance(self.train_dataset, StreamedExamples) else None
        if stream is None and self.budget is None:
            return super().get_train_dataloader()
        workers, collate = self.args.dataloader_num_workers, self.data_collator  # type: int, Any
        own: dict[str, Any] = {}
        if stream is None:
            own["batch_sampler"] = self.train_batch_sampler()
        else:
            collate, own["batch_size"] = partial(collate_stream, collate), self._train_batch_size
            if workers and stream.encoder.cache is not None:
                own["multiprocessing_context"] = "fork"  # to share the model's memory
        loader: DataLoader = DataLoader(
            self.train_dataset,  # type: ignore[arg-type]
            **own,
            collate_fn=collate,
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            worker_init_fn=partial(seed_worker, num_workers=workers, rank=self.args.process_index),
        )
        if stream is None:
            return self.accelerator.prepare(loader)
        # By itself, accelerate would read all rows in the first process, and cut the audio to as many windows as rows.
        alone = {"num_processes": 1, "process_index": 0, "put_on_device": True, "dispatch_batches": False}
        return prepare_data_loader(loader, self.accelerator.device, **alone)

    def train_batch_sampler(self) -> BudgetBatchSampler:
        """Return the batches of the training set within the budget."""
        lengths, budget = cast(Any, self.train_dataset)["length"][:], self.budget or BatchBudget()
        return BudgetBatchSampler(
            lengths, budget, sampling_seed(self.args), self.accelerator.num_processes, self._current_epoch
        )

    def _current_epoch(self) -> int:
        return int(self.state.epoch or 0)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any):
        """The Trainer's. A stream passes over what the checkpoint has learned from; a signal raises StoppedBySignalError."""
        if isinstance(self.train_dataset, StreamedExamples) and isinstance(resume_from_checkpoint, str):
            batches = step_of(resume_from_checkpoint) * self.args.gradient_accumulation_steps
            self.train_dataset.resume(Path(resume_from_checkpoint), batches, self._train_batch_size)
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        except StoppedBySignalError:
            self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
            raise
        finally:
            self.stop_on_signal.restore()

    def _get_train_sampler(self, train_dataset=None) -> torch.utils.data.Sampler | None:
        sampler = super()._get_train_sampler(train_dataset)
        if not isinstance(sampler, LengthGroupedSampler):
            return sampler
        size = sampler.batch_size * self.args.world_size  # the order is that of one process with as large a batch
        return EpochLengthSampler(size, sampler.lengths, sampling_seed(self.args), self._current_epoch)

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """The Trainer's; none for a run that had ended when it was cut off or started again: it would make one more."""
        if self.state.global_step >= self.state.max_steps or self.control.should_training_stop:
            return [], None
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        """The Trainer's, on the varied batch."""
        check_interrupted()
        if "error" in inputs:  # of a worker that reads a stream
            raise ExamplesError(*inputs["error"])
        if "bad_rows" in inputs:
            cast(StreamedExamples, self.train_dataset).bad.update(inputs.pop("bad_rows"))
        return super().training_step(model, self.vary(inputs), num_items_in_batch)

    def vary(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return a training batch, augmented and packed."""
        batch = batch if self.augmentation is None else self.augmentation(batch)
        return batch if self.pack is None else self.pack(batch)

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix=EVALUATION_PREFIX
    ) -> EvalLoopOutput:
        """The Trainer's, with `more_metrics` beside the loss."""
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        if self.more_metrics is not None and metric_key_prefix == EVALUATION_PREFIX:
            figures = {f"{metric_key_prefix}_{name}": value for name, value in self.more_metrics(self).items()}
            output = output._replace(metrics={**(output.metrics or {}), **figures})
        return output

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """The Trainer's; where only the loss is asked for, the head does not run on all positions."""
        inputs = {**inputs, "logits_to_keep": 1} if prediction_loss_only else inputs
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

    def get_decay_parameter_names(self, model) -> list[str]:
        """The Trainer's, without the gains of the projector's norms, which its list of names misses."""
        return [name for name in super().get_decay_parameter_names(model) if model.get_parameter(name).dim() > 1]

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """The Trainer's optimizer, with projector and boundary vectors in groups of their own rate."""
        optimizer = super().create_optimizer(model)
        rate = getattr(self.args, "projector_learning_rate", None)  # which plain TrainingArguments do not have
        if rate is None or any("is_projector" in group for group in optimizer.param_groups):
            return optimizer
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        groups, optimizer.param_groups = optimizer.param_groups, []
        for group in groups:
            for is_projector in (True, False):
                chosen = [p for p in group["params"] if (part_of(names[id(p)]) == "projector") == is_projector]
                if chosen:
                    settings = {**group, "params": chosen, "is_projector": is_projector}
                    optimizer.add_param_group({**settings, "lr": rate} if is_projector else settings)
        return optimizer

    # ------------------------------------------------------------------------------------------- several processes

    def create_accelerator_and_postprocess(self) -> None:
        """The Trainer's; sharding that is asked for happens on CPUs too, where accelerate by itself leaves it out."""
        super().create_accelerator_and_postprocess()
        state = self.accelerator.state
        if asks_for_fsdp(self.args) and state.distributed_type == DistributedType.MULTI_CPU:
            state.fsdp_plugin = FullyShardedDataParallelPlugin(**(self.args.fsdp_plugin_args or {}))
            state.distributed_type = DistributedType.FSDP
            self.is_fsdp_enabled = True

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The Trainer's; of a sharded model, what was trained is gathered first. A checkpoint keeps a stream's bad rows."""
        if self.is_fsdp_enabled:
            self._save(output_dir, state_dict=trained_state_dict(self.model))
            self.accelerator.wait_for_everyone()
            if self.args.push_to_hub and not _internal_call:
                self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)
        else:
            super().save_model(output_dir, _internal_call)
        if _internal_call and output_dir is not None and isinstance(self.train_dataset, StreamedExamples):
            self.train_dataset.save_bad_rows(Path(output_dir))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """The Trainer's, without the frozen bases, which it would write in each checkpoint of a sharded model."""
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        plugin = self.accelerator.state.fsdp_plugin
        save_fsdp_optimizer(plugin, self.accelerator, self.optimizer, self.model, output_dir)
        if self.args.should_save:
            assert self.lr_scheduler is not None  # made with the optimizer
            torch.save(self.lr_scheduler.state_dict(), os.path.join(output_dir, SCHEDULER_NAME))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        """The Trainer's; a sharded model gets back what [`save_model`] gathered."""
        if self.is_fsdp_enabled:
            load_trained(model or self.model, resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        """The Trainer's, for a sharded model as well."""
        if self.is_fsdp_enabled:
            load_trained(self.model, str(self.state.best_model_checkpoint))
        else:
            super()._load_best_model()

    # ----------------------------------------------------------------------------------------------------- the Hub

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The project's own card; marked sections are renewed, and what people wrote stays."""
        if self.is_world_process_zero():
            write_card_if_mine(str(self.args.output_dir), self.hub_model_id)

    def push_to_hub(self, commit_message=None, blocking=True, token=None, revision=None, private=None, **kwargs: Any):
        """Save and upload checkpoint, code, processor and card; the Trainer's own would upload the whole folder."""
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = self.args.hub_token if token is None else token
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**kwargs)
        message, revision = commit_message or "End of training", revision or self.args.hub_revision
        folder, repo = str(self.args.output_dir), str(self.hub_model_id)
        return upload_checkpoint(
            HfApi(token=token), folder, repo, message, revision=revision, run_as_future=not blocking
        )


# ---- losses on the logits at answer positions ------------------------------------------------------------------------


class AnswerLogits(NamedTuple):
    """Logits at the positions before each answer token of a batch, rows one after the other."""

    logits: torch.Tensor  # (answer_tokens, vocab_size)
    targets: torch.Tensor  # the answer tokens themselves, the end of the turn included, (answer_tokens,)
    counts: list[int]  # of them in each row


def answer_logits(model: nn.Module, batch: dict[str, Any], **kwargs: Any) -> AnswerLogits:
    """Run a model, or a wrapper of one, on a batch of [`AudioLlmCollator`], and its head on the answer positions alone."""
    labels = batch["labels"]
    next_labels = nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED_LABEL)
    is_answer = next_labels != IGNORED_LABEL
    inputs = {**batch, **kwargs, "labels": None, "logits_to_keep": is_answer}
    logits = model(**inputs, use_cache=False).logits
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
        """Return a sum over this batch's `count` items, divided by those of the whole step where the Trainer counts them."""
        if num_items_in_batch is None:
            return total / count
        # As in Trainer.compute_loss: gradients are averaged over devices, but the count is that of all of them.
        scale = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return total * scale / num_items_in_batch


# ---- sharded models --------------------------------------------------------------------------------------------------


def trained_state_dict(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return trained weights and the adapter, gathered on the CPU; all processes of a sharded model must call this."""
    saved = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad or is_adapter_key(n)}
    return {n: (p.full_tensor() if isinstance(p, DTensor) else p).cpu() for n, p in saved.items()}


def load_trained(model: torch.nn.Module, folder: str) -> None:
    """Load the trained weights of a checkpoint folder into a sharded model."""
    state: dict[str, Any] = load_file(Path(folder) / SAFE_WEIGHTS_NAME)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # an evaluation leaves the outermost weights whole, and loading would not reach the shards
    set_model_state_dict(model, state, options=StateDictOptions(full_state_dict=True, strict=False))

"""The Hugging Face Trainer with what an adapter on frozen bases needs, and nothing copied from it."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from audiollm.interruption import check_interrupted
from transformers import PreTrainedModel, Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import EvalLoopOutput

from .arguments import AudioLlmTrainingArguments
from .batching import BudgetedTrainer
from .checkpointing import StopOnSigterm, StoppedBySignalError
from .evaluating import MoreMetrics, random_states_kept
from .hub import HubTrainer
from .sharding import ShardedTrainer
from .streaming import StreamedTrainer

#: What the Trainer puts before the names of an evaluation's figures, unless it is one of several sets.
EVALUATION_PREFIX = "eval"
PROJECTOR_KEYS = ("multi_modal_projector.", "audio_boundary_embeds")


class EpochLengthSampler(LengthGroupedSampler):
    """
    Like lengths together, in an order that depends on seed and epoch alone.

    transformers' own draws from the global generator, which a run that resumes within an epoch has in another state:
    it would see some examples of the epoch twice and others not at all.

    Args:
        batch_size, lengths: as of `LengthGroupedSampler`.
        seed: of the run.
        current_epoch: tells which epoch begins.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int, current_epoch: Callable[[], int]):
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.seed = seed
        self.current_epoch = current_epoch

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(self.seed + self.current_epoch())
        return super().__iter__()


class ResumableTrainer(Trainer):
    """
    The Trainer, with everything random in it the same in a run that was cut off and resumed.

    SIGTERM ends it at the end of a step, behind a checkpoint.

    Args:
        augmentation: varies each training batch anew, at its own step: batches are made ahead of theirs, where a run
            that resumes does not yet have the random state of the one that was cut off. Evaluation sees the
            recordings as they are.
        more_metrics: gives each evaluation figures besides the loss, such as [`ListeningEvaluation`].
        args, kwargs: the Trainer's.
    """

    def __init__(
        self,
        *args,
        augmentation: Callable[[dict], dict] | None = None,
        more_metrics: MoreMetrics | None = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.augmentation = augmentation
        self.more_metrics = more_metrics
        self.stop_on_sigterm = StopOnSigterm()
        self.add_callback(self.stop_on_sigterm)

    def train(self, *args, **kwargs):
        """
        The Trainer's.

        Raises:
            StoppedBySignalError: SIGTERM came; a checkpoint was written.
        """
        try:
            return super().train(*args, **kwargs)
        except StoppedBySignalError:
            self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
            raise
        finally:
            self.stop_on_sigterm.restore()

    def _get_train_sampler(self, train_dataset=None) -> torch.utils.data.Sampler | None:
        sampler = super()._get_train_sampler(train_dataset)
        if not isinstance(sampler, LengthGroupedSampler):
            return sampler
        return EpochLengthSampler(
            sampler.batch_size * self.args.world_size,  # the order is that of one process with as large a batch
            lengths=sampler.lengths,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
            current_epoch=lambda: int(self.state.epoch or 0),
        )

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """The Trainer's; none for a run that had ended when it was cut off or started again: it would make one more."""
        if self.state.global_step >= self.state.max_steps or self.control.should_training_stop:
            return [], None
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        """The Trainer's, on the varied batch."""
        check_interrupted()
        return super().training_step(model, self.vary(inputs), num_items_in_batch)

    def vary(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A training batch as the augmentation leaves it."""
        return batch if self.augmentation is None else self.augmentation(batch)

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """The Trainer's; what is trained after it is what would have been trained without it."""
        with random_states_kept():
            return super().evaluate(*args, **kwargs)

    def evaluation_loop(
        self,
        dataloader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = EVALUATION_PREFIX,
    ) -> EvalLoopOutput:
        """The Trainer's, with `more_metrics` beside the loss."""
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        if self.more_metrics is not None and metric_key_prefix == EVALUATION_PREFIX:
            figures = {f"{metric_key_prefix}_{name}": value for name, value in self.more_metrics(self).items()}
            output = output._replace(metrics={**(output.metrics or {}), **figures})
        return output


class AudioLlmTrainer(HubTrainer, StreamedTrainer, BudgetedTrainer, ShardedTrainer, ResumableTrainer):
    """
    Trains projector and LoRA with their own learning rates, and resumes from what was trained alone.

    Checkpoints hold the adapter only (a few MB), besides optimizer, schedule and random states.
    """

    args: AudioLlmTrainingArguments
    model: PreTrainedModel

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
        rate = self.args.projector_learning_rate
        if rate is None or any("is_projector" in group for group in optimizer.param_groups):
            return optimizer
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        groups, optimizer.param_groups = optimizer.param_groups, []
        for group in groups:
            for is_projector in (True, False):
                chosen = [p for p in group["params"] if any(k in names[id(p)] for k in PROJECTOR_KEYS) == is_projector]
                if chosen:
                    settings = {**group, "params": chosen, "is_projector": is_projector}
                    optimizer.add_param_group({**settings, "lr": rate} if is_projector else settings)
        return optimizer

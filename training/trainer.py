"""The Hugging Face Trainer with what an adapter on frozen bases needs, and nothing copied from it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from audiollm.checkpoints import is_adapter_key
from transformers import PreTrainedModel, Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .arguments import AudioLlmTrainingArguments

#: Written last by the Trainer, so that a checkpoint that has it is complete.
TRAINER_STATE_FILE = "trainer_state.json"
#: One for each rank, written beside optimizer and schedule.
RANDOM_STATE_FILES = "rng_state*.pth"
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

    Args:
        augmentation: varies each training batch anew, at its own step: batches are made ahead of theirs, where a run
            that resumes does not yet have the random state of the one that was cut off. Evaluation sees the
            recordings as they are.
        args, kwargs: the Trainer's.
    """

    def __init__(self, *args, augmentation: Callable[[dict], dict] | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.augmentation = augmentation

    def _get_train_sampler(self, train_dataset=None) -> torch.utils.data.Sampler | None:
        sampler = super()._get_train_sampler(train_dataset)
        if not isinstance(sampler, LengthGroupedSampler):
            return sampler
        return EpochLengthSampler(
            sampler.batch_size,
            lengths=sampler.lengths,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
            current_epoch=lambda: int(self.state.epoch or 0),
        )

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """The Trainer's; none for a run that had made all its steps when it was cut off, which would make one more."""
        if self.state.global_step >= self.state.max_steps:
            return [], None
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        """The Trainer's, on the batch as the augmentation leaves it."""
        if self.augmentation is not None:
            inputs = self.augmentation(inputs)
        return super().training_step(model, inputs, num_items_in_batch)


class AudioLlmTrainer(ResumableTrainer):
    """
    Trains projector and LoRA with their own learning rates, and resumes from what was trained alone.

    Checkpoints hold the adapter only (a few MB), besides optimizer, schedule and random states.
    """

    args: AudioLlmTrainingArguments
    model: PreTrainedModel

    def _issue_warnings_after_load(self, load_result) -> None:
        """The Trainer's, for what should be in a checkpoint: the frozen bases should not."""
        missing = [name for name in load_result.missing_keys if is_adapter_key(name) or self._trains(name)]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))

    def _trains(self, name: str) -> bool:
        try:
            return self.model.get_parameter(name).requires_grad
        except AttributeError:
            return False

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


def last_complete_checkpoint(output_dir: str | Path) -> str | None:
    """
    The newest checkpoint of a run that was written to its end, or None.

    A run killed while it wrote one leaves a folder without a readable `trainer_state.json`; that one is passed over,
    as are those of `--save_only_model`, from which no run can go on.
    """
    checkpoints = []
    for folder in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        try:
            step = json.loads((folder / TRAINER_STATE_FILE).read_text())["global_step"]
        except (OSError, ValueError, KeyError, TypeError):  # missing, cut off, or not what a Trainer writes
            continue
        if any(folder.glob(RANDOM_STATE_FILES)):
            checkpoints.append((step, str(folder)))
    return max(checkpoints)[1] if checkpoints else None

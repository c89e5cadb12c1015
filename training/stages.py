"""Readers of rows and builders of Trainers, by stage."""

from collections.abc import Callable, Sequence
from typing import Any

from . import distill, prefer
from .arguments import DataArguments
from .distill import DistillArguments
from .instruct import build_instruct, read_instruct
from .prefer import PreferArguments
from .preparing import Prepared
from .read import build_read, read_read


def read_distill(data_arguments: DataArguments, own_arguments: DistillArguments | None):
    """Return examples of prompt, audio and transcript, and held-out ones."""
    own = own_arguments or DistillArguments()
    return read_both(data_arguments, distill.read_distill_examples, own.response_is_transcript)


def read_prefer(data_arguments: DataArguments, own_arguments: PreferArguments | None):
    """Return examples of prompt, audio, and two answers, and held-out ones."""
    return read_both(data_arguments, prefer.read_preference_examples)


def read_both(data_arguments: DataArguments, read: Callable[..., Sequence[Any]], *options: Any):
    """Return examples of the one file to train on, and of the held-out one, if there is one."""
    held_out = data_arguments.eval_data_path
    paths = [data_arguments.data_path[0], *([] if held_out is None else [held_out])]
    examples = [read(path, data_arguments.audio_dir, *options) for path in paths]
    return examples[0], examples[1] if len(examples) > 1 else None


def build_with(build_trainer: Callable[..., Any], arguments_type: type) -> Callable[..., Any]:
    """Return the builder of a stage whose examples are rows of a file."""

    def build(prepared: Prepared, examples, held_out, training_arguments, own_arguments, **common):
        return build_trainer(
            prepared.model,
            prepared.processor,
            examples,
            prepared.cache,
            training_arguments,
            own_arguments or arguments_type(),
            eval_examples=held_out,
            **common,
        )

    return build


#: How each stage reads its rows and builds its Trainer.
LANGUAGE_MODEL_STAGES: dict[str, tuple[Any, Any]] = {
    "instruct": (read_instruct, build_instruct),
    "read": (read_read, build_read),
    "distill": (read_distill, build_with(distill.build_trainer, DistillArguments)),
    "prefer": (read_prefer, build_with(prefer.build_trainer, PreferArguments)),
}

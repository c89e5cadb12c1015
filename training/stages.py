"""How each stage that runs the language model reads its rows and builds its Trainer."""

from collections.abc import Callable, Sequence
from typing import Any

from . import distill, prefer
from .answer_arguments import DistillArguments, PreferArguments
from .arguments import DataArguments
from .dataset import AudioLlmCollator
from .encoding import ExampleEncoder
from .instruct_data import InstructData, open_held_out_data, open_training_data
from .preparing import Prepared
from .read import build_read, read_read
from .trainer import AudioLlmTrainer


def read_instruct(data_arguments: DataArguments, own_arguments: None) -> tuple[InstructData, InstructData | None]:
    """Examples of prompt, audio and response, and held-out ones."""
    return open_training_data(data_arguments), open_held_out_data(data_arguments)


def build_instruct(prepared: Prepared, examples, held_out, training_arguments, own_arguments, **common):
    """The Trainer of projector and LoRA, by cross-entropy on the responses."""
    processor, cache = prepared.processor, prepared.cache
    budget = training_arguments.batch_budget(packed=training_arguments.packing)
    seed = training_arguments.seed if training_arguments.data_seed is None else training_arguments.data_seed
    progress = not training_arguments.disable_tqdm
    processes = training_arguments.process_index, training_arguments.world_size
    return AudioLlmTrainer(
        model=prepared.model,
        args=training_arguments,
        train_dataset=examples.dataset(ExampleEncoder(processor, cache, budget), seed, progress, *processes),
        eval_dataset=None if held_out is None else held_out.dataset(ExampleEncoder(processor, cache), seed, progress),
        data_collator=AudioLlmCollator(processor, cache),
        processing_class=processor,
        budget=budget,
        **common,
    )


def read_distill(data_arguments: DataArguments, own_arguments: DistillArguments | None):
    """Examples of prompt, audio and transcript, and held-out ones."""
    own = own_arguments or DistillArguments()
    return read_both(data_arguments, distill.read_distill_examples, own.response_is_transcript)


def read_prefer(data_arguments: DataArguments, own_arguments: PreferArguments | None):
    """Examples of prompt, audio, and two answers, and held-out ones."""
    return read_both(data_arguments, prefer.read_preference_examples)


def read_both(data_arguments: DataArguments, read: Callable[..., Sequence[Any]], *options: Any):
    """Examples of the one file to train on, and those of the held-out one, if there is one."""
    held_out = data_arguments.eval_data_path
    paths = [data_arguments.data_path[0], *([] if held_out is None else [held_out])]
    examples = [read(path, data_arguments.audio_dir, *options) for path in paths]
    return examples[0], examples[1] if len(examples) > 1 else None


def build_with(build_trainer: Callable[..., Any], arguments_type: type) -> Callable[..., Any]:
    """What builds the Trainer of a stage whose examples are rows of a file, with its own options or their defaults."""

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

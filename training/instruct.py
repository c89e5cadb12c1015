"""
Stage *instruct*: projector and LoRA learn to answer questions about recordings, by cross-entropy on the responses.

Data are one or several sources, read whole or as they come.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from audiollm.corpora.sources import StreamedRows, parse_source, read_sources, settle_problems

from .arguments import DataArguments
from .batching import BatchBudget
from .collator import AudioLlmCollator
from .preparing import Prepared
from .rows import ExampleEncoder, StreamedExamples, build_mixture
from .trainer import AudioLlmTrainer, sampling_seed


@dataclass
class InstructData:
    """Opened sources, all [`Examples`] or all [`StreamedRows`], and how to mix them."""

    sources: Sequence[Any]
    weights: Sequence[float] | None = None  # the share of each; None for every example once
    skip_bad: bool = False

    def __len__(self) -> int:
        return sum(map(len, self.sources))

    def dataset(self, prepared: Prepared, budget: BatchBudget | None = None) -> Any:
        """Return the rows, mixed by the seed; of a stream, those of this process. Raises ExamplesError for bad ones."""
        arguments, encoder = prepared.arguments, ExampleEncoder(prepared.processor, prepared.cache, budget)
        mixed = self.sources, encoder, self.weights, sampling_seed(arguments), self.skip_bad
        if isinstance(self.sources[0], StreamedRows):
            return StreamedExamples(*mixed, arguments.process_index, arguments.world_size)
        return build_mixture(*mixed, prepared.progress)


def open_training_data(arguments: DataArguments) -> InstructData:
    """Open --data_path. Raises ExamplesError, which lists all bad examples that are not to be left out nor streamed."""
    if not arguments.streaming:
        return _open_whole(arguments.data_path, arguments, arguments.data_weights)
    print("Examples are streamed: bad ones cannot be found ahead, and are reported when they are met.")
    sources = map(parse_source, arguments.data_path)
    streams = [StreamedRows(source, arguments.audio_dir, arguments.shuffle_rows) for source in sources]
    return InstructData(streams, arguments.data_weights, arguments.on_bad_example == "skip")


def open_held_out_data(arguments: DataArguments) -> InstructData | None:
    """Open --eval_data_path as [`open_training_data`]; None without it."""
    return None if arguments.eval_data_path is None else _open_whole([arguments.eval_data_path], arguments)


def _open_whole(
    paths: Sequence[str], arguments: DataArguments, weights: Sequence[float] | None = None
) -> InstructData:
    sources, skip_bad = read_sources(paths, arguments.audio_dir), arguments.on_bad_example == "skip"
    if not skip_bad:  # else they are listed with those whose recordings cannot be used
        settle_problems([(source.source.name, source.problems) for source in sources], skip=False)
    return InstructData(sources, weights, skip_bad)


def open_data(data_arguments: DataArguments, own: None) -> tuple[InstructData, InstructData | None]:
    """Return examples of prompt, audio and response, and held-out ones."""
    return open_training_data(data_arguments), open_held_out_data(data_arguments)


def build(prepared: Prepared, examples: InstructData, held_out: InstructData | None, own: None) -> AudioLlmTrainer:
    """Return the Trainer of projector and LoRA, by cross-entropy on the responses."""
    budget = prepared.arguments.batch_budget(packed=prepared.arguments.packing)
    return AudioLlmTrainer(
        **prepared.for_trainer(),
        train_dataset=examples.dataset(prepared, budget),
        eval_dataset=held_out and held_out.dataset(prepared),
        data_collator=AudioLlmCollator(prepared.processor, prepared.cache),
        budget=budget,
    )

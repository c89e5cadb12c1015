"""
Stage *instruct*: projector and LoRA learn to answer questions about recordings, by cross-entropy on the responses.

Data are one or several sources.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from audiollm.corpora.sources import Examples, read_sources, settle_problems

from .arguments import DataArguments
from .dataset import AudioLlmCollator
from .encoding import ExampleEncoder, build_mixture
from .preparing import Prepared
from .trainer import AudioLlmTrainer, sampling_seed


@dataclass
class InstructData:
    """
    Opened sources, and how to mix them.

    Attributes:
        weights: the share of each; None for every example once.
        skip_bad: leave out bad examples instead of refusing.
    """

    sources: Sequence[Examples]
    weights: Sequence[float] | None = None
    skip_bad: bool = False

    def __len__(self) -> int:
        return sum(map(len, self.sources))

    def dataset(self, encoder: ExampleEncoder, seed: int, progress: bool = True) -> Any:
        """
        Args:
            encoder: makes the rows.
            seed: of draws among the sources.
            progress: shows bars.

        Raises:
            ExamplesError: there are bad examples and they are not to be left out, or there are no others.
        """
        return build_mixture(self.sources, encoder, self.weights, seed, self.skip_bad, progress)


def open_training_data(arguments: DataArguments) -> InstructData:
    """
    Open --data_path, and check all examples.

    Raises:
        ExamplesError: a source cannot be read, or has bad examples and they are not to be left out; all are listed.
        FileNotFoundError: a source is not there.
        ValueError: a source is of a kind that cannot be read so.
    """
    skip_bad = arguments.on_bad_example == "skip"
    return InstructData(_open_all(arguments.data_path, arguments, skip_bad), arguments.data_weights, skip_bad)


def open_held_out_data(arguments: DataArguments) -> InstructData | None:
    """Open and check --eval_data_path; None without it. Raises as [`open_training_data`]."""
    if arguments.eval_data_path is None:
        return None
    skip_bad = arguments.on_bad_example == "skip"
    return InstructData(_open_all([arguments.eval_data_path], arguments, skip_bad), None, skip_bad)


def _open_all(paths: Sequence[str], arguments: DataArguments, skip_bad: bool) -> list[Examples]:
    sources = read_sources(paths, arguments.audio_dir)
    if not skip_bad:  # else they are listed with those whose recordings cannot be used
        settle_problems([(source.source.name, source.problems) for source in sources], skip=False)
    return sources


def read_instruct(data_arguments: DataArguments, own_arguments: None) -> tuple[InstructData, InstructData | None]:
    """Return examples of prompt, audio and response, and held-out ones."""
    return open_training_data(data_arguments), open_held_out_data(data_arguments)


def build_instruct(prepared: Prepared, examples, held_out, training_arguments, own_arguments, **common):
    """Return the Trainer of projector and LoRA, by cross-entropy on the responses."""
    processor, cache = prepared.processor, prepared.cache
    budget = training_arguments.batch_budget(packed=training_arguments.packing)
    seed = sampling_seed(training_arguments)
    progress = not training_arguments.disable_tqdm
    return AudioLlmTrainer(
        model=prepared.model,
        args=training_arguments,
        train_dataset=examples.dataset(ExampleEncoder(processor, cache, budget), seed, progress),
        eval_dataset=None if held_out is None else held_out.dataset(ExampleEncoder(processor, cache), seed, progress),
        data_collator=AudioLlmCollator(processor, cache),
        processing_class=processor,
        budget=budget,
        **common,
    )

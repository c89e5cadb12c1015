"""
Examples → token ids and labels, with the audio left on disk.

Everything that can be wrong with an example is found before the first recording is encoded: recordings that the cache
does not have yet are decoded once to see that they can be, and to know how many audio tokens they take.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
from audiollm.corpora.sources import Examples, settle_problems
from audiollm.processing import AudioLlmProcessor
from audiollm.processing.audio import AudioError, read_bytes
from audiollm.processing.conversations import AUDIO_PLACEHOLDER, ConversationError
from tqdm.auto import tqdm

from .batching import BatchBudget
from .feature_cache import FeatureCache

#: Examples whose recordings are handed to the cache at once; those that lie within a table are in memory for as long.
EXAMPLES_PER_CHUNK = 2048
URL_MARK = "://"
#: What a bad example or recording raises.
EXAMPLE_ERRORS = (AudioError, ConversationError, OSError, ValueError)
#: A recording as a row holds it where there is no cache and some lie within a table.
RECORDING_FEATURES = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}


def encode_messages(
    processor: AudioLlmProcessor, messages: Sequence[dict[str, Any]], num_slots: list[int]
) -> tuple[list[int], list[int]]:
    """
    Return token ids and labels of a conversation whose recordings take `num_slots` audio tokens each.

    Raises:
        ConversationError: the template does not show an answer, or there is not one `<audio>` per recording.
    """
    segments = processor.conversation_segments(list(messages))
    found = sum(segment.text.count(AUDIO_PLACEHOLDER) for segment in segments)
    if found != len(num_slots):
        raise ConversationError(
            f"There are {len(num_slots)} recordings, but the rendered conversation has {found} {AUDIO_PLACEHOLDER}. A "
            "response cannot hold one."
        )
    return processor.encode_segments(segments, num_slots)


@dataclass
class ExampleEncoder:
    """Encodes examples as rows, which have to fit into a budget; without a cache, batches are encoded in the step."""

    processor: AudioLlmProcessor
    cache: FeatureCache | None = None
    budget: BatchBudget | None = None
    #: Of files, which many rows may share: their reference and windows.
    _measured: dict[str, tuple[Any, list[int]]] = field(default_factory=dict, repr=False)

    def encode(self, example: Any) -> dict[str, Any]:
        """
        Return a row of an example's `messages` and `recordings`; nothing is stored in the cache.

        It has `input_ids`, `labels`, `length` (tokens), `audio` (cache keys, or the recordings without a cache) and
        `audio_frames` (20 ms encoder frames of all of them).

        Raises:
            AudioError, FileNotFoundError: a recording cannot be used.
            ConversationError: the example cannot be shown as a conversation.
            ValueError: it does not fit into any batch.
        """
        measured = [self.measure(recording) for recording in example.recordings]
        stack = self.processor.stack_factor
        slots = [sum(-(-frames // stack) for frames in windows) for _, windows in measured]
        input_ids, labels = encode_messages(self.processor, example.messages, slots)
        frames = sum(sum(windows) for _, windows in measured)
        if self.budget is not None and (problem := self.budget.problem(len(input_ids), frames)):
            raise ValueError(problem)
        return {
            "input_ids": input_ids,
            "labels": labels,
            "length": len(input_ids),
            "audio": [reference for reference, _ in measured],
            "audio_frames": frames,
        }

    def measure(self, recording: Any) -> tuple[Any, list[int]]:
        """Return a recording's cache key, or itself without a cache, and the encoder frames of each window."""
        if isinstance(recording, str) and recording in self._measured:
            return self._measured[recording]
        content = self.content(recording)
        reference = recording if self.cache is None else self.cache.key(content)
        if self.cache is not None and self.cache.has(reference):
            windows = self.cache.lengths(reference)
        else:
            windows = self.processor.encoder_frames(len(self.processor.load_audio(content)))
        if isinstance(recording, str):
            self._measured[recording] = reference, windows
        return reference, windows

    def content(self, recording: Any) -> Any:
        """Return what the cache takes: a path, or bytes with their name."""
        if isinstance(recording, str) and URL_MARK in recording:
            return {"bytes": read_bytes(recording), "path": recording}
        return recording

    def add_features(
        self, examples: Sequence[Any], progress: bool = True, chosen: Sequence[int] | None = None
    ) -> None:
        """Compute the features that the cache lacks, of all examples or chosen ones; several processes share the work."""
        if self.cache is None:
            return
        chosen = range(len(examples)) if chosen is None else chosen
        for start in range(0, len(chosen), EXAMPLES_PER_CHUNK):
            missing = {}
            for index in chosen[start : start + EXAMPLES_PER_CHUNK]:
                for recording in examples[index].recordings:
                    reference, _ = self.measure(recording)
                    if reference not in missing and not self.cache.has(reference):
                        missing[reference] = self.content(recording)
            self.cache.add(missing.values(), progress)


def encode_examples(
    examples: Sequence[Any], encoder: ExampleEncoder, progress: bool = True
) -> tuple[list[dict[str, Any]], list[int], list[tuple[str, str]]]:
    """Return rows of all examples that can be used, the index of each one's example, and (where, reason) of the others."""
    rows, usable, problems = [], [], []
    for index in tqdm(range(len(examples)), desc="Checking examples", unit="example", disable=not progress):
        example = examples[index]
        try:
            rows.append(encoder.encode(example))
        except EXAMPLE_ERRORS as error:
            problems.append((example.where, str(error)))
        else:
            usable.append(index)
    return rows, usable, problems


def build_dataset(
    examples: Sequence[Any],
    processor: AudioLlmProcessor,
    cache: FeatureCache | None,
    progress: bool = True,
    budget: BatchBudget | None = None,
) -> datasets.Dataset:
    """
    Return what [`ExampleEncoder.encode`] makes of all examples, in their order; the cache is given what it lacks.

    Raises:
        ExamplesError: a recording cannot be used, or an example cannot be shown as a conversation; all are listed.
    """
    encoder = ExampleEncoder(processor, cache, budget)
    rows, _, problems = encode_examples(examples, encoder, progress)
    settle_problems([("The examples", problems)], skip=False)
    encoder.add_features(examples, progress)
    return _as_dataset(rows, any(isinstance(one, dict) for row in rows for one in row["audio"]))


def build_mixture(
    sources: Sequence[Examples],
    encoder: ExampleEncoder,
    weights: Sequence[float] | None = None,
    seed: int = 0,
    skip_bad: bool = False,
    progress: bool = True,
) -> datasets.Dataset:
    """
    Return rows of several sources.

    Without weights, an epoch has every example once. With them, they are the share of the rows of an epoch that each
    source gives, drawn at random by the seed; an epoch is as long as it takes for every example of every source to
    come at least once, so that those of sources with more weight than examples come several times.

    Raises:
        ExamplesError: there are bad examples and they are not to be left out, or a source has no others; all are
            listed.
    """
    found = [encode_examples(source, encoder, progress) for source in sources]
    names = [source.source.name for source in sources]
    settle_problems(
        [(name, source.problems + problems) for name, source, (_, _, problems) in zip(names, sources, found)], skip_bad
    )
    nothing = [("", "holds no example that can be used")]
    settle_problems([(name, [] if rows else nothing) for name, (rows, _, _) in zip(names, found)], skip=False)
    for source, (_, usable, _) in zip(sources, found):
        encoder.add_features(source, progress, usable)
    within_tables = any(isinstance(one, dict) for rows, _, _ in found for row in rows for one in row["audio"])
    parts = [_as_dataset(rows, within_tables) for rows, _, _ in found]
    if weights is None:
        return datasets.concatenate_datasets(parts)
    total = sum(weights)
    return datasets.interleave_datasets(
        parts, probabilities=[weight / total for weight in weights], seed=seed, stopping_strategy="all_exhausted"
    )


def _as_dataset(rows: Sequence[dict[str, Any]], within_tables: bool) -> datasets.Dataset:
    """Return rows as a dataset; `within_tables` where some recordings are dicts, which then all are."""
    features = datasets.Features(
        input_ids=datasets.List(datasets.Value("int32")),
        labels=datasets.List(datasets.Value("int32")),
        length=datasets.Value("int32"),
        audio=datasets.List(RECORDING_FEATURES if within_tables else datasets.Value("string")),
        audio_frames=datasets.Value("int64"),
    )
    columns = {name: [row[name] for row in rows] for name in features}
    if within_tables:
        columns["audio"] = [
            [one if isinstance(one, dict) else {"bytes": None, "path": one} for one in audio]
            for audio in columns["audio"]
        ]
    return datasets.Dataset.from_dict(columns, features=features)

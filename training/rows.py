"""
Examples → rows of token ids and labels, with the audio left on disk; mixed, or streamed as they come.

Everything that can be wrong with an example is found before the first recording is encoded: those that the cache lacks are
decoded once to count their audio tokens. Of a stream, bad rows are found when they are met; a run that resumes passes over
what was learned from, unread and unencoded, in the same shuffled order.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from audiollm.command_line.files import write_whole
from audiollm.corpora.examples import ExamplesError
from audiollm.corpora.rows import Conversation
from audiollm.corpora.sources import Examples, StreamedRows, settle_problems
from audiollm.processing import AudioLlmProcessor
from audiollm.processing.audio import AudioError, read_bytes
from audiollm.processing.conversations import AUDIO_PLACEHOLDER, ConversationError
from tqdm.auto import tqdm

from .batching import BatchBudget
from .feature_cache import FeatureCache

URL_MARK = "://"
#: Errors of a bad example or recording.
EXAMPLE_ERRORS = (AudioError, ConversationError, OSError, ValueError)
NOTHING = [("", "holds no example that can be used")]
#: A recording as a row holds it where there is no cache and some lie within a table.
RECORDING_FEATURES = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}


def encode_messages(
    processor: AudioLlmProcessor, messages: Sequence[dict[str, Any]], num_slots: list[int]
) -> tuple[list[int], list[int]]:
    """Return token ids and labels of a conversation whose recordings take `num_slots` audio tokens each."""
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
        Return a row: `input_ids`, `labels`, `length` (tokens) and `audio` (cache keys, or the recordings without a cache).

        Raises one of `EXAMPLE_ERRORS` where a recording cannot be used, or no answer is shown, or no batch can hold it.
        """
        measured = [self.measure(recording) for recording in example.recordings]
        stack = self.processor.stack_factor
        slots = [sum(-(-frames // stack) for frames in windows) for _, windows in measured]
        input_ids, labels = encode_messages(self.processor, example.messages, slots)
        if self.budget is not None and (problem := self.budget.problem(len(input_ids))):
            raise ValueError(problem)
        audio = [reference for reference, _ in measured]
        return {"input_ids": input_ids, "labels": labels, "length": len(input_ids), "audio": audio}

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

    def recordings(self, examples: Sequence[Any]) -> dict[str, Callable[[], Any]]:
        """Return functions that read the usable recordings of examples, by cache key; so those in tables are not held."""

        def read(index: int, place: int) -> Any:
            return self.content(examples[index].recordings[place])

        found: dict[str, Callable[[], Any]] = {}
        for index in range(len(examples)):
            for place, recording in enumerate(examples[index].recordings):
                with suppress(*EXAMPLE_ERRORS):
                    found.setdefault(self.measure(recording)[0], partial(read, index, place))
        return found

    def add_features(self, examples: Sequence[Any], progress: bool = True) -> None:
        """Compute the features of the examples that the cache lacks; several processes share the work."""
        if self.cache is not None:
            self.cache.fill(self.recordings(examples), progress)


def encode_examples(
    examples: Sequence[Any], encoder: ExampleEncoder, progress: bool = True
) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """Return rows of all examples that can be used, and (where, reason) of the others."""
    rows, problems = [], []
    for index in tqdm(range(len(examples)), desc="Checking examples", unit="example", disable=not progress):
        example = examples[index]
        try:
            rows.append(encoder.encode(example))
        except EXAMPLE_ERRORS as error:
            problems.append((example.where, str(error)))
    return rows, problems


def build_dataset(
    examples: Sequence[Any], processor: AudioLlmProcessor, cache: FeatureCache | None, progress: bool = True
) -> datasets.Dataset:
    """Return the rows of all examples; the cache is given what it lacks. Raises ExamplesError, which lists all bad ones."""
    encoder = ExampleEncoder(processor, cache)
    rows, problems = encode_examples(examples, encoder, progress)
    settle_problems([("The examples", problems)], skip=False)
    encoder.add_features(examples, progress)
    return _as_datasets([rows])[0]


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

    Without weights, an epoch has every example once. With them, they are each source's share of the rows of an epoch,
    drawn by the seed; an epoch is as long as it takes for every example to come at least once.

    Raises ExamplesError for bad examples that are not to be left out, and sources that have no others.
    """
    found = [encode_examples(source, encoder, progress) for source in sources]
    names = [source.source.name for source in sources]
    bad = [source.problems + problems for source, (_, problems) in zip(sources, found)]
    settle_problems(list(zip(names, bad)), skip_bad)
    settle_problems([(name, [] if rows else NOTHING) for name, (rows, _) in zip(names, found)], skip=False)
    for source in sources:
        encoder.add_features(source, progress)
    parts = _as_datasets([rows for rows, _ in found])
    if weights is None:
        return datasets.concatenate_datasets(parts)
    total = sum(weights)
    return datasets.interleave_datasets(
        parts, probabilities=[weight / total for weight in weights], seed=seed, stopping_strategy="all_exhausted"
    )


def _as_datasets(parts: Sequence[Sequence[dict[str, Any]]]) -> list[datasets.Dataset]:
    """Return lists of rows as datasets that can be joined: where some recordings are dicts, all are."""
    within_tables = any(isinstance(one, dict) for rows in parts for row in rows for one in row["audio"])
    features = datasets.Features(
        input_ids=datasets.List(datasets.Value("int32")),
        labels=datasets.List(datasets.Value("int32")),
        length=datasets.Value("int32"),
        audio=datasets.List(RECORDING_FEATURES if within_tables else datasets.Value("string")),
    )

    def recording(one: Any) -> Any:
        return {"bytes": None, "path": one} if within_tables and isinstance(one, str) else one

    whole = [[{**row, "audio": list(map(recording, row["audio"]))} for row in rows] for rows in parts]
    return [datasets.Dataset.from_list(rows, features=features) for rows in whole]


# ---- streams ---------------------------------------------------------------------------------------------------------

#: Rows that are held to draw from when nothing is said.
SHUFFLE_ROWS = 1000
#: File of a checkpoint about the rows that were left out, for each process.
BAD_ROWS_FILE = "bad_rows-{process}.json"


class StreamedExamples(torch.utils.data.IterableDataset):
    """
    Rows as [`ExampleEncoder.encode`] makes them, without end: a source that is used up begins again in another order.

    Without weights, sources take turns until each is used up; else each row comes from a source drawn by the seed. Each of
    several processes, and each of its DataLoader's workers, takes every n-th row. Features are stored as rows come up.

    Workers tell the process of bad rows by the row after them, in `bad_rows`; and of an error that ends the run by a row
    with `error`, the arguments of an ExamplesError.
    """

    def __init__(
        self,
        streams: Sequence[StreamedRows],
        encoder: ExampleEncoder,
        weights: Sequence[float] | None = None,
        seed: int = 0,
        skip_bad: bool = False,
        process_index: int = 0,
        num_processes: int = 1,
    ):
        self.streams, self.encoder, self.weights, self.seed, self.skip_bad = streams, encoder, weights, seed, skip_bad
        self.process_index, self.num_processes = process_index, num_processes
        #: Batches at the start whose rows come as None, because a run that was cut off has learned from them; their size.
        self.passed_over, self.batch_size = 0, 1
        #: Numbers, counted through all passes, of this process's rows that were found to be bad.
        self.bad: set[int] = set()
        self._reported: set[tuple[str, str]] = set()

    def __iter__(self) -> Iterator[dict[str, Any] | None]:
        """Raises ExamplesError for a row that is bad and not to be skipped, or where there are no others."""
        worker = torch.utils.data.get_worker_info()
        own, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        share, shares = self.process_index * workers + own, self.num_processes * workers
        passed_over = len(range(own, self.passed_over, workers)) * self.batch_size
        try:
            yield from self._share(share, shares, passed_over)
        except ExamplesError as error:
            if worker is None:
                raise
            while True:  # to fill the batch
                yield {"error": (error.path, error.problems)}

    def _share(self, share: int, shares: int, passed_over: int) -> Iterator[dict[str, Any] | None]:
        handed_out = last_useful_pass = 0
        bad: list[int] = []
        for number, (current_pass, name, where, read) in enumerate(self._rows()):
            if number % shares != share or number in self.bad:
                continue
            row = None
            if handed_out >= passed_over:
                try:
                    example = read()
                    row = self.encoder.encode(example)
                    if self.encoder.cache is not None:
                        for recording in example.recordings:
                            self.encoder.cache.add_one(self.encoder.content(recording))
                except EXAMPLE_ERRORS as error:
                    if not self.skip_bad:
                        raise ExamplesError(name, [(where, str(error))]) from error
                    if (name, where) not in self._reported:
                        self._reported.add((name, where))
                        print(f"{name}: {where} is left out, the {len(self._reported)}. bad example so far: {error}")
                    self.bad.add(number)
                    bad.append(number)
                    if current_pass - last_useful_pass > shares:
                        raise ExamplesError(name, NOTHING) from error
                    continue
            if bad and torch.utils.data.get_worker_info() is not None:
                row, bad = {**(row or {}), "bad_rows": bad}, []
            handed_out, last_useful_pass = handed_out + 1, current_pass
            yield row

    def resume(self, checkpoint: Path, batches: int, batch_size: int) -> None:
        """Pass over the batches that this process has learned from, in a checkpoint of as many workers."""
        self.passed_over, self.batch_size = batches, batch_size
        bad_rows = checkpoint / BAD_ROWS_FILE.format(process=self.process_index)
        if bad_rows.is_file():
            self.bad.update(json.loads(bad_rows.read_text()))

    def save_bad_rows(self, checkpoint: Path) -> None:
        """Write which rows of this process were left out."""
        file = checkpoint / BAD_ROWS_FILE.format(process=self.process_index)
        write_whole(file, json.dumps(sorted(self.bad)))

    def _rows(self) -> Iterator[tuple[int, str, str, Callable[[], Conversation]]]:
        """Yield all rows of all processes: which pass, the source's name, where, and what reads the row."""
        names = [stream.source.name for stream in self.streams]
        if self.weights is None:
            for current_pass in count():
                left = dict(enumerate(self._pass(stream, current_pass) for stream in self.streams))
                while left:
                    for index, rows in list(left.items()):
                        following = next(rows, None)
                        if following is None:
                            del left[index]
                        else:
                            yield current_pass, names[index], *following
            return  # never: there is always another pass
        random = np.random.default_rng(self.seed)
        shares = np.asarray(self.weights, dtype=float) / sum(self.weights)
        passes, current = [0] * len(shares), [self._pass(stream, 0) for stream in self.streams]
        while True:
            index = int(random.choice(len(shares), p=shares))
            following = next(current[index], None)
            if following is None:
                passes[index] += 1
                current[index] = self._pass(self.streams[index], passes[index])
                following = next(current[index])
            yield min(passes), names[index], *following

    def _pass(self, stream: StreamedRows, number: int) -> Iterator[tuple[str, Callable[[], Conversation]]]:
        rows = stream.rows(number, self.seed)
        first = next(rows, None)
        if first is None:
            raise ExamplesError(stream.source.name, [("", "holds no examples")])
        yield first
        yield from rows


def collate_stream(collate: Callable[[list[Any]], dict[str, Any]], rows: list[Any]) -> dict[str, Any]:
    """Return a batch of a stream's rows, with what workers report; nothing where they are passed over."""
    if rows[0] is None:
        return {}
    if any("error" in row for row in rows):
        return {"error": next(row["error"] for row in rows if "error" in row), "labels": torch.empty(0)}
    bad = [number for row in rows for number in row.pop("bad_rows", [])]
    return {**collate(rows), **({"bad_rows": bad} if bad else {})}

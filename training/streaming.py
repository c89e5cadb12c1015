"""
Training on data that is read as it comes: any number of examples, none of them held or counted.

A run that resumes goes on where it was: rows that were already learned from are passed over, unread and unencoded, in
the same shuffled order. Bad rows cannot be found ahead; they are reported, or left out, when they are met.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from audiollm.corpora.examples import ExamplesError
from audiollm.corpora.rows import Conversation
from audiollm.corpora.sources import StreamedRows
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from .encoding import EXAMPLE_ERRORS, ExampleEncoder

#: Rows that are held to draw from when nothing is said.
SHUFFLE_ROWS = 1000
#: What a checkpoint keeps of the rows that were left out, for each process.
BAD_ROWS_FILE = "bad_rows-{process}.json"


class StreamedExamples(torch.utils.data.IterableDataset):
    """
    Rows as [`ExampleEncoder.encode`] makes them, without end: a source that is used up begins again in another order.

    Without weights, sources take turns until each is used up. With weights, each row comes from a source that is drawn
    by the seed with that probability. Each of several processes takes every n-th row. Features are stored as rows come up.
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
        self.streams = streams
        self.encoder = encoder
        self.weights = weights
        self.seed = seed
        self.skip_bad = skip_bad
        self.process_index = process_index
        self.num_processes = num_processes
        #: Examples at the start that come as None, because a run that was cut off has learned from them.
        self.passed_over = 0
        #: Numbers, counted through all passes, of this process's rows that were found to be bad.
        self.bad: set[int] = set()
        self._reported: dict[tuple[str, str], str] = {}

    def __iter__(self) -> Iterator[dict[str, Any] | None]:
        """
        Raises:
            ExamplesError: a row is bad and they are not to be skipped, or there are no others.
        """
        handed_out = last_useful_pass = 0
        for number, (current_pass, name, where, read) in enumerate(self._rows()):
            if number % self.num_processes != self.process_index or number in self.bad:
                continue
            if handed_out < self.passed_over:
                row = None
            else:
                try:
                    row = self._row(read())
                except EXAMPLE_ERRORS as error:
                    self._reject(number, name, where, error)
                    if current_pass - last_useful_pass > self.num_processes:
                        raise ExamplesError(name, [("", "holds no example that can be used")]) from error
                    continue
            handed_out, last_useful_pass = handed_out + 1, current_pass
            yield row

    def resume(self, checkpoint: Path, rows_per_step: int) -> None:
        """Pass over what a checkpoint has learned from, `rows_per_step` in each step of this process."""
        steps = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)).global_step
        self.passed_over = steps * rows_per_step
        bad_rows = checkpoint / BAD_ROWS_FILE.format(process=self.process_index)
        if bad_rows.is_file():
            self.bad.update(json.loads(bad_rows.read_text()))

    def save_bad_rows(self, checkpoint: Path) -> None:
        """Write which rows of this process were left out."""
        checkpoint.mkdir(parents=True, exist_ok=True)
        file = checkpoint / BAD_ROWS_FILE.format(process=self.process_index)
        file.write_text(json.dumps(sorted(self.bad)))

    def _row(self, example: Conversation) -> dict[str, Any]:
        row = self.encoder.encode(example)
        if self.encoder.cache is not None:
            for recording in example.recordings:
                self.encoder.cache.add_one(self.encoder.content(recording))
        return row

    def _reject(self, number: int, name: str, where: str, error: Exception) -> None:
        if not self.skip_bad:
            raise ExamplesError(name, [(where, str(error))]) from error
        self.bad.add(number)
        if (name, where) not in self._reported:
            self._reported[name, where] = str(error)
            print(f"{name}: {where} is left out, the {len(self._reported)}. bad example so far: {error}")

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
        passes = [0] * len(self.streams)
        current = [self._pass(stream, 0) for stream in self.streams]
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

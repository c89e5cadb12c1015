"""
`audiollm prepare huggingface`: any dataset of the Hub or on disk, and the ready corpora of the catalogue.

    audiollm prepare huggingface --dataset org/name --max_wer 5.0
    audiollm prepare huggingface fleurs:de_de --output data/fleurs

Prints which column it takes for which field.
"""

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import datasets
from audiollm.command_line.option_parser import option

from . import values
from .catalogue import Corpus, corpus_named, is_corpus_name
from .clips import BadClip, Clip, ClipSource, CorpusError, FieldValue, split_named
from .columns import (
    GUESSES,
    PLACE_GUESSES,
    TRANSFORMS,
    WER_UNITS,
    ColumnMapping,
    ColumnSpec,
    column_kind,
    map_columns,
    parse_overrides,
    wer_unit,
)
from .dataset_places import READ_ERRORS, Place, find_place, open_split, recording_of, unreadable

DEFAULT_SPLITS = ("train",)
#: Rows of each split by which columns are guessed.
ROWS_LOOKED_AT = 100
SPLIT_NAME = re.compile(r"\w[\w.-]*")
#: Digits of a row's number in the ids of clips that have none of their own.
ROW_DIGITS = 8


@dataclass
class HuggingFaceArguments:
    """A dataset, and the part of it to read."""

    dataset: str = field(
        metadata={
            "help": "Id on the Hub (org/name); a folder (of save_to_disk, of tables, an audiofolder) or file (.parquet, "
            ".jsonl, .json, .csv, .tsv); or a ready corpus such as fleurs:de_de (`audiollm prepare corpora` lists them)."
        }
    )
    config: str | None = option(None, "Config of the dataset, such as en or clean.")
    splits: list[str] = option(
        [], "Splits to read, separated by spaces or commas. Default: train, or as the catalogue says."
    )
    revision: str | None = option(None, "Branch, tag or commit on the Hub.")
    source_path: str | None = option(None, "For a ready corpus: your copy on disk, read in place of the Hub's.")
    streaming: bool = option(False, "Read rows as they are downloaded, without a cache.")
    columns: list[str] = option(
        [], "Which column is which field: text=sentence audio=file. `text=` leaves a field out."
    )
    wer_unit: str | None = option(None, "Unit of the dataset's own word errors.", choices=[*WER_UNITS])
    limit: int | None = option(None, "Read only the first rows of each split, so many.")

    def __post_init__(self):
        self.splits = [name for given in self.splits for name in given.split(",") if name]
        bad = [name for name in self.splits if not SPLIT_NAME.fullmatch(name)]
        if bad:
            raise ValueError(f"--splits {bad[0]!r}: expected names of splits; for the first rows of one, --limit.")
        if len(set(self.splits)) != len(self.splits):
            raise ValueError(f"--splits names a split twice: {', '.join(self.splits)}.")
        if self.config is not None and not SPLIT_NAME.fullmatch(self.config):
            raise ValueError(f"--config {self.config!r}: expected a name of letters, digits, '.', '_' and '-'.")
        values.check_at_least(self, 1, "limit")
        parse_overrides(self.columns)
        ready = is_corpus_name(self.dataset)
        if self.source_path is not None and not ready:
            raise ValueError("--source_path is for ready corpora; give the folder or file itself as --dataset.")
        if self.source_path is not None and not os.path.exists(self.source_path):
            raise ValueError(f"--source_path {self.source_path!r} does not exist.")
        if self.revision is not None and (self.source_path or (not ready and os.path.exists(self.dataset))):
            raise ValueError("--revision is for datasets of the Hub; what lies on disk has none.")


class HuggingFaceSource(ClipSource):
    """
    A dataset as clips, in the order of its splits and rows. Recordings stay as they are stored.

    A corpus of another table than the catalogue may be read in place of `arguments.dataset`, from a copy at
    `source_path`, or another place. Tables in a folder may have columns for the split and the part of a recording.
    CorpusError is raised if it cannot be read, or a column is missing or cannot be told among several.
    """

    def __init__(
        self,
        arguments: HuggingFaceArguments,
        corpus: Corpus | None = None,
        source_path: str | None = None,
        place: Place | None = None,
    ):
        # With columns given and types known, rows decide nothing: one shows that there are any.
        self._rows_looked_at = ROWS_LOOKED_AT if corpus is None else 1
        if corpus is None and is_corpus_name(arguments.dataset):
            corpus = corpus_named(arguments.dataset, arguments.config)
        source_path = source_path or arguments.source_path
        place = place or find_place(arguments.dataset, arguments.config, arguments.revision, corpus, source_path)
        self.corpus, self._place, self.name = corpus, place, place.name
        self.folder = place.path if place.kind in ("disk", "folder") else None
        self.reads_all_below = place.kind == "folder" and not (corpus and corpus.files)
        if corpus is not None:
            self.tasks = corpus.tasks
        self._constants: Mapping[str, FieldValue] = corpus.constants if corpus else {}
        self._splits = tuple(arguments.splits or (corpus.default_splits if corpus else DEFAULT_SPLITS))
        self._limit = arguments.limit
        if place.kind == "file" and len(self._splits) > 1 and not place.tables:
            raise CorpusError(f"{self.name}: one file is one split, not {', '.join(self._splits)}.")
        known = corpus.splits if corpus and place.kind == "hub" else self._splits
        unknown = [split for split in self._splits if split not in known]
        if unknown:
            raise CorpusError(f"{self.name} has no split {unknown[0]!r}; expected some of {', '.join(known)}.")
        self._datasets: dict[str, Any] = {}
        self._folders: dict[str, str] = {}
        self._labels: dict[str, list[str]] = {}
        mappings = [self._open(split, arguments) for split in self._splits]
        self.mapping = mappings[0]
        if any(mapping.specs != self.mapping.specs for mapping in mappings):
            raise CorpusError(f"{self.name}: its splits do not have the same columns; name them with --columns.")
        specs = self.mapping.specs
        self._each = next((name for name, spec in specs.items() if spec.each), None)
        self.identity = {
            "source": "huggingface",
            "dataset": place.path,
            "corpus": corpus.name if corpus else None,
            "config": place.config,
            "splits": list(self._splits),
            "revision": place.revision,
            "files": place.fingerprint(),
            "columns": {name: [list(spec.columns), list(spec.transforms), spec.each] for name, spec in specs.items()},
            "constants": dict(self._constants),
            "limit": self._limit,
        }
        self.summary = self._summarise()

    def _open(self, split: str, arguments: HuggingFaceArguments) -> ColumnMapping:
        """Open a split, and return which column is which field."""
        dataset, self._folders[split] = open_split(self._place, split, arguments.streaming)
        most = ROWS_LOOKED_AT if dataset.features is None else self._rows_looked_at
        try:
            rows = [dict(row) for row in islice(dataset, most)]
            features = dataset.features or datasets.Dataset.from_list(rows).features
        except READ_ERRORS as error:
            raise unreadable(self._place, split, error) from error
        if not rows:
            raise CorpusError(f"{self.name}: split {split!r} has no rows.")
        kinds = {column: column_kind(feature) for column, feature in features.items()}
        label = f"{self.name}, split {split!r}" if len(self._splits) > 1 else self.name
        wanted = self.corpus.columns if self.corpus else None
        guesses = GUESSES | (PLACE_GUESSES if self._place.tables else {})
        mapping = map_columns(label, kinds, rows, parse_overrides(arguments.columns), wanted, guesses)
        if not self._datasets:
            values = [row.get(mapping.specs["wer"].columns[0]) for row in rows] if "wer" in mapping.specs else []
            self.wer_unit, self.wer_doubt = wer_unit(self.name, mapping, values, arguments.wer_unit)
        labelled = {name: one for name, one in features.items() if isinstance(one, datasets.ClassLabel)}
        self._labels |= {name: feature.names for name, feature in labelled.items()}
        self._datasets[split] = dataset.select_columns(mapping.columns)
        return mapping

    def _summarise(self) -> str:
        place = self._place
        where = f"{place.path}" + (f" ({place.config})" if place.config else "")
        where += f" at {place.revision}" if place.revision else ""
        lines = [f"{self.name}: reads {', '.join(self._splits)} of {where}"]
        if self.corpus:
            lines.append(f"  licence: {self.corpus.licence}" + (f", {self.corpus.terms}" if self.corpus.terms else ""))
        if self._limit is not None:
            lines.append(f"  --limit {self._limit}: only the first {self._limit} rows of each split are read")
        lines.append(self.mapping.describe({"wer": f"{self.wer_unit or 'unit unknown'}; --wer_unit says otherwise"}))
        lines += [f"  {name} is {value!r} for all clips" for name, value in self._constants.items()]
        return "\n".join([*lines, "  Change any with --columns FIELD=COLUMN."])

    def count(self) -> int | None:
        """Return how many clips there are; None while streaming, or where one row makes several."""
        totals = [self._count(split) for split in self._splits]
        return None if None in totals else sum(total for total in totals if total is not None)

    def _count(self, split: str) -> int | None:
        dataset = self._datasets[split]
        if self._each is not None or not hasattr(dataset, "__len__"):
            return None
        return len(dataset) if self._limit is None else min(len(dataset), self._limit)

    def clips(self, start: int = 0) -> Iterator[Clip | BadClip]:
        """Yield all clips from the `start`-th on; rows before it are not read where their number is known."""
        for split in self._splits:
            total = self._count(split)
            first = 0 if total is None else min(start, total)
            start -= first
            for number, row in self._rows(split, first) if first != total else ():
                for clip in self._read(row, number, split):
                    if start:
                        start -= 1
                    else:
                        yield clip

    def _rows(self, split: str, first: int) -> Iterator[tuple[int, dict[str, Any]]]:
        rows, number = self._datasets[split], first
        try:
            for number, row in enumerate(rows.skip(first), start=first):
                if number == self._limit:
                    return
                yield number, row
        except READ_ERRORS as error:
            raise unreadable(self._place, split, error, f" from row {number} on") from error

    def _read(self, row: Mapping[str, Any], number: int, split: str) -> Iterator[Clip | BadClip]:
        specs = self.mapping.specs
        own = self._transformed(row.get(specs["id"].columns[0]), specs["id"]) if "id" in specs else None
        identity = f"{number:0{ROW_DIGITS}d}" if own is None else str(own)
        if own is None or len(self._splits) > 1:
            identity = f"{split}-{identity}"
        if self._each is None:
            yield self._clip(row, identity, split)
            return
        columns = specs[self._each].columns
        items = [row.get(column) for column in columns] if len(columns) > 1 else row.get(columns[0]) or [None]
        for index, item in enumerate(items, start=1):
            yield self._clip(row, f"{identity}-{index}", split, item)

    def _clip(self, row: Mapping[str, Any], identity: str, split: str, item: Any = None) -> Clip | BadClip:
        """Return the clip of a row or, where each of several values makes one, of `item`."""
        fields: dict[str, FieldValue] = dict(self._constants)
        for name, spec in self.mapping.specs.items():
            if name in ("audio", "id"):
                continue
            try:
                value = self._value(name, item if spec.each else row.get(spec.columns[0]), spec)
            except ValueError as error:
                return BadClip(identity, f"{name!r} of column {' or '.join(map(repr, spec.columns))} {error}", split)
            if value is not None:
                fields[name] = value
        stored = row.get(self.mapping.specs["audio"].columns[0])
        recording, problem = recording_of(stored, self._place, self._folders[split])
        if self._place.tables and fields.get("split"):
            split = split_named(str(fields["split"]))
        try:
            begin, end = self._part(fields)
        except ValueError as error:
            problem = problem or str(error)
        if problem is not None:
            return BadClip(identity, problem, split)
        return Clip(identity, recording, str(fields.pop("text", "")), split, fields, begin, end)

    def _part(self, fields: dict[str, FieldValue]) -> tuple[float, float | None]:
        """Take from a table's fields where a clip's part of its recording begins and ends, in seconds, and its split."""
        if not self._place.tables:
            return 0.0, None
        begin, end, length = (values.number(fields.pop(name, None), name) for name in ("start", "end", "duration"))
        fields.pop("split", None)
        if end is None and begin is not None and length is not None:
            end = begin + length
        if end is not None and end <= (begin or 0.0):
            raise ValueError(f"ends at {end:g} s, which is not after its start at {begin or 0:g} s")
        return begin or 0.0, end

    def _value(self, name: str, stored: Any, spec: ColumnSpec) -> FieldValue:
        """Return a field, None if the row does not have it; raise ValueError if the row is no clip without it."""
        value = self._transformed(stored, spec)
        if isinstance(value, float) and not math.isfinite(value):
            value = None
        if isinstance(value, (list, dict)):
            raise ValueError("is no plain value")
        if name == "wer":
            return None if value is None else float(value)
        if name in ("text", self._each):
            value = "" if value is None else str(value).strip()
            if not value:
                raise ValueError("is empty: there is nothing to learn from the recording")
        return value

    def _transformed(self, value: Any, spec: ColumnSpec) -> Any:
        labels = self._labels.get(spec.columns[0])
        if labels is not None and isinstance(value, int):
            value = labels[value] if 0 <= value < len(labels) else None
        for name in spec.transforms:
            value = None if value is None else TRANSFORMS[name](value)
        return value


open_source = HuggingFaceSource

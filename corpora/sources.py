"""
Sources of training data: files, folders and Hub datasets, all read as conversations.

| given | read as |
|---|---|
| `data.json`, `data.jsonl` | rows of either form that `rows` describes, checked strictly |
| `data.parquet` | the same fields as columns; `audio` may be a `datasets.Audio` column; others are not read |
| a folder | what `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote, or Parquet files that `load_dataset` reads |
| `hub:org/name` | a dataset of the Hugging Face Hub |

Options follow a question mark: `hub:org/name?config=clean&split=train&revision=main`, `folder?split=train`. Recordings come
as bytes or paths, for this project's own decoder.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import datasets

from .clips import DEFAULT_SPLIT
from .dataset_places import SAVED_FILES, Place, load_split
from .examples import JSON_LINES_SUFFIX, ExamplesError, json_rows
from .rows import TABLE_FIELDS, Conversation, RowError, RowReader

HUB_PREFIX = "hub:"
OPTION_MARK = "?"
PARQUET_SUFFIX = ".parquet"
#: Examples left out by `skip` of --on_bad_example that are shown.
MAX_SKIPPED_SHOWN = 50
#: Column that keeps a streamed row's number while its source is shuffled.
ROW_NUMBER = "__row__"


@dataclass(frozen=True)
class Source:
    """One source of data."""

    name: str  # as it was given
    path: str  # file, folder or Hub id
    place: Place | None  # of a table; None for JSON
    split: str = DEFAULT_SPLIT  # of a table

    @property
    def folder(self) -> str:
        """Return where relative audio paths start."""
        if self.place is not None and self.place.kind == "hub":
            return os.getcwd()
        return self.path if os.path.isdir(self.path) else os.path.dirname(self.path) or os.curdir


def parse_source(given: str) -> Source:
    """
    Return the source that a value of --data_path names.

    Raises FileNotFoundError if there is none, and ValueError for another kind or an option that its kind does not know.
    """
    path, options, known = given, {}, ()  # type: str, dict[str, str], tuple[str, ...]
    if not os.path.exists(given) and OPTION_MARK in given:
        path, _, query = given.partition(OPTION_MARK)
        options = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
    if path.startswith(HUB_PREFIX):
        kind, path, known = "hub", path.removeprefix(HUB_PREFIX), ("config", "split", "revision")
    elif not os.path.exists(path):
        kinds = f"a .json, .jsonl or .parquet file, a folder that save_to_disk wrote, or {HUB_PREFIX}org/name"
        raise FileNotFoundError(f"Data {given!r} does not exist. Expected {kinds}.")
    elif not os.path.isdir(path):
        kind = "file" if path.endswith(PARQUET_SUFFIX) else "json"
    elif there := [name for name in SAVED_FILES if os.path.isfile(os.path.join(path, name))]:
        kind, known = "disk", ("split",) if there[0] == SAVED_FILES[0] else ()
    elif any(name.endswith(PARQUET_SUFFIX) for name in os.listdir(path)):
        kind, known = "folder", ("split",)
    else:
        raise ValueError(
            f"Data {given!r} is a folder, but not one that save_to_disk wrote, nor one of *{PARQUET_SUFFIX}."
        )
    unknown = [name for name in options if name not in known]
    if unknown:
        expected = f"one of {', '.join(known)}" if known else "none for what it is"
        raise ValueError(f"Data {given!r} has the option {unknown[0]!r}; expected {expected}.")
    if kind == "json":
        return Source(given, path, None)
    located = path if kind == "hub" else os.path.abspath(path)
    place = Place(given, kind, located, options.get("config"), options.get("revision"))
    return Source(given, path, place, options.get("split", DEFAULT_SPLIT))


class Examples(Sequence[Conversation]):
    """
    The usable rows of one source, each read again when it is asked for; `audio_dir` is that of `read_examples`.

    All rows are checked at once, but for what only decoding tells. `problems` has (where, reason) of unusable rows. A
    source or `audio_dir` that does not exist raises FileNotFoundError, a table that cannot be read ExamplesError.
    """

    def __init__(self, source: Source, audio_dir: str | os.PathLike[str] | None = None):
        self.source = source
        self.reader = RowReader(source.folder, audio_dir)
        self.problems: list[tuple[str, str]] = []
        self._rows: list[tuple[str, Any, str | None]] = []
        self._table: Any = None
        if source.place is None:
            self._rows = list(json_rows(Path(source.path)))
        else:  # Arrow rows are what is stored: `datasets` would decode Audio columns, which needs torchcodec
            self._table = _open_table(source).with_format("arrow")
        self._usable = []
        for index in range(len(self._rows) if self._table is None else len(self._table)):
            where, row, problem = self._stored(index)
            try:
                _read(self.reader, row, where, problem)
                self._usable.append(index)
            except RowError as error:
                self.problems += [(where, reason) for reason in error.reasons]
        if not self._usable and not self.problems:
            self.problems.append(("", "holds no examples"))

    def _stored(self, index: int) -> tuple[str, Any, str | None]:
        """Return a row with its place, and what is wrong with it."""
        if self._table is None:
            return self._rows[index]
        (row,) = self._table[index : index + 1].to_pylist()
        return f"row {index}", _known_fields(row), None

    def __len__(self) -> int:
        return len(self._usable)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        where, row, _ = self._stored(self._usable[index])
        return self.reader.read(row, where)


def _read(reader: RowReader, row: Any, where: str, problem: str | None) -> Conversation:
    if problem is not None:
        raise RowError([problem])
    return reader.read(row, where)


def _known_fields(row: dict[str, Any]) -> dict[str, Any]:
    """Return a table's row as JSON would have it: null fields are those that the row does not have."""
    return {name: row[name] for name in TABLE_FIELDS if row.get(name) is not None}


def _open_table(source: Source, streaming: bool = False) -> Any:
    """Return a source of tables as a `datasets.Dataset`, or `IterableDataset`; print which columns are not read."""
    try:
        dataset = load_table(source, streaming)
    except (OSError, KeyError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ExamplesError(source.name, [("", f"cannot be read: {' '.join(str(error).split())}")]) from error
    columns = dataset.column_names or []
    known = [name for name in columns if name in TABLE_FIELDS]
    if columns and not known:
        reason = f"has the columns {', '.join(columns)}; expected some of {', '.join(TABLE_FIELDS)}"
        raise ExamplesError(source.name, [("", reason)])
    if len(known) < len(columns):
        print(f"{source.name}: columns that are not read: {', '.join(name for name in columns if name not in known)}.")
        return dataset.select_columns(known)
    return dataset


def load_table(source: Source, streaming: bool) -> Any:
    """Return a source of tables as `datasets` has it, with all its columns; errors are those of `datasets`."""
    assert source.place is not None, "JSON is read by `json_rows`"
    return load_split(source.place, source.split, streaming)[0]


def read_sources(data_paths: str | Sequence[str], audio_dir: str | os.PathLike[str] | None = None) -> list[Examples]:
    """Open and check the sources that values of --data_path name; `problems` of each are the caller's to report."""
    sources = [parse_source(path) for path in ([data_paths] if isinstance(data_paths, str) else data_paths)]
    return [Examples(source, audio_dir) for source in sources]


def settle_problems(named_problems: Sequence[tuple[str, list[tuple[str, str]]]], skip: bool) -> None:
    """
    Refuse bad examples, all at once, with an ExamplesError; or, with `skip`, print which are left out.

    `named_problems` has each source's name and the (where, reason) of its bad examples.
    """
    bad = [(name, problems) for name, problems in named_problems if problems]
    if not bad:
        return
    name, problems = ", ".join(name for name, _ in bad), bad[0][1]
    if len(named_problems) > 1:
        problems = [(f"{name} {where}".strip(), reason) for name, some in bad for where, reason in some]
    if not skip:
        raise ExamplesError(name, problems)
    rows = dict.fromkeys(where for where, _ in problems)
    print(f"{name}: {len(rows)} bad {'example is' if len(rows) == 1 else 'examples are'} left out:")
    for where, reason in problems[:MAX_SKIPPED_SHOWN]:
        print(f"  {where}: {reason}")
    if len(problems) > MAX_SKIPPED_SHOWN:
        print(f"  ... and {len(problems) - MAX_SKIPPED_SHOWN} more")


class StreamedRows:
    """
    The rows of one source one after the other, without knowing how many there are.

    Of `shuffle_rows` rows that are held one is drawn; 0 keeps the source's own order. A JSON list raises ValueError.
    """

    def __init__(self, source: Source, audio_dir: str | os.PathLike[str] | None = None, shuffle_rows: int = 0):
        self.source = source
        self.shuffle_rows = shuffle_rows
        self.reader = RowReader(source.folder, audio_dir)
        if source.place is not None:
            self.stream = _open_table(source, streaming=True).decode(False).map(_number, with_indices=True)
        elif source.path.endswith(JSON_LINES_SUFFIX):
            self.stream = datasets.IterableDataset.from_generator(_lines_of, gen_kwargs={"path": source.path})
        else:
            advice = f"write one object a line and name the file *{JSON_LINES_SUFFIX}"
            raise ValueError(f"{source.name}: a JSON list can only be read whole; for --streaming {advice}.")

    def rows(self, epoch: int, seed: int = 0) -> Iterator[tuple[str, Callable[[], Conversation]]]:
        """Yield where each row stands, and a function that reads it or raises RowError; each epoch has its own order."""
        stream = self.stream.shuffle(seed=seed, buffer_size=self.shuffle_rows) if self.shuffle_rows else self.stream
        stream.set_epoch(epoch)
        # One by one: by itself, `datasets` would deal rows out to the workers of a DataLoader, by files.
        for batch in stream.iter(batch_size=1):
            row = {name: values[0] for name, values in batch.items()}
            if self.source.place is None:
                where, value, problem = row["where"], row["value"], row["problem"]
            else:
                where, value, problem = f"row {row.pop(ROW_NUMBER)}", _known_fields(row), None
            yield where, partial(_read, self.reader, value, where, problem)


def _number(row: dict[str, Any], index: int) -> dict[str, Any]:
    return {**row, ROW_NUMBER: index}


def _lines_of(path: str) -> Iterator[dict[str, Any]]:
    for where, value, problem in json_rows(Path(path)):
        yield {"where": where, "value": value, "problem": problem}

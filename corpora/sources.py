"""
Where training data comes from: files, folders and Hub datasets, all read as conversations.

| given | read as |
|---|---|
| `data.json`, `data.jsonl` | rows of either form that `rows` describes, checked strictly |
| `data.parquet` | the same fields as columns; `audio` may be a `datasets.Audio` column; others are not read |
| a folder | what `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote, or Parquet files that `load_dataset` reads |
| `hub:org/name` | a dataset of the Hugging Face Hub |

Options stand behind a question mark: `hub:org/name?config=clean&split=train&revision=main`, `folder?split=train`.
Recordings are never decoded by `datasets`: they come as bytes or paths, for this project's own decoder.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import datasets

from .examples import JSON_LINES_SUFFIX, ExamplesError, json_lines, json_rows
from .rows import TABLE_FIELDS, Conversation, RowError, RowReader

HUB_PREFIX = "hub:"
OPTION_MARK = "?"
PARQUET_SUFFIX = ".parquet"
#: What `save_to_disk` leaves in a folder: of a dataset, and of several splits.
DATASET_FILE, SPLITS_FILE = "state.json", "dataset_dict.json"
CARD_FILE = "README.md"
DEFAULT_SPLIT = "train"
HUB_OPTIONS = ("config", "split", "revision")
#: What `skip` of --on_bad_example shows of the examples it leaves out, at most.
MAX_SKIPPED_SHOWN = 50
#: Column that keeps a streamed row's number while its source is shuffled.
ROW_NUMBER = "__row__"


@dataclass(frozen=True)
class Source:
    """
    One place that data comes from.

    Attributes:
        name: as it was given.
        kind: json, parquet, disk, shards (a folder of Parquet files) or hub.
        path: the file, folder or Hub id.
        options: `config`, `split` and `revision`, where they were given.
    """

    name: str
    kind: str
    path: str
    options: dict[str, str]

    @property
    def folder(self) -> str:
        """Where relative audio paths start."""
        return {"disk": self.path, "shards": self.path, "hub": os.getcwd()}.get(
            self.kind, os.path.dirname(self.path) or os.curdir
        )


def parse_source(given: str) -> Source:
    """
    Reads what stands behind --data_path.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: it is of no known kind, or has an option that its kind does not know.
    """
    path, options, known = given, {}, ()  # type: str, dict[str, str], tuple[str, ...]
    if not os.path.exists(given) and OPTION_MARK in given:
        path, _, query = given.partition(OPTION_MARK)
        options = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
    if path.startswith(HUB_PREFIX):
        kind, known, path = "hub", HUB_OPTIONS, path.removeprefix(HUB_PREFIX)
    elif not os.path.exists(path):
        raise FileNotFoundError(
            f"Data {given!r} does not exist. Expected a .json, .jsonl or .parquet file, a folder that save_to_disk "
            f"wrote, or {HUB_PREFIX}org/name."
        )
    elif os.path.isdir(path):
        kind = "disk"
        has_splits = os.path.isfile(os.path.join(path, SPLITS_FILE))
        if not has_splits and not os.path.isfile(os.path.join(path, DATASET_FILE)):
            if not any(name.endswith(PARQUET_SUFFIX) for name in os.listdir(path)):
                raise ValueError(
                    f"Data {given!r} is a folder, but not one that save_to_disk of a dataset wrote, nor one of "
                    f"*{PARQUET_SUFFIX} files."
                )
            kind, has_splits = "shards", True
        known = ("split",) if has_splits else ()
    else:
        kind, known = "parquet" if path.endswith(PARQUET_SUFFIX) else "json", ()
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ValueError(
            f"Data {given!r} has the option {unknown[0]!r}; expected "
            + (f"one of {', '.join(known)}." if known else "none for what it is.")
        )
    return Source(given, kind, path, options)


class Examples(Sequence[Conversation]):
    """
    The rows of one source that can be used, each read anew when it is asked for.

    All rows are checked at once, except for what only decoding a recording can tell.

    Args:
        source: where to read.
        audio_dir: as in `read_examples`.

    Attributes:
        problems: (where, reason) of each row that cannot be used; these are not among the examples.

    Raises:
        FileNotFoundError: source or `audio_dir` is not there.
        ExamplesError: the source as a whole cannot be read.
    """

    def __init__(self, source: Source, audio_dir: str | os.PathLike[str] | None = None):
        self.source = source
        self.reader = RowReader(source.folder, audio_dir)
        self.problems: list[tuple[str, str]] = []
        self._rows: Sequence[tuple[str, Any]]
        if source.kind == "json":
            self._rows = list(json_rows(Path(source.path), self.problems))
        else:
            self._rows = _TableRows(_open_table(source))
        self._usable = []
        for index, (where, row) in enumerate(self._rows):
            try:
                self.reader.read(row, where)
            except RowError as error:
                self.problems += [(where, reason) for reason in error.reasons]
            else:
                self._usable.append(index)
        if not self._usable and not self.problems:
            self.problems.append(("", "holds no examples"))

    def __len__(self) -> int:
        return len(self._usable)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        where, row = self._rows[self._usable[index]]
        return self.reader.read(row, where)


class _TableRows(Sequence):
    """Rows of a dataset with their place, read from disk when asked for, audio left as it is stored."""

    def __init__(self, dataset: datasets.Dataset):
        # Arrow rows are what is stored: `datasets` would decode Audio columns, which needs torchcodec.
        self.dataset = dataset.with_format("arrow")

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index):
        if index >= len(self):
            raise IndexError(index)
        (row,) = self.dataset[index : index + 1].to_pylist()
        return f"row {index}", _known_fields(row)


def _known_fields(row: dict[str, Any]) -> dict[str, Any]:
    """A table's row as JSON would have it: fields that are null are those that the row does not have."""
    return {name: row[name] for name in TABLE_FIELDS if row.get(name) is not None}


def _open_table(source: Source, streaming: bool = False) -> Any:
    """A source of tables as a `datasets.Dataset`, or `IterableDataset`; columns that are not read are named aloud."""
    try:
        dataset = load_table(source, streaming)
    except (OSError, KeyError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ExamplesError(source.name, [("", f"cannot be read: {' '.join(str(error).split())}")]) from error
    columns = dataset.column_names or []
    unread = [name for name in columns if name not in TABLE_FIELDS]
    if columns and len(unread) == len(columns):
        raise ExamplesError(
            source.name, [("", f"has the columns {', '.join(columns)}; expected some of {', '.join(TABLE_FIELDS)}")]
        )
    if unread:
        print(f"{source.name}: columns that are not read: {', '.join(unread)}.")
    return dataset.select_columns([name for name in columns if name in TABLE_FIELDS]) if unread else dataset


def load_table(source: Source, streaming: bool) -> Any:
    """A source of tables as `datasets` has it, with all its columns; errors are those of `datasets`."""
    if source.kind == "hub":
        return datasets.load_dataset(
            source.path,
            source.options.get("config"),
            split=source.options.get("split", DEFAULT_SPLIT),
            revision=source.options.get("revision"),
            streaming=streaming,
        )
    if source.kind == "parquet":
        return datasets.load_dataset("parquet", data_files=source.path, split=DEFAULT_SPLIT, streaming=streaming)
    if source.kind == "shards":
        split = source.options.get("split", DEFAULT_SPLIT)
        folder, files = os.path.abspath(source.path), None
        if os.path.isfile(os.path.join(folder, CARD_FILE)):  # which says what files each split has
            # The files are named to `datasets`, whose cache knows a folder with a card by its name and card alone.
            files = datasets.load_dataset_builder(folder).config.data_files
            if split not in files:
                raise ValueError(f"there is no split {split!r}, only {', '.join(files)}; name one as ?split=")
            files = {split: list(files[split])}
        where = {"data_files": files} if files else {"data_dir": folder}
        return datasets.load_dataset("parquet", split=split, streaming=streaming, **where)
    dataset = datasets.load_from_disk(source.path)
    if isinstance(dataset, datasets.DatasetDict):
        split = source.options.get("split", DEFAULT_SPLIT)
        if split not in dataset:
            raise ValueError(f"there is no split {split!r}, only {', '.join(dataset)}; name one as ?split=")
        dataset = dataset[split]
    return dataset.to_iterable_dataset() if streaming else dataset


def read_sources(data_paths: str | Sequence[str], audio_dir: str | os.PathLike[str] | None = None) -> list[Examples]:
    """
    Opens and checks every source.

    Args:
        data_paths: what stands behind --data_path: one or several.
        audio_dir: as in `read_examples`, for all of them.

    Returns:
        One [`Examples`] each; their `problems` are for the caller to raise or report.

    Raises:
        FileNotFoundError, ValueError: as [`parse_source`].
        ExamplesError: a source as a whole cannot be read.
    """
    sources = [parse_source(path) for path in ([data_paths] if isinstance(data_paths, str) else data_paths)]
    return [Examples(source, audio_dir) for source in sources]


def settle_problems(named_problems: Sequence[tuple[str, list[tuple[str, str]]]], skip: bool) -> None:
    """
    Refuses bad examples, all at once, or says which are left out.

    Args:
        named_problems: each source's name and the (where, reason) of its bad examples.
        skip: print a count and list instead of refusing.

    Raises:
        ExamplesError: there are some, and they are not to be skipped.
    """
    bad = [(name, problems) for name, problems in named_problems if problems]
    if not bad:
        return
    if len(named_problems) == 1:
        ((name, problems),) = bad
    else:
        problems = [(f"{name} {where}".strip(), reason) for name, some in bad for where, reason in some]
        name = ", ".join(name for name, _ in bad)
    if not skip:
        raise ExamplesError(name, problems)
    rows = dict.fromkeys(where for where, _ in problems)
    print(f"{name}: {len(rows)} bad {'example is' if len(rows) == 1 else 'examples are'} left out:")
    for where, reason in problems[:MAX_SKIPPED_SHOWN]:
        print(f"  {where}: {reason}")
    if len(problems) > MAX_SKIPPED_SHOWN:
        print(f"  ... and {len(problems) - MAX_SKIPPED_SHOWN} more")


# --------------------------------------------------------------------------------------------------------- streaming


class StreamedRows:
    """
    The rows of one source one after the other, without knowing how many there are.

    Args:
        source: anything but a JSON list, which can only be read whole.
        audio_dir: as in `read_examples`.
        shuffle_rows: rows that are held to draw from; 0 keeps the source's own order.

    Raises:
        ValueError: the source is a JSON list.
    """

    def __init__(self, source: Source, audio_dir: str | os.PathLike[str] | None = None, shuffle_rows: int = 0):
        self.source = source
        self.shuffle_rows = shuffle_rows
        self.reader = RowReader(source.folder, audio_dir)
        if source.kind == "json" and not source.path.endswith(JSON_LINES_SUFFIX):
            raise ValueError(
                f"{source.name}: a JSON list can only be read whole; for --streaming write one object a line and name "
                f"the file *{JSON_LINES_SUFFIX}."
            )
        if source.kind == "json":
            self.stream = datasets.IterableDataset.from_generator(_lines_of, gen_kwargs={"path": source.path})
        else:
            self.stream = _open_table(source, streaming=True).decode(False).map(_number, with_indices=True)

    def rows(self, epoch: int, seed: int = 0) -> Iterator[tuple[str, Callable[[], Conversation]]]:
        """
        Where each row stands, and a function that checks and reads it, which may raise RowError.

        Args:
            epoch: which pass over the source this is; each has its own order.
            seed: of the orders.
        """
        stream = self.stream.shuffle(seed=seed, buffer_size=self.shuffle_rows) if self.shuffle_rows else self.stream
        stream.set_epoch(epoch)
        for row in stream:
            if self.source.kind == "json":
                where, value, problem = row["where"], row["value"], row["problem"]
            else:
                where, value, problem = f"row {row.pop(ROW_NUMBER)}", _known_fields(row), None
            yield where, partial(self._read, value, where, problem)

    def _read(self, row: Any, where: str, problem: str | None) -> Conversation:
        if problem is not None:
            raise RowError([problem])
        return self.reader.read(row, where)


def _number(row: dict[str, Any], index: int) -> dict[str, Any]:
    return {**row, ROW_NUMBER: index}


def _lines_of(path: str) -> Iterator[dict[str, Any]]:
    """Lines of a JSON Lines file, also those that are no JSON, with what is wrong with them."""
    problems: list[tuple[str, str]] = []
    with open(path, encoding="utf-8-sig") as file:
        for where, value in json_lines(file, problems):
            yield from _as_bad_rows(problems)
            yield {"where": where, "value": value, "problem": None}
    yield from _as_bad_rows(problems)


def _as_bad_rows(problems: list[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    for where, reason in problems:
        yield {"where": where, "value": None, "problem": reason}
    problems.clear()


__all__ = ["Examples", "Source", "StreamedRows", "load_table", "parse_source", "read_sources", "settle_problems"]

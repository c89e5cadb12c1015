"""Tables of texts, with the response to each where there is one: read row by row, in their order, from files as they are.

| file | rows |
|---|---|
| `*.txt` | its lines; empty ones are passed over |
| `*.json` | a list of objects, such as the instruction format without recordings |
| `*.jsonl` | one object a line |
| `*.csv`, `*.tsv` | the first line names the columns |
| `*.parquet` | its rows |
"""

import csv
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from audiollm.files import sha256_of

from .clips import CorpusError
from .examples import ExamplesError, json_lines, json_rows

TEXT_SUFFIX, JSON_SUFFIX, JSON_LINES_SUFFIX, PARQUET_SUFFIX = ".txt", ".json", ".jsonl", ".parquet"
DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (TEXT_SUFFIX, JSON_SUFFIX, JSON_LINES_SUFFIX, *DELIMITERS, PARQUET_SUFFIX)
#: What columns are called where they are not named, the first that is there.
TEXT_COLUMNS = ("text", "instruction", "prompt", "question", "sentence", "transcript")
RESPONSE_COLUMNS = ("response", "answer", "output", "completion")
PARQUET_BATCH_ROWS = 1024
#: Stands for the columns that a row of CSV has too many.
SURPLUS = "__surplus__"


@dataclass(frozen=True)
class TextRow:
    """One text; `problem` says why it cannot be used. `response` is None where the table has none."""

    text: str = ""
    response: str | None = None
    problem: str | None = None


class TextTable:
    """
    A file of texts.

    Args:
        path: the file.
        text_column, response_column: where they stand; the first of `TEXT_COLUMNS` and `RESPONSE_COLUMNS` that is there
            by default. An empty name reads no responses.

    Attributes:
        path, text_column, response_column: what is read.
        unread: the other columns.
        sha256: of the file.

    Raises:
        CorpusError: the file is not there, of no known kind, damaged or empty, or has no such column.
    """

    def __init__(self, path: str | Path, text_column: str | None = None, response_column: str | None = None):
        self.path = Path(path)
        if not self.path.is_file():
            raise CorpusError(f"Texts {str(path)!r}: there is no such file.")
        if self.path.suffix.lower() not in SUFFIXES:
            raise CorpusError(f"Texts {str(path)!r}: expected a file that ends in one of {', '.join(SUFFIXES)}.")
        self.text_column, self.response_column = text_column, response_column
        self.unread: list[str] = []
        self._choose_columns(text_column, response_column)
        self.sha256 = sha256_of(self.path)

    def rows(self, start: int = 0) -> Iterator[TextRow]:
        """
        Every row from the `start`-th on.

        Raises:
            CorpusError: the file is damaged.
        """
        for row in itertools.islice(self._read(), start, None):
            yield self._texts(row)

    def _choose_columns(self, text_column: str | None, response_column: str | None) -> None:
        first = next(self._read(), None)
        if first is None:
            raise CorpusError(f"Texts {str(self.path)!r}: the file holds no texts.")
        if self.path.suffix.lower() == TEXT_SUFFIX:
            named = text_column or response_column
            if named:
                raise CorpusError(f"Texts {str(self.path)!r}: a *{TEXT_SUFFIX} file has no columns, so no {named!r}.")
            return
        if not isinstance(first, dict):
            raise CorpusError(f"Texts {str(self.path)!r}: the first row is not an object with columns, but {first!r}.")
        columns = [name for name in first if name != SURPLUS]
        self.text_column = text_column or next((name for name in TEXT_COLUMNS if name in columns), None)
        if response_column is None:
            rest = (name for name in RESPONSE_COLUMNS if name in columns and name != self.text_column)
            self.response_column = next(rest, None)
        for name, option in ((self.text_column, "--text_column"), (self.response_column, "--response_column")):
            if option == "--response_column" and not name:
                continue
            if name not in columns:
                raise CorpusError(
                    f"Texts {str(self.path)!r}: there is no column "
                    + (f"{name!r}" if name else f"called {', '.join(TEXT_COLUMNS)}")
                    + f"; found {', '.join(map(str, columns))}. Name one with {option}."
                )
        self.unread = [name for name in columns if name not in (self.text_column, self.response_column)]

    def _read(self) -> Iterator[Any]:
        """Rows as they are: objects, strings of a text file, or the reason why there is none as a [`TextRow`]."""
        suffix = self.path.suffix.lower()
        try:
            if suffix == TEXT_SUFFIX:
                with open(self.path, encoding="utf-8-sig") as file:
                    yield from (line for line in file if line.strip())
            elif suffix == JSON_SUFFIX:
                yield from self._json_list()
            elif suffix == JSON_LINES_SUFFIX:
                yield from self._json_lines()
            elif suffix == PARQUET_SUFFIX:
                with pyarrow.parquet.ParquetFile(self.path) as file:
                    for batch in file.iter_batches(PARQUET_BATCH_ROWS):
                        yield from batch.to_pylist()
            else:
                with open(self.path, encoding="utf-8-sig", newline="") as file:
                    yield from csv.DictReader(file, restkey=SURPLUS, delimiter=DELIMITERS[suffix], strict=True)
        except UnicodeDecodeError as error:
            raise CorpusError(f"Texts {str(self.path)!r}: not UTF-8 text: {error.reason}.") from error
        except ExamplesError as error:
            raise CorpusError(f"Texts cannot be read: {error}") from error
        except (csv.Error, pyarrow.ArrowException) as error:
            raise CorpusError(f"Texts {str(self.path)!r} cannot be read: {error}") from error

    def _json_list(self) -> Iterator[Any]:
        problems: list[tuple[str, str]] = []
        yield from (row for _, row in json_rows(self.path, problems))
        if problems:
            raise ExamplesError(self.path, problems)

    def _json_lines(self) -> Iterator[Any]:
        problems: list[tuple[str, str]] = []
        with open(self.path, encoding="utf-8-sig") as file:
            for _, row in json_lines(file, problems):
                yield from (TextRow(problem=f"{where} {reason}") for where, reason in problems)
                problems.clear()
                yield row
        yield from (TextRow(problem=f"{where} {reason}") for where, reason in problems)

    def _texts(self, row: Any) -> TextRow:
        if isinstance(row, TextRow):
            return row
        if isinstance(row, str):
            return TextRow(row)
        if not isinstance(row, dict):
            return TextRow(problem=f"expected an object with {self.text_column!r}, found {row!r}")
        if SURPLUS in row:
            return TextRow(problem=f"the row has {len(row[SURPLUS])} more fields than the first line names")
        found = []
        for name in filter(None, (self.text_column, self.response_column)):
            if not isinstance(row.get(name), str):
                return TextRow(problem=f"expected a text in column {name!r}, found {row.get(name)!r}")
            if not row[name].strip():
                return TextRow(problem=f"column {name!r} is empty")
            found.append(row[name])
        return TextRow(*found)


__all__ = ["TextRow", "TextTable"]

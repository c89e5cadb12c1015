"""
Tables and lists of objects, read row by row: CSV, TSV, JSON, JSON Lines, Parquet, and texts with one row a line.

Only the row at hand is held, except of a JSON list. A row that cannot be read comes in its place, with its problem. Text is
UTF-8 unless a byte-order mark says otherwise. Other bytes become lone surrogates (PEP 383): in a path they are the file's
name; elsewhere they are refused when clips are written.
"""

import codecs
import csv
import gzip
import io
import json
import math
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any, cast

import pyarrow
import pyarrow.parquet

from .clips import CorpusError

DEFAULT_ENCODING = "utf-8"
#: Byte-order marks, and the encoding of each.
BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
TAB, DELIMITERS = "\t", (",", "\t", ";", "|")
GZIP_SUFFIX, PARQUET_SUFFIX, TEXT_SUFFIX = ".gz", ".parquet", ".txt"
JSON_SUFFIXES, TABLE_SUFFIXES = (".json", ".jsonl", ".ndjson"), (".csv", ".tsv", ".psv")
PARQUET_BATCH_ROWS = 1024
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
MAX_SHOWN_CHARACTERS = 60


@dataclass(frozen=True)
class Row:
    """One row."""

    where: str  # "line 4" of a text file, counted from 1, or "row 3" of a JSON list or Parquet file, counted from 0
    values: dict[str, Any] = field(default_factory=dict)  # by column
    problem: str = ""  # why the row cannot be read; empty if it can


def printable(text: str) -> str:
    """Return a text with escapes for what no encoding can write, so that it goes into any file."""
    return text.encode("utf-8", "backslashreplace").decode()


def shown(value: Any) -> str:
    """Return a value as messages show it: quoted, and cut if it is long."""
    quoted = repr(value)
    return quoted if len(quoted) <= MAX_SHOWN_CHARACTERS else quoted[: MAX_SHOWN_CHARACTERS - 3] + "..."


def counted(count: int, thing: str) -> str:
    """Return a number of things in words."""
    return f"{count:,} {thing}" + ("" if count == 1 else "s")


def number(value: Any, name: str) -> float | None:
    """Return a number from 0 on, as JSON or a table has it; None where there is none, ValueError for anything else."""
    if value is None or value == "":
        return None
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not 0 <= found < math.inf:
        raise ValueError(f"{name} is {shown(value)}; expected a number from 0 on")
    return found


# ------------------------------------------------------------------------------------------------------------- lines


def encoding_of(start: bytes) -> str:
    """Return the encoding of a text file by its first bytes: that of its byte-order mark, else UTF-8."""
    return next((name for mark, name in BYTE_ORDER_MARKS.items() if start.startswith(mark)), DEFAULT_ENCODING)


def lines_of(path: str, newline: str | None = None) -> Iterator[str]:
    """Yield the lines of a text file with their ends; a file named `*.gz` is unpacked."""
    number = 0
    try:
        with cast(IO[bytes], gzip.open(path) if path.endswith(GZIP_SUFFIX) else open(path, "rb")) as file:
            used = encoding_of(file.read(max(map(len, BYTE_ORDER_MARKS))))
            file.seek(0)
            for line in io.TextIOWrapper(file, used, "surrogateescape", newline):
                number += 1
                yield line
    except (OSError, EOFError, zlib.error, UnicodeError) as error:
        raise CorpusError(f"{path!r} cannot be read after line {number}: {error}.") from error


# -------------------------------------------------------------------------------------------------------------- rows


def rows_of(path: str) -> Iterator[Row]:
    """
    Yield the rows of a file: Parquet and text by its suffix, JSON by its first character, else a table with a header.

    Raises:
        CorpusError: it cannot be read, or two columns have one name.
    """
    if path.lower().endswith(PARQUET_SUFFIX):
        return _parquet_rows(path)
    if path.lower().endswith(TEXT_SUFFIX):
        lines = enumerate(lines_of(path), start=1)
        return (Row(f"line {number}", {"text": line.rstrip("\r\n")}) for number, line in lines if line.strip())
    first = next((line for line in lines_of(path) if line.strip()), "").lstrip()
    if first.startswith("["):
        return _json_list(path)
    if first.startswith("{") or path.lower().removesuffix(GZIP_SUFFIX).endswith(JSON_SUFFIXES):
        return _json_lines(path)
    delimiter = TAB if path.lower().endswith(".tsv") else max(DELIMITERS, key=first.count)
    return _table_rows(path, delimiter)


def parse_json(text: str) -> Any:
    """Return a JSON value; raise ValueError, which says where, if it is none, or an object has a field twice."""
    try:
        return json.loads(text, object_pairs_hook=_object_without_duplicates)
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"is not JSON: {error.msg} at {place}") from None
    except RecursionError as error:
        raise ValueError(f"cannot be read: {error}") from None


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"field {', '.join(map(shown, twice))} is given more than once in one row")
    return fields


def _object_row(where: str, value: Any) -> Row:
    if isinstance(value, dict):
        return Row(where, value)
    return Row(where, problem=f"is {shown(value)}; expected a JSON object")


def _json_list(path: str) -> Iterator[Row]:
    try:
        values = parse_json("".join(lines_of(path)))
    except ValueError as error:
        raise CorpusError(f"{path!r} {error}.") from error
    for number, value in enumerate(values):
        yield _object_row(f"row {number}", value)


def _json_lines(path: str) -> Iterator[Row]:
    for number, line in enumerate(lines_of(path), start=1):
        if line.strip():
            try:
                yield _object_row(f"line {number}", parse_json(line))
            except ValueError as error:
                yield Row(f"line {number}", problem=str(error))


def _parquet_rows(path: str) -> Iterator[Row]:
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(PARQUET_BATCH_ROWS):
                for values in batch.to_pylist():
                    yield Row(f"row {number}", values)
                    number += 1
    except (OSError, pyarrow.ArrowException) as error:
        raise CorpusError(f"{path!r} cannot be read as Parquet: {error}.") from error


def _table_rows(path: str, delimiter: str) -> Iterator[Row]:
    """
    Yield the rows of a table.

    Between tabs quotation marks are read by column: a column that CSV could have enclosed loses them, any other keeps
    them. With other delimiters they enclose columns, which may then hold delimiters and line ends.
    """
    is_lenient = delimiter == TAB
    quoting: Any = csv.QUOTE_NONE if is_lenient else csv.QUOTE_MINIMAL
    reader = csv.reader(lines_of(path, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
    header: list[str] = []
    while True:
        start = reader.line_num + 1
        try:
            values = next(reader, None)
        except csv.Error as error:
            where = f"line {start}" if reader.line_num <= start else f"lines {start} to {reader.line_num}"
            yield Row(
                where, problem=f"is not a row of a table: {error}; are quotation marks doubled inside quoted columns?"
            )
            continue
        if values is None:
            return
        if not any(values):
            continue
        values = [_unquoted(value) for value in values] if is_lenient else values
        if not header:
            header = _column_names(values, path)
        elif len(values) == len(header):
            yield Row(f"line {start}", dict(zip(header, values)))
        else:
            yield Row(f"line {start}", problem=f"has {len(values)} columns; expected {len(header)}")


def _column_names(header: Iterable[str], path: str) -> list[str]:
    """Return the names of a header, trimmed; a column without one is named by its place."""
    names = [name.strip() or f"column_{place}" for place, name in enumerate(header, start=1)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise CorpusError(f"{path!r} has more than one column {shown(twice[0])}; rename all but one.")
    return names


def _unquoted(value: str) -> str:
    inner = value[1:-1].replace('""', "")
    is_enclosed = len(value) > 1 and value[0] == value[-1] == '"' and '"' not in inner
    return value[1:-1].replace('""', '"') if is_enclosed else value

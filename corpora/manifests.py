"""
Lists of recordings as files hold them, read row by row: tables with a delimiter, JSON lines, Parquet.

Nothing is held but the row at hand, so that a list may have any length; what is wrong with a row comes in its place.
Text is UTF-8 unless a byte-order mark or the caller says otherwise. Bytes that are no text of the encoding become lone
surrogates (PEP 383): as a part of a path they are what the file is called, anywhere else [`text_problem`] names them.
"""

import codecs
import csv
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, cast

import pyarrow
import pyarrow.parquet
from audiollm.files import sha256_of

from .clips import CorpusError

DEFAULT_ENCODING = "utf-8"
#: What a file may begin with, longest first, and the encoding that it says.
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
#: What may part the columns of a table, the first that fits.
DELIMITERS = ("\t", ",", ";", "|")
QUOTATION_MARK = '"'
#: What quotation marks mean in a table: they enclose columns, which may then hold delimiters and ends of lines (csv);
#: they stand for themselves (none); or both, by column, and every line is a row (lenient).
QUOTES = ("csv", "none", "lenient")
GZIP_SUFFIX, PARQUET_SUFFIX = ".gz", ".parquet"
JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
TABLE_SUFFIXES = (".csv", ".tsv", ".psv")
#: A longer line is not one of a list of recordings.
MAX_LINE_CHARACTERS = 2**24
#: How much of a file tells its encoding.
HEAD_BYTES = 2**14
PARQUET_BATCH_ROWS = 1024
#: What is in a text that is none, of Unicode's code points.
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
#: PEP 383's stand-ins for bytes 0x80 to 0xff; other lone surrogates are half an escaped character of JSON.
ESCAPED_BYTES = (0xDC80, 0xDCFF)
#: Columns that a row of a table without header has at least.
MIN_COLUMNS = 2
#: How much of a value messages show.
MAX_SHOWN_CHARACTERS = 60


@dataclass(frozen=True)
class Row:
    """
    One row of a list.

    Attributes:
        where: "line 4" of a text file, counting from 1, or "row 3" of a Parquet file, counting from 0.
        values: by column; texts where the file has no other kinds.
        problem: what is wrong with it as a whole; empty where nothing is.
    """

    where: str
    values: dict[str, Any] = field(default_factory=dict)
    problem: str = ""


def printable(text: str) -> str:
    """`text` with what no encoding can write as escapes, so that ids and messages go into any file."""
    return text.encode("utf-8", "backslashreplace").decode()


def shown(value: Any) -> str:
    """A value as messages show it: quoted, and cut where it is long."""
    quoted = repr(value)
    return quoted if len(quoted) <= MAX_SHOWN_CHARACTERS else quoted[: MAX_SHOWN_CHARACTERS - 3] + "..."


def text_problem(text: str, encoding: str | None) -> str | None:
    """Why `text` is not text: bytes that are none in the encoding, or half a character; None where it is."""
    found = LONE_SURROGATE.search(text)
    if found is None:
        return None
    bad = found.group()
    if ESCAPED_BYTES[0] <= ord(bad) <= ESCAPED_BYTES[1]:
        return (
            f"{shown(text)} holds the byte 0x{ord(bad) & 0xFF:02x}, which is not {(encoding or DEFAULT_ENCODING)} text; "
            "name the encoding of the file, for example --encoding latin-1"
        )
    return f"{shown(text)} holds half of a character (a lone surrogate)"


def encoding_of(path: str, given: str | None = None) -> str:
    """
    The encoding to read a text file with: `given`, else what its byte-order mark says, else UTF-8.

    Raises:
        CorpusError: it cannot be opened, or looks like UTF-16 without a mark or no text at all.
    """
    with _open_bytes(path) as file:
        try:
            head = file.read(HEAD_BYTES)
        except (OSError, EOFError, zlib.error) as error:
            raise CorpusError(f"{path!r} cannot be read: {error}.") from error
    if given is not None:
        # "utf-8" would keep a mark as a character of the first column's name.
        return "utf-8-sig" if codecs.lookup(given).name == "utf-8" else given
    for mark, encoding in BYTE_ORDER_MARKS:
        if head.startswith(mark):
            return encoding
    if b"\0" in head:
        raise CorpusError(
            f"{path!r} holds zero bytes: it is no text, or UTF-16 without a byte-order mark; for that give "
            "--encoding utf-16-le or --encoding utf-16-be."
        )
    return DEFAULT_ENCODING


def lines_of(path: str, encoding: str | None, newline: str | None = None) -> Iterator[str]:
    """
    The lines of a text file, gzipped if its name ends in `.gz`, with their ends.

    Args:
        path: of the file.
        encoding: as in [`encoding_of`].
        newline: as for `open`: "" keeps ends of lines as they are, for the csv module.

    Raises:
        CorpusError: it cannot be read, or has a line that no list of recordings has.
    """
    used = encoding_of(path, encoding)
    number = 0
    with _open_bytes(path) as file:
        try:
            text = io.TextIOWrapper(file, encoding=used, errors="surrogateescape", newline=newline)
            while line := text.readline(MAX_LINE_CHARACTERS):
                number += 1
                if len(line) == MAX_LINE_CHARACTERS:
                    raise CorpusError(
                        f"{path!r}: line {number} is longer than {MAX_LINE_CHARACTERS:,} characters; expected a "
                        "list with one recording a line."
                    )
                yield line
        except UnicodeError as error:
            raise CorpusError(
                f"{path!r} is not {used} text after line {number} ({error}); name its encoding with --encoding."
            ) from error
        except (OSError, EOFError, zlib.error) as error:
            raise CorpusError(f"{path!r} cannot be read after line {number}: {error}.") from error


def first_line(path: str, encoding: str | None) -> str:
    """The first line that is not empty, without its end; empty where there is none. Raises as [`lines_of`]."""
    return next((line.rstrip("\r\n") for line in lines_of(path, encoding) if line.strip()), "")


def fingerprint(path: str) -> str:
    """
    Return the sha256 of a file.

    Raises:
        CorpusError: it cannot be read.
    """
    try:
        return sha256_of(path)
    except OSError as error:
        raise CorpusError(f"{path!r} cannot be read: {error}.") from error


def split_columns(line: str, delimiter: str, quotes: str) -> list[str]:
    """The columns of one line of a table, `quotes` as in `QUOTES`; none where its quotation marks do not pair."""
    try:
        return _unquoted(next(csv.reader([line], **_dialect(delimiter, quotes)), []), quotes)
    except csv.Error:
        return []


def table_rows(
    path: str, delimiter: str, encoding: str | None = None, quotes: str = "csv", names: Sequence[str] | None = None
) -> Iterator[Row]:
    """
    The rows of a table.

    Args:
        path: of the file.
        delimiter: between columns.
        encoding: as in [`encoding_of`].
        quotes: one of `QUOTES`; Common Voice needs "lenient", since its releases enclose some sentences as CSV does
            and leave others with marks that do not pair.
        names: of the columns, for a table without header; one that the last ones may lack.

    Raises:
        CorpusError: as [`lines_of`], or two columns have one name.
    """
    reader = csv.reader(lines_of(path, encoding, newline=""), **_dialect(delimiter, quotes))
    header = list(names or ())
    while True:
        start = reader.line_num + 1
        try:
            values = next(reader, None)
        except csv.Error as error:
            where = f"line {start}" if reader.line_num <= start else f"lines {start} to {reader.line_num}"
            hint = (
                "; if quotation marks stand for themselves in this file, give --quotes none" if quotes == "csv" else ""
            )
            yield Row(where, problem=f"is not a row of a table: {error}{hint}")
            continue
        if values is None:
            return
        if not values or values == [""]:
            continue
        if not header:
            header = column_names(_unquoted(values, quotes), path)
        elif len(values) == len(header) or (names and MIN_COLUMNS <= len(values) <= len(header)):
            yield Row(f"line {start}", dict(zip(header, _unquoted(values, quotes), strict=False)))
        else:
            quoted = quotes != "csv" and any(value.startswith(QUOTATION_MARK) for value in values)
            hint = "; if quotation marks enclose columns in this file, give --quotes csv" if quoted else ""
            yield Row(f"line {start}", problem=f"has {len(values)} columns; expected {len(header)}{hint}")


def column_names(header: Sequence[str], path: str) -> list[str]:
    """
    The names in a header, trimmed; a column without name, as pandas writes its index, is called by its place.

    Raises:
        CorpusError: two columns have one name.
    """
    names = [name.strip() or f"column_{place}" for place, name in enumerate(header, start=1)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise CorpusError(f"{path!r} has more than one column {shown(twice[0])}; rename all but one.")
    return names


def json_rows(path: str, encoding: str | None = None) -> Iterator[Row]:
    """The objects of a JSON Lines file; other values, and what is not JSON, as problems. Raises as [`lines_of`]."""
    for number, line in enumerate(lines_of(path, encoding), start=1):
        if not line.strip():
            continue
        where = f"line {number}"
        try:
            values = json.loads(line, object_pairs_hook=_without_duplicates)
        except json.JSONDecodeError as error:
            yield Row(where, problem=f"is not JSON: {error.msg} at column {error.colno}")
        except (ValueError, RecursionError) as error:
            yield Row(where, problem=f"cannot be read: {error}")
        else:
            if isinstance(values, dict):
                yield Row(where, values)
            else:
                yield Row(where, problem=f"is {shown(values)}; expected a JSON object")


def parquet_rows(path: str) -> Iterator[Row]:
    """
    The rows of a Parquet file.

    Raises:
        CorpusError: it is none, or is damaged.
    """
    number = 0
    with _open_parquet(path) as file:
        try:
            for batch in file.iter_batches(PARQUET_BATCH_ROWS):
                for values in batch.to_pylist():
                    yield Row(f"row {number}", values)
                    number += 1
        except (OSError, pyarrow.ArrowException) as error:
            raise CorpusError(f"{path!r} cannot be read after row {number}: {error}.") from error


def parquet_names(path: str) -> list[str]:
    """The columns of a Parquet file. Raises as [`parquet_rows`]."""
    with _open_parquet(path) as file:
        return list(file.schema_arrow.names)


def _open_parquet(path: str) -> pyarrow.parquet.ParquetFile:
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise CorpusError(f"{path!r} cannot be read as Parquet: {error}.") from error


def _open_bytes(path: str) -> IO[bytes]:
    try:
        if not os.path.isfile(path):
            raise CorpusError(f"{path!r} is not a file.")
        if path.endswith(GZIP_SUFFIX):
            return cast(IO[bytes], gzip.open(path, "rb"))
        return open(path, "rb")
    except OSError as error:
        raise CorpusError(f"{path!r} cannot be read: {error}.") from error


def _dialect(delimiter: str, quotes: str) -> dict[str, Any]:
    quoting = csv.QUOTE_MINIMAL if quotes == "csv" else csv.QUOTE_NONE
    return {"delimiter": delimiter, "quoting": quoting, "strict": True}


def _unquoted(values: list[str], quotes: str) -> list[str]:
    """Lenient columns: those that CSV could have enclosed, without the marks; others as they are."""
    if quotes != "lenient":
        return values
    mark = QUOTATION_MARK
    return [
        value[1:-1].replace(mark * 2, mark)
        if len(value) > 1 and value[0] == value[-1] == mark and mark not in value[1:-1].replace(mark * 2, "")
        else value
        for value in values
    ]


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(shown(name) for name in names if names.count(name) > 1)} is given more than once")
    return values


__all__ = [
    "DELIMITERS",
    "GZIP_SUFFIX",
    "JSON_SUFFIXES",
    "PARQUET_SUFFIX",
    "QUOTES",
    "TABLE_SUFFIXES",
    "Row",
    "column_names",
    "encoding_of",
    "fingerprint",
    "first_line",
    "json_rows",
    "lines_of",
    "parquet_names",
    "parquet_rows",
    "printable",
    "shown",
    "split_columns",
    "table_rows",
    "text_problem",
]

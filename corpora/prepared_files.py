"""Files of a prepared corpus: examples as JSON, JSON Lines and Parquet, and the table of all clips."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

EXAMPLES_NAME, TABLE_FILE = "instruction_examples", "clips.parquet"
PARQUET_FOLDER, CARD_FILE = "parquet", "README.md"
FORMATS = ("json", "jsonl", "parquet")
#: Rows, and bytes of audio, that are held before they are written to a Parquet file.
ROWS_PER_GROUP, BYTES_PER_GROUP = 1000, 32 << 20
#: Columns that the table of all clips always has.
TABLE_COLUMNS = {"id": pa.string(), "split": pa.string(), "audio": pa.string(), "text": pa.string()}
TABLE_COLUMNS |= {"duration": pa.float64(), "bytes": pa.int64(), "sha256": pa.string()}
ARROW_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}

Row = dict[str, Any]


class FieldTypes:
    """Column types of clips' further fields, from the rows seen so far; numbers of two kinds become floats."""

    def __init__(self):
        self.types: dict[str, type] = {}

    def see(self, fields: dict[str, Any]) -> None:
        """Take note of one clip's fields."""
        for name, value in fields.items():
            known = self.types.setdefault(name, type(value))
            if known is type(None):
                self.types[name] = type(value)
            elif value is not None and known is not type(value):
                self.types[name] = float if {known, type(value)} <= {int, float} else str

    def schema(self) -> dict[str, pa.DataType]:
        """Return the columns in alphabetical order."""
        return {name: ARROW_TYPES.get(kind, pa.string()) for name, kind in sorted(self.types.items())}

    def fit(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Return values as the columns hold them."""
        values = {name: fields.get(name) for name in self.types}
        return {name: value if value is None else self.types[name](value) for name, value in values.items()}


class ParquetWriter:
    """Writer of rows to a Parquet file, a bounded number of them in memory; keys that are no columns are left out."""

    def __init__(self, path: Path, schema: pa.Schema):
        self.schema = schema
        path.parent.mkdir(parents=True, exist_ok=True)
        # The parts of a struct have other names: audio is compressed already.
        self._writer = pq.ParquetWriter(path, schema, compression=dict.fromkeys(schema.names, "zstd"))
        self._rows: list[Row] = []
        self._bytes = 0

    def add(self, row: Row, size: int = 0) -> None:
        """Add a row, which holds `size` bytes of audio."""
        self._rows.append(row)
        self._bytes += size
        if len(self._rows) >= ROWS_PER_GROUP or self._bytes >= BYTES_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self.schema))
        self._rows, self._bytes = [], 0

    def close(self) -> None:
        """Write the rows in memory, and the file's end."""
        self._flush()
        self._writer.close()


class JsonWriter:
    """Writer of objects to a JSON list or, if the name ends in `.jsonl`, one a line."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lines = path.suffix == ".jsonl"
        self._file = open(path, "w", encoding="utf-8", newline="\n")  # noqa: SIM115 (close() does)
        self._count = 0
        if not self._lines:
            self._file.write("[")

    def add(self, example: dict[str, Any]) -> None:
        """Add an object."""
        text = json.dumps(example, ensure_ascii=False, indent=None if self._lines else 2)
        if self._lines:
            self._file.write(text + "\n")
        else:
            self._file.write(("," if self._count else "") + "\n  " + text.replace("\n", "\n  "))
        self._count += 1

    def close(self) -> None:
        """Write the list's end."""
        if not self._lines:
            self._file.write("\n]\n" if self._count else "]\n")
        self._file.close()


class ShardWriter:
    """
    Writer of one split's examples to Parquet files with their audio inside, as `load_dataset` reads them.

    Beside the columns of every example there are the corpus' own. A new file, `<split>-00000.parquet` and so on, begins
    after so many bytes of audio.
    """

    def __init__(self, folder: Path, split: str, fields: dict[str, pa.DataType], shard_bytes: int):
        self.folder, self.split, self.shard_bytes = folder, split, shard_bytes
        columns = {"id": pa.string(), "task": pa.string(), "text": pa.string()}
        columns |= {"audio": pa.struct({"bytes": pa.binary(), "path": pa.string()})}
        columns |= {"response": pa.string(), "transcript": pa.string(), "duration": pa.float64()}
        self.fields = {name: kind for name, kind in fields.items() if name not in columns}
        features = datasets.Features.from_arrow_schema(pa.schema(columns | self.fields))
        features["audio"] = datasets.Audio(sampling_rate=16_000)
        self.schema = features.arrow_schema
        self._writer: ParquetWriter | None = None
        self._shards = self._size = 0

    def add(self, row: Row, task: str, prompt: str, response: str, audio: bytes) -> None:
        """Add an example of the clip `row`, whose file holds `audio`."""
        if self._writer is None or self._size >= self.shard_bytes:
            self.close()
            self._writer = ParquetWriter(self.folder / f"{self.split}-{self._shards:05d}.parquet", self.schema)
            self._shards, self._size = self._shards + 1, 0
        example = {name: value for name, value in row["fields"].items() if name in self.fields}
        example |= {"id": row["id"], "task": task, "text": prompt, "response": response, "transcript": row["text"]}
        example |= {"audio": {"bytes": audio, "path": Path(row["audio"]).name}, "duration": row["duration"]}
        self._writer.add(example, len(audio))
        self._size += len(audio)

    def close(self) -> None:
        """End the file under way."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def examples_name(split: str, splits: Sequence[str], ending: str) -> str:
    """Return the name of a split's examples file; the only split is not named."""
    return f"{EXAMPLES_NAME}.{ending}" if len(splits) == 1 else f"{EXAMPLES_NAME}.{split}.{ending}"


def dataset_card(splits: Sequence[str], contents: str) -> str:
    """
    Return the card by which `load_dataset` finds each split's files; hyphens, which it does not take, become dots.

    `contents` changes whenever a file does, since `datasets` caches a folder by its name and card alone.
    """
    files = [{"split": split.replace("-", "."), "path": f"{split}-*.parquet"} for split in splits]
    configs = [{"config_name": "default", "description": contents, "data_files": files}]
    head = yaml.safe_dump({"configs": configs}, sort_keys=False, allow_unicode=True)
    return f"---\n{head}---\n\nPrepared by `audiollm prepare`.\n"

"""Tables of recordings as corpora have them on the Hub, made by code."""

from pathlib import Path
from typing import Any

import datasets
import yaml
from datasets import Audio, Value

STORED = {"bytes": Value("binary"), "path": Value("string")}


def as_table(rows: list[dict[str, Any]], features: dict[str, Any]) -> datasets.Dataset:
    """Rows with the types of the real corpus; recordings are cast, since `datasets` writes them with torchcodec only."""
    plain = {name: STORED if isinstance(kind, Audio) else kind for name, kind in features.items()}
    return datasets.Dataset.from_list(rows, features=datasets.Features(plain)).cast(datasets.Features(features))


def stored(form: str, folder: Path, table: datasets.Dataset, split: str = "train") -> str:
    """Writes a table as one file, as shards, saved, or saved beside another split; returns the path."""
    folder.mkdir(exist_ok=True)
    first, rest = table.select([0]), table.select(range(1, len(table)))
    other = "test" if split == "train" else "train"
    if form == "parquet":
        table.to_parquet(folder / "data.parquet")
        return str(folder / "data.parquet")
    if form == "shards":
        for number, part in enumerate((first, rest)):
            part.to_parquet(folder / f"{split}-0000{number}-of-00002.parquet")
        first.to_parquet(folder / f"{other}-00000-of-00001.parquet")
    elif form == "saved":
        table.save_to_disk(str(folder))
    else:
        datasets.DatasetDict({other: first, split: table}).save_to_disk(str(folder))
    return str(folder)


def write_card(folder: Path, config: str | None, split: str, path: str) -> None:
    """A README that says which files a split has."""
    card = {"configs": [{"config_name": config or "default", "data_files": [{"split": split, "path": path}]}]}
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n")


def write_table(
    folder: Path,
    config: str | None,
    split: str,
    features: dict[str, Any],
    rows: list[dict[str, Any]],
    file: str | None = None,
) -> Path:
    """A split as Parquet, found by the names of files (`file`), or by a card as datasets on the Hub have it."""
    path = folder / (file or f"{config or 'data'}/{split}-00000-of-00001.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    as_table(rows, features).to_parquet(path)
    if file is None:
        write_card(folder, config, split, f"{path.parent.name}/{split}-*")
    return folder

"""
Where each benchmark is: `benchmarks.yaml`, beside the ready corpora of `corpora/catalogue.yaml`, both as `Corpus`.

Both are read by the corpora room's own reader of datasets. Here a corpus' transcripts are references: they are taken as
they are written, and one that is empty is a row like any other.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from audiollm.corpora.catalogue import LICENCE, Corpus, load_catalogue
from audiollm.corpora.columns import ColumnSpec

from .task import TaskError

BENCHMARKS_FILE = Path(__file__).parent / "benchmarks.yaml"
REQUIRED_KEYS = ("title", "licence", "languages", "splits", "columns", "citation")
OPTIONAL_KEYS = (
    *("hub", "revision", "files", "audio_folder", "withdrawn", "gated", "configs", "terms", "note", "constants"),
    *("alternatives", "parent", "inherits", "checked", "from_memory"),
)
ABSTRACT_PREFIX = "_"
#: The field that references of speech recognition are in.
TRANSCRIPT = "transcript"
#: Transforms of transcripts that make them better to learn from, and other than they are written.
LETTER_CASE = "sentence_case"


@lru_cache(maxsize=1)
def benchmark_table() -> dict[str, dict[str, Any]]:
    """
    The entries of `benchmarks.yaml` by name, with what they inherit.

    Raises:
        TaskError: an entry has an unknown key, none of a required one, or does not say where its facts are from.
    """
    table = yaml.safe_load(BENCHMARKS_FILE.read_text(encoding="utf-8"))
    entries = {}
    for name, own in table.items():
        entry = {**table.get(own.get("inherits"), {}), **own}
        unknown = [key for key in entry if key not in (*REQUIRED_KEYS, *OPTIONAL_KEYS)]
        missing = [] if name.startswith(ABSTRACT_PREFIX) else [key for key in REQUIRED_KEYS if not entry.get(key)]
        if unknown or missing:
            wrong = f"the unknown key {unknown[0]!r}" if unknown else f"no {missing[0]!r}"
            raise TaskError(f"Benchmark {name!r} has {wrong}.")
        if name.startswith(ABSTRACT_PREFIX):
            continue
        if not entry.get("checked") and not entry.get("from_memory"):
            raise TaskError(
                f"Benchmark {name!r} says neither where its facts were 'checked' nor which are 'from_memory'."
            )
        if not LICENCE.fullmatch(entry["licence"]):
            raise TaskError(f"Benchmark {name!r}: licence {entry['licence']!r} is no SPDX identifier or LicenseRef-….")
        if not entry.get("hub") and not entry.get("withdrawn"):
            raise TaskError(f"Benchmark {name!r} is not on the Hub; say under 'withdrawn' where it is to be had.")
        entries[name] = entry
    return entries


def benchmark(name: str, config: str | None = None) -> Corpus:
    """
    A benchmark, or a ready corpus as one, with a config chosen.

    Raises:
        TaskError: neither table has it.
        CorpusError: it has no such config.
    """
    return raw_benchmark(name).with_config(config)


def raw_benchmark(name: str) -> Corpus:
    """
    A benchmark, or a ready corpus as one, before a config is chosen.

    Raises:
        TaskError: neither table has it.
    """
    if name in benchmark_table():
        return _from_table(name, benchmark_table()[name])
    if name not in load_catalogue():
        raise TaskError(f"There is no benchmark {name!r}; expected one of {', '.join(benchmark_table())}.")
    return as_reference(load_catalogue()[name])


def as_reference(corpus: Corpus) -> Corpus:
    """A corpus whose transcripts are a field of their own, as they are written, so that empty ones are read too."""
    columns: dict[str, ColumnSpec] = {}
    for name, spec in corpus.columns.items():
        if name == "text":
            kept = tuple(transform for transform in spec.transforms if transform != LETTER_CASE)
            columns[TRANSCRIPT] = replace(spec, transforms=kept)
        else:
            columns[name] = spec
    return replace(corpus, columns=columns, tasks=())


def _from_table(name: str, entry: Mapping[str, Any]) -> Corpus:
    configs = entry.get("configs", {})
    return Corpus(
        name=name,
        title=entry["title"],
        licence=entry["licence"],
        languages=tuple(entry["languages"]),
        splits=tuple(entry["splits"]),
        columns={field: ColumnSpec((column,)) for field, column in entry["columns"].items()},
        tasks=(),
        citation=entry["citation"],
        hub=entry.get("hub"),
        revision=entry.get("revision"),
        files=tuple(entry.get("files", ())),
        audio_folder=entry.get("audio_folder", ""),
        withdrawn=entry.get("withdrawn"),
        gated=bool(entry.get("gated", False)),
        configs={config: {} for config in configs} if isinstance(configs, list) else configs,
        default_config=configs[0] if isinstance(configs, list) and len(configs) == 1 else None,
        default_splits=tuple(entry["splits"][:1]),
        constants=entry.get("constants", {}),
        terms=entry.get("terms"),
        note=entry.get("note"),
    )


__all__ = ["TRANSCRIPT", "as_reference", "benchmark", "benchmark_table", "raw_benchmark"]

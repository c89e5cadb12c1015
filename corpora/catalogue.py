"""The ready corpora of `catalogue.yaml`, looked up by name; an entry inherits from another what they share."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from .clips import CorpusError, FieldValue
from .columns import ColumnSpec
from .tasks import Task, known_tasks

CATALOGUE_FILE = Path(__file__).parent / "catalogue.yaml"
CONFIG_SEPARATOR = ":"
#: Entries that others only inherit from begin with this.
ABSTRACT_PREFIX = "_"
#: Transforms of transcripts by their letter case.
CASE_TRANSFORMS: dict[str, tuple[str, ...]] = {"mixed": (), "lower": (), "upper": ("sentence_case",)}
#: Keys whose tables are merged with those inherited, name by name; null takes one out.
MERGED_KEYS = ("columns", "constants", "prompts", "configs")


@dataclass(frozen=True)
class Corpus:
    """
    One entry of the table; the head of `catalogue.yaml` says what its keys mean.

    `name` is the entry's, with its config behind a colon once one is chosen. `configs` are constants by config, or a pattern
    of configs' names. `default_splits` are read unless others are asked for. The last four are of benchmarks.
    """

    name: str
    title: str
    licence: str
    languages: tuple[str, ...]
    splits: tuple[str, ...]
    columns: Mapping[str, ColumnSpec]
    tasks: tuple[Task, ...]
    citation: str
    hub: str | None = None
    revision: str | None = None
    files: tuple[str, ...] = ()
    audio_folder: str = ""
    withdrawn: str | None = None
    gated: bool = False
    configs: Mapping[str, Mapping[str, FieldValue]] | str = field(default_factory=dict)
    default_config: str | None = None
    default_splits: tuple[str, ...] = ()
    config: str | None = None
    constants: Mapping[str, FieldValue] = field(default_factory=dict)
    terms: str | None = None
    note: str | None = None
    alternatives: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    parent: str | None = None
    checked: str | None = None
    unknown: tuple[str, ...] = ()

    def with_config(self, config: str | None) -> "Corpus":
        """Return this corpus with a config chosen, by default its own; raise CorpusError if it has no such config."""
        config = config or self.default_config
        if not self.configs:
            if config is not None:
                raise CorpusError(f"Corpus {self.name!r} has no configs; leave out {config!r}.")
            return self
        known = f"names that match {self.configs}" if isinstance(self.configs, str) else ", ".join(self.configs)
        if config is None:
            raise CorpusError(
                f"Corpus {self.name!r} has several configs; name one as {self.name}{CONFIG_SEPARATOR}CONFIG, of {known}."
            )
        if isinstance(self.configs, str):
            constants: Mapping[str, FieldValue] | None = {} if re.fullmatch(self.configs, config) else None
        else:
            constants = self.configs.get(config)
        if constants is None:
            hint = "" if isinstance(self.configs, str) else _perhaps(config, self.configs)
            raise CorpusError(f"Corpus {self.name!r} has no config {config!r}.{hint} There are: {known}.")
        name = f"{self.name}{CONFIG_SEPARATOR}{config}"
        return replace(self, name=name, config=config, constants={**self.constants, **constants})


@lru_cache(maxsize=1)
def load_catalogue() -> dict[str, Corpus]:
    """Return all corpora of the table, by name."""
    return corpora_of(yaml.safe_load(CATALOGUE_FILE.read_text(encoding="utf-8")))


def corpora_of(table: Mapping[str, Any]) -> dict[str, Corpus]:
    """Return the corpora of a table in the form of `catalogue.yaml`, by name."""
    names = [name for name in table if not name.startswith(ABSTRACT_PREFIX)]
    return {name: _corpus(name, _inherited(name, table)) for name in names}


def is_corpus_name(given: str) -> bool:
    """Return whether something like `fleurs` or `covost2:en_de` names a corpus of the table."""
    return given.partition(CONFIG_SEPARATOR)[0] in load_catalogue()


def corpus_named(given: str, config: str | None = None) -> Corpus:
    """Return a corpus by its name: `covost2:en_de`, or `covost2` with its config; raise CorpusError without one."""
    name, _, inner = given.partition(CONFIG_SEPARATOR)
    catalogue = load_catalogue()
    if name not in catalogue:
        known = ", ".join(catalogue)
        raise CorpusError(f"There is no corpus {name!r} in the table.{_perhaps(name, catalogue)} It has: {known}.")
    if inner and config and inner != config:
        raise CorpusError(f"{given!r} names the config {inner!r}, and --config another one, {config!r}.")
    return catalogue[name].with_config(inner or config)


def describe_catalogue() -> str:
    """Return the table for people: where each corpus is, on what terms, and what can be asked about its clips."""
    blocks = []
    for corpus in load_catalogue().values():
        where = corpus.hub or "no dataset of the Hub"
        if corpus.withdrawn:
            where = f"{corpus.withdrawn} Give your copy with --source_path."
        elif corpus.gated:
            where += ", after accepting its terms there"
        configs = corpus.configs if isinstance(corpus.configs, str) else ", ".join(corpus.configs)
        default = f"; {corpus.default_config} unless told otherwise" if corpus.default_config else ""
        about = {
            "where": where,
            "licence": corpus.licence + (f" ({corpus.terms})" if corpus.terms else ""),
            "languages": ", ".join(corpus.languages),
            "configs": f"{configs}{default}" if configs else None,
            "splits": f"{', '.join(corpus.splits)}; read unless told otherwise: {', '.join(corpus.default_splits)}",
            "tasks": ", ".join(task.name for task in corpus.tasks),
            "note": corpus.note,
            "cite": corpus.citation,
        }
        lines = [f"{name}: {value}" for name, value in about.items() if value]
        blocks.append("\n  ".join([f"{corpus.name}: {corpus.title}", *lines]))
    usage = "Prepare one with `audiollm prepare huggingface --dataset NAME:CONFIG`, from a copy on disk with --source_path."
    return "\n\n".join([*blocks, usage + "\n"])


def _perhaps(given: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(given, known, n=1)
    return f" Perhaps {near[0]!r}?" if near else ""


def _inherited(name: str, table: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry with everything that it inherits."""
    own = dict(table[name])
    parent = own.pop("inherits", None)
    entry = {} if parent is None else _inherited(parent, table)
    for key, value in own.items():
        if key in MERGED_KEYS and isinstance(value, dict) and isinstance(entry.get(key), dict):
            merged = {**entry[key], **value}
            entry[key] = {inner: each for inner, each in merged.items() if each is not None}
        else:
            entry[key] = value
    return {key: value for key, value in entry.items() if value is not None}


def _corpus(name: str, entry: dict[str, Any]) -> Corpus:
    entry = dict(entry)
    columns = {key: _column(value) for key, value in entry.pop("columns").items()}
    case = CASE_TRANSFORMS[entry.pop("letter_case", "mixed")]
    if "text" in columns:
        columns["text"] = replace(columns["text"], transforms=columns["text"].transforms + case)
    prompts, known = entry.pop("prompts", {}), known_tasks()
    tasks = tuple(
        replace(known[task], prompts=tuple(prompts[task])) if task in prompts else known[task]
        for task in entry.pop("tasks", ())
    )
    entry.setdefault("default_splits", entry["splits"][:1])
    configs = entry.pop("configs", {})
    configs = {config: {} for config in configs} if isinstance(configs, list) else configs
    lists = {key: tuple(value) for key, value in entry.items() if isinstance(value, list)}
    return Corpus(name=name, columns=columns, tasks=tasks, configs=configs, **(entry | lists))


def _column(value: Any) -> ColumnSpec:
    """Return `sentence`, `{column: text, transforms: […]}`, `{each: captions}` or `{each: [caption_1, …]}` as a spec."""
    if isinstance(value, str):
        return ColumnSpec((value,))
    columns = value.get("column", value.get("each"))
    columns = (columns,) if isinstance(columns, str) else tuple(columns)
    return ColumnSpec(columns, tuple(value.get("transforms", ())), each="each" in value)

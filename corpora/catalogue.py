"""
The ready corpora: `catalogue.yaml`, read, checked and looked up by name.

An entry says where a corpus is, on what terms, what its columns are called and what can be asked about its clips. It
inherits from another where they share that. Nothing here is about one corpus in particular.
"""

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
#: Entries that only others inherit from begin with this.
ABSTRACT_PREFIX = "_"
#: Transform of transcripts by the letter case that a corpus has them in.
CASE_TRANSFORMS: dict[str, tuple[str, ...]] = {"mixed": (), "lower": (), "upper": ("sentence_case",)}
REQUIRED_KEYS = ("title", "licence", "languages", "splits", "columns", "tasks", "citation")
OPTIONAL_KEYS = (
    *("hub", "revision", "files", "audio_folder", "withdrawn", "gated", "configs", "default_config"),
    *("default_splits", "constants", "letter_case", "prompts", "terms", "note"),
)
#: Keys whose tables are merged with those inherited, name by name; null takes one out.
MERGED_KEYS = ("columns", "constants", "prompts", "configs")
#: Identifiers of licences as SPDX has them, or in its form for others.
LICENCE = re.compile(r"[A-Z][A-Za-z0-9]*(-[A-Za-z0-9.]+)*|LicenseRef-[A-Za-z0-9.-]+")
LISTING_INDENT = "  "


class CatalogueError(ValueError):
    """The table itself is wrong; the message names the entry and what is wrong with it."""


@dataclass(frozen=True)
class Corpus:
    """
    One entry of the table.

    Attributes:
        name: of the entry, with its config behind a colon once one is chosen.
        title: what people call it.
        licence: SPDX identifier, or one of `LicenseRef-…`; `terms` then is where it is written.
        languages: as the corpus says it: codes, or what its configs stand for.
        splits: those that it has; `default_splits` those that are read unless others are asked for.
        columns: where fields come from; every column must be there.
        tasks: what can be asked about its clips, with this corpus' own wordings where it has some.
        citation: the paper or page to cite.
        hub: id on the Hugging Face Hub; None where it is not there.
        revision: branch of the Hub that is read.
        files: patterns of files, on the Hub or in a local copy, in which {config} and {split} are put; the first one
            that finds any is taken. Empty where `load_dataset` finds them itself.
        audio_folder: where recordings lie, seen from a file that names them.
        withdrawn: why it cannot be downloaded, and where to get it.
        gated: whether the Hub asks to accept terms first.
        configs: constants by config; or a pattern of configs' names; empty where there are none.
        config: the one chosen.
        constants: fields that are the same for every clip.
        terms: where the licence, or what else binds users, is written.
        note: what users should know.
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

    def with_config(self, config: str | None) -> "Corpus":
        """
        This corpus with one of its configs chosen: the given one, or its default.

        Raises:
            CorpusError: it has no such config, or none was given and there is no default.
        """
        config = config or self.default_config
        if not self.configs:
            if config is not None:
                raise CorpusError(f"Corpus {self.name!r} has no configs; leave out {config!r}.")
            return self
        known = f"names that match {self.configs}" if isinstance(self.configs, str) else ", ".join(self.configs)
        if config is None:
            raise CorpusError(
                f"Corpus {self.name!r} has several configs; name one as {self.name}{CONFIG_SEPARATOR}CONFIG. "
                f"There are: {known}."
            )
        if isinstance(self.configs, str):
            constants: Mapping[str, FieldValue] | None = {} if re.fullmatch(self.configs, config) else None
        else:
            constants = self.configs.get(config)
        if constants is None:
            near = [] if isinstance(self.configs, str) else difflib.get_close_matches(config, self.configs, n=1)
            hint = f" Perhaps {near[0]!r}?" if near else ""
            raise CorpusError(f"Corpus {self.name!r} has no config {config!r}.{hint} There are: {known}.")
        return replace(
            self,
            name=f"{self.name}{CONFIG_SEPARATOR}{config}",
            config=config,
            constants={**self.constants, **constants},
        )


@lru_cache(maxsize=4)
def load_catalogue(path: Path = CATALOGUE_FILE) -> dict[str, Corpus]:
    """
    All corpora of a table, by name, checked.

    Raises:
        CatalogueError: an entry has an unknown key or none of a required one, inherits in a circle or from nothing, or
            has a task that does not exist or that its fields cannot serve.
    """
    table = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(table, dict) or not all(isinstance(entry, dict) for entry in table.values()):
        raise CatalogueError(f"{path.name}: expected a table of entries by name.")
    entries = {name: _inherited(name, table, ()) for name in table}
    return {name: _corpus(name, entry) for name, entry in entries.items() if not name.startswith(ABSTRACT_PREFIX)}


def is_corpus_name(given: str) -> bool:
    """Whether something like `fleurs` or `covost2:en_de` names a corpus of the table."""
    return given.partition(CONFIG_SEPARATOR)[0] in load_catalogue()


def corpus_named(given: str, config: str | None = None) -> Corpus:
    """
    A corpus by its name, `covost2:en_de` or `covost2` with its config.

    Raises:
        CorpusError: the table has no such corpus, or the corpus no such config, or two different ones are given.
    """
    name, _, inner = given.partition(CONFIG_SEPARATOR)
    catalogue = load_catalogue()
    if name not in catalogue:
        near = difflib.get_close_matches(name, catalogue, n=1)
        hint = f" Perhaps {near[0]!r}?" if near else ""
        raise CorpusError(f"There is no corpus {name!r} in the table.{hint} It has: {', '.join(catalogue)}.")
    if inner and config and inner != config:
        raise CorpusError(f"{given!r} names the config {inner!r}, and --config another one, {config!r}.")
    return catalogue[name].with_config(inner or config)


def describe_catalogue() -> str:
    """The table for people: where each corpus is, on what terms, and what can be asked about its clips."""
    blocks = []
    for corpus in load_catalogue().values():
        where = corpus.hub or "no dataset of the Hub"
        if corpus.withdrawn:
            where = f"{corpus.withdrawn} Give your copy with --source_path."
        elif corpus.gated:
            where += ", after accepting its terms there"
        lines = [
            f"{corpus.name}: {corpus.title}",
            f"where: {where}",
            f"licence: {corpus.licence}" + (f" ({corpus.terms})" if corpus.terms else ""),
            f"languages: {', '.join(corpus.languages)}",
            f"configs: {_shown_configs(corpus)}",
            f"splits: {', '.join(corpus.splits)}; read unless told otherwise: {', '.join(corpus.default_splits)}",
            f"tasks: {', '.join(task.name for task in corpus.tasks)}",
            *([f"note: {corpus.note}"] if corpus.note else []),
            f"cite: {corpus.citation}",
        ]
        blocks.append(f"\n{LISTING_INDENT}".join(line for line in lines if not line.endswith(": none")))
    return "\n\n".join(blocks) + (
        "\n\nPrepare one with `audiollm prepare huggingface --dataset NAME:CONFIG`, from a copy on disk with "
        "--source_path.\n"
    )


def _shown_configs(corpus: Corpus) -> str:
    if not corpus.configs:
        return "none"
    shown = corpus.configs if isinstance(corpus.configs, str) else ", ".join(corpus.configs)
    return shown + (f"; {corpus.default_config} unless told otherwise" if corpus.default_config else "")


# --------------------------------------------------------------------------------------------------- reading the table


def _inherited(name: str, table: Mapping[str, Any], below: tuple[str, ...]) -> dict[str, Any]:
    """An entry with everything that it inherits."""
    if name in below:
        raise CatalogueError(f"Corpus {below[0]!r} inherits in a circle: {' → '.join((*below, name))}.")
    if name not in table:
        raise CatalogueError(f"Corpus {below[-1]!r} inherits from {name!r}, which is not in the table.")
    own = dict(table[name])
    unknown = [key for key in own if key not in (*REQUIRED_KEYS, *OPTIONAL_KEYS, "inherits")]
    if unknown:
        near = difflib.get_close_matches(unknown[0], (*REQUIRED_KEYS, *OPTIONAL_KEYS), n=1)
        hint = f"; perhaps {near[0]!r}?" if near else ""
        raise CatalogueError(f"Corpus {name!r} has the unknown key {unknown[0]!r}{hint}")
    parent = own.pop("inherits", None)
    entry = {} if parent is None else _inherited(parent, table, (*below, name))
    for key, value in own.items():
        if key in MERGED_KEYS and isinstance(value, dict) and isinstance(entry.get(key), dict):
            merged = {**entry[key], **value}
            entry[key] = {inner: each for inner, each in merged.items() if each is not None}
        else:
            entry[key] = value
    return {key: value for key, value in entry.items() if value is not None}


def _corpus(name: str, entry: dict[str, Any]) -> Corpus:
    missing = [key for key in REQUIRED_KEYS if not entry.get(key)]
    if missing:
        raise CatalogueError(f"Corpus {name!r} has no {missing[0]!r}.")
    if not LICENCE.fullmatch(entry["licence"]):
        raise CatalogueError(f"Corpus {name!r}: licence {entry['licence']!r} is no SPDX identifier or LicenseRef-….")
    if entry["licence"].startswith("LicenseRef-") and not entry.get("terms"):
        raise CatalogueError(
            f"Corpus {name!r} has terms of its own, {entry['licence']}, but no 'terms' that links them."
        )
    if not entry.get("hub") and not entry.get("withdrawn"):
        raise CatalogueError(f"Corpus {name!r} is not on the Hub; say under 'withdrawn' where it is to be had.")
    letter_case = entry.get("letter_case", "mixed")
    if letter_case not in CASE_TRANSFORMS:
        raise CatalogueError(
            f"Corpus {name!r}: letter_case is one of {', '.join(CASE_TRANSFORMS)}, not {letter_case!r}."
        )
    configs = entry.get("configs", {})
    if isinstance(configs, list):
        configs = {config: {} for config in configs}
    columns = {key: _column(name, key, value) for key, value in entry["columns"].items()}
    if "audio" not in columns:
        raise CatalogueError(f"Corpus {name!r} has no column for 'audio'.")
    if "text" in columns:
        text = columns["text"]
        columns["text"] = replace(text, transforms=text.transforms + CASE_TRANSFORMS[letter_case])
    constants = entry.get("constants", {})
    splits = tuple(entry["splits"])
    default_splits = tuple(entry.get("default_splits") or splits[:1])
    if not set(default_splits) <= set(splits):
        raise CatalogueError(
            f"Corpus {name!r}: its default splits {list(default_splits)} are not all among its splits."
        )
    given = {
        *columns,
        *constants,
        *(set.intersection(*map(set, configs.values())) if isinstance(configs, dict) and configs else ()),
    }
    return Corpus(
        name=name,
        title=entry["title"],
        licence=entry["licence"],
        languages=tuple(entry["languages"]),
        splits=splits,
        columns=columns,
        tasks=_tasks(name, entry["tasks"], entry.get("prompts", {}), given),
        citation=entry["citation"],
        hub=entry.get("hub"),
        revision=entry.get("revision"),
        files=tuple(entry.get("files", ())),
        audio_folder=entry.get("audio_folder", ""),
        withdrawn=entry.get("withdrawn"),
        gated=bool(entry.get("gated", False)),
        configs=configs,
        default_config=entry.get("default_config"),
        default_splits=default_splits,
        constants=constants,
        terms=entry.get("terms"),
        note=entry.get("note"),
    )


def _column(corpus: str, name: str, value: Any) -> ColumnSpec:
    """`sentence`, `{column: text, transforms: […]}` or `{each: captions}`, `{each: [caption_1, …]}`."""
    if isinstance(value, str):
        return ColumnSpec((value,))
    known = {"column", "each", "transforms"}
    if not isinstance(value, dict) or set(value) - known or ("column" in value) == ("each" in value):
        raise CatalogueError(
            f"Corpus {corpus!r}: column {name!r} is {value!r}; expected a name, or 'column' or 'each'."
        )
    columns: Any = value.get("column", value.get("each"))
    try:
        return ColumnSpec(
            tuple([columns] if isinstance(columns, str) else columns),
            tuple(value.get("transforms", ())),
            each="each" in value,
        )
    except ValueError as error:
        raise CatalogueError(f"Corpus {corpus!r}: column {name!r}: {error}") from None


def _tasks(corpus: str, names: list[str], prompts: Mapping[str, Any], given: set[str]) -> tuple[Task, ...]:
    known = known_tasks()
    unknown = [name for name in (*names, *prompts) if name not in known]
    if unknown:
        raise CatalogueError(
            f"Corpus {corpus!r}: there is no task {unknown[0]!r}; expected some of {', '.join(known)}."
        )
    tasks = []
    for name in names:
        try:
            task = replace(known[name], prompts=tuple(prompts[name])) if name in prompts else known[name]
        except ValueError as error:
            raise CatalogueError(f"Corpus {corpus!r}: {error}") from None
        lacking = [field_name for field_name in task.fields if field_name not in given]
        if lacking:
            raise CatalogueError(
                f"Corpus {corpus!r}: task {name!r} needs the field {lacking[0]!r}, which it does not have."
            )
        tasks.append(task)
    return tuple(tasks)


__all__ = [
    "CatalogueError",
    "Corpus",
    "corpus_named",
    "describe_catalogue",
    "is_corpus_name",
    "load_catalogue",
]

"""
The tasks by name: `tasks.yaml`, read, checked and made into [`Task`]s; and the table of them for people.

A task of many configs is called by both, `fleurs:de_de`. An alias stands for several tasks.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from audiollm.processing.normalisers import normaliser_for

from .benchmarks import benchmark_table, raw_benchmark
from .joined import PAIR_SEPARATOR
from .readers import READERS
from .settings import Settings, SourceSettings
from .task import KINDS, Task, TaskError

TASKS_FILE = Path(__file__).parent / "tasks.yaml"
CONFIG_SEPARATOR = ":"
EVERY_CONFIG = ":*"
#: The reader whose configs are two configs of FLEURS, and that of English.
FLEURS_TRANSLATION, ENGLISH_FLEURS = "fleurs_translation", "en_us"
#: Codes that configs begin with, where the usual one is another.
LANGUAGE_CODES = {"cmn": "zh"}
#: Kinds whose answers are compared word by word, and the metric that does so where words are not separated.
SPELLED_KINDS, CHARACTER_NORMALISER, CHARACTER_METRIC = ("asr",), "characters", "character_error"
TASK_KEYS = ("each", "each_split", "languages")
NEAR_NAMES = 3
NAMES_SHOWN = 8


def find_task(name: str) -> Task:
    """
    One task.

    Raises:
        TaskError: there is none of that name, or it names several; near names are given.
    """
    settings = _all_settings()
    if name not in settings:
        raise TaskError(_unknown(name))
    return _task(name, settings[name])


def task_names() -> list[str]:
    """The names of all tasks, without aliases."""
    return list(_all_settings())


def aliases() -> dict[str, list[str]]:
    """Names that stand for several tasks, each with those tasks' names."""
    return {alias: _expand([alias]) for alias in _tables()["aliases"]}


def tasks_named(names: Iterable[str]) -> list[Task]:
    """
    Tasks by names and aliases, in that order, each once.

    Raises:
        TaskError: there is neither a task nor an alias of a name.
    """
    return [find_task(name) for name in _expand(names)]


def group_tasks(group: str) -> list[str]:
    """All tasks whose scores are averaged together."""
    return [name for name, settings in _all_settings().items() if settings.group == group]


def task_table() -> str:
    """The tasks for people: what each is, on what terms, and where."""
    blocks = []
    for family, entry in _tables()["tasks"].items():
        names = [name for name in task_names() if name.partition(CONFIG_SEPARATOR)[0] == family]
        source = find_task(names[0]).source
        configs = [name.partition(CONFIG_SEPARATOR)[2] for name in names if CONFIG_SEPARATOR in name]
        shown = ", ".join(configs[:NAMES_SHOWN]) + (
            f" and {len(configs) - NAMES_SHOWN} more" if len(configs) > NAMES_SHOWN else ""
        )
        lines = [
            f"{family}{':CONFIG' if configs else ''}  ({entry['kind']}: {', '.join(find_task(names[0]).metrics)})",
            source["title"],
            f"licence: {source['licence']}" + (f", {source['terms']}" if source.get("terms") else ""),
            *([f"where: {source['hub']}"] if source.get("hub") else []),
            *([f"where: {source['withdrawn']} Give it with --data."] if source.get("withdrawn") else []),
            *([f"configs: {shown}"] if configs else []),
            *([f"not checked: {', '.join(source['from_memory'])}"] if source.get("from_memory") else []),
        ]
        blocks.append("\n  ".join(lines))
    several = []
    for alias, names in aliases().items():
        rest = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
        several.append(f"  {alias}: {', '.join(names[:NAMES_SHOWN])}{rest}")
    return "\n\n".join(blocks) + "\n\nNames for several tasks:\n" + "\n".join(several) + "\n"


# --------------------------------------------------------------------------------------------------- reading the table


@lru_cache(maxsize=1)
def _tables() -> dict[str, Any]:
    return yaml.safe_load(TASKS_FILE.read_text(encoding="utf-8"))


@lru_cache(maxsize=1)
def _all_settings() -> dict[str, Settings]:
    """
    Every task's settings by its name.

    Raises:
        TaskError: the table is wrong; the entry and what is wrong with it are named.
    """
    settings: dict[str, Settings] = {}
    for name, entry in _tables()["tasks"].items():
        if entry.get("kind") not in KINDS:
            raise TaskError(
                f"tasks.yaml, {name!r}: its kind is {entry.get('kind')!r}; expected one of {', '.join(KINDS)}."
            )
        merged = {**_tables()["kinds"].get(entry["kind"], {}), **entry}
        known = [field.name for field in fields(Settings)]
        unknown = [key for key in merged if key not in (*known, *TASK_KEYS)]
        if unknown:
            raise TaskError(f"tasks.yaml, {name!r} has the unknown key {unknown[0]!r}.")
        if merged["reader"] not in READERS:
            raise TaskError(
                f"tasks.yaml, {name!r}: there is no reader {merged['reader']!r}; expected {', '.join(READERS)}."
            )
        settings |= _variants(name, merged)
    return settings


def _variants(name: str, entry: Mapping[str, Any]) -> dict[str, Settings]:
    """One task, or one for each of its configs or splits."""
    values = {key: value for key, value in entry.items() if key not in TASK_KEYS}
    values["metrics"], values["by"] = tuple(entry["metrics"]), tuple(entry.get("by", ()))
    sources = entry.get("sources", ())
    if "each_split" in entry:
        return {
            f"{name}{CONFIG_SEPARATOR}{split}": Settings(
                **{**values, "sources": tuple(SourceSettings(**{**source, "split": split}) for source in sources)}
            )
            for split in entry["each_split"]
        }
    settings = Settings(**{**values, "sources": tuple(SourceSettings(**source) for source in sources)})
    if "each" not in entry:
        return {name: settings}
    variants = {}
    for config in _configs(entry):
        chosen = tuple(replace(source, config=config) for source in settings.sources)
        language = (
            settings.language
            or entry.get("languages", {}).get(config)
            or _languages(settings.reader, settings.kind, config)[1]
        )
        variants[f"{name}{CONFIG_SEPARATOR}{config}"] = replace(settings, sources=chosen, language=language)
    return variants


def _configs(entry: Mapping[str, Any]) -> list[str]:
    """The configs that a task is read in."""
    if entry["each"] != "all":
        return list(entry["each"])
    corpus = raw_benchmark(entry["sources"][0]["corpus"])
    configs = list(corpus.configs)
    if entry["reader"] != FLEURS_TRANSLATION:
        return configs
    others = [config for config in configs if config != ENGLISH_FLEURS]
    into = [f"{config}{PAIR_SEPARATOR}{ENGLISH_FLEURS}" for config in others]
    return [*into, *(f"{ENGLISH_FLEURS}{PAIR_SEPARATOR}{config}" for config in others)]


def _languages(reader: str, kind: str, config: str) -> tuple[str, str]:
    """Codes of what is spoken and of what is answered in, from a config such as `de_de`, `en_zh-CN`, `de_de-en_us`."""
    spoken = target = config
    if reader == FLEURS_TRANSLATION:
        spoken, _, target = config.partition(PAIR_SEPARATOR)
    elif kind == "translation":
        spoken, _, target = config.rpartition("_")
    first, second = (re.split("[-_]", name)[0] for name in (spoken, target))
    return LANGUAGE_CODES.get(first, first), LANGUAGE_CODES.get(second, second)


def _task(name: str, settings: Settings) -> Task:
    normaliser = normaliser_for(settings.language)
    metrics = settings.metrics
    if settings.kind in SPELLED_KINDS and normaliser == CHARACTER_NORMALISER:
        metrics = (CHARACTER_METRIC,)
    reader = READERS[settings.reader]
    return Task(
        name=name,
        kind=settings.kind,
        metrics=metrics,
        language=settings.language,
        normaliser=normaliser,
        source=_source(name, settings),
        max_new_tokens=settings.max_new_tokens,
        group=settings.group,
        reader=lambda task, data, limit: reader(task.name, settings, data, limit),
    )


def _source(name: str, settings: Settings) -> dict[str, Any]:
    """Where a task comes from and what scoring needs to know, as JSON."""
    source: dict[str, Any] = {"benchmark": name, **(settings.about or {})}
    if settings.sources:
        forms = [raw_benchmark(form.corpus) for form in settings.sources]
        index = next((index for index, corpus in enumerate(forms) if corpus.hub and not corpus.withdrawn), 0)
        corpus, form = forms[index], settings.sources[index]
        source |= {
            **{"benchmark": form.corpus, "title": corpus.title, "hub": corpus.hub, "revision": corpus.revision},
            **{"config": form.config or corpus.default_config, "split": form.split, "licence": corpus.licence},
            **{"terms": corpus.terms, "withdrawn": corpus.withdrawn, "citation": corpus.citation, "note": corpus.note},
            "from_memory": benchmark_table().get(form.corpus, {}).get("from_memory"),
        }
    if settings.kind == "translation":
        source["source_language"] = _languages(settings.reader, settings.kind, str(settings.sources[0].config))[0]
        source["bleu_tokenizer"] = _tables()["bleu_tokenizers"].get(settings.language, "13a")
    source |= {"judge": settings.judge, "parsing": settings.parsing}
    return {key: value for key, value in source.items() if value is not None}


def _expand(names: Iterable[str], below: tuple[str, ...] = ()) -> list[str]:
    """Names of tasks, from names and aliases; `name:*` is every config."""
    known = _tables()["aliases"]
    expanded: list[str] = []
    for name in names:
        if name in below:
            raise TaskError(f"tasks.yaml: the alias {below[0]!r} stands for itself: {' → '.join((*below, name))}.")
        if name in _all_settings():
            expanded.append(name)
        elif name in known:
            expanded += _expand(known[name], (*below, name))
        elif name.endswith(EVERY_CONFIG) and (found := _family(name.removesuffix(EVERY_CONFIG))):
            expanded += found
        else:
            raise TaskError(_unknown(name))
    return list(dict.fromkeys(expanded))


def _family(name: str) -> list[str]:
    return [each for each in task_names() if each.startswith(f"{name}{CONFIG_SEPARATOR}")]


def _unknown(name: str) -> str:
    """What to say about a name that no task has."""
    known = [*task_names(), *_tables()["aliases"]]
    near = difflib.get_close_matches(name.strip(), known, n=NEAR_NAMES)
    near = near or [each for each in known if name.strip() and name.strip().lower() in each][:NEAR_NAMES]
    family = _family(name)
    if family:
        shown = ", ".join(family[:NAMES_SHOWN])
        return (
            f"Task {name!r} comes in {len(family)} configs; name one, such as {shown}, or all as {name}{EVERY_CONFIG}."
        )
    hint = f" Perhaps {' or '.join(map(repr, near))}?" if near else ""
    families = list(dict.fromkeys(each.partition(CONFIG_SEPARATOR)[0] for each in known))
    return f"There is no task {name!r}.{hint} There are: {', '.join(families)}."


__all__ = ["aliases", "find_task", "group_tasks", "task_names", "task_table", "tasks_named"]

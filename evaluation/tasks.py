"""
Evaluation tasks: families of benchmarks (`tasks.yaml`), of which a config or language is chosen by name.

    for item in find_task("fleurs:de_de").items(limit=10): ...
"""

import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from audiollm.command_line.downloads import DownloadError
from audiollm.corpora.catalogue import Corpus, corpora_of, load_catalogue
from audiollm.corpora.clips import BadClip
from audiollm.corpora.columns import OVERRIDE_HINT
from audiollm.corpora.dataset_places import READ_ERRORS
from audiollm.corpora.examples import problem_lines
from audiollm.corpora.normalisers import language_of, normaliser_for

TASKS_FILE = Path(__file__).parent / "tasks.yaml"
CONFIG_SEPARATOR, PAIR_SEPARATOR, EVERY_CONFIG = ":", "-", "*"
FLEURS_TRANSLATION = "fleurs_translation"
#: The field that references of speech recognition are in.
TRANSCRIPT = "transcript"
#: Transform of transcripts that makes them better to learn from, and other than they are written.
LETTER_CASE = "sentence_case"
#: Codes that configs begin with, where the usual one is another.
LANGUAGE_CODES = {"cmn": "zh"}
#: Languages without spaces between words are compared by characters.
CHARACTER_NORMALISER, CHARACTER_METRIC = "characters", "character_error"
NAMES_SHOWN = 8


class TaskError(ValueError):
    """A task that cannot be run as asked: there is none of that name, or its data cannot be read at all."""


class TaskDataError(TaskError):
    """Rows of a task's data that are no questions; the message names every one, `problems` has (where, reason) of each."""

    def __init__(self, task: str, problems: list[tuple[str, str]]):
        self.problems = problems
        count = "1 row is" if len(problems) == 1 else f"{len(problems)} rows are"
        super().__init__(f"Task {task}: {count} of no use\n  {problem_lines(problems)}")


@dataclass(frozen=True)
class Item:
    """One question of a benchmark."""

    id: str  # stable and unique within the task: a run is resumed by it
    prompt: str  # with one `<audio>` for each recording; none where the question is text alone
    recordings: list[Any]  # anything that the processor takes: a path or URL, a dict with `bytes`, or one with `array`
    references: list[str] = field(default_factory=list)  # right answers, of a choice the letter; some kinds need none
    #: Other known facts, as JSON: `question`, `choices` (text by letter), `transcript`, `speaker`, `language`, `category`,
    #: and of a recording cut into chunks `session` and `chunk_index`.
    extra: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None  # reason for which the control cannot be asked, which plays it another recording


#: Gives a task's questions from a copy on disk, or from where the benchmark is if that is None.
Reader = Callable[["Task", str | None], Iterator[Item | BadClip]]


@dataclass(frozen=True)
class Form:
    """A dataset that a benchmark comes in, with the split that is read."""

    corpus: Corpus
    split: str


@dataclass(frozen=True)
class Task:
    """A benchmark, or one language or part of one."""

    name: str  # as in `--tasks`
    kind: str  # one of `tasks.yaml`, which decides how answers are asked for and scored
    metrics: tuple[str, ...]  # of its answers
    language: str | None  # code of the language that answers are in; None where they are in none
    normaliser: str  # a name of `NORMALISERS`, for texts that are compared word by word
    #: Facts for the record (benchmark, hub, config, split, licence, terms, citation), and for scoring `source_language`
    #: (spoken, of a translation) and `judge`.
    source: Mapping[str, Any]
    max_new_tokens: int | None  # bound on an answer; None where it follows from the length of the recording
    group: str | None  # tasks whose scores are averaged, unweighted
    reader: Reader = field(repr=False, compare=False)  # gives the questions
    # For the reader; see `tasks.yaml`.
    prompt: str = ""
    forms: tuple[Form, ...] = field(default=(), repr=False)
    config: str | None = None
    answer: str | None = None
    openslr: str | None = None

    def items(self, data: str | None = None, limit: int | None = None) -> Iterator[Item]:
        """
        Yield the questions, the first `limit` if given, in an order that never changes.

        They come from `data`, a copy on disk as the benchmark hands it out, or else from where it is. TaskError is raised
        at the first question if the data cannot be read; TaskDataError after the last, if rows are malformed.
        """
        seen: Counter[str] = Counter()
        problems: list[tuple[str, str]] = []
        for item in self._read(data):
            if isinstance(item, BadClip):
                problems.append((item.id, item.reason))
                continue
            seen[item.id] += 1
            yield item if seen[item.id] == 1 else replace(item, id=f"{item.id}#{seen[item.id]}")
            if seen.total() == limit:
                break
        if problems:
            raise TaskDataError(self.name, problems)
        if not seen:
            raise TaskError(f"Task {self.name!r}: {data or 'its data'} holds no questions.")

    def _read(self, data: str | None) -> Iterator[Item | BadClip]:
        """Yield what the reader gives; its errors name the task."""
        if data is not None and not self.forms and self.kind != "no_speech":
            raise TaskError(f"Task {self.name!r} is here already and takes no --data, got {data!r}.")
        try:
            yield from self.reader(self, data)
        except (DownloadError, *READ_ERRORS) as error:
            reason = str(error).removesuffix(OVERRIDE_HINT)
            raise TaskError(f"Task {self.name!r}: {reason}") from error


def find_task(name: str) -> Task:
    """
    Return one task: `prompts`, or of a family one config, `fleurs:de_de`, also by language alone, `fleurs:de`.

    TaskError names near ones if there is no such task or config, or if a family is named without one.
    """
    family, _, config = name.partition(CONFIG_SEPARATOR)
    entry = families().get(family)
    if entry is None:
        every = [*tables()["tasks"], *tables()["aliases"]]
        raise TaskError(f"There is no task {name!r}.{_perhaps(family.strip(), every)} There are: {', '.join(every)}.")
    known = _configs(entry)
    if not known:
        if config:
            raise TaskError(f"Task {family!r} has no configs; leave out {config!r}.")
        return _task(family, None, entry)
    if not config:
        raise TaskError(f"Task {family!r} comes in {_listed(known)}; name one, such as {family}:{known[0]}.")
    configs = dataset_named(entry["forms"][0][0]).configs
    if config not in known and not (isinstance(configs, str) and re.fullmatch(configs, config)):
        asked = re.split("[-_]", config)
        same = [each for each in known if [*_languages(entry, each)][-len(asked) :] == asked]
        if len(same) != 1:
            near = _perhaps(config, known)
            raise TaskError(f"Task {family!r} has no config {config!r}.{near} It has {_listed(known)}.")
        config = same[0]
    return _task(family, config, entry)


def tasks_named(names: Iterable[str]) -> list[Task]:
    """
    Return tasks by names and aliases, in that order, each once.

    A family without a config stands for the configs that its entry lists, `family:*` for all.
    """
    expanded: list[str] = []
    for name in names:
        for each in tables()["aliases"].get(name, [name]):
            family, _, config = each.partition(CONFIG_SEPARATOR)
            entry = families().get(family, {})
            if config in ("", EVERY_CONFIG) and _configs(entry):
                chosen = _configs(entry) if config else entry.get("splits") or entry["configs"]
                expanded += [f"{family}{CONFIG_SEPARATOR}{one}" for one in chosen]
            else:
                expanded.append(each)
    return [find_task(each) for each in dict.fromkeys(expanded)]


def families() -> dict[str, dict[str, Any]]:
    """Return the entries of `tasks.yaml` by name, with what their kind adds."""
    return {name: {**tables()["kinds"][entry["kind"]], **entry} for name, entry in tables()["tasks"].items()}


def group_tasks(group: str) -> list[str]:
    """Return the tasks whose scores are averaged together."""
    return [name for name, entry in families().items() if entry.get("group") == group]


def task_table() -> str:
    """Return the tasks for people: what each is, on what terms, and where."""
    blocks = []
    for name, entry in families().items():
        configs = _configs(entry)
        task = _task(name, configs[0] if configs else None, entry)
        source, withdrawn = task.source, task.source.get("withdrawn")
        facts = {
            "licence": ", ".join(filter(None, (source["licence"], source.get("terms")))),
            "where": " ".join(filter(None, (source.get("hub"), withdrawn and f"{withdrawn} Give it with --data."))),
            "configs": _listed(configs),
            "unknown": ", ".join(source.get("unknown", ())),
        }
        lines = [
            f"{name}{':CONFIG' if configs else ''}  ({entry['kind']}: {', '.join(task.metrics)})",
            source["title"],
        ]
        lines += [f"{told}: {fact}" for told, fact in facts.items() if fact]
        blocks.append("\n  ".join(lines))
    several = [f"  {alias}: {', '.join(names)}" for alias, names in tables()["aliases"].items()]
    return "\n\n".join(blocks) + "\n\nNames for several tasks:\n" + "\n".join(several) + "\n"


@lru_cache(maxsize=1)
def tables() -> dict[str, Any]:
    """Return the contents of `tasks.yaml`."""
    return yaml.safe_load(TASKS_FILE.read_text(encoding="utf-8"))


@lru_cache(maxsize=1)
def _datasets() -> dict[str, Corpus]:
    return load_catalogue() | corpora_of(tables()["datasets"])


def dataset_named(name: str, config: str | None = None) -> Corpus:
    """Return a dataset of `tasks.yaml`, or a ready corpus with its transcripts, as they are written, as references."""
    corpus = _datasets()[name]
    columns = dict(corpus.columns)
    if "text" in columns:
        text = columns.pop("text")
        columns[TRANSCRIPT] = replace(text, transforms=tuple(one for one in text.transforms if one != LETTER_CASE))
    corpus = replace(corpus, columns=columns, tasks=())
    return corpus if config is None and corpus.configs and not corpus.default_config else corpus.with_config(config)


def _task(family: str, config: str | None, entry: Mapping[str, Any]) -> Task:
    from .readers import READERS

    spoken, target = _languages(entry, config or "")
    language = entry.get("language") or target
    normaliser = normaliser_for(language)
    metrics = tuple(entry["metrics"])
    if entry["kind"] == "asr" and normaliser == CHARACTER_NORMALISER:
        metrics = (CHARACTER_METRIC,)
    chosen = None if entry.get("splits") or entry["reader"] == FLEURS_TRANSLATION else config
    forms = []
    for name, split, *rest in entry.get("forms", ()):
        corpus = dataset_named(name, rest[0] if rest else chosen)
        forms.append(Form(corpus, str(config) if entry.get("splits") else split))
    name = family if config is None else f"{family}{CONFIG_SEPARATOR}{config}"
    source: dict[str, Any] = {"benchmark": name, "judge": entry.get("judge"), **entry.get("about", {})}
    if forms:
        form = next((form for form in forms if form.corpus.hub and not form.corpus.withdrawn), forms[0])
        corpus = form.corpus
        known = ("title", "hub", "revision", "licence", "terms", "withdrawn", "citation", "note")
        source |= {
            **{"benchmark": corpus.name.partition(CONFIG_SEPARATOR)[0], "config": corpus.config or config},
            **{"split": form.split, "unknown": list(corpus.unknown) or None},
            **{name: getattr(corpus, name) for name in known},
        }
    if entry["kind"] == "translation":
        source["source_language"] = spoken
    return Task(
        name=name,
        kind=entry["kind"],
        metrics=metrics,
        language=language,
        normaliser=normaliser,
        source={key: value for key, value in source.items() if value is not None},
        reader=READERS[entry["reader"]],
        prompt=entry.get("prompt", ""),
        forms=tuple(forms),
        config=config,
        **{field: entry.get(field) for field in ("max_new_tokens", "group", "answer", "openslr")},
    )


def _configs(entry: Mapping[str, Any]) -> list[str]:
    """Return the configs or splits that a family is read in, those that run by default first; none of a single task."""
    first = list(entry.get("splits") or entry.get("configs") or ())
    if not first:
        return []
    corpus = dataset_named(entry["forms"][0][0])
    if entry.get("splits") or isinstance(corpus.configs, str):
        every = first
    elif entry["reader"] == FLEURS_TRANSLATION:
        english = "en_us"
        others = [each for each in corpus.configs if each != english]
        every = [*(f"{one}-{english}" for one in others), *(f"{english}-{one}" for one in others)]
    else:
        every = list(corpus.configs)
    return list(dict.fromkeys([*first, *every]))


def _languages(entry: Mapping[str, Any], config: str) -> tuple[str | None, str | None]:
    """Return the codes of the languages spoken and answered in, from a config: `de_de`, `en_zh-CN`, `de_de-en_us`."""
    if not config or entry.get("language"):
        return entry.get("language"), entry.get("language")
    spoken = target = config
    if entry["reader"] == FLEURS_TRANSLATION:
        spoken, _, target = config.partition(PAIR_SEPARATOR)
    elif entry["kind"] == "translation":
        spoken, _, target = config.rpartition("_")
    first, second = language_of(spoken), language_of(target)
    return LANGUAGE_CODES.get(first, first), LANGUAGE_CODES.get(second, second)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


def _perhaps(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3) or [each for each in known if name and name.lower() in each][:3]
    return f" Perhaps {' or '.join(map(repr, near))}?" if near else ""

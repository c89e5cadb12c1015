"""
Benchmarks that come as tables with recordings: Parquet, CSV or JSON, on the Hub or in a copy, streamed.

Rows are read by the corpora room (`HuggingFaceSource`): columns are checked, recordings stay undecoded.
"""

import os
import string
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from audiollm.corpora.catalogue import Corpus
from audiollm.corpora.clips import BadClip, Clip, CorpusError
from audiollm.corpora.columns import OVERRIDE_HINT, ColumnSpec
from audiollm.corpora.dataset_places import find_place, open_split
from audiollm.corpora.huggingface import HuggingFaceArguments, HuggingFaceSource
from audiollm.corpora.librispeech import ROOT_NAME as LIBRISPEECH_ROOT
from audiollm.corpora.librispeech import LibriSpeechArguments
from audiollm.corpora.librispeech import open_source as open_librispeech
from audiollm.downloads import DownloadError

from .benchmarks import TRANSCRIPT, benchmark, benchmark_table
from .settings import Settings, SourceSettings
from .task import Item, Problem, TaskError

ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".zip", ".7z")
LETTERS = ("A", "B", "C", "D")


def choose_source(task: str, settings: Settings, data: str | None) -> tuple[Corpus, SourceSettings]:
    """
    Which of a task's forms is read: of a copy the first whose files are there, else the first on the Hub.

    Raises:
        TaskError: there is no such copy, or the benchmark cannot be downloaded.
    """
    forms = [(benchmark(source.corpus, source.config), source) for source in settings.sources]
    if data is None:
        for corpus, source in forms:
            if corpus.hub is not None and not corpus.withdrawn:
                return corpus, source
        corpus = forms[0][0]
        raise TaskError(f"Task {task!r}, {corpus.title}: {corpus.withdrawn} Give your copy with --data.")
    if not Path(data).exists():
        raise TaskError(f"Task {task!r}: --data {data!r} does not exist.")
    if data.endswith(ARCHIVE_SUFFIXES):
        raise TaskError(f"Task {task!r}: --data {data!r} is an archive; unpack it, and give the folder.")
    for corpus, source in forms:
        patterns = [pattern.format(config=source.config, split=source.split) for pattern in corpus.files]
        if Path(data).is_dir() and any(any(Path(data).glob(pattern)) for pattern in patterns):
            return corpus, source
        if Path(data).suffix in {Path(pattern).suffix for pattern in patterns}:
            return corpus, source
    for corpus, source in forms:
        known = [] if isinstance(corpus.configs, str) else corpus.configs
        others = sorted(name for name in known if (Path(data) / name).is_dir())
        if source.config is not None and others and source.config not in others:
            raise TaskError(f"Task {task!r}: --data {data!r} holds {', '.join(others)}, but not {source.config}.")
    # What load_dataset finds by itself, or a single file, may be any form without a fixed layout.
    return next((form for form in forms if not form[0].files), forms[-1])


def open_table(task: str, corpus: Corpus, split: str, data: str | None, limit: int | None) -> HuggingFaceSource:
    """
    A benchmark's rows as clips.

    Raises:
        TaskError: it cannot be read, or lacks columns; those that were found are named.
    """
    try:
        corpus = _with_columns_found(corpus, split, data)
        arguments = HuggingFaceArguments(corpus.name, splits=[split], streaming=True, limit=limit)
        return HuggingFaceSource(arguments, corpus, data)
    except CorpusError as error:
        raise TaskError(f"Task {task!r}: {str(error).removesuffix(OVERRIDE_HINT)}") from error


def _with_columns_found(corpus: Corpus, split: str, data: str | None) -> Corpus:
    """The corpus with columns that go by other names in this part of the benchmark replaced by those that are there."""
    alternatives = benchmark_table().get(corpus.name.partition(":")[0], {}).get("alternatives", {})
    if not alternatives:
        return corpus
    dataset, _ = open_split(find_place(corpus.name, None, None, corpus, data), split, streaming=True)
    there = dataset.column_names or list(next(iter(dataset), {}))
    columns = dict(corpus.columns)
    for field, others in alternatives.items():
        names = [*columns[field].columns, *others]
        columns[field] = ColumnSpec((next((name for name in names if name in there), names[0]),))
    return replace(corpus, columns=columns)


def table_items(name: str, settings: Settings, data: str | None, limit: int | None) -> Iterator[Item | Problem]:
    """Reader of tables."""
    corpus, source = choose_source(name, settings, data)
    grouped = bool(settings.by) or any(spec.each for spec in corpus.columns.values())
    table = open_table(name, corpus, source.split, data, None if grouped else limit)
    try:
        if settings.by:
            yield from _grouped(table, settings)
        elif grouped:
            yield from _per_row(table.clips(), settings)
        else:
            for clip in table.clips():
                yield _problem(clip) if isinstance(clip, BadClip) else item_of(clip, settings, [])
    except CorpusError as error:
        raise TaskError(f"Task {name!r}: {error}") from error


def librispeech_items(name: str, settings: Settings, data: str | None, limit: int | None) -> Iterator[Item | Problem]:
    """Reader of LibriSpeech: the leaderboard's table; or a copy of OpenSLR's archives or of what is in them."""
    split = str(settings.openslr)
    if data is None or not (data.endswith(ARCHIVE_SUFFIXES) or _is_librispeech(Path(data), split)):
        yield from table_items(name, settings, data, limit)
        return
    try:
        clips = open_librispeech(LibriSpeechArguments([split], data, letter_case="keep"), progress=False).clips()
        for clip in clips:
            if isinstance(clip, BadClip):
                yield Problem(clip.id, clip.reason)
                continue
            fields = {**clip.fields, TRANSCRIPT: clip.text}
            yield item_of(replace(clip, fields=fields), settings, [])
    except (CorpusError, DownloadError, OSError) as error:
        raise TaskError(f"Task {name!r}: {error}") from error


def _is_librispeech(folder: Path, split: str) -> bool:
    places = (folder / split, folder / LIBRISPEECH_ROOT, folder / f"{split}.tar.gz")
    return any(place.exists() for place in places)


def item_of(clip: Clip, settings: Settings, more_references: Iterable[str]) -> Item | Problem:
    """The question that a clip is, with the references of further clips of the same recording."""
    if isinstance(clip.recording, str) and "://" not in clip.recording and not os.path.isfile(clip.recording):
        return Problem(clip.id, f"audio file {clip.recording!r} does not exist")
    extra: dict[str, Any] = {key: value for key, value in clip.fields.items() if key != settings.answer}
    references: list[str] = []
    if settings.answer is not None:
        own = clip.fields.get(settings.answer)
        references = [
            *([] if settings.kind == "choice" and own is None else ["" if own is None else str(own).strip()])
        ]
        references += [str(each).strip() for each in more_references]
    if settings.kind == "choice":
        letter = references[0].upper() if references else ""
        if letter not in LETTERS:
            return Problem(clip.id, f"its answer is {letter!r}; expected one of {', '.join(LETTERS)}")
        references, extra = [letter], {**extra, "choices": dict.fromkeys(LETTERS, "")}
    try:
        prompt = fill(settings.prompt, clip.fields)
    except KeyError as error:
        return Problem(clip.id, f"has no {error.args[0]!r}, which the prompt quotes")
    return Item(clip.id, prompt, [clip.recording], references, extra)


def fill(prompt: str, fields: Mapping[str, Any]) -> str:
    """
    A prompt with its fields put in.

    Raises:
        KeyError: one is not there.
    """
    return string.Formatter().vformat(prompt, (), fields)


def _problem(clip: BadClip) -> Problem:
    return Problem(clip.id, clip.reason)


def _per_row(clips: Iterable[Clip | BadClip], settings: Settings) -> Iterator[Item | Problem]:
    """Clips that are one row's, which come one after the other and whose ids end in a number each, as one question."""
    first: Clip | None = None
    row, references = "", []  # type: str, list[str]
    for clip in clips:
        if isinstance(clip, BadClip):
            yield _problem(clip)
            continue
        if first is not None and clip.id.rpartition("-")[0] == row:
            references.append(str(clip.fields[str(settings.answer)]))
            continue
        if first is not None:
            yield item_of(replace(first, id=row), settings, references)
        first, row, references = clip, clip.id.rpartition("-")[0], []
    if first is not None:
        yield item_of(replace(first, id=row), settings, references)


def _grouped(table: HuggingFaceSource, settings: Settings) -> Iterator[Item | Problem]:
    """
    Rows about the same recording, wherever they stand, as one question with all their answers.

    The table is read twice, so that no recording is kept while the others' answers are looked for.
    """
    references: dict[tuple[Any, ...], list[str]] = {}
    for clip in table.clips():
        if isinstance(clip, Clip):
            references.setdefault(_key(clip, settings), []).append(str(clip.fields.get(str(settings.answer), "")))
    for clip in table.clips():
        if isinstance(clip, BadClip):
            yield _problem(clip)
            continue
        found = references.pop(_key(clip, settings), None)
        if found is not None:
            identity = "-".join(map(str, _key(clip, settings)))
            yield item_of(replace(clip, id=identity), settings, found[1:])


def _key(clip: Clip, settings: Settings) -> tuple[Any, ...]:
    return tuple(clip.fields.get(name) for name in settings.by)


__all__ = ["LETTERS", "choose_source", "fill", "item_of", "librispeech_items", "open_table", "table_items"]

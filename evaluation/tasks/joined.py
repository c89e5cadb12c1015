"""
Benchmarks that lie in two tables: what is asked in one, what is right in the other.

FLEURS translation: the sentence of the same id in another language. Earnings22 in chunks: one transcript for each call.
"""

import difflib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
from audiollm.corpora.catalogue import Corpus
from audiollm.corpora.clips import BadClip, CorpusError
from audiollm.corpora.columns import OVERRIDE_HINT, ColumnSpec
from audiollm.corpora.dataset_places import READ_ERRORS, Place, find_place, open_split, recording_of

from .benchmarks import TRANSCRIPT, benchmark, benchmark_table
from .settings import Settings
from .tables import fill, open_table
from .task import Item, Problem, TaskError

#: Between the two languages in the config of a translation.
PAIR_SEPARATOR = "-"
FLEURS_SENTENCE, FLEURS_LANGUAGE = "sentence", "language"


def fleurs_translation(name: str, settings: Settings, data: str | None, limit: int | None) -> Iterator[Item | Problem]:
    """
    Reader of FLEURS as translations; its config is two configs of FLEURS, `de_de-en_us`.

    Raises:
        TaskError: a language cannot be read.
    """
    (source,) = settings.sources
    spoken, _, target = str(source.config).partition(PAIR_SEPARATOR)
    names: dict[str, str] = {}
    missing = [one for one in (spoken, target) if data is not None and not (Path(data) / one).is_dir()]
    if missing:
        raise TaskError(f"Task {name!r}: there is no folder {missing[0]} in {data!r}; expected one for each language.")
    try:
        translations = _sentences(name, benchmark(source.corpus, target), source.split, data, names)
        for clip in open_table(name, benchmark(source.corpus, spoken), source.split, data, limit).clips():
            if isinstance(clip, BadClip):
                yield Problem(clip.id, clip.reason)
                continue
            sentence = clip.fields[FLEURS_SENTENCE]
            if sentence not in translations:
                yield Problem(clip.id, f"its sentence {sentence} is not in {target}")
                continue
            fields = {"target_language": names[target]}
            extra = {**clip.fields, **fields}
            yield Item(clip.id, fill(settings.prompt, fields), [clip.recording], [translations[sentence]], extra)
    except CorpusError as error:
        raise TaskError(f"Task {name!r}: {error}") from error


def _sentences(name: str, corpus: Corpus, split: str, data: str | None, names: dict[str, str]) -> dict[Any, str]:
    """Sentences of a language by id; the language's English name is put into `names`."""
    sentences: dict[Any, str] = {}
    for clip in open_table(name, corpus, split, data, None).clips():
        if not isinstance(clip, BadClip):
            sentences[clip.fields[FLEURS_SENTENCE]] = str(clip.fields.get(TRANSCRIPT) or "")
            names.setdefault(str(corpus.config), str(clip.fields[FLEURS_LANGUAGE]))
    return sentences


def sessions(name: str, settings: Settings, data: str | None, limit: int | None) -> Iterator[Item | Problem]:
    """
    Reader of recordings in chunks: each chunk is a question, and has the whole recording's transcript as its reference.

    What is heard is put together by `extra["session"]`, in the order of `extra["chunk_index"]`, before it is scored. A
    copy is a folder with both datasets, each in a folder of its own name.

    Raises:
        TaskError: one of the two cannot be read, or lacks columns.
    """
    (source,) = settings.sources
    corpus = benchmark(source.corpus)
    entry = benchmark_table()[source.corpus]
    parent = replace(corpus, name=f"{corpus.name}, parent", hub=entry["parent"], columns={})
    found = entry["alternatives"]
    try:
        table, columns, place, folder = _open(corpus, source.split, _copy(name, corpus, data))
        missing = [spec.columns[0] for spec in corpus.columns.values() if spec.columns[0] not in columns]
        if missing:
            raise CorpusError(f"{corpus.name} has no column {missing[0]!r}. Its columns are: {', '.join(columns)}.")
        transcripts = _transcripts(parent, source.split, _copy(name, parent, data), found)
        fields = {field: spec.columns[0] for field, spec in corpus.columns.items()}
        for row in table:
            identity = str(row[fields["audio"]])
            recording, problem = _chunk(row[fields["audio"]], place, folder, corpus)
            session = str(row[fields["session"]])
            if problem is None and session not in transcripts:
                near = difflib.get_close_matches(session, transcripts, n=1)
                problem = f"there is no transcript of {session!r}" + (f", perhaps {near[0]!r}?" if near else "")
            if problem is not None:
                yield Problem(identity, problem)
                continue
            extra = {"session": session, "chunk_index": int(row[fields["chunk_index"]]), "language": "en"}
            yield Item(identity, settings.prompt, [recording], [transcripts[session]], extra)
    except CorpusError as error:
        raise TaskError(f"Task {name!r}: {str(error).removesuffix(OVERRIDE_HINT)}") from error
    except READ_ERRORS as error:
        if isinstance(error, TaskError):
            raise
        raise TaskError(f"Task {name!r}: cannot be read: {' '.join(str(error).split())}") from error


def _copy(name: str, corpus: Corpus, data: str | None) -> str | None:
    """A dataset's own folder in a copy."""
    if data is None:
        return None
    folder = Path(data) / str(corpus.hub).rpartition("/")[2]
    if not folder.is_dir():
        raise TaskError(
            f"Task {name!r}: there is no folder {folder.name} in {data!r}; expected the dataset {corpus.hub}."
        )
    return str(folder)


def _open(corpus: Corpus, split: str, data: str | None) -> tuple[Any, list[str], Place, str]:
    place = find_place(corpus.name, None, None, corpus, data)
    dataset, folder = open_split(place, split, streaming=True)
    return dataset, dataset.column_names or list(next(iter(dataset), {})), place, folder


def _transcripts(parent: Corpus, split: str, data: str | None, names: dict[str, list[str]]) -> dict[str, str]:
    """Whole recordings' transcripts by id."""
    table, columns, _, _ = _open(parent, split, data)
    chosen = {}
    for field, candidates in names.items():
        column = next((name for name in candidates if name in columns), None)
        if column is None:
            raise CorpusError(
                f"{parent.name} has no column {' or '.join(map(repr, candidates))} for {field!r}. Its columns are: "
                f"{', '.join(columns)}."
            )
        chosen[field] = ColumnSpec((column,)).columns[0]
    return {str(row[chosen["id"]]): str(row[chosen[TRANSCRIPT]] or "") for row in table}


def _chunk(file: Any, place: Place, folder: str, corpus: Corpus) -> tuple[Any, str | None]:
    """A chunk's recording, in the corpus' audio folder, or why there is none."""
    if place.kind != "hub":
        return recording_of(f"{corpus.audio_folder}/{file}", place, place.path)
    revision = huggingface_hub.constants.DEFAULT_REVISION if place.revision is None else place.revision
    return recording_of(f"hf://datasets/{place.path}@{revision}/{corpus.audio_folder}/{file}", place, folder)


__all__ = ["PAIR_SEPARATOR", "fleurs_translation", "sessions"]

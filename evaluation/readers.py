"""
Read the questions of tasks: tables on the Hub or in a copy, benchmarks in formats of their own, and your own recordings.

Tables are read by the corpora room (`HuggingFaceSource`), which checks columns and leaves recordings undecoded. Here their
transcripts are references.
"""

import difflib
import json
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import yaml
from audiollm.command_line.files import is_audio
from audiollm.corpora import librispeech
from audiollm.corpora.catalogue import Corpus
from audiollm.corpora.clips import BadClip, Clip
from audiollm.corpora.columns import ColumnSpec
from audiollm.corpora.dataset_places import READ_ERRORS, Place, find_place, open_split, recording_of
from audiollm.corpora.huggingface import HuggingFaceArguments, HuggingFaceSource
from audiollm.corpora.normalisers import normaliser_for
from audiollm.corpora.prompts import load_studio_prompts
from audiollm.corpora.rows import RowReader
from audiollm.corpora.sources import read_sources
from audiollm.corpora.unseen import load_unseen_speech
from audiollm.processing.audio import SAMPLING_RATE_HZ

from .tasks import (
    CHARACTER_METRIC,
    CHARACTER_NORMALISER,
    PAIR_SEPARATOR,
    TRANSCRIPT,
    Form,
    Item,
    Reader,
    Task,
    TaskDataError,
    TaskError,
    dataset_named,
)

LETTERS = ("A", "B", "C", "D")
ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".zip", ".7z")
Questions = Iterator[Item | BadClip]


LOCAL_TASK = "local"


def read_local_set(
    data_path: str, audio_dir: str | None = None, language: str | None = None, normaliser: str | None = None
) -> Task:
    """
    Return the user's own recordings as a task of speech recognition: questions about one recording each.

    Args:
        data_path: JSON, JSON Lines, Parquet, a folder of Parquet files or of `save_to_disk`, or `hub:org/name`.
        audio_dir: folder that audio paths are relative to and may not leave.
        language: code of the language that is spoken and written; English if not given.
        normaliser: a name of `NORMALISERS`; the language's own if not given.

    TaskDataError names all rows that are no question about one recording; TaskError is raised if no language is given, and
    the transcripts are not in Latin letters.
    """
    (examples,) = read_sources(data_path, audio_dir)
    problems = list(examples.problems)
    letters: list[str] = []
    for example in examples:
        if len(example.recordings) != 1:
            reason = f"has {len(example.recordings)} recordings; a transcript has exactly one"
            problems.append((example.where, reason))
        elif [message["role"] for message in example.messages] != ["user", "assistant"]:
            problems.append((example.where, "is not one question with one answer, the transcript"))
        elif language is None:
            letters += filter(str.isalpha, example.messages[-1]["content"])
    if problems:
        raise TaskDataError(LOCAL_TASK, problems)
    if len(letters) > 2 * sum(unicodedata.name(letter, "").startswith("LATIN") for letter in letters):
        raise TaskError(f"The transcripts of {data_path} are not in Latin letters; give their --language, such as hi.")
    normaliser = normaliser or normaliser_for(language)

    def reader(task: Task, data: str | None) -> Questions:
        for example in examples:
            prompt, answer = (message["content"] for message in example.messages)
            yield Item(example.where, prompt, list(example.recordings), [answer], {})

    return Task(
        name=LOCAL_TASK,
        kind="asr",
        metrics=(CHARACTER_METRIC,) if normaliser == CHARACTER_NORMALISER else ("word_error",),
        language=language or "en",
        normaliser=normaliser,
        source={"benchmark": data_path, "title": f"own recordings, {data_path}"},
        max_new_tokens=None,
        group=None,
        reader=reader,
    )


def table_items(task: Task, data: str | None) -> Questions:
    """Read a table with recordings: Parquet, CSV or JSON."""
    for clip in open_table(choose_form(task, data), data).clips():
        yield item_of(clip, task)


def choose_form(task: Task, data: str | None) -> Form:
    """Return the form of a benchmark that is read: of a copy the first whose files are there, else the first on the Hub."""
    if data is None:
        for form in task.forms:
            if form.corpus.hub is not None and not form.corpus.withdrawn:
                return form
        corpus = task.forms[0].corpus
        raise TaskError(f"{corpus.title}: {corpus.withdrawn} Give your copy with --data.")
    if not Path(data).exists():
        raise TaskError(f"--data {data!r} does not exist.")
    if data.endswith(ARCHIVE_SUFFIXES):
        raise TaskError(f"--data {data!r} is an archive; unpack it, and give the folder.")
    for form in task.forms:
        patterns = [pattern.format(config=form.corpus.config, split=form.split) for pattern in form.corpus.files]
        if Path(data).is_dir() and any(any(Path(data).glob(pattern)) for pattern in patterns):
            return form
        if Path(data).suffix in {Path(pattern).suffix for pattern in patterns}:
            return form
    for form in task.forms:
        known, config = form.corpus.configs, form.corpus.config
        others = [] if isinstance(known, str) else sorted(name for name in known if (Path(data) / name).is_dir())
        if config is not None and others and config not in others:
            raise TaskError(f"--data {data!r} holds {', '.join(others)}, but not {config}.")
    # A single file, or a folder that load_dataset understands, may be any form without a fixed layout.
    return next((form for form in task.forms if not form.corpus.files), task.forms[-1])


def open_table(form: Form, data: str | None) -> HuggingFaceSource:
    """Open a benchmark's rows as clips; columns may have the names that its entry calls alternatives."""
    corpus = form.corpus
    if corpus.alternatives:
        _, there, _ = _rows_of(find_place(corpus.name, None, None, corpus, data), form.split)
        columns = dict(corpus.columns)
        for field, others in corpus.alternatives.items():
            names = [*columns[field].columns, *others]
            columns[field] = ColumnSpec((next((name for name in names if name in there), names[0]),))
        corpus = replace(corpus, columns=columns)
    return HuggingFaceSource(HuggingFaceArguments(corpus.name, splits=[form.split], streaming=True), corpus, data)


def item_of(clip: Clip | BadClip, task: Task) -> Item | BadClip:
    """Return the question that a clip is."""
    if isinstance(clip, BadClip):
        return clip
    if isinstance(clip.recording, str) and "://" not in clip.recording and not os.path.isfile(clip.recording):
        return BadClip(clip.id, f"audio file {clip.recording!r} does not exist")
    extra: dict[str, Any] = {key: value for key, value in clip.fields.items() if key != task.answer}
    references = [] if task.answer is None else [str(clip.fields.get(task.answer) or "").strip()]
    if task.kind == "choice":
        letter = references[0].upper()
        if letter not in LETTERS:
            return BadClip(clip.id, f"its answer is {letter!r}; expected one of {', '.join(LETTERS)}")
        references, extra = [letter], {**extra, "choices": dict.fromkeys(LETTERS, "")}
    try:
        prompt = task.prompt.format_map(clip.fields)
    except KeyError as error:
        return BadClip(clip.id, f"has no {error.args[0]!r}, which the prompt quotes")
    return Item(clip.id, prompt, [clip.recording], references, extra)


def librispeech_items(task: Task, data: str | None) -> Questions:
    """Read LibriSpeech: the leaderboard's table; or a copy of OpenSLR's archives or of what is in them."""
    split = str(task.openslr)
    names = (split, librispeech.ROOT_NAME, f"{split}.tar.gz")
    if data is None or not (data.endswith(ARCHIVE_SUFFIXES) or any((Path(data) / name).exists() for name in names)):
        yield from table_items(task, data)
        return
    options = librispeech.LibriSpeechArguments([split], data, letter_case="keep")
    for clip in librispeech.open_source(options, progress=False).clips():
        if isinstance(clip, Clip):
            clip = replace(clip, fields={**clip.fields, TRANSCRIPT: clip.text})
        yield item_of(clip, task)


def fleurs_translation(task: Task, data: str | None) -> Questions:
    """Read FLEURS as translations; the config is two configs of FLEURS, `de_de-en_us`."""
    spoken, _, target = str(task.config).partition(PAIR_SEPARATOR)
    missing = [one for one in (spoken, target) if data is not None and not (Path(data) / one).is_dir()]
    if missing:
        raise TaskError(f"there is no folder {missing[0]} in {data!r}; expected one for each language.")
    there, here = (
        Form(dataset_named(task.forms[0].corpus.name, one), task.forms[0].split) for one in (target, spoken)
    )
    translations = {
        clip.fields["sentence"]: clip.fields for clip in open_table(there, data).clips() if isinstance(clip, Clip)
    }
    for clip in open_table(here, data).clips():
        if isinstance(clip, Clip):
            sentence = clip.fields["sentence"]
            if sentence not in translations:
                clip = BadClip(clip.id, f"its sentence {sentence} is not in {target}")
            else:
                known = {"target_language": translations[sentence]["language"]}
                known["translation"] = translations[sentence].get(TRANSCRIPT) or ""
                clip = replace(clip, fields={**clip.fields, **known})
        yield item_of(clip, task)


def sessions(task: Task, data: str | None) -> Questions:
    """
    Read recordings in chunks: each chunk is a question, and has the whole recording's transcript as its reference.

    Answers are put together by `extra["session"]`, in the order of `extra["chunk_index"]`, before they are scored. A copy
    is a folder with both datasets, each in a folder of its own name.
    """
    form = task.forms[0]
    parent = replace(form.corpus, name=f"{form.corpus.name}, parent", hub=form.corpus.parent, columns={})
    wanted = {field: spec.columns[:1] for field, spec in form.corpus.columns.items()}
    table, place, folder = _open(form.corpus, form.split, data, wanted)
    whole, _, _ = _open(parent, form.split, data, form.corpus.alternatives)
    transcripts = {str(row["id"]): str(row[TRANSCRIPT] or "") for row in whole}
    for row in table:
        file, session = row["audio"], str(row["session"])
        where = f"{form.corpus.audio_folder}/{file}"
        if place.kind == "hub":
            revision = place.revision or huggingface_hub.constants.DEFAULT_REVISION
            where = f"hf://datasets/{place.path}@{revision}/{where}"
        recording, problem = recording_of(where, place, folder if place.kind == "hub" else place.path)
        if problem is None and session not in transcripts:
            near = difflib.get_close_matches(session, transcripts, n=1)
            problem = f"there is no transcript of {session!r}" + (f", perhaps {near[0]!r}?" if near else "")
        if problem is not None:
            yield BadClip(str(file), problem)
            continue
        extra = {"session": session, "chunk_index": int(row["chunk_index"]), "language": "en"}
        yield Item(str(file), task.prompt, [recording], [transcripts[session]], extra)


def _open(
    corpus: Corpus, split: str, data: str | None, fields: Mapping[str, Sequence[str]]
) -> tuple[Iterator[dict[str, Any]], Place, str]:
    """Return a dataset's rows by `fields`, each with its possible columns; its place; and the folder of its recordings."""
    if data is not None:
        folder = Path(data) / str(corpus.hub).rpartition("/")[2]
        if not folder.is_dir():
            raise TaskError(f"there is no folder {folder.name} in {data!r}; expected the dataset {corpus.hub}.")
        data = str(folder)
    place = find_place(corpus.name, None, None, corpus, data)
    dataset, there, seen_from = _rows_of(place, split)
    columns = {}
    for field, names in fields.items():
        columns[field] = next((name for name in names if name in there), "")
        if not columns[field]:
            named = " or ".join(map(repr, names))
            raise TaskError(f"{corpus.name} has no column {named} for {field!r}. Its columns are: {', '.join(there)}.")
    rows = ({field: row[column] for field, column in columns.items()} for row in dataset)
    return rows, place, seen_from


def _rows_of(place: Place, split: str) -> tuple[Any, list[str], str]:
    """Return a split's rows, the names of their columns, and the folder that recordings are seen from."""
    dataset, folder = open_split(place, split, streaming=True)
    return dataset, dataset.column_names or list(next(iter(dataset), {})), folder


#: List of questions in each part's folder.
META_FILES = {"Foundation": "Foundation_meta.json", "Chat": "Chat_meta.json"}
CHOICE_FIELDS = {letter: f"choice_{letter.lower()}" for letter in LETTERS}
#: A part whose recordings end otherwise than its list says (Inference_Foundation.py).
FLAC_TASK = "Audio_Grounding"
#: End of the names of the chat benchmark's parts; without it they are the categories of its leaderboard (cal_score.py).
CHAT_PART = re.compile(r"(_dialogue|_generation|_generation_analysis)?_QA$")


def air_bench(task: Task, data: str | None) -> Questions:
    """Read AIR-Bench's single choices, whose references are letters, and open questions, with `meta_info` for the judge."""
    part, hub = task.forms[0].split, str(task.forms[0].corpus.hub)
    file = META_FILES[part]
    if data is not None:
        places = (Path(data), Path(data) / file, Path(data) / part / file)
        meta = next((path for path in places if path.is_file()), None)
        if meta is None:
            raise TaskError(f"there is no {file} in {data!r}, nor in a folder {part} there.")
        root = str(meta.parent)
    else:
        root = f"hf://datasets/{hub}/{part}"
        try:
            meta = Path(huggingface_hub.hf_hub_download(hub, f"{part}/{file}", repo_type="dataset"))
        except READ_ERRORS as error:
            told = f"{part}/{file} of {hub} cannot be downloaded: {' '.join(str(error).split())}"
            raise TaskError(f"{told} Give a copy with --data.") from error
    checker = None if data is None else RowReader(root, root)
    for index, row in enumerate(json.loads(meta.read_text(encoding="utf-8-sig"))):
        folder, path = f"{row['task_name']}_{row['dataset_name']}", Path(row["path"])
        recording = f"{folder}/{path.with_suffix('.flac') if row['task_name'] == FLAC_TASK else path}"
        reason: str | None = None if checker is None else checker.path_problem(recording)
        shown = {field: row.get(field) for field in ("question", *CHOICE_FIELDS.values())}
        extra = {"question": row["question"], "dataset": row["dataset_name"]}
        references = [row["answer_gt"]]
        if task.kind == "choice":
            choices = {letter: shown[field] for letter, field in CHOICE_FIELDS.items() if shown[field] is not None}
            references = [letter for letter, text in choices.items() if text == row["answer_gt"]][:1]
            extra |= {"choices": choices, "answer": row["answer_gt"], "category": row["task_name"]}
            reason = reason if references else f"its answer {row['answer_gt']!r} is none of its choices"
        else:
            category = CHAT_PART.sub("", row["task_name"])
            extra |= {"meta_info": row["meta_info"], "part": row["task_name"], "category": category}
        if reason:
            yield BadClip(f"{meta.name} row {index}", reason)
            continue
        found = f"{root}/{recording}" if checker is None else checker.locate(recording)
        yield Item(f"{folder}/{row['uniq_id']}", task.prompt.format_map(shown), [found], references, extra)


TEXT_QUESTIONS_FILE = Path(__file__).parent / "text_questions.yaml"
#: Made recordings without speech: seconds, seed of the noises, root mean square of the loud and the quiet ones.
NO_SPEECH_SECONDS, NO_SPEECH_SEED = (0.5, 2.0, 8.0, 30.0), 20_250_101
LOUD_RMS, QUIET_RMS = 0.1, 0.003
#: The power of noise falls with frequency to this power.
NOISE_SLOPES = {"white noise": 0.0, "pink noise": 1.0, "brown noise": 2.0}
HUM_HZ, HUM_HARMONICS = 50.0, (1, 2, 3, 5)
CLICKS_PER_S, FULL_SCALE = 2.0, 0.99
#: Sound and loudness, by name.
NO_SPEECH: dict[str, tuple[str, float]] = {
    "silence": ("silence", 0.0),
    **{kind: (kind, LOUD_RMS) for kind in NOISE_SLOPES},
    "white noise, quiet": ("white noise", QUIET_RMS),
    "hum": ("hum", LOUD_RMS),
    "clicks": ("clicks", QUIET_RMS),
}


def bundled_speech(task: Task, data: str | None) -> Questions:
    """Read the held-out studio prompts, or the ten clips of speakers that no bundled corpus holds."""
    for row in load_studio_prompts("test") if task.name == "prompts" else load_unseen_speech():
        known = {"speaker": row["speaker"], "language": "en", "duration_s": row["duration_s"]}
        known |= {"category": row["source"]} if "source" in row else {}
        yield Item(row["id"], task.prompt, [row["audio"]], [row["text"]], known)


def no_speech(task: Task, data: str | None) -> Questions:
    """Read recordings in which nobody speaks: made ones, or all that lie in a folder."""
    if data is None:
        for category in NO_SPEECH:
            for seconds in NO_SPEECH_SECONDS:
                name = f"{category.replace(' ', '_').replace(',', '')}-{seconds:g}s"
                made = {"array": made_recording(category, seconds), "sampling_rate": SAMPLING_RATE_HZ}
                extra = {"category": category, "duration_s": seconds}
                yield Item(name, task.prompt, [{**made, "path": f"{name}.wav"}], [], extra)
        return
    if not os.path.isdir(data):
        raise TaskError(f"--data {data!r} is no folder; expected one with recordings.")
    for path in sorted(path for path in Path(data).rglob("*") if is_audio(path) and path.is_file()):
        place = path.relative_to(data)
        category = place.parent.as_posix() if place.parent.name else "recordings"
        yield Item(place.as_posix(), task.prompt, [os.path.abspath(path)], [], {"category": category})


def made_recording(category: str, seconds: float) -> np.ndarray:
    """Make sound without speech, the same every time: float32 `(samples,)` at 16 kHz, within [-1, 1]."""
    kind, rms = NO_SPEECH[category]
    samples = int(seconds * SAMPLING_RATE_HZ)
    generator = np.random.default_rng([NO_SPEECH_SEED, list(NO_SPEECH).index(category), samples])
    if kind == "silence":
        return np.zeros(samples, np.float32)
    if kind in NOISE_SLOPES:
        spectrum = np.fft.rfft(generator.standard_normal(samples))
        frequencies = np.maximum(np.arange(len(spectrum)), 1)
        waveform = np.fft.irfft(spectrum * frequencies ** (-NOISE_SLOPES[kind] / 2), samples)
    elif kind == "hum":
        times = np.arange(samples) / SAMPLING_RATE_HZ
        waveform = np.sum([np.sin(2 * np.pi * HUM_HZ * each * times) / each for each in HUM_HARMONICS], axis=0)
    else:
        waveform = (generator.random(samples) < CLICKS_PER_S / SAMPLING_RATE_HZ).astype(np.float64)
        waveform[samples // 2] = 1.0
    waveform = waveform * rms / np.sqrt(np.mean(np.square(waveform)))
    return np.clip(waveform, -FULL_SCALE, FULL_SCALE).astype(np.float32)


def _written(part: str) -> list[Any]:
    return yaml.safe_load(TEXT_QUESTIONS_FILE.read_text(encoding="utf-8"))[part]


def retention_texts(task: Task, data: str | None) -> Questions:
    """Read texts, each its own prompt, without a right answer."""
    for number, entry in enumerate(_written("texts"), start=1):
        yield Item(f"text-{number:03d}", entry["text"].strip(), [], [], {"category": entry["category"]})


def text_choices(task: Task, data: str | None) -> Questions:
    """Read written questions with four answers."""
    for number, entry in enumerate(_written("choices"), start=1):
        choices = {letter: str(entry[letter]) for letter in LETTERS}
        lines = [entry["question"], *(f"{letter}. {text}" for letter, text in choices.items())]
        prompt = "\n".join([*lines, "Answer with one letter, A, B, C or D."])
        extra = {"question": entry["question"], "choices": choices, "category": entry["category"]}
        yield Item(f"choice-{number:03d}", prompt, [], [entry["answer"]], extra)


#: By the names that `tasks.yaml` calls them.
READERS: dict[str, Reader] = {
    "table": table_items,
    "librispeech": librispeech_items,
    "sessions": sessions,
    "fleurs_translation": fleurs_translation,
    "air_bench": air_bench,
    "bundled_speech": bundled_speech,
    "no_speech": no_speech,
    "retention_texts": retention_texts,
    "text_choices": text_choices,
}

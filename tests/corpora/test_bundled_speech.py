"""The bundled speech: real audio behind every transcript, splits that share nothing, and an export as examples."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from audiollm.corpora.examples import read_examples
from audiollm.corpora.normalisers import normalize_english
from audiollm.corpora.prompts import PROMPT_TASKS, SPLITS, load_studio_prompts, write_prompt_examples
from audiollm.corpora.unseen import SOURCES, UNSEEN_FOLDER, load_unseen_speech

SENTENCES = UNSEEN_FOLDER.parent / "sentences.txt"


def texts(rows) -> set[str]:
    return {normalize_english(text) for text in rows["text"]}


@pytest.mark.parametrize(("load", "step"), [(load_studio_prompts, 10), (load_unseen_speech, 1)])
def test_every_recording_is_16_khz_mono_speech_of_the_stated_length(load, step: int) -> None:
    rows = load()
    for row in rows.select(range(0, len(rows), step)):
        waveform, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="float32")
        assert (rate, waveform.ndim) == (16_000, 1), row["id"]
        assert len(waveform) / rate == pytest.approx(row["duration_s"], abs=1e-3), row["id"]
        assert np.isfinite(waveform).all() and np.abs(waveform).max() > 0.05, f"{row['id']} is silent"
    for row in rows:
        assert row["speaker"] and re.search(r"\w", row["text"])
        assert not re.search(r"[\[\](){}<>#*]|\.\.\.|  |^\s|\s$", row["text"]), f"{row['id']} has editors' remarks"


@pytest.mark.parametrize(
    ("load", "column", "parts"), [(load_studio_prompts, "split", SPLITS), (load_unseen_speech, "source", SOURCES)]
)
def test_parts_cover_everything_once(load, column: str, parts: tuple[str, ...]) -> None:
    everything = load()
    rows = {part: load(part) for part in parts}
    assert all(set(some[column]) == {part} for part, some in rows.items())
    assert sorted(everything["id"]) == sorted(each for some in rows.values() for each in some["id"])
    assert len(set(everything["id"])) == len(everything)
    with pytest.raises(ValueError, match="'dev'"):
        load("dev")


def test_what_is_tested_on_is_never_trained_on() -> None:
    splits = {split: texts(load_studio_prompts(split)) for split in SPLITS}
    assert not splits["train"] & splits["validation"] and not (splits["train"] | splits["validation"]) & splits["test"]
    sentences = {normalize_english(text) for text in SENTENCES.read_text(encoding="utf-8").splitlines()}
    unseen = load_unseen_speech()
    assert not texts(unseen) & (texts(load_studio_prompts()) | sentences)
    assert set(unseen["speaker"]).isdisjoint(load_studio_prompts()["speaker"])


def test_export_is_deterministic_and_answers_from_the_transcript(tmp_path: Path) -> None:
    first, second = (write_prompt_examples(tmp_path / name, "test") for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes() and (tmp_path / "first" / "audio" / "LICENSE.md").exists()
    rows = load_studio_prompts("test")
    prompts = {row["audio"]["path"]: (row["text"], row["audio"]["bytes"]) for row in rows}
    wordings = {wording: task for task in PROMPT_TASKS.values() for wording in task.phrasings}
    examples = read_examples(first, tmp_path / "first")
    assert len(examples) == len(prompts)
    for example in examples:
        [path] = example.audio_paths
        text, audio = prompts[Path(path).name]
        assert Path(path).read_bytes() == audio and example.response == wordings[example.text].answer(text)
    assert len({example.text for example in examples}) >= len(PROMPT_TASKS)


def test_answers_count_words_only_where_spelling_and_speech_agree() -> None:
    answers = {name: task.answer("Please hold, don't hang up.") for name, task in PROMPT_TASKS.items()}
    assert answers == {
        "transcribe": "Please hold, don't hang up.",
        "lower_case": "please hold don't hang up",
        "count_words": "5",
        "last_word": "up",
    }
    for transcript in ("Press 1 for", "USB Radio", "To re-record it.", "P.M.", "zero"):
        assert not PROMPT_TASKS["count_words"].applies(transcript) and PROMPT_TASKS["transcribe"].applies(transcript)


def test_tasks_and_limit_narrow_the_export(tmp_path: Path) -> None:
    path = write_prompt_examples(tmp_path, "train", tasks=["count_words"], limit=3)
    assert [example.response.isdigit() for example in read_examples(path)] == [True] * 3
    with pytest.raises(ValueError, match=r"\['sing'\].*transcribe"):
        write_prompt_examples(tmp_path, "train", tasks=["sing"])

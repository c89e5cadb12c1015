"""The studio prompts: real audio behind every transcript, clean splits, and an export in the instruction format."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from audiollm.corpora.examples import read_examples
from audiollm.corpora.prompts import CORPUS_FOLDER, PROMPT_TASKS, SPLITS, load_studio_prompts, write_prompt_examples


def normalised(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", " ", text.lower()).strip()


def test_every_prompt_is_16_khz_mono_speech_of_the_stated_length() -> None:
    prompts = load_studio_prompts()
    for row in prompts.select(range(0, len(prompts), 5)):
        waveform, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="float32")
        assert (rate, waveform.ndim) == (16_000, 1), row["id"]
        assert len(waveform) / rate == pytest.approx(row["duration_s"], abs=1e-3), row["id"]
        assert np.isfinite(waveform).all() and np.abs(waveform).max() > 0.05, f"{row['id']} is silent"


def test_transcripts_are_words_without_editors_remarks() -> None:
    for row in load_studio_prompts():
        assert normalised(row["text"]), row
        assert not re.search(r"[\[\](){}<>#*]|\.\.\.|  |^\s|\s$", row["text"]), row["id"]


def test_splits_share_no_text_and_cover_everything_once() -> None:
    everything = load_studio_prompts()
    splits = {split: load_studio_prompts(split) for split in SPLITS}
    assert sorted(everything["id"]) == sorted(each for split in splits.values() for each in split["id"])
    assert len(set(everything["id"])) == len({path.lower() for path in audio_paths(everything)}) == len(everything)
    texts = {split: {normalised(text) for text in rows["text"]} for split, rows in splits.items()}
    assert not texts["train"] & texts["validation"]
    assert not texts["train"] & texts["test"]
    assert not texts["validation"] & texts["test"]
    assert len(splits["test"]) >= 55
    assert 0.75 < len(splits["train"]) / len(everything) < 0.85
    for split, rows in splits.items():
        assert set(rows["split"]) == {split}


def audio_paths(prompts) -> list[str]:
    return [audio["path"] for audio in prompts["audio"]]


def test_an_unknown_split_is_named() -> None:
    with pytest.raises(ValueError, match=r"'dev'.*train, validation, test"):
        load_studio_prompts("dev")


def test_card_and_licence_travel_with_the_data() -> None:
    card = (CORPUS_FOLDER / "README.md").read_text(encoding="utf-8")
    assert "license: cc-by-sa-3.0" in card and "Allison Smith" in card and "Digium" in card
    assert str(len(load_studio_prompts())) in card
    for split in SPLITS:
        assert f"| {split} | {len(load_studio_prompts(split))} |" in card
    licence = (CORPUS_FOLDER / "LICENSE.md").read_text(encoding="utf-8")
    assert "https://creativecommons.org/licenses/by-sa/3.0/" in licence and "has been modified" in licence


def test_export_is_valid_deterministic_and_answers_from_the_transcript(tmp_path: Path) -> None:
    first = write_prompt_examples(tmp_path / "first", "test")
    second = write_prompt_examples(tmp_path / "second", "test")
    assert first.read_bytes() == second.read_bytes()
    examples = read_examples(first, tmp_path / "first")
    prompts = {audio["path"]: (text, audio["bytes"]) for audio, text in columns("test", "audio", "text")}
    wordings = {wording: task for task in PROMPT_TASKS.values() for wording in task.phrasings}
    assert len(examples) == len(prompts)
    for example in examples:
        [path] = example.audio_paths
        text, audio = prompts[Path(path).name]
        assert Path(path).read_bytes() == audio
        assert example.response == wordings[example.text].answer(text)
    assert len({example.text for example in examples}) >= len(PROMPT_TASKS)
    assert (tmp_path / "first" / "audio" / "LICENSE.md").exists()


def columns(split: str, *names: str):
    prompts = load_studio_prompts(split)
    return zip(*(prompts[name] for name in names))


@pytest.mark.parametrize(
    ("task", "answer"),
    [
        ("transcribe", "Please hold, don't hang up."),
        ("lower_case", "please hold don't hang up"),
        ("count_words", "5"),
        ("last_word", "up"),
    ],
)
def test_answers(task: str, answer: str) -> None:
    assert PROMPT_TASKS[task].answer("Please hold, don't hang up.") == answer


@pytest.mark.parametrize("transcript", ["Press 1 for", "USB Radio", "To re-record it.", "P.M.", "zero"])
def test_words_are_only_counted_where_spelling_and_speech_agree(transcript: str) -> None:
    assert not PROMPT_TASKS["count_words"].applies(transcript)
    assert PROMPT_TASKS["transcribe"].applies(transcript)


def test_tasks_and_limit_narrow_the_export(tmp_path: Path) -> None:
    path = write_prompt_examples(tmp_path, "train", tasks=["count_words"], limit=3)
    assert [example.response.isdigit() for example in read_examples(path)] == [True] * 3
    with pytest.raises(ValueError, match=r"\['sing'\].*transcribe"):
        write_prompt_examples(tmp_path, "train", tasks=["sing"])

"""The bundled speech: real audio behind every transcript, splits that share nothing, and an export as examples."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from audiollm.corpora.examples import read_examples
from audiollm.corpora.prompts import PROMPT_TASKS, SPLITS, load_studio_prompts, main, write_prompt_examples
from audiollm.corpora.unseen import SOURCES, UNSEEN_FOLDER, load_unseen_speech


def plain(texts: list[str]) -> set[str]:
    """Texts without case and punctuation."""
    return {" ".join(re.findall(r"[a-z0-9']+", text.lower())) for text in texts}


@pytest.mark.parametrize(
    ("load", "step", "column", "parts"),
    [(load_studio_prompts, 10, "split", SPLITS), (load_unseen_speech, 1, "source", SOURCES)],
)
def test_recordings_are_16_khz_mono_speech_and_parts_cover_all_of_it(load, step: int, column: str, parts) -> None:
    everything = load()
    for row in everything.select(range(0, len(everything), step)):
        waveform, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="float32")
        assert (rate, waveform.ndim) == (16_000, 1), row["id"]
        assert len(waveform) / rate == pytest.approx(row["duration_s"], abs=1e-3), row["id"]
        assert np.isfinite(waveform).all() and np.abs(waveform).max() > 0.05, f"{row['id']} is silent"
    for text, speaker in zip(everything["text"], everything["speaker"]):
        assert speaker and re.search(r"\w", text)
        assert not re.search(r"[\[\](){}<>#*]|\.\.\.|  |^\s|\s$", text), f"{text!r} has editors' remarks"
    rows = {part: load(part) for part in parts}
    assert all(set(some[column]) == {part} for part, some in rows.items())
    ids = [each for some in rows.values() for each in some["id"]]
    assert sorted(everything["id"]) == sorted(ids) and len(set(ids)) == len(ids)
    with pytest.raises(ValueError, match="'dev'"):
        load("dev")


def test_what_is_tested_on_is_never_trained_on() -> None:
    train, validation, test = (plain(load_studio_prompts(split)["text"]) for split in SPLITS)
    assert not train & validation and not (train | validation) & test
    sentences = (UNSEEN_FOLDER.parent / "sentences.txt").read_text(encoding="utf-8").splitlines()
    unseen = load_unseen_speech()
    assert not plain(unseen["text"]) & (train | validation | test | plain(sentences))
    assert set(unseen["speaker"]).isdisjoint(load_studio_prompts()["speaker"])


def test_export_is_deterministic_and_answers_from_the_transcript(tmp_path: Path, capsys) -> None:
    first = write_prompt_examples(tmp_path / "first", "test")
    main(["--output_dir", str(tmp_path / "second"), "--split", "test"])
    second = Path(capsys.readouterr().out.strip())
    assert first.read_bytes() == second.read_bytes() and (tmp_path / "first" / "audio" / "LICENSE.md").exists()
    prompts = {row["audio"]["path"]: (row["text"], row["audio"]["bytes"]) for row in load_studio_prompts("test")}
    wordings = {wording: task for task in PROMPT_TASKS.values() for wording in task.phrasings}
    examples = read_examples(first, tmp_path / "first")
    assert len(examples) == len(prompts)
    for example in examples:
        [path] = example.audio_paths
        text, audio = prompts[Path(path).name]
        assert Path(path).read_bytes() == audio and example.response == wordings[example.text].answer(text)
    assert len({example.text for example in examples}) >= len(PROMPT_TASKS)
    path = write_prompt_examples(tmp_path, "train", tasks=["count_words"], limit=3)
    assert [example.response.isdigit() for example in read_examples(path)] == [True] * 3
    with pytest.raises(ValueError, match=r"\['sing'\].*transcribe"):
        write_prompt_examples(tmp_path, "train", tasks=["sing"])


def test_answers_count_words_only_where_spelling_and_speech_agree() -> None:
    answers = [task.answer("Please hold, don't hang up.") for task in PROMPT_TASKS.values()]
    assert answers == ["Please hold, don't hang up.", "please hold don't hang up", "5", "up"]
    for transcript in ("Press 1 for", "USB Radio", "To re-record it.", "P.M.", "zero"):
        assert not PROMPT_TASKS["count_words"].applies(transcript) and PROMPT_TASKS["transcribe"].applies(transcript)

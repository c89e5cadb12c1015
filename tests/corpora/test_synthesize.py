"""Texts that become speech: every form of file, every option, every bad text named, and the same bytes each time."""

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audiollm.corpora import prepare
from audiollm.corpora.clips import BadClip, Clip, CorpusError
from audiollm.corpora.examples import read_examples
from audiollm.corpora.synthesize import SynthesizeArguments, open_source
from audiollm.corpora.voices import voice_named

ROWS = [
    {"instruction": "How tall is the tower?", "output": "It is ninety metres tall.", "id": "a"},
    {"instruction": "Name two rivers.", "output": "The Rhine and the Rhone.", "id": "b"},
    {"instruction": "Say hello, please.", "output": "Hello!", "id": "c"},
]


def write(folder: Path, suffix: str, rows: list[dict[str, Any]] = ROWS) -> Path:
    path = folder / f"texts{suffix}"
    if suffix == ".csv":
        lines = [",".join(map(json.dumps, each)) for each in (rows[0], *(row.values() for row in rows))]
        path.write_text("\n".join([*lines, ""]))
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text("\n".join(row["instruction"] for row in rows))
    return path


@pytest.fixture(scope="module", autouse=True)
def voices() -> list[str]:
    try:
        return [str(voice_named(name)) for name in ("flite:kal16", "espeak-ng:en-us", "espeak-ng:en-us+f3")]
    except CorpusError as error:
        pytest.skip(str(error))


def clips_of(path: Path, voices: list[str], **options: Any) -> list[Clip | BadClip]:
    return list(open_source(SynthesizeArguments(str(path), voices=voices, **options)).clips())


def summary(clips: list[Clip | BadClip]) -> list[tuple[Any, ...]]:
    return [(clip.id, clip.text, dict(clip.fields)) if isinstance(clip, Clip) else (clip.id,) for clip in clips]


def test_lines_of_a_text_file_are_transcribed(tmp_path: Path, voices: list[str]) -> None:
    path = write(tmp_path, ".txt")
    path.write_text("\ufeff" + path.read_text() + "\n\n  \nThe end.\n", encoding="utf-8")
    source = open_source(SynthesizeArguments(str(path), voices=voices))
    clips = list(source.clips())
    assert [clip.text for clip in clips] == [*(row["instruction"] for row in ROWS), "The end."]
    assert all("response" not in clip.fields for clip in clips) and source.tasks == ("transcribe",)


def test_speech_is_made_when_it_is_loaded_and_is_the_same_every_time(tmp_path: Path, voices: list[str]) -> None:
    path = write(tmp_path, ".jsonl")
    first, second = (clips_of(path, voices) for _ in range(2))
    assert summary(first) == summary(second)
    source = open_source(SynthesizeArguments(str(path), voices=voices))
    assert all(summary(list(source.clips(start))) == summary(first[start:]) for start in range(5))
    for one, other in zip(first, second):
        waveform, rate = one.recording.load()
        assert rate == 16_000 and 8_000 < len(waveform) < 80_000
        assert np.array_equal(waveform, pickle.loads(pickle.dumps(other.recording)).load()[0])
    assert len({(clip.fields["pitch"], clip.fields["speed"]) for clip in first}) == 3
    assert all(0.3 <= clip.recording.peak <= 0.9 for clip in first)


def test_options_decide_what_is_spoken_how_and_are_part_of_the_identity(tmp_path: Path, voices: list[str]) -> None:
    path = write(tmp_path, ".csv")
    usual = SynthesizeArguments(str(path), voices=voices)
    identities = [open_source(usual).identity]

    def fields(name: str, **changes: Any) -> list[Any]:
        source = open_source(replace(usual, **changes))
        identities.append(source.identity)
        return [getattr(clip, name) if hasattr(clip, name) else clip.fields.get(name) for clip in source.clips()]

    assert set(fields("speaker", voices=voices[:1])) == {voices[0]}
    assert set(fields("pitch", pitch=[1.2])) == {1.2}
    assert all(1.3 <= speed <= 1.5 for speed in fields("speed", speed=[1.3, 1.5]))
    assert fields("pitch", voice_seed=1) != [clip.fields["pitch"] for clip in clips_of(path, voices)]
    assert set(fields("split", split="test")) == {"test"}
    assert fields("text", text_column="output") == [row["output"] for row in ROWS]
    assert fields("response", response_column="id") == ["a", "b", "c"]
    assert fields("response", response_column="") == [None] * 3
    assert len(set(fields("id", voices_per_text=3))) == 9
    speakers = fields("speaker", voices_per_text=3, split="dev")
    assert all(sorted(speakers[start : start + 3]) == sorted(voices) for start in (0, 3, 6))
    path.write_text(path.read_text() + "More?,Yes.,d\n")
    assert len(fields("text")) == 4
    assert len({json.dumps(identity, sort_keys=True) for identity in identities}) == len(identities)
    slow, fast = (clips_of(path, voices[:1], speed=[one], pitch=[1])[0].recording.load()[0] for one in (0.8, 1.25))
    assert len(slow) > 1.3 * len(fast)
    with pytest.raises(CorpusError, match=r"--voices_per_text 4 asks for more voices than there are: 3 \(flite:kal16"):
        clips_of(path, [*voices, voices[0]], voices_per_text=4)


def test_bad_texts_are_named_and_the_others_come(tmp_path: Path, voices: list[str]) -> None:
    texts = ["Fine.", "", "...", "Describe <audio>", "Скажи", "a" * 10_001, None, "It costs £5."]
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    found = clips_of(path, voices)
    assert [clip.text for clip in found if isinstance(clip, Clip)] == ["Fine.", "It costs £5."]
    assert isinstance(found[-1], Clip) and found[-1].fields["speaker"] in voices[1:], "flite reads no pound sign"
    reasons = [clip.reason for clip in found if isinstance(clip, BadClip)]
    expected = [
        "'text' is empty",
        "nothing to say",
        "has <audio>",
        "0 voices can read the text, and --voices_per_text is 1: flite:kal16 does not read 'С'; espeak-ng:en-us does",
        "10001 characters; at most 10000",
        "found None",
    ]
    assert len(reasons) == len(expected)
    assert all(part in reason for part, reason in zip(expected, reasons)), reasons


def test_the_command_writes_the_same_bytes_every_time(tmp_path: Path, voices: list[str]) -> None:
    texts = write(tmp_path, ".csv")
    sums = []
    for name in ("one", "two"):
        output = tmp_path / name
        options = ["--voices", *voices, "--voices_per_text", "2", "--workers", "1", "--output", str(output)]
        prepare.run("synthesize", [str(texts), *options])
        sums.append((output / "SHA256SUMS").read_text())
    assert sums[0] == sums[1] and sums[0].count(".flac") == 6
    examples = read_examples(tmp_path / "one" / "instruction_examples.json")
    assert {(example.text, example.response) for example in examples} == {("<audio>", row["output"]) for row in ROWS}

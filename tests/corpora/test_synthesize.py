"""Texts that become speech: every form of file, every option, every bad text named, and the same bytes each time."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from audiollm.corpora import prepare
from audiollm.corpora.clips import BadClip, Clip, CorpusError
from audiollm.corpora.examples import read_examples
from audiollm.corpora.synthesize import SynthesizeArguments, open_source
from audiollm.corpora.voices import voice_named
from made_clips import load_elsewhere

ROWS = [
    {"instruction": "How tall is the tower?", "output": "It is ninety metres tall.", "id": "a"},
    {"instruction": "Name two rivers.", "output": "The Rhine and the Rhone.", "id": "b"},
    {"instruction": "Say hello, please.", "output": "Hello!", "id": "c"},
]


def write(folder: Path, suffix: str, rows: list[dict[str, Any]] = ROWS) -> Path:
    path = folder / f"texts{suffix}"
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif suffix in (".csv", ".tsv"):
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif suffix == ".json":
        path.write_text(json.dumps(rows))
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
    assert all("response" not in clip.fields for clip in clips)
    assert source.default_tasks == ("transcribe",)


def test_speech_is_made_when_it_is_loaded_and_is_the_same_every_time(tmp_path: Path, voices: list[str]) -> None:
    path = write(tmp_path, ".jsonl")
    first, second = (clips_of(path, voices) for _ in range(2))
    assert summary(first) == summary(second)
    for one, other in zip(first, second):
        waveform, rate = one.recording.load()
        assert rate == 16_000 and 8_000 < len(waveform) < 80_000
        assert np.array_equal(waveform, load_elsewhere(other.recording)[0])
    assert len({(clip.fields["pitch"], clip.fields["speed"]) for clip in first}) == 3
    assert all(0.3 <= clip.recording.peak <= 0.9 for clip in first)


def test_each_text_is_spoken_by_as_many_different_voices_as_asked_for(tmp_path: Path, voices: list[str]) -> None:
    clips = clips_of(write(tmp_path, ".csv"), voices, voices_per_text=3)
    assert len({clip.id for clip in clips}) == 9
    for row in range(3):
        assert sorted(str(clip.fields["speaker"]) for clip in clips[3 * row : 3 * row + 3]) == sorted(voices)
    with pytest.raises(CorpusError, match=r"--voices_per_text 4 asks for more voices than there are: 3 \(flite:kal16"):
        clips_of(write(tmp_path, ".csv"), [*voices, voices[0]], voices_per_text=4)


def test_options_decide_what_is_spoken_how(tmp_path: Path, voices: list[str]) -> None:
    path = write(tmp_path, ".csv")
    usual = clips_of(path, voices)
    assert {clip.fields["speaker"] for clip in clips_of(path, voices[:1])} == {voices[0]}
    assert {clip.fields["pitch"] for clip in clips_of(path, voices, pitch=[1.2])} == {1.2}
    assert all(1.3 <= clip.fields["speed"] <= 1.5 for clip in clips_of(path, voices, speed=[1.3, 1.5]))
    assert summary(clips_of(path, voices, voice_seed=1)) != summary(usual)
    assert {clip.split for clip in clips_of(path, voices, split="test")} == {"test"}
    assert [clip.text for clip in clips_of(path, voices, text_column="output")] == [row["output"] for row in ROWS]
    assert [clip.fields["response"] for clip in clips_of(path, voices, response_column="id")] == ["a", "b", "c"]
    assert all("response" not in clip.fields for clip in clips_of(path, voices, response_column=""))
    slow, fast = (clips_of(path, voices[:1], speed=[one], pitch=[1])[0].recording.load()[0] for one in (0.8, 1.25))
    assert len(slow) > 1.3 * len(fast)


def test_the_identity_changes_with_everything_that_changes_clips(tmp_path: Path, voices: list[str]) -> None:
    path = write(tmp_path, ".csv")
    usual = SynthesizeArguments(str(path), voices=voices)
    others = [
        replace(usual, **change)
        for change in (
            {"voices": voices[:2]},
            {"voices_per_text": 2},
            {"pitch": [1.0]},
            {"speed": [1.0]},
            {"voice_seed": 1},
            {"split": "test"},
            {"text_column": "output"},
            {"response_column": ""},
        )
    ]
    identities = [json.dumps(open_source(one).identity, sort_keys=True) for one in (usual, *others)]
    path.write_text(path.read_text() + "More?,Yes.,d\n")
    identities.append(json.dumps(open_source(usual).identity, sort_keys=True))
    assert len(set(identities)) == len(identities)


def test_bad_texts_are_named_and_the_others_come(tmp_path: Path, voices: list[str]) -> None:
    texts = [
        "Fine.",
        "",
        "...",
        "Describe <audio>",
        "Скажи",
        "\ud800 x",
        "a" * 10_001,
        7,
        None,
        "Also fine; rm -rf /.",
    ]
    path = tmp_path / "texts.jsonl"
    lines = [json.dumps({"text": text}) for text in texts]
    path.write_text("\n".join([*lines, '{"text": ', '["list"]', '{"other": "x"}']))
    found = clips_of(path, voices)
    assert [clip.text for clip in found if isinstance(clip, Clip)] == ["Fine.", "Also fine; rm -rf /."]
    reasons = [clip.reason for clip in found if isinstance(clip, BadClip)]
    expected = [
        "'text' is empty",
        "nothing to say",
        "has <audio>",
        "0 voices can read the text, and --voices_per_text is 1: flite:kal16 does not read 'С'; espeak-ng:en-us does",
        "not Unicode",
        "10001 characters; at most 10000",
        "found 7",
        "found None",
        "line 11 is not JSON",
        "expected a JSON object",
        "found None",
    ]
    assert len(reasons) == len(expected)
    assert all(part in reason for part, reason in zip(expected, reasons)), reasons


def test_texts_go_to_voices_that_can_read_them(tmp_path: Path, voices: list[str]) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("It costs £5.\n" * 12, encoding="utf-8")
    assert {str(clip.fields["speaker"]) for clip in clips_of(path, voices)} == set(voices[1:])


def test_a_program_of_ones_own_speaks(tmp_path: Path) -> None:
    path = write(tmp_path, ".txt")
    command = "espeak-ng -v {voice} -w {output} -f {text_file}"
    arguments = SynthesizeArguments(str(path), tts_command=command, voices=["en-us", "en-gb"], voices_per_text=2)
    clips = list(open_source(arguments).clips())
    assert {clip.id for clip in clips[:2]} == {"000000-command-en-gb", "000000-command-en-us"}
    assert {(clip.fields["pitch"], clip.fields["speed"]) for clip in clips} == {(1.0, 1.0)}
    assert len(clips[0].recording.load()[0]) > 8_000
    with pytest.raises(ValueError, match=r"--speed needs \{speed\}"):
        open_source(replace(arguments, speed=[0.9, 1.1]))
    assert {clip.fields["pitch"] for clip in open_source(replace(arguments, pitch=[1.1])).clips()} == {1.1}


def test_the_time_for_a_text_is_bounded(tmp_path: Path, voices: list[str]) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("word " * 1900)
    (clip,) = clips_of(path, voices[:1], tts_timeout=0.02)
    with pytest.raises(ValueError, match=r"flite took longer than 0\.02 s; split the text"):
        clip.recording.load()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"voices_per_text": 0}, "--voices_per_text is 0"),
        ({"tts_timeout": 0.0}, "--tts_timeout is 0"),
        ({"pitch": [1.2, 0.9]}, "--pitch is 1.2 0.9"),
        ({"pitch": [0.5, 1.0]}, "within 0.75 to 1.35"),
        ({"speed": [1.0, 1.1, 1.2]}, "--speed is 1 1.1 1.2"),
        ({"speed": [float("nan")]}, "--speed is nan"),
        ({"split": " "}, "--split is empty"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        SynthesizeArguments("texts.txt", **options)


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

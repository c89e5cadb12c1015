"""`audiollm validate` as users call it: exit codes, report, every form of data, and every option."""

import io
import json
import os
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from audiollm.corpora.prompts import load_studio_prompts
from audiollm.corpora.validate import main
from corpus_copies import stored

RATE_HZ = 16_000
TRANSCRIBE = "Transcribe the audio: <audio>"
#: A studio prompt of two seconds or so each, decoded.
PROMPTS = [row for row in load_studio_prompts("test") if 1.5 < row["duration_s"] < 4.0][:8]
Row = dict[str, Any]


def speech(number: int) -> np.ndarray:
    return soundfile.read(io.BytesIO(PROMPTS[number]["audio"]["bytes"]), dtype="float32")[0]


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    """Three good rows, whose audio lies in the folder."""
    for number in range(3):
        soundfile.write(tmp_path / f"{number}.wav", speech(number), RATE_HZ)
    return [
        {"text": TRANSCRIBE, "audio_paths": f"{number}.wav", "response": PROMPTS[number]["text"]}
        for number in range(3)
    ]


def write(path: Path, rows: list[Row]) -> str:
    path.write_text(json.dumps(rows))
    return str(path)


def check(*arguments: Any, workers: int = 1) -> int:
    """Runs the command, and gives its exit code."""
    try:
        main([*map(str, arguments), "--workers", str(workers)])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def faults(report: Path) -> list[tuple[int | None, str]]:
    return [(each["row"], each["fault"]) for each in json.loads(report.read_text(encoding="utf-8"))["faults"]]


def found(tmp_path: Path, *arguments: Any) -> list[tuple[int | None, str]]:
    """(row, fault) of everything that the command reports."""
    report = tmp_path / "found.json"
    report.unlink(missing_ok=True)
    code = check(*arguments, "--report", report)
    assert code == (json.loads(report.read_text())["errors"] > 0)
    return faults(report)


# ------------------------------------------------------------------------------------------- exit codes and reports


def test_errors_end_with_1_and_warnings_with_0_unless_strict(tmp_path: Path, rows: list[Row], capsys) -> None:
    assert check(write(tmp_path / "data.json", rows)) == 0
    output = capsys.readouterr().out
    assert "3 rows, 3 recordings" in output and "No faults." in output
    data = write(tmp_path / "data.json", [*rows, rows[1]])
    assert check(data) == 0 and "warning  duplicate_row: 1" in capsys.readouterr().out
    assert check(data, "--strict") == 1 and "error    duplicate_row: 1" in capsys.readouterr().out
    data = write(tmp_path / "data.json", [row | {"response": ""} for row in rows])
    assert check(data, "--shown", 2) == 1
    output = capsys.readouterr().out
    assert "row 1: 'response' is empty" in output and "... and 1 more" in output and "row 2" not in output
    assert check(data, "--ignore", "empty_text", "not_compared") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.json"], "'nowhere.json' does not exist"),
        (["{data}", "--ignore", "loud"], "'loud'; expected some of unreadable_data"),
        (["{data}", "--min_seconds", "5", "--max_seconds", "1"], "--max_seconds is 1"),
        (["{data}", "--max_clipped_share", "2"], "--max_clipped_share is 2"),
        (["pipe"], "'pipe' is a pipe"),
        (["{data}", "--report", "{data}"], "is the data; give it a file of its own"),
        (["{data}", "--audio_dir", "nowhere"], "'nowhere' is not a folder"),
        (["data={data}", "--against", "data={data}"], "held_out={data}"),
        (["{data}", "--loud", "3"], "unrecognized arguments"),
        ([], "required: data"),
    ],
)
def test_what_cannot_be_checked_ends_with_2(tmp_path: Path, rows: list[Row], capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    data = write(tmp_path / "data.json", rows)
    before = Path(data).read_bytes()
    os.mkfifo("pipe")
    assert check(*(each.format(data=data) for each in arguments)) == 2
    assert message.format(data=data) in capsys.readouterr().err.replace("\n", " ")
    assert Path(data).read_bytes() == before


def test_the_report_has_everything(tmp_path: Path, rows: list[Row]) -> None:
    rows[1] |= {"response": "What is said in this recording?", "text": "What is said in this recording? <audio>"}
    rows[2] |= {"audio_paths": "schön 録音\udcff.wav"}
    report = tmp_path / "made" / "report.json"
    assert check(write(tmp_path / "data.json", rows), "--report", report) == 1
    content = json.loads(report.read_text(encoding="utf-8"))
    assert (content["version"], content["errors"], content["warnings"]) == (1, 1, 1)
    assert content["counts"] == {"missing_file": 1, "response_is_prompt": 1}
    seconds = [len(speech(number)) / RATE_HZ for number in range(2)]
    (file,) = content["files"]
    assert {name: file[name] for name in ("rows", "recordings", "transcripts", "split", "judged", "not_compared")} == {
        "rows": 3, "recordings": 2, "transcripts": 2, "split": "data", "judged": True, "not_compared": 1
    }  # fmt: skip
    assert content["hours"] == file["hours"] == pytest.approx(sum(seconds) / 3600, abs=1e-6)
    assert content["limits"]["max_seconds"] == 600 and not content["strict"]
    fault = content["faults"][1]
    assert fault | {"reason": ""} == {
        "file": str(tmp_path / "data.json"), "row": 2, "where": "row 2", "fault": "missing_file", "severity": "error",
        "reason": "", "audio": "schön 録音\udcff.wav",
    }  # fmt: skip


def test_the_report_is_the_same_whoever_many_work(tmp_path: Path, rows: list[Row]) -> None:
    (tmp_path / "2.wav").write_bytes(b"")
    twenty = [row | {"text": f"{TRANSCRIBE} {number}"} for number in range(7) for row in rows]
    data = write(tmp_path / "data.json", [*rows, *rows, *twenty])
    reports = [tmp_path / f"{workers}.json" for workers in (1, 2)]
    for workers, report in zip((1, 2), reports):
        assert check(data, "--report", report, workers=workers) == 1
    assert reports[0].read_bytes() == reports[1].read_bytes()
    assert (3, "duplicate_row") in faults(reports[0]) and (26, "undecodable") in faults(reports[0])


def test_names_cannot_command_the_terminal(tmp_path: Path, rows: list[Row], capsys) -> None:
    rows[0]["audio_paths"] = "\x1b]0;hello\x07.wav"
    rows[1]["\x1b[2J"] = 1
    assert check(write(tmp_path / "data.json", rows)) == 1
    assert "\x1b" not in capsys.readouterr().out


# -------------------------------------------------------------------------------------------------- forms of data


def in_form(form: str, folder: Path, rows: list[Row]) -> str:
    """Write rows in a form that training reads, and return what the command is given."""
    names, texts = [row["audio_paths"] for row in rows], [row["response"] for row in rows]
    if form == "lines":
        (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(folder / "data.jsonl")
    if form == "messages":
        content = [
            [{"type": "text", "text": "Transcribe the audio: "}, {"type": "audio", "path": name}] for name in names
        ]
        turns = [
            [{"role": "user", "content": one}, {"role": "assistant", "content": text}]
            for one, text in zip(content, texts)
        ]
        rows = [{"messages": messages} for messages in turns]
    if form in ("json", "messages"):
        return write(folder / "data.json", rows)
    if form == "saved":
        rows = [row | {"audio_paths": str(folder / name)} for row, name in zip(rows, names)]
        return stored("splits", folder / "saved", datasets.Dataset.from_list(rows), "test") + "?split=test"
    table: dict[str, Any] = {"audio": names, "text": texts, "id": names}  # of clips: transcripts, and no prompts
    if form == "parquet":  # with the audio inside
        audio = [{"bytes": (folder / name).read_bytes(), "path": name} for name in names]
        table = {"text": [row["text"] for row in rows], "audio": audio, "response": texts, "speaker": names}
    pq.write_table(pa.table(table), folder / "data.parquet")
    return str(folder / "data.parquet")


@pytest.mark.parametrize("form", ["json", "lines", "messages", "parquet", "clips", "saved"])
def test_every_form_of_data_is_read(tmp_path: Path, rows: list[Row], form: str) -> None:
    assert found(tmp_path, in_form(form, tmp_path, rows)) == []
    soundfile.write(tmp_path / "1.wav", speech(1) * 1e-4, RATE_HZ)
    rows[2]["response"] = 15 * rows[2]["response"]
    assert found(tmp_path, in_form(form, tmp_path, rows)) == [(1, "silent"), (2, "impossible_transcript")]


def test_a_table_of_something_else(tmp_path: Path) -> None:
    pq.write_table(pa.table({"price": [1.0]}), tmp_path / "prices.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    for name in ("prices.parquet", "broken.parquet"):
        assert found(tmp_path, tmp_path / name) == [(None, "unreadable_data")]


# -------------------------------------------------------------------------------------------------------- options


def test_split_names_and_against(tmp_path: Path, rows: list[Row]) -> None:
    train, test = write(tmp_path / "train.json", rows), write(tmp_path / "test.json", rows[1:2] + [{"text": "?"}])
    assert found(tmp_path, train, test) == [(0, "duplicate_row"), (1, "malformed_row")]
    assert found(tmp_path, f"train={train}", f"test={test}") == [(1, "audio_leak"), (1, "malformed_row")]
    assert found(tmp_path, train, "--against", test) == [(1, "audio_leak"), (1, "not_compared")]
    others = ["--against", f"held_out={test}", f"other={test}", "--ignore", "not_compared"]
    assert found(tmp_path, train, *others) == 2 * [(1, "audio_leak")]


def test_what_cannot_be_compared_is_a_fault(tmp_path: Path, rows: list[Row]) -> None:
    """A leak is hidden where the other file's audio lies outside of --audio_dir, is cut off, or is not there."""
    (tmp_path / "other").mkdir()
    (tmp_path / "0.wav").rename(tmp_path / "other" / "0.wav")
    (tmp_path / "mine").mkdir()
    (tmp_path / "1.wav").rename(tmp_path / "mine" / "1.wav")
    (tmp_path / "mine" / "cut.wav").write_bytes((tmp_path / "mine" / "1.wav").read_bytes()[:-99])
    train = write(tmp_path / "train.json", [rows[1]])
    assert found(tmp_path, train) == [(0, "missing_file")], "without --audio_dir it lies beside the file"
    for path in ("../other/0.wav", str(tmp_path / "other" / "0.wav"), "cut.wav", "gone.wav"):
        test = write(tmp_path / "test.json", [rows[1] | {"response": "Else."}, rows[0] | {"audio_paths": path}])
        expected = [(0, "audio_leak"), (1, "not_compared")]
        assert found(tmp_path, train, "--audio_dir", tmp_path / "mine", "--against", test) == expected
    (tmp_path / "test.json").write_text("{")
    assert found(tmp_path, train, "--audio_dir", tmp_path / "mine", "--against", test) == [(None, "not_compared")]


def test_response_is_transcript(tmp_path: Path, rows: list[Row]) -> None:
    rows[0] |= {"text": "<audio>\nSchreibe auf, was du hörst.", "response": 10 * rows[0]["response"]}
    data = write(tmp_path / "data.json", rows)
    assert found(tmp_path, data) == []
    assert found(tmp_path, data, "--response_is_transcript") == [(0, "impossible_transcript")]


def test_limits_of_recordings(tmp_path: Path, rows: list[Row]) -> None:
    """Each limit finds what it is about, in recordings and transcripts that are good by default."""
    waveforms = [speech(0) * 0.5 + 0.03, np.tile(speech(1) * 0.1, 4), speech(2)]
    waveforms[2][:10] = 1.0
    for number, waveform in enumerate(waveforms):
        soundfile.write(tmp_path / f"{number}.wav", waveform, RATE_HZ)
    data = write(tmp_path / "data.json", [row | {"response": row["response"][:20]} for row in rows])
    assert found(tmp_path, data) == []
    for option, value, expected in (
        ("min_seconds", 8.0, (0, "too_short")),
        ("max_seconds", 1.0, (0, "too_long")),
        ("min_level_dbfs", -30.0, (1, "silent")),
        ("max_clipped_share", 0.0, (2, "clipped")),
        ("max_characters_per_second", 2.0, (0, "impossible_transcript")),
        ("max_words_per_second", 0.3, (0, "impossible_transcript")),
        ("min_characters_per_second", 5.0, (1, "sparse_transcript")),
    ):
        assert expected in found(tmp_path, data, f"--{option}", value), option

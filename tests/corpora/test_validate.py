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
#: Studio prompts of two seconds or so.
PROMPTS = [row for row in load_studio_prompts("test") if 1.5 < row["duration_s"] < 4.0][:3]
Row = dict[str, Any]


def speech(number: int) -> np.ndarray:
    return soundfile.read(io.BytesIO(PROMPTS[number]["audio"]["bytes"]), dtype="float32")[0]


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    """Three good rows, whose audio lies in the folder."""
    for number in range(3):
        soundfile.write(tmp_path / f"{number}.wav", speech(number), RATE_HZ)
    texts = [prompt["text"] for prompt in PROMPTS]
    return [{"text": TRANSCRIBE, "audio_paths": f"{n}.wav", "response": text} for n, text in enumerate(texts)]


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


def found(tmp_path: Path, *arguments: Any, workers: int = 1) -> list[tuple[int | None, str]]:
    """(row, fault) of everything that the command reports."""
    report = tmp_path / f"{workers}.report"
    code = check(*arguments, "--report", report, workers=workers)
    content = json.loads(report.read_text(encoding="utf-8"))
    assert code == (content["errors"] > 0)
    return [(each["row"], each["fault"]) for each in content["faults"]]


def test_errors_end_with_1_and_warnings_with_0_unless_strict(tmp_path: Path, rows: list[Row], capsys) -> None:
    def said(rows: list[Row], *options: Any) -> tuple[int, str]:
        return check(write(tmp_path / "data.json", rows), *options), capsys.readouterr().out

    code, shown = said(rows)
    assert code == 0 and "3 rows, 3 recordings" in shown and "No faults." in shown
    code, shown = said([*rows, rows[1]])
    assert code == 0 and "warning  duplicate_row: 1" in shown
    code, shown = said([*rows, rows[1]], "--strict")
    assert code == 1 and "error    duplicate_row: 1" in shown
    empty = [row | {"response": "", "audio_paths": "\x1b]0;hello\x07.wav"} for row in rows]
    code, shown = said(empty, "--shown", 2)
    assert code == 1 and "row 1: 'response' is empty" in shown and "... and 1 more" in shown and "row 2" not in shown
    assert "\x1b" not in shown, "names cannot command the terminal"
    assert said(empty, "--ignore", "empty_text", "missing_file")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("nowhere.json", "'nowhere.json' does not exist"),
        ("{data} --ignore loud", "'loud'; expected some of unreadable_data"),
        ("{data} --min_seconds 5 --max_seconds 1", "--max_seconds is 1"),
        ("{data} --max_clipped_share 2", "--max_clipped_share is 2"),
        ("pipe", "'pipe' is a pipe"),
        ("{data} --report {data}", "is the data; give it a file of its own"),
        ("{data} --audio_dir nowhere", "'nowhere' is not a folder"),
        ("data={data} --against data={data}", "held_out={data}"),
        ("{data} --loud 3", "unrecognized arguments"),
        ("", "required: data"),
    ],
)
def test_what_cannot_be_checked_ends_with_2(tmp_path: Path, rows: list[Row], capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    data = write(tmp_path / "data.json", rows)
    before = Path(data).read_bytes()
    os.mkfifo("pipe")
    assert check(*arguments.format(data=data).split()) == 2
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
    (file,) = content["files"]
    hours = pytest.approx(sum(len(speech(number)) / RATE_HZ for number in range(2)) / 3600, abs=1e-6)
    assert file == {
        "name": str(tmp_path / "data.json"), "rows": 3, "recordings": 2, "transcripts": 2, "split": "data",
        "judged": True, "not_compared": 1, "hours": hours,
    }  # fmt: skip
    assert content["hours"] == hours and content["limits"]["max_seconds"] == 600 and not content["strict"]
    fault = content["faults"][1]
    assert fault | {"reason": ""} == {
        "file": str(tmp_path / "data.json"), "row": 2, "where": "row 2", "fault": "missing_file", "severity": "error",
        "reason": "", "audio": "schön 録音\udcff.wav",
    }  # fmt: skip


def test_the_report_is_the_same_however_many_work(tmp_path: Path, rows: list[Row]) -> None:
    (tmp_path / "2.wav").write_bytes(b"")
    twenty = [row | {"text": f"{TRANSCRIBE} {number}"} for number in range(7) for row in rows]
    data = write(tmp_path / "data.json", [*rows, *rows, *twenty])
    faults = [found(tmp_path, data, workers=workers) for workers in (1, 2)]
    assert (tmp_path / "1.report").read_bytes() == (tmp_path / "2.report").read_bytes()
    assert (3, "duplicate_row") in faults[0] and (26, "undecodable") in faults[0]


def in_form(form: str, folder: Path, rows: list[Row]) -> str:
    """Write rows in a form that training reads, and return what the command is given."""
    names, texts = [row["audio_paths"] for row in rows], [row["response"] for row in rows]
    if form == "lines":
        (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(folder / "data.jsonl")
    if form == "messages":
        asked = [[{"type": "text", "text": "Transcribe the audio: "}, {"type": "audio", "path": one}] for one in names]
        contents = [zip(("user", "assistant"), pair) for pair in zip(asked, texts)]
        rows = [{"messages": [{"role": role, "content": one} for role, one in turns]} for turns in contents]
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


def test_split_names_and_against(tmp_path: Path, rows: list[Row]) -> None:
    train, test = write(tmp_path / "train.json", rows), write(tmp_path / "test.json", rows[1:2] + [{"text": "?"}])
    others = ["--against", f"held_out={test}", f"other={test}", "--ignore", "not_compared"]
    for arguments, expected in (
        ([train, test], [(0, "duplicate_row"), (1, "malformed_row")]),
        ([f"train={train}", f"test={test}"], [(1, "audio_leak"), (1, "malformed_row")]),
        ([train, "--against", test], [(1, "audio_leak"), (1, "not_compared")]),
        ([train, *others], 2 * [(1, "audio_leak")]),
    ):
        assert found(tmp_path, *arguments) == expected


def test_what_cannot_be_compared_is_a_fault(tmp_path: Path, rows: list[Row]) -> None:
    """A leak is hidden where the other file's audio lies outside of --audio_dir, is cut off, or is not there."""
    mine = tmp_path / "mine"
    mine.mkdir()
    (tmp_path / "1.wav").rename(mine / "1.wav")
    (mine / "cut.wav").write_bytes((mine / "1.wav").read_bytes()[:-99])
    train = write(tmp_path / "train.json", [rows[1]])
    assert found(tmp_path, train) == [(0, "missing_file")], "without --audio_dir it lies beside the file"
    for path in ("../0.wav", str(tmp_path / "0.wav"), "cut.wav", "gone.wav"):
        test = write(tmp_path / "test.json", [rows[1] | {"response": "Else."}, rows[0] | {"audio_paths": path}])
        expected = [(0, "audio_leak"), (1, "not_compared")]
        assert found(tmp_path, train, "--audio_dir", mine, "--against", test) == expected
    (tmp_path / "test.json").write_text("{")
    assert found(tmp_path, train, "--audio_dir", mine, "--against", test) == [(None, "not_compared")]


def test_limits_of_recordings_and_what_a_transcript_is(tmp_path: Path, rows: list[Row]) -> None:
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
    rows[0] |= {"text": "<audio>\nSchreibe auf, was du hörst.", "response": 10 * rows[0]["response"]}
    data = write(tmp_path / "data.json", rows)
    assert found(tmp_path, data) == []
    assert found(tmp_path, data, "--response_is_transcript") == [(0, "impossible_transcript")]

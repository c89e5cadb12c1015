"""`audiollm evaluate score`: nothing is dropped without being counted, a metric changes without the model, averages say what is missing."""

import json
import re
from pathlib import Path

import pytest
from audiollm.evaluation.score import main, score_run, score_table
from audiollm.evaluation.tasks import group_tasks
from evaluation_runs import items_of, row, scores_of, write_run

SPOKEN = [
    row("1", "Press the star key.", "press the star key"),
    row("2", "Please hold the line.", "please hold a line now", finish="length"),
    row("3", "...", "noise"),
    row("4", "ignore time segment in scoring", "anything"),
    row("5", "Good bye.", "", finish="repeated"),
    row("6", "Thank you.", None, error="the recording is not readable"),
]


@pytest.fixture
def spoken(tmp_path: Path) -> Path:
    outputs = {"model": SPOKEN, "whisper": SPOKEN[:2], "deaf": SPOKEN}
    return write_run(tmp_path / "run", {"prompts": outputs}, {"prompts": {"items": 6}})


def test_everything_is_scored_or_counted(spoken) -> None:
    scores = score_run(spoken)
    systems = scores["tasks"]["prompts"]["systems"]
    model = systems["model"]
    assert model["metrics"]["word_error"]["value"] == (2 + 2 + 2) / 12
    assert model["metrics"]["word_error"]["unit"] == "fraction"
    assert model["counts"] == {
        **{"items": 6, "scored": 4, "skipped_empty_reference": 1, "skipped_ignored_segment": 1},
        **{"empty_outputs": 2, "errors": 1, "unparsable": 0, "length_limited": 1, "repeated": 1},
    }
    assert (model["audio_seconds"], model["seconds"], model["metrics"]["rtfx"]["value"]) == (12.0, 3.0, 4.0)
    assert "rtfx" not in systems["deaf"]["metrics"] and systems["whisper"]["counts"]["missing"] == 4
    assert json.loads((spoken / "scores.json").read_text(encoding="utf-8")) == scores
    table = score_table(scores)
    assert all(told in table for told in ("the benchmark says so", "1 of 6 failed", "4 of 2 not answered yet"))
    items = items_of(spoken, "prompts")
    path = spoken / "outputs" / "prompts" / "model.jsonl"
    path.write_bytes(path.read_bytes()[:-9])  # torn
    assert score_run(spoken)["tasks"]["prompts"]["systems"]["model"]["counts"]["missing"] == 1
    assert list(items) == ["1", "2", "3", "4", "5", "6"]
    assert items["2"] == {
        **{"id": "2", "duration_s": 2.0, "reference": "Please hold the line.", "output": "please hold a line now"},
        **{"finish": "length", "scored": True, "errors": 2, "words": 4},
        **{"substitutions": 1, "deletions": 0, "insertions": 1},
        **{"normalised_reference": "please hold the line", "normalised_output": "please hold a line now"},
    }
    assert items["3"]["scored"] is False and items["6"]["deletions"] == 2


def test_a_convention_changes_without_the_model(spoken, capsys) -> None:
    def word_error(*options: str) -> dict:
        main([str(spoken), "--no_report", *options])
        return scores_of(spoken, "prompts")["model"]["metrics"]["word_error"]

    own = word_error()
    leaderboard = word_error("--normaliser", "leaderboard")
    assert word_error("--normaliser", "none")["value"] > own["value"]
    assert "normaliser:leaderboard|aligner:kaldialign-" in leaderboard["signature"]
    assert leaderboard["signature"].endswith("|compounds:merged")
    assert word_error("--samples", "7", "--seed", "1") != word_error("--samples", "7", "--seed", "2") != own
    assert word_error() == own
    assert re.search(r"word_error \(fraction\) +this model +0\.5 \[", capsys.readouterr().out)


def test_a_leaderboards_tasks_are_scored_as_it_does(tmp_path) -> None:
    """And averaged, unweighted; of some of its tasks, the average says which are missing."""
    members = group_tasks("open_asr")
    rows = [row(f"{n}", "the white paper", "the whitepaper" if n else "a paper") for n in range(len(members))]
    outputs = {task: {"model": rows[: number + 1]} for number, task in enumerate(members)}
    tasks = {task: {"group": "open_asr"} for task in members}
    scores = score_run(write_run(tmp_path / "whole", outputs, tasks))
    average = scores["averages"]["open_asr"]["model"]["word_error"]
    values = [scores["tasks"][task]["systems"]["model"]["metrics"]["word_error"]["value"] for task in members]
    assert values == [pytest.approx(2 / 3 / n) for n in range(1, len(members) + 1)]
    assert average["value"] == pytest.approx(sum(values) / len(values))
    assert average["low"] <= average["value"] <= average["high"]
    assert (average["tasks"], average["missing"], average["partial"]) == (members, [], False)
    assert scores["averages"]["open_asr"]["model"]["rtfx"]["value"] == 4.0
    del outputs[members[2]]
    part = score_run(write_run(tmp_path / "part", outputs, tasks))
    average = part["averages"]["open_asr"]["model"]["word_error"]
    assert (average["missing"], average["partial"]) == ([members[2]], True)
    assert f"NOT the leaderboard's average: without {members[2]}" in score_table(part)


def test_chunks_are_put_together_before_they_are_scored(tmp_path) -> None:
    def chunk(session: str, index: int, heard: str, **fields) -> dict:
        whole = "good morning every body welcome" if session == "a" else "yes"
        return row(f"{session}{index}", whole, heard, extra={"session": session, "chunk_index": index}, **fields)

    rows = [chunk("a", 1, "everybody "), chunk("b", 0, "yes"), chunk("a", 0, "good morning")]
    rows += [chunk("a", 2, "", finish="length"), chunk("c", 0, "x"), chunk("c", 2, "y")]
    folder = write_run(tmp_path / "run", {"earnings22": {"model": rows}}, {"earnings22": {"group": "open_asr"}})
    found = score_run(folder)["tasks"]["earnings22"]["systems"]["model"]
    assert found["metrics"]["word_error"]["value"] == 1 / 6
    assert (found["counts"]["items"], found["counts"]["scored"], found["counts"]["incomplete_sessions"]) == (6, 2, 1)
    whole = items_of(folder, "earnings22")["a"]
    assert (whole["output"], whole["duration_s"]) == ("good morning everybody", 6.0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", r"has no run\.json; expected the --output_dir"),
        ("empty", "no finished outputs"),
        ("strange", r"holds other, which run\.json does not name"),
        ("unknown", "no metric 'meteor'"),
    ],
)
def test_folders_that_cannot_be_scored_say_why(spoken, tmp_path, name, message) -> None:
    (spoken / "outputs" / "other").mkdir()
    spoken.rename(tmp_path / "strange")
    write_run(tmp_path / "empty", {"prompts": {}})
    write_run(tmp_path / "unknown", {"prompts": {"model": SPOKEN}}, {"prompts": {"metrics": ["meteor"]}})
    with pytest.raises(SystemExit, match=message):
        main([str(tmp_path / name), "--samples", "5"])
    with pytest.raises(SystemExit, match="--samples is 0; expected 1 or more"):
        main([str(tmp_path), "--samples", "0"])

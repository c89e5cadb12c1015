"""`audiollm evaluate score`: nothing is dropped without being counted, a metric changes without the model, averages say what is missing."""

import json
import re
from pathlib import Path

import pytest
from audiollm.evaluation.outputs import RunFolderError, joined_sessions
from audiollm.evaluation.score import main, score_run, score_table
from audiollm.evaluation.tasks import group_tasks
from run_folders import items_of, row, write_run

SPOKEN = [
    row("1", "Press the star key.", "press the star key"),
    row("2", "Please hold the line.", "please hold a line now", finish="length"),
    row("3", "...", "noise"),
    row("4", "ignore time segment in scoring", "anything"),
    row("5", "Good bye.", ""),
    row("6", "Thank you.", None, error="the recording is not readable"),
]


@pytest.fixture
def spoken(tmp_path: Path) -> Path:
    return write_run(
        tmp_path / "run",
        {"prompts": {"model": SPOKEN, "whisper": SPOKEN[:2], "deaf": SPOKEN}},
        {"prompts": {"items": 6}},
    )


def test_everything_is_scored_or_counted(spoken) -> None:
    scores = score_run(spoken)
    model = scores["tasks"]["prompts"]["systems"]["model"]
    assert model["metrics"]["word_error"]["value"] == (2 + 2 + 2) / 12
    assert model["metrics"]["word_error"]["unit"] == "fraction"
    assert model["counts"] == {
        **{"items": 6, "scored": 4, "skipped_empty_reference": 1, "skipped_ignored_segment": 1},
        **{"empty_outputs": 2, "errors": 1, "unparsable": 0, "length_limited": 1, "repeated": 0},
    }
    assert (model["audio_seconds"], model["seconds"]) == (12.0, 3.0)
    assert model["metrics"]["rtfx"]["value"] == 4.0
    assert "rtfx" not in scores["tasks"]["prompts"]["systems"]["deaf"]["metrics"]
    assert scores["tasks"]["prompts"]["systems"]["whisper"]["counts"]["missing"] == 4
    assert json.loads((spoken / "scores.json").read_text(encoding="utf-8")) == scores
    table = score_table(scores)
    assert all(told in table for told in ("the benchmark says so", "1 of 6 failed", "4 of 2 not answered yet"))


def test_items_say_what_each_has_to_do_with_it(spoken) -> None:
    score_run(spoken)
    items = items_of(spoken, "prompts")
    assert list(items) == ["1", "2", "3", "4", "5", "6"]
    assert items["2"] == {
        **{"id": "2", "duration_s": 2.0, "reference": "Please hold the line.", "output": "please hold a line now"},
        **{
            "finish": "length",
            "scored": True,
            "errors": 2,
            "words": 4,
            "substitutions": 1,
            "deletions": 0,
            "insertions": 1,
        },
        **{"normalised_reference": "please hold the line", "normalised_output": "please hold a line now"},
    }
    assert items["3"]["scored"] is False and items["6"]["deletions"] == 2


def test_a_convention_changes_without_the_model(spoken, capsys) -> None:
    def word_error(*options: str) -> dict:
        main([str(spoken), "--no_report", *options])
        found = json.loads((spoken / "scores.json").read_text(encoding="utf-8"))
        return found["tasks"]["prompts"]["systems"]["model"]["metrics"]["word_error"]

    own = word_error()
    as_written = word_error("--normaliser", "none")
    leaderboard = word_error("--normaliser", "leaderboard")
    assert as_written["value"] > own["value"]
    assert "normaliser:leaderboard|aligner:kaldialign-" in leaderboard["signature"]
    assert leaderboard["signature"].endswith("|compounds:merged")
    assert word_error("--samples", "20")["low"] != own["low"] or word_error("--samples", "20")["high"] != own["high"]
    assert word_error("--samples", "7", "--seed", "1") != word_error("--samples", "7", "--seed", "2")
    assert word_error() == own
    assert re.search(r"word_error \(fraction\) +this model +0\.5 \[", capsys.readouterr().out)


def test_a_leaderboards_tasks_are_scored_as_it_does(tmp_path) -> None:
    """And averaged, unweighted, over all of its tasks or, by name, some of them."""
    members = group_tasks("open_asr")
    outputs = {
        task: {
            "model": [
                row(f"{task} {place}", "the white paper", "the whitepaper" if place else "a paper")
                for place in range(n)
            ]
        }
        for n, task in enumerate(members, start=1)
    }
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
    assert "mean of open_asr" in score_table(
        part
    ) and f"NOT the leaderboard's average: without {members[2]}" in score_table(part)


def test_chunks_are_put_together_before_they_are_scored(tmp_path) -> None:
    def chunk(session: str, index: int, heard: str, **fields) -> dict:
        whole = "good morning every body welcome" if session == "a" else "yes"
        return row(f"{session}{index}", whole, heard, extra={"session": session, "chunk_index": index}, **fields)

    rows = [
        chunk("a", 1, "everybody "),
        chunk("b", 0, "yes"),
        chunk("a", 0, "good morning"),
        chunk("a", 2, "", finish="length"),
    ]
    rows += [chunk("c", 0, "x"), chunk("c", 2, "y")]
    folder = write_run(tmp_path / "run", {"earnings22": {"model": rows}}, {"earnings22": {"group": "open_asr"}})
    found = score_run(folder)["tasks"]["earnings22"]["systems"]["model"]
    assert found["metrics"]["word_error"]["value"] == 1 / 6
    assert (found["counts"]["items"], found["counts"]["scored"], found["counts"]["incomplete_sessions"]) == (6, 2, 1)
    assert items_of(folder, "earnings22")["a"]["output"] == "good morning everybody"
    assert items_of(folder, "earnings22")["a"]["duration_s"] == 6.0
    assert joined_sessions([]) == ([], {})


def test_every_kind_of_task_is_scored(tmp_path) -> None:
    outputs = {
        "translation": {"model": [row("1", "Guten Tag, wie geht es dir?", "Guten Tag, wie geht es?")]},
        "spelled": {"model": [row("1", "今天天气好", "今天天 气好")]},
        "choice": {"model": [row("1", "A", "A."), row("2", "B", "no idea")]},
        "chat": {"model": [row("1", [], "Hello.")]},
        "summary": {"model": [row("1", "a dog barks", "a dog")]},
        "no_speech": {"model": [row("1", [], "Thank you."), row("2", [], "")]},
        "text": {"model": [row("1", [], "x", duration_s=0.0, extra={"tokens": 2, "negative_log_likelihood": 1.0})]},
    }
    tasks = {
        "translation": {"metrics": ["bleu"], "language": "de"},
        "spelled": {"metrics": ["character_error"], "language": "zh", "normaliser": "characters"},
        "choice": {"metrics": ["choice_accuracy"], "source": {"parsing": "air_bench"}},
        "chat": {"metrics": ["judge_score"]},
        "summary": {"metrics": ["rouge"]},
        "no_speech": {"metrics": ["no_speech_rate"]},
        "text": {"metrics": ["text_retention"]},
    }
    folder = write_run(tmp_path / "run", outputs, tasks)
    verdicts = folder / "judgements" / "chat" / "model.jsonl"
    verdicts.parent.mkdir(parents=True)
    verdicts.write_text(
        json.dumps({"id": "1", "order": "answer_only", "scores": {"answer": 4}}) + "\n", encoding="utf-8"
    )
    scored = score_run(folder)["tasks"]
    found = {
        task: {name: each["value"] for name, each in scored[task]["systems"]["model"]["metrics"].items()}
        for task in tasks
    }
    assert 0 < found["translation"]["bleu"] < 100
    assert found["spelled"] == {"character_error": 0.0, "rtfx": 4.0}
    assert (found["choice"]["choice_accuracy"], found["choice"]["strict_choice_accuracy"]) == (1.0, 0.5)
    assert scored["choice"]["systems"]["model"]["counts"]["unparsable"] == 1
    assert found["chat"]["judge_score"] == 4.0
    assert found["summary"]["rouge1"] == pytest.approx(0.8)
    assert found["no_speech"]["no_speech_rate"] == 0.5
    assert found["text"] == {"bitwise_equal": None, "perplexity": pytest.approx(2.718281828**0.5)}
    assert "nothing to score" in score_table(score_run(folder))


def test_folders_that_cannot_be_scored_say_why(tmp_path, capsys) -> None:
    with pytest.raises(RunFolderError, match=r"has no run\.json; expected the --output_dir"):
        score_run(tmp_path)
    with pytest.raises(SystemExit, match=r"audiollm evaluate score: .*has no run\.json"):
        main([str(tmp_path)])
    with pytest.raises(SystemExit, match="--samples is 0; expected 1 or more"):
        main([str(tmp_path), "--samples", "0"])
    with pytest.raises(RunFolderError, match="no finished outputs"):
        score_run(write_run(tmp_path / "empty", {"prompts": {}}))
    twice = write_run(tmp_path / "twice", {"prompts": {"model": [SPOKEN[0], SPOKEN[0]]}})
    with pytest.raises(RunFolderError, match="two rows with the id '1'"):
        score_run(twice)
    torn = write_run(tmp_path / "torn", {"prompts": {"model": SPOKEN}})
    path = torn / "outputs" / "prompts" / "model.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(RunFolderError, match="line 6 is no JSON"):
        score_run(torn)
    stray = write_run(tmp_path / "stray", {"prompts": {"model": SPOKEN}})
    (stray / "outputs" / "other").mkdir()
    with pytest.raises(RunFolderError, match=r"holds other, which run\.json does not name"):
        score_run(stray)
    unknown = write_run(tmp_path / "unknown", {"prompts": {"model": SPOKEN}}, {"prompts": {"metrics": ["meteor"]}})
    with pytest.raises(ValueError, match="no metric 'meteor'"):
        score_run(unknown)

"""`audiollm evaluate compare`: items are matched by id, what only one run has is named, and differences are tested as pairs."""

import json
from pathlib import Path

import pytest
import sacrebleu
from audiollm.evaluation.compare import compare_runs, comparison_table, main
from evaluation_runs import row, write_run
from sacrebleu.significance import PairedTest

WORDS = ["press", "the", "star", "key", "to", "go", "on", "or", "wait", "for", "the", "next", "free", "line"]
ITEMS = 60


def spoken(wrong_every: int, first: int = 0) -> list[dict]:
    """Rows of which every so many have a wrong word."""
    rows = []
    for place in range(first, first + ITEMS):
        right = " ".join(WORDS[place % 5 : place % 5 + 4])
        rows.append(row(f"clip {place}", right, right if place % wrong_every else right.replace("the", "a") + " yes"))
    return rows


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """Two runs of one task; of the second, two clips are others and one has another reference."""
    outputs = {"prompts": {"model": spoken(20), "whisper": spoken(2)}, "unseen": {"model": spoken(9)}}
    rows = [*spoken(2, first=1), row("clip 99", "yes", "yes")]
    rows[5]["references"] = ["something else"]
    return write_run(tmp_path / "a", outputs), write_run(tmp_path / "b", {"prompts": {"model": rows}})


def test_differences_are_of_matched_items_and_the_rest_is_named(runs) -> None:
    found = compare_runs(*runs)
    task = found["tasks"]["prompts"]
    assert task["items"] == ITEMS - 2
    assert (task["only_in_first"], task["other_reference"]) == (["clip 0"], ["clip 6"])
    assert task["only_in_second"] == ["clip 60", "clip 99"]
    assert (found["tasks_only_in_first"], found["tasks_only_in_second"]) == (["unseen"], [])
    word_error = task["metrics"]["word_error"]
    assert word_error["difference"] == pytest.approx(word_error["second"] - word_error["first"])
    assert 0 < word_error["low"] < word_error["difference"] < word_error["high"]
    assert (word_error["better"], word_error["scored"]) == ("first", ITEMS - 2)
    assert word_error["p"] < 0.01 and word_error["test"] == "paired approximate randomisation"
    table = comparison_table(found)
    assert "left out, only in second: 2 (clip 60, clip 99)" in table
    assert "left out, other reference: 1 (clip 6)" in table and "tasks only in first: unseen" in table
    back = compare_runs(*reversed(runs))["tasks"]["prompts"]["metrics"]["word_error"]
    assert word_error["difference"] == pytest.approx(-back["difference"])
    assert (back["better"], word_error["p"]) == ("second", back["p"])


def test_bleu_is_tested_by_sacrebleu_itself(tmp_path) -> None:
    right = [f"der Hund sieht am {place}. Tag die Katze." for place in range(40)]
    good = [text.replace("Katze", "Maus") if place % 8 == 0 else text for place, text in enumerate(right)]
    poor = [text.replace("der Hund", "ein Tier") if place % 2 else text for place, text in enumerate(right)]
    task = {"covost": {"metrics": ["bleu"], "language": "de"}}
    rows = [[row(str(place), *each) for place, each in enumerate(zip(right, said))] for said in (good, poor)]
    sides = [write_run(tmp_path / str(n), {"covost": {"model": each}}, task) for n, each in enumerate(rows)]
    found = compare_runs(*sides, samples=300)["tasks"]["covost"]["metrics"]["bleu"]
    test = PairedTest([("a", good), ("b", poor)], {"BLEU": sacrebleu.BLEU()}, [right], test_type="ar", n_samples=300)
    _, scores = test()
    assert found["p"] == scores["BLEU"][1].p_value < 0.05
    assert (found["first"], found["second"]) == tuple(pytest.approx(each.score) for each in scores["BLEU"])
    assert found["better"] == "first" and "ar:300" in found["test"]
    assert found["low"] < found["difference"] < found["high"] < 0


def test_answers_that_count_in_one_run_alone_are_named(tmp_path) -> None:
    task = {"air": {"metrics": ["choice_accuracy"]}}
    sides = [
        write_run(tmp_path / said, {"air": {"model": [row("1", "A", "A"), row("2", "B", said)]}}, task)
        for said in ("B", "what?")
    ]
    compared = compare_runs(*sides)
    found = compared["tasks"]["air"]["metrics"]
    assert (found["choice_accuracy"]["scored"], found["choice_accuracy"]["scored_only_in_first"]) == (1, ["2"])
    assert found["strict_choice_accuracy"]["difference"] == -0.5
    assert "left out, choice accuracy: scored only in first: 1 (2)" in comparison_table(compared)


def test_the_command_prints_and_writes(runs, tmp_path, capsys) -> None:
    def compared(second: Path, *options: str) -> dict:
        main([str(runs[0]), str(second), "--output", str(tmp_path / "found.json"), *options])
        return json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["tasks"]

    found = compared(runs[1])
    assert found == compare_runs(*runs)["tasks"] and "prompts" in capsys.readouterr().out
    for options in (("--normaliser", "leaderboard"), ("--samples", "50"), ("--seed", "1")):
        assert compared(runs[1], *options)["prompts"]["metrics"] != found["prompts"]["metrics"], options
    systems = compared(runs[0], "--systems", "model", "whisper", "--tasks", "prompts")
    assert list(systems) == ["prompts"] and systems["prompts"]["metrics"]["word_error"]["better"] == "first"
    same = compared(write_run(tmp_path / "same", {"prompts": {"model": spoken(20)}}))["prompts"]["metrics"][
        "word_error"
    ]
    assert (same["difference"], same["p"], same["better"]) == (0.0, 1.0, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("B --tasks fleurs", "Neither run has 'fleurs'; they have prompts, unseen"),
        ("B --tasks unseen", "no task in common"),
        ("B --systems whisper", "has no answers of 'whisper'; it has model"),
        ("B --systems a b c", "names 3; expected one for both, or two"),
        ("B --output /nowhere/at/all.json", "there is no folder /nowhere/at"),
        ("A", "compared with itself; name two --systems"),
        ("/", r"has no run\.json"),
    ],
)
def test_what_cannot_be_compared_is_refused(runs, options, message) -> None:
    given = options.replace("A", str(runs[0])).replace("B", str(runs[1]))
    with pytest.raises(SystemExit, match=message):
        main([str(runs[0]), *given.split()])

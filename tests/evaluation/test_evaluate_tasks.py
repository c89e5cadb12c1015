"""Every task through the whole command: a small copy in its benchmark's own format, a tiny model, every system that can."""

import json
from pathlib import Path

import pytest
from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor
from audiollm.evaluation.systems import DEFAULT_SYSTEMS
from audiollm.evaluation.tasks import find_task
from benchmark_copies import COPIES, EMBEDDED, ROWS
from evaluation_runs import evaluate, rows_of

LIMIT = 2
#: Systems that cannot answer, with a Whisper that hears English only, and what is said of them.
LEFT_OUT = {
    "fleurs:de_de": {"whisper": "hears English only, and de is spoken"},
    "mls:german": {"whisper": "hears English only, and de is spoken"},
    "covost2:en_zh-CN": {"whisper": "translates into English only, not into zh"},
    "fleurs_translation:en_us-ja_jp": {"whisper": "translates into English only, not into ja"},
}
NO_RECORDINGS = ("text_retention", "text_choice")


@pytest.fixture(scope="module")
def checkpoint(tiny_bases, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    AudioLlmForConditionalGeneration.from_audio_text_pretrained(*tiny_bases, lora_rank=4).save_pretrained(folder)
    AudioLlmProcessor.from_audio_text_pretrained(*tiny_bases).save_pretrained(folder)
    return folder


def run_all(checkpoint: Path, folder: Path, *options: str) -> dict:
    """Runs every task at once; returns the scores."""
    copies = [f"{task}={write(folder / task.replace(':', '-'))}" for task, write in COPIES.items()]
    tasks = [*COPIES, *EMBEDDED]
    common = ["--limit", str(LIMIT), "--max_new_tokens", "3"]
    evaluate(checkpoint, folder / "run", "--tasks", ",".join(tasks), "--data", *copies, *common, *options)
    return json.loads((folder / "run" / "scores.json").read_text())


def assert_scored(scores: dict, folder: Path, task: str, systems: tuple[str, ...]) -> None:
    assert tuple(scores["tasks"][task]["systems"]) and set(scores["tasks"][task]["systems"]) == set(systems)
    for system, scored in scores["tasks"][task]["systems"].items():
        rows = rows_of(folder / "run", task, system)
        assert rows and all(row["error"] is None for row in rows), rows
        assert len(rows) == scored["counts"]["items"] <= max(LIMIT, ROWS)
        assert set(scored["metrics"]) - {"rtfx"}


def test_every_task_is_answered_and_scored(checkpoint, tmp_path) -> None:
    scores = run_all(checkpoint, tmp_path, "--systems", "model")
    for task in (*COPIES, *EMBEDDED):
        assert_scored(scores, tmp_path, task, ("model",))


@pytest.mark.slow
def test_every_system_that_can_answers_every_task(checkpoint, tmp_path, capsys) -> None:
    scores = run_all(checkpoint, tmp_path)
    printed = capsys.readouterr().out
    for task in (*COPIES, *EMBEDDED):
        left_out = json.loads((tmp_path / "run" / "run.json").read_text())["tasks"][task]["left_out"]
        kind = find_task(task).kind
        if task in NO_RECORDINGS:
            assert set(left_out) == set(DEFAULT_SYSTEMS[kind]) - {"model", "deaf"}
        else:
            expected = LEFT_OUT.get(task, {})
            assert set(left_out) == set(expected)
            for system, reason in expected.items():
                assert reason in left_out[system] and f"{task}: {system} is left out: {left_out[system]}." in printed
        assert_scored(scores, tmp_path, task, tuple(name for name in DEFAULT_SYSTEMS[kind] if name not in left_out))

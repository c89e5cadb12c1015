"""The benchmark of follow-up questions: what it counts on a tiny model, and the file it writes."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import follow_up


@pytest.mark.parametrize(("target", "met"), [(0.0, True), (float("inf"), False)])
def test_the_audio_is_reused_by_follow_ups_alone(tiny_model, tiny_processor, monkeypatch, target, met) -> None:
    monkeypatch.setattr(follow_up, "TARGET", target)
    row = follow_up.measure(tiny_model, tiny_processor, 2.0, repeats=2)
    assert row["same_first_token"] and row["reused_tokens"] > tiny_processor.num_audio_slots(2 * 16_000)
    assert len(row["all_first_s"]) == len(row["all_follow_up_s"]) == 2
    assert row["language_model_alone_s"] > 0 and row["meets_target"] is met
    assert row["first_question_s"] == pytest.approx(float(np.median(row["all_first_s"])), abs=1e-3)


def test_it_writes_a_report(tiny_model, tiny_processor, tmp_path, monkeypatch) -> None:
    tiny_model.save_pretrained(tmp_path / "model")
    tiny_processor.save_pretrained(tmp_path / "model")
    output = tmp_path / "report.json"
    command = [
        "--model",
        str(tmp_path / "model"),
        "--output",
        str(output),
        "--dtype",
        "bfloat16",
        "--lengths",
        "1",
        "2",
    ]
    command += ["--repeats", "2", "--long_repeats", "1"]
    monkeypatch.setattr(follow_up, "LONG_S", 1.5)
    monkeypatch.setattr(sys, "argv", ["follow_up.py", *command])
    follow_up.main()
    report = json.loads(output.read_text())
    assert report["dtype"] == "bfloat16" and report["repeats"] == 2
    assert [(row["recording_s"], len(row["all_first_s"])) for row in report["recordings"]] == [(1.0, 2), (2.0, 1)]

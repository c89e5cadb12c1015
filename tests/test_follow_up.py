"""The benchmark of follow-up questions: what it counts on a tiny model, and the file it writes."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import follow_up


def test_the_audio_is_reused_by_follow_ups_alone(tiny_model, tiny_processor) -> None:
    row = follow_up.measure(tiny_model, tiny_processor, 2.0, repeats=2)
    assert row["same_first_token"] and row["reused_tokens"] > tiny_processor.num_audio_slots(2 * 16_000)
    assert len(row["all_first_s"]) == len(row["all_follow_up_s"]) == 2
    assert row["first_question_s"] == pytest.approx(float(np.median(row["all_first_s"])), abs=1e-3)


def test_speech_is_of_the_length_asked_for(tiny_processor) -> None:
    assert len(follow_up.speech(3.5, tiny_processor)) == 3.5 * 16_000


def test_it_writes_a_report(tiny_model, tiny_processor, tmp_path, monkeypatch) -> None:
    tiny_model.save_pretrained(tmp_path / "model")
    tiny_processor.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(follow_up, "LENGTHS_S", (1.0,))
    output = tmp_path / "report.json"
    command = ["--model", str(tmp_path / "model"), "--repeats", "1", "--output", str(output), "--dtype", "bfloat16"]
    monkeypatch.setattr(sys, "argv", ["follow_up.py", *command])
    follow_up.main()
    report = json.loads(output.read_text())
    assert report["dtype"] == "bfloat16" and report["repeats"] == 1
    assert [row["recording_s"] for row in report["recordings"]] == [1.0]

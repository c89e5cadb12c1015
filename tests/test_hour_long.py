"""The benchmark of long recordings: its runs and its kill on a tiny model, and what it reads of partial results."""

import json
import sys
from pathlib import Path

import pytest
import soundfile

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import hour_long


def test_a_recording_is_as_long_as_said(tiny_processor, tmp_path) -> None:
    info = soundfile.info(hour_long.write_recording(tmp_path / "long.wav", 0.1, tiny_processor))
    assert (info.duration, info.samplerate, info.subtype) == (6.0, 16_000, "PCM_16")


def test_whole_lines_of_partial_results_count(tmp_path) -> None:
    path = tmp_path / "long.partial.jsonl"
    assert hour_long.partial_entries(path) == []
    path.write_text('{"made_with": {}}\n{"start": 0, "end": 5}\n{"start": 5, "e')
    assert hour_long.partial_entries(path) == [{"start": 0, "end": 5}]


def test_a_run_that_fails_is_told_with_its_words(tmp_path, tiny_processor) -> None:
    run = hour_long.Run(1.0, 100.0, 2, stderr="no such model")
    with pytest.raises(RuntimeError, match="ended with 2: no such model"):
        hour_long.must_end_well(run)


@pytest.mark.slow
def test_all_of_it_on_a_tiny_model(tiny_model, tiny_processor, tmp_path) -> None:
    for one in (tiny_model, tiny_processor):
        one.save_pretrained(tmp_path / "model")
    output = tmp_path / "report.json"
    options = f"--model {tmp_path / 'model'} --minutes 1 2 --kill_minutes 2 --output {output}"
    hour_long.main([*options.split(), "--transcribe_options", "--window_seconds", "4", "--batch_size", "1"])
    report = json.loads(output.read_text())
    assert [row["covered_s"] for row in report["recordings"]] == [60.0, 120.0]
    assert all(row["times_partial_results_grew_on_disk"] > 3 for row in report["recordings"])
    killed = report["killed"]
    assert killed["same_bytes"] and killed["files_after_the_kill"] == ["minutes_2.partial.jsonl"]
    assert 0 < killed["windows_kept"] < report["recordings"][1]["windows"]
    assert killed["windows_when_first_written_again"] >= killed["windows_kept"]

"""`make demo`: the picture it draws, and (slow) the whole of it in two steps of training."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "benchmarks" / "demo.py"


def score(word_error: float) -> dict[str, float]:
    return {"word_error": word_error, "clips": 69}


def test_the_report_is_drawn(tmp_path: Path) -> None:
    sys.path.insert(0, str(DEMO.parent))
    from demo_report import plot_report

    record = {
        "seconds": {"bases": 9.0, "features": 20.0, "align": 40.0, "instruct": 300.0, "evaluate": 50.0},
        "losses": {"align": [(10, 9.0), (20, 3.0)], "instruct": [(10, 4.0), (20, 2.0)]},
        "curve": [{"minutes": 2.0, "word_error": 0.5}, {"minutes": 6.0, "word_error": 0.3}],
        "projector_alone": score(0.4),
        "scores": {"word_error": score(0.3), "wrong_audio_control": score(1.2), "whisper_own_decoder": score(0.06)},
    }
    plot_report(record, tmp_path / "report.png")
    png = (tmp_path / "report.png").read_bytes()
    assert png.startswith(b"\x89PNG") and len(png) > 20_000
    del record["losses"]["instruct"]
    plot_report(record, tmp_path / "less.png")
    assert (tmp_path / "less.png").read_bytes() != png


@pytest.mark.slow
def test_the_demo_runs_and_reuses_what_is_done(tmp_path: Path) -> None:
    command = [sys.executable, str(DEMO), "--output_dir", str(tmp_path / "demo"), "--instruct_steps", "2"]
    first = subprocess.run(command, check=True, capture_output=True, text=True)
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    assert report["curve"][-1]["step"] == 2
    assert report["scores"]["whisper_own_decoder"]["word_error"] < 0.1
    assert report["projector_alone"]["word_error"] < 0.5
    assert report["answer"]["answer"] and "Held-out word error" in first.stdout
    assert (tmp_path / "demo" / "report.png").exists()
    assert (tmp_path / "demo" / "adapter" / "model.safetensors").exists()

    again = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "instruct (done before" in again.stdout
    repeated = json.loads((tmp_path / "demo" / "report.json").read_text())
    assert repeated["scores"] == report["scores"] and repeated["seconds"] == report["seconds"]

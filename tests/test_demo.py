"""`make demo`: it keeps to its time, and (slow) leaves the files that it names."""

import itertools
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerControl

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "benchmarks" / "demo.py"
MAX_LINES = 24


def test_training_ends_when_time_is_up_with_a_falling_rate(monkeypatch) -> None:
    sys.path.insert(0, str(DEMO.parent))
    import demo

    clock = itertools.count(0.0, 0.1)
    monkeypatch.setattr(demo, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    arguments, control = SimpleNamespace(learning_rate=1e-2), TrainerControl()
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-2)
    budget, rates = demo.TimeBudget(2.0), []
    while not control.should_training_stop:
        budget.on_step_begin(arguments, None, control, optimizer=optimizer)
        rates.append(optimizer.param_groups[0]["lr"])
        budget.on_step_end(arguments, None, control)
    assert budget.share >= 1 and len(rates) > 1
    assert rates == sorted(rates, reverse=True) and rates[0] > rates[-1]


@pytest.mark.slow
def test_the_demo_runs(tmp_path: Path) -> None:
    command = [sys.executable, str(DEMO), "--output_dir", str(tmp_path), "--minutes", "0.1"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert len(done.stdout.splitlines()) <= MAX_LINES, done.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    rates = report["word_error"]
    assert rates["Whisper's own decoder"] < 0.1 < rates["fine-tuned, given the wrong recordings"]
    assert rates["shipped adapter, fine-tuned"] < 0.5
    assert report["question"]["answer"] and (tmp_path / "report.png").stat().st_size
    assert (tmp_path / "adapter" / "model.safetensors").is_file()

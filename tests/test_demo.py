"""`make demo`: it keeps to its time, and (slow) leaves what it says."""

import itertools
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "benchmarks" / "demo.py"
MAX_LINES = 24


class Line(torch.nn.Module):
    """Fits a line."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.layer(x) - 2 * x).square().mean()}


class Numbers(Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"x": torch.tensor([float(index)])}


def test_training_ends_when_time_is_up_with_a_falling_rate(tmp_path: Path, monkeypatch) -> None:
    sys.path.insert(0, str(DEMO.parent))
    import demo

    clock = itertools.count(0.0, 0.1)
    monkeypatch.setattr(demo, "time", SimpleNamespace(perf_counter=lambda: next(clock)))

    arguments = TrainingArguments(
        str(tmp_path), num_train_epochs=10_000, lr_scheduler_type="constant", learning_rate=1e-2, logging_steps=1,
        save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model=Line(), args=arguments, train_dataset=Numbers())
    rates = []
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=1e-2)
    trainer.optimizer.register_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    budget = demo.TimeBudget(2.0)
    trainer.add_callback(budget)
    trainer.train()
    assert budget.share >= 1 and trainer.state.global_step == len(rates) > 1
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

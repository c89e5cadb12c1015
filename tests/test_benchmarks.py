"""The documents' tables are those of the result files; `make gpu-check` passes at tiny shapes; `make demo` (slow) runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import bench
import gpu_check


def test_tables_of_the_documents_are_those_measured() -> None:
    stale = [path.name for path, text in bench.rendered() if path.read_text(encoding="utf-8") != text]
    assert not stale, "write them again: python benchmarks/bench.py --tables"


def test_the_gpu_checks_pass_at_tiny_shapes(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        gpu_check.main(["--tiny", "--output", str(tmp_path / "checks.json")])
    checks = json.loads((tmp_path / "checks.json").read_text())["checks"]
    assert not caught.value.code, checks
    passed = {name for name, result in checks.items() if result["status"] == "passed"}
    assert {"training in float16", "text rows", "speed, voxtral"} <= passed


@pytest.mark.slow
def test_the_demo_runs(tmp_path: Path) -> None:
    command = [sys.executable, bench.HERE / "demo.py", "--output_dir", tmp_path, "--minutes", "0.1"]
    subprocess.run(command, check=True, capture_output=True)
    report = json.loads((tmp_path / "report.json").read_text())
    rates = report["word_error"]
    assert rates["Whisper's own decoder"] < 0.1 < rates["fine-tuned, given the wrong recordings"]
    assert rates["shipped adapter, fine-tuned"] < 0.5
    assert report["question"]["answer"] and (tmp_path / "report.png").stat().st_size
    assert (tmp_path / "adapter" / "model.safetensors").is_file()

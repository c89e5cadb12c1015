"""The checks of `make gpu-check`, at tiny shapes on whatever device there is."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import gpu_check


def test_the_checks_pass_at_tiny_shapes(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        gpu_check.main(["--tiny", "--output", str(tmp_path / "checks.json")])
    checks = json.loads((tmp_path / "checks.json").read_text())["checks"]
    assert not caught.value.code, checks
    assert {"training in float16", "text rows", "speed, voxtral"} <= {
        name for name, result in checks.items() if result["status"] == "passed"
    }

"""A script in a prepared process sees what it would see in an interpreter of its own."""

import os
import subprocess
import sys
from pathlib import Path

import prepared_python
import pytest

SCRIPT = """
import importlib.util, json, os, sys
imported = [name for name in ("audiollm", "transformers", "peft", "datasets", "huggingface_hub") if name in sys.modules]
print(json.dumps([__name__, sys.argv, os.getcwd(), dict(sorted(os.environ.items())), imported, sys.path]))
assert importlib.util.find_spec("audiollm") and importlib.util.find_spec("torch")
print("ä", file=sys.stderr)
raise SystemExit(int(sys.argv[1]))
"""


def test_it_is_as_a_fresh_interpreter(tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HOME": "elsewhere", "OMP_NUM_THREADS": "1"}
    environment.pop("HF_TOKEN", None)
    found = prepared_python.run(SCRIPT, 3, "b c", env=environment, cwd=tmp_path, timeout=60)
    command = [sys.executable, "-c", SCRIPT, "3", "b c"]
    fresh = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (found.returncode, found.stdout) == (fresh.returncode, fresh.stdout) and found.returncode == 3
    assert found.stderr.splitlines()[-1] == "ä"


def test_errors_and_waiting_too_long(tmp_path: Path) -> None:
    failed = prepared_python.run("import nothing_of_the_kind", env=os.environ, cwd=tmp_path, timeout=60)
    assert failed.returncode == 1 and failed.stderr.splitlines()[-1].startswith("ModuleNotFoundError")
    killed = prepared_python.run("import os; os.kill(os.getpid(), 9)", env=os.environ, cwd=tmp_path, timeout=60)
    assert killed.returncode == -9
    with pytest.raises(subprocess.TimeoutExpired):
        prepared_python.run("import time; time.sleep(60)", env=os.environ, cwd=tmp_path, timeout=0.2)

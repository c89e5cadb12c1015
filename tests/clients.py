"""Clients of a checkpoint: Python processes of their own, if need be ones in which AudioLLM cannot be imported."""

import os
from pathlib import Path

import prepared_python

WITHOUT_AUDIOLLM = """
HIDDEN = ["audiollm"]
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in HIDDEN else super().find_spec(name, path, target)

sys.meta_path = [f for f in sys.meta_path if f is not PathFinder and "editable" not in repr(f).lower()] + [Without]
"""


def play(script: str, *arguments: object, cwd: Path, **environment: str) -> str:
    """Runs a client script and returns the last line it prints."""
    variables = {**os.environ, "HF_HOME": str(cwd / "hf"), "OMP_NUM_THREADS": "1", **environment}
    done = prepared_python.run(script, *arguments, env=variables, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1] if done.stdout else ""

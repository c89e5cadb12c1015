"""The documents' tables are those of the result files."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import bench


def test_tables_of_the_documents_are_those_measured() -> None:
    stale = [path.name for path, text in bench.rendered() if path.read_text(encoding="utf-8") != text]
    assert not stale, "write them again: python benchmarks/bench.py --tables"

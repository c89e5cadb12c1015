"""The public names of `docs/api.md` are there, and every name that the package exports is among them."""

import importlib
import re
from pathlib import Path

import audiollm
import pytest

NAMES = re.findall(r"^\| `([\w.]+)`", (Path(__file__).parents[1] / "docs" / "api.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", NAMES)
def test_the_name_is_there(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    assert getattr(importlib.import_module(module), attribute)


def test_what_the_package_exports_is_documented() -> None:
    assert {f"audiollm.{name}" for name in audiollm.__all__} == {name for name in NAMES if name.count(".") == 1}
    assert set(audiollm.__all__) <= set(dir(audiollm))

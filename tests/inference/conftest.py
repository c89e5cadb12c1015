"""A tiny checkpoint on disk and the shortest real recordings, which most tests of this room share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from audiollm.corpora.prompts import load_studio_prompts
from web_server import tiny_pair


@pytest.fixture(scope="session")
def checkpoint(shared_tiny_model, tiny_processor, tmp_path_factory) -> Path:
    """The tiny model and its processor in a folder, which no test changes."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny-ears"
    shared_tiny_model.save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def endless_pair(tiny_bases) -> tuple[Any, Any]:
    """A tiny model that never ends an answer itself, and its processor."""
    return tiny_pair(tiny_bases)


@pytest.fixture
def run(capsys):
    """Return what runs a command, which has to end with the status `code`, and gives what it has printed."""

    def run_command(main: Callable[[list[str]], None], *words: object, code: int = 0) -> Any:
        status = 0
        try:
            main([*map(str, words)])
        except SystemExit as ended:
            status = ended.code
        assert status == code
        return capsys.readouterr()

    return run_command


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> list[str]:
    """The four shortest test prompts as Ogg Opus files, in a folder with a blank in its name."""
    folder = tmp_path_factory.mktemp("some clips")
    paths = []
    for row in load_studio_prompts("test").sort("duration_s").select(range(4)):
        path = folder / row["audio"]["path"]
        path.write_bytes(row["audio"]["bytes"])
        paths.append(str(path))
    return paths


@pytest.fixture(scope="session")
def model(endless_pair) -> Any:
    """The model that never ends an answer; modules with another one have their own fixture."""
    return endless_pair[0]


@pytest.fixture(scope="session")
def processor(tiny_processor) -> Any:
    return tiny_processor

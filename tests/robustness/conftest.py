"""The place that commands are given, shared by the tests of this folder."""

import pytest
from command_calls import Place, make_place


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A checkpoint, its bases and recordings; leave them as they are, and write elsewhere."""
    return make_place(tmp_path_factory.mktemp("place") / "place")

"""A Whisper that says something, for the tests of evaluation."""

import pytest
from tiny_models import save_talking_whisper


@pytest.fixture(scope="session")
def talking_whisper(tmp_path_factory) -> str:
    """A folder of a random Whisper whose tokenizer has letters."""
    return save_talking_whisper(tmp_path_factory.mktemp("whisper"))

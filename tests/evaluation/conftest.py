"""Fixtures that several evaluation tests share: a tiny trained model, and a Whisper that says something."""

from pathlib import Path

import pytest
from audiollm import AudioLlmForConditionalGeneration
from tiny_models import save_talking_whisper


@pytest.fixture(scope="session")
def checkpoint(tiny_checkpoint: Path) -> Path:
    """The tiny pair as after training; leave it as it is."""
    return tiny_checkpoint


@pytest.fixture(scope="session")
def shared_model(checkpoint: Path) -> AudioLlmForConditionalGeneration:
    """The checkpoint's model; leave its weights as they are."""
    return AudioLlmForConditionalGeneration.from_pretrained(checkpoint).eval()


@pytest.fixture(scope="session")
def talking_whisper(tmp_path_factory) -> str:
    """A folder of a random Whisper whose tokenizer has letters."""
    return save_talking_whisper(tmp_path_factory.mktemp("whisper"))

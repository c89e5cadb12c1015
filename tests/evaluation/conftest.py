"""Fixtures that several evaluation tests share: a tiny trained checkpoint, and a Whisper that says something."""

from pathlib import Path

import datasets
import pytest
import torch
from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor
from tiny_models import character_tokenizer, randomise_trainables, save_audio_base


@pytest.fixture(scope="session")
def checkpoint(tiny_bases, tmp_path_factory) -> Path:
    """The tiny pair as after training, with its processor; leave it as it is."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(*tiny_bases, lora_rank=4)
    randomise_trainables(model).save_pretrained(folder)
    AudioLlmProcessor.from_audio_text_pretrained(*tiny_bases).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def shared_model(checkpoint) -> AudioLlmForConditionalGeneration:
    """The checkpoint's model; leave its weights as they are."""
    return AudioLlmForConditionalGeneration.from_pretrained(checkpoint).eval()


@pytest.fixture(scope="session")
def talking_whisper(tmp_path_factory) -> str:
    """A folder of a random Whisper whose tokenizer has letters."""
    folder = tmp_path_factory.mktemp("whisper")
    character_tokenizer().save_pretrained(folder)
    return save_audio_base(folder)


@pytest.fixture(scope="module")
def own_datasets_cache(tmp_path_factory):
    """Keeps what `datasets` caches out of the home folder."""
    cache, datasets.config.HF_DATASETS_CACHE = datasets.config.HF_DATASETS_CACHE, tmp_path_factory.mktemp("datasets")
    yield
    datasets.config.HF_DATASETS_CACHE = cache

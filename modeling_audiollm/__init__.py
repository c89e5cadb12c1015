"""
AudioLLM gives a Llama ears.

Importing this package registers its classes with transformers, so that `AutoConfig`, `AutoProcessor`, `AutoModel` and
`AutoModelForMultimodalLM` load AudioLLM checkpoints without `trust_remote_code`.
"""

from audiollm.configuration import AudioLlmConfig
from audiollm.processing import AudioLlmProcessor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMultimodalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
)

from .modeling_audiollm import AudioLlmForConditionalGeneration, AudioLlmModel

__version__ = "0.1.0"

AutoConfig.register(AudioLlmConfig.model_type, AudioLlmConfig, exist_ok=True)
AutoProcessor.register(AudioLlmConfig, AudioLlmProcessor, exist_ok=True)
for _auto_class in (AutoModel, AutoModelForMultimodalLM, AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq):
    _auto_class.register(AudioLlmConfig, AudioLlmForConditionalGeneration, exist_ok=True)

__all__ = ["AudioLlmConfig", "AudioLlmForConditionalGeneration", "AudioLlmModel", "AudioLlmProcessor", "__version__"]

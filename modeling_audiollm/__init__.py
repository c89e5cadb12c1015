"""
AudioLLM gives a Llama ears.

Importing this package registers its classes with transformers, so that `AutoConfig`, `AutoProcessor`, `AutoModel` and
`AutoModelForMultimodalLM` load AudioLLM checkpoints without `trust_remote_code`, and `pipeline("audio-text-to-text")`
answers questions about recordings.
"""

from audiollm.configuration import AudioLlmConfig
from audiollm.processing import AudioLlmProcessor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES
from transformers.pipelines import PIPELINE_REGISTRY

from .modeling_audiollm import AudioLlmForConditionalGeneration, AudioLlmModel
from .pipeline_audiollm import TASK, AudioLlmPipeline

__version__ = "0.1.0"

AutoConfig.register(AudioLlmConfig.model_type, AudioLlmConfig, exist_ok=True)
AutoProcessor.register(AudioLlmConfig, AudioLlmProcessor, exist_ok=True)
for _auto_class in (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
):
    _auto_class.register(AudioLlmConfig, AudioLlmForConditionalGeneration, exist_ok=True)
# By this table transformers' any-to-any pipeline knows which classes it supports; `register` does not fill it.
MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES[AudioLlmConfig.model_type] = AudioLlmForConditionalGeneration.__name__
PIPELINE_REGISTRY.register_pipeline(TASK, pipeline_class=AudioLlmPipeline, pt_model=AutoModelForMultimodalLM)

__all__ = [
    "AudioLlmConfig",
    "AudioLlmForConditionalGeneration",
    "AudioLlmModel",
    "AudioLlmPipeline",
    "AudioLlmProcessor",
    "__version__",
]

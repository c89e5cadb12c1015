"""Audio decoding, and the processor that turns text and recordings into model inputs."""

from .audio import AudioError, load_waveform
from .conversations import ConversationError
from .processing_audiollm import AudioLlmProcessor

__all__ = ["AudioError", "AudioLlmProcessor", "ConversationError", "load_waveform"]

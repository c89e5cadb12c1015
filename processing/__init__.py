"""Audio decoding, and the processor that turns text and recordings into model inputs. Decoding imports no torch."""

from typing import TYPE_CHECKING, Any

from .audio import AudioError, load_waveform
from .conversations import ConversationError

if TYPE_CHECKING:
    from .processing_audiollm import AudioLlmProcessor


def __getattr__(name: str) -> Any:
    if name != "AudioLlmProcessor":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .processing_audiollm import AudioLlmProcessor

    globals()[name] = AudioLlmProcessor
    return AudioLlmProcessor


__all__ = ["AudioError", "AudioLlmProcessor", "ConversationError", "load_waveform"]

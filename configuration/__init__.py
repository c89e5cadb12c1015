"""The configuration of an AudioLLM."""

from .configuration_audiollm import AudioLlmConfig

__all__ = ["AudioLlmConfig"]

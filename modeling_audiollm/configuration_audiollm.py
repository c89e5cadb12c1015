"""Re-export, so that the modeling files and their copies on the Hub import the configuration the same, flat way."""

from audiollm.configuration.configuration_audiollm import AudioLlmConfig

__all__ = ["AudioLlmConfig"]

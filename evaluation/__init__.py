"""Evaluation: word error, the wrong-audio control, and Whisper's own decoder beside them."""

from audiollm.processing.normalisers import normalize_english

from .word_error import WordErrorScore, score_word_error

__all__ = ["WordErrorScore", "normalize_english", "score_word_error"]

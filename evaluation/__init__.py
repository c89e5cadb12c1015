"""Evaluation: word error, the wrong-audio control, and Whisper's own decoder beside them."""

from .word_error import WordErrorScore, normalize_english, score_word_error

__all__ = ["WordErrorScore", "normalize_english", "score_word_error"]

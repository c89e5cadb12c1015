"""Evaluation: benchmarks and your own recordings, with controls, baselines and intervals; measures for your own texts."""

from audiollm.corpora.normalisers import normalize_english

from .measures import Convention, measure
from .word_error import WordErrorScore, score_word_error

__all__ = ["Convention", "WordErrorScore", "measure", "normalize_english", "score_word_error"]

"""
Evaluation: benchmarks and your own recordings, with controls, baselines and intervals; and measures for texts of your own.

`METRIC` is what `evaluate.load` takes for any of the measures; see `audiollm_measures.py`.
"""

from pathlib import Path

from audiollm.corpora.normalisers import normalize_english

from .measures import Convention, measure
from .word_error import WordErrorScore, score_word_error

METRIC = str(Path(__file__).parent / "audiollm_measures.py")

__all__ = ["METRIC", "Convention", "WordErrorScore", "measure", "normalize_english", "score_word_error"]

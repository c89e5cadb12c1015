"""
Word error as an `evaluate` metric: `evaluate.load("evaluation/metrics/wer")`, or the same folder of the installed package.

Counts by jiwer, or as the Open ASR Leaderboard does: `normaliser="leaderboard", aligner="kaldialign"`.
"""

import datasets
import evaluate
from audiollm.evaluation.word_error import score_word_error

DESCRIPTION = """
Word error of a corpus: substitutions, deletions and insertions over reference words, as a fraction, which can exceed 1.
References without a word once normalised are left out and counted; an empty prediction is all deletions.
"""
INPUTS = """
Args:
    predictions: transcripts. references: what was said, one each.
    normaliser: none, english (Whisper's), basic (Whisper's for any language), characters, or leaderboard (that of the Open
        ASR Leaderboard).
    aligner: jiwer, or kaldialign.
    merge_compounds: of kaldialign: neighbouring words that make one word of the other side are right.
Returns:
    word_error (a fraction), substitutions, deletions, insertions, reference_words, clips, skipped.
Examples:
    >>> wer = evaluate.load("evaluation/metrics/wer")
    >>> wer.compute(predictions=["this is the prediction", "there is an other sample"],
    ...             references=["this is the reference", "there is another one"])["word_error"]
    0.5
"""
CITATION = """
@inproceedings{morris2004wer, author = {Morris, Andrew and Maier, Viktoria and Green, Phil},
  title = {From WER and RIL to MER and WIL: improved evaluation measures for connected speech recognition}, year = {2004}}
@misc{open-asr-leaderboard, title = {Open Automatic Speech Recognition Leaderboard}, author = {Srivastav, Vaibhav and others},
  year = {2023}, publisher = {Hugging Face}, howpublished = {https://huggingface.co/spaces/hf-audio/open_asr_leaderboard}}
"""


class WordError(evaluate.Metric):
    """See [`audiollm.evaluation.word_error.score_word_error`]."""

    def _info(self):
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": text, "references": text}),
            reference_urls=["https://github.com/jitsi/jiwer", "https://github.com/huggingface/open_asr_leaderboard"],
        )

    def _compute(self, predictions, references, normaliser="english", aligner="jiwer", merge_compounds=True):
        return score_word_error(references, predictions, normaliser, aligner, merge_compounds).to_dict()

"""
Measure how far the confidence of words can be trusted: of the words with a confidence near 0.8, are 80 % right?

A word is right where the alignment of transcript and reference, by edit distance, puts the same word there, both normalised.

    python shipped_adapter/recipe/amazon_queen.py flight-of-the-amazon-queen_1.0.0-9_all.deb --output_dir data/amazon_queen
    python benchmarks/confidence.py data/amazon_queen/new_roles.json data/studio/validation.json --skip 150
"""

import json
import random
from pathlib import Path
from typing import Any

import audiollm
import jiwer
import matplotlib
import numpy as np
from audiollm.corpora.normalisers import normalize_english
from audiollm.inference.transcripts import Transcript
from common import parser_of, read_clips, write_result

matplotlib.use("Agg")
from matplotlib import pyplot

PICTURE = Path(__file__).parents[1] / "docs" / "pictures" / "confidence.png"
SEED, NUM_BINS = 5, 10
#: Words of a bin that is drawn; the share of fewer is chance.
LEAST_SHOWN = 10


def judged(transcript: Any, reference: str) -> list[tuple[float, bool]]:
    """Return confidence and rightness of each word of a transcript that has a confidence."""
    if not isinstance(transcript, Transcript):  # a recording that cannot be used
        return []
    said = [(part, word.confidence) for word in transcript.words for part in normalize_english(word.text).split()]
    is_right = [False] * len(said)
    reference = normalize_english(reference)
    if said and reference:
        for chunk in jiwer.process_words(reference, " ".join(word for word, _ in said)).alignments[0]:
            if chunk.type == "equal":
                is_right[chunk.hyp_start_idx : chunk.hyp_end_idx] = [True] * (chunk.hyp_end_idx - chunk.hyp_start_idx)
    return [(confidence, right) for (_, confidence), right in zip(said, is_right) if confidence is not None]


def calibration(pairs: list[tuple[float, bool]]) -> dict[str, Any]:
    """Return mean confidence and share of right words by bins of equal width, and the expected calibration error."""
    confidence, right = np.array(pairs, dtype=float).T
    bins = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
    rows = [
        {
            "words": int((bins == index).sum()),
            "mean_confidence": round(float(confidence[bins == index].mean()), 3),
            "share_right": round(float(right[bins == index].mean()), 3),
        }
        for index in np.unique(bins)
    ]
    error = sum(row["words"] * abs(row["mean_confidence"] - row["share_right"]) for row in rows) / len(pairs)
    return {"words": len(pairs), "calibration_error": round(error, 3), "bins": rows}


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw the share of right words over confidence, for each set."""
    figure, axes = pyplot.subplots(figsize=(5, 4.5), layout="tight")
    axes.plot([0, 1], [0, 1], color="0.7", linestyle="--", label="as sure as it is right")
    for name, one in result.items():
        shown = [row for row in one["bins"] if row["words"] >= LEAST_SHOWN]
        places = [row["mean_confidence"] for row in shown], [row["share_right"] for row in shown]
        (line,) = axes.plot(*places, label=f"{name}, {one['words']} words")
        axes.scatter(*places, s=[10 + row["words"] / 2 for row in shown], color=line.get_color())
    axes.set(xlabel="confidence", ylabel="share of words that are right", xlim=(0, 1), ylim=(0, 1.03))
    axes.legend(loc="lower right", frameon=False, title=f"larger dots: more words (at least {LEAST_SHOWN})")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure, print, and write figures and picture."""
    parser = parser_of("confidence", __doc__)
    parser.add_argument("data", type=Path, nargs="+", help="rows of audio_paths and response, as the recipe has them")
    parser.add_argument("--clips", type=int, default=150, help="of each set, drawn once; default: %(default)s")
    parser.add_argument(
        "--skip", type=int, default=0, help="clips drawn before them, where a set has more; default: 0"
    )
    parser.add_argument("--picture", type=Path, default=PICTURE, help="default: %(default)s")
    options = parser.parse_args()
    model = audiollm.load(options.model)
    result = {}
    for path in options.data:
        clips = read_clips(path)
        random.Random(SEED).shuffle(clips)
        clips = clips[options.skip if len(clips) > options.skip else 0 :][: options.clips]
        transcripts = model.transcribe([clip.audio for clip in clips], timestamps="word", progress=True)
        pairs = [pair for clip, one in zip(clips, transcripts) for pair in judged(one, clip.text)]
        result[path.stem.replace("_", " ")] = calibration(pairs)
    print(json.dumps(result, indent=1))
    plot(result, options.picture)
    write_result(options.output, result)


if __name__ == "__main__":
    main()

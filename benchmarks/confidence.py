"""
Measure how far the confidence of words can be trusted: of the words with a confidence near 0.8, are 80 % right?

A word is right where the alignment of transcript and reference, by edit distance, puts the same word there, both normalised.

    python shipped_adapter/recipe/amazon_queen.py flight-of-the-amazon-queen_1.0.0-9_all.deb --output_dir data/amazon_queen
    python benchmarks/confidence.py data/amazon_queen/new_roles.json data/studio/validation.json --skip 150
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

import audiollm
import jiwer
import numpy as np
from audiollm.corpora.normalisers import normalize_english
from audiollm.inference.transcribing import Failure

RESULTS = Path(__file__).parent / "results" / "confidence.json"
PICTURE = Path(__file__).parents[1] / "docs" / "pictures" / "confidence.png"
SEED, NUM_BINS = 5, 10
#: Words of a bin that is drawn; the share of fewer is chance.
LEAST_SHOWN = 10


def judged(words: Any, reference: str) -> list[tuple[float, bool]]:
    """Return confidence and rightness of each word of a transcript that has a confidence."""
    said: list[str] = []
    confidences: list[float | None] = []
    for word in words:
        parts = normalize_english(word.text).split()
        said += parts
        confidences += [word.confidence] * len(parts)
    is_right = [False] * len(said)
    reference = normalize_english(reference)
    if said and reference:
        for chunk in jiwer.process_words(reference, " ".join(said)).alignments[0]:
            if chunk.type == "equal":
                is_right[chunk.hyp_start_idx : chunk.hyp_end_idx] = [True] * (chunk.hyp_end_idx - chunk.hyp_start_idx)
    return [(one, right) for one, right in zip(confidences, is_right) if one is not None]


def calibration(pairs: list[tuple[float, bool]]) -> dict[str, Any]:
    """Return mean confidence and share of right words by bins of equal width, and the expected calibration error."""
    confidence, right = np.array(pairs, dtype=float).T
    bins = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
    rows = []
    for index in range(NUM_BINS):
        chosen = bins == index
        if chosen.any():
            rows.append(
                {
                    "words": int(chosen.sum()),
                    "mean_confidence": round(float(confidence[chosen].mean()), 3),
                    "share_right": round(float(right[chosen].mean()), 3),
                }
            )
    error = sum(row["words"] * abs(row["mean_confidence"] - row["share_right"]) for row in rows) / len(pairs)
    return {"words": len(pairs), "calibration_error": round(error, 3), "bins": rows}


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw the share of right words over confidence, for each set."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 4.5))
    axes.plot([0, 1], [0, 1], color="0.7", linestyle="--", label="as sure as it is right")
    for name, one in result.items():
        shown = [row for row in one["bins"] if row["words"] >= LEAST_SHOWN]
        (line,) = axes.plot(
            [row["mean_confidence"] for row in shown],
            [row["share_right"] for row in shown],
            label=f"{name}, {one['words']} words",
        )
        axes.scatter(
            line.get_xdata(), line.get_ydata(), s=[10 + row["words"] / 2 for row in shown], color=line.get_color()
        )
    axes.set(xlabel="confidence", ylabel="share of words that are right", xlim=(0, 1), ylim=(0, 1.03))
    axes.legend(loc="lower right", frameon=False, title=f"larger dots: more words (at least {LEAST_SHOWN})")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure, print, and write figures and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "data", type=Path, nargs="+", help="rows of audio_paths and response, as the recipe writes them"
    )
    parser.add_argument("--clips", type=int, default=150, help="of each set, drawn once; default: %(default)s")
    parser.add_argument(
        "--skip", type=int, default=0, help="clips drawn before them, where a set has more; default: 0"
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="default: %(default)s")
    parser.add_argument("--picture", type=Path, default=PICTURE, help="default: %(default)s")
    options = parser.parse_args()
    model = audiollm.load()
    result = {}
    for path in options.data:
        rows = json.loads(path.read_text(encoding="utf-8"))
        random.Random(SEED).shuffle(rows)
        rows = rows[options.skip if len(rows) > options.skip else 0 :][: options.clips]
        audio = [str(path.parent / row["audio_paths"]) for row in rows]
        transcripts = model.transcribe(audio, timestamps="word", progress=True)
        pairs = [
            pair
            for row, one in zip(rows, transcripts)
            for pair in judged(() if isinstance(one, Failure) else one.words, row["response"])
        ]
        result[path.stem.replace("_", " ")] = calibration(pairs)
    print(json.dumps(result, indent=1))
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    plot(result, options.picture)


if __name__ == "__main__":
    main()

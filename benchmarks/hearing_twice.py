"""
Word error and time of transcripts that CTC helps to choose (`--ctc_weight`), beside the greedy ones of the same model.

On the validation and the test clips of the studio prompts, asked and cut as `make demo` does; the weight was chosen on the
former. For a model trained with `--projector_readout pieces`.

    python benchmarks/hearing_twice.py --model runs/demo/adapter
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from audiollm.corpora.prompts import load_studio_prompts
from audiollm.evaluation.listening import transcribe
from audiollm.evaluation.word_error import score_word_error
from demo import MAX_PIECE_SECONDS, QUESTION
from transformers import AutoModelForMultimodalLM, AutoProcessor

RESULTS = Path(__file__).parent / "results" / "hearing_twice.json"
SPLITS = ("validation", "test")
CTC_WEIGHT = 1.5


def measure(
    model: Any, processor: Any, split: str, weight: float, limit: int | None = None, progress: bool = True
) -> dict[str, Any]:
    """
    Score, seconds of computing (of all threads together) and transcripts of one split.

    Args:
        model, processor: who listens.
        split: of the studio prompts.
        weight: of CTC; 0 is greedy.
        limit: the first so many clips only.
        progress: shows a bar.
    """
    rows = load_studio_prompts(split)
    rows = rows if limit is None else rows.select(range(limit))
    recordings = [processor.load_audio(audio) for audio in rows["audio"]]
    began = time.process_time()
    heard = transcribe(
        model,
        processor,
        recordings,
        QUESTION,
        max_piece_seconds=MAX_PIECE_SECONDS,
        progress=progress,
        ctc_weight=weight,
    )
    seconds = time.process_time() - began
    return {**score_word_error(list(rows["text"]), heard).to_dict(), "cpu_seconds": seconds, "transcripts": heard}


def run(
    model_path: str, weight: float, splits: Sequence[str], limit: int | None = None, progress: bool = True
) -> dict[str, Any]:
    """
    Greedy and chosen transcripts of one checkpoint, by split.

    Raises:
        ValueError: the weight is 0 or less, or the model has no readout of pieces.
    """
    if weight <= 0:
        raise ValueError(f"--ctc_weight is {weight:g}; expected more than 0, beside which greedy transcripts are put.")
    processor = AutoProcessor.from_pretrained(model_path)
    model = AutoModelForMultimodalLM.from_pretrained(model_path, dtype=torch.bfloat16).eval()
    found: dict[str, Any] = {"ctc_weight": weight}
    for split in splits:
        measure(model, processor, split, 0.0, 1, progress=False)  # what is done once only is not counted
        greedy, twice = (measure(model, processor, split, one, limit, progress) for one in (0.0, weight))
        times = twice["cpu_seconds"] / greedy["cpu_seconds"]
        found[split] = {"greedy": greedy, "twice": twice, "times_greedy": times}
        print(
            f"{split}: {greedy['word_error']:.3f} greedy, {twice['word_error']:.3f} with CTC, {times:.1f} x the time"
        )
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Entry of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="checkpoint: a folder or a Hub id")
    parser.add_argument("--label", help="what the report calls it; default: --model")
    parser.add_argument("--ctc_weight", type=float, default=CTC_WEIGHT, help="default: %(default)s")
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=SPLITS, help="default: both")
    parser.add_argument("--limit", type=int, help="the first so many clips of each only")
    parser.add_argument("--output", type=Path, default=RESULTS, help="default: %(default)s; other labels' rows stay")
    options = parser.parse_args(argv)
    try:
        found = run(options.model, options.ctc_weight, options.splits, options.limit)
    except (OSError, ValueError) as error:
        sys.exit(f"hearing_twice: {error}")
    report = json.loads(options.output.read_text(encoding="utf-8")) if options.output.is_file() else {}
    report[options.label or options.model] = found
    options.output.write_text(json.dumps(report, indent=1, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main()

"""
Measure agreement between answers to speech and the base's own answers to the transcripts, beside a cascade and a deaf base.

    python shipped_adapter/recipe/questions.py data/amazon_queen/new_roles.json questions.json --rows 100
    python benchmarks/spoken_questions.py questions.json --model runs/distilled

The base answers each transcript greedily. Every system then predicts these answers token by token: `agreement` is the share
of tokens that are its first choice, `kl` the mean divergence from the base's distribution in nats. The systems: the model on
the recordings, on others' recordings, the base on Whisper's transcripts, and the base without any.
"""

import json
import random
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from audiollm.corpora.examples import Example
from audiollm.corpora.hypotheses import WhisperDecoder
from audiollm.evaluation.bootstrap import interval
from audiollm.inference.loading import load
from audiollm.training.collator import AudioLlmCollator
from audiollm.training.distill import DistillExample, read_distill_examples, write_teacher_answers
from audiollm.training.rows import build_dataset
from audiollm.training.trainer import answer_logits
from common import parser_of, write_result

BATCH_SIZE = 8


@torch.inference_mode()
def predictions(model: Any, processor: Any, rows: Sequence[Example]) -> list[torch.Tensor]:
    """Return log-probabilities `(answer_tokens, vocab_size)` of each row's response, the end of the turn included."""
    batch = AudioLlmCollator(processor)(list(build_dataset(rows, processor, None, progress=False)))
    said = answer_logits(model, {name: value.to(model.device) for name, value in batch.items()})
    return list(said.logits.float().log_softmax(-1).split(said.counts))


def compared(base: torch.Tensor, other: torch.Tensor) -> list[float]:
    """Return tokens of equal first choice, tokens, and the summed divergence KL(base || other)."""
    divergence = torch.nn.functional.kl_div(other, base, reduction="sum", log_target=True)
    return [float((base.argmax(-1) == other.argmax(-1)).sum()), len(base), float(divergence)]


def summary(rows: list[list[float]]) -> dict[str, Any]:
    """Return agreement with its interval over questions, and divergence, pooled over tokens."""
    counts = np.asarray(rows)
    found = interval(counts[:, :2])
    return {
        "agreement": round(found.value, 4),
        "interval": [round(found.low, 4), round(found.high, 4)],
        "kl": round(float(counts[:, 2].sum() / counts[:, 1].sum()), 4),
    }


def as_text(examples: Sequence[DistillExample], transcripts: Sequence[Sequence[str]]) -> list[Example]:
    """Return rows without audio: prompts with these transcripts in the place of the recordings."""
    read = [replace(each, transcripts=tuple(said)) for each, said in zip(examples, transcripts, strict=True)]
    return [Example(each.teacher_text.strip(), (), str(each.response)) for each in read]


def main() -> None:
    """Measure, print and write the result."""
    parser = parser_of("spoken_questions", __doc__)
    parser.add_argument("questions", type=Path, help="rows as --stage distill reads them")
    parser.add_argument("--dtype", default="auto", help="precision of the bases; default: %(default)s")
    parser.add_argument("--max_answer_tokens", type=int, default=64, help="default: %(default)s")
    options = parser.parse_args()
    model, processor = load(options.model, options.dtype)
    examples = read_distill_examples(options.questions)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "answers.jsonl"
        examples = write_teacher_answers(model, processor, examples, file, options.max_answer_tokens, BATCH_SIZE)
    others = [example.audio_paths for example in examples]
    random.Random(0).shuffle(others)
    decoder = WhisperDecoder(str(model.config.audio_model_id))
    clips = [decoder.windows(processor.load_audio(path)) for each in examples for path in each.audio_paths]
    heard = iter(decoder.hear(clips, BATCH_SIZE))
    spoken = [Example(each.text, each.audio_paths, str(each.response)) for each in examples]
    swapped = [
        replace(row, audio_paths=paths) if len(paths) == len(row.audio_paths) else row
        for row, paths in zip(spoken, others)
    ]
    written = [[next(heard) for _ in each.audio_paths] for each in examples]
    systems = {
        "model": spoken,
        "model, wrong recordings": swapped,
        "Whisper's transcripts, base model": as_text(examples, written),
        "base model without the recordings": as_text(examples, [[""] * len(each) for each in written]),
    }
    read = as_text(examples, [each.transcripts for each in examples])
    rows: dict[str, list[list[float]]] = {name: [] for name in systems}
    for start in range(0, len(examples), BATCH_SIZE):
        batch = slice(start, start + BATCH_SIZE)
        base = predictions(model, processor, read[batch])
        for name, asked in systems.items():
            rows[name] += [
                compared(*pair) for pair in zip(base, predictions(model, processor, asked[batch]), strict=True)
            ]
    report = {
        "what": "agreement of answers with the base's answers to the transcripts",
        "questions": len(examples),
        "answer_tokens": int(sum(counts for _, counts, _ in rows["model"])),
        "model": options.model,
        "bases": [model.config.audio_model_id, model.config.text_model_id],
        "systems": {name: summary(each) for name, each in rows.items()},
    }
    write_result(options.output, report)
    print(json.dumps(report, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()

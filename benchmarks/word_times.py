"""
Measure how far the starts of words by CTC lie from those by the cross-attention of the same Whisper's decoder.

    python benchmarks/word_times.py                      # the adapter that comes with the package
    python benchmarks/word_times.py --model runs/mine    # another checkpoint with CTC posteriors

Clips are the studio test prompts that both transcribe word by word right, the first 20 with three words or more. The
constants of `inference/ctc_alignment.py` were fitted on the other splits.
"""

import json
from typing import Any

import audiollm
import numpy as np
from audiollm.corpora.prompts import load_studio_prompts
from audiollm.inference.spoken_pieces import spoken_form
from audiollm.processing.base_models import resolve_base
from common import parser_of, write_result
from transformers import WhisperForConditionalGeneration, WhisperProcessor, pipeline

SPLIT, NUM_CLIPS, LEAST_WORDS, LONGEST_S = "test", 20, 3, 12.0
#: Errors that are aimed at, in milliseconds.
TARGETS = {"median_ms": 60, "percentile_95_ms": 200}


def whisper_of(model: Any) -> Any:
    """Return transformers' pipeline of the whole Whisper whose encoder a model has."""
    folder = resolve_base(model.config.audio_model_id, "audio")
    # Times come from attention weights, which only this implementation returns.
    whisper = WhisperForConditionalGeneration.from_pretrained(folder, attn_implementation="eager")
    parts = WhisperProcessor.from_pretrained(folder)
    known = {"tokenizer": parts.tokenizer, "feature_extractor": parts.feature_extractor}
    return pipeline("automatic-speech-recognition", model=whisper, **known)


def main() -> None:
    """Measure, print and write the result."""
    parser = parser_of("word_times", __doc__)
    parser.add_argument("--clips", type=int, default=NUM_CLIPS, help="default: %(default)s")
    options = parser.parse_args()
    model = audiollm.load(options.model)
    whisper, rate = whisper_of(model.model), model.processor.sampling_rate
    clips: list[dict[str, Any]] = []
    for row in load_studio_prompts(SPLIT):
        expected = spoken_form(row["text"]).split()
        if row["duration_s"] > LONGEST_S or len(expected) < LEAST_WORDS:
            continue
        waveform = model.processor.load_audio(row["audio"])
        ours = [(spoken_form(one.text), one.start_s) for one in model.transcribe(waveform, timestamps="word").words]
        raw, told = {"raw": waveform, "sampling_rate": rate}, {"language": "en", "task": "transcribe"}
        found = whisper(raw, return_timestamps="word", generate_kwargs=told)
        theirs = [(spoken_form(one["text"]), one["timestamp"][0]) for one in found["chunks"]]
        if all([word for word, _ in words] == expected for words in (ours, theirs)):
            errors = [round(1_000 * (start - other)) for (_, start), (_, other) in zip(ours, theirs)]
            clips.append({"id": row["id"], "errors_ms": errors})
        if len(clips) == options.clips:
            break
    late = np.array([error for clip in clips for error in clip["errors_ms"]])
    result = {
        "what": "starts of words by CTC beside those by the cross-attention of the same Whisper's decoder",
        "model": options.model or "shipped_adapter",
        "words": len(late),
        "median_ms": round(float(np.median(np.abs(late)))),
        "percentile_95_ms": round(float(np.percentile(np.abs(late), 95))),
        "median_late_ms": round(float(np.median(late))),
        "targets": TARGETS,
        "clips": clips,
    }
    write_result(options.output, result)
    print(json.dumps({name: value for name, value in result.items() if name != "clips"}))


if __name__ == "__main__":
    main()

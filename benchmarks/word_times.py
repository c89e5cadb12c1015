"""
Measure how far the starts of words by CTC lie from those by the cross-attention of the same Whisper's decoder.

    python benchmarks/word_times.py                      # the adapter that comes with the package
    python benchmarks/word_times.py --model runs/mine    # another checkpoint with CTC posteriors

Clips are the studio test prompts that both transcribe word by word right, the first 20 with three words or more. The
constants of `inference/ctc_alignment.py` were fitted on the other splits.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from audiollm.corpora.prompts import load_studio_prompts
from audiollm.inference.loading import load
from audiollm.inference.spoken_pieces import spoken_form
from audiollm.inference.transcribing import Transcriber, TranscribingSettings
from audiollm.inference.transcripts import Transcript
from audiollm.processing.base_models import resolve_base
from common import parser_of, write_result
from transformers import Pipeline, WhisperForConditionalGeneration, WhisperProcessor, pipeline

SPLIT, NUM_CLIPS, LEAST_WORDS, LONGEST_S = "test", 20, 3, 12.0
#: Errors that are aimed at, in milliseconds.
TARGETS = {"median_ms": 60, "percentile_95_ms": 200}


def whisper_of(model) -> Pipeline:
    """Return transformers' pipeline of the whole Whisper whose encoder a model has."""
    folder = resolve_base(model.config.audio_model_id, "audio")
    # Only this kind of attention gives its weights, of which the times are made.
    whisper = WhisperForConditionalGeneration.from_pretrained(folder, attn_implementation="eager")
    processor = WhisperProcessor.from_pretrained(folder)
    return pipeline(
        "automatic-speech-recognition",
        model=whisper,
        tokenizer=processor.tokenizer,
        feature_extractor=processor.feature_extractor,
    )


def whisper_starts(whisper: Pipeline, waveform: np.ndarray, rate: int) -> list[tuple[str, float]]:
    """Return the words that Whisper writes, in spoken form, with their starts in seconds."""
    found = whisper(
        {"raw": waveform, "sampling_rate": rate},
        return_timestamps="word",
        generate_kwargs={"language": "en", "task": "transcribe"},
    )
    return [(spoken_form(one["text"]), one["timestamp"][0]) for one in found["chunks"]]


def errors_of(transcript: Transcript, reference: list[tuple[str, float]], said: str) -> list[float] | None:
    """Return how much later each word begins than in the reference, in ms; None where one of the two misheard."""
    words = [(spoken_form(one.text), one.start_s) for one in transcript.words]
    expected = spoken_form(said).split()
    if [word for word, _ in words] != expected or [word for word, _ in reference] != expected:
        return None
    return [1_000 * (start - other) for (_, start), (_, other) in zip(words, reference)]


def main() -> None:
    """Entry."""
    options = parser_of("word_times", __doc__).parse_args()
    model, processor = load(options.model)
    whisper = whisper_of(model)
    transcriber = Transcriber(model, processor, TranscribingSettings(timestamps="word"), progress=False)
    clips: list[dict[str, Any]] = []
    errors: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for row in load_studio_prompts(SPLIT):
            if row["duration_s"] > LONGEST_S or len(spoken_form(row["text"]).split()) < LEAST_WORDS:
                continue
            path = Path(folder) / f"{row['id']}.ogg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(row["audio"]["bytes"])
            (transcript,) = transcriber.transcribe([str(path)])
            assert isinstance(transcript, Transcript)
            waveform = processor.load_audio(row["audio"])
            late = errors_of(transcript, whisper_starts(whisper, waveform, processor.sampling_rate), row["text"])
            if late is None:
                continue
            clips.append({"id": row["id"], "errors_ms": [round(one) for one in late]})
            errors += late
            if len(clips) == NUM_CLIPS:
                break
    away = np.abs(errors)
    result = {
        "what": "starts of words by CTC beside those by the cross-attention of the same Whisper's decoder",
        "model": options.model or "shipped_adapter",
        "words": len(errors),
        "median_ms": round(float(np.median(away))),
        "percentile_95_ms": round(float(np.percentile(away, 95))),
        "median_late_ms": round(float(np.median(errors))),
        "targets": TARGETS,
        "clips": clips,
    }
    write_result(options.output, result)
    print(json.dumps({name: value for name, value in result.items() if name != "clips"}))


if __name__ == "__main__":
    main()

"""
What a model writes where nobody speaks: clips of silence, noise, hum, tones and chords, with the gate of energy on and off,
and how well the model's own certainty would tell them from speech, which real prompts are the other half of.

    python benchmarks/no_speech.py --model runs/demo/adapter
"""

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from audiollm.answering import ask
from audiollm.corpora.prompts import load_studio_prompts
from audiollm.corpora.unseen import load_unseen_speech
from audiollm.inference.loading import load
from audiollm.inference.long_audio import cut_into_windows
from audiollm.inference.transcribing import TRANSCRIBE_PROMPT
from audiollm.inference.voice_activity import detect_voice

RESULTS = Path(__file__).parent / "results" / "no_speech.json"
LEVELS_DBFS = (-20.0, -40.0)
LENGTHS_S = (1.0, 2.5, 5.0)
MAX_NEW_TOKENS = 48
#: Mean log-probabilities of a transcript's tokens below which it may be left out, and windows of the unseen speech.
THRESHOLDS, WINDOW_S = (-0.5, -0.75, -1.0, -1.5), 5.0
CHORD_HZ = (220.0, 277.2, 329.6, 440.0)
#: Notes of the melody, each of which begins loud and fades, as a plucked string does.
NOTES_HZ, NOTES_PER_SECOND, FADING_PER_SECOND = (262.0, 330.0, 392.0, 523.0, 392.0, 330.0), 3, 6.0


def sounds(seconds: float, rate: int, level_dbfs: float, seed: int) -> dict[str, np.ndarray]:
    """What is no speech, by kind, each a waveform `(samples,)` at a level (RMS); silence is digital, or nearly."""
    generator = np.random.default_rng(seed)
    samples = int(seconds * rate)
    times = np.arange(samples) / rate
    frequencies = np.maximum(np.fft.rfftfreq(samples), 1 / samples)
    spectrum = np.fft.rfft(generator.standard_normal(samples))
    note = (times * NOTES_PER_SECOND).astype(int)
    since = times - note / NOTES_PER_SECOND
    melody = np.exp(-FADING_PER_SECOND * since) * np.sin(
        2 * np.pi * np.asarray(NOTES_HZ)[note % len(NOTES_HZ)] * times
    )
    kinds = {
        "white noise": generator.standard_normal(samples),
        "pink noise": np.fft.irfft(spectrum / np.sqrt(frequencies), samples),
        "hum": sum(np.sin(2 * np.pi * 50 * harmonic * times) / harmonic for harmonic in (1, 3, 5)),
        "tone": np.sin(2 * np.pi * 440 * times),
        "chord": sum(np.sin(2 * np.pi * hertz * times) for hertz in CHORD_HZ),
        "melody": melody,
    }
    scale = 10 ** (level_dbfs / 20)
    made = {name: np.clip(scale * sound / np.std(sound), -1, 1).astype(np.float32) for name, sound in kinds.items()}
    made["silence"] = (1e-5 * (level_dbfs != LEVELS_DBFS[0]) * generator.standard_normal(samples)).astype(np.float32)
    return made


@torch.inference_mode()
def hear(model, processor, waveform: np.ndarray) -> dict[str, Any]:
    """A greedy transcript, its mean token log-probability, and how sure the first token was."""
    inputs = processor.apply_chat_template(
        [ask(TRANSCRIBE_PROMPT, waveform)], tokenize=True, add_generation_prompt=True
    ).to(model.device)
    output = model.generate(
        **inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, output_scores=True, return_dict_in_generate=True
    )
    scores = model.compute_transition_scores(output.sequences, output.scores, normalize_logits=True)[0]
    text = processor.decode(output.sequences[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    activity = detect_voice(waveform, processor.sampling_rate)
    return {
        "text": text,
        "seconds": round(len(waveform) / processor.sampling_rate, 3),
        "mean_logprob": round(float(scores.float().mean()), 4),
        "first_logprob": round(float(scores[0]), 4),
        "passes_gate": bool(activity.active.any()),
    }


def separation(speech: list[float], other: list[float]) -> dict[str, float]:
    """
    How well a score tells speech from what is none: the chance that speech scores higher (area under the ROC curve), and the
    share of non-speech that is turned away by the threshold that turns away at most one in a hundred of speech.
    """
    a, b = np.asarray(speech), np.asarray(other)
    higher = (a[:, None] > b[None, :]).mean() + 0.5 * (a[:, None] == b[None, :]).mean()
    threshold = float(np.percentile(a, 1))
    return {
        "auc": round(float(higher), 4),
        "threshold_at_1_percent_of_speech": round(threshold, 4),
        "non_speech_turned_away": round(float((b < threshold).mean()), 4),
    }


def main() -> None:
    """Entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="AudioLLM checkpoint; that of make demo when not given")
    parser.add_argument("--dtype", default="float32", help="precision of the bases; default: %(default)s")
    parser.add_argument("--clips", type=int, default=0, help="real prompts; all of the test split when 0")
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON to write; default: %(default)s")
    options = parser.parse_args()
    model, processor = load(options.model, options.dtype)
    start = time.perf_counter()
    rate = processor.sampling_rate
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for level in LEVELS_DBFS:
        for index, seconds in enumerate(LENGTHS_S):
            for kind, waveform in sounds(seconds, rate, level, index).items():
                by_kind.setdefault(kind, []).append({"level_dbfs": level, **hear(model, processor, waveform)})
    rows = load_studio_prompts("test")
    rows = rows.select(range(options.clips)) if options.clips else rows
    speech = [hear(model, processor, processor.load_audio(row["audio"])) for row in rows]
    unseen = [
        hear(model, processor, window.waveform)
        for row in load_unseen_speech()
        for window in cut_into_windows([processor.load_audio(row["audio"])], rate, WINDOW_S)
        if window.waveform is not None
    ]
    nothing = [clip for clips in by_kind.values() for clip in clips]
    kinds = {
        kind: {
            "clips": len(clips),
            "with_words_gate_off": sum(bool(clip["text"]) for clip in clips),
            "with_words_gate_on": sum(bool(clip["text"]) and clip["passes_gate"] for clip in clips),
            "examples": sorted({clip["text"] for clip in clips})[:3],
        }
        for kind, clips in by_kind.items()
    }
    report = {
        "what": "transcripts that are not empty, of clips that hold no speech, and of real prompts",
        "bases": [model.config.audio_model_id, model.config.text_model_id],
        "dtype": options.dtype,
        "device": str(model.device),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "seconds": round(time.perf_counter() - start, 1),
        "no_speech": kinds,
        "speech": {
            "clips": len(speech),
            "with_words_gate_off": sum(bool(clip["text"]) for clip in speech),
            "turned_away_by_gate": sum(not clip["passes_gate"] for clip in speech),
        },
        "unseen_speech": {
            "clips": len(unseen),
            "turned_away_by_gate": sum(not clip["passes_gate"] for clip in unseen),
        },
        "clips_below_mean_logprob": {
            str(threshold): {
                name: sum(clip["mean_logprob"] < threshold for clip in clips)
                for name, clips in (
                    ("no_speech", nothing),
                    ("no_speech_past_the_gate", [clip for clip in nothing if clip["passes_gate"]]),
                    ("speech", speech),
                    ("unseen_speech", unseen),
                )
            }
            for threshold in THRESHOLDS
        },
        "models_own_signals": {
            name: separation([clip[name] for clip in speech], [clip[name] for clip in nothing])
            for name in ("mean_logprob", "first_logprob")
        },
        "models_own_signals_past_the_gate": {
            name: separation(
                [clip[name] for clip in speech],
                [clip[name] for clip in nothing if clip["passes_gate"]] or [float("-inf")],
            )
            for name in ("mean_logprob", "first_logprob")
        },
    }
    options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()

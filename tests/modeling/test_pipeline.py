"""transformers' own pipeline takes an AudioLLM checkpoint, recordings included."""

import numpy as np
import pytest
import soundfile
from transformers import pipeline

SAMPLING_RATE_HZ = 16_000


@pytest.fixture
def checkpoint(tiny_model, tiny_processor, tmp_path):
    tiny_model.save_pretrained(tmp_path / "checkpoint")
    tiny_processor.save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def test_any_to_any(checkpoint, tiny_model, tiny_processor, tmp_path) -> None:
    noise = np.random.default_rng(0).standard_normal(SAMPLING_RATE_HZ).astype(np.float32) / 10
    soundfile.write(tmp_path / "noise.wav", noise, SAMPLING_RATE_HZ)
    parts = [{"type": "text", "text": "What? "}, {"type": "audio", "path": str(tmp_path / "noise.wav")}]
    spoken, typed = [{"role": "user", "content": parts}], [{"role": "user", "content": "hello"}]
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    generate = pipeline("any-to-any", model=str(checkpoint))
    both = generate([spoken, typed], return_full_text=False, generate_kwargs=options)
    for conversation, [answer] in zip([spoken, typed], both):
        inputs = tiny_processor.apply_chat_template(conversation, tokenize=True, add_generation_prompt=True)
        ids = tiny_model.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :]
        assert answer["generated_text"] == tiny_processor.decode(ids, skip_special_tokens=True)
    assert both[0] != both[1]

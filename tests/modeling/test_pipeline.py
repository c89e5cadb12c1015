"""transformers' own pipeline takes an AudioLLM checkpoint, recordings included."""

import numpy as np
import pytest
import soundfile
from transformers import pipeline
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES
from versions import ANY_TO_ANY_RUNS

SAMPLING_RATE_HZ = 16_000
OPTIONS = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
SHORT = {"return_full_text": False, "generate_kwargs": OPTIONS}

pytestmark = pytest.mark.skipif(not ANY_TO_ANY_RUNS, reason="this transformers' any-to-any pipeline asks for librosa")


@pytest.fixture(scope="module")
def generate(tiny_checkpoint):
    """The pipeline of a checkpoint."""
    loaded = pipeline("any-to-any", model=str(tiny_checkpoint), device="cpu")
    # The table in which the pipeline, and `transformers serve`, look up supported classes.
    assert type(loaded.model).__name__ == MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES[loaded.model.config.model_type]
    return loaded


@pytest.fixture
def files(tmp_path) -> list[str]:
    generator = np.random.default_rng(0)
    for seconds in (1.0, 0.4):
        noise = generator.standard_normal(int(seconds * SAMPLING_RATE_HZ)).astype(np.float32) / 10
        soundfile.write(tmp_path / f"{seconds}.wav", noise, SAMPLING_RATE_HZ, subtype="FLOAT")
    return [str(tmp_path / "1.0.wav"), str(tmp_path / "0.4.wav")]


@pytest.fixture
def told(shared_tiny_model, tiny_processor):
    """Return the text that `generate` writes after inputs."""

    def one(inputs) -> str:
        ids = shared_tiny_model.generate(**inputs, **OPTIONS)[0, inputs["input_ids"].shape[1] :]
        return tiny_processor.decode(ids, skip_special_tokens=True)

    return one


def test_conversations(generate, tiny_processor, files, told) -> None:
    spoken = [{"type": "text", "text": "What? "}, {"type": "audio", "path": files[0]}]
    two = [{"type": "audio", "url": f"file://{files[0]}"}, {"type": "audio", "audio": files[1]}]
    begun = {"role": "assistant", "content": [{"type": "text", "text": "It is"}]}
    chats = [[{"role": "user", "content": content}] for content in (spoken, "hello", two)]
    chats.append([*chats[0], begun])
    found, full = generate(chats, **SHORT), generate(chats, generate_kwargs=OPTIONS)
    for chat, [answer], [whole] in zip(chats, found, full):
        open_end = chat[-1] is begun
        inputs = tiny_processor.apply_chat_template(
            chat, tokenize=True, add_generation_prompt=not open_end, continue_final_message=open_end
        )
        text = answer["generated_text"]
        assert text == told(inputs)
        if open_end:
            assert whole["generated_text"][-1]["content"] == [{"type": "text", "text": "It is" + text}]
        else:
            assert whole["generated_text"] == [*chat, {"role": "assistant", "content": text}]
    assert len({answer["generated_text"] for [answer] in found}) == len(found)
    # transformers' pipelines pad rows themselves, which recordings do not survive: no answer rather than a wrong one.
    with pytest.raises((ValueError, RuntimeError)):
        generate([chats[0], chats[2]], batch_size=2, generate_kwargs=OPTIONS)


def test_texts_and_recordings(generate, tiny_processor, files, told) -> None:
    texts, waveform = (
        ["Say <audio> now", "Both <audio> and then <audio>"],
        soundfile.read(files[0], dtype="float32")[0],
    )
    expected = [told(tiny_processor(text=texts[0], audio=files[0])), told(tiny_processor(texts[1], audio=files[::-1]))]
    for audio in (files[0], waveform):
        assert generate(text=texts[0], audio=audio, **SHORT)[0]["generated_text"] == expected[0]
    [answer] = generate({"text": texts[0], "audio": files[0]}, generate_kwargs=OPTIONS)
    assert answer["generated_text"] == texts[0] + expected[0]
    answers = generate(text=texts, audio=[files[0], files[1], files[0]], **SHORT)
    assert [answer["generated_text"] for answer in answers] == expected
    assert generate(text="Say now", **SHORT)[0]["generated_text"] == told(tiny_processor(text="Say now"))
    with pytest.raises(ValueError, match="not images or videos"):
        generate(text="Look", images="photo.png")
    with pytest.raises(ValueError, match="1 recordings are given"):
        generate(text="No placeholder", audio=files[0])

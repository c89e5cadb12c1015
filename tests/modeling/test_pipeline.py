"""transformers' own pipeline takes an AudioLLM checkpoint, recordings included."""

import numpy as np
import pytest
import soundfile
from transformers import pipeline
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES
from versions import ANY_TO_ANY_RUNS

SAMPLING_RATE_HZ = 16_000
OPTIONS = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}

pytestmark = pytest.mark.skipif(not ANY_TO_ANY_RUNS, reason="this transformers' any-to-any pipeline asks for librosa")


@pytest.fixture
def generate(tiny_model, tiny_processor):
    return pipeline("any-to-any", model=tiny_model, processor=tiny_processor, device="cpu")


@pytest.fixture
def files(tmp_path) -> list[str]:
    generator = np.random.default_rng(0)
    for seconds in (1.0, 0.4):
        noise = generator.standard_normal(int(seconds * SAMPLING_RATE_HZ)).astype(np.float32) / 10
        soundfile.write(tmp_path / f"{seconds}.wav", noise, SAMPLING_RATE_HZ, subtype="FLOAT")
    return [str(tmp_path / "1.0.wav"), str(tmp_path / "0.4.wav")]


@pytest.fixture
def told(tiny_model, tiny_processor):
    """Return the text that `generate` writes after inputs."""

    def one(inputs) -> str:
        ids = tiny_model.generate(**inputs, **OPTIONS)[0, inputs["input_ids"].shape[1] :]
        return tiny_processor.decode(ids, skip_special_tokens=True)

    return one


def chats(files) -> list:
    spoken = [{"type": "text", "text": "What? "}, {"type": "audio", "path": files[0]}]
    two = [{"type": "audio", "url": f"file://{files[0]}"}, {"type": "audio", "audio": files[1]}]
    begun = {"role": "assistant", "content": [{"type": "text", "text": "It is"}]}
    return [
        [{"role": "user", "content": spoken}],
        [{"role": "user", "content": "hello"}],
        [{"role": "user", "content": two}],
        [{"role": "user", "content": spoken}, begun],
    ]


def test_a_checkpoint_is_loaded(tiny_model, tiny_processor, files, tmp_path, told) -> None:
    tiny_model.save_pretrained(tmp_path / "checkpoint")
    tiny_processor.save_pretrained(tmp_path / "checkpoint")
    generate = pipeline("any-to-any", model=str(tmp_path / "checkpoint"))
    [chat, *_] = chats(files)
    [answer] = generate(chat, return_full_text=False, generate_kwargs=OPTIONS)
    inputs = tiny_processor.apply_chat_template(chat, tokenize=True, add_generation_prompt=True)
    assert answer["generated_text"] == told(inputs)
    # Where the pipeline, and `transformers serve`, look up which classes they support.
    assert type(generate.model).__name__ == MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES[generate.model.config.model_type]


def test_conversations(generate, tiny_processor, files, told) -> None:
    found = generate(chats(files), return_full_text=False, generate_kwargs=OPTIONS)
    full = generate(chats(files), generate_kwargs=OPTIONS)
    for chat, [answer], [whole] in zip(chats(files), found, full):
        open_end = chat[-1]["role"] == "assistant"
        inputs = tiny_processor.apply_chat_template(
            chat, tokenize=True, add_generation_prompt=not open_end, continue_final_message=open_end
        )
        assert answer["input_text"] == chat
        text = answer["generated_text"]
        assert text == told(inputs)
        if open_end:
            assert whole["generated_text"][-1]["content"] == [{"type": "text", "text": "It is" + text}]
        else:
            assert whole["generated_text"] == [*chat, {"role": "assistant", "content": text}]
    assert len({answer["generated_text"] for [answer] in found}) == len(found)


def test_text_and_audio(generate, tiny_processor, files, told) -> None:
    text, waveform = "Say <audio> now", soundfile.read(files[0], dtype="float32")[0]
    expected = told(tiny_processor(text=text, audio=files[0]))
    for audio in (files[0], waveform):
        [answer] = generate(text=text, audio=audio, return_full_text=False, generate_kwargs=OPTIONS)
        assert answer["generated_text"] == expected
        [answer] = generate({"text": text, "audio": audio}, generate_kwargs=OPTIONS)
        assert answer["generated_text"] == text + expected
    [answer] = generate(text="Say now", return_full_text=False, generate_kwargs=OPTIONS)
    assert answer["generated_text"] == told(tiny_processor(text="Say now"))


def test_texts_with_recordings_in_one_batch(generate, tiny_processor, files, told) -> None:
    texts = ["Say <audio> now", "Both <audio> and then <audio>"]
    answers = generate(
        text=texts, audio=[files[0], files[1], files[0]], return_full_text=False, generate_kwargs=OPTIONS
    )
    expected = [
        told(tiny_processor(text=texts[0], audio=files[0])),
        told(tiny_processor(text=texts[1], audio=files[::-1])),
    ]
    assert [answer["generated_text"] for answer in answers] == expected


def test_processor_options_reach_the_processor(generate, tiny_processor, files, told) -> None:
    waveform = soundfile.read(files[0], dtype="float32")[0]
    chat = [{"role": "user", "content": [{"type": "audio", "audio": waveform}]}]
    inputs = tiny_processor.apply_chat_template(chat, tokenize=True, add_generation_prompt=True, sampling_rate=8000)
    [answer] = generate(
        chat, processor_kwargs={"sampling_rate": 8000}, return_full_text=False, generate_kwargs=OPTIONS
    )
    assert answer["generated_text"] == told(inputs)
    with pytest.raises(TypeError, match=r"does not know rate"):
        generate(chat, processor_kwargs={"rate": 8000})


def test_what_cannot_be_taken_is_refused(generate, files) -> None:
    with pytest.raises(ValueError, match="not images or videos"):
        generate(text="Look", images="photo.png")
    with pytest.raises(ValueError, match="1 recordings are given"):
        generate(text="No placeholder", audio=files[0])
    # transformers' pipelines pad rows themselves, which recordings do not survive: no answer rather than a wrong one.
    with pytest.raises((ValueError, RuntimeError)):
        generate(chats(files)[:2], batch_size=2, generate_kwargs=OPTIONS)
    typed = [[{"role": "user", "content": text}] for text in ("a", "a longer one")]
    with pytest.raises(ValueError, match="padding side"):
        generate(typed, batch_size=2, generate_kwargs=OPTIONS)

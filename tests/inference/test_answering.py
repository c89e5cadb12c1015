"""Answers in batches: as when asked one by one, each recording encoded once, within bounds; and how questions are put."""

import base64

import numpy as np
import pytest
import soundfile
import torch
from audiollm.inference.answering import answer, ask, generate_answers
from audiollm.inference.recording_encoder import RecordingEncoder
from long_recordings import RATE, noise
from transformers import GenerationConfig
from transformers.generation import BaseStreamer

OPTIONS = {"max_new_tokens": 8}
#: Half a second is 25 frames of the tiny encoder's 32 channels in float32.
HALF_SECOND_BYTES = 25 * 32 * 4


@pytest.fixture
def encoded(monkeypatch, tiny_model) -> list[int]:
    """The number of windows of each pass through the encoder."""
    windows: list[int] = []
    encode = tiny_model.model.encode_audio
    monkeypatch.setattr(
        tiny_model.model,
        "encode_audio",
        lambda **fields: windows.append(len(fields["input_features"])) or encode(**fields),
    )
    return windows


@pytest.fixture
def generated(monkeypatch, tiny_model) -> list[dict]:
    """The inputs of each `generate`."""
    calls: list[dict] = []
    generate = tiny_model.generate
    monkeypatch.setattr(tiny_model, "generate", lambda **inputs: calls.append(inputs) or generate(**inputs))
    return calls


@pytest.fixture
def answered(tiny_model, tiny_processor):
    return lambda questions, **options: answer(tiny_model, tiny_processor, questions, **{**OPTIONS, **options})


def test_answers_keep_their_order_and_do_not_depend_on_the_batch(answered, tmp_path) -> None:
    lengths = np.random.default_rng(1).permutation([*np.geomspace(0.1, 6, 7), 31.0])
    files = [str(tmp_path / f"{index}.wav") for index in range(8)]
    for index, (file, seconds) in enumerate(zip(files, lengths)):
        soundfile.write(file, noise(seconds, seed=index), RATE)
    questions = [ask("Say <audio>" + "?" * (index % 7), file) for index, file in enumerate(files)]
    questions += [ask("<audio> or <audio>?", *files[:2]), ask("Hello"), ask("Well, what is it?", system="Be brief.")]
    single = [answered([one])[0] for one in questions]
    assert len(set(single)) > 6
    assert answered(questions, batch_size=4) == single
    assert answered(questions[::-1], batch_size=14) == single[::-1]
    assert answered([]) == []


def test_a_recording_is_encoded_once_for_all_questions_about_it(
    answered, tiny_model, tiny_processor, tmp_path, encoded
) -> None:
    waveform, other = noise(0.5), noise(0.5, seed=1)
    soundfile.write(tmp_path / "same.wav", waveform, RATE, subtype="FLOAT")
    data = (tmp_path / "same.wav").read_bytes()
    same = [str(tmp_path / "same.wav"), data, waveform, f"data:audio/wav;base64,{base64.b64encode(data).decode()}"]
    questions = [ask(f"Question {index} on <audio>?", one) for index, one in enumerate(same)]
    questions += [ask("<audio> and <audio>", other, waveform.copy()), ask("<audio>", other)]
    together = answered(questions, batch_size=2)
    assert encoded == [1, 1]
    assert together == [answered([one])[0] for one in questions]
    assert len(encoded) == 2 + 7, "a call remembers nothing of the one before"
    for max_kept_bytes, expected in ((2 * HALF_SECOND_BYTES, 2), (2 * HALF_SECOND_BYTES - 1, 4), (0, 4)):
        encoder = RecordingEncoder(tiny_model, tiny_processor, max_kept_bytes)
        encoded.clear()
        for one in (waveform, other, waveform, other):
            assert encoder([one])["encoded_audio"].shape == (1, 25, 32)
        assert len(encoded) == expected


def test_a_long_recording_goes_through_the_encoder_in_parts(tiny_model, tiny_processor, encoded, monkeypatch) -> None:
    monkeypatch.setattr("audiollm.inference.recording_encoder.MAX_ENCODER_WINDOWS", 2)
    waveform = noise(65)
    found = RecordingEncoder(tiny_model, tiny_processor)([waveform])
    assert encoded == [2, 1]
    whole, lengths = tiny_model.model.encode_audio(**tiny_processor.batch_features([waveform]))
    assert found["encoded_audio_lengths"].tolist() == lengths.tolist()
    for index, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(found["encoded_audio"][index, :length], whole[index, :length], atol=1e-4, rtol=1e-4)


def test_batches_are_bounded_and_hold_what_is_about_the_same_file(
    answered, tiny_model, tiny_processor, tmp_path, generated, encoded
) -> None:
    questions = [ask("<audio>", noise(seconds)) for seconds in (3.0, 1.0, 1.0, 1.0, 8.0)] + [ask("Hello")]
    for bounds, rows in (
        ({}, [6]),
        ({"batch_size": 4}, [4, 2]),
        ({"max_batch_seconds": 4}, [4, 1, 1]),  # text counts as no seconds, and what is longer is alone
    ):
        generated.clear()
        answered(questions, max_new_tokens=1, **bounds)
        assert [len(call["input_ids"]) for call in generated] == rows
    files = [tmp_path / f"{index}.wav" for index in range(3)]
    for index, file in enumerate(files):
        soundfile.write(file, noise(0.5, seed=index), RATE)
    questions = [ask("<audio>" + "?" * index, files[index % 3]) for index in range(9)]
    encoded.clear()
    encoder = RecordingEncoder(tiny_model, tiny_processor, HALF_SECOND_BYTES)  # holds one
    generate_answers(tiny_model, tiny_processor, questions, batch_size=1, max_new_tokens=1, encoder=encoder)
    assert encoded == [1, 1, 1]


def test_options_reach_generate_and_the_model_keeps_its_mode(answered, tiny_model, tiny_processor, generated) -> None:
    torch.manual_seed(0)
    one = [ask("<audio>", noise(0.4))]
    for is_training in (True, False):
        tiny_model.train(is_training)
        assert len(answered(one, max_new_tokens=1)[0]) <= 1 and tiny_model.training == is_training
    assert len({answered(one, do_sample=True)[0] for _ in range(4)}) > 1
    config = GenerationConfig(max_new_tokens=3, do_sample=False, eos_token_id=None, pad_token_id=4)
    generate_answers(tiny_model, tiny_processor, one, generation_config=config)
    assert generated[-1]["generation_config"] is config
    assert not {"max_new_tokens", "do_sample"} & generated[-1].keys()
    several = {"num_beams": 3, "num_return_sequences": 2, **OPTIONS}
    questions = [*one, ask("Who? <audio>", noise(0.3))]
    for question, texts in zip(questions, generate_answers(tiny_model, tiny_processor, questions, **several)):
        assert texts == generate_answers(tiny_model, tiny_processor, [question], **several)[0] and len(texts) == 2
    with pytest.raises(ValueError, match="num_return_sequences is 2"):
        answered(questions, **several)


def test_adapters_follow_their_conversations(answered) -> None:
    questions = [ask("Who? <audio>", noise(seconds)) for seconds in (0.9, 0.3, 0.6)]
    names = [None, "speech", None]
    found = answered(questions, batch_size=2, adapter_names=names)
    for question, name, text in zip(questions, names, found):
        [alone] = answered([question], adapter_names=[name])
        [otherwise] = answered([question], adapter_names=[None if name else "speech"])
        assert text == alone != otherwise


def test_the_assistants_own_words_are_continued(tiny_model, tiny_processor) -> None:
    question = ask("<audio>", noise(0.4))
    begun = [*question, {"role": "assistant", "content": "It is"}]
    inputs = tiny_processor.apply_chat_template(begun, tokenize=True, continue_final_message=True)
    output = tiny_model.generate(**inputs, do_sample=False, **OPTIONS)[0, inputs["input_ids"].shape[1] :]
    both = generate_answers(tiny_model, tiny_processor, [begun, question], 2, **OPTIONS)
    assert both[0] == [tiny_processor.decode(output, skip_special_tokens=True)]
    assert both[1] == generate_answers(tiny_model, tiny_processor, [question], 1, **OPTIONS)[0]


def test_with_a_streamer_answers_come_one_by_one_in_the_given_order(answered) -> None:
    given: list[int] = []  # lengths of prompts and tokens

    class Lengths(BaseStreamer):
        def put(self, ids: torch.Tensor) -> None:
            given.append(ids.numel())

        def end(self) -> None:
            pass

    questions = [ask("<audio>", noise(seconds)) for seconds in (0.9, 0.3, 0.6)]
    assert answered(questions, streamer=Lengths()) == answered(questions)
    first, second, third = (length for length in given if length > 1)
    assert second < third < first


@pytest.mark.parametrize(
    ("prompt", "recordings", "parts"),
    [
        ("Is <audio> like <audio>", "ab", [("text", "Is "), ("audio", "a"), ("text", " like "), ("audio", "b")]),
        ("What?", "ab", [("audio", "a"), ("audio", "b"), ("text", "\nWhat?")]),
        ("What?", "", [("text", "What?")]),
        (None, "a", [("audio", "a")]),
    ],
)
def test_recordings_stand_where_the_prompt_says_or_first(prompt, recordings, parts) -> None:
    question = {"role": "user", "content": [{"type": kind, kind: value} for kind, value in parts]}
    assert ask(prompt, *recordings) == [question]
    assert ask(prompt, *recordings, system="Be brief.") == [{"role": "system", "content": "Be brief."}, question]


@pytest.mark.parametrize(
    ("bad", "kind", "message"),
    [
        (ask("<audio>", "/no/such/file.wav"), FileNotFoundError, "'/no/such/file.wav'"),
        (ask("<audio>", b"not audio"), ValueError, "corrupt"),
        (ask("<audio>", {"array": noise(0.1), "sampling_rate": "fast"}), ValueError, "'fast'"),
        ([], ValueError, "The conversation is empty"),
        ([{"role": "user", "content": [{"type": "image"}]}], ValueError, "Message 0, part 0"),
    ],
)
def test_errors_name_the_conversation(answered, tiny_model, bad, kind, message: str) -> None:
    tiny_model.train()
    with pytest.raises(kind, match=f"Conversation 1: .*{message}"):
        answered([ask("Hello"), bad, ask("<audio>", noise(0.2))])
    assert tiny_model.training


def test_faults_are_told_of_before_anything_is_computed(answered, generated) -> None:
    hello = ask("Hello")
    for questions, options, kind, message in (
        ([hello, ask("<audio>", "/no/such/file.wav")], {"batch_size": 1}, FileNotFoundError, "no/such"),
        ([hello], {"batch_size": 0}, ValueError, "batch_size is 0"),
        ([hello] * 2, {"max_new_tokens": [1]}, ValueError, "1 max_new_tokens for 2 conversations"),
        ([hello], {"adapter_names": [None, None]}, ValueError, "2 adapter_names for 1 conversations"),
    ):
        with pytest.raises(kind, match=message):
            answered(questions, **options)
    assert not generated

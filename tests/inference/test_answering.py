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

NEW_TOKENS = 8
OPTIONS = {"max_new_tokens": NEW_TOKENS}
NUM_FILES = 12
#: Half a second is 25 frames of the tiny encoder's 32 channels in float32.
HALF_SECOND_BYTES = 25 * 32 * 4


@pytest.fixture
def encoded(monkeypatch, tiny_model) -> list[int]:
    """The number of windows of each pass through the encoder."""
    windows: list[int] = []
    encode = tiny_model.model.encode_audio

    def noted(**fields):
        windows.append(len(fields["input_features"]))
        return encode(**fields)

    monkeypatch.setattr(tiny_model.model, "encode_audio", noted)
    return windows


@pytest.fixture
def generated(monkeypatch, tiny_model) -> list[dict]:
    """The inputs of each `generate`."""
    calls: list[dict] = []
    generate = tiny_model.generate
    monkeypatch.setattr(tiny_model, "generate", lambda **inputs: calls.append(inputs) or generate(**inputs))
    return calls


# -------------------------------------------------------------------------------------------- batched equals single


@pytest.fixture(scope="module")
def conversations(tmp_path_factory) -> list:
    """Of 0.1 s to 31 s in no order; with one recording, with two, and with none."""
    folder = tmp_path_factory.mktemp("recordings")
    lengths = np.random.default_rng(1).permutation(np.concatenate([np.geomspace(0.1, 6, NUM_FILES - 1), [31.0]]))
    files = [str(folder / f"{index}.wav") for index in range(NUM_FILES)]
    for index, (file, seconds) in enumerate(zip(files, lengths)):
        soundfile.write(file, noise(seconds, seed=index), RATE)
    questions = [ask("Say <audio>" + "?" * (index % 7), file) for index, file in enumerate(files)]
    questions[5] = ask("<audio> or <audio>?", files[5], files[6])
    return [*questions, ask("Hello"), ask("Well, well, well, what is it?", system="Be brief.")]


def test_answers_keep_their_order_and_do_not_depend_on_the_batch(tiny_model, tiny_processor, conversations) -> None:
    single = [answer(tiny_model, tiny_processor, [one], **OPTIONS)[0] for one in conversations]
    assert len(set(single)) > NUM_FILES // 2
    assert answer(tiny_model, tiny_processor, conversations, batch_size=5, **OPTIONS) == single
    assert answer(tiny_model, tiny_processor, conversations[::-1], batch_size=14, **OPTIONS) == single[::-1]


def test_a_recording_is_encoded_once_for_all_questions_about_it(tiny_model, tiny_processor, tmp_path, encoded) -> None:
    waveform, other = noise(0.5), noise(0.5, seed=1)
    soundfile.write(tmp_path / "same.wav", waveform, RATE, subtype="FLOAT")
    data = (tmp_path / "same.wav").read_bytes()
    same = [str(tmp_path / "same.wav"), data, waveform, f"data:audio/wav;base64,{base64.b64encode(data).decode()}"]
    questions = [ask(f"Question {index} on <audio>?", one) for index, one in enumerate(same)]
    questions += [ask("<audio> and <audio>", other, waveform.copy()), ask("<audio>", other)]
    together = answer(tiny_model, tiny_processor, questions, batch_size=2, **OPTIONS)
    assert encoded == [1, 1]
    assert together == [answer(tiny_model, tiny_processor, [one], **OPTIONS)[0] for one in questions]
    assert len(encoded) == 2 + 7, "a call remembers nothing of the one before"


def test_what_is_kept_is_bounded(tiny_model, tiny_processor, encoded) -> None:
    first, second = noise(0.5), noise(0.5, seed=1)
    for max_kept_bytes, expected in ((2 * HALF_SECOND_BYTES, 2), (2 * HALF_SECOND_BYTES - 1, 4), (0, 4)):
        encoder = RecordingEncoder(tiny_model, tiny_processor, max_kept_bytes)
        encoded.clear()
        for waveform in (first, second, first, second):
            frames = encoder([waveform])
            assert frames["encoded_audio"].shape == (1, 25, 32)
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
    tiny_model, tiny_processor, tmp_path, generated, encoded
) -> None:
    questions = [ask("<audio>", noise(seconds)) for seconds in (3.0, 1.0, 1.0, 1.0, 8.0)] + [ask("Hello")]

    def rows(**bounds) -> list[int]:
        generated.clear()
        answer(tiny_model, tiny_processor, questions, max_new_tokens=1, **bounds)
        return [len(call["input_ids"]) for call in generated]

    assert rows() == [6]
    assert rows(batch_size=4) == [4, 2]
    assert rows(max_batch_seconds=4) == [4, 1, 1], "text counts as no seconds, and what is longer is alone"
    files = [tmp_path / f"{index}.wav" for index in range(3)]
    for index, file in enumerate(files):
        soundfile.write(file, noise(0.5, seed=index), RATE)
    questions = [ask("<audio>" + "?" * index, files[index % 3]) for index in range(9)]
    encoded.clear()
    encoder = RecordingEncoder(tiny_model, tiny_processor, HALF_SECOND_BYTES)  # holds one
    generate_answers(tiny_model, tiny_processor, questions, batch_size=1, max_new_tokens=1, encoder=encoder)
    assert encoded == [1, 1, 1]


# ------------------------------------------------------------------------------------------------------------ options


def test_the_model_is_left_in_the_mode_it_was_in(tiny_model, tiny_processor, conversations) -> None:
    tiny_model.train()
    answer(tiny_model, tiny_processor, conversations[1:2], max_new_tokens=1)
    assert tiny_model.training and not tiny_model.model.audio_tower.training
    with pytest.raises(FileNotFoundError):
        answer(tiny_model, tiny_processor, [ask("<audio>", "/no/file.wav")])
    assert tiny_model.training
    tiny_model.eval()
    answer(tiny_model, tiny_processor, conversations[1:2], max_new_tokens=1)
    assert not tiny_model.training


def test_options_reach_generate(tiny_model, tiny_processor, conversations, generated) -> None:
    torch.manual_seed(0)
    one = conversations[:1]
    assert len({answer(tiny_model, tiny_processor, one, do_sample=True, **OPTIONS)[0] for _ in range(4)}) > 1
    assert len(answer(tiny_model, tiny_processor, one, max_new_tokens=1)[0]) <= 1
    assert answer(tiny_model, tiny_processor, []) == []
    config = GenerationConfig(max_new_tokens=3, do_sample=False, eos_token_id=None, pad_token_id=4)
    generate_answers(tiny_model, tiny_processor, [ask("Hello")], generation_config=config)
    assert generated[-1]["generation_config"] is config
    assert not {"max_new_tokens", "do_sample"} & generated[-1].keys()


def test_several_sequences_are_asked_of_generate_answers(tiny_model, tiny_processor) -> None:
    options = {"num_beams": 3, "num_return_sequences": 2, **OPTIONS}
    questions = [ask("Who? <audio>", noise(seconds)) for seconds in (0.6, 0.3)]
    found = generate_answers(tiny_model, tiny_processor, questions, **options)
    for question, texts in zip(questions, found):
        assert texts == generate_answers(tiny_model, tiny_processor, [question], **options)[0] and len(texts) == 2
    with pytest.raises(ValueError, match="num_return_sequences is 2"):
        answer(tiny_model, tiny_processor, questions, **options)


def test_adapters_follow_their_conversations(tiny_model, tiny_processor) -> None:
    questions = [ask("Who? <audio>", noise(seconds)) for seconds in (0.9, 0.3, 0.6)]
    names = [None, "speech", None]
    found = answer(tiny_model, tiny_processor, questions, batch_size=2, adapter_names=names, **OPTIONS)
    for question, name, text in zip(questions, names, found):
        [alone] = answer(tiny_model, tiny_processor, [question], adapter_names=[name], **OPTIONS)
        other = None if name else "speech"
        [otherwise] = answer(tiny_model, tiny_processor, [question], adapter_names=[other], **OPTIONS)
        assert text == alone != otherwise


def test_the_assistants_own_words_are_continued(tiny_model, tiny_processor) -> None:
    question = ask("<audio>", noise(0.4))
    begun = [*question, {"role": "assistant", "content": "It is"}]
    inputs = tiny_processor.apply_chat_template(begun, tokenize=True, continue_final_message=True)
    output = tiny_model.generate(**inputs, do_sample=False, **OPTIONS)[0, inputs["input_ids"].shape[1] :]
    both = generate_answers(tiny_model, tiny_processor, [begun, question], 2, NEW_TOKENS)
    assert both[0] == [tiny_processor.decode(output, skip_special_tokens=True)]
    assert both[1] == generate_answers(tiny_model, tiny_processor, [question], 1, NEW_TOKENS)[0]


def test_with_a_streamer_answers_come_one_by_one_in_the_given_order(tiny_model, tiny_processor) -> None:
    given: list[int] = []  # lengths of prompts and tokens

    class Lengths(BaseStreamer):
        def put(self, ids: torch.Tensor) -> None:
            given.append(ids.numel())

        def end(self) -> None:
            pass

    questions = [ask("<audio>", noise(seconds)) for seconds in (0.9, 0.3, 0.6)]
    streamed = answer(tiny_model, tiny_processor, questions, streamer=Lengths(), **OPTIONS)
    assert streamed == answer(tiny_model, tiny_processor, questions, **OPTIONS)
    first, second, third = (length for length in given if length > 1)
    assert second < third < first


# ---------------------------------------------------------------------------------------------------------- questions


@pytest.mark.parametrize(
    ("prompt", "recordings", "parts"),
    [
        ("What? <audio>", "a", [("text", "What? "), ("audio", "a")]),
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
def test_errors_name_the_conversation(tiny_model, tiny_processor, bad, kind, message: str) -> None:
    with pytest.raises(kind, match=f"Conversation 1: .*{message}"):
        answer(tiny_model, tiny_processor, [ask("Hello"), bad, ask("<audio>", noise(0.2))], max_new_tokens=1)


def test_faults_are_told_of_before_anything_is_computed(tiny_model, tiny_processor, generated) -> None:
    hello = ask("Hello")
    with pytest.raises(FileNotFoundError):
        answer(tiny_model, tiny_processor, [hello, ask("<audio>", "/no/such/file.wav")], batch_size=1)
    with pytest.raises(ValueError, match="batch_size is 0"):
        answer(tiny_model, tiny_processor, [hello], batch_size=0)
    with pytest.raises(ValueError, match="1 max_new_tokens for 2 conversations"):
        answer(tiny_model, tiny_processor, [hello] * 2, max_new_tokens=[1])
    with pytest.raises(ValueError, match="2 adapter_names for 1 conversations"):
        answer(tiny_model, tiny_processor, [hello], adapter_names=[None, None])
    assert not generated

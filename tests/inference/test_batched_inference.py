"""Batched inference over many files: as when asked one by one, each recording encoded once, within bounds."""

import numpy as np
import pytest
import soundfile
import torch
from audiollm.corpora.prompts import load_studio_prompts
from audiollm.inference.answering import answer, ask, generate_answers
from audiollm.inference.recording_encoder import RecordingEncoder
from transformers import GenerationConfig

NEW_TOKENS = 8
NUM_FILES = 32
SAMPLING_RATE_HZ = 16_000


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    samples = np.random.default_rng(seed).standard_normal(int(seconds * SAMPLING_RATE_HZ))
    return (samples / 10).astype(np.float32)


@pytest.fixture
def encoded(monkeypatch, tiny_model) -> list[int]:
    """Return how many windows each pass through the encoder took."""
    windows: list[int] = []
    encode = tiny_model.model.encode_audio
    monkeypatch.setattr(tiny_model.model, "encode_audio", lambda **fields: note(windows, fields) or encode(**fields))
    return windows


def note(windows: list[int], fields: dict) -> None:
    windows.append(len(fields["input_features"]))


@pytest.fixture
def generated(monkeypatch, tiny_model) -> list[dict]:
    """The inputs of each `generate`."""
    calls: list[dict] = []
    generate = tiny_model.generate
    monkeypatch.setattr(tiny_model, "generate", lambda **inputs: calls.append(inputs) or generate(**inputs))
    return calls


# -------------------------------------------------------------------------------------------- batched equals single


def many_questions(folder) -> list:
    """About 32 files of 0.1 s to 40 s, two windows, two recordings in a row, and rows of text alone."""
    lengths = np.random.default_rng(1).permutation(np.concatenate([np.geomspace(0.1, 6, NUM_FILES - 1), [31.0]]))
    files = []
    for index, seconds in enumerate(lengths):
        files.append(str(folder / f"{index}.wav"))
        soundfile.write(files[-1], noise(seconds, seed=index), SAMPLING_RATE_HZ)
    questions = [ask("Say <audio>" + "?" * (index % 7), file) for index, file in enumerate(files)]
    questions[5] = ask("<audio> or <audio>?", files[5], files[6])
    return questions + [ask("Hello"), ask("Well, well, well, what is it?", system="Be brief.")]


def test_answers_about_32_files_are_those_of_each_alone(tiny_model, tiny_processor, tmp_path) -> None:
    questions = many_questions(tmp_path)
    single = [answer(tiny_model, tiny_processor, [one], max_new_tokens=NEW_TOKENS)[0] for one in questions]
    assert len(set(single)) > NUM_FILES // 2
    assert answer(tiny_model, tiny_processor, questions, batch_size=8, max_new_tokens=NEW_TOKENS) == single


@pytest.mark.slow
def test_real_answers_about_32_prompts_are_those_of_each_alone(real_model, real_processor) -> None:
    clips = sorted(load_studio_prompts("test"), key=lambda clip: clip["duration_s"])
    clips = clips[:: max(1, len(clips) // NUM_FILES)][:NUM_FILES]
    assert len(clips) == NUM_FILES and clips[-1]["duration_s"] > 3 * clips[0]["duration_s"]
    questions = [ask("<audio>\nWhat is said?", clip["audio"]) for clip in clips]
    single = [answer(real_model, real_processor, [one], max_new_tokens=16)[0] for one in questions]
    assert answer(real_model, real_processor, questions, batch_size=8, max_new_tokens=16) == single


# --------------------------------------------------------------------------------------- each recording encoded once


def test_a_recording_is_encoded_once_for_all_questions_about_it(tiny_model, tiny_processor, tmp_path, encoded) -> None:
    waveform, other = noise(0.5), noise(0.5, seed=1)
    soundfile.write(tmp_path / "same.wav", waveform, SAMPLING_RATE_HZ, subtype="FLOAT")
    same = [str(tmp_path / "same.wav"), (tmp_path / "same.wav").read_bytes(), waveform]
    questions = [ask(f"Question {index} on <audio>?", one) for index, one in enumerate(same)]
    questions += [ask("<audio> and <audio>", other, waveform.copy()), ask("<audio>", other)]
    options = {"batch_size": 2, "max_new_tokens": NEW_TOKENS}
    together = answer(tiny_model, tiny_processor, questions, **options)
    assert encoded == [1, 1]
    assert together == [answer(tiny_model, tiny_processor, [one], **options)[0] for one in questions]
    assert len(encoded) == 2 + 6, "a call remembers nothing of the one before"


def test_what_is_kept_is_bounded(tiny_model, tiny_processor, encoded) -> None:
    first, second = noise(0.5), noise(0.5, seed=1)
    recording_bytes = 25 * 32 * 4  # 0.5 s are 25 frames of the tiny encoder's 32 channels in float32
    for max_kept_bytes, expected in ((2 * recording_bytes, 2), (2 * recording_bytes - 1, 4), (0, 4)):
        encoder = RecordingEncoder(tiny_model, tiny_processor, max_kept_bytes)
        before = len(encoded)
        for waveform in (first, second, first, second):
            frames = encoder([waveform])
            assert frames["encoded_audio"].shape == (1, 25, 32)
        assert encoder.num_encoded == len(encoded) - before == expected
    assert torch.equal(
        frames["encoded_audio"], RecordingEncoder(tiny_model, tiny_processor)([second])["encoded_audio"]
    )


def test_a_long_recording_goes_through_the_encoder_in_parts(tiny_model, tiny_processor, encoded, monkeypatch) -> None:
    monkeypatch.setattr("audiollm.inference.recording_encoder.MAX_ENCODER_WINDOWS", 2)
    waveform = noise(65)
    found = RecordingEncoder(tiny_model, tiny_processor)([waveform])
    assert encoded == [2, 1]
    whole, lengths = tiny_model.model.encode_audio(**tiny_processor.batch_features([waveform]))
    assert found["encoded_audio_lengths"].tolist() == lengths.tolist()
    for index, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(found["encoded_audio"][index, :length], whole[index, :length], atol=1e-4, rtol=1e-4)


# ------------------------------------------------------------------------------------------------------------ batches


def test_batches_are_bounded_by_rows_and_by_seconds_of_audio(tiny_model, tiny_processor, generated) -> None:
    questions = [ask("<audio>", noise(seconds)) for seconds in (3.0, 1.0, 1.0, 1.0, 8.0)] + [ask("Hello")]

    def rows(**bounds) -> list[int]:
        generated.clear()
        answer(tiny_model, tiny_processor, questions, max_new_tokens=1, **bounds)
        return [len(call["input_ids"]) for call in generated]

    assert rows() == [6]
    assert rows(batch_size=4) == [4, 2]
    assert rows(max_batch_seconds=4) == [4, 1, 1], "text counts as no seconds, and what is longer is alone"
    assert rows(max_batch_seconds=100, batch_size=3) == [3, 3]


def test_conversations_about_the_same_file_are_beside_each_other(
    tiny_model, tiny_processor, tmp_path, encoded
) -> None:
    files = []
    for index in range(3):
        files.append(tmp_path / f"{index}.wav")
        soundfile.write(files[-1], noise(0.5, seed=index), SAMPLING_RATE_HZ)
    questions = [ask("<audio>" + "?" * index, files[index % 3]) for index in range(9)]
    encoder = RecordingEncoder(tiny_model, tiny_processor, max_kept_bytes=25 * 32 * 4)  # one recording
    generate_answers(tiny_model, tiny_processor, questions, batch_size=1, max_new_tokens=1, encoder=encoder)
    assert encoded == [1, 1, 1]


# ------------------------------------------------------------------------------------------------------------ options


def test_several_sequences_for_each_conversation(tiny_model, tiny_processor) -> None:
    questions = [ask("<audio>", noise(0.6)), ask("Hello"), ask("<audio>", noise(0.3))]
    options = {"max_new_tokens": NEW_TOKENS, "num_beams": 3, "num_return_sequences": 2}
    together = generate_answers(tiny_model, tiny_processor, questions, batch_size=3, **options)
    assert together == [generate_answers(tiny_model, tiny_processor, [one], **options)[0] for one in questions]
    assert all(len(set(texts)) == 2 for texts in together)
    with pytest.raises(ValueError, match="num_return_sequences is 2"):
        answer(tiny_model, tiny_processor, questions, **options)


def test_adapters_follow_their_conversations(tiny_model, tiny_processor) -> None:
    questions = [ask("Who? <audio>", noise(seconds)) for seconds in (0.9, 0.3, 0.6)]
    names = [None, "speech", None]
    options = {"max_new_tokens": NEW_TOKENS}
    found = answer(tiny_model, tiny_processor, questions, batch_size=2, adapter_names=names, **options)
    for index, name in enumerate(names):
        [alone] = answer(tiny_model, tiny_processor, [questions[index]], adapter_names=[name], **options)
        [otherwise] = answer(
            tiny_model, tiny_processor, [questions[index]], adapter_names=[None if name else "speech"], **options
        )
        assert found[index] == alone != otherwise
    with pytest.raises(ValueError, match="2 adapter_names for 3 conversations"):
        answer(tiny_model, tiny_processor, questions, adapter_names=names[:2], **options)


def test_the_assistants_own_words_are_continued(tiny_model, tiny_processor) -> None:
    question = ask("<audio>", noise(0.4))
    begun = [*question, {"role": "assistant", "content": "It is"}]
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False}
    inputs = tiny_processor.apply_chat_template(begun, tokenize=True, continue_final_message=True)
    output = tiny_model.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :]
    both = generate_answers(tiny_model, tiny_processor, [begun, question], 2, NEW_TOKENS)
    assert both[0] == [tiny_processor.decode(output, skip_special_tokens=True)]
    assert both[1] == generate_answers(tiny_model, tiny_processor, [question], 1, NEW_TOKENS)[0]


def test_with_a_streamer_answers_come_one_by_one_in_the_given_order(tiny_model, tiny_processor, generated) -> None:
    class Lengths:
        """Notes how long each prompt is."""

        def __init__(self) -> None:
            self.prompts: list[int] = []
            self.starts = True

        def put(self, ids: torch.Tensor) -> None:
            if self.starts:
                self.prompts.append(ids.shape[-1])
            self.starts = False

        def end(self) -> None:
            self.starts = True

    questions = [ask("<audio>", noise(seconds)) for seconds in (0.9, 0.3, 0.6)]
    streamer = Lengths()
    streamed = answer(tiny_model, tiny_processor, questions, max_new_tokens=NEW_TOKENS, streamer=streamer)
    assert streamed == answer(tiny_model, tiny_processor, questions, max_new_tokens=NEW_TOKENS)
    assert streamer.prompts[1] < streamer.prompts[2] < streamer.prompts[0]


def test_a_generation_config_is_used_as_it_is(tiny_model, tiny_processor, generated) -> None:
    config = GenerationConfig(max_new_tokens=3, do_sample=False, eos_token_id=None, pad_token_id=4)
    generate_answers(tiny_model, tiny_processor, [ask("Hello")], generation_config=config)
    assert generated[-1]["generation_config"] is config
    assert not {"max_new_tokens", "do_sample"} & generated[-1].keys()


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("bad", "kind", "message"),
    [
        (ask("<audio>", "/no/such/file.wav"), FileNotFoundError, "Conversation 1: .*'/no/such/file.wav'"),
        (ask("<audio>", b"not audio"), ValueError, "Conversation 1: .*corrupt"),
        (ask("<audio>", np.array([0.1, np.nan])), ValueError, "Conversation 1: .*sample 1 is nan"),
        (ask("<audio>", {"array": noise(0.1), "sampling_rate": "fast"}), ValueError, "Conversation 1: .*'fast'"),
        ([{"role": "user"}], ValueError, "Conversation 1: Message 0"),
        ([], ValueError, "Conversation 1: The conversation is empty"),
        ([{"role": "user", "content": "<audio>"}], ValueError, "Conversation 1: The conversation has 0 recordings"),
        ([{"role": "user", "content": [{"type": "image"}]}], ValueError, "Conversation 1: Message 0, part 0"),
    ],
)
def test_errors_name_the_conversation(tiny_model, tiny_processor, bad, kind, message: str) -> None:
    with pytest.raises(kind, match=message):
        answer(tiny_model, tiny_processor, [ask("Hello"), bad, ask("<audio>", noise(0.2))], max_new_tokens=1)


def test_a_missing_file_is_told_of_before_anything_is_computed(tiny_model, tiny_processor, generated) -> None:
    with pytest.raises(FileNotFoundError):
        answer(tiny_model, tiny_processor, [ask("Hello"), ask("<audio>", "/no/such/file.wav")], batch_size=1)
    assert not generated
    with pytest.raises(ValueError, match="batch_size is 0"):
        answer(tiny_model, tiny_processor, [ask("Hello")], batch_size=0)
    with pytest.raises(ValueError, match="1 max_new_tokens for 2 conversations"):
        answer(tiny_model, tiny_processor, [ask("Hello")] * 2, max_new_tokens=[1])

"""Ultravox's and transformers' audio processors' cases (counts, windows, orders, mismatches), in our tokens of 80 ms."""

import numpy as np
import pytest
import torch
from audiollm.processing.audio import AudioError

RATE_HZ = 16_000
MEL_FRAMES_PER_SECOND = 100
#: Seconds: audio tokens of 80 ms. A recording longer than 30 s is two windows, each of which rounds up.
TOKENS = {1: 13, 10: 125, 30: 375, 35: 375 + 63, 60: 2 * 375, 61: 2 * 375 + 13}


def recording(seconds: float, seed: int = 0) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * RATE_HZ)).astype(np.float32)


def runs(processor, ids: torch.Tensor) -> list[tuple[int, int]]:
    """Where each recording's slots begin, and how many they are."""
    found: list[tuple[int, int]] = []
    for position, token in enumerate(ids.tolist()):
        if token == processor.audio_begin_token_id:
            found.append((position + 1, 0))
        elif token == processor.audio_token_id:
            found[-1] = (found[-1][0], found[-1][1] + 1)
    return found


def ids_of(processor, *parts: str | int) -> list[int]:
    """Text as the tokenizer has it, and a recording of so many slots for each integer."""
    ids: list[int] = []
    for part in parts:
        if isinstance(part, str):
            ids += processor.tokenizer(part)["input_ids"]
        else:
            slots = [processor.audio_token_id] * part
            ids += [processor.audio_begin_token_id, *slots, processor.audio_end_token_id]
    return ids


def test_text_alone(tiny_processor) -> None:
    out = tiny_processor("Hello, how are you?")
    assert out["input_ids"].tolist() == [ids_of(tiny_processor, "Hello, how are you?")]
    assert out["attention_mask"].tolist() == [[1] * len(out["input_ids"][0])] and len(out) == 2


@pytest.mark.parametrize("seconds", TOKENS)
@pytest.mark.parametrize("in_a_list", [False, True])
def test_one_recording(tiny_processor, seconds: int, in_a_list: bool) -> None:
    waveform = recording(seconds)
    out = tiny_processor("Test with <audio>", audio=[waveform] if in_a_list else waveform)
    assert out["input_ids"].tolist() == [ids_of(tiny_processor, "Test with ", TOKENS[seconds])]
    assert tiny_processor.num_audio_slots(len(waveform)) == TOKENS[seconds]
    full, rest = divmod(seconds, 30)
    lengths = [30 * MEL_FRAMES_PER_SECOND] * full + ([rest * MEL_FRAMES_PER_SECOND] if rest else [])
    assert out["input_features_mask"].sum(dim=1).tolist() == lengths
    assert out["input_features"].shape == (len(lengths), 80, max(lengths))


def test_several_recordings_one_of_which_is_long(tiny_processor) -> None:
    short, long, ten = recording(1, 1), recording(35, 2), recording(10, 3)
    out = tiny_processor("Test with <audio> and <audio> and <audio>", audio=[short, long, ten])
    expected = ids_of(tiny_processor, "Test with ", 13, " and ", 375 + 63, " and ", 125)
    assert out["input_ids"].tolist() == [expected]
    assert runs(tiny_processor, out["input_ids"][0]) == [(11, 13), (31, 438), (476, 125)]
    assert out["input_features_mask"].sum(dim=1).tolist() == [100, 3000, 500, 1000]
    alone = [tiny_processor(audio=one)["input_features"] for one in (short, long, ten)]
    windows = [window[None] for one in alone for window in one]
    for found, window in zip(out["input_features"], windows, strict=True):
        length = min(window.shape[2], 1000)
        assert torch.equal(found[:, :length], window[0, :, :length])


def test_orders_are_those_of_the_text(tiny_processor) -> None:
    one, other = recording(0.5, 1), recording(1.5, 2)
    text = "first <audio> second <audio>"
    there, back = (tiny_processor(text, audio=pair) for pair in ([one, other], [other, one]))
    slots = [[count for _, count in runs(tiny_processor, out["input_ids"][0])] for out in (there, back)]
    assert slots == [[7, 19], [19, 7]]
    assert torch.equal(there["input_features"][0], back["input_features"][1])


@pytest.mark.parametrize("nested", [False, True])
def test_rows_with_different_numbers(tiny_processor, nested: bool) -> None:
    texts = ["a <audio> b <audio>", "none", "<audio>", "", "<audio><audio>"]
    audio = [
        [recording(0.3, 1), recording(0.8, 2)],
        [],
        [recording(31, 3)],
        [],
        [recording(0.1, 4), recording(0.2, 5)],
    ]
    flat = [waveform for row in audio for waveform in row]
    out = tiny_processor(texts, audio=audio if nested else flat)
    found = [[count for _, count in runs(tiny_processor, ids)] for ids in out["input_ids"]]
    assert found == [[4, 10], [], [375 + 13], [], [2, 3]]
    assert len(out["input_features"]) == 6
    for text, row, ids, mask in zip(texts, audio, out["input_ids"], out["attention_mask"], strict=True):
        alone = tiny_processor(text, audio=row or None)
        assert ids[mask.bool()].tolist() == alone["input_ids"][0].tolist()


@pytest.mark.parametrize(
    ("text", "seconds", "message"),
    [
        ("Hello? <audio>", [], r"have 1 <audio> in all .* but 0 recordings"),
        ("Hello? <audio><audio>", [1], r"have 2 <audio> in all .* but 1 recordings"),
        ("Hello? <audio><audio>", [35], r"have 2 <audio> in all .* but 1 recordings"),  # its two windows are one
        ("Hello?", [1], r"have 0 <audio> in all .* but 1 recordings"),
        ("Hello? <audio>", [1, 1], r"have 1 <audio> in all .* but 2 recordings"),
        (["<audio>", "none"], [[], [1]], r"Text 0 has 1 <audio> but is given 0 recordings"),
        (["<audio>", "<audio>"], [[1, 1], []], r"Text 0 has 1 <audio> but is given 2 recordings"),
        (["<audio>", "<audio>"], [[1]], r"audio has lists for 1 texts, but there are 2"),
        ("Two <audio|>", [1], r"have 0 <audio> in all"),
        ("A slot <|audio_slot|>", [], r"contains <\|audio_slot\|>"),
    ],
)
def test_what_does_not_match_is_said_with_both_counts(tiny_processor, text, seconds, message: str) -> None:
    audio = [[recording(s) for s in row] if isinstance(row, list) else recording(row) for row in seconds]
    with pytest.raises(ValueError, match=message):
        tiny_processor(text, audio=audio)


@pytest.mark.parametrize("samples", [1, 159, 160, 161, 319, 320, 321, 1279, 1280, 1281])
def test_features_are_as_long_as_the_mask_says(tiny_processor, samples: int) -> None:
    out = tiny_processor("<audio>", audio=recording(1)[:samples])
    frames = -(-samples // 160)
    assert out["input_features"].shape[2] == int(out["input_features_mask"].sum()) == frames
    assert runs(tiny_processor, out["input_ids"][0]) == [(1, -(-samples // 1280))]


def test_a_recording_without_samples_is_refused(tiny_processor) -> None:
    with pytest.raises(AudioError, match=r"audio 1: holds no samples"):
        tiny_processor("<audio><audio>", audio=[recording(1), np.zeros(0, np.float32)])


@pytest.mark.parametrize("rate", [8_000, 48_000])
def test_another_rate_is_the_same_length(tiny_processor, rate: int) -> None:
    waveform = 0.1 * np.random.default_rng(0).standard_normal(rate).astype(np.float32)
    for arguments in (
        {"audio": waveform, "sampling_rate": rate},
        {"audio": {"array": waveform, "sampling_rate": rate}},
    ):
        out = tiny_processor("<audio>", **arguments)
        assert runs(tiny_processor, out["input_ids"][0]) == [(1, 13)] and out["input_features"].shape == (1, 80, 100)


def test_the_collators_of_training_pad_recordings_and_answers(tiny_processor) -> None:
    """Ultravox's two: rows of different audio, and rows of text alone; here the processor is the collator."""
    chats = [
        [
            {"role": "user", "content": [{"type": "audio", "audio": recording(s)}]},
            {"role": "assistant", "content": "So."},
        ]
        for s in (1, 10)
    ]
    out = tiny_processor.apply_chat_template(chats, tokenize=True, return_labels=True, padding_side="right")
    assert [len(row) for row in (runs(tiny_processor, ids) for ids in out["input_ids"])] == [1, 1]
    assert out["input_features_mask"].sum(dim=1).tolist() == [100, 1000]
    answers = [tiny_processor.decode(labels[labels >= 0]) for labels in out["labels"]]
    assert answers == ["So.<|im_end|>"] * 2
    assert out["attention_mask"].sum(dim=1).diff().item() == 125 - 13
    text = tiny_processor(["How are you?", "Another greeting"], padding_side="right")
    assert text["attention_mask"].sum(dim=1).tolist() == [12, 16] and text["attention_mask"][0, -1] == 0

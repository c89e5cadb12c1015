"""Answers in batches: in order, as when asked one by one, from the cache as from the recording; and how questions are put."""

import base64
from pathlib import Path

import numpy as np
import pytest
import torch
from audiollm.inference.answering import answer, ask
from audiollm.training.dataset import load_encoded_audio
from audiollm.training.feature_cache import FeatureCache
from small_corpus import write_recordings

NEW_TOKENS = 8


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("recordings")
    return [str(folder / name) for name in write_recordings(folder, 6)]


@pytest.fixture
def conversations(recordings) -> list:
    """Of very different lengths, and not in their order: with one, two and no recordings."""
    return [
        ask("What is said at the very end of this long recording? <audio>", recordings[5]),
        ask("Hello?"),
        ask("<audio> or <audio>?", recordings[0], recordings[3]),
        ask("<audio>", recordings[1]),
        ask("Please tell me something about anything.", system="You are terse."),
        ask("Is it? <audio>", recordings[2], system="You are terse."),
    ]


@pytest.mark.parametrize("batch_size", [1, 4, 6])
def test_answers_keep_their_order_and_do_not_depend_on_the_batch(
    tiny_model, tiny_processor, conversations, batch_size: int
) -> None:
    single = [
        answer(tiny_model, tiny_processor, [conversation], max_new_tokens=NEW_TOKENS)[0]
        for conversation in conversations
    ]
    assert len(set(single)) > 4
    together = answer(tiny_model, tiny_processor, conversations, batch_size, max_new_tokens=NEW_TOKENS)
    assert together == single
    backwards = answer(tiny_model, tiny_processor, conversations[::-1], batch_size, max_new_tokens=NEW_TOKENS)
    assert backwards == single[::-1]


def test_answers_from_the_cache_are_those_from_the_recordings(
    tiny_model, tiny_processor, conversations, tmp_path
) -> None:
    cache = FeatureCache(tiny_model, tiny_processor, tmp_path)
    asked = []

    def from_cache(batch: list[str]) -> dict[str, torch.Tensor]:
        asked.extend(batch)
        return load_encoded_audio(cache, cache.add(batch, progress=False))

    options = {"batch_size": 3, "max_new_tokens": NEW_TOKENS}
    cached = answer(tiny_model, tiny_processor, conversations, encoded_audio=from_cache, **options)
    assert cached == answer(tiny_model, tiny_processor, conversations, **options)
    assert len(asked) == 5


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


def test_options_reach_generate(tiny_model, tiny_processor, conversations) -> None:
    torch.manual_seed(0)
    sampled = {
        answer(tiny_model, tiny_processor, conversations[:1], max_new_tokens=NEW_TOKENS, do_sample=True)[0]
        for _ in range(4)
    }
    assert len(sampled) > 1
    short = answer(tiny_model, tiny_processor, conversations[:1], max_new_tokens=1)[0]
    assert len(short) <= 1
    assert answer(tiny_model, tiny_processor, []) == []


# --------------------------------------------------------------------------------------------------------- questions


def text(value: str) -> dict:
    return {"type": "text", "text": value}


def audio(value: object) -> dict:
    return {"type": "audio", "audio": value}


@pytest.mark.parametrize(
    ("prompt", "recordings", "parts"),
    [
        ("What? <audio>", ["a"], [text("What? "), audio("a")]),
        ("<audio>\nWhat?", ["a"], [audio("a"), text("\nWhat?")]),
        ("Is <audio> like <audio>?", ["a", "b"], [text("Is "), audio("a"), text(" like "), audio("b"), text("?")]),
        ("<audio><audio>", ["a", "b"], [audio("a"), audio("b")]),
        ("What?", ["a", "b"], [audio("a"), audio("b"), text("\nWhat?")]),
        ("What?", [], [text("What?")]),
    ],
)
def test_recordings_stand_where_the_prompt_says_or_first(prompt, recordings, parts) -> None:
    assert ask(prompt, *recordings) == [{"role": "user", "content": parts}]


def test_a_system_message_comes_first() -> None:
    assert ask("What?", system="Be brief.")[0] == {"role": "system", "content": "Be brief."}
    assert [message["role"] for message in ask("What?", system="Be brief.")] == ["system", "user"]


@pytest.mark.parametrize(
    ("prompt", "count", "message"),
    [
        ("<audio>", 0, "has 1 <audio> for 0 recordings"),
        ("<audio>", 2, "has 1 <audio> for 2 recordings"),
        ("<audio> <audio>", 1, "has 2 <audio> for 1 recordings"),
    ],
)
def test_placeholders_and_recordings_must_be_equally_many(prompt: str, count: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ask(prompt, *[np.zeros(100)] * count)


def test_recordings_in_data_urls_are_heard_as_their_files_are(tiny_model, tiny_processor, recordings) -> None:
    encoded = [base64.b64encode(Path(path).read_bytes()).decode() for path in recordings[:2]]
    urls = [f"data:audio/wav;base64,{data}" for data in encoded]
    from_files, from_urls = (
        answer(tiny_model, tiny_processor, [ask("<audio>?", each) for each in each_kind], 2, max_new_tokens=NEW_TOKENS)
        for each_kind in (recordings[:2], urls)
    )
    assert from_urls == from_files
    assert len(set(from_files)) == 2

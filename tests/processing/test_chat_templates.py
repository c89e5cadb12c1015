"""Conversations through the chat templates of many families: what is learned is what the assistant says, no more."""

import copy
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile
import torch
from audiollm import AudioLlmProcessor
from audiollm.processing import ConversationError
from audiollm.processing.conversations import DEFAULT_CHAT_TEMPLATE, IGNORED_LABEL

FOLDER = Path(__file__).parent / "chat_templates"


class Family(NamedTuple):
    """A family's template around an answer: the text before it that the model must say too, and the end of the turn."""

    special_tokens: tuple[str, ...] = ()
    bos: str = "<|im_start|>"
    eos: str = "<|im_end|>"
    opening: str = ""
    end_of_turn: str = "<|im_end|>"
    opening_of_last: str | None = None
    has_system: bool = True


FAMILIES = {
    "smollm2": Family(),
    "llama3": Family(
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        end_of_turn="<|eot_id|>",
    ),
    "qwen25": Family(),
    "qwen3": Family(("<think>", "</think>"), opening_of_last="<think>\n\n</think>\n\n"),
    "gemma": Family(
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        bos="<bos>",
        eos="<eos>",
        end_of_turn="<end_of_turn>",
        has_system=False,
    ),
    "mistral": Family(("<s>", "</s>", "[INST]", "[/INST]"), bos="<s>", eos="</s>", opening=" ", end_of_turn="</s>"),
    "phi3": Family(
        ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endofall|>"),
        eos="<|endofall|>",
        end_of_turn="<|end|>",
    ),
    "phi4mini": Family(
        ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endofall|>"),
        eos="<|endofall|>",
        end_of_turn="<|end|>",
    ),
    "vicuna": Family(("</s>",), eos="</s>", opening=" ", end_of_turn="</s>"),
    "glm": Family(
        ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>"),
        eos="<|user|>",
        opening="\n",
        end_of_turn="",
    ),
}
SYSTEM = {"role": "system", "content": "Answer in one word."}
ANSWERS = ("yes", "First line.\n\nuser\nlast line")


@pytest.fixture(params=FAMILIES, scope="module")
def family(request, extractor, smollm_tokenizer) -> tuple[AudioLlmProcessor, Family]:
    """SmolLM2's tokenizer with a family's special tokens and template."""
    family = FAMILIES[request.param]
    tokenizer = copy.deepcopy(smollm_tokenizer)
    tokenizer.add_tokens(list(family.special_tokens), special_tokens=True)
    tokenizer.bos_token, tokenizer.eos_token = family.bos, family.eos
    tokenizer.chat_template = (FOLDER / f"{request.param}.jinja").read_text(encoding="utf-8")
    return AudioLlmProcessor(extractor, tokenizer), family


def conversation(clips: list[np.ndarray], system: bool) -> list[dict[str, Any]]:
    """Two questions about three recordings. The first answer repeats the question; the second has lines of its own."""
    return [
        *([SYSTEM] if system else []),
        {
            "role": "user",
            "content": [{"type": "audio", "audio": clips[0]}, {"type": "text", "text": "yes or no: "}]
            + [{"type": "audio", "audio": clips[1]}],
        },
        {"role": "assistant", "content": [{"type": "text", "text": ANSWERS[0]}]},
        {"role": "user", "content": [{"type": "text", "text": "And this?\n"}, {"type": "audio", "audio": clips[2]}]},
        {"role": "assistant", "content": ANSWERS[1]},
    ]


def encode(processor: AudioLlmProcessor, messages: list[Any], **options: Any) -> dict[str, Any]:
    return processor.apply_chat_template(messages, tokenize=True, return_tensors=None, padding=False, **options)


def learned_texts(processor: AudioLlmProcessor, ids: list[int], labels: list[int]) -> list[str]:
    """The stretches of a row that are learned, decoded."""
    pairs = groupby(zip(ids, labels), key=lambda pair: pair[1] != IGNORED_LABEL)
    stretches = [list(stretch) for learned, stretch in pairs if learned]
    assert all(id_ == label for stretch in stretches for id_, label in stretch)
    return [processor.decode([label for _, label in stretch]) for stretch in stretches]


@pytest.mark.parametrize("system", [True, False], ids=["system", "no system"])
def test_only_the_assistant_is_learned(family, clips, system):
    processor, shape = family
    messages = conversation(clips, system and shape.has_system)
    batch = encode(processor, messages, output_labels=True)
    for same in ({"return_labels": True}, {"processor_kwargs": {"output_labels": True}}):
        assert encode(processor, messages, **same)["labels"] == batch["labels"]
    masked = encode(processor, messages, return_assistant_tokens_mask=True)["assistant_masks"]
    assert masked == [[int(label != IGNORED_LABEL) for label in row] for row in batch["labels"]]
    opening_of_last = shape.opening if shape.opening_of_last is None else shape.opening_of_last
    first, last = learned_texts(processor, batch["input_ids"][0], batch["labels"][0])
    assert first.removeprefix(shape.opening) == ANSWERS[0] + shape.end_of_turn
    assert last == opening_of_last + ANSWERS[1] + shape.end_of_turn
    audio_ids = {processor.audio_begin_token_id, processor.audio_token_id, processor.audio_end_token_id}
    assert not audio_ids & set(batch["labels"][0])
    assert batch["input_ids"][0].count(processor.audio_token_id) == 2 + 5 + 7


def test_the_prompt_of_inference_begins_the_training_ids(family, clips):
    processor, shape = family
    messages = conversation(clips, system=shape.has_system)
    whole = encode(processor, messages, output_labels=True)
    prompt = encode(processor, messages[:-1], add_generation_prompt=True)
    length = len(prompt["input_ids"][0])
    assert whole["input_ids"][0][:length] == prompt["input_ids"][0]
    assert whole["labels"][0][length] != IGNORED_LABEL
    assert whole["input_features"].equal(prompt["input_features"])


def test_the_text_is_the_templates_own(family, clips):
    processor, shape = family
    messages = conversation(clips, system=shape.has_system)
    strings = [
        {**m, "content": m["content"] if isinstance(m["content"], str) else "".join(map(as_text, m["content"]))}
        for m in messages
    ]
    expected = processor.tokenizer.apply_chat_template(strings, tokenize=False)
    assert processor.apply_chat_template(messages) == expected
    assert "".join(segment.text for segment in processor.conversation_segments(strings)) == expected


def as_text(part: dict[str, Any]) -> str:
    return part.get("text", "<audio>")


def test_one_turn_alone_is_learned_with_its_end(family, clips):
    processor, shape = family
    messages = [
        {"role": "user", "content": [{"type": "audio", "audio": clips[0]}]},
        {"role": "assistant", "content": "No."},
    ]
    batch = encode(processor, messages, output_labels=True)
    opening = shape.opening if shape.opening_of_last is None else shape.opening_of_last
    assert learned_texts(processor, batch["input_ids"][0], batch["labels"][0]) == [opening + "No." + shape.end_of_turn]


def test_an_open_turn_is_continued_where_it_stops(family, clips):
    processor, _ = family
    messages = conversation(clips, system=False)
    messages[-1] = {"role": "assistant", "content": "It says that"}
    rendered = processor.apply_chat_template(messages, continue_final_message=True)
    assert rendered.endswith("It says that")
    ids = encode(processor, messages, continue_final_message=True)["input_ids"][0]
    whole = encode(processor, messages)["input_ids"][0]
    assert whole[: len(ids)] == ids


# ---- special cases ---------------------------------------------------------------------------------------------------


def test_thinking_switched_off_is_part_of_the_prompt(extractor, smollm_tokenizer):
    tokenizer = copy.deepcopy(smollm_tokenizer)
    tokenizer.chat_template = (FOLDER / "qwen3.jinja").read_text(encoding="utf-8")
    processor = AudioLlmProcessor(extractor, tokenizer)
    messages = [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "Yes."}]
    batch = encode(processor, messages, return_labels=True, enable_thinking=False)
    assert learned_texts(processor, batch["input_ids"][0], batch["labels"][0]) == ["Yes.<|im_end|>"]
    messages[1]["content"] = "<think>\nPerhaps.\n</think>\n\nYes."
    batch = encode(processor, messages, return_labels=True)
    learned = learned_texts(processor, batch["input_ids"][0], batch["labels"][0])
    assert learned == ["<think>\nPerhaps.\n</think>\n\nYes.<|im_end|>"]


def test_variables_reach_the_template(extractor, smollm_tokenizer):
    tokenizer = copy.deepcopy(smollm_tokenizer)
    tokenizer.chat_template = (FOLDER / "llama3.jinja").read_text(encoding="utf-8")
    text = AudioLlmProcessor(extractor, tokenizer).apply_chat_template(
        [{"role": "user", "content": "Hi"}], date_string="1 Jan 2030"
    )
    assert "Today Date: 1 Jan 2030" in text


def test_a_tokenizer_without_chat_template_gets_a_plain_one(extractor, smollm_tokenizer, clips):
    tokenizer = copy.deepcopy(smollm_tokenizer)
    tokenizer.chat_template = None
    processor = AudioLlmProcessor(extractor, tokenizer)
    assert processor.chat_template == DEFAULT_CHAT_TEMPLATE
    messages = [
        {"role": "user", "content": [{"type": "audio", "audio": clips[0]}]},
        {"role": "assistant", "content": "two words"},
    ]
    batch = encode(processor, messages, return_labels=True)
    assert learned_texts(processor, batch["input_ids"][0], batch["labels"][0]) == [" two words<|im_end|>"]
    assert processor.apply_chat_template(messages[:1], add_generation_prompt=True) == "user: <audio>\nassistant:"


def test_a_tokenizer_with_several_templates_takes_a_name(extractor, smollm_tokenizer):
    tokenizer = copy.deepcopy(smollm_tokenizer)
    tokenizer.chat_template = {"default": smollm_tokenizer.chat_template, "plain": DEFAULT_CHAT_TEMPLATE}
    processor = AudioLlmProcessor(extractor, tokenizer)
    messages = [{"role": "user", "content": "Hi"}]
    assert processor.apply_chat_template(messages).endswith("<|im_start|>user\nHi<|im_end|>\n")
    assert processor.apply_chat_template(messages, chat_template="plain") == "user: Hi\n"
    assert processor.apply_chat_template(messages, chat_template="{{ messages[0]['content'] }}!") == "Hi!"


def test_an_answer_may_be_empty(processor):
    messages = [{"role": "user", "content": "Say nothing."}, {"role": "assistant", "content": ""}]
    batch = encode(processor, messages, return_labels=True)
    assert learned_texts(processor, batch["input_ids"][0], batch["labels"][0]) == ["<|im_end|>"]


def test_a_recording_in_an_answer_is_not_learned(processor, clips):
    spoken = [
        {"type": "text", "text": "Listen: "},
        {"type": "audio", "audio": clips[0]},
        {"type": "text", "text": "!"},
    ]
    messages = [{"role": "user", "content": "Sing."}, {"role": "assistant", "content": spoken}]
    batch = encode(processor, messages, return_labels=True)
    assert learned_texts(processor, batch["input_ids"][0], batch["labels"][0]) == ["Listen: ", "!<|im_end|>"]


def test_a_template_that_hides_an_answer_is_refused(processor):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    with pytest.raises(ConversationError, match=r"does not show message 1 \(assistant\)"):
        processor.apply_chat_template(messages, chat_template="{{ messages[0]['content'] }}")


def test_a_template_that_loses_a_recording_is_refused(processor, clips):
    messages = [{"role": "user", "content": [{"type": "audio", "audio": clips[0]}]}]
    with pytest.raises(ConversationError, match=r"The conversation has 1 recordings, but its rendered text has 0"):
        processor.apply_chat_template(messages, chat_template="{{ messages[0]['role'] }}", tokenize=True)


# ---- the ways to pass recordings -------------------------------------------------------------------------------------


def test_recordings_come_typed_or_beside_the_text(processor, clips, tmp_path):
    path = tmp_path / "a clip.wav"
    soundfile.write(path, clips[0], 16_000, subtype="FLOAT")
    question = {"type": "text", "text": "What is this?"}
    ways = [{"audio": clips[0]}, {"path": str(path)}, {"path": path}, {"url": path.as_uri()}]
    ways += [{"audio": {"array": clips[0], "sampling_rate": 16_000}}, {"audio": path.read_bytes(), "text": None}]
    typed = [[{"role": "user", "content": [{"type": "audio", **way}, question]}] for way in ways]
    expected = encode(processor, [{"role": "user", "content": "<audio>What is this?"}], audio=clips[0])
    for messages in typed:
        found = encode(processor, messages)
        assert found["input_ids"] == expected["input_ids"]
        assert found["input_features"].equal(expected["input_features"])
    in_a_batch = processor.apply_chat_template(typed, tokenize=True)
    assert in_a_batch["input_ids"].tolist() == expected["input_ids"] * len(typed)


def real_frames(batch: dict[str, Any]) -> list[torch.Tensor]:
    """Each window's log-mel frames without padding."""
    return [f[:, mask.bool()] for f, mask in zip(batch["input_features"], batch["input_features_mask"])]


def test_a_batch_is_its_rows(processor, clips):
    long, short = conversation(clips, system=True), [{"role": "user", "content": "No sound here."}]
    third = [
        {"role": "user", "content": [{"type": "audio", "audio": clips[1]}]},
        {"role": "assistant", "content": "A"},
    ]
    for side in ("left", "right"):
        batch = processor.apply_chat_template(
            [long, short, third], tokenize=True, return_labels=True, padding_side=side
        )
        windows = []
        for row, messages in enumerate((long, short, third)):
            alone = encode(processor, messages, return_labels=True)
            real = batch["attention_mask"][row].bool()
            assert batch["input_ids"][row][real].tolist() == alone["input_ids"][0]
            assert batch["labels"][row][real].tolist() == alone["labels"][0]
            assert (batch["labels"][row][~real] == IGNORED_LABEL).all()
            assert bool(real[-1 if side == "left" else 0])
            if "input_features" in alone:
                windows += real_frames(alone)
        for found, window in zip(real_frames(batch), windows, strict=True):
            assert found.equal(window)
    with pytest.raises(ValueError, match="are of different lengths; pass padding=True"):
        processor.apply_chat_template([long, short], tokenize=True, padding=False)


def test_features_are_left_out_on_request(processor, clips):
    messages = [{"role": "user", "content": [{"type": "audio", "audio": clips[0]}]}]
    whole = processor.apply_chat_template(messages, tokenize=True)
    bare = processor.apply_chat_template(messages, tokenize=True, return_features=False)
    assert set(whole) - set(bare) == {"input_features", "input_features_mask"}
    assert bare["input_ids"].tolist() == whole["input_ids"].tolist()


def test_options_in_the_way_of_transformers_pipelines(processor, clips):
    messages = [[{"role": "user", "content": [{"type": "audio", "audio": clip}]}] for clip in clips[:2]]
    options = {"sampling_rate": 8000, "padding_side": "right", "return_tensors": None}
    expected = processor.apply_chat_template(messages, tokenize=True, **options)
    found = processor.apply_chat_template(messages, tokenize=True, processor_kwargs=options)
    assert found["input_ids"] == expected["input_ids"] and found["attention_mask"] == expected["attention_mask"]
    unpadded = processor.apply_chat_template(
        messages, tokenize=True, processor_kwargs={"padding": False, "return_tensors": None}
    )
    assert len(unpadded["input_ids"][0]) != len(unpadded["input_ids"][1])
    with pytest.raises(TypeError, match="rate"):
        processor.apply_chat_template(messages, tokenize=True, processor_kwargs={"rate": 8000})


def test_ids_alone_and_text_alone(processor, clips):
    messages = conversation(clips, system=False)
    whole = processor.apply_chat_template(messages, tokenize=True)
    assert "labels" not in whole
    assert processor.apply_chat_template(messages, tokenize=True, return_dict=False).equal(whole["input_ids"])
    assert processor.apply_chat_template([messages, messages]) == [processor.apply_chat_template(messages)] * 2
    assert processor.apply_chat_template(messages).count("<audio>") == 3


# ---- malformed conversations -----------------------------------------------------------------------------------------

CLIP = np.zeros(800, dtype=np.float32)
MALFORMED = {
    "empty": ([], "The conversation is empty"),
    "text": ("Hello", "The conversation is 'Hello'; expected a list of messages"),
    "one message": ({"role": "user", "content": "Hi"}, "expected a list of messages"),
    "no role": ([{"content": "Hi"}], "Message 0 is .* expected a dict with 'role' and 'content'"),
    "no content": ([{"role": "user", "content": "Hi"}, {"role": "user"}], "Message 1 is"),
    "null content": ([{"role": "user", "content": None}], r"Message 0 \(user\): content is None"),
    "string message": (["Hi"], "Message 0 is 'Hi'"),
    "string part": ([{"role": "user", "content": ["Hi"]}], "Message 0, part 0: expected a dict of type"),
    "unknown type": ([{"role": "user", "content": [{"type": "video", "path": "x"}]}], "Message 0, part 0: .*video"),
    "no text": (
        [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text"}]}],
        "Message 0, part 1: a text part needs a string",
    ),
    "no source": (
        [{"role": "user", "content": [{"type": "audio"}]}],
        "Message 0, part 0: an audio part needs exactly",
    ),
    "two sources": (
        [{"role": "user", "content": [{"type": "audio", "path": "x", "audio": CLIP}]}],
        "Message 0, part 0: an audio part needs exactly one",
    ),
    "placeholder in a typed text": (
        [{"role": "user", "content": [{"type": "text", "text": "<audio>"}, {"type": "audio", "audio": CLIP}]}],
        "Message 0, part 0: the text contains <audio>",
    ),
    "placeholder without recording": (
        [{"role": "user", "content": "<audio>"}],
        "The conversation has 0 recordings, but its rendered text has 1 <audio>",
    ),
}


@pytest.mark.parametrize(("messages", "message"), MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_conversation_is_refused_by_message_and_part(processor, messages, message):
    with pytest.raises(ConversationError, match=message):
        processor.apply_chat_template(messages, tokenize=True)


def test_in_a_batch_the_conversation_is_named(processor):
    good = [{"role": "user", "content": "Hi"}]
    with pytest.raises(ConversationError, match=r"Conversation 1: Message 0, part 0: expected a dict"):
        processor.apply_chat_template([good, [{"role": "user", "content": [3]}]])


def test_recordings_typed_and_beside_the_text_are_refused(processor, clips):
    with pytest.raises(ConversationError, match="either as typed parts of the messages or as audio=, not both"):
        processor.apply_chat_template(conversation(clips, system=False), audio=clips[0], tokenize=True)


def test_counts_are_stated_when_recordings_beside_the_text_do_not_match(processor, clips):
    messages = [{"role": "user", "content": "<audio> and <audio>"}]
    with pytest.raises(ValueError, match=r"2 <audio> in all .* but 3 recordings are given"):
        processor.apply_chat_template(messages, audio=clips, tokenize=True)

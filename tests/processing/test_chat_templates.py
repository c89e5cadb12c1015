"""Conversations through the chat templates of many families: what is learned is what the assistant says, no more."""

import copy
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
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


PHI_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endofall|>")
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
    **dict.fromkeys(("phi3", "phi4mini"), Family(PHI_TOKENS, eos="<|endofall|>", end_of_turn="<|end|>")),
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


def as_text(part: str | dict[str, Any]) -> str:
    return part if isinstance(part, str) else part.get("text", "<audio>")


@pytest.mark.parametrize("system", [True, False], ids=["system", "no system"])
def test_only_the_assistant_is_learned(family, clips, system):
    processor, shape = family
    messages = conversation(clips, system and shape.has_system)
    batch = encode(processor, messages, output_labels=True, return_assistant_tokens_mask=True)
    ids, labels = batch["input_ids"][0], batch["labels"][0]
    assert batch["assistant_masks"] == [[int(label != IGNORED_LABEL) for label in labels]]
    opening_of_last = shape.opening if shape.opening_of_last is None else shape.opening_of_last
    first, last = learned_texts(processor, ids, labels)
    assert first.removeprefix(shape.opening) == ANSWERS[0] + shape.end_of_turn
    assert last == opening_of_last + ANSWERS[1] + shape.end_of_turn
    assert ids.count(processor.audio_token_id) == 2 + 5 + 7
    # The prompt of inference begins the training ids, up to what is learned.
    prompt = encode(processor, messages[:-1], add_generation_prompt=True)
    length = len(prompt["input_ids"][0])
    assert ids[:length] == prompt["input_ids"][0] and labels[length] != IGNORED_LABEL
    assert batch["input_features"].equal(prompt["input_features"])
    # The text is the template's own.
    contents = ["".join(map(as_text, m["content"])) for m in messages]
    strings = [{**message, "content": content} for message, content in zip(messages, contents)]
    expected = processor.tokenizer.apply_chat_template(strings, tokenize=False)
    assert processor.apply_chat_template(messages) == expected
    # An open turn is continued where it stops.
    messages[-1] = {"role": "assistant", "content": "It says that"}
    assert processor.apply_chat_template(messages, continue_final_message=True).endswith("It says that")
    begun = encode(processor, messages, continue_final_message=True)["input_ids"][0]
    assert encode(processor, messages)["input_ids"][0][: len(begun)] == begun


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


def test_a_tokenizer_without_chat_template_or_with_several(extractor, smollm_tokenizer, clips):
    tokenizer = copy.deepcopy(smollm_tokenizer)
    tokenizer.chat_template = None
    processor = AudioLlmProcessor(extractor, tokenizer)
    assert processor.chat_template == DEFAULT_CHAT_TEMPLATE
    heard = {"role": "user", "content": [{"type": "audio", "audio": clips[0]}]}
    messages = [heard, {"role": "assistant", "content": "two words"}]
    batch = encode(processor, messages, return_labels=True)
    assert learned_texts(processor, batch["input_ids"][0], batch["labels"][0]) == [" two words<|im_end|>"]
    assert processor.apply_chat_template(messages[:1], add_generation_prompt=True) == "user: <audio>\nassistant:"
    tokenizer.chat_template = {"default": smollm_tokenizer.chat_template, "plain": DEFAULT_CHAT_TEMPLATE}
    processor, messages = AudioLlmProcessor(extractor, tokenizer), [{"role": "user", "content": "Hi"}]
    assert processor.apply_chat_template(messages).endswith("<|im_start|>user\nHi<|im_end|>\n")
    assert processor.apply_chat_template(messages, chat_template="plain") == "user: Hi\n"
    template = "{{ messages[0]['content'] }}{{ end }}"
    assert processor.apply_chat_template(messages, chat_template=template, end="!") == "Hi!"


def test_an_answer_may_be_empty_or_hold_a_recording(processor, clips):
    spoken = [
        {"type": "text", "text": "Listen: "},
        {"type": "audio", "audio": clips[0]},
        {"type": "text", "text": "!"},
    ]
    for content, learned in (("", ["<|im_end|>"]), (spoken, ["Listen: ", "!<|im_end|>"])):
        messages = [{"role": "user", "content": "Sing."}, {"role": "assistant", "content": content}]
        batch = encode(processor, messages, return_labels=True)
        assert learned_texts(processor, batch["input_ids"][0], batch["labels"][0]) == learned


def test_a_template_that_hides_an_answer_or_a_recording_is_refused(processor, clips):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    with pytest.raises(ConversationError, match=r"does not show message 1 \(assistant\)"):
        processor.apply_chat_template(messages, chat_template="{{ messages[0]['content'] }}")
    messages = [{"role": "user", "content": [{"type": "audio", "audio": clips[0]}]}]
    with pytest.raises(ConversationError, match=r"The conversation has 1 recordings, but its rendered text has 0"):
        processor.apply_chat_template(messages, chat_template="{{ messages[0]['role'] }}", tokenize=True)


# ---- the ways to pass recordings -------------------------------------------------------------------------------------


def real_frames(batch: dict[str, Any]) -> list[torch.Tensor]:
    """Each window's log-mel frames without padding."""
    return [f[:, mask.bool()] for f, mask in zip(batch["input_features"], batch["input_features_mask"])]


def test_a_batch_is_its_rows(processor, clips):
    long, short = conversation(clips, system=True), [{"role": "user", "content": "No sound here."}]
    heard = {"role": "user", "content": [{"type": "audio", "audio": clips[1]}]}
    third = [heard, {"role": "assistant", "content": "A"}]
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
    by_default = processor.apply_chat_template([long, short], tokenize=True)
    bare = processor.apply_chat_template([long, short], tokenize=True, return_features=False)
    assert "labels" not in by_default
    assert set(by_default) - set(bare) == {"input_features", "input_features_mask"}
    ids = processor.apply_chat_template([long, short], tokenize=True, return_dict=False)
    assert ids.equal(by_default["input_ids"]) and ids.equal(bare["input_ids"])
    assert processor.apply_chat_template([long, long]) == [processor.apply_chat_template(long)] * 2
    labelled = [{"return_labels": True}, {"output_labels": True}, {"processor_kwargs": {"output_labels": True}}]
    assert [encode(processor, third, **options)["labels"] for options in labelled] == [alone["labels"]] * 3


# ---- malformed conversations -----------------------------------------------------------------------------------------


def asked(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


CLIP = np.zeros(800, dtype=np.float32)
TWO_SOURCES = {"type": "audio", "path": "x", "audio": CLIP}
MALFORMED = {
    "empty": ([], "The conversation is empty"),
    "text": ("Hello", "The conversation is 'Hello'; expected a list of messages"),
    "no role": ([{"content": "Hi"}], "Message 0 is .* expected a dict with 'role' and 'content'"),
    "no content": ([{"role": "user", "content": "Hi"}, {"role": "user"}], "Message 1 is"),
    "null content": (asked(None), r"Message 0 \(user\): content is None"),
    "unknown type": (asked([{"type": "video", "path": "x"}]), "Message 0, part 0: .*video"),
    "no text": (
        asked([{"type": "text", "text": "a"}, {"type": "text"}]),
        "Message 0, part 1: a text part needs a string",
    ),
    "no source": (asked([{"type": "audio"}]), "Message 0, part 0: an audio part needs exactly"),
    "two sources": (asked([TWO_SOURCES]), "Message 0, part 0: an audio part needs exactly one"),
    "placeholder in a text": (
        asked([{"type": "text", "text": "<audio>"}]),
        "Message 0, part 0: the text contains <audio>",
    ),
    "placeholder alone": (asked("<audio>"), "The conversation has 0 recordings, but its rendered text has 1 <audio>"),
}


@pytest.mark.parametrize(("messages", "message"), MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_conversation_is_refused_by_message_and_part(processor, messages, message):
    with pytest.raises(ConversationError, match=message):
        processor.apply_chat_template(messages, tokenize=True)
    if messages and isinstance(messages, list):
        with pytest.raises(ConversationError, match=f"^Conversation 1.*{message.removeprefix('The conversation')}"):
            processor.apply_chat_template([[{"role": "user", "content": "Hi"}], messages], tokenize=True)

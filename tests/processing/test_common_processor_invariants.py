"""Invariants of transformers' common processor tests, and the errors where they do not hold."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from audiollm import AudioLlmProcessor
from transformers import AutoTokenizer, WhisperFeatureExtractor

RATE_HZ = 16_000
IGNORED = -100
TEXTS = ["lower newer <audio>", " <audio> upper older longer string", "lower newer <audio>"]
GENERATION_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'assistant' %}"
    "{{ '<|im_start|>' + message['content'] + '<|im_end|>' }}{% else %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def waveform() -> np.ndarray:
    """One second, which is 13 audio tokens of 80 ms."""
    return 0.1 * np.random.default_rng(0).standard_normal(RATE_HZ).astype(np.float32)


@pytest.fixture(scope="module")
def saved(tiny_processor, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("processor")
    tiny_processor.save_pretrained(folder)
    return folder


def user(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def spoken(audio: Any, source: str = "audio") -> dict[str, Any]:
    return {"type": "audio", source: audio}


def equal(one, other) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


# ---- saved and loaded ------------------------------------------------------------------------------------------------


def test_arguments_and_parts_at_loading_come_first(tiny_processor, saved) -> None:
    extractor, tokenizer = WhisperFeatureExtractor(dither=0.5), copy.deepcopy(tiny_processor.tokenizer)
    tokenizer.is_override = True
    loaded = AudioLlmProcessor.from_pretrained(
        saved, stack_factor=8, chat_template="{{ messages }}", feature_extractor=extractor, tokenizer=tokenizer
    )
    assert (loaded.stack_factor, loaded.chat_template) == (8, "{{ messages }}")
    assert loaded.feature_extractor.dither == 0.5 and loaded.tokenizer.is_override
    assert AudioLlmProcessor.from_pretrained(saved, padding_side="right").tokenizer.padding_side == "right"


def test_chat_templates_are_saved(tiny_processor, tmp_path: Path) -> None:
    for name, template in (("one", "{{ messages }}"), ("several", {"default": "a", "other": "b"})):
        processor = copy.deepcopy(tiny_processor)
        processor.chat_template = template
        processor.save_pretrained(tmp_path / name)
        assert (tmp_path / name / "chat_template.jinja").is_file()
        assert AudioLlmProcessor.from_pretrained(tmp_path / name).chat_template == template


# ---- a call ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["max_lenght", "output_labels"])
def test_an_unknown_option_is_named(tiny_processor, waveform, name: str) -> None:
    chat = user(spoken(waveform))
    for options in ({name: 1}, {"text_kwargs": {name: 1}}, {"audio_kwargs": {name: 1}}, {"common_kwargs": {name: 1}}):
        with pytest.raises(TypeError, match=name):
            tiny_processor("<audio>", audio=waveform, **options)
        if name == "output_labels" and name in options:
            continue  # an option of conversations
        with pytest.raises(TypeError, match=name):
            tiny_processor.apply_chat_template(chat, tokenize=True, **options)
        with pytest.raises(TypeError, match=name):
            tiny_processor.apply_chat_template(chat, tokenize=True, processor_kwargs=options)


def test_options_in_groups(tiny_processor, waveform) -> None:
    expected = tiny_processor(
        TEXTS, audio=[waveform] * 3, padding="max_length", max_length=76, sampling_rate=8000, padding_side="right"
    )
    groups = {
        "text_kwargs": {"padding": "max_length", "max_length": 76},
        "audio_kwargs": {"sampling_rate": 8000},
        "common_kwargs": {"padding_side": "right", "return_tensors": "pt"},
    }
    assert equal(tiny_processor(TEXTS, audio=[waveform] * 3, **groups), expected)
    chats = [user({"type": "text", "text": "Hi"}), user(spoken(waveform))]
    flat = {name: value for group in groups.values() for name, value in group.items()}
    flat["max_length"] = groups["text_kwargs"]["max_length"] = 100
    apply = tiny_processor.apply_chat_template
    assert equal(apply(chats, tokenize=True, **groups), apply(chats, tokenize=True, **flat))
    assert equal(apply(chats, tokenize=True, processor_kwargs=groups), apply(chats, tokenize=True, **flat))
    with pytest.raises(ValueError, match=r"padding was passed two times"):
        tiny_processor(TEXTS, audio=[waveform] * 3, padding=True, text_kwargs={"padding": False})


def test_a_tokenizers_own_options_are_defaults(tiny_processor, saved) -> None:
    tokenizer = AutoTokenizer.from_pretrained(saved, padding="max_length", max_length=50, padding_side="right")
    processor = AudioLlmProcessor(tiny_processor.feature_extractor, tokenizer, text_vocab_size=128)
    assert processor("text")["input_ids"].shape == (1, 50) and processor("text")["attention_mask"][0, 0] == 0
    assert processor("text", padding=False)["input_ids"].shape == (1, 4)


def test_kinds_of_tensors(tiny_processor, waveform) -> None:
    tensors = tiny_processor(TEXTS, audio=[waveform] * 3)
    arrays = tiny_processor(TEXTS, audio=[waveform] * 3, return_tensors="np")
    assert all(isinstance(value, np.ndarray) for value in arrays.values()) and list(arrays) == list(tensors)
    assert all(np.array_equal(arrays[name], tensors[name].numpy()) for name in tensors)
    chat = [*user(spoken(waveform)), {"role": "assistant", "content": "Yes."}]
    chats = tiny_processor.apply_chat_template(chat, tokenize=True, output_labels=True, return_tensors="np")
    assert all(isinstance(value, np.ndarray) for value in chats.values()) and "labels" in chats
    lists = tiny_processor("<audio>", audio=waveform, return_tensors=None)
    assert isinstance(lists["input_ids"], list) and isinstance(lists["attention_mask"], list)
    with pytest.raises(ValueError, match=r"'tf'"):
        tiny_processor("<audio>", audio=waveform, return_tensors="tf")


# ---- chats -----------------------------------------------------------------------------------------------------------


def test_a_recording_in_every_form(tiny_processor, waveform, tmp_path: Path) -> None:
    path = tmp_path / "a recording.wav"
    soundfile.write(path, waveform, RATE_HZ, subtype="FLOAT")
    expected = tiny_processor.apply_chat_template(user(spoken(waveform)), tokenize=True)
    forms = [
        spoken(str(path), "path"),
        spoken(path.as_uri(), "url"),
        spoken(str(path), "url"),
        spoken(path.read_bytes()),
        spoken({"array": waveform, "sampling_rate": RATE_HZ}),
        spoken(torch.from_numpy(waveform)),
    ]
    for form in forms:
        assert equal(tiny_processor.apply_chat_template(user(form), tokenize=True), expected)


def test_a_template_for_typed_parts_gets_them(tiny_processor, waveform) -> None:
    """Templates of models that listen or see by themselves show no strings."""
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ': ' }}{% for part in m['content'] %}"
        "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant: ' }}{% endif %}"
    )
    chat = [*user({"type": "text", "text": "Hi "}, spoken(waveform)), {"role": "assistant", "content": "Yes."}]
    text = tiny_processor.apply_chat_template(chat, chat_template=template)
    assert text == "<|im_start|>user: Hi <audio><|im_end|><|im_start|>assistant: Yes.<|im_end|>"
    out = tiny_processor.apply_chat_template(chat, chat_template=template, tokenize=True, output_labels=True)
    assert tiny_processor.decode(out["labels"][0][out["labels"][0] != IGNORED]) == "Yes.<|im_end|>"


@pytest.mark.parametrize("beside", [[], [{"type": "text", "text": " and this "}]], ids=["alone", "with-text"])
def test_a_placeholder_for_a_recording_beside_the_chat(tiny_processor, waveform, beside) -> None:
    chat, given = user({"type": "audio"}, *beside), user(spoken(waveform), *beside)
    apply = tiny_processor.apply_chat_template
    assert equal(apply(chat, audio=waveform, tokenize=True), apply(given, tokenize=True))
    assert equal(apply([chat, chat], audio=[waveform] * 2, tokenize=True), apply([given, given], tokenize=True))
    assert equal(apply([chat, chat], audio=[[waveform]] * 2, tokenize=True), apply([given, given], tokenize=True))
    assert apply(chat) == apply(given)
    with pytest.raises(ValueError, match=r"Message 0, part 0: an audio part needs exactly one of"):
        apply(chat, tokenize=True)
    with pytest.raises(ValueError, match=r"1 <audio> in all .* but 2 recordings"):
        apply(chat, audio=[waveform] * 2, tokenize=True)
    with pytest.raises(ValueError, match=r"not both"):
        apply(user({"type": "audio"}, spoken(waveform)), audio=[waveform], tokenize=True)


def test_a_request_for_a_transcript(tiny_processor, waveform) -> None:
    request = tiny_processor.apply_transcription_request
    chat = [{"role": "user", "content": "<audio>\nTranscribe the speech."}]
    expected = tiny_processor.apply_chat_template(
        [chat] * 2, audio=[waveform] * 2, tokenize=True, add_generation_prompt=True
    )
    assert equal(request([waveform] * 2), expected)
    (text,) = request(waveform, tokenize=False)
    assert text == tiny_processor.apply_chat_template(chat, add_generation_prompt=True)
    for language in ("de", "German", "german"):
        (text,) = request(waveform, language=language, tokenize=False)
        assert "Transcribe the speech. The language is German." in text
    texts = request([waveform] * 2, prompt=["Write it down.", None], language=[None, "Finnish"], tokenize=False)
    assert "\nWrite it down.<|im_end|>" in texts[0] and "speech. The language is Finnish." in texts[1]
    right = request([waveform, waveform[:800]], processor_kwargs={"padding_side": "right"})
    assert right["attention_mask"][1, -1] == 0
    for wrong in ({"audio": []}, {"audio": [waveform], "prompt": ["a", "b"]}, {"audio": waveform, "language": [1]}):
        with pytest.raises(ValueError, match=r"at least one|for 1 recordings"):
            request(**wrong)
    with pytest.raises(TypeError, match="languages"):
        request(waveform, languages="de")


def test_audio_tokens_are_counted_and_marked_as_engines_ask(tiny_processor, waveform) -> None:
    """Questions of vLLM's Transformers backend to a processor: where the audio of a row lies, and how long it will be."""
    assert tiny_processor.audio_token == "<audio>" and tiny_processor.feature_extractor.sampling_rate == 16_000
    rows, recordings = ["Is <audio> like <audio>?", "No <audio>."], [waveform, waveform[:800], waveform]
    batch = tiny_processor(text=rows, audio=recordings, padding=True, return_mm_token_type_ids=True)
    is_slot = batch["input_ids"] == tiny_processor.audio_token_id
    assert torch.equal(batch["mm_token_type_ids"] > 0, is_slot) and not is_slot.all(dim=1).any()
    counts = tiny_processor._get_num_multimodal_tokens(audio_lengths=list(map(len, recordings)))["num_audio_tokens"]
    assert is_slot.sum(dim=1).tolist() == [counts[0] + counts[1], counts[2]]
    assert "mm_token_type_ids" not in tiny_processor(text=rows, audio=recordings, padding=True)


def test_a_template_with_generation_tags_says_what_is_learned(tiny_processor, waveform) -> None:
    chat = [
        *user({"type": "text", "text": "The capital of France? "}, spoken(waveform)),
        {"role": "assistant", "content": "It is Paris."},
        *user({"type": "text", "text": "Of Italy?"}),
        {"role": "assistant", "content": "It is Rome."},
    ]
    options = {"tokenize": True, "chat_template": GENERATION_TEMPLATE, "return_assistant_tokens_mask": True}
    out = tiny_processor.apply_chat_template([chat, chat[:2]], **options, return_labels=True)
    mask = out["assistant_masks"].bool()
    said = [tiny_processor.decode(row[kept]) for row, kept in zip(out["input_ids"], mask)]
    assert said == ["It is Paris.<|im_end|>It is Rome.<|im_end|>", "It is Paris.<|im_end|>"]
    assert torch.equal(mask, out["labels"] != IGNORED)
    for wrong in ({"tokenize": False}, {"return_dict": False}):
        with pytest.raises(ValueError, match=r"return_assistant_tokens_mask needs tokenize=True and return_dict=True"):
            tiny_processor.apply_chat_template(chat, **{**options, **wrong})

"""Text, recordings and chats in, ids and features out: order, padding, ids, counts, options, and saving."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from audiollm import AudioLlmConfig, AudioLlmProcessor
from audiollm.processing.conversations import AUDIO_SLOT_TOKEN
from tiny_models import TEXT_VOCAB_SIZE, character_tokenizer, llama_config
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoProcessor, AutoTokenizer, PreTrainedTokenizerFast, WhisperFeatureExtractor

RATE_HZ = 16_000
IGNORED = -100
TEXTS = ["lower newer <audio>", " <audio> upper older longer string", "lower newer <audio>"]
GENERATION_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'assistant' %}"
    "{{ '<|im_start|>' + message['content'] + '<|im_end|>' }}{% else %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% endif %}{% endfor %}"
)
PARTS_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ': ' }}{% for part in m['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant: ' }}{% endif %}"
)


@pytest.fixture(scope="module")
def waveform() -> np.ndarray:
    """One second, which is 13 audio tokens of 80 ms."""
    return 0.1 * np.random.default_rng(0).standard_normal(RATE_HZ).astype(np.float32)


def expand(text: str, *slots: int) -> str:
    """`text` as the tokenizer sees it, each `<audio>` with so many slots."""
    for count in slots:
        text = text.replace("<audio>", f"<AUDIO>{AUDIO_SLOT_TOKEN * count}</audio>", 1)
    return text.replace("<AUDIO>", "<audio>")


def user(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def spoken(audio: Any, source: str = "audio") -> dict[str, Any]:
    return {"type": "audio", source: audio}


def equal(one, other) -> bool:
    return set(one) == set(other) and all(one[name].equal(other[name]) for name in one)


# ---- text ------------------------------------------------------------------------------------------------------------


@pytest.mark.quick
def test_exact_ids_with_a_real_tokenizer(processor, smollm_tokenizer, clips):
    before, after = (smollm_tokenizer(text)["input_ids"] for text in ("What is said? ", "\nAnswer:"))
    base = len(smollm_tokenizer)
    batch = processor(text="What is said? <audio>\nAnswer:", audio=clips[0])
    assert batch["input_ids"].tolist() == [[*before, base, base + 1, base + 1, base + 2, *after]]
    assert batch["input_features"].shape == (1, 80, 10)
    assert set(batch) == {"input_ids", "attention_mask", "input_features", "input_features_mask"}
    texts = ["Hello there", ""]
    batch = processor(text=texts, padding_side="right")
    for row, mask, ids in zip(batch["input_ids"], batch["attention_mask"], smollm_tokenizer(texts)["input_ids"]):
        assert row[: len(ids)].tolist() == ids
        assert mask.tolist() == [1] * len(ids) + [0] * (len(row) - len(ids))
    assert set(batch) == {"input_ids", "attention_mask"}
    assert processor(text="")["input_ids"].dtype == batch["attention_mask"].dtype == torch.int64


def test_special_tokens_of_the_tokenizer_are_added_once_or_not_at_all(extractor):
    tokenizer = character_tokenizer()
    tokenizer.add_bos_token = True
    tokenizer.update_post_processor()
    processor = AudioLlmProcessor(extractor, tokenizer)
    clip = np.zeros(RATE_HZ, dtype=np.float32)
    for add, count in ((True, 1), (False, 0)):
        ids = processor(text="a<audio>b", audio=clip, add_special_tokens=add)["input_ids"][0].tolist()
        assert ids.count(tokenizer.bos_token_id) == count
        assert ids[count] == tokenizer.convert_tokens_to_ids("a")


@pytest.mark.quick
@pytest.mark.parametrize("side", ["left", "right"])
def test_mixed_rows_keep_text_and_recordings_in_order(processor, clips, side):
    texts = ["<audio> and then <audio>", "no sound", "Last: <audio>"]
    batch = processor(text=texts, audio=clips, padding_side=side)
    slots = [processor.num_audio_slots(len(clip)) for clip in clips]
    expected = [expand(texts[0], *slots[:2]), texts[1], expand(texts[2], slots[2])]
    for row, mask, text in zip(batch["input_ids"], batch["attention_mask"].bool(), expected):
        assert row[mask].tolist() == processor.tokenizer(text)["input_ids"]
        assert (row[~mask] == processor.tokenizer.pad_token_id).all()
        assert bool(mask[-1 if side == "left" else 0])
    for clip, window, mask in zip(clips, batch["input_features"], batch["input_features_mask"].bool(), strict=True):
        assert window[:, mask].equal(torch.from_numpy(processor.extract_features(clip)[0]))
        assert (window[:, ~mask] == 0).all()
    assert equal(processor(text=texts, audio=[clips[:2], [], clips[2:]], padding_side=side), batch)


def test_one_recording_needs_no_list(processor, clips):
    alone = processor(text="<audio>", audio=clips[0])
    for audio in ([clips[0]], [[clips[0]]], clips[0].tolist(), [clips[0].tolist()], torch.tensor(clips[0])):
        for text in ("<audio>", ["<audio>"]):
            assert equal(processor(text=text, audio=audio), alone)
    features = processor(audio=clips)
    assert set(features) == {"input_features", "input_features_mask"}
    assert features["input_features_mask"].sum(dim=1).tolist() == [10, 33, 50]
    # A rate is for bare waveforms.
    doubled = np.repeat(clips[2], 2)
    at_32_khz = processor(text="<audio>", audio=doubled, sampling_rate=32_000)
    assert at_32_khz["input_ids"].equal(processor(text="<audio>", audio=clips[2])["input_ids"])
    in_a_dict = {"array": clips[2], "sampling_rate": RATE_HZ}
    batch = processor(text="<audio>", audio=in_a_dict, sampling_rate=32_000)
    assert batch["input_features"].equal(processor(audio=clips[2])["input_features"])


def metaspace_tokenizer(scheme: str) -> PreTrainedTokenizerFast:
    """One token per character, as SentencePiece models write blanks; `scheme` says where one is put before a text."""
    vocabulary = {token: index for index, token in enumerate(["<unk>", "</s>", "▁", *"abcdehlnorswy:.\n?"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")


@pytest.mark.parametrize("scheme", ["never", "first"])
def test_a_conversation_has_the_ids_of_its_whole_text(extractor, scheme):
    """Turns are tokenized by themselves, but no tokenizer may take the middle of a text for its beginning."""
    processor = AudioLlmProcessor(extractor, metaspace_tokenizer(scheme))
    messages = [{"role": "user", "content": "a yes?"}, {"role": "assistant", "content": "no"}] * 2
    text = processor.apply_chat_template(messages)
    encoded = processor.apply_chat_template(messages, tokenize=True)
    assert encoded["input_ids"][0].tolist() == processor.tokenizer(text)["input_ids"]


# ---- options ----------------------------------------------------------------------------------------------------------


def test_an_unknown_option_is_named(tiny_processor, waveform) -> None:
    chat = {"conversation": user(spoken(waveform)), "tokenize": True}
    for group in (None, "text_kwargs", "audio_kwargs", "common_kwargs"):
        options = {group: {"max_lenght": 1}} if group else {"max_lenght": 1}
        for given in (options, {"processor_kwargs": options}):
            with pytest.raises(TypeError, match="max_lenght"):
                tiny_processor.apply_chat_template(**chat, **given)
        with pytest.raises(TypeError, match="max_lenght"):
            tiny_processor("<audio>", audio=waveform, **options)
    with pytest.raises(TypeError, match="output_labels"):  # an option of conversations
        tiny_processor("<audio>", audio=waveform, output_labels=True)


def test_options_in_groups(tiny_processor, waveform) -> None:
    groups = {
        "text_kwargs": {"padding": "max_length", "max_length": 100},
        "audio_kwargs": {"sampling_rate": 8000},
        "common_kwargs": {"padding_side": "right", "return_tensors": "pt"},
    }
    flat = {name: value for group in groups.values() for name, value in group.items()}
    given = {"text": TEXTS, "audio": [waveform] * 3}
    assert equal(tiny_processor(**given, **groups), tiny_processor(**given, **flat))
    chats = [user({"type": "text", "text": "Hi"}), user(spoken(waveform))]
    expected = tiny_processor.apply_chat_template(chats, tokenize=True, **flat)
    for options in (groups, {"processor_kwargs": groups}):
        assert equal(tiny_processor.apply_chat_template(chats, tokenize=True, **options), expected)
    texts = ["one", "one two three four"]
    assert tiny_processor(text=texts, pad_to_multiple_of=8)["input_ids"].shape == (2, 24)
    with pytest.raises(ValueError, match="rows of input_ids are of different lengths; pass padding=True"):
        tiny_processor(text=texts, padding=False)
    with pytest.raises(ValueError, match=r"padding is True, but False in text_kwargs"):
        tiny_processor(**given, padding=True, text_kwargs={"padding": False})


def test_a_tokenizers_own_options_are_defaults(tiny_processor, tmp_path) -> None:
    tiny_processor.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, padding="max_length", max_length=50, padding_side="right")
    processor = AudioLlmProcessor(tiny_processor.feature_extractor, tokenizer, text_vocab_size=128)
    assert processor("text")["input_ids"].shape == (1, 50) and processor("text")["attention_mask"][0, 0] == 0
    assert processor("text", padding=False)["input_ids"].shape == (1, 4)


def test_kinds_of_tensors(tiny_processor, waveform) -> None:
    tensors = tiny_processor(TEXTS, audio=[waveform] * 3)
    arrays = tiny_processor(TEXTS, audio=[waveform] * 3, return_tensors="np")
    chat = [*user(spoken(waveform)), {"role": "assistant", "content": "Yes."}]
    chats = tiny_processor.apply_chat_template(chat, tokenize=True, output_labels=True, return_tensors="np")
    assert all(isinstance(value, np.ndarray) for value in (*arrays.values(), *chats.values())) and "labels" in chats
    assert list(arrays) == list(tensors)
    assert all(np.array_equal(arrays[name], tensors[name].numpy()) for name in tensors)
    lists = tiny_processor("<audio>", audio=waveform, return_tensors=None)
    assert isinstance(lists["input_ids"], list) and isinstance(lists["attention_mask"], list)
    with pytest.raises(ValueError, match=r"'tf'"):
        tiny_processor("<audio>", audio=waveform, return_tensors="tf")


# ---- chats -----------------------------------------------------------------------------------------------------------


def test_a_recording_in_every_form(tiny_processor, waveform, tmp_path: Path) -> None:
    path = tmp_path / "a recording.wav"
    soundfile.write(path, waveform, RATE_HZ, subtype="FLOAT")
    expected = tiny_processor.apply_chat_template(user(spoken(waveform)), tokenize=True)
    in_dict = spoken({"array": waveform, "sampling_rate": RATE_HZ})
    urls = (spoken(path.as_uri(), "url"), spoken(str(path), "url"), spoken(str(path), "audio_url"))
    for form in (spoken(str(path), "path"), *urls, in_dict):
        assert equal(tiny_processor.apply_chat_template(user(form), tokenize=True), expected)


def test_a_template_for_typed_parts_gets_them(tiny_processor, waveform) -> None:
    """Templates of models that listen or see by themselves show no strings."""
    chat = [*user({"type": "text", "text": "Hi "}, spoken(waveform)), {"role": "assistant", "content": "Yes."}]
    text = tiny_processor.apply_chat_template(chat, chat_template=PARTS_TEMPLATE)
    assert text == "<|im_start|>user: Hi <audio><|im_end|><|im_start|>assistant: Yes.<|im_end|>"
    out = tiny_processor.apply_chat_template(chat, chat_template=PARTS_TEMPLATE, tokenize=True, output_labels=True)
    assert tiny_processor.decode(out["labels"][0][out["labels"][0] != IGNORED]) == "Yes.<|im_end|>"


def test_a_placeholder_for_a_recording_beside_the_chat(tiny_processor, waveform) -> None:
    beside = {"type": "text", "text": " and this "}
    chat, given = user({"type": "audio"}, beside), user(spoken(waveform), beside)
    apply = tiny_processor.apply_chat_template
    assert equal(apply(chat, audio=waveform, tokenize=True), apply(given, tokenize=True))
    for audio in ([waveform] * 2, [[waveform]] * 2):
        assert equal(apply([chat, chat], audio=audio, tokenize=True), apply([given, given], tokenize=True))
    assert apply(chat) == apply(given)
    for wrong, audio, words in (
        (chat, None, "Message 0, part 0: an audio part needs exactly one of"),
        (chat, [waveform] * 2, "1 <audio> in all .* but 2 recordings"),
        (user({"type": "audio"}, spoken(waveform)), [waveform], "not both"),
    ):
        with pytest.raises(ValueError, match=words):
            apply(wrong, audio=audio, tokenize=True)


def test_a_request_for_a_transcript(tiny_processor, waveform) -> None:
    request = tiny_processor.apply_transcription_request
    chat = [{"role": "user", "content": "<audio>\nTranscribe the speech."}]
    options = {"audio": [waveform] * 2, "tokenize": True, "add_generation_prompt": True}
    assert equal(request([waveform] * 2), tiny_processor.apply_chat_template([chat] * 2, **options))
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


# ---- ids past the vocabulary -----------------------------------------------------------------------------------------


def test_audio_ids_lie_past_a_padded_embedding_matrix(extractor):
    tokenizer, config = character_tokenizer(), AudioLlmConfig(text_config=llama_config())
    before = tokenizer.get_vocab(), tokenizer.pad_token
    processor = AudioLlmProcessor(extractor, tokenizer, text_vocab_size=TEXT_VOCAB_SIZE)
    assert (tokenizer.get_vocab(), tokenizer.pad_token) == before  # the caller's stays as it is
    assert processor.tokenizer.pad_token == processor.tokenizer.eos_token
    assert len(character_tokenizer()) < TEXT_VOCAB_SIZE
    for offset, name in enumerate(("audio_begin_token_id", "audio_token_id", "audio_end_token_id")):
        assert getattr(processor, name) == getattr(config, name) == TEXT_VOCAB_SIZE + offset
    assert len(processor.tokenizer) == TEXT_VOCAB_SIZE + 3
    with pytest.raises(ValueError, match=f"has {len(tokenizer)} tokens, more than the language model's 50 embeddings"):
        AudioLlmProcessor(extractor, tokenizer, text_vocab_size=50)
    tokenizer.add_tokens(["<audio>"])
    with pytest.raises(ValueError, match=r"a meaning of its own for \['<audio>'\]"):
        AudioLlmProcessor(extractor, tokenizer)
    with pytest.raises(ValueError, match="stack_factor is 0; expected an integer of at least 1"):
        AudioLlmProcessor(extractor, character_tokenizer(), stack_factor=0)


def test_decoding_leaves_audio_out_on_request(processor, clips):
    ids = processor(text=["Say <audio> now", "Nothing"], audio=clips[0])["input_ids"]
    assert processor.batch_decode(ids, skip_special_tokens=True) == ["Say  now", "Nothing"]
    assert processor.decode(ids[0]) == expand("Say <audio> now", processor.num_audio_slots(len(clips[0])))


# ---- saving ----------------------------------------------------------------------------------------------------------


@pytest.mark.quick
def test_saving_twice_changes_nothing(processor, clips, tmp_path):
    several = {"default": "{{ messages[0]['content'] }}", "other": "{{ messages }}"}
    padded = AudioLlmProcessor(processor.feature_extractor, character_tokenizer(), 7, TEXT_VOCAB_SIZE, several)
    for number, original in enumerate((processor, padded)):
        first, second = tmp_path / f"{number} first", tmp_path / f"{number} second"
        original.save_pretrained(first)
        again = AudioLlmProcessor.from_pretrained(first)
        again.save_pretrained(second)
        for path in (path for path in first.rglob("*") if path.is_file()):
            # tokenizer_config.json also says where transformers loaded the tokenizer from.
            if path.name != "tokenizer_config.json":
                assert path.read_bytes() == (second / path.relative_to(first)).read_bytes(), path.name
        automatic = AutoProcessor.from_pretrained(second)
        assert type(automatic) is AudioLlmProcessor and (first / "chat_template.jinja").is_file()
        for loaded in (again, automatic):
            assert loaded.tokenizer.get_vocab() == original.tokenizer.get_vocab()
            assert loaded.audio_token_id == original.audio_token_id
            assert loaded.chat_template == original.chat_template
            texts = ["a <audio>", "b"]
            assert equal(loaded(text=texts, audio=clips[1]), original(text=texts, audio=clips[1]))


def test_arguments_and_parts_at_loading_come_first(tiny_processor, tmp_path) -> None:
    tiny_processor.save_pretrained(tmp_path)
    extractor, tokenizer = WhisperFeatureExtractor(dither=0.5), copy.deepcopy(tiny_processor.tokenizer)
    tokenizer.is_override = True
    parts = {"feature_extractor": extractor, "tokenizer": tokenizer, "chat_template": "{{ messages }}"}
    loaded = AudioLlmProcessor.from_pretrained(tmp_path, stack_factor=8, **parts)
    assert (loaded.stack_factor, loaded.chat_template) == (8, "{{ messages }}")
    assert loaded.feature_extractor.dither == 0.5 and loaded.tokenizer.is_override
    assert AudioLlmProcessor.from_pretrained(tmp_path, padding_side="right").tokenizer.padding_side == "right"


def test_bases_are_composed_from_folders_and_from_embedded_ids(tiny_bases, real_bases, clips):
    """(tests/modeling/test_common_invariants.py has bases that are not there.)"""
    tiny = AudioLlmProcessor.from_audio_text_pretrained(*tiny_bases, stack_factor=2)
    assert (tiny.stack_factor, tiny.text_vocab_size) == (2, TEXT_VOCAB_SIZE)
    real = AudioLlmProcessor.from_audio_text_pretrained(*real_bases)
    assert real.audio_begin_token_id == real.text_vocab_size == 49_152
    assert real(text="<audio>", audio=clips[0])["input_ids"].shape == (1, 4)


# ---- what does not fit together --------------------------------------------------------------------------------------

CLIP = np.zeros(800, dtype=np.float32)
MISMATCHES = {
    "nothing": ({}, "Pass text, audio or both"),
    "ids instead of text": ({"text": [[1, 2]]}, "text must be a string or a non-empty list of strings"),
    "too few": ({"text": ["<audio><audio>", "<audio>"], "audio": [CLIP] * 2}, r"have 3 .*\(\[2, 1\] each\) but 2"),
    "lists for other texts": ({"text": ["<audio>"] * 2, "audio": [[CLIP]] * 3}, "lists for 3 texts, but there are 2"),
    "one list too long": (
        {"text": ["<audio>"] * 2, "audio": [[CLIP], [CLIP] * 2]},
        "Text 1 has 1 <audio> but is given 2",
    ),
    "truncation": ({"text": "It is Hi", "truncation": True, "max_length": 2}, "truncation to 2 could cut"),
    "one bad among good": (
        {"text": ["<audio>"] * 3, "audio": [CLIP, CLIP[:0], CLIP]},
        "audio 1: holds no samples",
    ),
    "images": ({"text": "Look", "images": "photo.png"}, "not images or videos"),
    "reserved token": ({"text": f"Hi {AUDIO_SLOT_TOKEN}"}, r"The text contains <\|audio_slot\|>"),
}


@pytest.mark.parametrize(("arguments", "message"), MISMATCHES.values(), ids=MISMATCHES.keys())
def test_what_does_not_fit_together_is_refused(processor, arguments, message):
    with pytest.raises(ValueError, match=message):
        processor(**arguments)

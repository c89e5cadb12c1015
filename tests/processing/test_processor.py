"""Text and recordings in, ids and features out: order, padding, ids, counts, and saving."""

import numpy as np
import pytest
import torch
from audiollm import AudioLlmConfig, AudioLlmProcessor
from audiollm.processing import AudioError
from audiollm.processing.conversations import AUDIO_SLOT_TOKEN
from tiny_models import TEXT_VOCAB_SIZE, character_tokenizer, llama_config
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoProcessor, PreTrainedTokenizerFast

RATE_HZ = 16_000


def expand(text: str, *slots: int) -> str:
    """`text` as the tokenizer sees it, each `<audio>` with so many slots."""
    for count in slots:
        text = text.replace("<audio>", f"<AUDIO>{AUDIO_SLOT_TOKEN * count}</audio>", 1)
    return text.replace("<AUDIO>", "<audio>")


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
    nested = processor(text=texts, audio=[clips[:2], [], clips[2:]], padding_side=side)
    assert all(nested[name].equal(batch[name]) for name in batch)


def test_one_recording_needs_no_list(processor, clips):
    alone = processor(text="<audio>", audio=clips[0])
    for audio in ([clips[0]], [[clips[0]]], clips[0].tolist(), [clips[0].tolist()], torch.tensor(clips[0])):
        listed = processor(text="<audio>", audio=audio)
        assert all(alone[name].equal(listed[name]) for name in alone)
        batched = processor(text=["<audio>"], audio=audio)
        assert all(alone[name].equal(batched[name]) for name in alone)
    features = processor(audio=clips)
    assert set(features) == {"input_features", "input_features_mask"}
    assert features["input_features_mask"].sum(dim=1).tolist() == [10, 33, 50]


def test_a_rate_is_for_bare_waveforms(processor, clips):
    doubled = np.repeat(clips[2], 2)
    at_32_khz = processor(text="<audio>", audio=doubled, sampling_rate=32_000)
    assert at_32_khz["input_ids"].equal(processor(text="<audio>", audio=clips[2])["input_ids"])
    in_a_dict = {"array": clips[2], "sampling_rate": RATE_HZ}
    batch = processor(text="<audio>", audio=in_a_dict, sampling_rate=32_000)
    assert batch["input_features"].equal(processor(audio=clips[2])["input_features"])


def test_padding_options(processor):
    texts = ["one", "one two three four"]
    assert processor(text=texts, padding="max_length", max_length=12)["input_ids"].shape == (2, 12)
    assert processor(text=texts, pad_to_multiple_of=8)["input_ids"].shape == (2, 8)
    with pytest.raises(ValueError, match="rows of input_ids are of different lengths; pass padding=True"):
        processor(text=texts, padding=False)


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


# ---- ids past the vocabulary -----------------------------------------------------------------------------------------


def test_audio_ids_lie_past_a_padded_embedding_matrix(extractor):
    tokenizer, config = character_tokenizer(), AudioLlmConfig(text_config=llama_config())
    before = tokenizer.get_vocab(), tokenizer.pad_token
    processor = AudioLlmProcessor(extractor, tokenizer, text_vocab_size=TEXT_VOCAB_SIZE)
    assert (tokenizer.get_vocab(), tokenizer.pad_token) == before  # the caller's stays as it is
    assert processor.tokenizer.pad_token == processor.tokenizer.eos_token
    assert len(character_tokenizer()) < TEXT_VOCAB_SIZE
    assert processor.audio_begin_token_id == config.audio_begin_token_id == TEXT_VOCAB_SIZE
    assert processor.audio_token_id == config.audio_token_id == TEXT_VOCAB_SIZE + 1
    assert processor.audio_end_token_id == config.audio_end_token_id == TEXT_VOCAB_SIZE + 2
    assert len(processor.tokenizer) == TEXT_VOCAB_SIZE + 3


def test_a_tokenizer_of_another_model_is_refused(extractor):
    tokenizer = character_tokenizer()
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
    slots = AUDIO_SLOT_TOKEN * processor.num_audio_slots(len(clips[0]))
    assert processor.decode(ids[0]) == f"Say <audio>{slots}</audio> now"


# ---- saving ----------------------------------------------------------------------------------------------------------


@pytest.mark.quick
def test_saving_twice_changes_nothing(processor, clips, tmp_path):
    template = "{{ messages[0]['content'] }}"
    padded = AudioLlmProcessor(
        processor.feature_extractor, character_tokenizer(), 7, TEXT_VOCAB_SIZE, chat_template=template
    )
    for number, original in enumerate((processor, padded)):
        first = tmp_path / f"{number} first"
        original.save_pretrained(first)
        again = AudioLlmProcessor.from_pretrained(first)
        again.save_pretrained(tmp_path / f"{number} second")
        for path in first.iterdir():
            # tokenizer_config.json also says where transformers loaded the tokenizer from.
            if path.name != "tokenizer_config.json":
                assert path.read_bytes() == (tmp_path / f"{number} second" / path.name).read_bytes(), path.name
        automatic = AutoProcessor.from_pretrained(tmp_path / f"{number} second")
        assert type(automatic) is AudioLlmProcessor
        for loaded in (again, automatic):
            assert loaded.tokenizer.get_vocab() == original.tokenizer.get_vocab()
            assert loaded.audio_token_id == original.audio_token_id
            assert loaded.chat_template == original.chat_template
            expected = original(text=["a <audio>", "b"], audio=clips[1])
            found = loaded(text=["a <audio>", "b"], audio=clips[1])
            assert all(found[name].equal(expected[name]) for name in expected)


def test_bases_are_composed_from_folders_and_from_embedded_ids(tiny_bases, real_bases, clips):
    tiny = AudioLlmProcessor.from_audio_text_pretrained(*tiny_bases, stack_factor=2)
    assert (tiny.stack_factor, tiny.text_vocab_size) == (2, TEXT_VOCAB_SIZE)
    real = AudioLlmProcessor.from_audio_text_pretrained(*real_bases)
    assert real.audio_begin_token_id == real.text_vocab_size == 49_152
    assert real(text="<audio>", audio=clips[0])["input_ids"].shape == (1, 4)


@pytest.mark.parametrize(("role", "order"), [("audio", 0), ("text", 1)])
def test_a_base_that_is_not_there_is_named(tiny_bases, role, order, monkeypatch, tmp_path):
    monkeypatch.setenv("AUDIOLLM_CACHE", str(tmp_path))
    for missing in ("pypi:whisper-huge", "./no such folder"):
        bases = list(tiny_bases)
        bases[order] = missing
        with pytest.raises(FileNotFoundError, match=f"The {role} base '{missing}' is not"):
            AudioLlmProcessor.from_audio_text_pretrained(*bases)


# ---- what does not fit together --------------------------------------------------------------------------------------

CLIP = np.zeros(800, dtype=np.float32)
MISMATCHES = {
    "nothing": ({}, "Pass text, audio or both"),
    "empty batch": ({"text": []}, "text must be a string or a non-empty list of strings"),
    "ids instead of text": ({"text": [[1, 2]]}, "text must be a string or a non-empty list of strings"),
    "no recording": ({"text": "<audio>"}, r"have 1 <audio> in all \(\[1\] each\) but 0 recordings"),
    "too few": ({"text": ["<audio><audio>", "<audio>"], "audio": [CLIP] * 2}, r"have 3 .*\(\[2, 1\] each\) but 2"),
    "lists for other texts": ({"text": ["<audio>"] * 2, "audio": [[CLIP]] * 3}, "lists for 3 texts, but there are 2"),
    "one list of another length": (
        {"text": ["<audio>", "<audio>"], "audio": [[CLIP], [CLIP, CLIP]]},
        "Text 1 has 1 <audio> but is given 2 recordings",
    ),
    "truncation": ({"text": "It is Hi", "truncation": True, "max_length": 2}, "truncation to 2 could cut"),
    "reserved token": ({"text": f"Hi {AUDIO_SLOT_TOKEN}"}, r"The text contains <\|audio_slot\|>"),
}


@pytest.mark.parametrize(("arguments", "message"), MISMATCHES.values(), ids=MISMATCHES.keys())
def test_what_does_not_fit_together_is_refused(processor, arguments, message):
    with pytest.raises(ValueError, match=message):
        processor(**arguments)


def test_a_bad_recording_is_named_by_its_number(processor, clips):
    with pytest.raises(AudioError, match="audio 1: sample 0 is nan"):
        processor(text="<audio><audio>", audio=[clips[0], np.full(800, np.nan)])
    with pytest.raises(FileNotFoundError, match=r"missing\.wav"):
        processor(text="<audio>", audio="missing.wav")

"""A text-only row is the base language model's, bit for bit, whatever was trained and whatever stands beside it."""

import copy

import pytest
import torch
from audiollm import AudioLlmForConditionalGeneration
from batches import (
    MIXED_TEXT_ROWS,
    Row,
    assert_same_step,
    collate,
    composed,
    labelled,
    logits_of,
    loss_and_gradients,
    make_row,
    mixed_rows,
)
from test_cpu_speed import assert_shared_equals_full, batch_with_prefix, positions_run, use_cpu_speed
from test_gradients import masks_seen
from tiny_models import TEXT_FIELDS, enable_checkpointing, llama_config, save_text_base
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    MistralConfig,
    Phi3Config,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
)


def base_of(folder: str, dtype: torch.dtype = torch.float32):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def base_logits(base, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The base's logits of the same batch; it has no audio ids, and other rows' content is no matter to a row."""
    ids = batch["input_ids"]
    ids = ids.masked_fill(ids >= base.config.vocab_size, 0)
    with torch.no_grad():
        return base(input_ids=ids, attention_mask=batch["attention_mask"]).logits


def text_rows(config) -> list[Row]:
    return [make_row(config, 9, seed=2), make_row(config, 5, seed=4)]


@torch.no_grad()
def assert_text_rows_are_the_bases(model, base, padding_side: str) -> None:
    """Alone, in a batch of text, and between rows with audio."""
    config = model.config
    for rows in (text_rows(config)[:1], text_rows(config)):
        texts = collate(config, rows, padding_side)
        assert torch.equal(model(**texts).logits, base_logits(base, texts))
    mixed = collate(config, mixed_rows(config), padding_side)
    ours, bases = model(**mixed).logits, base_logits(base, mixed)
    for row in range(len(ours)):
        assert torch.equal(ours[row], bases[row]) == (row in MIXED_TEXT_ROWS)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("dtype", "padding_side"), [(torch.float32, "left"), (torch.float32, "right"), (torch.bfloat16, "right")], ids=str
)
def test_logits_are_the_bases(tiny_bases, dtype, padding_side: str) -> None:
    model = composed(tiny_bases, dtype=dtype)
    assert model.dtype == dtype
    assert_text_rows_are_the_bases(model, base_of(tiny_bases[1], dtype), padding_side)


@pytest.mark.quick
def test_training_mode_keeps_text_rows_too(tiny_model, tiny_bases, batch) -> None:
    expected = base_logits(base_of(tiny_bases[1]), batch)
    with torch.no_grad():
        ours = tiny_model.train()(**batch).logits
    assert all(torch.equal(ours[row], expected[row]) for row in MIXED_TEXT_ROWS)


@pytest.mark.quick
@pytest.mark.parametrize("mode", [{}, {"num_beams": 2}, {"do_sample": True}], ids=["greedy", "beams", "sampling"])
def test_generation_is_the_bases(shared_tiny_model, tiny_bases, mode) -> None:
    model, base = shared_tiny_model, base_of(tiny_bases[1])
    options = {"max_new_tokens": 12, "min_new_tokens": 12, **mode}
    texts = collate(model.config, text_rows(model.config))
    torch.manual_seed(0)
    expected = base.generate(**texts, **options)
    torch.manual_seed(0)
    assert torch.equal(model.generate(**texts, **options), expected)
    if "do_sample" in mode:  # the rows of a batch share one random stream
        return
    mixed = collate(model.config, mixed_rows(model.config))
    ours = model.generate(**mixed, **options)[:, mixed["input_ids"].shape[1] :]
    assert torch.equal(ours[list(MIXED_TEXT_ROWS)], expected[:, texts["input_ids"].shape[1] :])


def test_at_the_width_of_real_models(tiny_bases, tmp_path) -> None:
    """For which matrix products have other kernels than for tiny ones."""
    config = llama_config(hidden_size=576, intermediate_size=1536, num_attention_heads=9, num_key_value_heads=3)
    folder = save_text_base(tmp_path, config)
    assert_text_rows_are_the_bases(composed((tiny_bases[0], folder), lora_rank=16), base_of(folder), "left")


# ---- language models laid out like Llama, each with what is peculiar to its class made visible ------------------------


#: Name: the configuration, and the fields of AudioLLM's that it needs.
ARCHITECTURES = {
    "llama-untied": (llama_config(tie_word_embeddings=False), {}),
    "qwen2": (Qwen2Config(**TEXT_FIELDS, tie_word_embeddings=True), {}),
    "qwen3": (Qwen3Config(**TEXT_FIELDS, head_dim=8), {}),
    "mistral": (MistralConfig(**TEXT_FIELDS, sliding_window=16), {}),
    "gemma2": (Gemma2Config(**TEXT_FIELDS, head_dim=8, sliding_window=16, final_logit_softcapping=3.0), {}),
    "granite": (
        GraniteConfig(
            **TEXT_FIELDS,
            logits_scaling=7.0,
            embedding_multiplier=3.0,
            residual_multiplier=0.5,
            tie_word_embeddings=True,
        ),
        {},
    ),
    "cohere": (CohereConfig(**TEXT_FIELDS, logit_scale=0.3), {}),
    "phi3": (
        Phi3Config(**TEXT_FIELDS),
        {"lora_target_modules": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]},
    ),
}
#: Some of their layers attend to a window only, and do not keep what has left it.
SLIDING = ("mistral", "gemma2")


@pytest.fixture(scope="module", params=ARCHITECTURES)
def architecture(request, tiny_bases, tmp_path_factory) -> tuple[str, str, AudioLlmForConditionalGeneration]:
    """A name, the language model's folder, and the model composed with it; shared, so leave it as it is."""
    config, fields = ARCHITECTURES[request.param]
    folder = save_text_base(tmp_path_factory.mktemp("text"), config)
    return request.param, folder, composed((tiny_bases[0], folder), std=0.05, **fields)


def test_text_rows_are_the_bases_and_checkpoints_load(architecture, tmp_path) -> None:
    _, folder, model = architecture
    assert_text_rows_are_the_bases(model, base_of(folder), "left")
    model.save_pretrained(tmp_path)
    assert torch.equal(logits_of(AudioLlmForConditionalGeneration.from_pretrained(tmp_path)), logits_of(model))


def test_a_training_step_is_the_same_in_every_way_it_can_be_run(architecture) -> None:
    name, _, model = architecture
    model = copy.deepcopy(model).train()
    batch, text = labelled(model.config, mixed_rows(model.config)), collate(model.config, [make_row(model.config, 5)])
    rows, length = batch["input_ids"].shape
    # Told the positions, which are what they would be anyway, the model masks padding.
    masked = {**batch, "position_ids": torch.arange(length).expand(rows, -1)}
    assert masks_seen(model, batch) == [False] and masks_seen(model, masked) == [True]
    expected = loss_and_gradients(model, masked)
    assert_same_step(loss_and_gradients(model, batch), expected)
    # Layers that are run again in the backward pass act on the rows of their own forward pass.
    checkpointed = copy.deepcopy(model)
    enable_checkpointing(checkpointed, {"use_reentrant": False})
    assert_same_step(loss_and_gradients(checkpointed, batch, lambda: checkpointed(**text)), expected)
    # A beginning that all rows share is run once, where layers keep all of it.
    if name not in SLIDING:
        assert_shared_equals_full(model, batch_with_prefix(model.config))
    else:
        use_cpu_speed(model)
        batch = batch_with_prefix(model.config)
        assert positions_run(model, batch) == [batch["input_ids"].numel()]


GPT2 = GPT2Config(vocab_size=128, n_embd=32, n_layer=2, n_head=4)


@pytest.mark.parametrize(
    ("config", "fields", "words"),
    [
        (GPT2, {}, "which is not there in GPT2Model"),
        (GPT2, {"lora_target_modules": ["c_attn"]}, "Conv1D"),
        (GPT2, {"lora_rank": 0}, "embed_tokens"),
        (PhiConfig(**TEXT_FIELDS), {"lora_target_modules": ["q_proj", "v_proj"]}, "linear head without bias"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unsupported_architectures_are_refused(tiny_bases, tmp_path, config, fields, words: str) -> None:
    folder = save_text_base(tmp_path / "text", config)
    with pytest.raises(ValueError, match=words):
        AudioLlmForConditionalGeneration.from_audio_text_pretrained(tiny_bases[0], folder, **fields)

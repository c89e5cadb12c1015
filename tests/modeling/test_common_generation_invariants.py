"""Invariants of transformers' common generation tests, on batches of rows with and without audio."""

import copy
import inspect

import pytest
import torch
from audiollm import AudioLlmForConditionalGeneration
from audiollm.modeling_audiollm import CACHE_NAME
from batches import collate, make_row, mixed_rows
from tiny_models import character_tokenizer, randomise_trainables
from transformers import (
    DynamicCache,
    StaticCache,
    StoppingCriteria,
    StoppingCriteriaList,
    SynthIDTextWatermarkingConfig,
    WatermarkingConfig,
)
from transformers.generation import GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput
from versions import CHUNKED_PREFILL_ERROR

NEW_TOKENS = 6
GREEDY = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}
NUM_LAYERS, NUM_HEADS = 2, 4


@pytest.fixture(scope="module")
def model(tiny_bases) -> AudioLlmForConditionalGeneration:
    torch.manual_seed(0)
    return randomise_trainables(AudioLlmForConditionalGeneration.from_audio_text_pretrained(*tiny_bases, lora_rank=4))


@pytest.fixture(scope="module")
def batch(model) -> dict[str, torch.Tensor]:
    return collate(model.config, mixed_rows(model.config))


@pytest.fixture(scope="module")
def expected(model, batch) -> torch.Tensor:
    return model.generate(**batch, **GREEDY)


@pytest.fixture(scope="module")
def one(model) -> dict[str, torch.Tensor]:
    """A row with two recordings."""
    return collate(model.config, [mixed_rows(model.config)[2]])


@pytest.fixture(scope="module")
def text(model) -> dict[str, torch.Tensor]:
    return collate(model.config, [make_row(model.config, 9)])


def new_ids(out: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return out[:, inputs["input_ids"].shape[1] :]


def embed(model, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the language model's input embeddings for text and audio, by the public methods."""
    ids = inputs["input_ids"]
    embeds = model.model.embed_text(ids)
    if "input_features" not in inputs:
        return embeds
    tokens = model.get_audio_features(inputs["input_features"], inputs["input_features_mask"]).pooler_output
    return embeds.masked_scatter((ids == model.config.audio_token_id)[..., None].expand_as(embeds), tokens)


# ---- what comes back -------------------------------------------------------------------------------------------------


@pytest.mark.quick
@pytest.mark.parametrize("use_cache", [True, False])
def test_everything_in_a_dict(model, batch, expected, use_cache: bool) -> None:
    looked_at = copy.deepcopy(model)
    looked_at.set_attn_implementation("eager")
    wanted = dict.fromkeys(("output_scores", "output_logits", "output_hidden_states", "output_attentions"), True)
    out = looked_at.generate(**batch, **GREEDY, **wanted, return_dict_in_generate=True, use_cache=use_cache)
    assert isinstance(out, GenerateDecoderOnlyOutput) and torch.equal(out.sequences, expected)
    assert (out.get(CACHE_NAME) is None) != use_cache
    rows, prompt = batch["input_ids"].shape
    width = model.config.audio_end_token_id + 1
    for name in ("scores", "logits", "hidden_states", "attentions"):
        assert len(out[name]) == NEW_TOKENS
    for step in range(NEW_TOKENS):
        whole = prompt + step
        length = 1 if use_cache and step else whole
        assert out.scores[step].shape == out.logits[step].shape == (rows, width)
        assert out.logits[step][:, model.config.vocab_size :].eq(float("-inf")).all()
        assert [h.shape for h in out.hidden_states[step]] == [(rows, length, model.config.hidden_size)] * (
            NUM_LAYERS + 1
        )
        assert [a.shape for a in out.attentions[step]] == [(rows, NUM_HEADS, length, whole)] * NUM_LAYERS


def test_beams_in_a_dict(model, batch) -> None:
    options = {**GREEDY, "num_beams": 3, "num_return_sequences": 2}
    out = model.generate(**batch, **options, output_scores=True, return_dict_in_generate=True)
    assert isinstance(out, GenerateBeamDecoderOnlyOutput)
    rows = 2 * len(batch["input_ids"])
    assert out.sequences.shape == (rows, batch["input_ids"].shape[1] + NEW_TOKENS)
    assert out.beam_indices.shape[0] == len(out.sequences_scores) == rows and out.sequences_scores.isfinite().all()
    assert torch.equal(out.sequences, model.generate(**batch, **options))


def test_sampled_beams_stay_in_the_vocabulary(model, batch) -> None:
    torch.manual_seed(0)
    out = model.generate(
        **batch, max_new_tokens=4, num_beams=3, do_sample=True, num_return_sequences=2, temperature=9.0
    )
    assert len(out) == 2 * len(batch["input_ids"]) and bool((new_ids(out, batch) < model.config.vocab_size).all())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_return_sequences": 2}, r"do not support `num_return_sequences` different than 1"),
        ({"num_beams": 2, "num_return_sequences": 3}, r"smaller or equal to `num_beams`"),
        ({"nonsense": 2}, r"'nonsense'"),
        ({"penalty_alpha": 0.6, "top_k": 4}, r"Contrastive Search requires `trust_remote_code=True`"),
        ({"dola_layers": "low"}, r"requires `trust_remote_code=True`"),
        ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0}, r"requires `trust_remote_code=True`"),
        ({"num_beams": 4, "force_words_ids": [[20]]}, r"requires `trust_remote_code=True`"),
        ({"prefill_chunk_size": 7}, CHUNKED_PREFILL_ERROR),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_is_said(model, one, options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.generate(**one, **GREEDY, **options)


# ---- caches ----------------------------------------------------------------------------------------------------------


@pytest.mark.quick
@pytest.mark.parametrize("implementation", ["dynamic", "static"])
def test_named_caches(model, batch, expected, implementation: str) -> None:
    out = model.generate(**batch, **GREEDY, cache_implementation=implementation, return_dict_in_generate=True)
    assert torch.equal(out.sequences, expected)
    assert type(out[CACHE_NAME]) is {"dynamic": DynamicCache, "static": StaticCache}[implementation]


# ---- embeddings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", ["text", "audio"])
def test_embeddings_are_the_ids(model, text, one, kind: str, beams: int) -> None:
    """Rows with audio are told by the embedding of `<audio>`."""
    inputs = text if kind == "text" else one
    options = {**GREEDY, "num_beams": beams}
    given = {"inputs_embeds": embed(model, inputs), "attention_mask": inputs["attention_mask"]}
    expected = model.generate(**inputs, **options)
    assert torch.equal(model.generate(**given, **options), new_ids(expected, inputs))
    assert torch.equal(model.generate(**given, input_ids=inputs["input_ids"], **options), expected)


def test_embeddings_beside_audio_are_refused(model, one) -> None:
    with pytest.raises(ValueError, match=r"Audio needs input_ids"):
        model.generate(**one, inputs_embeds=embed(model, one), **GREEDY)


# ---- drafts, stopping --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"watermarking_config": WatermarkingConfig(bias=2.5, seeding_scheme="selfhash")},
        {"watermarking_config": SynthIDTextWatermarkingConfig(keys=[1, 2, 3], ngram_len=2), "do_sample": True},
        {"sequence_bias": [[[20], 10.0]]},
        {"forced_eos_token_id": 4},
        {"exponential_decay_length_penalty": (2, 1.5)},
        {"renormalize_logits": True, "remove_invalid_values": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_processors_never_choose_an_audio_id(model, batch, options) -> None:
    torch.manual_seed(0)
    out = model.generate(**batch, **{**GREEDY, **options})
    assert bool((new_ids(out, batch) < model.config.vocab_size).all())
    if "sequence_bias" in options:
        assert bool((new_ids(out, batch) == 20).any())


class AfterTwo(StoppingCriteria):
    def __init__(self, prompt: int):
        self.length = prompt + 2

    def __call__(self, input_ids, scores, **kwargs) -> torch.Tensor:
        return torch.full((len(input_ids),), input_ids.shape[1] >= self.length)


def test_where_it_stops(model, batch, one) -> None:
    prompt = batch["input_ids"].shape[1]
    stop = StoppingCriteriaList([AfterTwo(prompt)])
    assert model.generate(**batch, max_new_tokens=9, do_sample=False, stopping_criteria=stop).shape[1] == prompt + 2
    assert model.generate(**batch, max_length=prompt + 3, do_sample=False).shape[1] <= prompt + 3
    tokenizer = character_tokenizer()
    answer = tokenizer.decode(new_ids(model.generate(**one, **GREEDY), one)[0])
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "stop_strings": [answer[1]], "tokenizer": tokenizer}
    assert tokenizer.decode(new_ids(model.generate(**one, **options), one)[0]) == answer[: answer.index(answer[1]) + 1]


# ---- how it runs the model -------------------------------------------------------------------------------------------


def test_the_head_runs_on_the_last_position_only(model, batch, monkeypatch) -> None:
    asked = []
    head = model.lm_head.forward
    monkeypatch.setattr(model.lm_head, "forward", lambda hidden: asked.append(hidden.shape[1]) or head(hidden))
    model.generate(**batch, **GREEDY)
    assert asked == [1] * NEW_TOKENS
    assert "logits_to_keep" in inspect.signature(model.forward).parameters


def test_audio_is_encoded_once(model, batch, monkeypatch) -> None:
    calls = []
    tower = model.model.audio_tower.forward
    monkeypatch.setattr(model.model.audio_tower, "forward", lambda *a, **k: calls.append(1) or tower(*a, **k))
    model.generate(**batch, **GREEDY, num_beams=2)
    assert len(calls) == 1

"""Invariants of transformers' common generation tests, on batches of rows with and without audio."""

import copy

import pytest
import torch
from audiollm.modeling_audiollm import CACHE_NAME
from batches import collate, make_row, mixed_rows
from tiny_models import character_tokenizer
from transformers import StoppingCriteria, StoppingCriteriaList, SynthIDTextWatermarkingConfig, WatermarkingConfig
from transformers.generation import GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput
from versions import CHUNKED_PREFILL_ERROR

NEW_TOKENS = 6
GREEDY = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}
NUM_LAYERS, NUM_HEADS = 2, 4


@pytest.fixture(scope="module")
def model(shared_tiny_model):
    return shared_tiny_model


@pytest.fixture(scope="module")
def batch(model) -> dict[str, torch.Tensor]:
    return collate(model.config, mixed_rows(model.config))


@pytest.fixture(scope="module")
def one(model) -> dict[str, torch.Tensor]:
    """A row with two recordings."""
    return collate(model.config, [mixed_rows(model.config)[2]])


def new_ids(out: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return out[:, inputs["input_ids"].shape[1] :]


@pytest.mark.quick
@pytest.mark.parametrize("use_cache", [True, False])
def test_everything_in_a_dict(model, batch, use_cache: bool) -> None:
    looked_at = copy.deepcopy(model)
    looked_at.set_attn_implementation("eager")
    wanted = dict.fromkeys(("output_scores", "output_logits", "output_hidden_states", "output_attentions"), True)
    out = looked_at.generate(**batch, **GREEDY, **wanted, return_dict_in_generate=True, use_cache=use_cache)
    assert isinstance(out, GenerateDecoderOnlyOutput)
    assert torch.equal(out.sequences, model.generate(**batch, **GREEDY))
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
        hidden = (rows, length, model.config.hidden_size)
        assert [h.shape for h in out.hidden_states[step]] == [hidden] * (NUM_LAYERS + 1)
        assert [a.shape for a in out.attentions[step]] == [(rows, NUM_HEADS, length, whole)] * NUM_LAYERS


def test_beams_in_a_dict(model, batch) -> None:
    options = {**GREEDY, "num_beams": 3, "num_return_sequences": 2}
    out = model.generate(**batch, **options, output_scores=True, return_dict_in_generate=True)
    assert isinstance(out, GenerateBeamDecoderOnlyOutput)
    rows = 2 * len(batch["input_ids"])
    assert out.sequences.shape == (rows, batch["input_ids"].shape[1] + NEW_TOKENS)
    assert out.beam_indices.shape[0] == len(out.sequences_scores) == rows and out.sequences_scores.isfinite().all()


def test_what_cannot_be_is_said(model, one) -> None:
    for options, message in (({"nonsense": 2}, "'nonsense'"), ({"prefill_chunk_size": 7}, CHUNKED_PREFILL_ERROR)):
        with pytest.raises(ValueError, match=message):
            model.generate(**one, **GREEDY, **options)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", ["text", "audio"])
@torch.no_grad()
def test_embeddings_are_the_ids(model, one, kind: str, beams: int) -> None:
    """Rows with audio are told by the embedding of `<audio>`."""
    inputs = collate(model.config, [make_row(model.config, 9)]) if kind == "text" else one
    ids, options = inputs["input_ids"], {**GREEDY, "num_beams": beams}
    embeds = model.model.embed_text(ids)
    if kind == "audio":
        tokens = model.get_audio_features(inputs["input_features"], inputs["input_features_mask"]).pooler_output
        embeds = embeds.masked_scatter((ids == model.config.audio_token_id)[..., None].expand_as(embeds), tokens)
    given = {"inputs_embeds": embeds, "attention_mask": inputs["attention_mask"]}
    expected = model.generate(**inputs, **options)
    assert torch.equal(model.generate(**given, **options), new_ids(expected, inputs))
    assert torch.equal(model.generate(**given, input_ids=ids, **options), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"watermarking_config": WatermarkingConfig(bias=2.5, seeding_scheme="selfhash")},
        {"watermarking_config": SynthIDTextWatermarkingConfig(keys=[1, 2, 3], ngram_len=2), "do_sample": True},
        {"sequence_bias": [[[20], 10.0]], "renormalize_logits": True, "remove_invalid_values": True},
        {"num_beams": 3, "do_sample": True, "temperature": 9.0},
    ],
    ids=lambda options: next(iter(options)),
)
def test_processors_never_choose_an_audio_id(model, batch, options) -> None:
    torch.manual_seed(0)
    new = new_ids(model.generate(**batch, **{**GREEDY, **options}), batch)
    assert bool((new < model.config.vocab_size).all())
    assert "sequence_bias" not in options or bool((new == 20).any())


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


def test_audio_is_encoded_once_and_the_head_runs_on_the_last_position(model, batch, monkeypatch) -> None:
    encoded, scored = [], []
    tower, head = model.model.audio_tower.forward, model.lm_head.forward
    monkeypatch.setattr(model.model.audio_tower, "forward", lambda x, **k: encoded.append(len(x)) or tower(x, **k))
    monkeypatch.setattr(model.lm_head, "forward", lambda hidden: scored.append(hidden.shape[1]) or head(hidden))
    model.generate(**batch, **GREEDY, num_beams=2)
    assert encoded == [len(batch["input_features"])] and scored == [1] * NEW_TOKENS

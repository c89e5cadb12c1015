"""Invariants of transformers' common model tests: outputs, attention, initialisation, training."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from audiollm import AudioLlmForConditionalGeneration
from batches import TOLERANCE, collate, labelled, mixed_rows
from tiny_models import whisper_config
from transformers import PreTrainedModel, WhisperForConditionalGeneration
from transformers.modeling_outputs import ModelOutput

NUM_LAYERS = 2  # of both tiny bases
NUM_HEADS = 4


@pytest.fixture(scope="module")
def shared(shared_tiny_model) -> AudioLlmForConditionalGeneration:
    return shared_tiny_model


@pytest.fixture(scope="module")
def eager(shared) -> AudioLlmForConditionalGeneration:
    """The same with attention that can be looked at."""
    model = copy.deepcopy(shared)
    model.set_attn_implementation("eager")
    return model


@pytest.fixture(scope="module")
def batch(shared) -> dict[str, torch.Tensor]:
    return collate(shared.config, mixed_rows(shared.config))


# ---- what comes out --------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_tuples_are_the_dicts_values(shared, eager, batch) -> None:
    def flat(value) -> list[torch.Tensor]:
        return [value] if isinstance(value, torch.Tensor) else [one for part in value for one in flat(part)]

    wanted = {"output_hidden_states": True, "output_attentions": True, "use_cache": False}
    as_dict, as_tuple = eager(**batch, **wanted), eager(**batch, **wanted, return_dict=False)
    assert isinstance(as_dict, ModelOutput) and isinstance(as_tuple, tuple)
    pairs = list(zip(flat(as_dict.to_tuple()), flat(as_tuple), strict=True))
    assert len(pairs) == 1 + (NUM_LAYERS + 1) + NUM_LAYERS + 1
    assert all(torch.equal(one, other) for one, other in pairs)
    configured = copy.deepcopy(shared)
    configured.config.return_dict = False
    assert isinstance(configured(**batch), tuple)


@pytest.mark.parametrize("asked_by", ["call", "configuration", "sub-configuration"])
@torch.no_grad()
def test_hidden_states_and_attentions(eager, batch, asked_by: str) -> None:
    flags = {"output_hidden_states": True, "output_attentions": True}
    model = eager if asked_by == "call" else copy.deepcopy(eager)
    configuration = model.config.text_config if asked_by == "sub-configuration" else model.config
    for name, value in flags.items() if asked_by != "call" else ():
        setattr(configuration, name, value)
    out = model(**batch, **(flags if asked_by == "call" else {}))
    rows, length = batch["input_ids"].shape
    assert [tuple(h.shape) for h in out.hidden_states] == [(rows, length, model.config.hidden_size)] * (NUM_LAYERS + 1)
    assert [tuple(a.shape) for a in out.attentions] == [(rows, NUM_HEADS, length, length)] * NUM_LAYERS
    assert torch.equal(model.compute_logits(out.hidden_states[-1]), out.logits)


@torch.no_grad()
def test_audio_features(eager, batch) -> None:
    audio = {name: batch[name] for name in ("input_features", "input_features_mask")}
    plain = eager.get_audio_features(**audio)
    assert isinstance(plain, ModelOutput) and plain.hidden_states is plain.attentions is None
    assert torch.equal(eager(**batch).audio_hidden_states, plain.pooler_output)
    windows, frames = plain.last_hidden_state.shape[:2]
    assert windows == len(audio["input_features"])
    full = eager.get_audio_features(**audio, output_hidden_states=True, output_attentions=True)
    assert torch.equal(full.pooler_output, plain.pooler_output)
    assert len(full.hidden_states) == NUM_LAYERS + 1 and torch.equal(full.hidden_states[-1], plain.last_hidden_state)
    assert [tuple(a.shape) for a in full.attentions] == [(windows, NUM_HEADS, frames, frames)] * NUM_LAYERS
    as_tuple = eager.get_audio_features(**audio, return_dict=False)
    assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[1], plain.pooler_output)
    encoder = eager.get_encoder(modality="audio")
    assert encoder is eager.model.audio_tower
    whole = torch.randn(1, encoder.num_features, encoder.max_input_frames)
    stock = WhisperForConditionalGeneration(whisper_config(attn_implementation="eager")).eval().model.encoder
    stock.load_state_dict(encoder.state_dict())
    ours, theirs = (tower(whole, output_hidden_states=True) for tower in (encoder, stock))
    for one, other in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        torch.testing.assert_close(one, other, **TOLERANCE)


# ---- embeddings and attention ----------------------------------------------------------------------------------------


def test_the_vocabulary_is_never_resized(shared) -> None:
    embeddings = shared.get_input_embeddings()
    for arguments in ({}, {"new_num_tokens": 128}, {"pad_to_multiple_of": 64}):
        assert shared.resize_token_embeddings(**arguments) is embeddings
    for arguments in ({"new_num_tokens": 131}, {"new_num_tokens": 100}, {"pad_to_multiple_of": 100}):
        for model in (shared, shared.model):
            with pytest.raises(ValueError, match=r"vocabulary of 128 tokens cannot be resized .*ids 128 to 130"):
                model.resize_token_embeddings(**arguments)
    assert shared.config.vocab_size == 128 and embeddings.weight.shape[0] == 128


@torch.no_grad()
def test_attention_implementations_agree_and_reach_both_bases(shared, eager, batch) -> None:
    wanted = batch["attention_mask"].bool()
    torch.testing.assert_close(eager(**batch).logits[wanted], shared(**batch).logits[wanted], **TOLERANCE)
    for model, name in ((shared, "sdpa"), (eager, "eager")):
        parts = (model, model.model, model.model.language_model, model.model.audio_tower)
        assert {part.config._attn_implementation for part in parts} == {name}
    mixed = copy.deepcopy(shared)
    mixed.set_attn_implementation({"text_config": "eager"})
    assert mixed.model.language_model.config._attn_implementation == "eager"
    assert mixed.model.audio_tower.config._attn_implementation == "sdpa"


# ---- initialisation --------------------------------------------------------------------------------------------------


@contextmanager
def seeded_initialisation(monkeypatch) -> Iterator[None]:
    """Every module's initialisation begins with the same seed, so that its order is of no matter."""
    original = PreTrainedModel._initialize_weights

    def seeded(self, *args, **kwargs) -> None:
        torch.manual_seed(0)
        original(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(PreTrainedModel, "_initialize_weights", seeded)
        yield


@pytest.mark.parametrize("readout", ["direct", "pieces"])
def test_what_a_checkpoint_lacks_is_initialised_as_by_the_constructor(shared, monkeypatch, readout: str) -> None:
    config = copy.deepcopy(shared.config)
    config.projector_readout = readout
    with seeded_initialisation(monkeypatch):
        built = AudioLlmForConditionalGeneration(copy.deepcopy(config))
        filled = AudioLlmForConditionalGeneration.from_pretrained(None, config=copy.deepcopy(config), state_dict={})
    expected, found = built.state_dict(), filled.state_dict()
    assert sorted(expected) == sorted(found)
    assert not any(tensor.is_meta for tensor in (*filled.parameters(), *filled.buffers()))
    # LoRA's A is drawn by peft without a seed of its own.
    different = {name for name in expected if not torch.equal(expected[name], found[name].to(expected[name].dtype))}
    assert all(".lora_A." in name for name in different)
    assert not any(tensor.any() for name, tensor in found.items() if ".lora_B." in name)


# ---- training --------------------------------------------------------------------------------------------------------


def test_every_weight_may_train(tiny_model) -> None:
    for parameter in tiny_model.train().parameters():
        parameter.requires_grad_(True)
    tiny_model(**labelled(tiny_model.config, mixed_rows(tiny_model.config))).loss.backward()
    assert not [name for name, parameter in tiny_model.named_parameters() if parameter.grad is None]
    torch.optim.SGD(tiny_model.parameters(), lr=0.01).step()

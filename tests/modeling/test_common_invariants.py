"""Invariants of transformers' common tests of models, generation and loading; inputs that cannot be are refused by name."""

import copy
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from audiollm import AudioLlmForConditionalGeneration, AudioLlmModel
from audiollm.modeling_audiollm import CACHE_NAME
from batches import TOLERANCE, collate, composed, labelled, logits_of, make_row, mixed_rows
from tiny_models import NUM_MEL_BINS, character_tokenizer, llama_config, save_text_base
from transformers import PreTrainedModel, SynthIDTextWatermarkingConfig, WatermarkingConfig
from transformers.modeling_outputs import ModelOutput
from versions import ALL_CAN_STAY_ON_DISK

NUM_LAYERS, NUM_HEADS = 2, 4  # of both tiny bases
NEW_TOKENS = 6
GREEDY = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}
load = AudioLlmForConditionalGeneration.from_pretrained


@pytest.fixture(scope="module")
def model(shared_tiny_model) -> AudioLlmForConditionalGeneration:
    return shared_tiny_model


@pytest.fixture(scope="module")
def eager(model) -> AudioLlmForConditionalGeneration:
    """The same with attention that can be looked at."""
    model = copy.deepcopy(model)
    model.set_attn_implementation("eager")
    return model


@pytest.fixture(scope="module")
def one(model) -> dict[str, torch.Tensor]:
    """A row with two recordings."""
    return collate(model.config, [mixed_rows(model.config)[2]])


# ---- outputs -----------------------------------------------------------------------------------------------------------


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
    assert torch.equal(model(**batch, return_dict=False)[0], out.logits)


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


@torch.no_grad()
def test_attention_implementations_agree_and_reach_both_bases(model, eager, batch) -> None:
    wanted = batch["attention_mask"].bool()
    torch.testing.assert_close(eager(**batch).logits[wanted], model(**batch).logits[wanted], **TOLERANCE)
    mixed = copy.deepcopy(model)
    mixed.set_attn_implementation({"text_config": "eager"})
    for each, names in ((model, {"sdpa"}), (eager, {"eager"}), (mixed, {"sdpa", "eager"})):
        parts = each.model.language_model, each.model.audio_tower
        assert {part.config._attn_implementation for part in parts} == names
    assert mixed.model.language_model.config._attn_implementation == "eager"


def test_the_vocabulary_is_never_resized(model) -> None:
    embeddings = model.get_input_embeddings()
    for arguments in ({}, {"new_num_tokens": 128}, {"pad_to_multiple_of": 64}):
        assert model.resize_token_embeddings(**arguments) is embeddings
    for arguments in ({"new_num_tokens": 131}, {"new_num_tokens": 100}, {"pad_to_multiple_of": 100}):
        for part in (model, model.model):
            with pytest.raises(ValueError, match=r"vocabulary of 128 tokens cannot be resized .*ids 128 to 130"):
                part.resize_token_embeddings(**arguments)
    assert model.config.vocab_size == 128 and embeddings.weight.shape[0] == 128


# ---- initialisation and training ---------------------------------------------------------------------------------------


def test_what_a_checkpoint_lacks_is_initialised_as_by_the_constructor(model, monkeypatch) -> None:
    config = copy.deepcopy(model.config)
    config.projector_readout = "pieces"
    original = PreTrainedModel._initialize_weights

    def seeded(self, *args, **kwargs) -> None:
        torch.manual_seed(0)  # so that the order of modules is of no matter
        original(self, *args, **kwargs)

    monkeypatch.setattr(PreTrainedModel, "_initialize_weights", seeded)
    built = AudioLlmForConditionalGeneration(copy.deepcopy(config))
    filled = load(None, config=copy.deepcopy(config), state_dict={})
    expected, found = built.state_dict(), filled.state_dict()
    assert sorted(expected) == sorted(found)
    assert not any(tensor.is_meta for tensor in (*filled.parameters(), *filled.buffers()))
    # LoRA's A is drawn by peft without a seed of its own.
    different = {name for name in expected if not torch.equal(expected[name], found[name].to(expected[name].dtype))}
    assert all(".lora_A." in name for name in different)
    assert not any(tensor.any() for name, tensor in found.items() if ".lora_B." in name)


def test_every_weight_may_train(tiny_model) -> None:
    for parameter in tiny_model.train().parameters():
        parameter.requires_grad_(True)
    tiny_model(**labelled(tiny_model.config, mixed_rows(tiny_model.config))).loss.backward()
    assert not [name for name, parameter in tiny_model.named_parameters() if parameter.grad is None]
    torch.optim.SGD(tiny_model.parameters(), lr=0.01).step()


# ---- generation ----------------------------------------------------------------------------------------------------------


def new_ids(out: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return out[:, inputs["input_ids"].shape[1] :]


@pytest.mark.quick
@pytest.mark.parametrize("use_cache", [True, False])
def test_scores_are_as_wide_as_the_ids_and_never_choose_audio(model, batch, use_cache: bool) -> None:
    wanted = dict.fromkeys(("output_scores", "output_logits", "return_dict_in_generate"), True)
    out = model.generate(**batch, **GREEDY, **wanted, use_cache=use_cache)
    assert torch.equal(out.sequences, model.generate(**batch, **GREEDY))
    assert (out.get(CACHE_NAME) is None) != use_cache
    shape = len(batch["input_ids"]), model.config.audio_end_token_id + 1
    for step in range(NEW_TOKENS):
        assert out.scores[step].shape == out.logits[step].shape == shape
        assert out.logits[step][:, model.config.vocab_size :].eq(float("-inf")).all()


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


def test_audio_ids_in_any_order_past_the_vocabulary(tiny_bases) -> None:
    ids = {"audio_begin_token_id": 140, "audio_token_id": 135, "audio_end_token_id": 131}
    model = composed(tiny_bases, **ids)
    inputs = collate(model.config, mixed_rows(model.config))
    new = new_ids(model.generate(**inputs, **GREEDY, repetition_penalty=1.3), inputs)
    assert bool((new < model.config.vocab_size).all())


def test_stop_strings_and_unknown_options(model, one) -> None:
    tokenizer = character_tokenizer()
    answer = tokenizer.decode(new_ids(model.generate(**one, **GREEDY), one)[0])
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "stop_strings": [answer[1]], "tokenizer": tokenizer}
    assert tokenizer.decode(new_ids(model.generate(**one, **options), one)[0]) == answer[: answer.index(answer[1]) + 1]
    with pytest.raises(ValueError, match="'nonsense'"):
        model.generate(**one, **GREEDY, nonsense=2)


def test_audio_is_encoded_once_and_the_head_runs_on_the_last_position(model, batch, monkeypatch) -> None:
    encoded, scored = [], []
    tower, head = model.model.audio_tower.forward, model.lm_head.forward
    monkeypatch.setattr(model.model.audio_tower, "forward", lambda x, **k: encoded.append(len(x)) or tower(x, **k))
    monkeypatch.setattr(model.lm_head, "forward", lambda hidden: scored.append(hidden.shape[1]) or head(hidden))
    model.generate(**batch, **GREEDY, num_beams=2)
    assert encoded == [len(batch["input_features"])] and scored == [1] * NEW_TOKENS


# ---- offloading ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["cpu", "disk"])
def test_offloaded_after_loading(tiny_model, model, batch, tmp_path: Path, how: str) -> None:
    """All weights but those in use are elsewhere: no layer may reach for another's."""
    offloaded = cpu_offload(tiny_model) if how == "cpu" else disk_offload(tiny_model, str(tmp_path))
    assert all(parameter.is_meta for parameter in offloaded.parameters())
    assert torch.equal(logits_of(offloaded), logits_of(model))
    options = {"max_new_tokens": 3, "do_sample": False}
    assert torch.equal(offloaded.generate(**batch, **options), model.generate(**batch, **options))


@pytest.mark.skipif(not ALL_CAN_STAY_ON_DISK, reason="this accelerate leaves nothing but parts of a model on disk")
@pytest.mark.parametrize("weights", ["adapter", "full"])
def test_offloaded_while_loading(tiny_model, tmp_path: Path, weights: str) -> None:
    tiny_model.save_pretrained(tmp_path / "saved", weights=weights)
    offloaded = load(tmp_path / "saved", device_map={"": "disk"}, offload_folder=str(tmp_path / "offloaded"))
    assert all(parameter.is_meta for parameter in offloaded.model.language_model.parameters())
    assert torch.equal(logits_of(offloaded), logits_of(tiny_model))


def test_embeddings_that_are_read_as_a_table_stay_in_memory(tiny_bases) -> None:
    speaking = cpu_offload(composed(tiny_bases, projector_readout="pieces"))
    with pytest.raises(ValueError, match=r"which are offloaded\. Keep 'model\.language_model\.embed_tokens'"):
        logits_of(speaking)


# ---- inputs -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def short(tiny_model) -> dict[str, torch.Tensor]:
    return collate(tiny_model.config, [make_row(tiny_model.config, 3, (80,), 2)])


def refused(call, words: str, arguments: dict, error: type[Exception] = ValueError) -> None:
    with pytest.raises(error, match=words):
        call(**arguments)


def test_inputs_that_do_not_fit_are_refused(tiny_model, short) -> None:
    model, config, features = tiny_model, tiny_model.config, short["input_features"]
    frames, lengths = model.model.encode_audio(features, short["input_features_mask"])
    embeds, text = torch.zeros(1, 4, config.hidden_size), collate(config, [make_row(config, 4)])
    deaf, unmasked = {"input_ids": short["input_ids"]}, {**short, "input_features_mask": None}
    slots = r"input_ids has 10 audio slots \(id 129\) but the audio gives {} tokens"
    refused(model, slots.format(5), {**unmasked, "input_features": features[..., :40]})
    refused(model, "0 audio slots .* the audio gives 10 tokens", {**short, **text})
    refused(model, slots.format(0), deaf)
    refused(model.generate, slots.format(0), {**deaf, "max_new_tokens": 2})
    refused(model, "exactly one of input_ids and inputs_embeds", {})
    refused(model, "exactly one of input_ids and inputs_embeds", {**text, "inputs_embeds": embeds})
    refused(model, "Audio needs input_ids", {"inputs_embeds": embeds, "input_features": features})
    refused(model.generate, "Audio needs input_ids", {**short, "inputs_embeds": embeds})
    refused(model, "adapter_name", {**text, "adapter_name": ["speech"]}, TypeError)
    refused(model, "500", {"input_ids": torch.tensor([[7, 500]])}, IndexError)
    encoded = {"encoded_audio": frames, "encoded_audio_lengths": lengths}
    refused(model, "exactly one of input_features and encoded_audio", {**short, **encoded})
    refused(model.get_audio_features, "exactly one of input_features and encoded_audio", {})
    refused(model, "encoded_audio needs encoded_audio_lengths", {**deaf, "encoded_audio": frames})
    for count in (0, 3001):
        words = f"{count} frames per window; expected 1 to 3000.*AudioLlmProcessor"
        refused(model, words, {**unmasked, "input_features": torch.zeros(1, NUM_MEL_BINS, count)})
    refused(model, "128 mel bins but this encoder takes 80", {**short, "input_features": torch.zeros(1, 128, 80)})
    refused(model, r"of shape \(1, 79\).*\(1, 80\)", {**short, "input_features_mask": torch.ones(1, 79)})
    refused(model, r"input_features is of shape \(80, 80\)", {**unmasked, "input_features": features[0]})
    model._is_replica = True  # as torch marks the copies that nn.DataParallel makes
    refused(model, "accelerate launch", short, RuntimeError)


@torch.no_grad()
def test_logits_to_keep(tiny_model, short) -> None:
    full = tiny_model(**short).logits
    for kept, positions in ((2, slice(-2, None)), (torch.tensor([0, 3]), [0, 3])):
        torch.testing.assert_close(tiny_model(**short, logits_to_keep=kept).logits, full[:, positions])


def test_bases_that_are_not_there(tiny_bases, tmp_path) -> None:
    for bases, words in (
        ((f"{tmp_path}/nowhere", tiny_bases[1]), "The audio base .*nowhere' is not a folder"),
        ((tiny_bases[0], "pypi:nothing"), "The text base 'pypi:nothing' is not in"),
    ):
        with pytest.raises(FileNotFoundError, match=words):
            AudioLlmForConditionalGeneration.from_audio_text_pretrained(*bases)


@torch.no_grad()
def test_body_of_an_untied_model_loads_and_saves(tiny_bases, tmp_path, batch) -> None:
    text = save_text_base(tmp_path / "text", llama_config(tie_word_embeddings=False))
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(tiny_bases[0], text)
    expected = model.model(**batch).last_hidden_state
    for weights in ("adapter", "full"):
        model.save_pretrained(tmp_path / weights, weights=weights)
        body = AudioLlmModel.from_pretrained(tmp_path / weights)
        body.save_pretrained(tmp_path / f"body {weights}", weights=weights)
        for each in (body, AudioLlmModel.from_pretrained(tmp_path / f"body {weights}")):
            assert torch.equal(each(**batch).last_hidden_state, expected)
    whole = AudioLlmForConditionalGeneration.from_pretrained(tmp_path / "body adapter")
    assert torch.equal(whole(**batch).logits, model(**batch).logits)
    with pytest.raises(ValueError, match="lm_head"):
        AudioLlmForConditionalGeneration.from_pretrained(tmp_path / "body full")


@torch.no_grad()
def test_the_configuration_can_do_without_a_cache(tiny_model, short) -> None:
    assert tiny_model(**short).get(CACHE_NAME) is not None
    tiny_model.config.use_cache = False
    assert tiny_model(**short).get(CACHE_NAME) is None
    assert tiny_model(**short, use_cache=True).get(CACHE_NAME) is not None

"""The encoder without its 30-second padding, and the projector in all its shapes and readouts."""

import pytest
import torch
from audiollm import AudioLlmConfig, AudioLlmForConditionalGeneration
from audiollm.projector import AudioLlmProjector, PieceReadout
from batches import TOLERANCE
from tiny_models import NUM_MEL_BINS
from transformers import WhisperModel

VOCAB_SIZE, HIDDEN_SIZE = 30, 12
LETTERS = "abcd'"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_windows_are_stock_whispers_and_padding_is_no_matter(tiny_bases, tiny_model, attention: str, batch) -> None:
    stock = WhisperModel.from_pretrained(tiny_bases[0], attn_implementation=attention).eval().encoder
    tiny_model.set_attn_implementation(attention)
    encode, tower = tiny_model.model.encode_audio, tiny_model.get_encoder(modality="audio")
    features = torch.randn(2, NUM_MEL_BINS, tower.max_input_frames)
    frames, lengths = encode(features)
    expected = stock(features, output_hidden_states=True)
    assert torch.equal(frames, expected.last_hidden_state) and lengths.tolist() == [1500, 1500]
    for one, other in zip(
        tower(features, output_hidden_states=True).hidden_states, expected.hidden_states, strict=True
    ):
        assert torch.equal(one, other)
    short, mask = features[:1, :, :77], torch.zeros(1, 500, dtype=torch.long)
    mask[:, :77] = 1
    frames, lengths = encode(torch.nn.functional.pad(short, (0, 423)), mask)
    assert lengths.item() == 39
    torch.testing.assert_close(frames[:, :39], encode(short)[0], **TOLERANCE)
    expected = tiny_model(**batch).logits
    for filler in (1e4, float("nan")):
        batch["input_features"].masked_fill_(~batch["input_features_mask"].bool()[:, None, :], filler)
        assert torch.equal(tiny_model(**batch).logits, expected)


def projector_of(**fields) -> AudioLlmProjector:
    config = AudioLlmConfig(
        audio_config={"model_type": "whisper", "d_model": 8},
        text_config={"model_type": "llama", "hidden_size": 6, "num_attention_heads": 2},
        **{"projector_hidden_size": 10, "stack_factor": 2, **fields},
    )
    torch.manual_seed(0)
    return AudioLlmProjector(config)


@pytest.mark.parametrize("mid_norm", [True, False])
@pytest.mark.parametrize("pre_norm", [True, False])
@pytest.mark.parametrize("projector_type", ["swiglu", "mlp", "linear"])
def test_projector_layers(projector_type: str, pre_norm: bool, mid_norm: bool) -> None:
    projector = projector_of(projector_type=projector_type, projector_pre_norm=pre_norm, projector_mid_norm=mid_norm)
    expected = {"linear_2.weight": (6, {"swiglu": 5, "mlp": 10, "linear": 16}[projector_type])}
    if pre_norm:
        expected["norm_pre.weight"] = (16,)
    if projector_type != "linear":
        expected["linear_1.weight"] = (10, 16)
        if mid_norm:
            expected["norm_mid.weight"] = (expected["linear_2.weight"][1],)
    assert {name: tuple(value.shape) for name, value in projector.named_parameters()} == expected
    frames = torch.randn(1, 4, 8)
    assert projector(frames, torch.tensor([4])).shape == (2, 6)
    # Frames are stacked in time, each whole beside the next.
    stacked, mask = projector.stack(frames, torch.tensor([3]))
    assert torch.equal(stacked[0, 0], frames[0, :2].flatten())
    assert torch.equal(stacked[0, 1], torch.cat([frames[0, 2], torch.zeros(8)]))
    assert mask.tolist() == [[True, True]]


@torch.no_grad()
def test_context_starts_as_nothing_and_reaches_neighbours_within_a_window() -> None:
    projector = projector_of(projector_context_layers=2)
    frames, num_frames = torch.randn(2, 40, 8), torch.tensor([40, 13])
    fresh, blocks = projector(frames, num_frames), projector.context
    projector.context = torch.nn.ModuleList([blocks[0]])
    assert torch.equal(projector(frames, num_frames), fresh)
    projector.context = blocks
    for block in blocks:
        torch.nn.init.normal_(block.out.weight)
    together = projector(frames, num_frames)
    frames[1, 13:] = 1e4  # padding is no matter
    assert torch.equal(projector(frames, num_frames), together)
    alone = [projector(frames[i : i + 1, :n], num_frames[i : i + 1]) for i, n in enumerate(num_frames.tolist())]
    torch.testing.assert_close(together, torch.cat(alone), **TOLERANCE)
    frames[0, 0] += 1.0
    changed = (projector(frames, num_frames) - together).abs().sum(dim=-1) > 1e-6
    assert changed.nonzero().flatten().tolist() == list(range(9))  # two blocks of nine tokens: eight to the right


# ---- word pieces -----------------------------------------------------------------------------------------------------


@pytest.fixture
def embeddings() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(VOCAB_SIZE, HIDDEN_SIZE) + 2.0


@pytest.fixture
def readout(embeddings) -> PieceReadout:
    readout = PieceReadout(VOCAB_SIZE, HIDDEN_SIZE)
    with torch.no_grad():
        readout.lexicon.fill_(False)
        readout.lexicon[[3, 7, 20]] = True
        readout.blank.copy_(embeddings[5])
    return readout


def test_slots_are_said_by_the_probabilities_of_the_blank_and_the_lexicon(readout, embeddings) -> None:
    distinct = embeddings - embeddings.mean(dim=0)
    scores = readout.log_probabilities(distinct[[5, 3, 7, 20]], embeddings)
    assert scores.shape == (4, 4) and scores.argmax(dim=-1).tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(scores.exp().sum(dim=-1), torch.ones(4))
    with torch.no_grad():
        readout.log_scale.fill_(6.0)  # a slot that is sure is that embedding
        torch.testing.assert_close(readout(3.0 * distinct[[7, 5, 20]], embeddings), embeddings[[7, 5, 20]])
        outside = readout(distinct[[11]], embeddings)
        assert torch.cdist(outside, embeddings[[3, 5, 7, 20]]).min() < 1e-3
        readout.residual_gain.fill_(0.5)
        torch.testing.assert_close(readout(distinct[[11]], embeddings), outside + 0.5 * distinct[[11]])


def test_what_has_changed_is_noticed_and_what_was_heard_does_not_keep_it_from_learning(readout, embeddings) -> None:
    slot = torch.randn(1, HIDDEN_SIZE)
    with torch.inference_mode():
        heard = readout(slot, embeddings)
    with torch.no_grad():
        readout.lexicon[8] = True
        assert readout.log_probabilities(slot, embeddings).shape == (1, 5)
        readout.lexicon[8] = False
    said = readout(slot.requires_grad_(), embeddings)
    torch.testing.assert_close(said, heard)
    said.sum().backward()
    assert slot.grad.abs().sum() > 0
    with torch.no_grad():
        embeddings.mul_(2.0)
        assert not torch.allclose(readout(slot, embeddings), heard)


# ---- models that read out pieces and letters -------------------------------------------------------------------------


def speaking_model(bases: tuple[str, str], dtype: torch.dtype = torch.float32) -> AudioLlmForConditionalGeneration:
    torch.manual_seed(0)
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(
        *bases, lora_rank=4, projector_readout="pieces", projector_letters=LETTERS, dtype=dtype
    )
    with torch.no_grad():  # a block starts as the identity
        for block in model.model.multi_modal_projector.letters.context:
            block.out.weight.normal_(std=0.1)
    return model


def tokens(model, frames: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    return model.get_audio_features(encoded_audio=frames, encoded_audio_lengths=torch.tensor(lengths)).pooler_output


def test_the_projector_learns_but_neither_embeddings_nor_letters_do(tiny_bases) -> None:
    model = speaking_model(tiny_bases)
    projector, frames = model.model.multi_modal_projector, torch.randn(2, 9, model.config.audio_config.d_model)
    both = tokens(model, frames, [9, 5])
    alone = [tokens(model, frames[:1], [9]), tokens(model, frames[1:, :5], [5])]
    torch.testing.assert_close(both, torch.cat(alone))
    both.square().sum().backward()
    assert model.get_input_embeddings().weight.grad is None
    for name, weight in projector.named_parameters():
        if name.startswith("letters."):
            assert weight.grad is None and not weight.requires_grad
        else:
            assert weight.grad is not None and weight.grad.abs().sum() > 0, name
    assert not any(".letters." in name for name in model.trainable_names())
    projector.letters = None  # no audio token depends on it
    assert torch.equal(tokens(model, frames, [9, 5]), both)


@torch.no_grad()
def test_slots_of_letters_are_of_40_ms_and_a_clip_is_what_it_is_alone(tiny_bases) -> None:
    letters = speaking_model(tiny_bases).model.multi_modal_projector.letters
    frames, lengths = torch.randn(3, 41, letters.linear_in.in_features // 2), torch.tensor([41, 6, 17])
    together, slots = letters(frames, lengths)
    assert slots.tolist() == [21, 3, 9] and together.shape[2] == 2 + len(LETTERS)
    torch.testing.assert_close(together.exp().sum(dim=-1), torch.ones(together.shape[:2]))
    for row, (length, count) in enumerate(zip(lengths.tolist(), slots.tolist())):
        alone, _ = letters(frames[row : row + 1, :length], lengths[row : row + 1])
        torch.testing.assert_close(together[row, :count], alone[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("weight_format", "dtype"), [("adapter", torch.bfloat16), ("full", torch.float32)])
@torch.no_grad()
def test_a_checkpoint_brings_lexicon_and_letters_back(tiny_bases, weight_format, dtype, tmp_path) -> None:
    model = speaking_model(tiny_bases, dtype)
    readout = model.model.multi_modal_projector.readout
    readout.lexicon[:10] = readout.lexicon[40:] = False
    readout.blank_bias.fill_(0.3)
    frames = torch.randn(1, 9, model.config.audio_config.d_model)
    model.save_pretrained(tmp_path, weights=weight_format)
    again = AudioLlmForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype)
    torch.testing.assert_close(tokens(again, frames, [9]), tokens(model, frames, [9]))
    projector = again.model.multi_modal_projector
    assert projector.readout.lexicon.sum() == 30 and projector.readout.lexicon.dtype == torch.bool
    letters = projector.letters.state_dict()
    for name, weight in model.model.multi_modal_projector.letters.state_dict().items():
        assert torch.equal(letters[name], weight), name

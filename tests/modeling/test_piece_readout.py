"""Audio tokens as mixtures of the language model's embeddings: exact where sure, learned where not, saved whole."""

import pytest
import torch
from audiollm import AudioLlmForConditionalGeneration
from audiollm.projector import PieceReadout

VOCAB_SIZE, HIDDEN_SIZE = 30, 12


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


def test_a_slot_that_is_sure_is_that_embedding(readout, embeddings) -> None:
    with torch.no_grad():
        readout.log_scale.fill_(6.0)
        distinct = embeddings - embeddings.mean(dim=0)
        said = readout(3.0 * distinct[[7, 5, 20]], embeddings)
    torch.testing.assert_close(said, embeddings[[7, 5, 20]])


def test_probabilities_are_of_the_blank_and_the_lexicon_by_id(readout, embeddings) -> None:
    distinct = embeddings - embeddings.mean(dim=0)
    scores = readout.log_probabilities(distinct[[5, 3, 7, 20]], embeddings)
    assert scores.shape == (4, 4)
    assert scores.argmax(dim=-1).tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(scores.exp().sum(dim=-1), torch.ones(4))


def test_pieces_outside_the_lexicon_are_never_said(readout, embeddings) -> None:
    with torch.no_grad():
        readout.log_scale.fill_(6.0)
        said = readout((embeddings - embeddings.mean(dim=0))[[11]], embeddings)
    assert torch.cdist(said, embeddings[[3, 5, 7, 20]]).min() < 1e-3


def test_a_changed_lexicon_or_changed_embeddings_are_noticed(readout, embeddings) -> None:
    slot = torch.randn(1, HIDDEN_SIZE)
    before = readout(slot, embeddings)
    with torch.no_grad():
        readout.lexicon[8] = True
    assert readout.log_probabilities(slot, embeddings).shape == (1, 5)
    with torch.no_grad():
        readout.lexicon[8] = False
        embeddings.mul_(2.0)
    assert not torch.allclose(readout(slot, embeddings), before)


def test_the_residual_lets_through_what_no_piece_says(readout, embeddings) -> None:
    slot = torch.randn(2, HIDDEN_SIZE)
    before = readout(slot, embeddings)
    with torch.no_grad():
        readout.residual_gain.fill_(0.5)
    torch.testing.assert_close(readout(slot, embeddings), before + 0.5 * slot)


@pytest.fixture
def speaking_model(tiny_bases) -> AudioLlmForConditionalGeneration:
    torch.manual_seed(0)
    return AudioLlmForConditionalGeneration.from_audio_text_pretrained(
        *tiny_bases, lora_rank=4, projector_readout="pieces"
    )


def tokens(model, frames: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    return model.get_audio_features(encoded_audio=frames, encoded_audio_lengths=torch.tensor(lengths)).pooler_output


def test_the_whole_projector_learns_and_the_embeddings_do_not(speaking_model) -> None:
    frames = torch.randn(1, 9, speaking_model.config.audio_config.d_model)
    tokens(speaking_model, frames, [9]).square().sum().backward()
    projector = speaking_model.model.multi_modal_projector
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in projector.parameters())
    assert speaking_model.get_input_embeddings().weight.grad is None


def test_batched_is_single(speaking_model) -> None:
    frames = torch.randn(2, 9, speaking_model.config.audio_config.d_model)
    with torch.no_grad():
        both = tokens(speaking_model, frames, [9, 5])
        first, second = tokens(speaking_model, frames[:1], [9]), tokens(speaking_model, frames[1:, :5], [5])
    torch.testing.assert_close(both, torch.cat([first, second]))


@pytest.mark.parametrize(("weight_format", "dtype"), [("adapter", torch.bfloat16), ("full", torch.float32)])
def test_a_checkpoint_brings_the_lexicon_back(tiny_bases, weight_format, dtype, tmp_path) -> None:
    speaking_model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(
        *tiny_bases, lora_rank=4, projector_readout="pieces", dtype=dtype
    )
    readout = speaking_model.model.multi_modal_projector.readout
    with torch.no_grad():
        readout.lexicon.fill_(False)
        readout.lexicon[10:40] = True
        readout.blank_bias.fill_(0.3)
    frames = torch.randn(1, 9, speaking_model.config.audio_config.d_model)
    speaking_model.save_pretrained(tmp_path, weights=weight_format)
    again = AudioLlmForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype)
    assert again.model.multi_modal_projector.readout.lexicon.sum() == 30
    with torch.no_grad():
        torch.testing.assert_close(tokens(again, frames, [9]), tokens(speaking_model, frames, [9]))
    assert again.model.multi_modal_projector.readout.lexicon.dtype == torch.bool


def test_what_is_heard_before_training_does_not_keep_it_from_learning(readout, embeddings) -> None:
    slot = torch.randn(1, HIDDEN_SIZE)
    with torch.inference_mode():
        heard = readout(slot, embeddings)
    said = readout(slot.requires_grad_(), embeddings)
    torch.testing.assert_close(said, heard)
    said.sum().backward()
    assert slot.grad is not None and slot.grad.abs().sum() > 0

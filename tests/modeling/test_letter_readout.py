"""The readout of letters: a clip's letters do not depend on its batch, and no audio token depends on letters."""

import pytest
import torch
from audiollm import AudioLlmForConditionalGeneration

LETTERS = "abcd'"


@pytest.fixture(scope="module")
def model(tiny_bases) -> AudioLlmForConditionalGeneration:
    torch.manual_seed(0)
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(
        *tiny_bases, lora_rank=2, projector_readout="pieces", projector_letters=LETTERS
    )
    with torch.no_grad():  # a block starts as the identity
        for block in model.model.multi_modal_projector.letters.context:
            block.out.weight.normal_(std=0.1)
    return model


def test_slots_are_of_40_ms_and_a_clip_is_what_it_is_alone(model) -> None:
    width = model.config.audio_config.hidden_size
    frames, lengths = torch.randn(3, 41, width), torch.tensor([41, 6, 17])
    with torch.no_grad():
        together, slots = model.model.multi_modal_projector.letters(frames, lengths)
        assert slots.tolist() == [21, 3, 9] and together.shape[2] == 2 + len(LETTERS)
        torch.testing.assert_close(together.exp().sum(dim=-1), torch.ones(together.shape[:2]))
        for row, length, count in zip(range(3), lengths.tolist(), slots.tolist()):
            alone, _ = model.model.multi_modal_projector.letters(
                frames[row : row + 1, :length], lengths[row : row + 1]
            )
            torch.testing.assert_close(together[row, :count], alone[0], atol=1e-5, rtol=1e-4)


def test_audio_tokens_and_gradients_do_not_know_of_letters(model) -> None:
    projector = model.model.multi_modal_projector
    frames, lengths = torch.randn(1, 12, model.config.audio_config.hidden_size), torch.tensor([12])
    tokens = projector(frames, lengths, model.get_input_embeddings().weight)
    letters, projector.letters = projector.letters, None
    try:
        torch.testing.assert_close(
            projector(frames, lengths, model.get_input_embeddings().weight), tokens, atol=0, rtol=0
        )
    finally:
        projector.letters = letters
    model.freeze_bases()
    assert not any(".letters." in name for name in model.trainable_names())
    assert not any(weight.requires_grad for weight in letters.parameters())


def test_letters_are_saved_with_the_adapter(model, tmp_path) -> None:
    model.save_pretrained(tmp_path)
    again = AudioLlmForConditionalGeneration.from_pretrained(tmp_path)
    assert again.config.projector_letters == LETTERS
    saved = model.model.multi_modal_projector.letters.state_dict()
    for name, weight in again.model.multi_modal_projector.letters.state_dict().items():
        assert torch.equal(weight, saved[name]), name

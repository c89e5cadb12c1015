"""The encoder without its 30-second padding, and the projector in all its shapes."""

import pytest
import torch
from audiollm import AudioLlmConfig, AudioLlmForConditionalGeneration
from audiollm.projector import AudioLlmProjector
from batches import TOLERANCE, collate, make_row, mixed_rows
from tiny_models import NUM_MEL_BINS
from transformers import WhisperModel


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_windows_are_stock_whispers_and_padding_is_no_matter(tiny_bases, tiny_model, attention: str) -> None:
    stock = WhisperModel.from_pretrained(tiny_bases[0], attn_implementation=attention).eval().encoder
    tiny_model.set_attn_implementation(attention)
    encode = tiny_model.model.encode_audio
    features = torch.randn(2, NUM_MEL_BINS, 3000)
    frames, lengths = encode(features)
    assert torch.equal(frames, stock(features).last_hidden_state)
    assert lengths.tolist() == [1500, 1500]
    short, mask = features[:1, :, :77], torch.zeros(1, 500, dtype=torch.long)
    mask[:, :77] = 1
    frames, lengths = encode(torch.nn.functional.pad(short, (0, 423)), mask)
    assert lengths.item() == 39
    torch.testing.assert_close(frames[:, :39], encode(short)[0], **TOLERANCE)


@pytest.mark.parametrize("filler", [1e4, float("nan")])
@torch.no_grad()
def test_what_lies_in_padding_is_no_matter(shared_tiny_model, filler: float) -> None:
    batch = collate(shared_tiny_model.config, mixed_rows(shared_tiny_model.config))
    expected = shared_tiny_model(**batch).logits
    batch["input_features"].masked_fill_(~batch["input_features_mask"].bool()[:, None, :], filler)
    assert torch.equal(shared_tiny_model(**batch).logits, expected)


def projector_of(**fields) -> AudioLlmProjector:
    config = AudioLlmConfig(
        audio_config={"model_type": "whisper", "d_model": 8},
        text_config={"model_type": "llama", "hidden_size": 6, "num_attention_heads": 2},
        **{"projector_hidden_size": 10, "stack_factor": 2, **fields},
    )
    torch.manual_seed(0)
    return AudioLlmProjector(config)


@pytest.mark.parametrize(
    ("projector_type", "pre_norm", "mid_norm"),
    [
        ("swiglu", True, True),
        ("swiglu", True, False),
        ("mlp", False, True),
        ("linear", True, True),
        ("linear", False, False),
    ],
)
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


@torch.no_grad()
def test_fresh_audio_tokens_are_as_long_as_text_tokens(tiny_bases) -> None:
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(*tiny_bases)
    tokens = model(**collate(model.config, [make_row(model.config, 2, (200,), 2)])).audio_hidden_states
    embeddings = model.get_input_embeddings().weight
    assert 0.5 < float(tokens.square().mean().sqrt() / embeddings.square().mean().sqrt()) < 2.0

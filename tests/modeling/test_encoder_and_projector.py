"""The encoder without its 30-second padding, and the projector in all its shapes."""

import pytest
import torch
from audiollm import AudioLlmConfig, AudioLlmForConditionalGeneration, embedded_bases
from audiollm.projector import AudioLlmProjector
from batches import collate, make_row, mixed_rows, num_slots
from tiny_models import NUM_MEL_BINS
from transformers import WhisperModel

TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_full_window_is_stock_whispers(tiny_bases, attention: str) -> None:
    stock = WhisperModel.from_pretrained(tiny_bases[0], attn_implementation=attention).eval().encoder
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(*tiny_bases, attn_implementation=attention)
    features = torch.randn(2, NUM_MEL_BINS, 3000)
    frames, lengths = model.model.encode_audio(features)
    assert torch.equal(frames, stock(features).last_hidden_state)
    assert lengths.tolist() == [1500, 1500]


def test_full_window_is_stock_whispers_with_real_weights(real_model, real_bases) -> None:
    stock = WhisperModel.from_pretrained(embedded_bases.base_folder(real_bases[0])).eval().encoder
    features = torch.randn(1, NUM_MEL_BINS, 3000)
    with torch.backends.mkldnn.flags(enabled=False):
        expected = stock(features).last_hidden_state
        assert torch.equal(real_model.model.audio_tower(features).last_hidden_state, expected)
        assert torch.equal(real_model.model.encode_audio(features)[0], expected)
    # Products may be those of another library: the same to rounding.
    expected = stock(features).last_hidden_state
    torch.testing.assert_close(real_model.model.audio_tower(features).last_hidden_state, expected, **TOLERANCE)
    torch.testing.assert_close(real_model.model.encode_audio(features)[0], expected, **TOLERANCE)


@pytest.mark.parametrize("filler", [1e4, float("nan"), float("inf")])
@torch.no_grad()
def test_padding_content_is_no_matter(tiny_model, filler: float) -> None:
    batch = collate(tiny_model.config, mixed_rows(tiny_model.config))
    expected = tiny_model(**batch).logits
    batch["input_features"].masked_fill_(~batch["input_features_mask"].bool()[:, None, :], filler)
    assert torch.equal(tiny_model(**batch).logits, expected)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_extra_padding_is_no_matter(tiny_bases, attention: str) -> None:
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(*tiny_bases, attn_implementation=attention)
    features = torch.randn(1, NUM_MEL_BINS, 77)
    expected, _ = model.model.encode_audio(features)
    padded = torch.nn.functional.pad(features, (0, 423))
    mask = torch.zeros(1, 500, dtype=torch.long)
    mask[:, :77] = 1
    frames, lengths = model.model.encode_audio(padded, mask)
    assert lengths.item() == 39
    torch.testing.assert_close(frames[:, :39], expected, **TOLERANCE)


@torch.no_grad()
def test_attention_implementations_agree(tiny_bases) -> None:
    logits = []
    for attention in ("sdpa", "eager"):
        torch.manual_seed(0)
        model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(*tiny_bases, attn_implementation=attention)
        assert model.config._attn_implementation == attention
        assert model.model.language_model.config._attn_implementation == attention
        assert model.model.audio_tower.config._attn_implementation == attention
        batch = collate(model.config, mixed_rows(model.config))
        logits.append(model(**batch).logits[batch["attention_mask"].bool()])
    torch.testing.assert_close(*logits, **TOLERANCE)


@pytest.mark.parametrize("stack_factor", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("projector_type", ["swiglu", "mlp", "linear"])
@torch.no_grad()
def test_projector_shapes(tiny_bases, projector_type: str, stack_factor: int) -> None:
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(
        *tiny_bases, projector_type=projector_type, stack_factor=stack_factor, lora_rank=2
    )
    mel_frames = (1, 2, 15, 16, 17, 33, 100)
    rows = [make_row(model.config, 2, (frames,), 2, seed=frames) for frames in mel_frames]
    out = model(**collate(model.config, rows))  # would raise if slots and audio tokens differed
    assert out.audio_hidden_states.shape == (
        sum(num_slots(n, stack_factor) for n in mel_frames),
        model.config.hidden_size,
    )
    assert out.logits.isfinite().all()


@pytest.mark.parametrize("projector_type", ["swiglu", "mlp", "linear"])
@pytest.mark.parametrize("pre_norm", [True, False])
@pytest.mark.parametrize("mid_norm", [True, False])
def test_projector_layers(projector_type: str, pre_norm: bool, mid_norm: bool) -> None:
    config = AudioLlmConfig(
        audio_config={"model_type": "whisper", "d_model": 8},
        text_config={"model_type": "llama", "hidden_size": 6, "num_attention_heads": 2},
        projector_type=projector_type,
        projector_hidden_size=10,
        projector_pre_norm=pre_norm,
        projector_mid_norm=mid_norm,
        stack_factor=2,
    )
    projector = AudioLlmProjector(config)
    shapes = {name: tuple(value.shape) for name, value in projector.named_parameters()}
    expected = {"linear_2.weight": (6, {"swiglu": 5, "mlp": 10, "linear": 16}[projector_type])}
    if pre_norm:
        expected["norm_pre.weight"] = (16,)
    if projector_type != "linear":
        expected["linear_1.weight"] = (10, 16)
        if mid_norm:
            expected["norm_mid.weight"] = (expected["linear_2.weight"][1],)
    assert shapes == expected
    frames = torch.randn(1, 4, 8)
    assert projector(frames, torch.tensor([4])).shape == (2, 6)
    # Frames are stacked in time, each whole beside the next.
    stacked, mask = projector.stack(frames, torch.tensor([3]))
    assert torch.equal(stacked[0, 0], frames[0, :2].flatten())
    assert torch.equal(stacked[0, 1], torch.cat([frames[0, 2], torch.zeros(8)]))
    assert mask.tolist() == [[True, True]]


@pytest.fixture
def context_projector() -> AudioLlmProjector:
    """A projector of two context blocks that do something."""
    torch.manual_seed(0)
    config = AudioLlmConfig(
        audio_config={"model_type": "whisper", "d_model": 8},
        text_config={"model_type": "llama", "hidden_size": 6, "num_attention_heads": 2},
        projector_context_layers=2,
        stack_factor=2,
    )
    projector = AudioLlmProjector(config)
    for block in projector.context:
        torch.nn.init.normal_(block.out.weight)
    return projector


@torch.no_grad()
def test_context_reaches_neighbours_only_within_a_window(context_projector) -> None:
    frames, num_frames = torch.randn(2, 40, 8), torch.tensor([40, 13])
    together = context_projector(frames, num_frames)
    frames[1, 13:] = 1e4  # padding is no matter
    assert torch.equal(context_projector(frames, num_frames), together)
    alone = [
        context_projector(frames[i : i + 1, :n], num_frames[i : i + 1]) for i, n in enumerate(num_frames.tolist())
    ]
    torch.testing.assert_close(together, torch.cat(alone), **TOLERANCE)
    frames[0, 0] += 1.0
    changed = (context_projector(frames, num_frames) - together).abs().sum(dim=-1) > 1e-6
    assert changed.nonzero().flatten().tolist() == list(range(9))  # two blocks of nine tokens: eight to the right


@torch.no_grad()
def test_fresh_context_blocks_change_nothing(context_projector) -> None:
    for block in context_projector.context:
        block.reset_parameters()
    frames, num_frames = torch.randn(1, 12, 8), torch.tensor([12])
    expected = context_projector(frames, num_frames)
    context_projector.context = torch.nn.ModuleList([context_projector.context[0]])
    assert torch.equal(context_projector(frames, num_frames), expected)


def test_fresh_audio_tokens_are_as_long_as_text_tokens(real_model) -> None:
    config = real_model.config
    batch = collate(config, [make_row(config, 2, (200,), 2)])
    with torch.no_grad():
        tokens = real_model(**batch).audio_hidden_states
    embeddings = real_model.get_input_embeddings().weight
    ratio = float(tokens.square().mean().sqrt() / embeddings.square().mean().sqrt())
    assert 0.5 < ratio < 2.0


def test_windows_that_cannot_be(tiny_model) -> None:
    encode = tiny_model.model.encode_audio
    with pytest.raises(ValueError, match=r"3001 frames per window; expected 1 to 3000"):
        encode(torch.randn(1, NUM_MEL_BINS, 3001))
    with pytest.raises(ValueError, match=r"0 frames per window"):
        encode(torch.randn(1, NUM_MEL_BINS, 0))
    with pytest.raises(ValueError, match=r"128 mel bins but this encoder takes 80"):
        encode(torch.randn(1, 128, 100))

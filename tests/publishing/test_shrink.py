"""A smaller adapter: the nearest of its rank, loaded as any other, and refused where there is none."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor
from audiollm.publishing.shrink import (
    EIGHT_BITS,
    PROJECTOR_GAIN,
    ShrinkError,
    eight_bit_matrices,
    low_rank,
    main,
    shrink,
)
from checkpoint_folders import change_json
from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"
TOLERANCE = 1e-5
#: Three bits of mantissa: at most a sixteenth, and half of that on average.
MAX_ROUNDING = 1 / 32


@pytest.fixture
def checkpoint(saved: Path, tmp_path: Path) -> Path:
    """One's own copy, with bases that are there."""
    return Path(shutil.copytree(saved, tmp_path / "runs" / "tiny"))


def test_the_update_is_the_nearest_of_its_rank() -> None:
    generator = torch.Generator().manual_seed(0)
    down, up = torch.randn(6, 20, generator=generator), torch.randn(15, 6, generator=generator)
    left, values, right = torch.linalg.svd(up @ down)
    for rank in (1, 3, 6):
        smaller_down, smaller_up, kept = low_rank(down, up, rank)
        assert smaller_down.shape == (rank, 20) and smaller_up.shape == (15, rank)
        nearest = left[:, :rank] * values[:rank] @ right[:rank]
        torch.testing.assert_close(smaller_up @ smaller_down, nearest, atol=1e-4, rtol=1e-4)
        assert kept == pytest.approx(float(values[:rank].square().sum() / values.square().sum()), abs=1e-5)
    down, up, kept = low_rank(torch.randn(4, 8), torch.zeros(5, 4), 2)  # an update of nothing
    assert not (up @ down).any() and kept == 1.0


def test_updates_of_a_low_rank_lose_nothing(checkpoint: Path, tmp_path: Path) -> None:
    """LoRA whose second half is zero: half the rank is the same model."""
    weights = load_file(checkpoint / WEIGHTS)
    rank = next(len(weight) for name, weight in weights.items() if ".lora_A." in name)
    generator = torch.Generator().manual_seed(0)
    for name in [name for name in weights if ".lora_" in name]:
        weights[name] = torch.randn(weights[name].shape, generator=generator) / 10
        if ".lora_B." in name:
            weights[name][:, rank // 2 :] = 0.0
    save_file(weights, checkpoint / WEIGHTS, metadata={"format": "pt"})
    assert shrink(checkpoint, tmp_path / "small", rank // 2, torch.float32) == pytest.approx(1.0)
    models = [
        AudioLlmForConditionalGeneration.from_pretrained(each).eval() for each in (checkpoint, tmp_path / "small")
    ]
    assert (tmp_path / "small" / WEIGHTS).stat().st_size < (checkpoint / WEIGHTS).stat().st_size
    processor = AudioLlmProcessor.from_pretrained(tmp_path / "small")
    inputs = processor(text="<audio> said?", audio=torch.randn(16_000, generator=generator).numpy())
    with torch.inference_mode():
        logits = [model(**inputs).logits for model in models]
        bare = models[0](**inputs, adapter_names=[None]).logits
    torch.testing.assert_close(*logits, atol=TOLERANCE, rtol=TOLERANCE)
    assert not torch.allclose(logits[0], bare, atol=TOLERANCE)


def test_precision_and_rank_are_those_asked_for(checkpoint: Path, tmp_path: Path, capsys) -> None:
    (checkpoint / "optimizer.pt").write_bytes(b"state")
    config = json.loads((checkpoint / "config.json").read_text())
    change_json(checkpoint / "config.json", text_config={**config["text_config"], "_name_or_path": "/home/me/llama"})
    main([f"--model={checkpoint}", f"--output_dir={tmp_path / 'small'}", "--lora-rank=1", "--dtype=float16"])
    assert "MiB instead of" in capsys.readouterr().out
    main([f"--model={checkpoint}", f"--output_dir={tmp_path / 'cast'}"])
    small, cast, whole = (load_file(each / WEIGHTS) for each in (tmp_path / "small", tmp_path / "cast", checkpoint))
    assert {name: weight.shape for name, weight in cast.items()} == {name: w.shape for name, w in whole.items()}
    for weights, dtype in ((small, torch.float16), (cast, torch.bfloat16)):
        assert {weight.dtype for weight in weights.values() if weight.numel() > 1} <= {dtype, torch.bool}
    assert {len(weight) for name, weight in small.items() if ".lora_A." in name} == {1}
    assert not (tmp_path / "small" / "optimizer.pt").exists()
    assert (tmp_path / "small" / "modeling_audiollm.py").is_file()
    settings, before = (
        AudioLlmForConditionalGeneration.from_pretrained(path).config.adapter_settings("speech")
        for path in (tmp_path / "small", checkpoint)
    )
    assert settings["rank"] == 1 and settings["alpha"] == pytest.approx(before["alpha"] / before["rank"])
    assert "/home/me" not in (tmp_path / "small" / "config.json").read_text()


def test_eight_bits_round_the_projector_and_nothing_else(tiny_bases, tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = {"projector_context_layers": 1, "projector_readout": "pieces", "projector_letters": "ab"}
    checkpoint = tmp_path / "whole"
    AudioLlmForConditionalGeneration.from_audio_text_pretrained(*tiny_bases, **shape).save_pretrained(checkpoint)
    main([f"--model={checkpoint}", f"--output_dir={tmp_path / 'small'}", "--dtype=float32", "--projector_8bit"])
    small, whole = load_file(tmp_path / "small" / WEIGHTS), load_file(checkpoint / WEIGHTS)
    changed = {name for name in whole if not torch.equal(small[name].float(), whole[name].float())}
    pairs = eight_bit_matrices(whole)
    # The first matrix, that of one context block, and of the readout of letters the first and those of three blocks.
    assert len(pairs) == 6 and changed == {*pairs, *pairs.values()}
    model = AudioLlmForConditionalGeneration.from_pretrained(tmp_path / "small")
    for matrix, gain in pairs.items():
        assert small[matrix].dtype == EIGHT_BITS
        products = [each[matrix].float() * each[gain].float() for each in (small, whole)]
        assert (products[0] - products[1]).norm() < MAX_ROUNDING * products[1].norm()
        torch.testing.assert_close(model.get_parameter(matrix).float(), small[matrix].float())
    del whole[PROJECTOR_GAIN]
    save_file(whole, checkpoint / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ShrinkError, match="projector_pre_norm"):
        shrink(checkpoint, tmp_path / "other", projector_8bit=True)


def test_what_cannot_be_shrunk_is_said(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ShrinkError, match="--lora_rank is 0"):
        shrink(checkpoint, tmp_path / "small", 0)
    with pytest.raises(ShrinkError, match="not empty"):
        shrink(checkpoint, checkpoint)
    with pytest.raises(ShrinkError, match="no config"):
        shrink(tmp_path, tmp_path / "small")
    change_json(checkpoint / "config.json", weight_format="merged")
    with pytest.raises(SystemExit, match="'merged'; expected 'adapter'"):
        main([f"--model={checkpoint}", f"--output_dir={tmp_path / 'small'}"])
    assert not (tmp_path / "small").exists()

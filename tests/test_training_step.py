"""The comparison of training steps: its batches, and what its table says of the times it saw."""

import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import training_step
from recipe_peers import RECIPES, SlamProjector, UltravoxProjector, masked_whisper
from training_peers import SAMPLE_RATE_HZ, SHAPES, Shape, make_clips

WINDOW_FRAMES = 3000


def seen(side: str, shape: str, seconds: list[float], memory: float) -> dict:
    return {"side": side, "shape": shape, "precision": "float32", "seconds": seconds, "peak_memory_mib": memory}


def test_ratios_are_of_medians_on_the_same_batch() -> None:
    runs = [
        seen("audiollm", "short", [1.0, 9.0], 100),
        seen("audiollm", "short", [2.0, 3.0], 300),
        seen("voxtral", "short", [25.0], 1000),
        seen("audiollm", "10s", [4.0], 100),
    ]
    short, voxtral, long = training_step.summarize(runs)
    assert short["median_seconds"] == 2.5 and short["peak_memory_mib"] == 200
    assert short["times_faster_than_voxtral"] == 10.0 and short["memory_share_of_voxtral"] == 0.2
    assert voxtral["times_faster_than_voxtral"] == 1.0
    assert "times_faster_than_voxtral" not in long  # its peer was not run on that batch
    training_step.print_table([short, voxtral], ["voxtral"])


@pytest.mark.parametrize("name", [name for name, shape in SHAPES.items() if shape.seconds])
def test_clips_are_as_long_as_said_and_hold_speech(real_bases, name: str) -> None:
    clips = make_clips(SHAPES[name])
    assert {len(clip.waveform) for clip in clips} == {int(SHAPES[name].seconds * SAMPLE_RATE_HZ)}
    assert len({clip.text for clip in clips}) == len(clips) == SHAPES[name].num_clips
    assert all(clip.waveform.any() for clip in clips)


@pytest.mark.parametrize("option", ["--rounds", "--steps"])
def test_counts_must_be_positive(monkeypatch: pytest.MonkeyPatch, capsys, option: str) -> None:
    monkeypatch.setattr(sys, "argv", ["training_step.py", option, "0"])
    with pytest.raises(SystemExit):
        training_step.read_options()
    assert "must be 1 or more" in capsys.readouterr().err


@pytest.mark.slow
def test_steps_end_by_number_or_by_time(real_bases) -> None:
    once = training_step.run_side("audiollm", "short", "bfloat16", 3, step_seconds=1e-6)
    assert len(once["seconds"]) == 1 and len(once["losses"]) == 2


def test_recipes_projectors_make_as_many_tokens_as_theirs() -> None:
    frames = torch.zeros(2, 70, 384)
    assert UltravoxProjector(384, 576)(frames).shape == (2, 9, 576)  # the last two frames, and zeros
    assert SlamProjector(384, 576)(frames[:, :69]).shape == (2, 13, 576)  # the last four are dropped
    sizes = {name: each.numel() for name, each in UltravoxProjector(384, 576).named_parameters()}
    assert sizes == {"norm.weight": 3072, "widen.weight": 3072 * 4096, "middle_norm.weight": 2048} | {
        "narrow.weight": 2048 * 576
    }


@pytest.mark.slow
@pytest.mark.parametrize("side", ["ultravox", "ultravox of 30 s", "slam"])
def test_recipes_hear_as_many_tokens_as_theirs_do_and_train_the_projector_alone(real_bases, side: str) -> None:
    shape = Shape(2, None)
    model, batch = RECIPES[side](torch.bfloat16, shape)
    frames = batch["input_features"].shape[2]
    assert (frames == WINDOW_FRAMES) is (side != "ultravox")  # as it trains, no more than the longest clip
    heard = [len(clip.waveform) / SAMPLE_RATE_HZ for clip in make_clips(shape)]
    slots = (batch["input_ids"] == model.slot_id).sum(dim=1).tolist()
    # 100 log-mel frames a second, two an encoder frame: eight of those a token, or five of all 30 s.
    assert slots == ([WINDOW_FRAMES // 10] * 2 if side == "slam" else [math.ceil(100 * each / 16) for each in heard])
    assert {name.split(".")[0] for name, each in model.named_parameters() if each.requires_grad} == {"projector"}


def test_ultravox_does_not_look_at_padding(real_bases) -> None:
    encoder = masked_whisper(torch.float32)
    features = torch.randn(1, 80, 200)
    lengths = torch.tensor([100])
    other = features.clone()
    other[:, :, 110:] = 0.0
    frames, again = encoder(features, lengths), encoder(other, lengths)
    assert torch.allclose(frames[:, :50], again[:, :50], atol=1e-4)
    assert not torch.allclose(encoder(features)[:, :50], encoder(other)[:, :50], atol=1e-4)

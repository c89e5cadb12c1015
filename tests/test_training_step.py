"""The comparison of training steps: its batches, and what its table says of the times it saw."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import training_step
from training_peers import SAMPLE_RATE_HZ, SHAPES, make_clips


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

"""The recipe's recordings without speech: of every kind, audible or silent, and the same from the same seed."""

import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

sys.path.insert(0, str(Path(__file__).parents[2] / "shipped_adapter" / "recipe"))

import no_speech


def test_clips_of_every_kind_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["no_speech.py", str(tmp_path), "--clips", "14"])
    no_speech.main()
    files = sorted(tmp_path.glob("*.flac"), key=lambda path: path.stem[-4:])
    assert {path.stem[:-5] for path in files} == {kind.__name__ for kind in no_speech.KINDS}
    for number, path in enumerate(files):
        waveform, rate = soundfile.read(path, dtype="float32")
        assert rate == 16_000 and 0.5 * rate <= len(waveform) <= 12 * rate
        np.testing.assert_allclose(waveform, no_speech.make(number, 0), atol=1e-4)
        assert np.abs(waveform).max() > 0 or path.stem.startswith("silence")
    assert not np.array_equal(no_speech.make(1, 0)[:8000], no_speech.make(1, 1)[:8000])

"""Damaged recordings in a process of their own: each is a waveform or an error that names it, in bounded memory and time."""

import contextlib
import gzip
import http.server
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from audiollm.corpora.rows import RowError, RowReader
from audiollm.processing import AudioError, load_waveform
from audiollm.processing import audio as audio_module
from loopback_site import running

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "processing"))
from audio_files import CONTAINER_FORMATS, SOUNDFILE_FORMATS, encode, sweep, write_container  # noqa: E402

QUICK_MUTATIONS, SLOW_MUTATIONS = 120, 12_000
SLOW_SEEDS = (1, 2)
TIMEOUT_S = 600


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of whole recordings, one of each format."""
    folder = tmp_path_factory.mktemp("whole")
    waveform = sweep(0.3)
    for ending in SOUNDFILE_FORMATS:
        (folder / f"whole.{ending}").write_bytes(encode(ending, waveform))
    for ending in CONTAINER_FORMATS:
        write_container(folder / f"whole.{ending}", waveform)
    return folder


def fuzz(whole: Path, mutations: int, seed: int) -> Counter[str]:
    """Return how many were read, and how many refused."""
    command = [sys.executable, str(HERE / "decoder_fuzz.py"), str(whole), str(mutations), str(seed)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, errors="replace")
    *before, last = ended.stdout.strip().splitlines()
    assert ended.returncode == 0, f"seed {seed}, mutation {last}: status {ended.returncode}\n{ended.stderr[-4000:]}"
    assert len(before) == mutations
    return Counter(json.loads(last))


def test_some_hundred_damaged_recordings(whole: Path) -> None:
    outcomes = fuzz(whole, QUICK_MUTATIONS, seed=0)
    assert outcomes["waveform"] > 0 and outcomes["refused"] > 0
    assert outcomes.total() == QUICK_MUTATIONS


@pytest.mark.slow
@pytest.mark.parametrize("seed", SLOW_SEEDS)
def test_many_thousand_damaged_recordings(whole: Path, seed: int) -> None:
    assert fuzz(whole, SLOW_MUTATIONS, seed).total() == SLOW_MUTATIONS


# ---- small files that claim, or hold, more than memory ---------------------------------------------------------------

#: STREAMINFO's 36 bits of total samples lie behind rate, channels and bits per sample.
FLAC_TOTAL_SAMPLES = slice(21, 26)
MIB = 1 << 20


@pytest.mark.parametrize("samples", [(1 << 30) + 1, (1 << 36) - 1])
def test_a_header_that_claims_days_is_refused_before_memory_is_asked_for(samples: int) -> None:
    data = bytearray(encode("flac", sweep(0.3)))
    packed = int.from_bytes(data[FLAC_TOTAL_SAMPLES], "big")
    data[FLAC_TOTAL_SAMPLES] = (packed >> 36 << 36 | samples).to_bytes(5, "big")
    with pytest.raises(AudioError, match=f"question: claims {samples} samples in 1 channels, more than"):
        load_waveform(bytes(data), name="question")


def test_what_holds_more_than_the_bound_is_refused(monkeypatch, whole: Path, tmp_path: Path) -> None:
    """Silence that unpacks to a thousand times its size, containers, a low rate that resampling multiplies."""
    path = tmp_path / "silence.flac"
    soundfile.write(path, np.zeros(4 * MIB, dtype=np.int16), 16_000)
    assert path.stat().st_size < MIB // 32  # of the 16 MiB that it is in memory
    with open(tmp_path / "huge.wav", "wb") as file:
        file.truncate(1 << 40)
    monkeypatch.setattr(audio_module, "MAX_SAMPLES", 4_000)
    for audio, words in (
        (path, r"silence\.flac: claims 4194304 samples .* `audiollm transcribe`"),
        (whole / "whole.m4a", r"whole\.m4a: claims 1\d{4} samples in 1 channels, more than the 4000"),
        (whole / "whole.aac", r"whole\.aac: holds more samples, more than the 4000"),  # which does not say its length
        (tmp_path / "huge.wav", r"huge\.wav: is larger than the 4294967296 bytes .* `audiollm transcribe`"),
    ):
        with pytest.raises(AudioError, match=words):
            load_waveform(audio)
    with pytest.raises(AudioError, match="lasts 3 s, which at 16000 Hz is more samples"):
        load_waveform(np.zeros(3_000, dtype=np.float32), 1_000)


# ---- hostile servers -------------------------------------------------------------------------------------------------


class HostileHandler(http.server.BaseHTTPRequestHandler):
    """Answers that never end, that unpack to far more than they are, or that break off."""

    protocol_version = "HTTP/1.0"

    def do_GET(self) -> None:  # the library's name
        self.send_response(200)
        if self.path == "/packed.wav":
            self.send_header("Content-Encoding", "gzip")
        if self.path == "/short.wav":
            self.send_header("Content-Length", str(MIB))
        self.end_headers()
        content = {"/packed.wav": gzip.compress(bytes(64 * MIB)), "/short.wav": b"RIFF"}.get(self.path)
        with contextlib.suppress(ConnectionError):
            if content is not None:
                self.wfile.write(content)
            while content is None:
                self.wfile.write(bytes(MIB // 4))

    do_HEAD = do_GET

    def log_message(self, *args: Any) -> None:
        """Nothing is logged."""


@pytest.fixture(scope="module")
def hostile_site() -> Iterator[str]:
    with running(HostileHandler) as server:
        yield f"http://127.0.0.1:{server.server_port}"


def test_an_answer_without_end_is_given_up_and_one_that_breaks_off_is_named(hostile_site: str, monkeypatch) -> None:
    with pytest.raises(AudioError, match=r"short\.wav: cannot be read \(ClientPayloadError"):
        load_waveform(f"{hostile_site}/short.wav")
    monkeypatch.setattr(audio_module, "MAX_FILE_BYTES", MIB)
    for name in ("endless.wav", "packed.wav"):
        with pytest.raises(AudioError, match=rf"{name}: is larger than the {MIB} bytes that are read at once"):
            load_waveform(f"{hostile_site}/{name}")


def test_protocols_that_reach_into_this_machine_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(encode("wav", sweep(0.3)))
    row, read = {"text": "<audio>", "response": "yes"}, RowReader(tmp_path, tmp_path).read
    for scheme in ("local", "memory", "simplecache::file", "zip", "LOCAL", "gopher", "https::file"):
        url = f"{scheme}://{tmp_path}/a.wav"
        with pytest.raises(
            AudioError, match=r"cannot be read \(Protocol not known.* expected a path, or one of http:"
        ):
            load_waveform(url)
        with pytest.raises(RowError, match="expected a path or a URL of http"):
            read({**row, "audio_paths": url}, "row 0")
    for scheme in ("file", "FILE"):  # which do not leave the folder of recordings
        with pytest.raises(RowError, match="expected a path or a URL"):
            read({**row, "audio_paths": f"{scheme}://{tmp_path}/a.wav"}, "row 0")
    # Nor does a name where bytes belong, which could be any file of this machine.
    with pytest.raises(AudioError, match="'bytes' of an audio dict must be a file's bytes, got str"):
        load_waveform({"bytes": str(tmp_path / "a.wav")})
    with pytest.raises(RowError, match="neither 'bytes' nor 'path'"):
        read({**row, "audio": {"bytes": str(tmp_path / "a.wav")}}, "row 0")

"""Files read by blocks are what they are read whole; windows lose nothing, cut no phrase, and leave out pauses and noise."""

import functools
import os
from http.server import SimpleHTTPRequestHandler
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from audiollm.inference.recordings import header_seconds, local_file, read_blocks
from audiollm.inference.windows import HOP_SECONDS, cut_into_windows, detect_voice
from audiollm.processing import AudioError, load_waveform
from audiollm.processing.audio import BLOCK_SAMPLES
from long_recordings import RATE, in_a_row, noises, prompts, silence
from loopback_site import running

ALL_TEST_PROMPTS, LONGEST_PROMPT_S = 69, 32.0

# ----------------------------------------------------------------------------------------------------------- blocks


def write_m4a(path: Path, waveform: np.ndarray, rate: int) -> None:
    """An AAC file, which libsndfile does not read."""
    with av.open(str(path), "w", format="ipod") as container:
        stream = container.add_stream("aac", rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(waveform[None].astype(np.float32), format="flt", layout="mono")
        frame.sample_rate = rate
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


@pytest.mark.parametrize("name", ["mono.wav", "stereo.mp3", "voice.ogg", "low.flac", "film.m4a"])
def test_blocks_are_what_the_file_is_when_read_whole(name: str, tmp_path) -> None:
    rate = {"stereo": 44_100, "low": 8_000, "film": 44_100}.get(name.split(".")[0], RATE)
    left = 0.3 * np.sin(2 * np.pi * np.cumsum(np.linspace(200, 800, 14 * rate)) / rate).astype(np.float32)
    path = tmp_path / name
    if name == "film.m4a":
        write_m4a(path, left, rate)
    else:
        soundfile.write(path, np.stack([left, 0.5 * left], axis=1) if "stereo" in name else left, rate)
    blocks = list(read_blocks(path, RATE))
    whole = load_waveform(path)
    assert len(blocks) > 1 or rate * 14 < BLOCK_SAMPLES
    together = np.concatenate(blocks)
    assert abs(len(together) - len(whole)) <= 1 and all(block.dtype == np.float32 for block in blocks)
    assert np.abs(together[: len(whole)] - whole[: len(together)]).max() < 1e-4
    assert header_seconds(path) is None or header_seconds(path) == pytest.approx(14, abs=0.1)


def test_what_cannot_be_used_is_refused_by_name_as_when_read_whole(tmp_path) -> None:
    not_finite = np.zeros((RATE, 1), dtype=np.float32)
    not_finite[4_000] = np.nan
    path = tmp_path / "bad.wav"
    for reason, content in {
        "is empty": b"",
        "corrupt, or not audio": b"this is no sound at all",
        "holds no samples": np.zeros(0, dtype=np.float32),
        "sample 4000 is nan": not_finite,
        "reach 20000": np.full(RATE, 20_000, dtype=np.float32),
    }.items():
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            soundfile.write(path, content, RATE, subtype="FLOAT")
        with pytest.raises(AudioError, match=reason) as caught, local_file(str(path)) as file:
            list(read_blocks(file, RATE, str(path)))
        assert str(path) in str(caught.value)
        with pytest.raises(AudioError):
            load_waveform(path)
    os.mkfifo(tmp_path / "pipe.wav")
    with pytest.raises(AudioError, match="not a regular file"), local_file(str(tmp_path / "pipe.wav")):
        pass
    assert header_seconds(tmp_path / "pipe.wav") is None
    with pytest.raises(FileNotFoundError, match=r"no\.wav"), local_file(str(tmp_path / "no.wav")):
        pass


def test_urls_are_copied_for_as_long_as_they_are_read(tmp_path) -> None:
    soundfile.write(tmp_path / "a b.wav", silence(1), RATE)
    with local_file((tmp_path / "a b.wav").as_uri()) as path:
        assert path == tmp_path / "a b.wav"
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with running(handler) as server:
        site = f"http://127.0.0.1:{server.server_address[1]}"
        with local_file(f"{site}/a%20b.wav") as path:
            assert path.read_bytes() == (tmp_path / "a b.wav").read_bytes()
        assert not path.exists()
        with pytest.raises(FileNotFoundError, match=r"none\.wav"), local_file(f"{site}/none.wav"):
            pass


# ---------------------------------------------------------------------------------------------------------- windows


@pytest.fixture(scope="module")
def spoken() -> list[np.ndarray]:
    return prompts(ALL_TEST_PROMPTS)


def cut(waveform: np.ndarray, block: int = 50_000, max_seconds: float = 30.0, **options) -> list:
    blocks = [waveform[first : first + block] for first in range(0, len(waveform), block)]
    return list(cut_into_windows(blocks, RATE, max_seconds, **options))


@pytest.mark.parametrize("max_seconds", [1.0, 4.0, 30.0])
@pytest.mark.parametrize("voice_activity", [True, False])
def test_windows_cover_the_recording_and_do_not_depend_on_blocks(spoken, max_seconds, voice_activity) -> None:
    waveform = in_a_row(spoken[:6], [3.0, 0.3, 0.5, 8.0, 0.3, 0.2, 4.0])
    windows = cut(waveform, 700, max_seconds, voice_activity=voice_activity)
    assert windows[0].start == 0 and windows[-1].end == len(waveform)
    assert all(one.end == after.start for one, after in pairwise(windows))
    assert all(0 < window.end - window.start <= max_seconds * RATE for window in windows)
    for window in windows:
        assert (window.waveform is None) == bool(window.reason)
        if window.waveform is not None:
            assert np.array_equal(window.waveform, waveform[window.start : window.end])
    other = cut(waveform, 10**9, max_seconds, voice_activity=voice_activity)
    assert [(one.start, one.end, one.reason) for one in windows] == [(one.start, one.end, one.reason) for one in other]
    assert any(window.reason for window in windows) == voice_activity


def test_long_pauses_are_left_out_and_no_speech_is(spoken) -> None:
    pauses = [5.0, 3.5, 0.5, 6.0]
    waveform = in_a_row(spoken[:3], pauses)
    windows = cut(waveform)
    heard = [window for window in windows if not window.reason]
    assert len(heard) == 2
    position = 0.0
    for clip, pause in zip(spoken[:3], pauses):
        position += pause
        middle = position + len(clip) / RATE / 2
        assert any(window.start_s < middle < window.end_s for window in heard)
        position += len(clip) / RATE
    assert sum(window.end_s - window.start_s for window in heard) < len(waveform) / RATE - 8
    assert {"pause of 4.6 s", "silence"} & {window.reason for window in windows}
    # Speech at the border of an empty window is whole.
    silent, clip = cut(np.concatenate([silence(29.9), spoken[0]]))
    assert silent.reason and not clip.reason and clip.start_s <= 29.7


def test_windows_end_in_the_pauses_between_phrases(spoken) -> None:
    clips, pauses = spoken[:6], [0.1, *[0.7] * 6]
    ends = [window.end_s for window in cut(in_a_row(clips, pauses), max_seconds=8.0)][:-1]
    phrases, position = [], 0.0
    for clip, pause in zip(clips, pauses):
        phrases.append((position + pause, position + pause + len(clip) / RATE))
        position = phrases[-1][1]
    short = [(first, last) for first, last in phrases if last - first < 4]
    assert ends and not any(first + 0.1 < end < last - 0.1 for end in ends for first, last in short)


# --------------------------------------------------------------------------------------------------- voice activity


def is_heard(waveform: np.ndarray, **options) -> bool:
    return bool(detect_voice(waveform, RATE, **options).active.any())


def test_no_prompt_is_dropped_however_soft_or_in_noise(spoken) -> None:
    assert all(is_heard(clip * np.float32(0.01)) for clip in spoken)
    for noise in ("white", "pink"):
        loud = noises(LONGEST_PROMPT_S, -20)[noise]
        for clip in spoken:
            sound = loud[: len(clip)]
            assert is_heard(clip + clip.std() / sound.std() * sound)  # as loud as the voice


@pytest.mark.parametrize("seconds", [0.4, 5.0, 30.0])
@pytest.mark.parametrize("level_dbfs", [-15, -60])
def test_what_nobody_speaks_in_is_dropped(level_dbfs: int, seconds: float) -> None:
    for name, sound in noises(seconds, level_dbfs).items():
        assert not is_heard(sound), name
    assert not is_heard(silence(seconds)) and not is_heard(np.zeros(int(seconds * RATE), dtype=np.float32))


def test_speech_is_found_where_it_is_by_the_threshold(spoken) -> None:
    waveform = np.concatenate([silence(2), spoken[0], silence(3)])
    active = np.flatnonzero(detect_voice(waveform, RATE).active) * HOP_SECONDS
    assert 1.8 <= active[0] <= 2.5 and active[-1] <= 2.2 + len(spoken[0]) / RATE
    white = noises(2.0, -30)["white"]
    assert is_heard(white, rise_db=0.5) and detect_voice(white, RATE, rise_db=0).active.all()
    assert not is_heard(spoken[0], rise_db=90)
    assert detect_voice(silence(1), RATE).describe() == "silence"
    assert all(window.reason.startswith("no voice: level -3") for window in cut(noises(70.0, -30)["white"]))
    for samples in (1, 512, 513):  # about a frame
        assert len(detect_voice(np.full(samples, 0.1, dtype=np.float32), RATE).active) >= 1

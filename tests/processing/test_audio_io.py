"""Anything that is audio becomes the same waveform, and anything that is not says what is wrong with it."""

import base64
import contextlib
import subprocess
import sys
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from audio_files import CONTAINER_FORMATS, FFMPEG_FORMATS, RATE_HZ, SOUNDFILE_FORMATS, encode, sweep, write_container
from audiollm.corpora.audio_facts import measure
from audiollm.processing import AudioError, load_waveform
from loopback_site import serving

INT16_SCALE = 2**15
LOSSLESS = ("wav", "flac", "aiff")
#: Likeness that a lossy codec leaves of a smooth tone.
LOSSY_LIKENESS = 0.99


def likeness(found: np.ndarray, expected: np.ndarray) -> float:
    """Peak of the normalised cross-correlation, 1 for the same sound: codecs begin a fraction of a second off."""
    length = 2 * max(len(found), len(expected))
    spectrum = np.fft.rfft(expected, length) * np.conj(np.fft.rfft(found, length))
    correlation = 8 * np.fft.irfft(spectrum, 8 * length)  # 8: shifts by fractions of a sample count
    shift = np.argmax(correlation) / 8
    assert min(shift, length - shift) < 0.1 * RATE_HZ
    return float(correlation.max() / (np.linalg.norm(found) * np.linalg.norm(expected)))


# ---- waveforms -------------------------------------------------------------------------------------------------------

TONE = sweep(0.5)
TONE_16_BIT = np.round(TONE * INT16_SCALE).astype(np.int16)
SAME_16_BIT_AUDIO = {
    "float64": TONE_16_BIT / float(INT16_SCALE),
    "int32": TONE_16_BIT.astype(np.int32) << 16,
    "uint16": (TONE_16_BIT.astype(np.int32) + INT16_SCALE).astype(np.uint16),
    "int64 of 32 bits": TONE_16_BIT.astype(np.int64) << 16,
    "list of floats": (TONE_16_BIT / INT16_SCALE).tolist(),
    "tuple of integers": tuple(TONE_16_BIT.tolist()),
    "torch int16": torch.from_numpy(TONE_16_BIT),
    "torch with gradient": torch.from_numpy(TONE_16_BIT / np.float32(INT16_SCALE)).requires_grad_(),
    "big-endian": TONE_16_BIT.astype(">i2"),
    "channels first": np.stack([TONE_16_BIT] * 2),
    "samples first": np.stack([TONE_16_BIT] * 2, axis=1),
    "strided": np.repeat(TONE_16_BIT, 2)[::2],
    "audio dict": {"array": TONE_16_BIT, "sampling_rate": RATE_HZ, "path": None},
    "dict of bytes": {"bytes": encode("wav", TONE_16_BIT), "path": "ignored.wav"},
    "bytearray": bytearray(encode("flac", TONE_16_BIT)),
}


def test_every_kind_is_the_same_waveform():
    for kind, audio in SAME_16_BIT_AUDIO.items():
        waveform = load_waveform(audio)
        assert waveform.dtype == np.float32
        np.testing.assert_array_equal(waveform, TONE_16_BIT / np.float32(INT16_SCALE), err_msg=kind)
    for audio, tolerance in (
        (np.round(TONE * 128 + 128).astype(np.uint8), 1 / 128),
        (TONE.astype(np.float16), 1e-3),
        (torch.from_numpy(TONE).bfloat16(), 4e-3),
    ):
        np.testing.assert_allclose(load_waveform(audio), TONE, atol=tolerance)
    for dtype in (np.int8, np.int16, np.int32, np.uint8, np.uint16, np.uint32):
        limits = np.iinfo(dtype)
        waveform = load_waveform(np.array([limits.min, limits.max] * 8, dtype=dtype))
        assert waveform.min() == -1.0 and 0.99 < waveform.max() <= 1.0


def test_stereo_short_files_and_decoders_of_newer_datasets():
    left, right = sweep(0.5), sweep(0.5)[::-1]
    stereo = np.stack([left, right])
    for audio in (stereo, stereo.T, encode("flac", stereo.T)):
        np.testing.assert_allclose(load_waveform(audio), (left + right) / 2, atol=1e-4)
    one_frame = encode("wav", np.array([[0.5, -0.25]], dtype=np.float32))
    np.testing.assert_array_equal(load_waveform(one_frame), np.float32([0.125]))
    assert load_waveform(np.float32([0.25]), 48_000).shape == (1,)  # resampling loses no whole recording
    samples = SimpleNamespace(data=torch.from_numpy(np.stack([TONE, TONE])), sample_rate=RATE_HZ)
    np.testing.assert_array_equal(load_waveform(SimpleNamespace(get_all_samples=lambda: samples)), TONE)


@pytest.mark.parametrize("rate", [8_000, 44_100])
def test_any_rate_is_resampled_to_the_same_sound(rate):
    expected, recorded = sweep(2.0), sweep(2.0, rate)
    in_a_dict, file = {"array": recorded, "sampling_rate": rate}, encode("wav", recorded, rate)
    for audio, given in ((recorded, rate), (in_a_dict, None), (file, None)):
        waveform = load_waveform(audio, given)
        assert abs(len(waveform) - len(expected)) <= 1 and likeness(waveform, expected) > 0.999


def test_decoding_imports_no_torch():
    code = "import sys, audiollm.processing; assert not {'torch', 'transformers'} & set(sys.modules), sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [f"tone.{e}" for e in (*SOUNDFILE_FORMATS, *CONTAINER_FORMATS)] + [*FFMPEG_FORMATS])
def test_files_of_every_format_whole_and_without_their_end(name, tmp_path):
    """Whole files must not be taken for damaged ones; `audiollm validate` finds those that were cut off."""
    path, ending = tmp_path / name, name.rpartition(".")[2]
    if name in FFMPEG_FORMATS or ending in CONTAINER_FORMATS:
        write_container(path, sweep())
    else:
        path.write_bytes(encode(ending, sweep()))
    waveform, whole = load_waveform(path), path.read_bytes()
    for same in (str(path), whole):
        np.testing.assert_array_equal(load_waveform(same), waveform)
    if ending in LOSSLESS and name not in FFMPEG_FORMATS:
        np.testing.assert_allclose(waveform, sweep(), atol=1 / INT16_SCALE)
    assert abs(len(waveform) / RATE_HZ - 2.0) < 0.1 and likeness(waveform, sweep()) > LOSSY_LIKENESS
    assert measure({"bytes": whole}, 600.0).fault == ""
    for kept in (0.05, 0.6) if name not in FFMPEG_FORMATS and ending != "ts" else ():  # which says no length
        part = whole[: int(len(whole) * kept)]
        assert measure({"bytes": part}, 600.0).fault in ("cut_off", "undecodable")
        with contextlib.suppress(AudioError):
            assert len(load_waveform(part)) < len(waveform)


def test_a_flac_written_to_a_pipe_and_a_wav_with_more_after_its_samples_are_whole():
    piped = bytearray(encode("flac", TONE))
    # The last 36 bits before the checksum, at byte 26, are the number of samples; 0 is unknown.
    piped[21] &= 0xF0
    piped[22:26] = bytes(4)
    extended = encode("wav", TONE) + b"LIST\x10\x00\x00\x00INFO"
    for audio in (bytes(piped), extended):
        np.testing.assert_allclose(load_waveform(audio), TONE, atol=1 / INT16_SCALE)


def test_a_film_in_surround_sound_is_mixed_down(tmp_path):
    path = tmp_path / "surround.m4a"
    with av.open(str(path), "w", format="ipod") as container:
        stream = container.add_stream("aac", rate=48_000)
        stream.layout = "7.1"
        tone = np.stack([sweep(1.0, 48_000)] * 8)
        frame = av.AudioFrame.from_ndarray(tone.T.reshape(1, -1).copy(), format="flt", layout="7.1")
        frame.sample_rate = 48_000
        for part in [*av.AudioResampler(format=stream.format, frame_size=1024).resample(frame), None]:
            for packet in stream.encode(part):
                container.mux(packet)
    waveform = load_waveform(path)
    assert abs(len(waveform) / RATE_HZ - 1.0) < 0.1
    assert likeness(waveform, sweep(1.0)) > 0.8  # the bass channel holds low tones alone


def test_a_film_without_sound_or_without_pyav_is_named(tmp_path, monkeypatch):
    silent = tmp_path / "silent film.mp4"
    with av.open(str(silent), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 32
        for packet in [*stream.encode(av.VideoFrame(32, 32, "yuv420p")), *stream.encode(None)]:
            container.mux(packet)
    with pytest.raises(AudioError, match=r"silent film\.mp4: the file holds no audio stream"):
        load_waveform(silent)
    path = write_container(tmp_path / "tone.m4a", sweep())
    monkeypatch.setitem(sys.modules, "av", None)  # as where it is not installed
    with pytest.raises(AudioError, match=r"tone\.m4a.*install PyAV: pip install 'audiollm\[containers\]'"):
        load_waveform(path)


def test_any_file_name_as_path_and_as_url(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("with space.wav", "Grüße 音.wav", "100%.wav", "a#b?c.wav", "a:b.wav"):
        path = tmp_path / name
        path.write_bytes(encode("wav", TONE))
        for location in (path, path.as_uri(), {"path": str(path), "bytes": None}, name, f"~/{name}"):
            np.testing.assert_allclose(load_waveform(location), TONE, atol=1 / INT16_SCALE)


def test_urls_are_fetched():
    with serving() as site:
        site.honour_range = False
        site.files["/tone.flac"] = encode("flac", TONE)
        np.testing.assert_allclose(load_waveform(f"{site.url}/tone.flac"), TONE, atol=1 / INT16_SCALE)
        with pytest.raises(FileNotFoundError, match=r"missing\.flac' cannot be found or reached"):
            load_waveform(f"{site.url}/missing.flac")
    with pytest.raises(FileNotFoundError, match=r"'http://127\.0\.0\.1:9/tone\.wav' cannot be found or reached"):
        load_waveform("http://127.0.0.1:9/tone.wav")
    with pytest.raises(AudioError, match=r"gopher://host/tone\.wav: cannot be read .*Protocol not known"):
        load_waveform("gopher://host/tone.wav")


def test_data_urls_are_what_they_hold():
    data = encode("wav", TONE)
    for start in ("data:audio/wav;base64,", "DATA:audio/wav;codecs=x;Base64,", "data:;base64,"):
        url = start + base64.b64encode(data).decode()
        escaped = url.replace("+", "%2B").replace("/", "%2F").replace("audio%2Fwav", "audio/wav")
        for location in (url, escaped, {"path": url}):
            np.testing.assert_array_equal(load_waveform(location), load_waveform(data))


# ---- what is not audio -----------------------------------------------------------------------------------------------

WRONG_WAVEFORMS = {
    "empty array": (np.zeros(0), "question: holds no samples"),
    "NaN": (np.float32([0.0, 0.1, np.nan]), "question: sample 2 is nan"),
    "unscaled floats": (TONE_16_BIT.astype(np.float32), r"question: floating-point samples reach 13\d{3}"),
    "three axes": (np.zeros((2, 3, 4)), r"question: expected shape .* got \(2, 3, 4\)"),
    "no channel axis": (np.zeros((50, 60)), r"question: shape \(50, 60\) is neither"),
    "ragged list": ([[0.1, 0.2], [0.3]], "question: not a waveform"),
    "booleans": (np.zeros(4, dtype=bool), "question: expected a waveform.* got ndarray of bool"),
    "wide integers": (np.array([2**40]), "question: integer samples reach 1099511627776"),
    "dict without rate": ({"array": TONE}, "question: .* needs 'sampling_rate' in Hz, got keys"),
    "dict without audio": ({"text": "hello"}, r"question: an audio dict needs .* got \['text'\]"),
    "no bytes": (b"", r"question: the file is empty \(0 bytes\)"),
    "bytes of text": (b"this is not audio", "question: corrupt, or not audio"),
}


@pytest.mark.parametrize(("audio", "message"), WRONG_WAVEFORMS.values(), ids=WRONG_WAVEFORMS.keys())
def test_what_is_not_a_waveform_is_refused_by_name(audio, message):
    with pytest.raises(AudioError, match=message):
        load_waveform(audio, name="question")


@pytest.mark.parametrize("rate", [float("nan"), "16000"])
def test_an_impossible_rate_is_refused(rate):
    for audio, given in ((TONE, rate), ({"array": TONE, "sampling_rate": rate}, None)):
        with pytest.raises(AudioError, match=r"question: the sampling rate is .*; expected 1000 to 768000 Hz"):
            load_waveform(audio, given, name="question")


def test_a_file_that_is_missing_or_something_else_is_named(tmp_path):
    for location in ("missing.wav", "", "x" * 5000, "nul\0.wav"):
        path = f"{tmp_path}/absent/{location}"
        with pytest.raises(FileNotFoundError, match="does not exist") as caught:
            load_waveform(path)
        assert repr(path) in str(caught.value)
    with pytest.raises(AudioError, match=f"{tmp_path.name}.*is not a file"):
        load_waveform(tmp_path)
    (tmp_path / "fake.wav").write_bytes(b"RIFF")
    with pytest.raises(AudioError, match=r"fake\.wav: corrupt, or not audio"):
        load_waveform(tmp_path / "fake.wav")


def test_a_playlist_opens_no_other_file(tmp_path, monkeypatch):
    (tmp_path / "secret.wav").write_bytes(encode("wav", TONE))
    monkeypatch.chdir(tmp_path)
    for playlist in (b"ffconcat version 1.0\nfile secret.wav\n", b"#EXTM3U\n#EXTINF:1,\nsecret.wav\n#EXT-X-ENDLIST\n"):
        with pytest.raises(AudioError, match="corrupt, or not audio"):
            load_waveform(playlist)

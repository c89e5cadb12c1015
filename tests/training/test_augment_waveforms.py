"""Varied waveforms: each option does what it says, by how much it says, and the same again from the same generator."""

import hashlib

import numpy as np
import pytest
import soundfile
from audiollm.training.augmentation import WaveformAugmentation, pink, simulated_room

RATE_HZ = 16_000
TONE_HZ = 440.0


def tone(seconds: float = 1.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * TONE_HZ * np.arange(int(seconds * RATE_HZ)) / RATE_HZ)).astype(np.float32)


def vary(augmentation: WaveformAugmentation, waveform: np.ndarray, seed: int = 0) -> np.ndarray:
    return augmentation(waveform, RATE_HZ, np.random.default_rng(seed))


def power(waveform: np.ndarray) -> float:
    return float(np.square(waveform, dtype=np.float64).mean())


def loudest_hz(waveform: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform))))
    return float(spectrum.argmax() * RATE_HZ / len(waveform))


def test_speed_changes_length_and_pitch() -> None:
    for factor in (0.8, 1.25):
        varied = vary(WaveformAugmentation(speed=(factor, factor)), tone())
        assert abs(len(varied) - RATE_HZ / factor) <= 1 and varied.dtype == np.float32
        assert loudest_hz(varied) == pytest.approx(TONE_HZ * factor, abs=2)


@pytest.mark.parametrize("decibels", [-5, 0, 20])
def test_noise_and_gain_are_in_decibels_and_noise_is_white_or_pink(decibels) -> None:
    high_shares = set()
    for seed in range(12):
        noise = vary(WaveformAugmentation(noise_snr_db=(decibels, decibels)), tone(), seed) - tone()
        assert 10 * np.log10(power(tone()) / power(noise)) == pytest.approx(decibels, abs=0.1)
        spectrum = np.square(np.abs(np.fft.rfft(noise)))
        high_shares.add(round(float(spectrum[len(spectrum) // 2 :].sum() / spectrum.sum()), 1))
    assert high_shares == {0.1, 0.5}
    varied = vary(WaveformAugmentation(gain_db=(decibels, decibels)), tone())
    np.testing.assert_allclose(varied, tone() * 10 ** (decibels / 20), rtol=1e-5)


def test_noise_and_rooms_come_from_folders(tmp_path) -> None:
    noise, rooms = tmp_path / "noise" / "deep", tmp_path / "rooms"
    click, response = np.zeros(RATE_HZ // 2, dtype=np.float32), np.zeros(2000, dtype=np.float32)
    click[1000] = 0.5
    response[[500, 900]] = (0.5, 0.25)  # the direct sound, and an echo 400 samples later
    for folder, sound in ((noise, click), (rooms, response)):
        folder.mkdir(parents=True)
        soundfile.write(folder / "sound.wav", sound, RATE_HZ, subtype="FLOAT")
    (noise / "readme.txt").write_text("no noise")
    varied = vary(WaveformAugmentation(noise_snr_db=(0, 0), noise_dir=str(noise.parent)), tone())
    added = np.flatnonzero(np.abs(varied - tone()) > 1e-3)
    assert len(added) == 2 and added[1] - added[0] == RATE_HZ // 2  # half a second, repeated to fill one
    heard = vary(WaveformAugmentation(room_share=1, room_dir=str(rooms)), tone())
    echo = np.concatenate([np.zeros(400), 0.5 * tone()[:-400]])
    np.testing.assert_allclose(heard, tone() + echo, atol=1e-4)


def test_a_room_lasts_as_long_as_it_says_and_leaves_the_direct_sound() -> None:
    for reverb_s in (0.2, 0.8):
        response = simulated_room(reverb_s, RATE_HZ, np.random.default_rng(0))
        falling = 10 * np.log10(np.cumsum(np.square(response[1:])[::-1])[::-1])  # Schroeder's backward integral
        below = [int(np.argmax(falling < falling[0] - fall)) / RATE_HZ for fall in (5, 35)]
        assert 2 * (below[1] - below[0]) == pytest.approx(reverb_s, rel=0.1)
        assert response[0] == 1 and 10**-1.2 <= np.square(response[1:]).sum() <= 1
    click = np.zeros(RATE_HZ, dtype=np.float32)
    click[100] = 0.5
    heard = vary(WaveformAugmentation(room_share=1), click)
    assert len(heard) == RATE_HZ and heard[100] == pytest.approx(0.5, abs=1e-4) and not heard[:99].round(6).any()
    assert power(heard[101:]) > 0 and np.abs(heard[100 + int(0.7 * RATE_HZ) + 1 :]).max() < 1e-4


def test_a_telephone_keeps_its_band_and_the_length() -> None:
    noise = np.random.default_rng(0).standard_normal(RATE_HZ).astype(np.float32) * 0.1
    for seed in range(6):
        heard = vary(WaveformAugmentation(telephone_share=1), noise, seed)
        spectrum = np.square(np.abs(np.fft.rfft(heard)))  # a bin a hertz
        assert len(heard) == RATE_HZ and spectrum[500:3000].mean() > 100 * spectrum[4200:].mean()
        assert spectrum[500:3000].mean() > 10 * spectrum[20:120].mean()
    speech = vary(WaveformAugmentation(telephone_share=1), tone(), 1)
    assert loudest_hz(speech) == pytest.approx(TONE_HZ, abs=2) and power(speech) == pytest.approx(
        power(tone()), rel=0.2
    )


def test_codecs_lose_something_and_keep_length_and_place() -> None:
    sound = (0.01 * pink(np.random.default_rng(0).standard_normal(RATE_HZ))).astype(np.float32)
    losses_db = set()
    for seed in range(16):
        heard = vary(WaveformAugmentation(codec_share=1), sound, seed)
        assert len(heard) == len(sound)
        likeness = np.fft.irfft(np.fft.rfft(heard) * np.conj(np.fft.rfft(sound)))
        assert likeness.argmax() == 0, "nothing is delayed"
        losses_db.add(round(10 * np.log10(power(heard - sound) / power(sound))))
    assert min(losses_db) > -40 and max(losses_db) < 0 and len(losses_db) > 3


def test_shares_are_chances_and_the_same_generator_gives_the_same() -> None:
    for name in ("room_share", "telephone_share", "codec_share"):
        augmentation = WaveformAugmentation(**{name: 0.5})
        changed = sum(not np.array_equal(vary(augmentation, tone(0.1), seed), tone(0.1)) for seed in range(40))
        assert 10 < changed < 30, name
    assert np.array_equal(vary(WaveformAugmentation(), tone()), tone())
    augmentation = WaveformAugmentation(
        speed=(0.9, 1.1), noise_snr_db=(5, 20), gain_db=(-6, 6), room_share=0.9, telephone_share=0.5, codec_share=0.5
    )
    once, again, other = (vary(augmentation, tone(), seed) for seed in (3, 3, 4))
    assert np.array_equal(once, again) and not np.array_equal(once, other)


def test_the_key_tells_settings_and_noise_apart(tmp_path) -> None:
    for name, level in (("one", 0.1), ("two", 0.2), ("copy", 0.1)):
        (tmp_path / name).mkdir()
        soundfile.write(tmp_path / name / f"{name}.wav", np.full(50, level), RATE_HZ)
    one, two, copy = (
        WaveformAugmentation(noise_snr_db=(0, 0), noise_dir=str(tmp_path / name)) for name in ("one", "two", "copy")
    )
    assert one.key == copy.key
    others = [
        one,
        two,
        *(WaveformAugmentation(**{name: (1, 2)}) for name in ("speed", "noise_snr_db", "gain_db")),
        *(WaveformAugmentation(**{name: 0.5}) for name in ("room_share", "telephone_share", "codec_share")),
        WaveformAugmentation(room_share=0.5, room_dir=str(tmp_path / "one")),
    ]
    assert len({each.key for each in others}) == len(others)
    empty = hashlib.sha256(b"").hexdigest()
    earlier = repr((1, None, None, None, empty))
    assert WaveformAugmentation().key == earlier, "caches of variants without rooms and codecs stay valid"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"speed": (0.1, 1)}, "speed is 0.1 1; expected two numbers, the lower first, from 0.5 to 2.0"),
        ({"noise_snr_db": (5,)}, "noise_snr_db is 5; expected two numbers"),
        ({"gain_db": (-60, 0)}, "gain_db is -60 0"),
        ({"noise_dir": "x"}, "--noise_dir needs"),
        ({"room_dir": "x"}, "--room_dir needs"),
        ({"room_share": 1.5}, "room_share is 1.5"),
    ],
)
def test_ranges_that_are_none_are_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        WaveformAugmentation(**options)

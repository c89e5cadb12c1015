"""Varied waveforms: each option does what it says, variants are cached, taken anew in each epoch, and in training only."""

import hashlib
import json

import numpy as np
import pytest
import soundfile
import torch
from audiollm.corpora.examples import read_examples
from audiollm.training.augmentation import VariantChoice, WaveformAugmentation, WaveformVariants, pink, simulated_room
from audiollm.training.collator import AudioLlmCollator, slot_runs
from audiollm.training.command_line import parse_arguments
from audiollm.training.feature_cache import FeatureCache
from runs import differing, resumed, run
from transformers import TrainerState

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
        ({"noise_dir": "x"}, "--noise_dir needs"),
        ({"room_dir": "x"}, "--room_dir needs"),
    ],
)
def test_ranges_that_are_none_are_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        WaveformAugmentation(**options)


FASTER = WaveformAugmentation(speed=(0.6, 1.8))
IGNORED = -100


@pytest.fixture
def variants(cache, dataset, examples) -> WaveformVariants:
    made = WaveformVariants(cache, FASTER, count=2)
    made.add([examples], progress=False)
    return made


def at_epoch(choice: VariantChoice, epoch: float) -> None:
    choice.on_epoch_begin(None, TrainerState(epoch=epoch), None)


def test_each_recording_has_its_variants_and_what_they_cost_is_said(cache, dataset, examples, corpus, capsys) -> None:
    variants = WaveformVariants(cache, FASTER, count=2)
    for missing in (20, 0):
        variants.add([examples], progress=False)
        said = f"2 variants of each of 10 recordings are cached, 3 times the cache; {missing} are encoded now."
        assert said in capsys.readouterr().out
    keys = list(dict.fromkeys(key for audio in dataset["audio"] for key in audio))
    lengths = {key: [int(cache.load(one)[1].sum()) for one in (key, *variants.keys(key))] for key in keys}
    assert all(0.5 < other / whole < 1.8 for whole, *others in lengths.values() for other in others)
    assert len({tuple(each) for each in lengths.values()}) == len(keys)
    for other in variants.keys(cache.key(corpus.paths[4])):
        waveform = cache.processor.load_audio(corpus.paths[4])
        frames, lengths = cache.compute(FASTER(waveform, 16_000, np.random.default_rng(int(other, 16))))
        assert torch.equal(cache.load(other)[0], frames) and torch.equal(cache.load(other)[1], lengths)
    faster, louder, three = (
        WaveformVariants(cache, each, count).keys("k")
        for each, count in ((FASTER, 2), (WaveformAugmentation(gain_db=(0, 1)), 2), (FASTER, 3))
    )
    assert len({*faster, *louder}) == 4 and three[:2] == faster


def test_rows_follow_their_variants(cache, dataset, variants, tiny_model, tiny_processor) -> None:
    varied, choice = variants.dataset(dataset, seed=0)
    slot_id, stack = tiny_processor.audio_token_id, tiny_processor.stack_factor
    for epoch in range(3):
        at_epoch(choice, epoch)
        for row, before in zip(varied, dataset):
            frames = [cache.load(key)[1].tolist() for key in row["audio"]]
            assert slot_runs(row["input_ids"], slot_id) == [sum(-(-n // stack) for n in each) for each in frames]
            assert [i for i in row["input_ids"] if i != slot_id] == [i for i in before["input_ids"] if i != slot_id]
            assert [i for i in row["labels"] if i != IGNORED] == [i for i in before["labels"] if i != IGNORED]
            assert len(row["input_ids"]) == len(row["labels"]) <= row["length"]
    batch = AudioLlmCollator(tiny_processor, cache)([varied[index] for index in (3, 10, 11)])
    with torch.no_grad():
        assert torch.isfinite(tiny_model(**batch).loss)


def test_epochs_seeds_and_rows_choose_differently_and_always_alike(dataset, variants) -> None:
    def taken(seed: int, epoch: float) -> list[list[str]]:
        varied, choice = variants.dataset(dataset, seed)
        at_epoch(choice, epoch)
        return [row["audio"] for row in varied]

    assert taken(0, 0) == taken(0, 0.7) != taken(0, 1) != taken(0, 2)
    assert taken(0, 0) != taken(1, 0)
    firsts = [row["audio"][0] for row in dataset if row["audio"]]
    epochs = [[audio[0] for audio in taken(0, epoch) if audio] for epoch in range(9)]
    found = {pair for epoch in epochs for pair in zip(firsts, epoch)}
    assert found == {(key, own) for key in firsts for own in (key, *variants.keys(key))}

    varied, choice = variants.dataset(dataset, seed=0)
    workers = {"num_workers": 1, "persistent_workers": True, "multiprocessing_context": "fork"}
    loader = torch.utils.data.DataLoader(varied, batch_size=4, collate_fn=list, **workers)
    for epoch in (0, 1):  # also for workers that outlive an epoch
        at_epoch(choice, epoch)
        assert [row["audio"] for batch in loader for row in batch] == [row["audio"] for row in varied]


def test_each_option_reaches_the_augmentation(tmp_path) -> None:
    soundfile.write(tmp_path / "hum.wav", np.zeros(80), 16_000)
    given = {
        "speed": [0.8, 1.2],
        "noise_snr_db": [0.0, 10.0],
        "noise_dir": str(tmp_path),
        "gain_db": [-10.0, 10.0],
        "room_share": 0.5,
        "room_dir": str(tmp_path),
        "telephone_share": 0.25,
        "codec_share": 0.75,
    }
    words = " ".join(f"--{name} {' '.join(map(str, np.atleast_1d(value)))}" for name, value in given.items())
    data = parse_arguments(["--data_path", "x", *words.split(), "--waveform_variants", "5"])[1]
    assert data.key == WaveformAugmentation(**given).key and data.waveform_variants == 5
    assert not parse_arguments(["--data_path", "x"])[1].waveform_options()


@pytest.fixture
def varied(options, tmp_path) -> list[str]:
    """Options of a run with one variant of each recording, in a cache of its own."""
    own = f"--noise_snr_db 0 10 --speed 0.8 1.2 --waveform_variants 1 --feature_cache {tmp_path / 'features'}"
    return [*options, *own.split(), "--warmup_steps", "0", "--learning_rate", "0.01"]


def test_variants_change_what_is_learned_and_not_what_is_evaluated(options, varied, corpus, tmp_path) -> None:
    plain = run([*options, "--warmup_steps", "0", "--learning_rate", "0.01", "--output_dir", str(tmp_path / "plain")])
    held_out = ["--eval_data_path", corpus.data_path, "--eval_strategy", "epoch", "--eval_max_new_tokens", "2"]
    trainer = run([*varied, *held_out])
    assert len(list((tmp_path / "features").rglob("*.safetensors"))) == 2 * len(corpus.names)
    assert "model.multi_modal_projector.linear_1.weight" in differing(plain.model, trainer.model)
    store, read = trainer.data_collator.cache, read_examples(corpus.data_path, corpus.audio_dir)
    own = [[FeatureCache.key(store, path) for path in example.audio_paths] for example in read]
    assert [row["audio"] for row in trainer.eval_dataset] == own != [row["audio"] for row in trainer.train_dataset]


def test_a_run_that_was_cut_off_hears_the_same(varied, tmp_path) -> None:
    """Within an epoch, and at its end."""
    options = [*varied, "--augment", "--save_steps", "1", "--save_total_limit", "9", "--max_steps", "5"]
    whole = run(options).model
    for step in (2, 3):
        assert not differing(whole, resumed(options, tmp_path / "run", step, tmp_path / str(step)).model)


def test_the_warm_start_hears_variants_and_nothing_in_recordings_without_speech(varied, corpus, tmp_path) -> None:
    (tmp_path / "noise").mkdir()
    for index in range(3):
        noise = np.random.default_rng(index).normal(0, 0.1, 8000)
        soundfile.write(tmp_path / "noise" / f"{index}.wav", noise, 16_000)
    learned = []
    for index, rows in enumerate((10, 13)):
        folder = tmp_path / f"run-{index}"
        extra = [] if rows == 10 else ["--no_speech_dir", str(tmp_path / "noise")]
        alignment = run([*varied, "--stage", "align", "--output_dir", str(folder), *extra])
        learned.append(alignment.model.projector.linear_1.weight)
        assert len(list((tmp_path / "features").rglob("*.safetensors"))) == 2 * rows
        record = json.loads((folder / "training_record.json").read_text())
        assert [one["rows"] for one in record["runs"]] == [rows]
    assert not torch.equal(*learned)

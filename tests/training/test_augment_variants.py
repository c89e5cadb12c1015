"""Variants in the cache: made once, taken anew in each epoch, alike however a run is interrupted, and in training only."""

import json

import numpy as np
import pytest
import soundfile
import torch
from audiollm.corpora.examples import read_examples
from audiollm.training.augmentation import VariantChoice, WaveformAugmentation, WaveformVariants
from audiollm.training.collator import AudioLlmCollator, slot_runs
from audiollm.training.command_line import parse_arguments
from audiollm.training.feature_cache import FeatureCache
from runs import differing, resumed, run
from transformers import TrainerState

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

    assert taken(0, 0) == taken(0, 0.7) == taken(0, 0.3)
    assert taken(0, 0) != taken(0, 1) != taken(0, 2)
    assert taken(0, 0) != taken(1, 0)
    found = {
        (row["audio"][0], audio[0]) for epoch in range(9) for row, audio in zip(dataset, taken(0, epoch)) if audio
    }
    expected = {(key, own) for row in dataset for key in row["audio"][:1] for own in (key, *variants.keys(key))}
    assert found == expected


def test_workers_that_outlive_an_epoch_hear_of_the_next(dataset, variants) -> None:
    varied, choice = variants.dataset(dataset, seed=0)
    loader = torch.utils.data.DataLoader(
        varied, batch_size=4, collate_fn=list, num_workers=1, persistent_workers=True, multiprocessing_context="fork"
    )
    for epoch in (0, 1):
        at_epoch(choice, epoch)
        assert [row["audio"] for batch in loader for row in batch] == [row["audio"] for row in varied]
    assert int(choice.epoch) == 1


# ------------------------------------------------------------------------------------------------------ the command


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
        model = resumed(options, tmp_path / "run", step, tmp_path / str(step)).model
        assert not differing(whole, model)


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

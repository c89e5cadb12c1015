"""Variants in the cache: made once, taken anew in each epoch, alike however a run is interrupted, and in training only."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from audiollm.corpora.examples import read_examples
from audiollm.training.dataset import AudioLlmCollator, slot_runs
from audiollm.training.feature_cache import FeatureCache
from audiollm.training.train import main, parse_arguments, run_stage, train
from audiollm.training.trainer import AudioLlmTrainer
from audiollm.training.variants import VariantChoice, WaveformVariants
from audiollm.training.waveform_augment import WaveformAugmentation
from transformers import TrainerState

FASTER = WaveformAugmentation(speed=(0.6, 1.8))
IGNORED = -100
RANGES = {
    "--speed": ["0.8", "1.2"],
    "--noise_snr_db": ["0", "10"],
    "--gain_db": ["-10", "10"],
    "--room_share": ["1"],
    "--telephone_share": ["1"],
    "--codec_share": ["1"],
}


def run(options: list[str]) -> AudioLlmTrainer:
    return train(*parse_arguments(options))


@pytest.fixture
def variants(cache, dataset, examples) -> WaveformVariants:
    made = WaveformVariants(cache, FASTER, count=2)
    made.add([examples], progress=False)
    return made


def at_epoch(choice: VariantChoice, epoch: float) -> None:
    choice.on_epoch_begin(None, TrainerState(epoch=epoch), None)


def test_each_recording_has_its_variants_and_what_they_cost_is_said(cache, dataset, examples, capsys) -> None:
    before = cache.size_bytes()
    variants = WaveformVariants(cache, FASTER, count=2)
    variants.add([examples], progress=False)
    keys = list(dict.fromkeys(key for audio in dataset["audio"] for key in audio))
    own = [other for key in keys for other in variants.keys(key)]
    assert len(set(own)) == 2 * len(keys) and all(map(cache.has, own))
    lengths = {key: [int(cache.load(one)[1].sum()) for one in (key, *variants.keys(key))] for key in keys}
    assert all(0.5 < other / whole < 1.8 for whole, *others in lengths.values() for other in others)
    assert len({tuple(each) for each in lengths.values()}) == len(keys)
    assert 2 < cache.size_bytes() / before < 4
    said = capsys.readouterr().out
    assert "2 variants of each of 10 recordings are cached, 3 times the cache; 20 are encoded now." in said
    variants.add([examples], progress=False)
    assert "; 0 are encoded now" in capsys.readouterr().out


def test_a_variant_is_the_recording_varied(cache, corpus, variants) -> None:
    key = cache.key(corpus.paths[4])
    for own in variants.keys(key):
        waveform = cache.processor.load_audio(corpus.paths[4])
        varied = FASTER(waveform, 16_000, np.random.default_rng(int(own, 16)))
        frames, lengths = cache.compute(varied)
        assert torch.equal(cache.load(own)[0], frames) and torch.equal(cache.load(own)[1], lengths)


def test_other_settings_and_numbers_make_other_variants(cache) -> None:
    made = [
        WaveformVariants(cache, augmentation, 2).keys("k")
        for augmentation in (FASTER, WaveformAugmentation(gain_db=(0, 1)))
    ]
    assert len({key for keys in made for key in keys}) == 4
    assert WaveformVariants(cache, FASTER, 3).keys("k")[:2] == made[0]


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
            assert sum(map(sum, frames)) <= row["audio_frames"]
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


@pytest.fixture
def plain(options) -> list[str]:
    return [*options, "--lora_dropout", "0", "--warmup_steps", "0", "--learning_rate", "0.01", "--max_steps", "5"]


@pytest.mark.parametrize("name", list(RANGES))
def test_each_option_changes_what_is_learned_and_heard(plain, tmp_path, corpus, name) -> None:
    untouched = run(plain).model
    folder = ["--feature_cache", str(tmp_path / "features"), "--output_dir", str(tmp_path / "varied")]
    trainer = run([*plain, *folder, name, *RANGES[name]])
    weight = "model.multi_modal_projector.linear_1.weight"
    assert not torch.equal(untouched.get_parameter(weight), trainer.model.get_parameter(weight))
    assert len(list((tmp_path / "features").rglob("*.safetensors"))) == 4 * len(corpus.names)
    assert trainer.data_collator.cache is not None


def test_noise_dir_and_waveform_variants_are_heeded(plain, tmp_path) -> None:
    (tmp_path / "noise").mkdir()
    soundfile.write(tmp_path / "noise" / "hum.wav", np.sin(np.arange(8000) / 20), 16_000)
    files, weights = [], []
    for index, extra in enumerate(([], ["--noise_dir", str(tmp_path / "noise")])):
        folder = tmp_path / f"features-{index}"
        extra = [
            *extra,
            "--waveform_variants",
            "1",
            "--feature_cache",
            str(folder),
            "--output_dir",
            str(tmp_path / f"run-{index}"),
        ]
        trainer = run([*plain, "--noise_snr_db", "0", "0", *extra])
        files.append({path.stem for path in folder.rglob("*.safetensors")})
        weights.append(trainer.model.get_parameter("model.multi_modal_projector.linear_1.weight"))
    assert [len(found) for found in files] == [20, 20] and len(files[0] & files[1]) == 10
    assert not torch.equal(*weights)


def test_only_training_rows_are_varied(plain, corpus, tmp_path) -> None:
    held_out = ["--eval_data_path", corpus.data_path, "--eval_strategy", "epoch", "--eval_max_new_tokens", "2"]
    trainer = run([*plain, "--speed", "0.7", "1.4", *held_out])
    own = [row["audio"] for row in trainer.eval_dataset]
    store = trainer.data_collator.cache
    assert own == [
        [FeatureCache.key(store, path) for path in example.audio_paths]
        for example in read_examples(corpus.data_path, corpus.audio_dir)
    ]
    assert [row["audio"] for row in trainer.train_dataset] != own


@pytest.mark.parametrize("first_steps", [2, 3])
def test_a_run_that_was_cut_off_hears_the_same(plain, tmp_path, first_steps) -> None:
    options = [
        *plain,
        "--speed",
        "0.8",
        "1.2",
        "--noise_snr_db",
        "0",
        "10",
        "--augment",
        "--save_steps",
        "1",
        "--save_total_limit",
        "9",
        "--max_steps",
        "7",
    ]
    whole = run(options).model
    (tmp_path / "resumed").mkdir()
    (tmp_path / "run" / f"checkpoint-{first_steps}").rename(tmp_path / "resumed" / f"checkpoint-{first_steps}")
    resumed = run([*options, "--output_dir", str(tmp_path / "resumed")]).model
    assert all(torch.equal(whole.get_parameter(name), resumed.get_parameter(name)) for name in whole.trainable_names())


def test_the_warm_start_hears_variants_too(options, corpus, tmp_path) -> None:
    """Its projectors, after a few steps with and without."""
    learned = []
    for index, extra in enumerate(([], ["--noise_snr_db", "0", "5"])):
        where = [
            "--output_dir",
            str(tmp_path / f"run-{index}"),
            "--feature_cache",
            str(tmp_path / f"features-{index}"),
        ]
        alignment = run_stage(*parse_arguments([*options, "--stage", "align", *where, *extra]))
        learned.append(alignment.aligner.projector.linear_1.weight)
        files = list((tmp_path / f"features-{index}").rglob("*.safetensors"))
        assert len(files) == len(corpus.names) * (4 if extra else 1)
    assert not torch.equal(*learned)


def test_the_warm_start_hears_nothing_in_recordings_without_speech(options, tmp_path) -> None:
    (tmp_path / "noise").mkdir()
    for index in range(3):
        soundfile.write(tmp_path / "noise" / f"{index}.wav", np.random.default_rng(index).normal(0, 0.1, 8000), 16_000)
    where = ["--output_dir", str(tmp_path / "run"), "--feature_cache", str(tmp_path / "features")]
    more = ["--no_speech_dir", str(tmp_path / "noise"), "--gain_db", "0", "3", "--waveform_variants", "1"]
    run_stage(*parse_arguments([*options, "--stage", "align", *where, *more]))
    assert len(list((tmp_path / "features").rglob("*.safetensors"))) == 2 * (10 + 3)
    record = json.loads((tmp_path / "run" / "training_record.json").read_text())
    assert [run["rows"] for run in record["runs"]] == [13]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("--speed 1.1 0.9", "--speed is 1.1 0.9; expected two numbers, the lower first"),
        ("--noise_snr_db 5", "--noise_snr_db is 5.0; expected two numbers"),
        ("--gain_db -99 0", "--gain_db is -99.0 0.0; expected two numbers"),
        ("--noise_dir x", "--noise_dir needs --noise_snr_db"),
        ("--noise_snr_db 0 5 --noise_dir /nowhere", "--noise_dir /nowhere is not a folder"),
        ("--room_share 2", "--room_share is 2.0"),
        ("--room_dir x", "--room_dir needs --room_share"),
        ("--room_share 1 --room_dir /nowhere", "--room_dir /nowhere is not a folder"),
        ("--stage align --no_speech_dir /nowhere", "--no_speech_dir /nowhere is not a folder"),
        ("--speed 0.9 1.1 --waveform_variants 0", "--waveform_variants is 0"),
        ("--speed 0.9 1.1 --feature_cache off", "--speed without a feature cache"),
        ("--gain_db 0 1 --trainable all", "--gain_db without a feature cache"),
        ("--gain_db 0 1 --streaming --max_steps 2", "--gain_db with --streaming"),
        ("--gain_db 0 1 --stage prefer", "--stage prefer cannot have --gain_db"),
    ],
)
def test_what_cannot_be_meant_is_refused(options, tmp_path: Path, extra: str, message: str) -> None:
    given = [*options, *extra.split()]
    if "--trainable" in extra:
        at = given.index("--feature_cache")
        del given[at : at + 2]
    with pytest.raises(SystemExit) as caught:
        main(given)
    assert message in str(caught.value.code)
    assert not (tmp_path / "run").exists()

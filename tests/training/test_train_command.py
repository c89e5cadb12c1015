"""`audiollm train`: every option does what it says, what it refuses is refused first, and what it saves loads."""

import inspect
import json
from pathlib import Path

import pytest
import torch
from audiollm import AudioLlmForConditionalGeneration
from audiollm.checkpoints import is_adapter_key, load_bases
from audiollm.embedded_bases import DEFAULT_AUDIO_BASE, DEFAULT_TEXT_BASE
from audiollm.training.arguments import ModelArguments, base_dtype
from audiollm.training.command_line import all_option_groups
from audiollm.training.preparing import load_model
from audiollm.training.train import main, parse_arguments, train
from audiollm.training.trainer import AudioLlmTrainer, AudioLlmTrainingArguments
from safetensors.torch import load_file
from small_corpus import example_rows, write_rows
from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM, AutoProcessor, TrainingArguments, set_seed
from versions import RECOMPUTING


def run(options: list[str]) -> AudioLlmTrainer:
    return train(*parse_arguments(options))


def refused(options: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that the command ends with, before it has loaded, encoded or made anything."""
    with pytest.raises(SystemExit) as caught:
        main(options)
    printed = capsys.readouterr()
    assert "trainable params" not in printed.out, "a model was loaded first"
    return str(caught.value.code) if isinstance(caught.value.code, str) else printed.err


def without(options: list[str], name: str) -> list[str]:
    at = options.index(name)
    return options[:at] + options[at + 2 :]


# ------------------------------------------------------------------------------------------------------ a whole run


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_bases, corpus, shared_features) -> tuple[AudioLlmTrainer, Path]:
    """One run with evaluation, rotation, augmentation, several adapters' worth of settings, and its folder."""
    audio, text = tiny_bases
    folder = tmp_path_factory.mktemp("trained") / "run"
    trainer = run(
        f"--data_path {corpus.data_path} --audio_dir {corpus.audio_dir} --whisper_path {audio} --llama_path {text} "
        f"--output_dir {folder} --feature_cache {shared_features} --batch_size 4 --num_epochs 3 --augment "
        "--learning_rate 0.01 --projector_learning_rate 0.002 --weight_decay 0.1 --warmup_steps 0 --logging_steps 1 "
        f"--lora_rank 4 --save_steps 2 --save_total_limit 2 --eval_data_path {corpus.data_path} --eval_strategy epoch "
        "--dataloader_pin_memory False --disable_tqdm True".split()
    )
    return trainer, folder


def test_it_trains_all_steps_and_evaluates_each_epoch(trained) -> None:
    trainer, _ = trained
    assert trainer.state.global_step == 3 * 3  # 12 examples, 4 a step
    evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert [entry["epoch"] for entry in evaluations] == [1, 2, 3]
    assert evaluations[-1]["eval_loss"] < evaluations[0]["eval_loss"]


def test_evaluation_sees_recordings_as_they_are(trained) -> None:
    trainer, _ = trained
    assert trainer.augmentation is not None
    assert trainer.evaluate()["eval_loss"] == trainer.evaluate()["eval_loss"]


def test_evaluation_makes_no_logits_of_all_positions(trained) -> None:
    trainer, _ = trained
    positions: list[int] = []
    hook = trainer.model.lm_head.register_forward_hook(
        lambda module, args, output: positions.append(output.numel() // output.shape[-1])
    )
    metrics, trainer.more_metrics = trainer.more_metrics, None
    try:
        trainer.evaluate()
    finally:
        hook.remove()
        trainer.more_metrics = metrics
    supervised = sum(label != -100 for row in trainer.eval_dataset for label in row["labels"][1:])
    assert sum(positions) == supervised + len(trainer.eval_dataset)  # and one more of each row, which is thrown away


def test_only_the_newest_checkpoints_are_kept(trained) -> None:
    _, folder = trained
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-8", "checkpoint-9"]


def test_folder_and_checkpoints_hold_adapter_weights_alone(trained) -> None:
    trainer, folder = trained
    for path in (folder, folder / "checkpoint-9"):
        state = load_file(path / "model.safetensors")
        assert state.keys() == set(trainer.model.trainable_names())
        assert all(is_adapter_key(name) for name in state)


def test_the_saved_folder_loads_and_answers_as_the_trained_model(trained) -> None:
    trainer, folder = trained
    model = AutoModelForMultimodalLM.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    assert isinstance(model, AudioLlmForConditionalGeneration)
    batch = trainer.data_collator([trainer.train_dataset[3], trainer.train_dataset[11]])
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, trainer.model.eval()(**batch).logits)
    assert processor.audio_token_id == model.config.audio_token_id
    assert processor.stack_factor == model.config.stack_factor


def test_the_trained_model_can_be_saved_whole_and_merged(trained, tmp_path) -> None:
    trainer, _ = trained
    batch = trainer.data_collator([trainer.train_dataset[3]])
    with torch.no_grad():
        expected = trainer.model.eval()(**batch).logits
        for weights in ("full", "merged"):
            trainer.model.save_pretrained(tmp_path / weights, weights=weights)
            model = AutoModelForMultimodalLM.from_pretrained(tmp_path / weights)
            torch.testing.assert_close(model(**batch).logits, expected, rtol=1e-4, atol=1e-4)
    trainer.model.config.weight_format = "adapter"


def test_the_bases_bytes_are_unchanged(trained) -> None:
    trainer, _ = trained
    bases, found = load_bases(trainer.model.config)
    assert found == trainer.model.config.base_fingerprint
    state = trainer.model.state_dict()
    assert bases and all(torch.equal(state[name], value) for name, value in bases.items())


def test_text_only_rows_are_the_bases_after_training(trained, tiny_bases) -> None:
    trainer, _ = trained
    base = AutoModelForCausalLM.from_pretrained(tiny_bases[1]).eval()
    ids = torch.tensor([trainer.train_dataset[11]["input_ids"]])
    with torch.no_grad():
        assert torch.equal(trainer.model.eval()(input_ids=ids).logits, base(input_ids=ids).logits)


def test_the_optimizer_has_what_trains_and_nothing_else(trained) -> None:
    trainer, _ = trained
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    optimized = [names[id(p)] for group in trainer.optimizer.param_groups for p in group["params"]]
    assert sorted(optimized) == sorted(trainer.model.trainable_names())
    assert any("multi_modal_projector" in name for name in optimized)
    assert any("audio_boundary_embeds" in name for name in optimized)
    assert any("lora_A" in name for name in optimized) and any("lora_B" in name for name in optimized)


def test_projector_and_lora_have_their_own_rates_and_decay(trained) -> None:
    trainer, _ = trained
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    for group in trainer.optimizer.param_groups:
        kinds = {"lora" if ".lora_" in names[id(p)] else "projector" for p in group["params"]}
        assert len(kinds) == 1
        assert group["initial_lr"] == {"lora": 0.01, "projector": 0.002}[kinds.pop()]
        norms = {"norm" in names[id(p)] for p in group["params"]}
        assert group["weight_decay"] == (0.0 if norms == {True} else 0.1)
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0.0, 0.1}
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert rates[0] > rates[-1]


def test_the_rate_of_the_projector_moves_the_projector_alone(options) -> None:
    still = run([*options, "--learning_rate", "0", "--projector_learning_rate", "0.01", "--seed", "3"]).model
    fresh = _fresh(options, seed=3)
    moved = {name for name in still.trainable_names() if not torch.equal(fresh[name], still.get_parameter(name))}
    assert moved and all(".lora_" not in name for name in moved)
    assert {"model.audio_boundary_embeds", "model.multi_modal_projector.linear_2.weight"} <= moved


def _fresh(options: list[str], seed: int) -> dict[str, torch.Tensor]:
    """The adapter that a run with this seed starts from."""
    set_seed(seed)
    return load_model(parse_arguments(options)[0], torch.float32)[0].state_dict()


# ---------------------------------------------------------------------------------------------------- single options


def test_data_path_and_audio_dir_say_what_is_trained_on(options, corpus, tmp_path) -> None:
    assert len(run(options).train_dataset) == 12
    other = write_rows(tmp_path / "other.json", example_rows(corpus.names)[:3])
    assert len(run([*options, "--data_path", other, "--output_dir", str(tmp_path / "b")]).train_dataset) == 3


def test_audio_dir_is_the_files_own_folder_by_default(options, corpus, tmp_path, capsys) -> None:
    assert "does not exist" in refused(without(options, "--audio_dir"), capsys)
    beside = write_rows(corpus.audio_dir / "beside.json", example_rows(corpus.names)[:3])
    trainer = run([*without(options, "--audio_dir"), "--data_path", beside])
    assert len(trainer.train_dataset) == 3


def test_llama_path_and_whisper_path_say_which_bases(options, tiny_bases) -> None:
    model = run(options).model
    assert (model.config.audio_model_id, model.config.text_model_id) == tiny_bases
    default = parse_arguments(["--data_path", "x"])[0]
    assert default.llama_path is None and default.whisper_path is None
    help_texts = {name: field.metadata["help"] for name, field in ModelArguments.__dataclass_fields__.items()}
    assert DEFAULT_TEXT_BASE in help_texts["llama_path"] and DEFAULT_AUDIO_BASE in help_texts["whisper_path"]


@pytest.mark.parametrize("name", ["--llama_path", "--whisper_path"])
def test_a_base_that_is_not_there_is_named(options, name: str, capsys) -> None:
    assert "/nowhere/at-all" in refused([*options, name, "/nowhere/at-all"], capsys)


def test_output_dir_gets_the_result(options, tmp_path) -> None:
    run([*options, "--output_dir", str(tmp_path / "deep" / "down")])
    assert (tmp_path / "deep" / "down" / "model.safetensors").is_file()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "full"), [("batch_size", "per_device_train_batch_size"), ("num_epochs", "num_train_epochs")]
)
def test_short_names_stand_for_the_trainers(options, name: str, full: str) -> None:
    given = parse_arguments([*without(options, "--batch_size"), f"--{name}", "5"])[2]
    assert getattr(given, full) == 5
    same = parse_arguments([*without(options, "--batch_size"), f"--{full}", "5"])[2]
    assert getattr(same, full) == 5
    neither = parse_arguments(["--data_path", "x"])[2]
    assert getattr(neither, full) == getattr(TrainingArguments(output_dir="x"), full)


def test_batch_size_and_num_epochs_make_the_steps(options) -> None:
    options = without(without(options, "--max_steps"), "--batch_size")
    assert run([*options, "--batch_size", "6", "--num_epochs", "1"]).state.global_step == 2


def test_learning_rate_is_the_optimizers(options) -> None:
    still = run([*options, "--learning_rate", "0", "--warmup_steps", "0"])
    assert {group["initial_lr"] for group in still.optimizer.param_groups} == {0.0}
    fresh = _fresh(options, seed=still.args.seed)
    assert all(torch.equal(fresh[name], still.model.get_parameter(name)) for name in still.model.trainable_names())


def test_bf16_trains_with_frozen_bases_in_bf16(options) -> None:
    trainer = run([*options, "--bf16"])
    assert trainer.model.dtype == trainer.model.model.audio_tower.dtype == torch.bfloat16
    assert {trainer.model.get_parameter(name).dtype for name in trainer.model.trainable_names()} == {torch.float32}
    assert trainer.state.global_step == 2
    assert all(torch.isfinite(trainer.model.get_parameter(name)).all() for name in trainer.model.trainable_names())


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU, where fp16 trains")
def test_fp16_without_a_gpu_says_what_to_do(options, capsys) -> None:
    assert "--fp16 needs a GPU" in (message := refused([*options, "--fp16"], capsys)) and "--bf16" in message


@pytest.mark.skipif(not torch.cuda.is_available(), reason="fp16 needs a GPU")
def test_fp16_trains_with_frozen_bases_in_fp16(options) -> None:
    trainer = run([*options, "--fp16"])
    assert trainer.model.dtype == torch.float16
    assert {trainer.model.get_parameter(name).dtype for name in trainer.model.trainable_names()} == {torch.float32}
    assert all(torch.isfinite(trainer.model.get_parameter(name)).all() for name in trainer.model.trainable_names())


def test_fp16_asks_for_bases_in_fp16() -> None:
    training = AudioLlmTrainingArguments(fp16=True)
    assert base_dtype(ModelArguments(), training) == torch.float16
    assert base_dtype(ModelArguments(base_dtype="float32"), training) == torch.float32


def test_report_to_tensorboard_writes_events(options, tmp_path) -> None:
    pytest.importorskip("tensorboard")
    run([*options, "--report_to", "tensorboard", "--logging_steps", "1"])
    events = [file for file in (tmp_path / "run").rglob("events.out.tfevents.*") if file.stat().st_size]
    assert events


def test_use_wandb_reports_to_wandb(options) -> None:
    assert parse_arguments([*options, "--use_wandb"])[2].report_to == ["wandb"]
    assert parse_arguments(options)[2].report_to == []


@pytest.mark.parametrize(
    ("extra", "shape"),
    [
        ("--stack_factor 2", {"stack_factor": 2}),
        ("--projector_type linear", {"projector_type": "linear"}),
        ("--projector_type mlp --projector_hidden_size 24", {"projector_type": "mlp", "projector_hidden_size": 24}),
        ("--projector_readout pieces", {"projector_readout": "pieces"}),
        ("--lora_rank 3 --lora_alpha 7", {"lora_rank": 3, "lora_alpha": 7.0}),
        ("--lora_rank 0", {"lora_rank": 0, "lora_adapters": {}}),
        ("--lora_dropout 0.3", {"lora_dropout": 0.3}),
        ("", {"stack_factor": 4, "projector_type": "swiglu", "lora_rank": 16, "lora_alpha": 32, "lora_dropout": 0.0}),
    ],
)
def test_options_shape_the_new_model(options, extra: str, shape: dict) -> None:
    trainer = run([*options, *extra.split()])
    assert {name: getattr(trainer.model.config, name) for name in shape} == shape
    assert trainer.processing_class.stack_factor == trainer.model.config.stack_factor
    assert trainer.state.global_step == 2
    assert any(".lora_" in name for name in trainer.model.trainable_names()) == (trainer.model.config.lora_rank > 0)


def test_base_dtype_and_attention_are_the_models(options) -> None:
    model = run([*options, "--base_dtype", "bfloat16", "--attn_implementation", "eager"]).model
    assert model.dtype == torch.bfloat16
    assert model.model.language_model.config._attn_implementation == "eager"
    assert model.model.audio_tower.config._attn_implementation == "eager"


def test_model_path_goes_on_from_a_checkpoint(trained, options, tmp_path) -> None:
    _, folder = trained
    options = [*without(without(options, "--llama_path"), "--whisper_path"), "--model_path", str(folder)]
    model = run([*options, "--learning_rate", "0"]).model
    expected = load_file(folder / "model.safetensors")
    assert model.config.lora_rank == 4
    assert all(torch.equal(model.get_parameter(name), value) for name, value in expected.items())


def test_with_model_path_the_bases_may_lie_elsewhere(trained, options, tiny_bases, tmp_path) -> None:
    _, folder = trained
    moved = [tmp_path / "whisper", tmp_path / "llama"]
    for link, base in zip(moved, tiny_bases):
        link.symlink_to(base)
    model = run(
        [*options, "--model_path", str(folder), "--whisper_path", str(moved[0]), "--llama_path", str(moved[1])]
    ).model
    assert (model.config.audio_model_id, model.config.text_model_id) == tuple(map(str, moved))


def test_feature_cache_is_where_it_is_said_or_off(options, tmp_path) -> None:
    run([*options, "--feature_cache", str(tmp_path / "here")])
    assert len(list((tmp_path / "here").rglob("*.safetensors"))) == 10
    trainer = run([*options, "--feature_cache", "off", "--output_dir", str(tmp_path / "b")])
    assert trainer.data_collator.cache is None and trainer.state.global_step == 2


def test_augment_changes_what_is_learned(options, tmp_path) -> None:
    plain = run(options).model
    varied = run([*options, "--augment", "--output_dir", str(tmp_path / "b")]).model
    name = "model.multi_modal_projector.linear_1.weight"
    assert not torch.equal(plain.get_parameter(name), varied.get_parameter(name))


def test_the_same_run_twice_ends_alike(options, tmp_path) -> None:
    models = [run([*options, "--augment", "--output_dir", str(tmp_path / name)]).model for name in "ab"]
    first, second = ({name: m.get_parameter(name) for name in m.trainable_names()} for m in models)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("flag", sorted({"--gradient_checkpointing", RECOMPUTING}))
def test_checkpointed_activations_give_the_same_weights(options, tmp_path, flag: str) -> None:
    plain = run([*options, "--lora_dropout", "0"]).model
    saving = run([*options, "--lora_dropout", "0", flag, "--output_dir", str(tmp_path / "b")]).model
    assert saving.model.language_model.is_gradient_checkpointing and not plain.is_gradient_checkpointing
    for name in plain.trainable_names():
        torch.testing.assert_close(plain.get_parameter(name), saving.get_parameter(name), rtol=1e-4, atol=1e-5)


def test_any_option_of_the_trainer_passes_through(options) -> None:
    options = without(options, "--max_steps")
    trainer = run([*options, "--gradient_accumulation_steps", "3", "--num_epochs", "2", "--max_grad_norm", "0.5"])
    assert trainer.state.global_step == 2
    assert trainer.args.max_grad_norm == 0.5
    shown = set(inspect.signature(TrainingArguments).parameters)
    assert shown <= set(AudioLlmTrainingArguments.__dataclass_fields__)


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("--bogus 1", "there is no option --bogus"),
        ("--batch 4", "there is no option --batch 4"),
        ("--batch_size 0", "--batch_size is 0"),
        ("--num_epochs -1", "--num_epochs is -1"),
        ("--bf16 --fp16", "At most one of fp16 and bf16"),
        ("--base_dtype int8", "--base_dtype is 'int8'; expected one of"),
        ("--label_smoothing_factor 0.1", "--label_smoothing_factor is not supported"),
        ("--eval_strategy epoch", "--eval_data_path and --eval_strategy (epoch or steps) need each other"),
        ("--eval_data_path x.json", "--eval_data_path and --eval_strategy (epoch or steps) need each other"),
        ("--augment --feature_cache off", "--augment without a feature cache"),
        ("--trainable everything", "--trainable is 'everything'; expected one of adapter, projector"),
        ("--trainable adapter+audio --feature_cache x", "--feature_cache with --trainable adapter+audio"),
        ("--trainable all --feature_cache off --augment", "--augment without a feature cache"),
        ("--model_path x --lora_rank 4 --stack_factor 2", "--stack_factor, --lora_rank"),
        ("--learning_rate fast", "invalid float value: 'fast'"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_any_work(options, extra: str, message: str, capsys, tmp_path) -> None:
    assert message in refused([*options, *extra.split()], capsys)
    assert not (tmp_path / "run").exists()


def test_data_path_is_required(options, capsys) -> None:
    assert "--data_path" in refused(without(options, "--data_path"), capsys)


def test_all_bad_rows_are_named_before_a_model_is_loaded(options, corpus, tmp_path, capsys) -> None:
    rows = example_rows(corpus.names)
    rows[1] = {"text": "<audio>", "response": "x"}
    rows[3]["response"] = 7
    rows[5]["audio_paths"] = "missing.wav"
    rows[7]["extra"] = 1
    message = refused([*options, "--data_path", write_rows(tmp_path / "bad.json", rows)], capsys)
    assert "4 problems" in message
    assert all(f"row {index}: " in message for index in (1, 3, 5, 7))
    assert "missing.wav" in message and "'extra'" in message


def test_a_bad_evaluation_file_is_named_before_a_model_is_loaded(options, tmp_path, capsys) -> None:
    bad = write_rows(tmp_path / "held-out.json", [{"text": "hello"}])
    message = refused([*options, "--eval_strategy", "epoch", "--eval_data_path", bad], capsys)
    assert "held-out.json" in message and "row 0: field 'response' is missing" in message


def test_missing_files_and_folders_are_named(options, tmp_path, capsys) -> None:
    assert "nothing.json" in refused([*options, "--data_path", str(tmp_path / "nothing.json")], capsys)
    assert "'/no/folder' is not a folder" in refused([*options, "--audio_dir", "/no/folder"], capsys)


def test_a_recording_that_is_none_is_named(options, corpus, tmp_path) -> None:
    (tmp_path / "noise.wav").write_bytes(b"RIFF, but no more")
    rows = [{"text": "<audio>", "audio_paths": "noise.wav", "response": "x"}]
    data = write_rows(tmp_path / "data.json", rows)
    with pytest.raises(SystemExit) as caught:
        main([*options, "--data_path", data, "--audio_dir", str(tmp_path)])
    assert "noise.wav" in str(caught.value.code)


def test_help_shows_our_options_with_what_they_do(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "10000")  # no line breaks at hyphens
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    ours = all_option_groups()
    # Groups inherit options from the modules that they belong to; transformers' own are not ours to describe.
    owners = [owner for group in ours for owner in group.__mro__ if owner.__module__.startswith("audiollm")]
    named = [name for owner in owners for name in owner.__annotations__]
    assert {
        "data_path",
        "llama_path",
        "batch_size",
        "use_wandb",
        "projector_learning_rate",
        "stage",
        "trainable",
    } <= set(named)
    for owner in owners:
        for name in owner.__annotations__:
            if name.startswith("_"):
                continue
            assert f"--{name}" in text
            assert " ".join(owner.__dataclass_fields__[name].metadata["help"].split()).split("%")[0] in text, name


def test_the_run_is_described_on_disk(trained) -> None:
    _, folder = trained
    state = json.loads((folder / "trainer_state.json").read_text())
    assert state["global_step"] == 9 and state["log_history"]

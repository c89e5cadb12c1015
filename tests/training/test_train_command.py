"""`audiollm train`: every option does what it says, what it refuses is refused first, and what it saves loads."""

import inspect
import json
from pathlib import Path

import pytest
import torch
from audiollm import AudioLlmForConditionalGeneration
from audiollm.training.arguments import AudioLlmTrainingArguments, ModelArguments, base_dtype
from audiollm.training.command_line import parse_arguments
from audiollm.training.preparing import load_model
from audiollm.training.trainer import AudioLlmTrainer
from runs import differing, logged, refused, run, without
from safetensors.torch import load_file
from small_corpus import example_rows, write_rows
from transformers import AutoModelForMultimodalLM, AutoProcessor, TrainingArguments, set_seed
from versions import RECOMPUTING

# ------------------------------------------------------------------------------------------------------ a whole run


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_bases, corpus, shared_features) -> tuple[AudioLlmTrainer, Path]:
    """One run with evaluation, rotation, augmentation and a rate for each part, and its folder."""
    audio, text = tiny_bases
    folder = tmp_path_factory.mktemp("trained") / "deep" / "run"
    trainer = run(
        f"--data_path {corpus.data_path} --audio_dir {corpus.audio_dir} --whisper_path {audio} --llama_path {text} "
        f"--output_dir {folder} --feature_cache {shared_features} --batch_size 4 --num_epochs 3 --augment "
        "--learning_rate 0.01 --projector_learning_rate 0.002 --weight_decay 0.1 --warmup_steps 0 --logging_steps 1 "
        f"--lora_rank 4 --save_steps 2 --save_total_limit 2 --eval_data_path {corpus.data_path} --eval_strategy epoch "
        "--eval_max_new_tokens 4 --report_to tensorboard --disable_tqdm True".split()
    )
    return trainer, folder


def test_it_trains_all_steps_and_evaluates_each_epoch(trained, tiny_bases) -> None:
    trainer, folder = trained
    assert trainer.state.global_step == 3 * 3  # 12 examples, 4 a step
    assert (trainer.model.config.audio_model_id, trainer.model.config.text_model_id) == tiny_bases
    evaluations = logged(trainer, "eval_loss")
    assert len(evaluations) == 3 and evaluations[-1] < evaluations[0]
    assert json.loads((folder / "trainer_state.json").read_text())["log_history"]
    pytest.importorskip("tensorboard")
    assert [file for file in folder.rglob("events.out.tfevents.*") if file.stat().st_size]


def test_evaluation_sees_recordings_as_they_are_and_makes_no_logits_of_all_positions(trained) -> None:
    trainer, _ = trained
    positions: list[int] = []
    hook = trainer.model.lm_head.register_forward_hook(
        lambda module, args, output: positions.append(output.numel() // output.shape[-1])
    )
    metrics, trainer.more_metrics = trainer.more_metrics, None
    try:
        loss = trainer.evaluate()["eval_loss"]
    finally:
        hook.remove()
    assert trainer.augmentation is not None and loss == trainer.evaluate()["eval_loss"]
    trainer.more_metrics = metrics
    supervised = sum(label != -100 for row in trainer.eval_dataset for label in row["labels"][1:])
    assert sum(positions) == supervised + len(trainer.eval_dataset)  # and one more of each row, which is thrown away


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


def test_the_optimizer_has_what_trains_with_rates_and_decay_of_its_own(trained) -> None:
    trainer, _ = trained
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    optimized = [names[id(p)] for group in trainer.optimizer.param_groups for p in group["params"]]
    assert sorted(optimized) == sorted(trainer.model.trainable_names())
    for group in trainer.optimizer.param_groups:
        kinds = {"lora" if ".lora_" in names[id(p)] else "projector" for p in group["params"]}
        assert len(kinds) == 1
        assert group["initial_lr"] == {"lora": 0.01, "projector": 0.002}[kinds.pop()]
        norms = {"norm" in names[id(p)] for p in group["params"]}
        assert group["weight_decay"] == (0.0 if norms == {True} else 0.1)
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0.0, 0.1}
    rates = logged(trainer, "learning_rate")
    assert rates[0] > rates[-1]


def test_model_path_goes_on_from_a_checkpoint_whose_bases_may_lie_elsewhere(
    trained, options, tiny_bases, tmp_path
) -> None:
    _, folder = trained
    moved = [tmp_path / "whisper", tmp_path / "llama"]
    for link, base in zip(moved, tiny_bases):
        link.symlink_to(base)
    bases = ["--whisper_path", str(moved[0]), "--llama_path", str(moved[1])]
    model = run([*options, "--model_path", str(folder), *bases, "--learning_rate", "0"]).model
    assert (model.config.audio_model_id, model.config.text_model_id) == tuple(map(str, moved))
    expected = load_file(folder / "model.safetensors")
    assert model.config.lora_rank == 4
    assert not differing(expected, dict(model.named_parameters()))


# ---------------------------------------------------------------------------------------------------- single options


def test_the_rate_of_the_projector_moves_the_projector_alone(options) -> None:
    rates = "--learning_rate 0 --projector_learning_rate 0.01 --seed 3 --warmup_steps 0"
    still = run([*options, *rates.split()]).model
    set_seed(3)
    fresh = load_model(parse_arguments(options)[0], torch.float32)[0].state_dict()
    moved = differing(still, fresh)
    assert moved and all(".lora_" not in name for name in moved)
    assert {"model.audio_boundary_embeds", "model.multi_modal_projector.linear_2.weight"} <= moved


def test_audio_dir_is_the_files_own_folder_by_default(options, corpus, capsys) -> None:
    assert "does not exist" in refused(without(options, "audio_dir"), capsys)
    beside = write_rows(corpus.audio_dir / "beside.json", example_rows(corpus.names)[:3])
    assert len(run([*without(options, "audio_dir"), "--data_path", beside]).train_dataset) == 3


@pytest.mark.parametrize(
    ("name", "full"), [("batch_size", "per_device_train_batch_size"), ("num_epochs", "num_train_epochs")]
)
def test_short_names_stand_for_the_trainers(name: str, full: str) -> None:
    for given in (name, full):
        assert getattr(parse_arguments(["--data_path", "x", f"--{given}", "5"])[2], full) == 5
    neither = parse_arguments(["--data_path", "x"])[2]
    assert getattr(neither, full) == getattr(TrainingArguments(output_dir="x"), full)


def test_precisions_and_trackers_are_those_asked_for() -> None:
    half = AudioLlmTrainingArguments(fp16=True)
    assert base_dtype(ModelArguments(), half) == torch.float16
    assert base_dtype(ModelArguments(base_dtype="float32"), half) == torch.float32
    assert parse_arguments(["--data_path", "x", "--use_wandb"])[2].report_to == ["wandb"]
    assert parse_arguments(["--data_path", "x"])[2].report_to == []


@pytest.mark.parametrize(
    "precision",
    ["bf16", pytest.param("fp16", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))],
)
def test_mixed_precision_trains_with_frozen_bases_in_half(options, precision: str) -> None:
    trainer = run([*options, f"--{precision}", "--attn_implementation", "eager"])
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert trainer.model.dtype == trainer.model.model.audio_tower.dtype == dtype
    for part in (trainer.model.model.language_model, trainer.model.model.audio_tower):
        assert part.config._attn_implementation == "eager"
    trained = [trainer.model.get_parameter(name) for name in trainer.model.trainable_names()]
    assert {value.dtype for value in trained} == {torch.float32} and all(value.isfinite().all() for value in trained)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU, where fp16 trains")
def test_fp16_without_a_gpu_says_what_to_do(options, capsys) -> None:
    assert "--fp16 needs a GPU" in (message := refused([*options, "--fp16"], capsys)) and "--bf16" in message


@pytest.mark.parametrize(
    ("extra", "shape"),
    [
        ("--stack_factor 2 --projector_type linear", {"stack_factor": 2, "projector_type": "linear"}),
        ("--projector_type mlp --projector_hidden_size 24", {"projector_type": "mlp", "projector_hidden_size": 24}),
        ("--projector_readout pieces --lora_rank 0", {"projector_readout": "pieces", "lora_adapters": {}}),
        ("--lora_rank 3 --lora_alpha 7 --lora_dropout 0.3", {"lora_rank": 3, "lora_alpha": 7.0, "lora_dropout": 0.3}),
        ("", {"stack_factor": 4, "projector_type": "swiglu", "lora_rank": 16, "lora_alpha": 32, "lora_dropout": 0.0}),
    ],
)
def test_options_shape_the_new_model(options, extra: str, shape: dict) -> None:
    trainer = run([*options, *extra.split(), "--save_strategy", "no"])
    assert {name: getattr(trainer.model.config, name) for name in shape} == shape
    assert trainer.processing_class.stack_factor == trainer.model.config.stack_factor
    assert trainer.state.global_step == 2
    assert any(".lora_" in name for name in trainer.model.trainable_names()) == (trainer.model.config.lora_rank > 0)


def test_feature_cache_is_where_it_is_said_or_off_and_its_size_is_said(options, tmp_path, capsys) -> None:
    run([*options, "--feature_cache", str(tmp_path / "here")])
    assert len(list((tmp_path / "here").rglob("*.safetensors"))) == 10
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Feature cache: ")]
    assert f" MB in {tmp_path / 'here'}" in line
    trainer = run([*options, "--feature_cache", "off", "--output_dir", str(tmp_path / "b")])
    assert trainer.data_collator.cache is None and trainer.state.global_step == 2


def test_the_same_run_twice_ends_alike_and_augment_changes_what_is_learned(options, tmp_path) -> None:
    first, second, plain = (
        run([*options, *extra, "--save_strategy", "no", "--output_dir", str(tmp_path / str(number))]).model
        for number, extra in enumerate((["--augment"], ["--augment"], []))
    )
    assert not differing(first, second) and differing(first, plain)


@pytest.mark.parametrize("flag", sorted({"--gradient_checkpointing", RECOMPUTING}))
def test_checkpointed_activations_give_the_same_weights(options, tmp_path, flag: str) -> None:
    options = [*options, "--save_strategy", "no"]
    plain = run(options).model
    saving = run([*options, flag, "--output_dir", str(tmp_path / "b")]).model
    assert saving.model.language_model.is_gradient_checkpointing and not plain.is_gradient_checkpointing
    for name in plain.trainable_names():
        torch.testing.assert_close(plain.get_parameter(name), saving.get_parameter(name), rtol=1e-4, atol=1e-5)


def test_any_option_of_the_trainer_passes_through(options) -> None:
    more = ["--gradient_accumulation_steps", "3", "--num_epochs", "2", "--max_grad_norm", "0.5"]
    trainer = run([*without(options, "max_steps"), *more])
    assert trainer.state.global_step == 2
    assert trainer.args.max_grad_norm == 0.5
    shown = set(inspect.signature(TrainingArguments).parameters)
    assert shown <= set(AudioLlmTrainingArguments.__dataclass_fields__)


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("--bogus 1", "there is no option --bogus"),
        ("--batch_size 0", "--batch_size is 0"),
        ("--bf16 --fp16", "At most one of fp16 and bf16"),
        ("--base_dtype int8", "--base_dtype is 'int8'; expected one of"),
        ("--label_smoothing_factor 0.1", "--label_smoothing_factor is not supported"),
        ("--eval_strategy epoch", "--eval_data_path and --eval_strategy (epoch or steps) need each other"),
        ("--eval_normaliser french", "--eval_normaliser is 'french'; expected one of"),
        ("--augment --feature_cache off", "--augment without a feature cache"),
        ("--trainable everything", "--trainable is 'everything'; expected one of adapter, projector"),
        ("--trainable adapter+audio --feature_cache x", "--feature_cache with --trainable adapter+audio"),
        ("--model_path x --lora_rank 4 --stack_factor 2", "--stack_factor, --lora_rank"),
        ("--data_weights 1 2", "expected a positive number for each"),
        ("--streaming --max_steps -1", "--max_steps"),
        ("--load_in_8bit --load_in_4bit", "--load_in_8bit contradicts --load_in_4bit"),
        ("--load_in_4bit --trainable adapter+llm", "--trainable cannot include it"),
        ("--speed 1.1 0.9", "--speed is 1.1 0.9; expected two numbers, the lower first"),
        ("--noise_snr_db 0 5 --noise_dir /nowhere", "--noise_dir /nowhere is not a folder"),
        ("--speed 0.9 1.1 --waveform_variants 0", "--waveform_variants is 0"),
        ("--speed 0.9 1.1 --feature_cache off", "--speed without a feature cache"),
        ("--gain_db 0 1 --streaming --max_steps 2", "--gain_db with --streaming"),
        ("--max_tokens_per_batch 9 --stage prefer", "--stage prefer cannot have a batch budget"),
        ("--max_tokens_per_batch 9 --streaming", "--stage instruct cannot have a batch budget with --streaming"),
        ("--llama_path /nowhere/at-all", "/nowhere/at-all"),
        ("--whisper_path /nowhere/at-all", "/nowhere/at-all"),
        ("--audio_dir /no/folder", "'/no/folder' is not a folder"),
        ("--data_path /no/nothing.json", "nothing.json"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_any_work(options, extra: str, message: str, capsys, tmp_path) -> None:
    options = without(options, "batch_size") if "max_tokens" in extra else options
    assert message in refused([*options, *extra.split()], capsys)
    assert not (tmp_path / "run" / "stage.json").exists()


def test_data_path_is_required(options, capsys) -> None:
    assert "--data_path is needed" in refused(without(options, "data_path"), capsys)


def test_what_cannot_be_written_or_read_is_named(options, corpus, tmp_path, capsys) -> None:
    (tmp_path / "noise.wav").write_bytes(b"RIFF, but no more")
    rows = [{"text": "<audio>", "audio_paths": "noise.wav", "response": "x"}]
    data = ["--data_path", write_rows(tmp_path / "data.json", rows), "--audio_dir", str(tmp_path)]
    for given, name in (
        (data, "noise.wav"),
        (["--feature_cache", f"{corpus.data_path}/below"], f"{corpus.data_path}/below"),
    ):
        assert name in refused([*options, *given], capsys, early=False)

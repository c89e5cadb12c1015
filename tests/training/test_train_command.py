"""`audiollm train`: options and recipes mean what they say, what is refused is refused first, what is saved loads."""

import inspect
import re
from pathlib import Path

import pytest
import torch
from audiollm import AudioLlmForConditionalGeneration
from audiollm.training import arguments
from audiollm.training.command_line import STAGE_OPTIONS, option_groups, parse_arguments, read_recipe
from audiollm.training.preparing import load_model
from audiollm.training.train import main
from audiollm.training.trainer import AudioLlmTrainer
from runs import command_options, differing, logged, refused, run, without
from safetensors.torch import load_file
from small_corpus import example_rows, write_rows
from transformers import AutoModelForMultimodalLM, AutoProcessor, TrainingArguments, set_seed
from versions import RECOMPUTING


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_bases, corpus, shared_features) -> tuple[AudioLlmTrainer, Path]:
    """One run with evaluation, rotation, augmentation and a rate for each part, and its folder."""
    folder = tmp_path_factory.mktemp("trained") / "deep" / "run"
    options = command_options(corpus.data_path, corpus, tiny_bases, shared_features, folder)
    more = (
        "--num_epochs 3 --augment --learning_rate 0.01 --projector_learning_rate 0.002 --weight_decay 0.1 --warmup_steps 0 "
        f"--logging_steps 1 --lora_rank 4 --save_steps 2 --save_total_limit 2 --eval_data_path {corpus.data_path} "
        "--eval_strategy epoch --eval_max_new_tokens 4 --report_to tensorboard"
    )
    return run([*options, *more.split()]), folder


def test_it_trains_all_steps_evaluates_each_epoch_and_what_it_saves_loads(trained, tiny_bases) -> None:
    trainer, folder = trained
    assert trainer.state.global_step == 3 * 3  # 12 examples, 4 a step
    assert (trainer.model.config.audio_model_id, trainer.model.config.text_model_id) == tiny_bases
    evaluations = logged(trainer, "eval_loss")
    assert len(evaluations) == 3 and evaluations[-1] < evaluations[0]
    model, processor = (kind.from_pretrained(folder) for kind in (AutoModelForMultimodalLM, AutoProcessor))
    assert isinstance(model, AudioLlmForConditionalGeneration)
    batch = trainer.data_collator([trainer.train_dataset[3], trainer.train_dataset[11]])
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, trainer.model.eval()(**batch).logits)
    for name in ("audio_token_id", "stack_factor"):
        assert getattr(processor, name) == getattr(model.config, name)
    pytest.importorskip("tensorboard")
    assert [file for file in folder.rglob("events.out.tfevents.*") if file.stat().st_size]


def test_evaluation_sees_recordings_as_they_are_and_makes_no_logits_of_all_positions(trained, monkeypatch) -> None:
    trainer, positions = trained[0], []
    monkeypatch.setattr(trainer, "more_metrics", None)
    hook = trainer.model.lm_head.register_forward_hook(lambda *of: positions.append(of[-1][..., 0].numel()))
    loss = trainer.evaluate()["eval_loss"]
    hook.remove()
    assert trainer.augmentation is not None and loss == trainer.evaluate()["eval_loss"]
    supervised = sum(label != -100 for row in trainer.eval_dataset for label in row["labels"][1:])
    assert sum(positions) == supervised + len(trainer.eval_dataset)  # and one more of each row, which is thrown away


def test_the_optimizer_has_what_trains_with_rates_and_decay_of_its_own(trained) -> None:
    trainer, _ = trained
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    optimized = [names[id(p)] for group in trainer.optimizer.param_groups for p in group["params"]]
    assert sorted(optimized) == sorted(trainer.model.trainable_names())
    for group in trainer.optimizer.param_groups:
        own = [names[id(p)] for p in group["params"]]
        (rate,) = {0.01 if ".lora_" in name else 0.002 for name in own}
        assert group["initial_lr"] == rate
        assert group["weight_decay"] == (0.0 if all("norm" in name for name in own) else 0.1)
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0.0, 0.1}
    rates = logged(trainer, "learning_rate")
    assert rates[0] > rates[-1]


def test_model_path_goes_on_from_a_checkpoint_whose_bases_may_lie_elsewhere(
    trained, options, tiny_bases, tmp_path
) -> None:
    moved = [tmp_path / "whisper", tmp_path / "llama"]
    for link, base in zip(moved, tiny_bases):
        link.symlink_to(base)
    bases = ["--whisper_path", str(moved[0]), "--llama_path", str(moved[1])]
    model = run([*options, "--model_path", str(trained[1]), *bases, "--learning_rate", "0"]).model
    assert (model.config.audio_model_id, model.config.text_model_id) == tuple(map(str, moved))
    assert not differing(load_file(trained[1] / "model.safetensors"), dict(model.named_parameters()))


def test_the_rate_of_the_projector_moves_the_projector_alone(options) -> None:
    rates = "--learning_rate 0 --projector_learning_rate 0.01 --seed 3 --warmup_steps 0"
    still = run([*options, *rates.split()]).model
    set_seed(3)
    fresh = load_model(parse_arguments(options)[0], torch.float32)[0].state_dict()
    moved = differing(still, fresh)
    assert all(".lora_" not in name for name in moved)
    assert {"model.audio_boundary_embeds", "model.multi_modal_projector.linear_2.weight"} <= moved


def test_audio_dir_is_the_files_own_folder_by_default(options, corpus, capsys) -> None:
    assert "does not exist" in refused(without(options, "audio_dir"), capsys)
    beside = write_rows(corpus.audio_dir / "beside.json", example_rows(corpus.names)[:3])
    assert len(run([*without(options, "audio_dir"), "--data_path", beside]).train_dataset) == 3


def test_short_names_precisions_and_trackers_are_those_asked_for(monkeypatch) -> None:
    def parsed(*given: str) -> arguments.AudioLlmTrainingArguments:
        return parse_arguments(["--data_path", "x", *given])[2]

    for name, full in (("batch_size", "per_device_train_batch_size"), ("num_epochs", "num_train_epochs")):
        assert [getattr(parsed(f"--{given}", "5"), full) for given in (name, full)] == [5, 5]
        assert getattr(parsed(), full) == getattr(TrainingArguments(output_dir="x"), full)
    half, model = arguments.AudioLlmTrainingArguments(fp16=True), arguments.ModelArguments
    assert arguments.base_dtype(model(), half) == torch.float16
    assert arguments.base_dtype(model(base_dtype="float32"), half) == torch.float32
    assert (parsed("--use_wandb").report_to, parsed().report_to) == (["wandb"], [])
    shown = set(inspect.signature(TrainingArguments).parameters)
    assert shown <= set(arguments.AudioLlmTrainingArguments.__dataclass_fields__)
    with pytest.raises(ValueError, match=r"--fp16 needs a GPU.*--bf16"):
        monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
        arguments.check_arguments(model(), arguments.DataArguments(data_path=["x"]), parsed("--fp16"))


@pytest.mark.parametrize(
    "precision",
    ["bf16", pytest.param("fp16", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))],
)
def test_mixed_precision_trains_with_frozen_bases_in_half(options, precision: str) -> None:
    model = run([*options, f"--{precision}", "--attn_implementation", "eager"]).model
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    for part in (model.model.language_model, model.model.audio_tower):
        assert part.dtype == dtype and part.config._attn_implementation == "eager"
    trained = [model.get_parameter(name) for name in model.trainable_names()]
    assert {value.dtype for value in trained} == {torch.float32} and all(value.isfinite().all() for value in trained)


@pytest.mark.parametrize(
    ("extra", "shape"),
    [
        ("--stack_factor 2 --projector_type mlp --projector_hidden_size 24 --lora_rank 3 --lora_alpha 7", {}),
        ("--projector_readout pieces --lora_rank 0 --lora_dropout 0.3", {"lora_adapters": {}}),
        ("", {"stack_factor": 4, "projector_type": "swiglu", "lora_rank": 16, "lora_alpha": 32, "lora_dropout": 0.0}),
    ],
)
def test_options_shape_the_new_model(options, extra: str, shape: dict) -> None:
    trainer = run([*options, *extra.split(), "--save_strategy", "no"])
    config = trainer.model.config
    for name, value in zip(extra.split()[::2], extra.split()[1::2]):
        kept = getattr(config, name.removeprefix("--"))
        assert kept == type(kept)(value)
    assert {name: getattr(config, name) for name in shape} == shape
    assert trainer.processing_class.stack_factor == config.stack_factor
    assert any(".lora_" in name for name in trainer.model.trainable_names()) == (config.lora_rank > 0)


def test_feature_cache_is_where_it_is_said_or_off_and_its_size_is_said(options, tmp_path, capsys) -> None:
    run([*options, "--feature_cache", str(tmp_path / "here")])
    assert len(list((tmp_path / "here").rglob("*.safetensors"))) == 10
    assert re.search(rf"Feature cache: \d+ MB in {tmp_path / 'here'}", capsys.readouterr().out)
    trainer = run([*options, "--feature_cache", "off", "--output_dir", str(tmp_path / "b")])
    assert trainer.data_collator.cache is None and trainer.state.global_step == 2


def test_the_same_run_twice_ends_alike_and_augment_changes_what_is_learned(options, tmp_path, capsys) -> None:
    """Checkpoints of weights alone are not gone on from."""
    options = [*options, "--save_only_model"]
    first, second = (run([*options, "--augment"]).model for _ in range(2))
    assert (tmp_path / "run" / "checkpoint-2" / "trainer_state.json").exists()
    assert "Resuming" not in capsys.readouterr().out
    plain = run([*options, "--output_dir", str(tmp_path / "plain")]).model
    assert not differing(first, second) and differing(first, plain)


@pytest.mark.parametrize("flag", sorted({"--gradient_checkpointing", RECOMPUTING}))
def test_checkpointed_activations_give_the_same_weights(options, tmp_path, flag: str) -> None:
    options = [*options, "--save_strategy", "no"]
    plain = run(options).model
    saving = run([*options, flag, "--output_dir", str(tmp_path / "b")]).model
    assert saving.model.language_model.is_gradient_checkpointing and not plain.is_gradient_checkpointing
    for name in plain.trainable_names():
        torch.testing.assert_close(plain.get_parameter(name), saving.get_parameter(name), rtol=1e-4, atol=1e-5)


def recipe(folder: Path, text: str) -> str:
    (folder / "mine.yaml").write_text(text, encoding="utf-8")
    return str(folder / "mine.yaml")


def test_recipes_are_those_shipped_or_a_file_of_ones_own(tmp_path) -> None:
    _, _, training, _ = parse_arguments(["--data_path", "x"])
    default, shipped = arguments.AudioLlmTrainingArguments(), read_recipe("instruct")
    for name in set(shipped) & set(default.__dataclass_fields__):
        assert getattr(training, name) == getattr(default, name), name  # what Python has by default
    assert shipped["trainable"] == arguments.ModelArguments().trainable
    for given in ("--stage", "--config"):
        _, data, training, stage, _ = parse_arguments([given, "align", "--data_path", "x"])
        assert (training.learning_rate, data.augment, stage.stage) == (3e-3, True, "align")
    mine = recipe(tmp_path, "stage: prefer\ndata_path: pairs.json\nbeta: 0.5\nfeature_cache: off\n")
    _, data, training, stage, prefer = parse_arguments(["--config", mine])
    assert (data.data_path, stage.stage, prefer.beta) == (["pairs.json"], "prefer", 0.5)
    assert training.per_device_train_batch_size == 8  # what the shipped recipe says plays no part
    assert data.feature_cache == "off"  # which YAML reads as false


@pytest.mark.parametrize(
    ("text", "given", "name", "value"),
    [
        ("learning_rate: 0.5", ["--learning_rate", "0.25"], "learning_rate", 0.25),
        ("learning_rate: 1e-4", [], "learning_rate", 1e-4),
        ("bf16: true", ["--bf16", "False"], "bf16", False),
        ("bf16: false", ["--bf16"], "bf16", True),
        ("skip_memory_metrics: true", ["--no_skip_memory_metrics"], "skip_memory_metrics", False),
        ("per_device_train_batch_size: 3", ["--batch_size", "5"], "per_device_train_batch_size", 5),
        ("learning_rate: null", [], "learning_rate", 2e-4),
        ("lr_scheduler_kwargs: {num_cycles: 2}", [], "lr_scheduler_kwargs", {"num_cycles": 2}),
    ],
)
def test_the_command_line_comes_after_the_recipe(tmp_path, text: str, given: list[str], name: str, value) -> None:
    mine = recipe(tmp_path, f"data_path: x\n{text}\n")
    assert getattr(parse_arguments(["--config", mine, *given])[2], name) == value


@pytest.mark.parametrize(
    ("text", "given", "message"),
    [
        ("learning_rates: 1\nbeta: 2", "", "there is no option --learning_rates=1 --beta=2 in stage instruct"),
        ("- batch_size", "", "must be a mapping of option names to values"),
        ("batch_size: [", "", "cannot be read"),
        ("stage: align", "--stage instruct", "--stage instruct contradicts the recipe"),
        ("stage: sft", "", "--stage is 'sft'; expected one of align, read, instruct, distill, prefer"),
        ("batch_size: many", "", "invalid int value: 'many'"),
        ("", "--config alignn", "there is no recipe 'alignn'"),
        ("stage: prefer", "--temperature 1", "there is no option --temperature 1 in stage prefer"),
    ],
)
def test_a_recipe_that_cannot_be_meant_is_refused(tmp_path, capsys, text: str, given: str, message: str) -> None:
    options = ["--data_path", "x", "--config", recipe(tmp_path, text + "\n"), *given.split()]
    assert message in refused(options, capsys)


@pytest.mark.parametrize("stage", ["prefer", "instruct", None])
def test_the_help_of_a_stage_has_its_options_alone_and_that_of_none_has_all(stage, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "10000")
    with pytest.raises(SystemExit) as caught:
        main(["--help"] if stage is None else ["--stage", stage, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for group in option_groups(STAGE_OPTIONS):
        for name in group.__annotations__:
            shown = bool(re.search(rf"--{name}\s", text.partition("examples:")[0]))
            assert shown == (stage is None or group in option_groups([stage])) or name.startswith("_"), name
    # Each option by one name, and no talk of defaults that are none.
    assert "--llama-path" not in text and "--eval-strategy" not in text and "(default: None)" not in text
    assert "examples:" in text and "model:" in text and "data:" in text


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("--bogus 1", "there is no option --bogus"),
        ("--batch_size 0", "--batch_size is 0"),
        ("--bf16 --fp16", "At most one of fp16 and bf16"),
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
        ("--gain_db 0 1 --streaming --max_steps 2", "--gain_db with --streaming"),
        ("--max_tokens_per_batch 9 --stage prefer", "--stage prefer cannot have a batch budget"),
        ("--max_tokens_per_batch 9 --streaming", "--stage instruct cannot have a batch budget with --streaming"),
        ("--llama_path /nowhere/at-all", "/nowhere/at-all"),
        ("--audio_dir /no/folder", "'/no/folder' is not a folder"),
        ("--data_path /no/nothing.json", "nothing.json"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_any_work(options, extra: str, message: str, capsys, tmp_path) -> None:
    options = without(options, "batch_size") if "max_tokens" in extra else options
    assert message in refused([*options, *extra.split()], capsys)
    assert not (tmp_path / "run" / "stage.json").exists()


def test_what_cannot_be_written_or_read_is_named(options, corpus, tmp_path, capsys) -> None:
    (tmp_path / "noise.wav").write_bytes(b"RIFF, but no more")
    rows = [{"text": "<audio>", "audio_paths": "noise.wav", "response": "x"}]
    data = ["--data_path", write_rows(tmp_path / "data.json", rows), "--audio_dir", str(tmp_path)]
    not_a_folder = f"{corpus.data_path}/below"
    for given, name in ((data, "noise.wav"), (["--feature_cache", not_a_folder], not_a_folder)):
        assert name in refused([*options, *given], capsys, early=False)
    assert "--data_path is needed" in refused(without(options, "data_path"), capsys)

"""Recipes: each runs as it is shipped, the command line overrides it, and what it cannot mean is refused by name."""

import json
import re
from pathlib import Path

import pytest
import torch
from audiollm import AudioLlmForConditionalGeneration
from audiollm.training.arguments import AudioLlmTrainingArguments, ModelArguments
from audiollm.training.command_line import (
    RECIPES,
    STAGE_OPTIONS,
    option_groups,
    parse_arguments,
    read_recipe,
)
from audiollm.training.train import main
from stage_runs import stage_options

STAGES = tuple(STAGE_OPTIONS)


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


# -------------------------------------------------------------------------------------------------------- as shipped


@pytest.fixture(scope="module")
def aligned(tmp_path_factory, tiny_bases, corpus, shared_features) -> Path:
    """The folder that `--config align` wrote, which the other stages go on from."""
    folder = tmp_path_factory.mktemp("aligned")
    main(stage_options("align", corpus, tiny_bases, shared_features, folder))
    return folder / "align"


@pytest.mark.parametrize("stage", ["instruct", "distill", "prefer"])
def test_each_recipe_runs_from_the_aligned_checkpoint(
    stage: str, aligned, tiny_bases, corpus, shared_features, tmp_path, capsys
) -> None:
    options = stage_options(stage, corpus, tiny_bases, shared_features, tmp_path, f"--model_path={aligned}")
    main([option for option in options if not option.startswith(("--whisper_path", "--llama_path"))])
    assert "bit for bit: largest difference 0." in capsys.readouterr().out
    state = json.loads((tmp_path / stage / "trainer_state.json").read_text())
    assert state["global_step"] == 3
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    assert len(losses) == 3 and all(loss == loss and abs(loss) < float("inf") for loss in losses)
    before, after = (AudioLlmForConditionalGeneration.from_pretrained(path) for path in (aligned, tmp_path / stage))
    changed = {n for n in after.trainable_names() if not torch.equal(before.get_parameter(n), after.get_parameter(n))}
    assert any(".lora_B." in name for name in changed)
    assert any("multi_modal_projector" in name for name in changed) == (stage != "prefer")


def test_the_aligned_checkpoint_is_whole(aligned, tiny_bases) -> None:
    state = json.loads((aligned / "checkpoint-3" / "trainer_state.json").read_text())
    assert state["global_step"] == 3
    model = AudioLlmForConditionalGeneration.from_pretrained(aligned)
    assert all(not value.any() for name, value in model.named_parameters() if ".lora_B." in name)
    assert (aligned / "processor_config.json").exists() or (aligned / "preprocessor_config.json").exists()


def test_the_recipe_of_instruct_is_what_python_has_by_default() -> None:
    _, _, training, _ = parse_arguments(["--data_path", "x"])
    default = AudioLlmTrainingArguments()
    recipe = read_recipe(RECIPES / "instruct.yaml")
    for name in set(recipe) & set(AudioLlmTrainingArguments.__dataclass_fields__):
        assert getattr(training, name) == getattr(default, name), name
    assert recipe["trainable"] == ModelArguments().trainable


# ----------------------------------------------------------------------------------------- the command line overrides


def test_a_stage_alone_takes_its_shipped_recipe() -> None:
    by_stage = parse_arguments(["--stage", "align", "--data_path", "x"])
    by_config = parse_arguments(["--config", "align", "--data_path", "x"])
    assert by_stage[2].learning_rate == by_config[2].learning_rate == 3e-3
    assert by_stage[1].augment is True and by_stage[3].stage == by_config[3].stage == "align"


def test_a_recipe_may_be_a_file_of_ones_own(tmp_path) -> None:
    text = "stage: prefer\ndata_path: pairs.json\nbeta: 0.5\nbf16: true\nlearning_rate: 1e-4\nreport_to: [none]\n"
    recipe = write(tmp_path / "mine.yaml", text)
    _, data, training, stage, prefer = parse_arguments(["--config", recipe])
    assert (data.data_path, stage.stage, prefer.beta) == (["pairs.json"], "prefer", 0.5)
    assert training.bf16 is True and training.learning_rate == 1e-4
    assert training.per_device_train_batch_size == 8  # what the shipped recipe says plays no part
    assert stage.config == recipe


@pytest.mark.parametrize(
    ("text", "given", "name", "value"),
    [
        ("learning_rate: 0.5", ["--learning_rate", "0.25"], "learning_rate", 0.25),
        ("learning_rate: 0.5", ["--learning-rate=0.25"], "learning_rate", 0.25),
        ("bf16: true", ["--bf16", "False"], "bf16", False),
        ("bf16: false", ["--bf16"], "bf16", True),
        ("load_best_model_at_end: false", [], "load_best_model_at_end", False),
        ("skip_memory_metrics: true", ["--no_skip_memory_metrics"], "skip_memory_metrics", False),
        ("per_device_train_batch_size: 3", ["--batch_size", "5"], "per_device_train_batch_size", 5),
        ("batch_size: 3", [], "per_device_train_batch_size", 3),
        ("learning_rate: null", [], "learning_rate", 2e-4),
        ("lr_scheduler_kwargs: {num_cycles: 2}", [], "lr_scheduler_kwargs", {"num_cycles": 2}),
    ],
)
def test_the_command_line_comes_after_the_recipe(tmp_path, text: str, given: list[str], name: str, value) -> None:
    recipe = write(tmp_path / "mine.yaml", f"data_path: x\n{text}\n")
    assert getattr(parse_arguments(["--config", recipe, *given])[2], name) == value


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("text", "given", "message"),
    [
        (
            "learning_rates: 1\nbatchsize: 2",
            [],
            "there is no option --learning_rates=1 --batchsize=2 in stage instruct",
        ),
        ("beta: 0.1", [], "there is no option --beta=0.1 in stage instruct"),
        ("- batch_size", [], "must be a mapping of option names to values"),
        ("batch_size: [", [], "cannot be read"),
        ("stage: align", ["--stage", "instruct"], "--stage instruct contradicts the recipe"),
        ("stage: sft", [], "--stage is 'sft'; expected one of align, read, instruct, distill, prefer"),
        ("batch_size: many", [], "invalid int value: 'many'"),
    ],
)
def test_a_recipe_that_cannot_be_meant_is_refused(tmp_path, capsys, text: str, given: list[str], message: str) -> None:
    recipe = write(tmp_path / "mine.yaml", text + "\n")
    with pytest.raises(SystemExit) as caught:
        main(["--data_path", "x", "--config", recipe, *given])
    assert message in f"{caught.value.code} {capsys.readouterr().err}"


def test_a_cache_that_is_off_may_be_written_as_yaml_does(tmp_path) -> None:
    recipe = write(tmp_path / "mine.yaml", "data_path: x\nfeature_cache: off\n")
    assert parse_arguments(["--config", recipe])[1].feature_cache == "off"


def test_a_recipe_that_is_not_there_is_refused(capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--data_path", "x", "--config", "alignn"])
    assert "there is no recipe 'alignn'" in str(caught.value.code)
    assert "align, distill, instruct, prefer, read" in str(caught.value.code)


@pytest.mark.parametrize(
    ("stage", "option"), [("instruct", "--beta"), ("prefer", "--temperature"), ("align", "--distill_weight")]
)
def test_options_of_another_stage_are_refused(stage: str, option: str) -> None:
    with pytest.raises(ValueError, match=f"there is no option {option} 1 in stage {stage}"):
        parse_arguments(["--data_path", "x", "--stage", stage, option, "1"])


@pytest.mark.parametrize("stage", STAGES)
def test_the_help_of_a_stage_has_its_options_alone(stage: str, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "10000")
    with pytest.raises(SystemExit) as caught:
        main(["--stage", stage, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for group in filter(None, STAGE_OPTIONS.values()):
        for name in group.__dataclass_fields__:
            assert bool(re.search(rf"--{name}\s", text.partition("examples:")[0])) == (
                group in option_groups(stage)
            ), name
    # Each option by one name, and no talk of defaults that are none.
    assert "--llama-path" not in text and "--eval-strategy" not in text and "(default: None)" not in text
    assert "examples:" in text and "model:" in text and "data:" in text

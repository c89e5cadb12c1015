"""Recipes: the command line overrides them, and what they cannot mean is refused by name. `test_stages.py` runs them."""

import re
from pathlib import Path

import pytest
from audiollm.training.arguments import AudioLlmTrainingArguments, ModelArguments
from audiollm.training.command_line import RECIPES, STAGE_OPTIONS, option_groups, parse_arguments, read_recipe
from audiollm.training.train import main
from runs import refused


def recipe(folder: Path, text: str) -> str:
    (folder / "mine.yaml").write_text(text, encoding="utf-8")
    return str(folder / "mine.yaml")


def test_the_recipe_of_instruct_is_what_python_has_by_default() -> None:
    _, _, training, _ = parse_arguments(["--data_path", "x"])
    default = AudioLlmTrainingArguments()
    shipped = read_recipe(RECIPES / "instruct.yaml")
    for name in set(shipped) & set(AudioLlmTrainingArguments.__dataclass_fields__):
        assert getattr(training, name) == getattr(default, name), name
    assert shipped["trainable"] == ModelArguments().trainable


def test_a_stage_alone_takes_its_shipped_recipe() -> None:
    by_stage = parse_arguments(["--stage", "align", "--data_path", "x"])
    by_config = parse_arguments(["--config", "align", "--data_path", "x"])
    assert by_stage[2].learning_rate == by_config[2].learning_rate == 3e-3
    assert by_stage[1].augment is True and by_stage[3].stage == by_config[3].stage == "align"


def test_a_recipe_may_be_a_file_of_ones_own(tmp_path) -> None:
    text = "stage: prefer\ndata_path: pairs.json\nbeta: 0.5\nbf16: true\nlearning_rate: 1e-4\nfeature_cache: off\n"
    mine = recipe(tmp_path, text)
    _, data, training, stage, prefer = parse_arguments(["--config", mine])
    assert (data.data_path, stage.stage, prefer.beta) == (["pairs.json"], "prefer", 0.5)
    assert training.bf16 is True and training.learning_rate == 1e-4
    assert training.per_device_train_batch_size == 8  # what the shipped recipe says plays no part
    assert stage.config == mine
    assert data.feature_cache == "off"  # which YAML reads as false


@pytest.mark.parametrize(
    ("text", "given", "name", "value"),
    [
        ("learning_rate: 0.5", ["--learning_rate", "0.25"], "learning_rate", 0.25),
        ("learning_rate: 0.5", ["--learning-rate=0.25"], "learning_rate", 0.25),
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
        ("learning_rates: 1\nbeta: 2", [], "there is no option --learning_rates=1 --beta=2 in stage instruct"),
        ("- batch_size", [], "must be a mapping of option names to values"),
        ("batch_size: [", [], "cannot be read"),
        ("stage: align", ["--stage", "instruct"], "--stage instruct contradicts the recipe"),
        ("stage: sft", [], "--stage is 'sft'; expected one of align, read, instruct, distill, prefer"),
        ("batch_size: many", [], "invalid int value: 'many'"),
        ("", ["--config", "alignn"], "there is no recipe 'alignn'"),
        ("stage: prefer", ["--temperature", "1"], "there is no option --temperature 1 in stage prefer"),
    ],
)
def test_a_recipe_that_cannot_be_meant_is_refused(tmp_path, capsys, text: str, given: list[str], message: str) -> None:
    assert message in refused(["--data_path", "x", "--config", recipe(tmp_path, text + "\n"), *given], capsys)


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

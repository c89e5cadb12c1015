"""The reference pair on paper: counts of the real classes at its shapes, the page that says them, and its commands."""

import json
import shlex
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from audiollm import AudioLlmForConditionalGeneration
from audiollm.corpora.librispeech import LibriSpeechArguments
from audiollm.corpora.prepare import PrepareArguments
from audiollm.option_parser import OptionParser
from audiollm.training.command_line import parse_arguments

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import large_shapes
from large_shapes_report import write_report
from shape_counting import LiveBytes, ShapedModel

ROOT = Path(__file__).parents[1]
LLAMA_3B_PARAMETERS = 3_212_749_824
TURBO_ENCODER_PARAMETERS = 636_968_960
TABLES = large_shapes.read_tables()
LAUNCHED = ("align", "instruct")


def small_reference(layers: int = 1) -> ShapedModel:
    """The reference pair's widths with few layers, counted in no time."""
    model = TABLES["models"]["reference"]
    text = model["text_config"] | {"num_hidden_layers": layers}
    return ShapedModel({"audio_config": model["audio_config"] | {"encoder_layers": 1}, "text_config": text})


def test_the_reference_pair_has_the_published_parameters() -> None:
    model = large_shapes.reference_model(TABLES)
    counts = model.parameters()
    assert counts["language_model"] == LLAMA_3B_PARAMETERS and counts["encoder"] == TURBO_ENCODER_PARAMETERS
    assert counts["trainable"] == sum(counts[part] for part in ("projector", "boundary_vectors", "lora"))
    assert model.checkpoint_bytes() == 4 * counts["trainable"]
    assert isinstance(model.model, AudioLlmForConditionalGeneration)
    assert all(parameter.is_meta for parameter in model.model.parameters())
    recorded = json.loads(large_shapes.RESULTS.read_text())
    assert recorded["parameters"] == counts and recorded["checkpoint_bytes"] == model.checkpoint_bytes()


def test_counts_are_those_of_the_textbook() -> None:
    model = small_reference()
    shape = large_shapes.row_of(TABLES, 2, 5)
    count = model.training_step(shape)
    by_hand = large_shapes.hand_formula(model, shape)
    assert {part: count.flops[part] for part in by_hand} == by_hand and count.flops["encoder"] == 0
    saving, shared = model.training_step(shape, checkpointing=True), model.training_step(shape, share_prefix=True)
    assert saving.flops["backward"] == by_hand["backward"] + by_hand["language_model"]
    assert saving.forward_bytes < count.forward_bytes and shared.total_flops < count.total_flops
    assert model.training_step(shape, cached=False).flops["encoder"] == model.encoder_flops(shape) > 0


def test_live_bytes_are_those_of_tensors_that_live() -> None:
    before = torch.zeros(100)
    with LiveBytes() as live:
        kept = before + 1
        view = kept[:10]
        passing = torch.zeros(1000)
        assert live.current == 400 + 4000
        del passing
        assert live.current == 400 and live.peak == 4400
        del kept
        assert live.current == 400  # the view holds it
        del view
    assert live.current == 0


def test_the_page_says_what_was_counted(tmp_path) -> None:
    write_report(json.loads(large_shapes.RESULTS.read_text()), TABLES, tmp_path / "again.md")
    assert (tmp_path / "again.md").read_text() == large_shapes.REPORT.read_text()


def test_the_counting_was_checked_against_memory() -> None:
    lines = json.loads(large_shapes.RESULTS.read_text())["check_on_cpu"]["lines"]
    assert len(lines) == len(large_shapes.CHECKS)
    assert all(abs(line["error"]) < 0.2 for line in lines), lines


@pytest.mark.parametrize("name", LAUNCHED)
def test_the_launch_commands_parse(name: str, monkeypatch, tmp_path) -> None:
    words = shlex.split(TABLES["commands"][name])
    assert words[:2] == ["accelerate", "launch"] and TABLES["commands"][name] in large_shapes.REPORT.read_text()
    launch = launch_command_parser().parse_args(words[2:])
    assert launch.num_processes == TABLES["num_gpus"] and launch.module
    assert (ROOT / launch.config_file).is_file() and launch.training_script == "audiollm.training.train"
    monkeypatch.chdir(tmp_path)
    model, data, training, stage, *_ = parse_arguments(launch.training_script_args)
    assert stage.stage == name and training.bf16 and training.dataloader_num_workers
    assert data.feature_cache and (model.llama_path or model.model_path)


def test_the_command_that_prepares_parses() -> None:
    words = shlex.split(TABLES["commands"]["prepare"])
    assert words[:3] == ["audiollm", "prepare", "librispeech"]
    parser = OptionParser([LibriSpeechArguments, PrepareArguments])
    options, shared, unknown = parser.parse_args_into_dataclasses(words[3:], return_remaining_strings=True)
    assert len(options.splits) == 3 and shared.output and not unknown

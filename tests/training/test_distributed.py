"""Two processes train what one does on twice the batch, under DDP and FSDP2, and leave the same kind of folder behind."""

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from audiollm import AudioLlmForConditionalGeneration
from audiollm.training import trainer
from audiollm.training.arguments import AudioLlmTrainingArguments, check_distributed
from audiollm.training.checkpointing import last_complete_checkpoint
from audiollm.training.evaluating import SAMPLES_FILE
from audiollm.training.feature_cache import FeatureCache
from audiollm.training.train import main
from runs import PATIENCE_S, in_processes, logged, run, started, until_checkpoint
from safetensors.torch import load_file
from small_corpus import example_rows
from tiny_models import randomise_trainables
from transformers import AutoModelForCausalLM

CONFIGS = Path(trainer.__file__).parent / "distributed"
NUM_STEPS, SAVED_STEP = 6, 3
#: Sums over a batch are made in another order; the losses are about 5.
TOLERANCE = 1e-4
FSDP2 = {"version": 2, "reshard_after_forward": True, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}
FSDP2_LAUNCHED = "ACCELERATE_USE_FSDP=true FSDP_VERSION=2"
#: Rows with audio (a) and text alone (t) of each step: the first two are one process's, the others the other's.
STEPS = ("aatt", "ttaa", "tttt", "atta", "taat", "aaaa")
#: Answers to rows of differing length: a mean of means would not be the mean.
ANSWERS = ("yes", "no more than that", "it is", "so be it then", "a", "b and c", "indeed", "well then")


@pytest.fixture(scope="module")
def given(tmp_path_factory, shared_tiny_model, tiny_processor, corpus, shared_features) -> list[str]:
    """A run's options without rows, batch size and folder, from a tiny model as after supervised training."""
    folder = tmp_path_factory.mktemp("supervised")
    torch.manual_seed(0)
    randomise_trainables(copy.deepcopy(shared_tiny_model), std=0.1).save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    return (
        f"--model_path {folder} --audio_dir {corpus.audio_dir} --feature_cache {shared_features} --logging_steps 1 "
        f"--max_steps {NUM_STEPS} --save_steps {SAVED_STEP} --learning_rate 0.003 --projector_learning_rate 0.001 "
        "--warmup_steps 0 --train_sampling_strategy sequential --disable_tqdm True --use_cpu True"
    ).split()


def data(stage: str, corpus, folder: Path) -> list[str]:
    """Options of rows with and without audio for instruct, and of answers of differing length for the other stages."""
    with_audio = iter(2 * example_rows(corpus.names)[:-1])
    text_only = {"text": "What is 2 + 2?", "response": "four"}
    rows = [next(with_audio) if kind == "a" else text_only for kind in "".join(STEPS)]
    if stage != "instruct":
        said = {"distill": ("transcripts", "response"), "prefer": ("chosen", "rejected")}[stage]
        rows = [
            {"text": "<audio>?", "audio_paths": name, **dict(zip(said, (answer, f"{answer}.")))}
            for name, answer in zip(corpus.names, ANSWERS)
        ]
    path = folder / f"{stage}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--stage", stage, "--data_path", str(path)]


def assert_same_run(folder: Path, expected: Path) -> None:
    assert logged(folder) == pytest.approx(logged(expected), abs=TOLERANCE)
    found, wanted = (load_file(path / "model.safetensors") for path in (folder, expected))
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=TOLERANCE, msg=name)
    files = {path.name for path in folder.iterdir() if path.suffix != ".log" and path.is_file()}
    assert files == {path.name for path in expected.iterdir() if path.is_file()}


def assert_loads_as_usual(folder: Path, text_base: str) -> None:
    model = AudioLlmForConditionalGeneration.from_pretrained(folder).eval()
    base = AutoModelForCausalLM.from_pretrained(text_base).eval()
    ids = torch.tensor([[7, 8, 9, 10]])
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, base(input_ids=ids).logits)
    for name, value in load_file(folder / "model.safetensors").items():
        assert torch.equal(model.get_parameter(name), value)


def train_and_count(options: list[str]) -> None:
    """The command, and how many recordings this process encodes."""
    store, stored = FeatureCache._store, []
    FeatureCache._store = lambda *of: stored.append(1) or store(*of)
    main(options)
    print(f"rank {os.environ['RANK']} encoded {len(stored)} recordings")


def test_two_processes_train_and_evaluate_as_one_with_twice_the_batch(given, corpus, tiny_bases, tmp_path) -> None:
    """They also share the encoding, and go on from a checkpoint to the same bits."""
    evaluation = (
        f"--eval_data_path {corpus.data_path} --eval_strategy steps --eval_steps 3 --eval_max_new_tokens 4 "
        "--per_device_eval_batch_size 2 --load_best_model_at_end --metric_for_best_model word_error "
        f"--early_stopping_patience 5 --feature_cache {tmp_path / 'features'}"
    ).split()
    given = [*given, *data("instruct", corpus, tmp_path), *evaluation]
    alone, folder = tmp_path / "alone", tmp_path / "two"
    given_to_two = [*given, "--batch_size", "2", "--output_dir", str(folder)]
    printed = in_processes(given_to_two, tmp_path, target=train_and_count)
    assert "rank 0 encoded 5 recordings" in printed and "rank 1 encoded 5 recordings" in printed
    assert printed.count("Evaluation at step 3: ") == printed.count("Evaluation: word error on 11") == 1
    assert "find_unused_parameters" not in printed
    run([*given, "--batch_size", "4", "--output_dir", str(alone)])
    assert_same_run(folder, alone)
    assert logged(folder)[-1] < 0.9 * logged(folder)[0]
    for name in ("eval_word_error", "eval_wrong_audio_word_error"):
        assert logged(folder, name) == logged(alone, name) and len(logged(folder, name)) == 2
    # The Trainer's loss is a mean of batches' means, of other batches here.
    assert logged(folder, "eval_loss") == pytest.approx(logged(alone, "eval_loss"), rel=0.05)
    assert (folder / SAMPLES_FILE).read_text() == (alone / SAMPLES_FILE).read_text()
    states = sorted(path.name for path in (folder / f"checkpoint-{SAVED_STEP}").glob("rng_state*"))
    assert states == ["rng_state_0.pth", "rng_state_1.pth"]
    assert_loads_as_usual(folder, tiny_bases[1])


SHARDED = "sharded"
BUDGET = "--max_tokens_per_batch 165 --num_epochs 2 --max_steps -1 --save_steps 1 --save_total_limit 99"
STREAM = "--streaming --shuffle_rows 6 --save_total_limit 99"
#: Stage, options of one process, and of two.
CASES = {
    "sharded": ("instruct", "--batch_size 4", f"--batch_size 2 {SHARDED}"),
    "accumulated": (
        "instruct",
        "--batch_size 4 --gradient_accumulation_steps 2 --train_sampling_strategy group_by_length",
        "--batch_size 2 --gradient_accumulation_steps 2 --train_sampling_strategy group_by_length",
    ),
    "budget": ("instruct", f"{BUDGET} --gradient_accumulation_steps 2", BUDGET),
    "stream": ("instruct", f"{STREAM} --batch_size 4", f"{STREAM} --batch_size 2"),
    "distill": ("distill", "--batch_size 4", "--batch_size 2"),
    "distill, sharded": ("distill", "--batch_size 4", f"--batch_size 2 {SHARDED}"),
    "prefer": ("prefer", "--batch_size 4", "--batch_size 2"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_other_batches_stages_and_sharding_are_the_same_too_and_go_on(
    given, corpus, tiny_bases, tmp_path, case
) -> None:
    stage, for_one, for_two = CASES[case]
    given = [*given, *data(stage, corpus, tmp_path)]
    alone, folder = tmp_path / "alone", tmp_path / "two"
    config = tmp_path / "fsdp.json"
    config.write_text(json.dumps(FSDP2))
    words = for_two.replace(SHARDED, f"--fsdp --fsdp_config {config}").split()
    run([*given, *for_one.split(), "--output_dir", str(alone)])
    in_processes([*given, *words, "--output_dir", str(folder)], tmp_path)
    assert_same_run(folder, alone)
    for name in ("distillation", "cross_entropy", "rewards/margins", "logps/chosen"):
        assert logged(folder, name)[-1:] == pytest.approx(logged(alone, name)[-1:], abs=1e-2)
    assert_loads_as_usual(folder, tiny_bases[1])
    assert not list(folder.glob("checkpoint-*/pytorch_model_fsdp*")), "the frozen bases were saved"

    again = tmp_path / "again"
    shutil.copytree(folder / f"checkpoint-{SAVED_STEP}", again / f"checkpoint-{SAVED_STEP}")
    printed = in_processes([*given, *words, "--output_dir", str(again)], tmp_path)
    assert f"Resuming from {again / f'checkpoint-{SAVED_STEP}'}" in printed
    assert (folder / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()


def launched(options: list[str], config: str, folder: Path) -> subprocess.Popen:
    """The documented command, in a session of its own, with what it prints beside its folder."""
    launch = f"-m accelerate.commands.launch --main_process_port 0 --config_file {CONFIGS / config}".split()
    command = [sys.executable, *launch, "-m", "audiollm.training.train", *options, "--output_dir", str(folder)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    with open(f"{folder}.log", "a") as log:
        return subprocess.Popen(command, env=variables, stdout=log, stderr=log, start_new_session=True)


def assert_ends_well(process: subprocess.Popen, folder: Path) -> str:
    """Returns the output of a launched command."""
    status, printed = process.wait(PATIENCE_S), Path(f"{folder}.log").read_text()
    assert status == 0, printed[-8000:]
    return printed


@pytest.mark.slow
@pytest.mark.parametrize("config", ["ddp_cpu.yaml", "fsdp2.yaml"])
def test_the_documented_command_with_bases_in_bf16_and_no_cache(given, corpus, tmp_path, config: str) -> None:
    """Frozen weights in another precision than those that train, and an encoder that runs on some processes only."""
    given = [*given, *data("instruct", corpus, tmp_path), "--base_dtype", "bfloat16", "--feature_cache", "off"]
    run([*given, "--batch_size", "4", "--output_dir", str(tmp_path / "alone")])
    assert_ends_well(launched([*given, "--batch_size", "2"], config, tmp_path / "two"), tmp_path / "two")
    assert logged(tmp_path / "two") == pytest.approx(logged(tmp_path / "alone"), rel=2e-2)
    found, wanted = (load_file(tmp_path / name / "model.safetensors") for name in ("two", "alone"))
    assert found.keys() == wanted.keys()


@pytest.mark.slow
def test_deepspeed_zero2_trains_as_ddp_and_goes_on_after_a_kill(given, corpus, tiny_bases, tmp_path) -> None:
    """On a CPU, with the configuration that is shipped."""
    pytest.importorskip("deepspeed", reason="DS_BUILD_OPS=0 pip install deepspeed")
    given = [*given, *data("instruct", corpus, tmp_path), "--batch_size", "2", "--save_steps", "1"]
    ddp, zero2, killed = (tmp_path / name for name in ("ddp", "zero2", "killed"))
    assert_ends_well(launched(given, "ddp_cpu.yaml", ddp), ddp)
    assert "DeepSpeed" in assert_ends_well(launched(given, "deepspeed_zero2.yaml", zero2), zero2)
    assert logged(zero2) == pytest.approx(logged(ddp), abs=TOLERANCE)
    assert_loads_as_usual(zero2, tiny_bases[1])

    process = launched(given, "deepspeed_zero2.yaml", killed)
    while last_complete_checkpoint(killed) is None and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (killed / "model.safetensors").exists()
    assert "Resuming from" in assert_ends_well(launched(given, "deepspeed_zero2.yaml", killed), killed)
    assert logged(killed) == logged(zero2)
    assert (killed / "model.safetensors").read_bytes() == (zero2 / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_several_processes_stop_at_the_same_step(given, corpus, tmp_path) -> None:
    options = [*given, *data("instruct", corpus, tmp_path), "--max_steps", "4000", "--batch_size", "2"]
    folder, logs = tmp_path / "run", [tmp_path / "0.log", tmp_path / "1.log"]
    processes = [started([*options, "--output_dir", str(folder)], log, n, 2, 29_511) for n, log in enumerate(logs)]
    until_checkpoint(processes[0], folder, logs[0])
    processes[0].terminate()
    for process in processes:
        process.join(PATIENCE_S)
    newest = last_complete_checkpoint(folder)
    told = f"stopped by SIGTERM after step {newest.rpartition('-')[2]} of 4000"
    assert all(process.exitcode == 143 for process in processes) and all(told in log.read_text() for log in logs)
    assert len(list(Path(newest).glob("rng_state_*.pth"))) == 2


@pytest.mark.parametrize(
    ("variables", "stage", "message"),
    [
        ("ACCELERATE_USE_FSDP=true", "instruct", "fsdp_version: 2"),
        (f"{FSDP2_LAUNCHED} FSDP_CPU_RAM_EFFICIENT_LOADING=true", "instruct", "fsdp_cpu_ram_efficient_loading is not"),
        (FSDP2_LAUNCHED, "align", "--stage align is not sharded"),
        ("ACCELERATE_USE_DEEPSPEED=true ACCELERATE_DEEPSPEED_ZERO_STAGE=3", "instruct", "ZeRO-3 is not supported"),
    ],
)
def test_sharding_that_cannot_work_is_refused(monkeypatch, tmp_path, variables, stage: str, message: str) -> None:
    arguments = AudioLlmTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    check_distributed(arguments, stage)
    for variable in variables.split():
        monkeypatch.setenv(*variable.split("="))
    with pytest.raises(ValueError, match=message):
        check_distributed(arguments, stage)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_configurations_are_ones_that_accelerate_reads(path: Path) -> None:
    config = load_config_from_file(str(path))
    assert config.num_processes >= 2
    assert config.mixed_precision in (None, "no"), "precision is the command's"
    if path.stem == "fsdp2":
        assert config.fsdp_config["fsdp_version"] == 2

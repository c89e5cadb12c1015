"""Two processes train what one does on twice the batch, under DDP and FSDP2, and leave the same kind of folder behind."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from audiollm import AudioLlmForConditionalGeneration
from audiollm.training import sharding
from audiollm.training.arguments import AudioLlmTrainingArguments
from audiollm.training.sharding import check_distributed
from safetensors.torch import load_file
from small_corpus import example_rows, write_rows
from transformers import AutoModelForCausalLM

CONFIGS = Path(sharding.__file__).parent / "distributed"
PATIENCE_S = 600
NUM_STEPS, SAVED_STEP = 6, 3
#: Sums over a batch are made in another order; the losses are about 5.
TOLERANCE = 1e-4
TRAIN = ["-m", "audiollm.training.train"]
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
FSDP2 = {"version": 2, "reshard_after_forward": True, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}
#: Rows with audio (a) and text alone (t) of each step: the first two are one process's, the others the other's.
STEPS = ("aatt", "ttaa", "tttt", "atta", "taat", "aaaa")
WATCHED_CACHE = """
import sys
from pathlib import Path
from accelerate import PartialState
from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor
from audiollm.training.feature_cache import FeatureCache

class WatchedCache(FeatureCache):
    computed = 0

    def _store(self, *computed):
        self.computed += 1
        super()._store(*computed)

bases, folder, recordings = sys.argv[1:3], sys.argv[3], sys.argv[4:]
processes = PartialState(cpu=True)
model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(*bases)
cache = WatchedCache(model, AudioLlmProcessor.from_audio_text_pretrained(*bases), folder)
keys = cache.add(recordings, progress=False)
assert all(map(cache.has, keys)), "the others were not waited for"
Path(folder, f"computed-{processes.process_index}").write_text(str(cache.computed))
processes.destroy_process_group()
"""


def accelerate(config: str) -> list[str]:
    return ["accelerate.commands.launch", "--main_process_port", "0", "--config_file", str(CONFIGS / config)]


def start(module: list[str], arguments: list[str]) -> str:
    """Runs a module in a process of its own, without a GPU; returns what it prints."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", *module, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    return done.stdout + done.stderr


def losses(folder: Path) -> list[float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


@pytest.fixture(scope="module")
def options(tmp_path_factory, tiny_bases, corpus, shared_features) -> list[str]:
    """The run's options without batch size and folder."""
    with_audio = example_rows(corpus.names)[:-1]
    rows = iter(with_audio + with_audio[:1])
    text_only = {"text": "What is 2 + 2?", "response": "four"}
    ordered = [next(rows) if kind == "a" else text_only for kind in "".join(STEPS)]
    data = write_rows(tmp_path_factory.mktemp("distributed") / "data.json", ordered)
    audio, text = tiny_bases
    return (
        f"--data_path {data} --audio_dir {corpus.audio_dir} --whisper_path {audio} --llama_path {text} "
        f"--feature_cache {shared_features} --max_steps {NUM_STEPS} --save_steps {SAVED_STEP} --logging_steps 1 "
        "--learning_rate 0.01 --projector_learning_rate 0.004 --warmup_steps 0 --lora_dropout 0 --lora_rank 4 "
        "--train_sampling_strategy sequential --disable_tqdm True --use_cpu True"
    ).split()


def alone(folder: Path, options: list[str]) -> Path:
    """Return the run of one process with twice the batch."""
    start(TRAIN[1:], [*options, "--batch_size", "4", "--output_dir", str(folder)])
    return folder


@pytest.fixture(scope="module")
def expected(options, tmp_path_factory) -> Path:
    return alone(tmp_path_factory.mktemp("alone") / "run", options)


def assert_same_run(folder: Path, expected: Path) -> None:
    assert len(losses(folder)) == NUM_STEPS
    assert losses(folder) == pytest.approx(losses(expected), abs=TOLERANCE)
    assert losses(folder)[-1] < 0.9 * losses(folder)[0]
    found, wanted = (load_file(path / "model.safetensors") for path in (folder, expected))
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=TOLERANCE, msg=name)
    files = {path.name for path in folder.iterdir() if path.is_file()}
    assert files == {path.name for path in expected.iterdir() if path.is_file()}


def assert_loads_as_usual(folder: Path, text_base: str) -> None:
    model = AudioLlmForConditionalGeneration.from_pretrained(folder).eval()
    base = AutoModelForCausalLM.from_pretrained(text_base).eval()
    ids = torch.tensor([[7, 8, 9, 10]])
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, base(input_ids=ids).logits)
    for name, value in load_file(folder / "model.safetensors").items():
        assert torch.equal(model.get_parameter(name), value)


def without_last_steps(folder: Path) -> None:
    """Leaves a run as if it had been cut off after its first checkpoint."""
    shutil.rmtree(folder / f"checkpoint-{NUM_STEPS}")
    (folder / "model.safetensors").unlink()


def test_two_processes_train_as_one_with_twice_the_batch(options, expected, tiny_bases, tmp_path) -> None:
    printed = start(
        [*accelerate("ddp_cpu.yaml"), *TRAIN], [*options, "--batch_size", "2", "--output_dir", str(tmp_path)]
    )
    assert "find_unused_parameters" not in printed
    assert_same_run(tmp_path, expected)
    assert {path.name for path in (tmp_path / "checkpoint-3").glob("rng_state*")} == {
        "rng_state_0.pth",
        "rng_state_1.pth",
    }
    assert_loads_as_usual(tmp_path, tiny_bases[1])


@pytest.mark.slow
@pytest.mark.parametrize("way", ["accelerate", "torchrun"])
def test_sharded_training_is_the_same_too_and_goes_on(options, expected, tiny_bases, tmp_path, way: str) -> None:
    command = [*accelerate("fsdp2.yaml"), *TRAIN] if way == "accelerate" else [*TORCHRUN, *TRAIN]
    options = [*options, "--batch_size", "2", "--output_dir", str(tmp_path)]
    if way == "torchrun":
        config = tmp_path.with_suffix(".json")
        config.write_text(json.dumps(FSDP2))
        options += ["--fsdp", "--fsdp_config", str(config)]
    start(command, options)
    assert_same_run(tmp_path, expected)
    assert_loads_as_usual(tmp_path, tiny_bases[1])
    assert not list(tmp_path.glob("checkpoint-*/pytorch_model_fsdp*")), "the frozen bases were saved"

    finished = (tmp_path / "model.safetensors").read_bytes()
    without_last_steps(tmp_path)
    assert f"Resuming from {tmp_path / 'checkpoint-3'}" in start(command, options)
    assert (tmp_path / "model.safetensors").read_bytes() == finished


@pytest.mark.slow
def test_torchrun_lengths_accumulation_and_resume(options, tmp_path) -> None:
    """Batches of like length, gathered over two of them each step, and a run that is cut off."""
    options = [*options, "--train_sampling_strategy", "group_by_length", "--gradient_accumulation_steps", "2"]
    expected = alone(tmp_path / "alone", options)
    folder = tmp_path / "run"
    options = [*options, "--batch_size", "2", "--output_dir", str(folder)]
    start([*TORCHRUN, *TRAIN], options)
    assert_same_run(folder, expected)
    finished = (folder / "model.safetensors").read_bytes()
    without_last_steps(folder)
    assert f"Resuming from {folder / 'checkpoint-3'}" in start([*TORCHRUN, *TRAIN], options)
    assert (folder / "model.safetensors").read_bytes() == finished


@pytest.mark.slow
@pytest.mark.parametrize("config", ["ddp_cpu.yaml", "fsdp2.yaml"])
def test_bases_in_bf16_and_no_cache(options, tmp_path, config: str) -> None:
    """Frozen weights in another precision than those that train, and an encoder that runs on some processes only."""
    options = [*options, "--base_dtype", "bfloat16", "--feature_cache", "off"]
    expected = alone(tmp_path / "alone", options)
    folder = tmp_path / "run"
    start([*accelerate(config), *TRAIN], [*options, "--batch_size", "2", "--output_dir", str(folder)])
    assert losses(folder) == pytest.approx(losses(expected), rel=2e-2)
    assert load_file(folder / "model.safetensors").keys() == load_file(expected / "model.safetensors").keys()


def test_each_process_encodes_its_share_and_waits_for_the_others(tiny_bases, corpus, tmp_path) -> None:
    script = tmp_path / "watched.py"
    script.write_text(WATCHED_CACHE)
    folder = tmp_path / "features"
    start(TORCHRUN, [str(script), *tiny_bases, str(folder), *corpus.paths])
    computed = [int((folder / f"computed-{rank}").read_text()) for rank in (0, 1)]
    assert sum(computed) == len(corpus.paths) and abs(computed[0] - computed[1]) <= 1
    assert len(list(folder.rglob("*.safetensors"))) == len(corpus.paths)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "fsdp_version: 2"),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"},
            "fsdp_cpu_ram_efficient_loading is not supported",
        ),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "ZeRO-3 is not supported"),
    ],
)
def test_sharding_that_cannot_work_is_refused(monkeypatch, tmp_path, variables: dict[str, str], message: str) -> None:
    arguments = AudioLlmTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    check_distributed(arguments)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        check_distributed(arguments)


def test_the_warm_start_is_not_sharded(monkeypatch, tmp_path) -> None:
    arguments = AudioLlmTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    check_distributed(arguments, "align")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    check_distributed(arguments, "instruct")
    with pytest.raises(ValueError, match="--stage align is not sharded"):
        check_distributed(arguments, "align")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_configurations_are_ones_that_accelerate_reads(path: Path) -> None:
    config = load_config_from_file(str(path))
    assert config.num_processes >= 2
    assert config.mixed_precision in (None, "no"), "precision is the command's"
    if path.stem == "fsdp2":
        assert config.fsdp_config["fsdp_version"] == 2

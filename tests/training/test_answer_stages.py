"""Distillation and preferences over two processes: the same run as one process with twice the batch, and it goes on."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor
from safetensors.torch import load_file
from small_corpus import write_rows
from test_distributed import TRAIN, accelerate, losses, start
from tiny_models import randomise_trainables

NUM_STEPS, SAVED_STEP = 4, 2
#: Sums over a batch are made in another order.
TOLERANCE = 1e-4
#: Answers to rows of differing length: a mean of means would not be the mean.
ANSWERS = ("yes", "no more than that", "it is", "so be it then", "a", "b and c", "indeed", "well then")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tiny_bases, corpus) -> str:
    """A tiny model as after supervised training."""
    folder = tmp_path_factory.mktemp("supervised") / "adapter"
    torch.manual_seed(0)
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(*tiny_bases, lora_rank=4)
    randomise_trainables(model).save_pretrained(folder)
    AudioLlmProcessor.from_audio_text_pretrained(*tiny_bases).save_pretrained(folder)
    return str(folder)


def options(stage: str, checkpoint: str, corpus, features: Path, folder: Path) -> list[str]:
    rows = []
    for name, answer in zip(corpus.names, ANSWERS):
        said = {"chosen": answer, "rejected": "never"}
        if stage == "distill":
            said = {"transcripts": answer, "response": f"{answer}."}
        rows.append({"text": "<audio>?", "audio_paths": name, **said})
    data = write_rows(folder / f"{stage}.json", rows)
    return (
        f"--stage {stage} --model_path {checkpoint} --data_path {data} --audio_dir {corpus.audio_dir} "
        f"--feature_cache {features} --max_steps {NUM_STEPS} --save_steps {SAVED_STEP} --logging_steps 1 "
        "--learning_rate 0.003 --lr_scheduler_type constant --warmup_steps 0 "
        "--train_sampling_strategy sequential --disable_tqdm True --use_cpu True"
    ).split()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "config"), [("distill", "ddp_cpu.yaml"), ("distill", "fsdp2.yaml"), ("prefer", "ddp_cpu.yaml")]
)
def test_two_processes_train_as_one(stage, config, checkpoint, corpus, shared_features, tmp_path) -> None:
    given = options(stage, checkpoint, corpus, shared_features, tmp_path)
    alone, folder = tmp_path / "alone", tmp_path / "two"
    start(TRAIN[1:], [*given, "--batch_size", "4", "--output_dir", str(alone)])
    command = [*accelerate(config), *TRAIN]
    given = [*given, "--batch_size", "2", "--output_dir", str(folder)]
    start(command, given)

    assert len(losses(folder)) == NUM_STEPS
    assert losses(folder) == pytest.approx(losses(alone), abs=TOLERANCE)
    found, wanted = (load_file(path / "model.safetensors") for path in (folder, alone))
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=TOLERANCE, msg=name)
    history, expected = (
        json.loads((path / "trainer_state.json").read_text())["log_history"][NUM_STEPS - 1] for path in (folder, alone)
    )
    figures = [name for name in expected if name.startswith(("rewards", "logps", "distillation", "cross_entropy"))]
    assert len(figures) in (2, 6)
    assert [history[name] for name in figures] == pytest.approx([expected[name] for name in figures], abs=1e-2)
    assert list(AudioLlmForConditionalGeneration.from_pretrained(folder).config.lora_adapters) == ["speech"]

    finished = (folder / "model.safetensors").read_bytes()
    shutil.rmtree(folder / f"checkpoint-{NUM_STEPS}")
    (folder / "model.safetensors").unlink()
    assert "Resuming from" in start(command, given)
    assert (folder / "model.safetensors").read_bytes() == finished

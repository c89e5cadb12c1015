"""The examples run, on a tiny random pair; the notebook (slow) on the shipped adapter."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor
from small_corpus import write_chapter, write_recordings
from tiny_models import hearing_model, llama_config, save_audio_base, save_text_base

EXAMPLES = Path(__file__).parents[1] / "examples"
ROOT = EXAMPLES.parent
TRAINING = {"report_to": "none", "use_cpu": True, "per_device_train_batch_size": 2, "max_steps": 1}
NOTEBOOK_TIMEOUT_S = 1200


def example(path: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(Path(path).stem, EXAMPLES / path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def recording(tmp_path: Path) -> str:
    write_recordings(tmp_path, 1)
    return str(tmp_path / "0.wav")


def test_two_adapters(tiny_bases, recording: str, tmp_path: Path) -> None:
    module = example("two_adapters.py")
    rows = [
        {
            "messages": [{"role": "user", "content": "<audio>\nWhat?"}, {"role": "assistant", "content": name}],
            "audio": [recording],
            "adapter": name,
        }
        for name in module.ADAPTERS
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    said = module.main(
        str(tmp_path / "data.jsonl"), str(tmp_path / "trained"), tiny_bases, **TRAINING, learning_rate=1e-1
    )
    assert list(said) == [*module.ADAPTERS, None]
    saved = AudioLlmForConditionalGeneration.from_pretrained(tmp_path / "trained")
    moved = {name: weight for name, weight in saved.named_parameters() if "lora_B" in name and weight.abs().sum() > 0}
    for name in module.ADAPTERS:
        assert any(f".{name}." in each for each in moved), name


def test_the_space_answers(tiny_checkpoint: Path, recording: str, monkeypatch) -> None:
    pytest.importorskip("gradio")
    monkeypatch.setenv("MODEL", str(tiny_checkpoint))
    app = example("space/app.py")
    assert app.demo.title == str(tiny_checkpoint)
    assert isinstance(app.answer(recording, "Transcribe the speech."), str)


def test_the_picture_of_words(tiny_bases, tiny_processor, tmp_path: Path) -> None:
    hearing_model(tiny_bases, tiny_processor).save_pretrained(tmp_path / "model")
    tiny_processor.save_pretrained(tmp_path / "model")
    recording = ROOT / "corpora" / "unseen_speech" / "cards-005.flac"
    words = example("word_times.py").main(str(recording), str(tmp_path / "words.png"), str(tmp_path / "model"))
    assert words and all(0 <= one.start_s < one.end_s for one in words)
    assert (tmp_path / "words.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize("script", ["one_gpu.sh", "eight_gpus.sh"])
def test_the_librispeech_recipes(script: str, tmp_path: Path) -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal((4, 32_000))
    write_chapter(tmp_path / "openslr" / "LibriSpeech" / "dev-clean", 84, [(each, "yes") for each in noise])
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "LLAMA": save_text_base(tmp_path / "text", llama_config()),
        "WHISPER": save_audio_base(tmp_path / "audio"),
        "SPLITS": "dev-clean",
        "SOURCE": str(tmp_path / "openslr"),
        "DATA": str(tmp_path / "data"),
        "RUNS": str(tmp_path / "runs"),
        "MORE": "--max_steps 1 --num_epochs 1 --use_cpu --report_to none",
        "TASKS": "no_speech --limit 2 --systems model",
        "OMP_NUM_THREADS": "1",
    }
    if script == "eight_gpus.sh":
        config = "training/distributed/ddp_cpu.yaml"
        environment["LAUNCH"] = f"accelerate launch --config_file {config} --num_processes 2 --main_process_port 0 -m"
    command = ["bash", str(EXAMPLES / "librispeech" / script)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert AudioLlmProcessor.from_pretrained(tmp_path / "runs" / "adapter").audio_token == "<audio>"
    assert (tmp_path / "runs" / "evaluation" / "scores.json").is_file()


@pytest.mark.slow
def test_the_notebook_runs(real_bases) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(EXAMPLES / "first_result.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "the notebook is kept without outputs"
    nbclient.NotebookClient(notebook, timeout=NOTEBOOK_TIMEOUT_S, kernel_name="python3").execute()
    printed = [
        output.text for cell in notebook.cells for output in cell.get("outputs", []) if output.output_type == "stream"
    ]
    assert re.search(r"\| \w+", "".join(printed)) and "bit for bit: True" in printed[-1]

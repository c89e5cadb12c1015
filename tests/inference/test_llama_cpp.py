"""
An export by `audiollm export`, converted and run by llama.cpp: its transcripts beside ours.

LLAMA_CPP names a checkout whose multimodal tool is built, such as that within llama-cpp-python's source package:

    pip download --no-deps --no-binary llama-cpp-python llama-cpp-python && tar xf llama_cpp_python-*.tar.gz
    cd llama_cpp_python-*/vendor/llama.cpp && cmake -B build && cmake --build build --target llama-mtmd-cli
    pip install sentencepiece    # which its converter imports
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor
from audiollm.inference.export import main
from long_recordings import RATE, prompts

#: llama.cpp pads every recording to it.
WINDOW_SECONDS = 30
#: It miscounts the audio tokens of some stack factors, 8 among them.
STACK_FACTOR = 5
NUM_CLIPS, NEW_TOKENS = 10, 16
QUESTION = "Transcribe the speech."


@pytest.fixture(scope="module")
def llama_cpp() -> Path:
    checkout = Path(os.environ.get("LLAMA_CPP", "no such folder"))
    if not (checkout / "build" / "bin" / "llama-mtmd-cli").is_file():
        pytest.skip("LLAMA_CPP names no llama.cpp with build/bin/llama-mtmd-cli; this file says how to build it")
    pytest.importorskip("sentencepiece")
    return checkout


@pytest.mark.slow
def test_llama_cpp_says_the_same(llama_cpp, real_bases, tmp_path) -> None:
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
    for part in (model, processor):
        part.save_pretrained(tmp_path / "mine")
    exported = tmp_path / "exported"
    main(["--model", str(tmp_path / "mine"), "--output", str(exported), "--language_model", "--dtype", "float32"])
    converter = [sys.executable, str(llama_cpp / "convert_hf_to_gguf.py"), "--outtype", "f32"]
    for arguments in (
        [exported, "--mmproj", "--outfile", tmp_path / "mmproj.gguf"],
        [exported / "language_model", "--outfile", tmp_path / "model.gguf"],
    ):
        subprocess.run([*converter, *map(str, arguments)], check=True)
    model = model.merge_adapters().eval()
    ours, theirs = [], []
    for number, sound in enumerate(prompts(NUM_CLIPS)):
        clip = tmp_path / f"{number}.wav"
        soundfile.write(clip, sound, RATE, subtype="PCM_16")
        waveform = soundfile.read(clip, dtype="float32")[0]
        padded = np.pad(waveform, (0, WINDOW_SECONDS * RATE - len(waveform)))
        content = [{"type": "audio", "audio": padded}, {"type": "text", "text": QUESTION}]
        conversation = [{"role": "user", "content": content}]
        inputs = processor.apply_chat_template(conversation, tokenize=True, add_generation_prompt=True)
        answer = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        ours.append(processor.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())
        command = [llama_cpp / "build" / "bin" / "llama-mtmd-cli", "--jinja", "--temp", "0", "-n", NEW_TOKENS]
        command += ["-m", tmp_path / "model.gguf", "--mmproj", tmp_path / "mmproj.gguf"]
        command += ["--audio", clip, "-p", QUESTION]
        done = subprocess.run([*map(str, command)], check=True, capture_output=True, text=True)
        theirs.append(done.stdout.strip())
    assert len(set(ours)) >= 3  # what is heard decides
    assert theirs == ours

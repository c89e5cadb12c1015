"""Checkpoints that bring code of their own: no command runs it, whatever is typed or piped into the prompt that asks."""

import builtins
import contextlib
import importlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import gradio
import pytest
import torch
import uvicorn
from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor
from audiollm.cli import COMMANDS
from small_corpus import write_recordings
from tiny_models import randomise_trainables
from transformers import AutoConfig, AutoModel, AutoProcessor

#: What every file of code in a hostile checkpoint does, when it is imported.
HARM = """\
from pathlib import Path
from transformers import {base}
Path({marker!r}).touch()
class Evil({base}):
    model_type = "evil"
    def __init__(self, *args, **kwargs): Path({marker!r}).touch()
"""
AUTO_CLASSES = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForMultimodalLM", "AutoProcessor")
PART_CLASSES = ("AutoTokenizer", "AutoFeatureExtractor", "AutoProcessor")
#: Where `auto_map` may point: beside, to another repository, out of the folder, and to nothing that can be.
POINTERS = ("evil.Evil", "other/repo--evil.Evil", "../evil.Evil", "/evil.Evil", "")


def edit_json(path: Path, **fields: Any) -> None:
    found = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**found, **fields}))


def bring_code(folder: Path, marker: Path, pointer: str = "evil.Evil") -> None:
    """Code beside a folder's files, in place of those it had, and every configuration asking for it."""
    for name in ("evil.py", "__init__.py", *(path.name for path in folder.glob("*.py"))):
        (folder / name).write_text(HARM.format(base="PretrainedConfig", marker=str(marker)))
    (folder.parent / "evil.py").write_text(HARM.format(base="PretrainedConfig", marker=str(marker)))
    edit_json(folder / "config.json", auto_map=dict.fromkeys(AUTO_CLASSES, pointer))
    parts = dict.fromkeys(PART_CLASSES, pointer)
    tokenizer = {**parts, "AutoTokenizer": [pointer, pointer]}
    edit_json(folder / "tokenizer_config.json", auto_map=tokenizer)
    for name in ("processor_config.json", "preprocessor_config.json"):
        edit_json(folder / name, auto_map=parts)
    edit_json(
        folder / "config.json",
        custom_pipelines={"audio-text-to-text": {"impl": pointer, "pt": ["AutoModel"], "tf": []}},
    )


@pytest.fixture(scope="module")
def checkpoint(tiny_bases: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good one, with bases of its own beside it; read only."""
    folder = tmp_path_factory.mktemp("good")
    for base in tiny_bases:
        shutil.copytree(base, folder / Path(base).name)
    bases = [str(folder / Path(base).name) for base in tiny_bases]
    torch.manual_seed(0)
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(*bases, lora_rank=4)
    randomise_trainables(model).save_pretrained(folder / "checkpoint")
    AudioLlmProcessor.from_audio_text_pretrained(*bases).save_pretrained(folder / "checkpoint")
    write_recordings(folder / "recordings", 2)
    rows = [{"text": "<audio>", "audio_paths": f"{index}.wav", "response": "one"} for index in range(2)]
    (folder / "data.json").write_text(json.dumps(rows))
    for row in rows:
        (folder / "recordings" / row["audio_paths"]).with_suffix(".txt").write_text("one")
    return folder


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that code of a checkpoint writes; whoever is asked whether to run it says yes."""
    typed = iter(["y"] * YES_TYPED)

    def type_yes(*prompt: Any) -> str:
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr(builtins, "input", type_yes)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    return tmp_path / "marker"


def beside(place: Path, marker: Path) -> None:
    bring_code(place / "checkpoint", marker)


def as_another_kind(place: Path, marker: Path) -> None:
    bring_code(place / "checkpoint", marker)
    edit_json(place / "checkpoint" / "config.json", model_type="evil")


def in_the_text_base(place: Path, marker: Path) -> None:
    bring_code(place / "text", marker)
    edit_json(place / "text" / "config.json", model_type="evil")
    edit_json(place / "text" / "tokenizer_config.json", tokenizer_class="Evil")


def in_the_audio_base(place: Path, marker: Path) -> None:
    bring_code(place / "audio", marker)
    edit_json(place / "audio" / "config.json", model_type="evil")


HOSTILE = {
    "beside good files": beside,
    "as a model of another kind": as_another_kind,
    "in the text base": in_the_text_base,
    "in the audio base": in_the_audio_base,
}
#: Every command that is given a checkpoint. {c} is the checkpoint, {r} a recording, {p} the place of everything.
COMMAND_LINES = {
    "generate": "--model {c} --audio {r} --prompt Hello --max_new_tokens 1",
    "transcribe": "--model {c} {r} --max_new_tokens 1",
    "summarize": "--model {c} {r} --prompt What? --output_dir {p}/summary --max_new_tokens 1",
    "chat": "--model {c} --max_new_tokens 1",
    "serve": "--model {c} --port 0",
    "demo-web": "--model {c} --port 0",
    "export": "--model {c} --output {p}/export --language_model",
    "evaluate": "--model {c} --systems model --samples 20 --data_path {p}/data.json --audio_dir {p}/recordings --output_dir {p}/scores",
    "shrink": "--model {c} --output_dir {p}/shrunk --lora_rank 1",
    "card": "--model {c}",
    "push": "--model {c} --repo someone/model --dry_run",
    "train": "--model_path {c} --data_path {p}/data.json --audio_dir {p}/recordings --output_dir {p}/run --max_steps 1",
    "train new": "--llama_path {p}/text --whisper_path {p}/audio --data_path {p}/data.json --audio_dir {p}/recordings "
    "--output_dir {p}/run --max_steps 1",
    "prepare folder": "folder {p}/recordings --output {p}/prepared --respond_with {p}/text",
    "prepare heard": "folder {p}/recordings --output {p}/prepared --max_wer 50 --whisper_path {p}/audio",
}


#: How often a question is answered, before the input ends.
YES_TYPED = 4


#: One of each kind of harm, and of each way that commands load; the others are slow tests.
QUICK = {
    ("generate", "beside good files"),
    ("generate", "in the text base"),
    ("chat", "in the audio base"),
    ("export", "as a model of another kind"),
    ("shrink", "beside good files"),
    ("card", "beside good files"),
    ("push", "beside good files"),
    ("train", "in the text base"),
    ("train new", "in the audio base"),
}


def stop(*arguments: Any, **options: Any) -> None:
    """In place of what serves until it is stopped, which comes behind all that is loaded."""
    raise SystemExit("would serve now")


@pytest.mark.parametrize(
    ("command", "where"),
    [
        pytest.param(command, where, marks=() if (command, where) in QUICK else pytest.mark.slow)
        for command in COMMAND_LINES
        for where in HOSTILE
    ],
)
def test_no_command_runs_it(
    checkpoint: Path, tmp_path: Path, marker: Path, monkeypatch, command: str, where: str
) -> None:
    place = tmp_path / "place"
    shutil.copytree(checkpoint, place)
    for name, base in (("audio", "audio_model_id"), ("text", "text_model_id")):
        edit_json(place / "checkpoint" / "config.json", **{base: str(place / name)})
    HOSTILE[where](place, marker)
    words = COMMAND_LINES[command].format(c=place / "checkpoint", r=place / "recordings" / "0.wav", p=place).split()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(uvicorn.Server, "run", stop)
    monkeypatch.setattr(gradio.Blocks, "launch", stop)
    monkeypatch.setattr(sys, "stdin", open("/dev/null"))  # noqa: SIM115  # as from a pipe; closed with the process
    with contextlib.suppress(SystemExit):  # refused in words; anything else would be a traceback
        importlib.import_module(COMMANDS[command.split()[0]][0]).main(words)
    assert not marker.exists()


def test_the_harm_is_real(checkpoint: Path, tmp_path: Path, marker: Path) -> None:
    """It comes when transformers is told to run the code, or asks and hears yes."""
    shutil.copytree(checkpoint, tmp_path / "place")
    as_another_kind(tmp_path / "place", marker)
    with contextlib.suppress(Exception):  # the code is no real configuration
        AutoConfig.from_pretrained(tmp_path / "place" / "checkpoint")
    assert marker.exists()


@pytest.mark.parametrize("pointer", POINTERS)
def test_auto_classes_run_it_neither(checkpoint: Path, tmp_path: Path, marker: Path, pointer: str) -> None:
    shutil.copytree(checkpoint, tmp_path / "place")
    folder = tmp_path / "place" / "checkpoint"
    bring_code(folder, marker, pointer)
    for auto_class in (AutoConfig, AutoProcessor, AutoModel):
        auto_class.from_pretrained(folder)
    assert not marker.exists()

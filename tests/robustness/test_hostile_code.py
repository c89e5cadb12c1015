"""Checkpoints that bring code of their own: no command runs it, whatever is typed or piped into the prompt that asks."""

import builtins
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import gradio
import huggingface_hub
import pytest
import uvicorn
from command_calls import COMMAND_LINES, Place, call, copied
from transformers import AutoConfig, AutoModel, AutoProcessor

#: Every file of code in a hostile checkpoint: it leaves a mark when it is imported.
HARM = """\
from pathlib import Path
from transformers import PretrainedConfig
Path({marker!r}).touch()
class Evil(PretrainedConfig):
    model_type = "evil"
    def __init__(self, *args, **kwargs): Path({marker!r}).touch()
"""
AUTO_CLASSES = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForMultimodalLM", "AutoProcessor")
PART_CLASSES = ("AutoTokenizer", "AutoFeatureExtractor", "AutoProcessor")
#: Places that `auto_map` may point to: beside, another repository, out of the folder, and nothing that can be.
POINTERS = ("evil.Evil", "other/repo--evil.Evil", "../evil.Evil", "/evil.Evil", "")


def edit_json(path: Path, **fields: Any) -> None:
    found = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**found, **fields}))


def bring_code(folder: Path, marker: Path, pointer: str = "evil.Evil") -> None:
    """Write code beside a folder's files, in place of its own code, and have every configuration ask for it."""
    for path in (folder / "evil.py", folder / "__init__.py", *folder.glob("*.py"), folder.parent / "evil.py"):
        path.write_text(HARM.format(marker=str(marker)))
    pipelines = {"audio-text-to-text": {"impl": pointer, "pt": ["AutoModel"], "tf": []}}
    edit_json(folder / "config.json", auto_map=dict.fromkeys(AUTO_CLASSES, pointer), custom_pipelines=pipelines)
    parts = dict.fromkeys(PART_CLASSES, pointer)
    edit_json(folder / "tokenizer_config.json", auto_map={**parts, "AutoTokenizer": [pointer, pointer]})
    for name in ("processor_config.json", "preprocessor_config.json"):
        edit_json(folder / name, auto_map=parts)


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
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    return tmp_path / "marker"


def as_another_kind(root: Path, marker: Path) -> None:
    bring_code(root, marker)
    edit_json(root / "config.json", model_type="evil")
    edit_json(root / "tokenizer_config.json", tokenizer_class="Evil")


#: Folders of a place that hostile code lies in, and how it comes there.
HOSTILE = {
    "beside good files": ("model", bring_code),
    "as a model of another kind": ("model", as_another_kind),
    "in the text base": ("text", as_another_kind),
    "in the audio base": ("audio", as_another_kind),
}
#: Questions that are answered, before the input ends.
YES_TYPED = 4
#: Commands that are given no checkpoint and no base.
WITHOUT_MODEL = ("prepare", "validate", "prompts", "align")
#: One of each kind of harm, and of each way that commands load; the others are slow tests.
QUICK = {
    ("generate", "beside good files"),
    ("generate", "in the text base"),
    ("chat", "in the audio base"),
    ("export", "as a model of another kind"),
    ("shrink", "beside good files"),
    ("card", "beside good files"),
    ("push", "beside good files"),
    ("train on", "in the text base"),
    ("train", "in the audio base"),
}


def stop(*arguments: Any, **options: Any) -> None:
    """In place of what serves until it is stopped, which comes behind all that is loaded."""
    raise SystemExit("would serve now")


@pytest.mark.parametrize(
    ("command", "where"),
    [
        pytest.param(command, where, marks=() if (command, where) in QUICK else pytest.mark.slow)
        for command in COMMAND_LINES
        if command not in WITHOUT_MODEL
        for where in HOSTILE
    ],
)
def test_no_command_runs_it(place: Place, tmp_path: Path, marker: Path, monkeypatch, command: str, where: str) -> None:
    hostile = copied(place, tmp_path / "place")
    folder, spoil = HOSTILE[where]
    spoil(hostile.root / folder, marker)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(uvicorn.Server, "run", stop)
    monkeypatch.setattr(gradio.Blocks, "launch", stop)
    monkeypatch.setattr(sys, "stdin", open("/dev/null"))  # noqa: SIM115  # as from a pipe; closed with the process
    call(hostile.line(command))  # refused in words; anything else would be a traceback
    assert not marker.exists()


def test_the_harm_is_real(place: Place, tmp_path: Path, marker: Path) -> None:
    """It comes when transformers is told to run the code, or asks and hears yes."""
    hostile = copied(place, tmp_path / "place")
    as_another_kind(hostile.model, marker)
    with contextlib.suppress(Exception):  # the code is no real configuration
        AutoConfig.from_pretrained(hostile.model)
    assert marker.exists()


def test_auto_classes_run_it_neither(place: Place, tmp_path: Path, marker: Path) -> None:
    for number, pointer in enumerate(POINTERS):
        hostile = copied(place, tmp_path / str(number)).model
        bring_code(hostile, marker, pointer)
        for auto_class in (AutoConfig, AutoProcessor, AutoModel):
            auto_class.from_pretrained(hostile)
        assert not marker.exists(), pointer

"""Checkpoints that are damaged, or made to do harm: each is refused early, by an error that names the fault."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from audiollm import AudioLlmForConditionalGeneration
from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"
BOUNDARY = "model.audio_boundary_embeds"
BOTH = ("adapter", "full")

Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def checkpoints(shared_tiny_model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A whole checkpoint of each kind, to be spoiled in copies."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for weights in BOTH:
        shared_tiny_model.save_pretrained(folder / weights, weights=weights)
    return {weights: folder / weights for weights in BOTH}


def edit_config(fields: dict[str, Any], part: str | None = None) -> Change:
    def apply(folder: Path) -> None:
        found = json.loads((folder / "config.json").read_text())
        (found if part is None else found[part]).update(fields)
        (folder / "config.json").write_text(json.dumps(found))

    return apply


def rewrite(change: Callable[[bytes], bytes]) -> Change:
    return lambda folder: (folder / WEIGHTS).write_bytes(change((folder / WEIGHTS).read_bytes())) and None


def reweigh(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Change:
    def apply(folder: Path) -> None:
        save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})

    return apply


def pickle_instead(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


#: Changes of a checkpoint, and a pattern of the error. (tests/configuration has more fields of the configuration.)
SPOILT: dict[str, tuple[Change, str]] = {
    "cut off": (rewrite(lambda data: data[:-100]), "damaged or cut off"),
    "a header of 8 EiB": (rewrite(lambda data: (1 << 63).to_bytes(8, "little") + data[8:]), "damaged or cut off"),
    "a page of a web server": (rewrite(lambda data: b"<html>not found</html>"), "damaged or cut off"),
    "one more": (reweigh(lambda all: {**all, "model.evil": torch.ones(2)}), "1 unexpected keys.*model.evil"),
    "one less": (reweigh(lambda all: {k: v for k, v in all.items() if k != BOUNDARY}), "1 missing keys"),
    "another shape": (reweigh(lambda all: {**all, BOUNDARY: torch.ones(3, 32)}), "1 mismatched keys.*boundary"),
    "a pickle instead": (pickle_instead, r"no file named model\.safetensors|file named model\.safetensors"),
    "config: millions of tokens": (
        edit_config({"vocab_size": 1 << 22}, "text_config"),
        "audio_begin_token_id is 128; expected",
    ),
    "config: no width": (
        edit_config({"num_attention_heads": 0}, "text_config"),
        "text_config is no configuration of the type 'llama'",
    ),
    "config: an unknown model": (
        edit_config({"model_type": "evil"}, "text_config"),
        "text_config is no configuration of the type 'evil'",
    ),
    "config: an adapter's name as a path": (
        edit_config({"lora_adapters": {"../x": {}}}),
        r"'\.\./x' is not a usable name",
    ),
}


def refused(checkpoint: Path, folder: Path, change: Change) -> str:
    """Return the text of the error that a copy of a checkpoint, changed, is refused with."""
    shutil.copytree(checkpoint, folder)
    change(folder)
    with pytest.raises((ValueError, OSError)) as raised:
        AudioLlmForConditionalGeneration.from_pretrained(folder)
    return str(raised.value)


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("what", SPOILT)
def test_spoilt_checkpoints(checkpoints, tmp_path: Path, kind: str, what: str) -> None:
    change, words = SPOILT[what]
    found = refused(checkpoints[kind], tmp_path / kind, change)
    assert re.search(words, found, re.DOTALL), found
    assert what.startswith("config") or str(tmp_path / kind) in found


class Harm:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_a_pickle_beside_the_weights_is_not_opened(checkpoints, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    for kind in BOTH:
        shutil.copytree(checkpoints[kind], tmp_path / kind)
        for name in ("pytorch_model.bin", "adapter_model.bin", "training_args.bin", "optimizer.pt"):
            torch.save(Harm(marker), tmp_path / kind / name)
        AudioLlmForConditionalGeneration.from_pretrained(tmp_path / kind)
    assert not marker.exists()


@pytest.mark.parametrize("place", ["/etc", "..", "../../etc/passwd", "https://evil.example/x", "pypi:../../etc"])
def test_bases_that_are_somewhere_else(checkpoints, tmp_path: Path, monkeypatch, place: str) -> None:
    """A folder that is no model is refused, and nothing is fetched from where no Hub is."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")  # `..` is then a folder without a model
    for role in ("audio", "text"):
        found = refused(checkpoints["adapter"], tmp_path / role, edit_config({f"{role}_model_id": place}))
        assert place.rpartition("/")[2] in found or "Unrecognized model in" in found

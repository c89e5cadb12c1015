"""Checkpoints that are damaged, or made to do harm: each is refused by an error that names what is wrong, before it costs."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import pytest
import torch
from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor
from audiollm.inference.loading import CheckpointError, find_checkpoint
from safetensors.torch import load_file, save_file
from tiny_models import randomise_trainables

WEIGHTS = "model.safetensors"
BOUNDARY = "model.audio_boundary_embeds"
#: Levels that no JSON parser follows.
DEEP = 200_000
#: Bytes of a safetensors file that say how long its header is.
LENGTH_BYTES = 8

Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def checkpoints(tiny_bases: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A whole checkpoint of each kind, to be spoiled in copies."""
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(*tiny_bases, lora_rank=4)
    randomise_trainables(model)
    for weights in ("adapter", "full"):
        model.save_pretrained(folder / weights, weights=weights)
        AudioLlmProcessor.from_audio_text_pretrained(*tiny_bases).save_pretrained(folder / weights)
    return {weights: folder / weights for weights in ("adapter", "full")}


def spoilt(checkpoints: dict[str, Path], kind: str, folder: Path, change: Change) -> Path:
    shutil.copytree(checkpoints[kind], folder / kind)
    change(folder / kind)
    return folder / kind


def refusal(folder: Path) -> str:
    """Return what the error says that a checkpoint is refused with."""
    with pytest.raises((ValueError, OSError)) as raised:
        AudioLlmForConditionalGeneration.from_pretrained(folder)
    return str(raised.value)


def edit_json(folder: Path, fields: dict[str, Any], part: str | None = None, name: str = "config.json") -> None:
    found = json.loads((folder / name).read_text())
    (found if part is None else found[part]).update(fields)
    (folder / name).write_text(json.dumps(found))


# ---- weights ---------------------------------------------------------------------------------------------------------


def rewrite(change: Callable[[bytes], bytes]) -> Change:
    return lambda folder: (folder / WEIGHTS).write_bytes(change((folder / WEIGHTS).read_bytes())) and None


def reweigh(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Change:
    def apply(folder: Path) -> None:
        save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})

    return apply


def pickle_instead(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


BOTH = ("adapter", "full")
#: What is done to the weights, of which kinds of checkpoint, and what the error says.
SPOILT_WEIGHTS: dict[str, tuple[tuple[str, ...], Change, str]] = {
    "cut off": (BOTH, rewrite(lambda data: data[:-100]), "damaged or cut off"),
    "cut off within its header": (BOTH, rewrite(lambda data: data[:100]), "damaged or cut off"),
    "a header of 8 EiB": (
        BOTH,
        rewrite(lambda data: (1 << 63).to_bytes(LENGTH_BYTES, "little") + data[LENGTH_BYTES:]),
        "damaged or cut off",
    ),
    "a header longer than the file": (
        BOTH,
        rewrite(lambda data: (1 << 26).to_bytes(LENGTH_BYTES, "little") + data[LENGTH_BYTES:]),
        "damaged or cut off",
    ),
    "a page of a web server": (BOTH, rewrite(lambda data: b"<html>not found</html>"), "damaged or cut off"),
    "nothing": (BOTH, rewrite(lambda data: b""), "damaged or cut off"),
    "one more": (BOTH, reweigh(lambda all: {**all, "model.evil": torch.ones(2)}), "1 unexpected keys.*model.evil"),
    "one less": (BOTH, reweigh(lambda all: {k: v for k, v in all.items() if k != BOUNDARY}), "1 missing keys"),
    "another shape": (BOTH, reweigh(lambda all: {**all, BOUNDARY: torch.ones(3, 32)}), "1 mismatched keys.*boundary"),
    "a pickle instead": (BOTH, pickle_instead, r"no file named model\.safetensors|file named model\.safetensors"),
}


@pytest.mark.parametrize(
    ("kind", "what"), [(kind, what) for what, (kinds, _, _) in SPOILT_WEIGHTS.items() for kind in kinds]
)
def test_spoilt_weights(checkpoints, tmp_path: Path, kind: str, what: str) -> None:
    _, change, words = SPOILT_WEIGHTS[what]
    folder = spoilt(checkpoints, kind, tmp_path, change)
    found = refusal(folder)
    assert str(folder) in found
    assert re.search(words, found, re.DOTALL), found


def test_weights_of_other_precisions_are_read(checkpoints, tmp_path: Path) -> None:
    for index, dtype in enumerate((torch.float64, torch.float16, torch.float8_e4m3fn)):
        change = reweigh(lambda all, dtype=dtype: {**all, BOUNDARY: all[BOUNDARY].to(dtype)})
        folder = spoilt(checkpoints, "adapter", tmp_path / str(index), change)
        found = AudioLlmForConditionalGeneration.from_pretrained(folder).model.audio_boundary_embeds
        assert found.dtype == torch.float32
        assert torch.equal(found, load_file(folder / WEIGHTS)[BOUNDARY].float())


class Harm:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_a_pickle_beside_the_weights_is_not_opened(checkpoints, tmp_path: Path) -> None:
    marker = tmp_path / "marker"

    def change(folder: Path) -> None:
        for name in (
            "pytorch_model.bin",
            "adapter_model.bin",
            "training_args.bin",
            "optimizer.pt",
            "consolidated.pth",
        ):
            torch.save(Harm(marker), folder / name)

    for kind in BOTH:
        AudioLlmForConditionalGeneration.from_pretrained(spoilt(checkpoints, kind, tmp_path, change))
    assert not marker.exists()


# ---- config.json -----------------------------------------------------------------------------------------------------

#: Fields of config.json, or of the part that is named, and what the error says.
SPOILT_CONFIGS: dict[str, tuple[dict[str, Any], str | None, str]] = {
    "a vocabulary of millions": ({"vocab_size": 1 << 22}, "text_config", "audio_begin_token_id is 128; expected"),
    "no width": ({"num_attention_heads": 0}, "text_config", "text_config is no configuration of the type 'llama'"),
    "an unknown model": ({"model_type": "evil"}, "text_config", "text_config is no configuration of the type 'evil'"),
    "an adapter's name as a path": ({"lora_adapters": {"../x": {}}}, None, r"'\.\./x' is not a usable name"),
    "targets as a pattern": ({"lora_target_modules": ".*"}, None, "expected a list of module names"),
}


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("what", SPOILT_CONFIGS)
def test_spoilt_configurations(checkpoints, tmp_path: Path, kind: str, what: str) -> None:
    fields, part, words = SPOILT_CONFIGS[what]
    folder = spoilt(checkpoints, kind, tmp_path, lambda folder: edit_json(folder, fields, part))
    found = refusal(folder)
    assert re.search(words, found), found


#: config.json as a whole.
NO_CONFIGS = {
    "a number of 5000 digits": '{"model_type": "audiollm", "stack_factor": ' + "9" * 5000 + "}",
    "cut off": '{"model_type": "audiollm", ',
    "no UTF-8": b"\xff\xfe\x00",
    "a web page": "<html>",
}


@pytest.mark.parametrize("what", NO_CONFIGS)
def test_files_that_are_no_configuration(checkpoints, tmp_path: Path, what: str) -> None:
    content = NO_CONFIGS[what]
    encoded = content if isinstance(content, bytes) else content.encode()
    folder = spoilt(
        checkpoints, "adapter", tmp_path, lambda folder: (folder / "config.json").write_bytes(encoded) and None
    )
    refusal(folder)
    with pytest.raises(CheckpointError, match=f"--model {folder}"):
        find_checkpoint(str(folder))


# ---- where the bases are ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["audio", "text"])
@pytest.mark.parametrize(
    "place",
    ["/etc", "..", "../../etc/passwd", "https://evil.example/x", "file:///etc", "pypi:../../etc", "pypi:other"],
)
def test_bases_that_are_somewhere_else(checkpoints, tmp_path: Path, monkeypatch, role: str, place: str) -> None:
    """A folder that is no model is refused, and nothing is fetched from where no Hub is."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")  # `..` is then a folder without a model
    folder = spoilt(checkpoints, "adapter", tmp_path, lambda folder: edit_json(folder, {f"{role}_model_id": place}))
    found = refusal(folder)
    assert place.rpartition("/")[2] in found or "Unrecognized model in" in found


def test_a_link_out_of_the_folder_is_read_as_the_file_it_names(checkpoints, tmp_path: Path) -> None:
    """As the Hub's own cache is made of links; what is read is weights or nothing."""

    def change(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder.parent / "elsewhere")
        (folder / WEIGHTS).symlink_to(folder.parent / "elsewhere")

    AudioLlmForConditionalGeneration.from_pretrained(spoilt(checkpoints, "adapter", tmp_path / "good", change))

    def harm(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        (folder / WEIGHTS).symlink_to("/etc/passwd")

    assert "damaged or cut off" in refusal(spoilt(checkpoints, "adapter", tmp_path / "bad", harm))


def test_a_link_to_itself_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(CheckpointError, match=f"--model {tmp_path / 'loop'}"):
        find_checkpoint(str(tmp_path / "loop"))


# ---- tokenizers and chat templates -----------------------------------------------------------------------------------


def test_template_names_stay_in_their_folder(checkpoints, tmp_path: Path) -> None:
    for name in ("../../outside", "/outside", "a/b", ""):
        templates = [{"name": "default", "template": "x"}, {"name": name, "template": "x"}]
        folder = tmp_path / f"named {len(name)}"
        shutil.copytree(checkpoints["adapter"], folder)
        (folder / "chat_template.jinja").unlink()
        edit_json(folder, {"chat_template": templates}, name="tokenizer_config.json")
        with pytest.raises(ValueError, match=r"The chat template is named .*; expected letters"):
            AudioLlmProcessor.from_pretrained(folder)


#: Templates that reach for Python, for files, or for all the memory there is.
HOSTILE_TEMPLATES = {
    "attributes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "a message's class": "{{ messages.__class__.__init__.__globals__ }}",
    "globals": "{{ cycler.__init__.__globals__.os.popen('touch MARKER').read() }}",
    "a file": "{% include '/etc/passwd' %}",
    "an import": "{% import 'os' as os %}{{ os }}",
    "writing": "{{ messages.append({'role': 'user', 'content': 'x'}) }}",
    "all memory": "{% for i in range(10**9) %}{{ i }}{% endfor %}",
    "broken": "{% for %}",
    "unknown names": "{{ missing.attribute }}",
}


@pytest.mark.parametrize("what", HOSTILE_TEMPLATES)
def test_chat_templates_run_in_a_sandbox(checkpoints, tmp_path: Path, monkeypatch, what: str) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(checkpoints["adapter"], tmp_path / "copy")
    (tmp_path / "copy" / "chat_template.jinja").write_text(HOSTILE_TEMPLATES[what])
    processor = AudioLlmProcessor.from_pretrained(tmp_path / "copy")
    with pytest.raises((ValueError, jinja2.TemplateError, OverflowError, TypeError)):
        processor.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=True)
    assert not (tmp_path / "MARKER").exists()

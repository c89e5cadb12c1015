"""
A checkpoint carries its code: it loads where AudioLLM is not installed, and is saved from there again.

The clients are processes of their own.
"""

import copy
import importlib.util
import inspect
import json
import sys
from pathlib import Path

import pytest
import torch
from audiollm import lora
from batches import collate, mixed_rows
from clients import WITHOUT_AUDIOLLM, play
from loopback_hub import LoopbackHub
from transformers import AutoModel, AutoProcessor
from versions import ANY_TO_ANY_RUNS

FORMATS = ("adapter", "merged")


@torch.no_grad()
def outputs_of(model, processor, batch, speech) -> list[torch.Tensor]:
    """Return a checkpoint's outputs for one batch and one recording."""
    chat = [{"role": "user", "content": [{"type": "audio", "audio": speech}]}, {"role": "assistant", "content": "Yes"}]
    encoded = processor.apply_chat_template(chat, tokenize=True, return_labels=True)
    generated = model.generate(**batch, max_new_tokens=5, do_sample=False, num_beams=2)
    return [model(**batch).logits, generated, encoded["input_ids"], encoded["labels"]]


def assert_same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert all(map(torch.equal, found, expected)), (found, expected)


#: For clients.
OUTPUTS = f"import torch\n{inspect.getsource(outputs_of)}\n{inspect.getsource(assert_same)}"


def prepare(model, processor, folder: Path) -> tuple:
    """Save a checkpoint of each format, and what a client must find."""
    given = dict(collate(model.config, mixed_rows(model.config))), torch.randn(8000)
    expected = {}
    for weights in FORMATS:
        model.save_pretrained(folder / weights, weights=weights)
        processor.save_pretrained(folder / weights)
        saved = copy.deepcopy(model).merge_adapters() if weights == "merged" else model
        expected[weights] = outputs_of(saved, processor, *given)
    torch.save((given, expected), folder / "expected.pt")
    return given, expected


LOAD_AND_SAVE = (
    WITHOUT_AUDIOLLM
    + OUTPUTS
    + """
from pathlib import Path
from transformers import AutoConfig, AutoModel, AutoModelForMultimodalLM, AutoProcessor, pipeline

folder, trusted = Path(sys.argv[1]), {"trust_remote_code": True}
given, expected = torch.load(folder / "expected.pt", weights_only=True)
for weights in expected:
    checkpoint, again = folder / weights, folder / "again" / weights
    try:
        AutoModel.from_pretrained(checkpoint, trust_remote_code=False)
    except ValueError as error:
        assert "trust_remote_code" in str(error), error
    else:
        raise AssertionError("loaded code that is not trusted")
    config = AutoConfig.from_pretrained(checkpoint, **trusted)
    assert config.model_type == "audiollm" and config.weight_format == weights
    for auto_class, place in ((AutoModel, checkpoint), (AutoModelForMultimodalLM, again)):
        model = auto_class.from_pretrained(place, **trusted)
        processor = AutoProcessor.from_pretrained(place, **trusted)
        assert type(model).__module__.startswith("transformers_modules."), type(model)
        assert_same(outputs_of(model, processor, *given), expected[weights])
        if place == checkpoint:
            model.save_pretrained(again)
            processor.save_pretrained(again)
    if sys.argv[2] == "True":
        chat = [{"role": "user", "content": [{"type": "audio", "audio": given[1].numpy()}]}]
        inputs = processor.apply_chat_template(chat, tokenize=True, add_generation_prompt=True)
        ids = model.generate(**inputs, max_new_tokens=8)[0, inputs["input_ids"].shape[1]:]
        listen = pipeline("any-to-any", model=str(checkpoint), device="cpu", **trusted)
        [answer] = listen(chat, generate_kwargs={"max_new_tokens": 8}, return_full_text=False)
        assert answer["generated_text"] == processor.decode(ids, skip_special_tokens=True) != ""
assert not [name for name in sys.modules if name.split(".")[0] == "audiollm"]
print("done")
"""
)


def test_checkpoints_load_and_save_without_the_package(tiny_model, tiny_processor, tmp_path: Path) -> None:
    given, expected = prepare(tiny_model, tiny_processor, tmp_path)
    assert play(LOAD_AND_SAVE, tmp_path, ANY_TO_ANY_RUNS, cwd=tmp_path, HF_HUB_OFFLINE="1") == "done"
    for weights in FORMATS:
        folders = tmp_path / weights, tmp_path / "again" / weights
        loaded, processor = (auto_class.from_pretrained(folders[1]) for auto_class in (AutoModel, AutoProcessor))
        assert_same(outputs_of(loaded, processor, *given), expected[weights])
        code, again = ({path.name: path.read_text() for path in folder.glob("*.py")} for folder in folders)
        assert code == again
        maps = [json.loads((folder / "config.json").read_text())["auto_map"] for folder in folders]
        assert maps[0] == maps[1]


@pytest.mark.quick
@pytest.mark.parametrize("model_first", [True, False])
def test_code_files_are_flat_and_import_no_package(tiny_model, tiny_processor, tmp_path: Path, model_first) -> None:
    """Whatever is saved first, every file is there itself, and not a module of the package that re-exports it."""
    for part in (tiny_model, tiny_processor) if model_first else (tiny_processor, tiny_model):
        part.save_pretrained(tmp_path)
    code = {path.name: path.read_text() for path in tmp_path.glob("*.py")}
    assert {"modeling_audiollm.py", "configuration_audiollm.py", "processing_audiollm.py"} < code.keys()
    for name, text in code.items():
        lines = [line.strip() for line in text.splitlines() if line.strip().startswith(("import ", "from "))]
        assert not [line for line in lines if line.split()[1].split(".")[0] == "audiollm"], name
        siblings = [line.split()[1] for line in lines if line.startswith("from .")]
        assert all(f"{sibling[1:]}.py" in code for sibling in siblings), name


def test_missing_peft_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    spec = importlib.util.spec_from_file_location("audiollm.lora_without_peft", lora.__file__)
    with pytest.raises(ImportError, match=r"need peft.*`pip install peft`"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


# ---- through the Hub's own client ----------------------------------------------------------------------------------

#: Publishes checkpoints, then another model in their place, and loads the first ones by their revisions.
PUSH_AND_PULL = (
    OUTPUTS
    + """
import json, sys
from pathlib import Path
from huggingface_hub import HfApi
from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor
from transformers import AutoModel, AutoProcessor

folder, shas = Path(sys.argv[1]), {}
given, expected = torch.load(folder / "expected.pt", weights_only=True)
for weights in ("adapter", "merged"):
    model = AudioLlmForConditionalGeneration.from_pretrained(folder / weights)
    repo_id = f"loopback-user/{weights}"
    if weights == "merged":
        model.save_pretrained(folder / "local", push_to_hub=True, repo_id=repo_id)
        # What lay in the folder before is not uploaded.
        assert "older.txt" not in HfApi().list_repo_files(repo_id)
    else:
        model.push_to_hub(weights)
    AudioLlmProcessor.from_pretrained(folder / weights).push_to_hub(weights)
    shas[weights] = HfApi().model_info(repo_id).sha
    model.model.audio_boundary_embeds.data.zero_()
    model.push_to_hub(weights)  # a later commit, of another model
    processor = AutoProcessor.from_pretrained(repo_id, revision=shas[weights])
    found = outputs_of(AutoModel.from_pretrained(repo_id, revision=shas[weights]), processor, *given)
    assert_same(found, expected[weights])
    assert not torch.allclose(outputs_of(AutoModel.from_pretrained(repo_id), processor, *given)[0], found[0]), weights
print(json.dumps(shas))
"""
)


def test_published_checkpoints_load_by_revision(tiny_model, tiny_processor, tmp_path: Path) -> None:
    """(A client without the package loads one by its revision in tests/publishing/test_round_trip.py.)"""
    prepare(tiny_model, tiny_processor, tmp_path)
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "older.txt").write_text("from another run")
    expected = {"config.json", "model.safetensors", "modeling_audiollm.py", "configuration_audiollm.py"}
    expected |= {"processing_audiollm.py", "tokenizer.json", "processor_config.json"}
    with LoopbackHub() as hub:
        shas = json.loads(play(PUSH_AND_PULL, tmp_path, cwd=tmp_path, **hub.environment(tmp_path / "home")))
        for weights, sha in shas.items():
            assert expected <= hub.files(f"loopback-user/{weights}", sha).keys()

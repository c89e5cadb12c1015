"""A checkpoint carries its code: it loads where AudioLLM is not installed, and is saved from there again.

The clients are processes of their own, in which `audiollm` cannot be imported.
"""

import copy
import json
from pathlib import Path

import pytest
import torch
from batches import collate, mixed_rows
from clients import WITHOUT_AUDIOLLM, WITHOUT_PEFT, play
from loopback_hub import LoopbackHub
from safetensors.torch import save_file
from transformers import AutoModel, AutoProcessor

FORMATS = ("adapter", "full", "merged")
EXPECTED_FILE = "expected.safetensors"
#: For clients: what [`prepare`] wrote, as it returns it.
READ_EXPECTED = f"""
from safetensors.torch import load_file

def read_expected(folder):
    found = {{}}
    for name, value in load_file(folder / "{EXPECTED_FILE}").items():
        group, _, rest = name.partition("/")
        found.setdefault(group, {{}})[rest] = value
    return found.pop("batch"), found.pop("speech")[""], found

def ask(processor, speech):
    chat = [{{"role": "user", "content": [{{"type": "audio", "audio": speech}}]}}, {{"role": "assistant", "content": "Yes"}}]
    return processor.apply_chat_template(chat, tokenize=True, return_labels=True)["labels"]
"""


@torch.no_grad()
def outputs_of(model, batch) -> dict[str, torch.Tensor]:
    generated = model.generate(**batch, max_new_tokens=5, do_sample=False, num_beams=2)
    return {"logits": model(**batch).logits, "generated": generated}


def ask(processor, speech: torch.Tensor) -> torch.Tensor:
    chat = [{"role": "user", "content": [{"type": "audio", "audio": speech}]}, {"role": "assistant", "content": "Yes"}]
    return processor.apply_chat_template(chat, tokenize=True, return_labels=True)["labels"]


def prepare(model, processor, folder: Path) -> tuple:
    """Saves a checkpoint of each format, and what a client must find, in one file of tensors."""
    batch = dict(collate(model.config, mixed_rows(model.config)))
    speech = torch.randn(8000)
    processed, expected = ask(processor, speech), {}
    for weights in FORMATS:
        model.save_pretrained(folder / weights, weights=weights)
        processor.save_pretrained(folder / weights)
        saved = copy.deepcopy(model).merge_adapters() if weights == "merged" else model
        expected[weights] = {**outputs_of(saved, batch), "processed": processed}
    flat = {"speech": speech, **{f"batch/{name}": value for name, value in batch.items()}}
    flat |= {f"{weights}/{name}": value for weights, found in expected.items() for name, value in found.items()}
    save_file({name: value.clone() for name, value in flat.items()}, folder / EXPECTED_FILE)
    return batch, speech, expected


LOAD_AND_SAVE = (
    WITHOUT_AUDIOLLM
    + READ_EXPECTED
    + """
from pathlib import Path
import torch
from transformers import AutoConfig, AutoModel, AutoModelForMultimodalLM, AutoProcessor

folder = Path(sys.argv[1])
batch, speech, expected = read_expected(folder)

def assert_as_expected(model, weights):
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, expected[weights]["logits"]), weights
        generated = model.generate(**batch, max_new_tokens=5, do_sample=False, num_beams=2)
        assert torch.equal(generated, expected[weights]["generated"]), weights

for weights in expected:
    checkpoint = folder / weights
    try:
        AutoModel.from_pretrained(checkpoint, trust_remote_code=False)
    except ValueError as error:
        assert "trust_remote_code" in str(error), error
    else:
        raise AssertionError("loaded code that is not trusted")
    config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=True)
    assert config.model_type == "audiollm" and config.weight_format == weights
    model = AutoModel.from_pretrained(checkpoint, trust_remote_code=True)
    assert_as_expected(model, weights)
    again = folder / "again" / weights
    model.save_pretrained(again)
    assert_as_expected(AutoModelForMultimodalLM.from_pretrained(again, trust_remote_code=True), weights)
    processor = AutoProcessor.from_pretrained(checkpoint, trust_remote_code=True)
    assert torch.equal(ask(processor, speech), expected[weights]["processed"])
    processor.save_pretrained(again)
    assert torch.equal(ask(AutoProcessor.from_pretrained(again, trust_remote_code=True), speech), expected[weights]["processed"])
assert not [name for name in sys.modules if name.split(".")[0] == "audiollm"]
print("done")
"""
)


def test_checkpoints_load_and_save_without_the_package(tiny_model, tiny_processor, tmp_path: Path) -> None:
    batch, speech, expected = prepare(tiny_model, tiny_processor, tmp_path)
    assert play(LOAD_AND_SAVE, tmp_path, cwd=tmp_path, HF_HUB_OFFLINE="1") == "done"
    for weights in FORMATS:
        again = tmp_path / "again" / weights
        found = outputs_of(AutoModel.from_pretrained(again), batch)
        found["processed"] = ask(AutoProcessor.from_pretrained(again), speech)
        for name, value in found.items():
            assert torch.equal(value, expected[weights][name]), (weights, name)
        first, second = ({path.name for path in folder.glob("*.py")} for folder in (tmp_path / weights, again))
        assert first == second
        for name in first:
            assert (tmp_path / weights / name).read_text() == (again / name).read_text()
        maps = [json.loads((folder / "config.json").read_text())["auto_map"] for folder in (tmp_path / weights, again)]
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


LOAD_WITHOUT_PEFT = (
    WITHOUT_PEFT
    + """
from transformers import AutoModel
try:
    AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
except ImportError as error:
    print(str(error).replace(chr(10), " "))
"""
)


def test_missing_peft_is_named(tiny_model, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path / "checkpoint")
    message = play(LOAD_WITHOUT_PEFT, tmp_path / "checkpoint", cwd=tmp_path, HF_HUB_OFFLINE="1")
    assert "peft" in message and "pip install peft" in message


# ---- through the Hub's own client ----------------------------------------------------------------------------------

PUSH = """
import json, sys
from pathlib import Path
from huggingface_hub import HfApi
from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor

folder = Path(sys.argv[1])
api, shas = HfApi(), {}
for weights in ("adapter", "merged"):
    model = AudioLlmForConditionalGeneration.from_pretrained(folder / weights)
    processor = AudioLlmProcessor.from_pretrained(folder / weights)
    repo_id = f"loopback-user/{weights}"
    if weights == "merged":
        model.save_pretrained(folder / "local", push_to_hub=True, repo_id=repo_id)
        # What lay in the folder before is not uploaded.
        assert "older.txt" not in api.list_repo_files(repo_id)
    else:
        model.push_to_hub(weights)
    processor.push_to_hub(weights)
    shas[weights] = api.model_info(repo_id).sha
    model.model.audio_boundary_embeds.data.zero_()
    model.push_to_hub(weights)  # a later commit, of another model
print(json.dumps(shas))
"""

PULL = (
    READ_EXPECTED
    + """
import json, sys
from pathlib import Path
import torch
from transformers import AutoModel, AutoProcessor

trust = "HIDDEN" in globals()
if not trust:
    import audiollm
folder, shas = Path(sys.argv[1]), json.loads(sys.argv[2])
batch, speech, expected = read_expected(folder)
for weights, sha in shas.items():
    repo_id = f"loopback-user/{weights}"
    model = AutoModel.from_pretrained(repo_id, revision=sha, trust_remote_code=trust)
    assert type(model).__module__.startswith("transformers_modules." if trust else "audiollm"), type(model)
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, expected[weights]["logits"]), weights
        latest = AutoModel.from_pretrained(repo_id, trust_remote_code=trust)
        assert not torch.allclose(latest(**batch).logits, expected[weights]["logits"]), weights
    processor = AutoProcessor.from_pretrained(repo_id, revision=sha, trust_remote_code=trust)
    assert torch.equal(ask(processor, speech), expected[weights]["processed"])
print("done")
"""
)


def test_published_checkpoints_load_by_revision(tiny_model, tiny_processor, tmp_path: Path) -> None:
    prepare(tiny_model, tiny_processor, tmp_path)
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "older.txt").write_text("from another run")
    expected = {"config.json", "model.safetensors", "modeling_audiollm.py", "configuration_audiollm.py"}
    expected |= {"processing_audiollm.py", "tokenizer.json", "processor_config.json"}
    with LoopbackHub(tmp_path / "hub") as hub:
        shas = json.loads(play(PUSH, tmp_path, cwd=tmp_path, **hub.environment(tmp_path / "home")))
        for weights, sha in shas.items():
            assert expected <= hub.files(f"loopback-user/{weights}", sha).keys()
        for prelude in ("import sys", WITHOUT_AUDIOLLM):
            home = tmp_path / f"home-{len(prelude)}"
            assert play(prelude + PULL, tmp_path, json.dumps(shas), cwd=tmp_path, **hub.environment(home)) == "done"

"""The code that a saved folder carries is whole: it runs where the package is not installed."""

import json
import os
import re
from pathlib import Path

import prepared_python
import pytest
import soundfile
from audiollm import AudioLlmConfig, AudioLlmForConditionalGeneration, AudioLlmProcessor
from audiollm.checkpoints import write_code
from transformers.dynamic_module_utils import get_relative_import_files

LOAD_WITHOUT_THE_PACKAGE = """
import json, sys

class NoPackage:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "audiollm":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoPackage())
from transformers import AutoProcessor

folder, audio, resaved = sys.argv[1:]
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
assert type(processor).__module__.startswith("transformers_modules."), type(processor)
processor.save_pretrained(resaved)
again = AutoProcessor.from_pretrained(resaved, trust_remote_code=True)
messages = [{"role": "user", "content": [{"type": "audio", "path": audio}]}, {"role": "assistant", "content": "Yes"}]
for each in (processor, again):
    batch = each.apply_chat_template(messages, tokenize=True, return_labels=True)
    print(json.dumps({"ids": batch["input_ids"].tolist(), "labels": batch["labels"].tolist()}))
"""


def test_a_saved_processor_runs_without_the_package(tiny_processor, clips, tmp_path):
    recording = tmp_path / "clip.wav"
    soundfile.write(recording, clips[0], 16_000, subtype="FLOAT")
    tiny_processor.save_pretrained(tmp_path / "saved")
    arguments = (tmp_path / "saved", recording, tmp_path / "resaved")
    result = prepared_python.run(LOAD_WITHOUT_THE_PACKAGE, *arguments, env=os.environ, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    messages = [
        {"role": "user", "content": [{"type": "audio", "path": recording}]},
        {"role": "assistant", "content": "Yes"},
    ]
    here = tiny_processor.apply_chat_template(messages, tokenize=True, return_labels=True)
    expected = {"ids": here["input_ids"].tolist(), "labels": here["labels"].tolist()}
    assert [json.loads(line) for line in result.stdout.splitlines()] == [expected, expected]


@pytest.mark.parametrize("order", ["model first", "processor first"])
def test_a_folder_of_model_and_processor_holds_the_real_files_only(tiny_processor, tmp_path, order):
    def save_model():
        write_code([AudioLlmForConditionalGeneration, AudioLlmConfig], tmp_path)

    def save_processor():
        tiny_processor.save_pretrained(tmp_path)

    steps = [save_model, save_processor]
    for step in steps if order == "model first" else reversed(steps):
        step()
    files = {path.name for path in tmp_path.glob("*.py")}
    assert {"modeling_audiollm.py", "configuration_audiollm.py", "processing_audiollm.py"} < files
    for name in files:
        source = (tmp_path / name).read_text(encoding="utf-8")
        assert not re.search(r"^(from|import) audiollm", source, re.MULTILINE), f"{name} is a re-export"
        needed = {Path(path).name for path in get_relative_import_files(tmp_path / name)}
        assert needed <= files, f"{name} imports {needed - files}"


def test_write_code_gives_model_and_processor_in_one_go(tmp_path):
    classes = [AudioLlmForConditionalGeneration, AudioLlmConfig, AudioLlmProcessor]
    written = write_code(classes, tmp_path)
    assert sorted(written) == sorted(tmp_path.glob("*.py"))
    assert sorted(path.name for path in write_code(classes, tmp_path)) == sorted(path.name for path in written)

"""The same question gets the same answer whichever way it is asked, with the package and without it, routed and merged."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from audiollm import AudioLlmPipeline
from clients import WITHOUT_AUDIOLLM, play
from transformers import pipeline
from versions import ANY_TO_ANY_RUNS

SAMPLING_RATE_HZ = 16_000
TASK = "audio-text-to-text"
TASKS = (TASK, "any-to-any") if ANY_TO_ANY_RUNS else (TASK,)

ASK = """
import json, sys
from pathlib import Path
from transformers import AutoModelForMultimodalLM, AutoProcessor, pipeline

folder, tasks, trust = Path(sys.argv[1]), sys.argv[2:], "HIDDEN" in globals()
if not trust:
    import audiollm
chat = json.loads((folder / "chat.json").read_text())
options = {"max_new_tokens": 8, "do_sample": False}
found = {}
for weights in ("adapter", "merged"):
    checkpoint = str(folder / weights)
    trusted = {"trust_remote_code": True} if trust else {}
    model = AutoModelForMultimodalLM.from_pretrained(checkpoint, **trusted)
    processor = AutoProcessor.from_pretrained(checkpoint, **trusted)
    inputs = processor.apply_chat_template(chat, tokenize=True, add_generation_prompt=True)
    output = model.generate(**inputs, **options)[0, inputs["input_ids"].shape[1]:]
    found[weights, "generate"] = processor.decode(output, skip_special_tokens=True)
    for task in tasks:
        pipe = pipeline(task, model=checkpoint, device="cpu", **trusted)
        asked = {"generate_kwargs": options, "return_full_text": False}
        found[weights, task] = pipe(chat, **asked)[0]["generated_text"]
        found[weights, task + ", batch"] = pipe([chat, chat], **asked)[1][0]["generated_text"]
    if trust:
        assert type(model).__module__.startswith("transformers_modules."), type(model)
    else:
        from audiollm.inference.answering import answer
        found[weights, "answer"] = answer(model, processor, [chat], **options)[0]
if trust:
    assert not [name for name in sys.modules if name.split(".")[0] == "audiollm"]
print(json.dumps([[*names, text] for names, text in found.items()]))
"""


@pytest.fixture
def asked(tiny_model, tiny_processor, tmp_path: Path) -> Path:
    """A folder with a routed and a merged checkpoint, a recording, and a conversation about it."""
    noise = np.random.default_rng(0).standard_normal(SAMPLING_RATE_HZ // 2) / 10
    soundfile.write(tmp_path / "noise.wav", noise, SAMPLING_RATE_HZ)
    parts = [{"type": "text", "text": "What? "}, {"type": "audio", "path": str(tmp_path / "noise.wav")}]
    (tmp_path / "chat.json").write_text(json.dumps([{"role": "user", "content": parts}]))
    for weights in ("adapter", "merged"):
        tiny_model.save_pretrained(tmp_path / weights, weights=weights)
        tiny_processor.save_pretrained(tmp_path / weights)
    return tmp_path


def test_one_question_one_answer(asked: Path, tiny_model, tiny_processor) -> None:
    chat = json.loads((asked / "chat.json").read_text())
    merged = copy.deepcopy(tiny_model).merge_adapters()
    expected = {}
    for weights, model in (("adapter", tiny_model), ("merged", merged)):
        listen = pipeline(TASK, model=model, processor=tiny_processor, device="cpu")
        expected[weights] = listen(chat, max_new_tokens=8)[0]["generated_text"].strip()
    assert len(expected["adapter"]) > 3
    # A checkpoint's code is the model's and the processor's; the package brings the pipeline.
    for prelude, ways, tasks in (("", 2, TASKS), (WITHOUT_AUDIOLLM, 1, TASKS[1:])):
        found = json.loads(play(prelude + ASK, asked, *tasks, cwd=asked, HF_HUB_OFFLINE="1"))
        assert len(found) == 2 * (ways + 2 * len(tasks))
        for weights, way, text in found:
            assert text.strip() == expected[weights], (weights, way)


def test_a_merged_models_text_rows_are_adapted_and_others_are_not(tiny_model, tiny_processor) -> None:
    """`merge_adapters` through the pipeline: audio rows stay the same, text rows change."""
    rows = [{"text": "Hello, who is there?"}, {"text": "<audio>", "audio": np.ones(8000, dtype=np.float32) / 9}]
    options = {"max_new_tokens": 8}
    routed = pipeline(TASK, model=tiny_model, processor=tiny_processor, device="cpu")(rows, batch_size=2, **options)
    merged_model = copy.deepcopy(tiny_model).merge_adapters()
    assert not [name for name, _ in merged_model.named_parameters() if ".lora_" in name]
    merged = pipeline(TASK, model=merged_model, processor=tiny_processor, device="cpu")(rows, batch_size=2, **options)
    assert merged[0] != routed[0] and merged[1] == routed[1]


def test_the_packages_pipeline_needs_no_trust(asked: Path, tiny_model) -> None:
    # With the package, which has registered the pipeline, no code of the checkpoint is asked for or run.
    for trusted in ({}, {"trust_remote_code": True}, {"trust_remote_code": False}, {"local_files_only": True}):
        listen = pipeline(TASK, model=str(asked / "adapter"), device="cpu", **trusted)
        assert type(listen) is AudioLlmPipeline and type(listen.model) is type(tiny_model)
        assert listen({"text": "Hello"}, max_new_tokens=4)[0].keys() == {"generated_text"}

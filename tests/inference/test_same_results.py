"""The same question gets the same answer whichever way it is asked, routed and merged."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from audiollm import AudioLlmPipeline
from audiollm.inference.answering import answer
from transformers import AutoModelForMultimodalLM, AutoProcessor, pipeline
from versions import ANY_TO_ANY_RUNS

SAMPLING_RATE_HZ = 16_000
TASK = "audio-text-to-text"
ANY_TO_ANY = ("any-to-any",) * ANY_TO_ANY_RUNS
OPTIONS = {"max_new_tokens": 8, "do_sample": False}


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
    expected = {}
    for weights, model in (("adapter", tiny_model), ("merged", copy.deepcopy(tiny_model).merge_adapters())):
        listen = pipeline(TASK, model=model, processor=tiny_processor, device="cpu")
        expected[weights] = listen(chat, max_new_tokens=8)[0]["generated_text"].strip()
        checkpoint = str(asked / weights)
        loaded, processor = (each.from_pretrained(checkpoint) for each in (AutoModelForMultimodalLM, AutoProcessor))
        said = answer(loaded, processor, [chat, chat], **OPTIONS)
        for task in (TASK, *ANY_TO_ANY):
            answers = pipeline(task, model=checkpoint, device="cpu")(
                [chat, chat], generate_kwargs=OPTIONS, return_full_text=False
            )
            said += [answer[0]["generated_text"].strip() for answer in answers]
        assert set(said) == {expected[weights]}, weights
    assert len(expected["adapter"]) > 3


def test_a_merged_models_text_rows_are_adapted_and_others_are_not(tiny_model, tiny_processor) -> None:
    """`merge_adapters` through the pipeline: audio rows stay the same, text rows change."""
    rows = [{"text": "Hello, who is there?"}, {"text": "<audio>", "audio": np.ones(8000, dtype=np.float32) / 9}]
    routed, merged = (
        pipeline(TASK, model=model, processor=tiny_processor, device="cpu")(rows, batch_size=2, max_new_tokens=8)
        for model in (copy.deepcopy(tiny_model), tiny_model.merge_adapters())
    )
    assert merged[0] != routed[0] and merged[1] == routed[1]


def test_the_packages_pipeline_needs_no_trust(asked: Path, tiny_model) -> None:
    # With the package, which has registered the pipeline, no code of the checkpoint is asked for or run.
    for trusted in ({"trust_remote_code": True}, {"trust_remote_code": False}, {"local_files_only": True}):
        listen = pipeline(TASK, model=str(asked / "adapter"), device="cpu", **trusted)
        assert type(listen) is AudioLlmPipeline and type(listen.model) is type(tiny_model)
        assert listen({"text": "Hello"}, max_new_tokens=4)[0].keys() == {"generated_text"}

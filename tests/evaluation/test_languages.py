"""Own recordings in other languages than English: whole answers, their normaliser, and Whisper's decoder in that language."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from audiollm.evaluation.generating import Generator, transcript_bound
from audiollm.evaluation.readers import read_local_set
from audiollm.evaluation.run import index
from audiollm.evaluation.systems import SystemBuilder
from audiollm.evaluation.tasks import TaskError
from audiollm.inference.answering import ask
from evaluation_runs import evaluate, scores_of
from small_corpus import write_recordings, write_rows
from tiny_models import save_talking_whisper

HINDI = "नमस्ते दोस्तों आज मौसम बहुत अच्छा है"
CLIP = (0.1 * np.random.default_rng(0).standard_normal(8000)).astype(np.float32)


@pytest.fixture(scope="module")
def multilingual(tmp_path_factory) -> str:
    """A Whisper of several languages, each of which is a token of its own."""
    languages = {"en": 40, "hi": 41, "de": 42, "ja": 43}
    return save_talking_whisper(tmp_path_factory.mktemp("whisper"), languages=languages)


def own_data(folder: Path, *texts: str) -> str:
    rows = zip(write_recordings(folder, len(texts)), texts)
    rows = [{"text": "<audio>", "audio_paths": name, "response": text} for name, text in rows]
    return write_rows(folder / "data.json", rows)


@pytest.mark.parametrize(
    ("given", "code", "normaliser", "metric"),
    [
        ("--language Hindi", "hi", "basic", "word_error"),
        ("--language ja", "ja", "characters", "character_error"),
        ("--normaliser none", "en", "none", "word_error"),
    ],
)
def test_every_part_of_a_run_is_in_the_language(
    tiny_checkpoint, multilingual, tmp_path, given, code, normaliser, metric
) -> None:
    data = own_data(tmp_path / "data", *([HINDI, HINDI + " जी"] if code != "en" else ["Über alles.", "one two"]))
    options = f"--data_path {data} --whisper {multilingual} --max_new_tokens 4 {given}"
    evaluate(tiny_checkpoint, tmp_path / "run", *options.split())
    record = json.loads((tmp_path / "run" / "run.json").read_text())["tasks"]["local"]
    assert (record["language"], record["normaliser"]) == (code, normaliser)
    scores = scores_of(tmp_path / "run", "local")
    assert set(scores) == {"model", "wrong_audio", "whisper"}
    assert all(f"normaliser:{normaliser}" in each["metrics"][metric]["signature"] for each in scores.values())


def test_the_language_is_needed_by_other_letters_and_told_to_whisper(
    shared_tiny_model, tiny_processor, multilingual, tmp_path
) -> None:
    data = own_data(tmp_path / "data", HINDI, "OK")
    with pytest.raises(TaskError, match="--language"):
        read_local_set(data)
    for language in ("hi", "de", "en"):
        builder = SystemBuilder(shared_tiny_model, tiny_processor, multilingual, None, tmp_path / "run", 4)
        system = builder.build(read_local_set(data, language=language), "whisper")
        assert system.decoder.options["language"] == language
    assert read_local_set(own_data(tmp_path / "data", "Der Zug nach Köln fährt über Düren.")).language == "en"


def test_bounds_hold_what_a_language_takes(tmp_path) -> None:
    """Measured: a read sentence of 6.5 s in Hindi is 95 tokens of SmolLM2's tokenizer, one of 6.5 s in German 43."""
    data = own_data(tmp_path / "data", HINDI)
    for language, seconds, least in (("hi", 6.5, 95), ("hi", 30.0, 440), ("de", 6.5, 43), ("en", 6.5, 40)):
        task = read_local_set(data, language=language)
        assert index(task, None, None, None).bound(seconds) > least
        assert index(task, None, None, 9).bound(seconds) == 9
    assert transcript_bound(5.0, "en") < transcript_bound(5.0, "hi") == transcript_bound(5.0, None)


def looping(model, unit: list[int]) -> None:
    """Makes the model write the same tokens again and again, whatever it hears."""
    model.generation_config.eos_token_id = None
    written = iter(range(10_000))

    def repeat(module, args, output):
        scores = torch.full_like(output, -10.0)
        scores[..., unit[next(written) % len(unit)]] = 10.0
        return scores

    model.lm_head.register_forward_hook(repeat)


def test_an_answer_ends_in_a_loop_or_at_its_bound_within_the_context(tiny_model, tiny_processor) -> None:
    def answered(unit: list[int], bound: int) -> tuple[str, int]:
        looping(tiny_model, unit)
        (found,) = Generator(tiny_model, tiny_processor).answer([ask("<audio>", CLIP)], [[CLIP]], [bound])
        return found.finish, len(tiny_processor.tokenizer(found.text)["input_ids"])

    finish, length = answered([70], 500)
    assert finish == "repeated" and length <= 40
    tiny_model.config.get_text_config().max_position_embeddings = 64
    finish, length = answered(list(range(20, 100)), 5000)
    assert finish == "length" and 0 < length <= 64

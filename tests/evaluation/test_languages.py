"""Own recordings in other languages than English: whole answers, their normaliser, and Whisper's decoder in that language."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from audiollm.evaluation.arguments import EvaluateArguments
from audiollm.evaluation.evaluate import main
from audiollm.evaluation.generating import Generator, transcript_bound
from audiollm.evaluation.readers import read_local_set
from audiollm.evaluation.run import index
from audiollm.evaluation.score import score_run
from audiollm.evaluation.systems import SystemBuilder
from audiollm.evaluation.tasks import TaskError, find_task
from audiollm.inference.answering import ask
from tiny_models import character_tokenizer, save_audio_base
from transformers import GenerationConfig

HINDI = "नमस्ते दोस्तों आज मौसम बहुत अच्छा है"
GERMAN = "Der Zug nach Köln fährt heute über Düren."
RATE_HZ = 16_000


@pytest.fixture(scope="module")
def checkpoint(tiny_bases, tmp_path_factory) -> Path:
    from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor

    folder = tmp_path_factory.mktemp("model")
    AudioLlmForConditionalGeneration.from_audio_text_pretrained(*tiny_bases, lora_rank=4).save_pretrained(folder)
    AudioLlmProcessor.from_audio_text_pretrained(*tiny_bases).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def multilingual(tmp_path_factory) -> str:
    """A Whisper of several languages, each of which is a token of its own."""
    folder = tmp_path_factory.mktemp("whisper")
    character_tokenizer().save_pretrained(folder)
    save_audio_base(folder)
    GenerationConfig(
        is_multilingual=True,
        lang_to_id={"<|en|>": 40, "<|hi|>": 41, "<|de|>": 42, "<|ja|>": 43},
        task_to_id={"transcribe": 50, "translate": 51},
        no_timestamps_token_id=60,
        decoder_start_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    ).save_pretrained(folder)
    return str(folder)


def own_data(folder: Path, *texts: str, seconds: float = 0.5) -> str:
    folder.mkdir(exist_ok=True)
    rows = []
    for number, text in enumerate(texts):
        waveform = 0.1 * np.random.default_rng(number).standard_normal(int(seconds * RATE_HZ))
        soundfile.write(folder / f"{number}.wav", waveform, RATE_HZ)
        rows.append({"text": "<audio>", "audio_paths": f"{number}.wav", "response": text})
    (folder / "data.json").write_text(json.dumps(rows), encoding="utf-8")
    return str(folder / "data.json")


@pytest.mark.parametrize(
    ("given", "code", "normaliser", "metric"),
    [
        (["--language", "hi"], "hi", "basic", "word_error"),
        (["--language", "Hindi"], "hi", "basic", "word_error"),
        (["--language", "ja"], "ja", "characters", "character_error"),
        (["--language", "hi", "--normaliser", "none"], "hi", "none", "word_error"),
        (["--normaliser", "basic"], "en", "basic", "word_error"),
    ],
)
def test_every_part_of_a_run_is_in_the_language(
    checkpoint, multilingual, tmp_path, given, code, normaliser, metric
) -> None:
    texts = [HINDI, HINDI + " जी"] if code != "en" else ["Über alles.", "one two"]
    data = own_data(tmp_path / "data", *texts)
    call = ["--model", str(checkpoint), "--data_path", data, "--whisper", multilingual, "--max_new_tokens", "4"]
    main([*call, *given, "--output_dir", str(tmp_path / "run"), "--no_report"])
    record = json.loads((tmp_path / "run" / "run.json").read_text())["tasks"]["local"]
    assert (record["language"], record["normaliser"]) == (code, normaliser)
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())["tasks"]["local"]["systems"]
    assert set(scores) == {"model", "wrong_audio", "whisper"}
    for found in scores.values():
        assert f"normaliser:{normaliser}" in found["metrics"][metric]["signature"]
    # A run in another language does not go on in the same folder: Whisper would hear another one.
    with pytest.raises(SystemExit, match="language was"):
        main([*call, "--language", "de", "--output_dir", str(tmp_path / "run")])


def test_whisper_hears_the_language_that_is_given(tiny_model, tiny_processor, multilingual, tmp_path) -> None:
    data = own_data(tmp_path / "data", HINDI, HINDI)
    for language in ("hi", "de", "en"):
        builder = SystemBuilder(tiny_model, tiny_processor, multilingual, None, tmp_path / "run", 4)
        system = builder.build(read_local_set(data, language=language), "whisper")
        assert system.decoder.options["language"] == language


def test_transcripts_in_other_letters_need_a_language(tmp_path) -> None:
    data = own_data(tmp_path / "data", HINDI, "OK")
    with pytest.raises(TaskError, match="--language"):
        read_local_set(data)
    assert read_local_set(data, language="hi").language == "hi"
    assert read_local_set(own_data(tmp_path / "data", GERMAN)).language == "en"


@pytest.mark.parametrize("language", ["gernan", "", "12"])
def test_what_is_no_language_is_refused(language, tmp_path) -> None:
    with pytest.raises(ValueError, match=repr(language)):
        EvaluateArguments(model="m", data_path=["x"], language=language)


@pytest.mark.parametrize("option", ["language", "normaliser"])
def test_tasks_have_their_own_language(option, tmp_path) -> None:
    with pytest.raises(ValueError, match=f"--{option} is for your own data"):
        EvaluateArguments(model="m", tasks=["unseen"], output_dir=tmp_path, **{option: "basic"})


# --------------------------------------------------------------------------------------------------- length of answers


def test_bounds_hold_what_a_language_takes(tmp_path) -> None:
    """Measured: a read sentence of 6.5 s in Hindi is 95 tokens of SmolLM2's tokenizer, one of 6.5 s in German 43."""
    data = own_data(tmp_path / "data", HINDI, seconds=0.1)
    for task, seconds, least in (
        (read_local_set(data, language="hi"), 6.5, 95),
        (read_local_set(data, language="hi"), 30.0, 440),
        (read_local_set(data, language="de"), 6.5, 43),
        (read_local_set(own_data(tmp_path / "data", "one"), language="en"), 6.5, 40),
    ):
        assert index(task, None, None, None).bound(seconds) > least
        assert index(task, None, None, 9).bound(seconds) == 9
    assert find_task("fleurs:hi_in").max_new_tokens is None
    assert find_task("fleurs_translation:en_us-hi_in").max_new_tokens is None
    assert transcript_bound(5.0, "en") < transcript_bound(5.0, "hi") == transcript_bound(5.0, None)


def looping(model, unit: list[int]):
    """The model, writing the same tokens again and again, whatever it hears."""
    model.generation_config.eos_token_id = None
    written = iter(range(10_000))

    def repeat(module, args, output):
        scores = torch.full_like(output, -10.0)
        scores[..., unit[next(written) % len(unit)]] = 10.0
        return scores

    return model.lm_head.register_forward_hook(repeat)


@pytest.mark.parametrize("unit", [[70], [70, 71, 72], list(range(60, 80))])
def test_an_answer_that_repeats_itself_ends_soon(tiny_model, tiny_processor, unit) -> None:
    hook = looping(tiny_model, unit)
    clip = [(0.1 * np.random.default_rng(0).standard_normal(8000)).astype(np.float32)]
    try:
        (found,) = Generator(tiny_model, tiny_processor).answer([ask("<audio>", *clip)], [clip], [500])
    finally:
        hook.remove()
    assert found.finish == "repeated"
    assert 5 * len(unit) <= len(tiny_processor.tokenizer(found.text)["input_ids"]) <= max(40, 6 * len(unit))


def test_words_said_several_times_are_kept(tiny_model, tiny_processor) -> None:
    """Four times the same, then something else."""
    text = "ha ha ha ha well"
    hook = looping(tiny_model, tiny_processor.tokenizer(text + " and so it went on")["input_ids"])
    clip = [(0.1 * np.random.default_rng(0).standard_normal(8000)).astype(np.float32)]
    try:
        (found,) = Generator(tiny_model, tiny_processor).answer([ask("<audio>", *clip)], [clip], [len(text)])
    finally:
        hook.remove()
    assert (found.text, found.finish) == (text, "length")


def test_what_was_stopped_is_counted(tmp_path) -> None:
    from run_folders import row, write_run

    rows = [row("a", "x y", "x y"), row("b", "x y", "x x x x", finish="repeated")]
    folder = write_run(tmp_path / "run", {"local": {"model": rows}})
    assert score_run(folder)["tasks"]["local"]["systems"]["model"]["counts"]["repeated"] == 1


def test_a_long_recording_is_asked_about_within_the_context(tiny_model, tiny_processor) -> None:
    """Its bound by length is more than the language model holds."""
    clip = [(0.1 * np.random.default_rng(0).standard_normal(8000)).astype(np.float32)]
    generator = Generator(tiny_model, tiny_processor)
    tiny_model.generation_config.eos_token_id = None
    (found,) = generator.answer([ask("<audio>", *clip)], [clip], [5000])
    assert found.finish in ("repeated", "length") and found.text

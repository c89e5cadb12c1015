"""`pipeline("audio-text-to-text")`, of ours: every kind of row, one by one, in batches and as it comes, as `answer` answers."""

import copy
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from audiollm import AudioLlmPipeline
from audiollm.inference.answering import answer, ask
from audiollm.inference.pipeline import TRANSCRIBE_PROMPT
from datasets import Audio, Dataset
from long_recordings import RATE, noise
from transformers import AutoModelForMultimodalLM, AutoProcessor, pipeline
from transformers.pipelines.pt_utils import KeyDataset
from versions import ANY_TO_ANY_RUNS

OPTIONS = {"max_new_tokens": 8}
TASK = "audio-text-to-text"
PROMPT = "Which words? <audio>"


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("recordings")
    paths = [str(folder / f"{index}.wav") for index in range(4)]
    for seed, (path, seconds) in enumerate(zip(paths, (0.9, 0.3, 0.6, 0.45))):
        soundfile.write(path, noise(seconds, seed), RATE, subtype="FLOAT")
    return paths


@pytest.fixture
def listen(tiny_model, tiny_processor) -> AudioLlmPipeline:
    return pipeline(TASK, model=tiny_model, processor=tiny_processor, device="cpu")


@pytest.fixture
def told(tiny_model, tiny_processor):
    """Return the answer to one conversation, as the pipeline gives it."""

    def one(conversation) -> list[dict]:
        return [{"generated_text": answer(tiny_model, tiny_processor, [conversation], **OPTIONS)[0]}]

    return one


def stripped(rows):
    return [[{"generated_text": text["generated_text"].strip()} for text in row] for row in rows]


def conversations(files) -> tuple[list[dict], list[dict]]:
    """One that asks, and one whose answer is begun."""
    begun = [*ask("<audio>", files[1]), {"role": "assistant", "content": "It is"}]
    return ask("Which is it? <audio>", files[3], system="Be brief."), begun


def test_a_recording_of_any_kind_is_transcribed(listen, told, files) -> None:
    expected = told(ask(TRANSCRIBE_PROMPT, files[0]))
    waveform = noise(0.9)
    kinds = [
        files[0],
        Path(files[0]),
        Path(files[0]).read_bytes(),
        waveform,
        torch.from_numpy(waveform),
        {"array": waveform, "sampling_rate": RATE},
        {"bytes": None, "path": files[0]},
        {"audio": [files[0]]},
    ]
    for row in kinds:
        assert stripped([listen(row, **OPTIONS)]) == [expected], type(row)
    assert stripped(listen(kinds, batch_size=4, **OPTIONS)) == [expected] * len(kinds)
    assert stripped([listen(audio=files[0], **OPTIONS)]) == [expected]


def test_questions_and_conversations(listen, told, files) -> None:
    chat, begun = conversations(files)
    rows = [
        files[0],
        {"audio": files[1], "text": "Who?"},
        {"audio": files[1:3], "text": "<audio> or <audio>?"},
        {"text": "Well?"},
        chat,
        begun,
    ]
    asked = [ask(TRANSCRIBE_PROMPT, files[0]), ask("Who?", files[1]), ask("<audio> or <audio>?", *files[1:3])]
    expected = [told(one) for one in (*asked, ask("Well?"), chat, begun)]
    assert len({row[0]["generated_text"] for row in expected}) == len(rows)
    assert stripped([listen(row, **OPTIONS) for row in rows]) == expected
    for given, found in ((rows, expected), (rows[4:], expected[4:])):
        assert stripped(listen(given, batch_size=3, **OPTIONS)) == found
        assert stripped(listen(iter(given), batch_size=3, **OPTIONS)) == found
    assert stripped([listen(text="Who?", audio=files[1], **OPTIONS)]) == expected[1:2]
    assert listen([], **OPTIONS) == []


def test_datasets(listen, told, files) -> None:
    dataset = Dataset.from_dict({"audio": files}).cast_column("audio", Audio(decode=False))
    answers = listen(KeyDataset(dataset, "audio"), batch_size=3, **OPTIONS)
    assert not isinstance(answers, list)
    assert stripped(answers) == [told(ask(TRANSCRIBE_PROMPT, file)) for file in files]
    with pytest.raises(ValueError, match="KeyDataset"):
        listen(dataset)
    assert list(listen(KeyDataset(dataset.select([]), "audio"))) == []


def test_batches_and_recordings_that_are_encoded_once(listen, files, tiny_model, monkeypatch) -> None:
    sizes: dict[str, list[int]] = {"input_ids": [], "input_features": []}
    for owner, name, field in (
        (tiny_model, "generate", "input_ids"),
        (tiny_model.model, "encode_audio", "input_features"),
    ):
        run = getattr(owner, name)
        monkeypatch.setattr(
            owner, name, lambda run=run, field=field, **f: sizes[field].append(len(f[field])) or run(**f)
        )
    list(listen(iter(files), batch_size=3, **OPTIONS))
    listen(files, **OPTIONS)
    assert sizes["input_ids"] == [3, 1, 1, 1, 1, 1]
    sizes["input_features"].clear()
    rows = [{"audio": files[0], "text": "What" + "?" * index} for index in range(4)]
    listen(rows, **OPTIONS)
    list(listen(iter(rows), batch_size=2, **OPTIONS))
    assert sizes["input_features"] == [1, 1]


def test_return_full_text(listen, files) -> None:
    chat, begun = conversations(files)
    part = {"type": "text", "text": "It is"}
    typed = [*begun[:1], {"role": "assistant", "content": [part]}]
    for row, whole in (
        (chat, lambda text: [*chat, {"role": "assistant", "content": text}]),
        (begun, lambda text: [*begun[:-1], {"role": "assistant", "content": "It is" + text}]),
        (typed, lambda text: [*typed[:-1], {"role": "assistant", "content": [part, {"type": "text", "text": text}]}]),
        (files[0], lambda text: TRANSCRIBE_PROMPT + text),
        ({"audio": files[1], "text": "Who?"}, lambda text: "Who?" + text),
    ):
        [short] = listen(row, **OPTIONS)
        [full] = listen(row, return_full_text=True, **OPTIONS)
        assert full == {"generated_text": whole(short["generated_text"])}


def test_options(listen, told, files, tiny_model, tiny_processor) -> None:
    expected = told(ask(PROMPT, files[0]))
    assert stripped([listen(files[0], prompt=PROMPT, **OPTIONS)]) == [expected] != [told(ask("<audio>", files[0]))]
    always = pipeline(TASK, model=tiny_model, processor=tiny_processor, prompt=PROMPT, **OPTIONS)
    assert stripped([always(files[0])]) == [expected]
    assert stripped([always({"audio": files[0], "text": "Who?"})]) == [told(ask("Who?", files[0]))]
    [short] = listen(files[0], max_new_tokens=2, min_new_tokens=2)
    [begun] = listen(files[0], generate_kwargs={"max_new_tokens": 8, "min_new_tokens": 8})
    text = begun["generated_text"]
    assert text.startswith(short["generated_text"]) and len(short["generated_text"]) <= 2 < len(text) <= 8
    [two] = listen([files[0]], num_beams=3, num_return_sequences=2, **OPTIONS)
    assert len({one["generated_text"] for one in two}) == 2
    [stopped] = listen(files[0], stop_strings=[text[3]], max_new_tokens=8)
    assert stopped["generated_text"] == text[: text.index(text[3]) + 1]


@pytest.mark.parametrize(
    ("model_bound", "options", "expected"),
    [
        (None, {}, {"max_new_tokens": 256}),
        (5, {}, {}),  # left to the model's own settings
        (5, {"max_new_tokens": 7}, {"max_new_tokens": 7}),
        (None, {"max_length": 90}, {"max_length": 90}),
    ],
)
def test_how_long_an_answer_may_be(listen, tiny_model, monkeypatch, model_bound, options, expected) -> None:
    tiny_model.generation_config.max_new_tokens = model_bound
    asked: dict = {}
    generate, bounds = tiny_model.generate, ("max_new_tokens", "max_length")

    def briefly(**inputs):
        asked.update((name, inputs.pop(name)) for name in bounds if name in inputs)
        return generate(**inputs, max_new_tokens=2)

    monkeypatch.setattr(tiny_model, "generate", briefly)
    listen({"text": "Hi"}, **options)
    assert asked == expected


@pytest.mark.parametrize(
    ("bad", "kind", "message"),
    [
        ({"audio": "/no/such/file.wav", "text": "Who?"}, FileNotFoundError, "'/no/such/file.wav'"),
        ({"audio": np.zeros(100), "txt": "Who?"}, ValueError, r"a dict with \['audio', 'txt'\]; expected"),
        ({"audio": np.zeros(100), "text": 3}, ValueError, "text is 3"),
        (3, ValueError, "of type int; expected"),
    ],
)
def test_errors_name_the_row(listen, files, bad, kind, message: str) -> None:
    """Of a list every bad row is told of before anything is computed."""
    rows = [files[0], files[1], bad]
    with pytest.raises(kind, match=f"^Row 2: .*{message}"):
        list(listen(iter(rows), batch_size=2, max_new_tokens=1))
    with pytest.raises(kind, match=f"^(?!Row).*{message}"):
        listen(bad, max_new_tokens=1)
    listen.model.generate = lambda **inputs: pytest.fail("something was computed")
    with pytest.raises(kind, match=f"^Row 2: .*{message}"):
        listen(rows)


def test_wrong_calls_are_refused(listen, files) -> None:
    for rows, options, message in (
        ((files[0],), {"text": "Who?"}, "not both"),
        ((), {}, "Nothing was given"),
        ((files[0],), {"max_new_tokens": 2, "generate_kwargs": {"max_new_tokens": 2}}, "give each once"),
        ((files[0],), {"max_new_tokns": 2}, "max_new_tokns"),
    ):
        with pytest.raises(ValueError, match=message):
            listen(*rows, **options)


def test_a_checkpoint_answers_alike_whichever_way_it_is_asked(files, tiny_model, tiny_processor, tmp_path) -> None:
    chat = [{"role": "user", "content": [{"type": "text", "text": "What? "}, {"type": "audio", "path": files[0]}]}]
    for weights, model in (("adapter", tiny_model), ("merged", copy.deepcopy(tiny_model).merge_adapters())):
        checkpoint = str(tmp_path / weights)
        tiny_model.save_pretrained(checkpoint, weights=weights)
        tiny_processor.save_pretrained(checkpoint)
        [expected] = answer(model, tiny_processor, [chat], **OPTIONS)
        loaded, processor = (each.from_pretrained(checkpoint) for each in (AutoModelForMultimodalLM, AutoProcessor))
        said = answer(loaded, processor, [chat, chat], **OPTIONS)
        for task in (TASK, *("any-to-any",) * ANY_TO_ANY_RUNS):
            options = {"generate_kwargs": {**OPTIONS, "do_sample": False}, "return_full_text": False}
            found = pipeline(task, model=checkpoint, device="cpu")([chat, chat], **options)
            said += [one[0]["generated_text"].strip() for one in found]
        assert set(said) == {expected} and len(expected) > 3, weights
    # With the package, which has registered the pipeline, no code of the checkpoint is asked for or run.
    for trusted in ({"trust_remote_code": True}, {"trust_remote_code": False}, {"local_files_only": True}):
        listen = pipeline(TASK, model=checkpoint, device="cpu", **trusted)
        assert type(listen) is AudioLlmPipeline and type(listen.model) is type(tiny_model)
        assert listen({"text": "Hello"}, max_new_tokens=4)[0].keys() == {"generated_text"}

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


@pytest.fixture(scope="module")
def waveforms() -> list[np.ndarray]:
    return [noise(seconds, seed) for seed, seconds in enumerate((0.9, 0.3, 0.6, 0.45))]


@pytest.fixture(scope="module")
def files(waveforms, tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("recordings")
    for index, waveform in enumerate(waveforms):
        soundfile.write(folder / f"{index}.wav", waveform, RATE, subtype="FLOAT")
    return [str(folder / f"{index}.wav") for index in range(len(waveforms))]


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


# --------------------------------------------------------------------------------------------------------- kinds of rows


def test_a_recording_of_any_kind_is_transcribed(listen, told, waveforms, files) -> None:
    expected = told(ask(TRANSCRIBE_PROMPT, files[0]))
    kinds = [
        files[0],
        Path(files[0]),
        Path(files[0]).read_bytes(),
        waveforms[0],
        torch.from_numpy(waveforms[0]),
        {"array": waveforms[0], "sampling_rate": RATE},
        {"bytes": None, "path": files[0]},
        {"audio": [files[0]]},
    ]
    for row in kinds:
        assert stripped([listen(row, **OPTIONS)]) == [expected], type(row)
    assert stripped(listen(kinds, batch_size=4, **OPTIONS)) == [expected] * len(kinds)
    assert stripped([listen(audio=files[0], **OPTIONS)]) == [expected]


def rows_and_conversations(files) -> list[tuple]:
    """Rows of every kind, with the conversations they stand for."""
    chat = ask("Which is it? <audio>", files[3], system="Be brief.")
    begun = [*ask("<audio>", files[1]), {"role": "assistant", "content": "It is"}]
    return [
        (files[0], ask(TRANSCRIBE_PROMPT, files[0])),
        ({"audio": files[1], "text": "Who?"}, ask("Who?", files[1])),
        ({"audio": files[2], "text": "Who is <audio> then?"}, ask("Who is <audio> then?", files[2])),
        ({"audio": files[1:3], "text": "<audio> or <audio>?"}, ask("<audio> or <audio>?", *files[1:3])),
        ({"text": "Well?"}, ask("Well?")),
        (chat, chat),
        (begun, begun),
    ]


def test_questions_and_conversations(listen, told, files) -> None:
    rows, conversations = zip(*rows_and_conversations(files))
    rows, expected = list(rows), [told(conversation) for conversation in conversations]
    assert len({row[0]["generated_text"] for row in expected}) == len(rows)
    assert stripped([listen(row, **OPTIONS) for row in rows]) == expected
    assert stripped(listen(rows, batch_size=3, **OPTIONS)) == expected
    assert stripped(listen(iter(rows), batch_size=3, **OPTIONS)) == expected
    assert stripped(listen(iter(rows[5:]), batch_size=2, **OPTIONS)) == expected[5:], "a generator of conversations"
    assert stripped(listen(rows[5:], batch_size=2, **OPTIONS)) == expected[5:], "a list of conversations"
    assert stripped([listen(text="Who?", audio=files[1], **OPTIONS)]) == expected[1:2]
    assert listen([], **OPTIONS) == []


def test_datasets(listen, told, files) -> None:
    dataset = Dataset.from_dict({"audio": files}).cast_column("audio", Audio(decode=False))
    expected = [told(ask(TRANSCRIBE_PROMPT, file)) for file in files]
    answers = listen(KeyDataset(dataset, "audio"), batch_size=3, **OPTIONS)
    assert not isinstance(answers, list) and stripped(answers) == expected
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


# ------------------------------------------------------------------------------------------------------------- options


def test_return_full_text(listen, files) -> None:
    [chat, begun] = [row for row, _ in rows_and_conversations(files)[5:]]
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
        [full], [as_it_comes] = listen([row, row], return_full_text=True, **OPTIONS)
        assert full == as_it_comes == {"generated_text": whole(short["generated_text"])}


def test_a_prompt_of_ones_own(listen, told, files, tiny_model, tiny_processor) -> None:
    expected = told(ask("Which words? <audio>", files[0]))
    assert expected != told(ask(TRANSCRIBE_PROMPT, files[0]))
    assert stripped([listen(files[0], prompt="Which words? <audio>", **OPTIONS)]) == [expected]
    always = pipeline(TASK, model=tiny_model, processor=tiny_processor, prompt="Which words? <audio>", **OPTIONS)
    assert stripped([always(files[0])]) == [expected]
    assert stripped([always({"audio": files[0], "text": "Who?"})]) == [told(ask("Who?", files[0]))]


def test_generation_options(listen, files) -> None:
    [short] = listen(files[0], max_new_tokens=2, min_new_tokens=2)
    [begun] = listen(files[0], generate_kwargs={"max_new_tokens": 8, "min_new_tokens": 8})
    assert begun["generated_text"].startswith(short["generated_text"])
    assert len(short["generated_text"]) <= 2 < len(begun["generated_text"]) <= 8
    [two] = listen([files[0]], num_beams=3, num_return_sequences=2, **OPTIONS)
    assert len({text["generated_text"] for text in two}) == 2
    end = begun["generated_text"][3]
    [stopped] = listen(files[0], stop_strings=[end], max_new_tokens=8)
    assert stopped["generated_text"] == begun["generated_text"][: begun["generated_text"].index(end) + 1]
    with pytest.raises(ValueError, match=r"max_new_tokens.*give each once"):
        listen(files[0], max_new_tokens=2, generate_kwargs={"max_new_tokens": 2})
    with pytest.raises(ValueError, match="max_new_tokns"):
        listen(files[0], max_new_tokns=2)


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


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("bad", "kind", "message"),
    [
        ({"audio": "/no/such/file.wav", "text": "Who?"}, FileNotFoundError, "'/no/such/file.wav'"),
        ({"audio": np.zeros(100), "txt": "Who?"}, ValueError, r"a dict with \['audio', 'txt'\]; expected"),
        ({"audio": np.zeros(100), "text": 3}, ValueError, "text is 3"),
        ({"audio": np.zeros(100), "text": "<audio> <audio>"}, ValueError, "has 2 <audio> for 1 recordings"),
        (3, ValueError, "of type int; expected"),
    ],
)
def test_errors_name_the_row(listen, files, bad, kind, message: str) -> None:
    """Of a list every bad row is told of before anything is computed."""
    rows = [files[0], files[1], bad]
    for given in (rows, iter(rows)):
        with pytest.raises(kind, match=f"^Row 2: .*{message}"):
            list(listen(given, batch_size=2, max_new_tokens=1))
    with pytest.raises(kind, match=f"^(?!Row).*{message}"):
        listen(bad, max_new_tokens=1)
    listen.model.generate = lambda **inputs: pytest.fail("something was computed")
    with pytest.raises(kind, match="Row 2"):
        listen(rows)


def test_rows_and_keywords_exclude_each_other(listen, files) -> None:
    with pytest.raises(ValueError, match="not both"):
        listen(files[0], text="Who?")
    with pytest.raises(ValueError, match="Nothing was given"):
        listen()


# ----------------------------------------------------------------------------------------------------- of a checkpoint


@pytest.fixture
def saved(tiny_model, tiny_processor, tmp_path: Path) -> Path:
    """A folder with a routed and a merged checkpoint."""
    for weights in ("adapter", "merged"):
        tiny_model.save_pretrained(tmp_path / weights, weights=weights)
        tiny_processor.save_pretrained(tmp_path / weights)
    return tmp_path


def test_one_question_one_answer_whichever_way_it_is_asked(saved, files, tiny_model, tiny_processor) -> None:
    chat = [{"role": "user", "content": [{"type": "text", "text": "What? "}, {"type": "audio", "path": files[0]}]}]
    for weights, model in (("adapter", tiny_model), ("merged", copy.deepcopy(tiny_model).merge_adapters())):
        [expected] = answer(model, tiny_processor, [chat], **OPTIONS)
        checkpoint = str(saved / weights)
        loaded, processor = (each.from_pretrained(checkpoint) for each in (AutoModelForMultimodalLM, AutoProcessor))
        said = answer(loaded, processor, [chat, chat], **OPTIONS)
        for task in (TASK, *("any-to-any",) * ANY_TO_ANY_RUNS):
            options = {"generate_kwargs": {**OPTIONS, "do_sample": False}, "return_full_text": False}
            found = pipeline(task, model=checkpoint, device="cpu")([chat, chat], **options)
            said += [one[0]["generated_text"].strip() for one in found]
        assert set(said) == {expected} and len(expected) > 3, weights


def test_the_packages_pipeline_needs_no_trust(saved, tiny_model) -> None:
    # With the package, which has registered the pipeline, no code of the checkpoint is asked for or run.
    for trusted in ({"trust_remote_code": True}, {"trust_remote_code": False}, {"local_files_only": True}):
        listen = pipeline(TASK, model=str(saved / "adapter"), device="cpu", **trusted)
        assert type(listen) is AudioLlmPipeline and type(listen.model) is type(tiny_model)
        assert listen({"text": "Hello"}, max_new_tokens=4)[0].keys() == {"generated_text"}

"""Systems that answer beside the model: each is what it says it is, and what cannot answer says so before anything is computed."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from audiollm.corpora.hypotheses import WhisperDecoder
from audiollm.evaluation.arguments import EvaluateArguments
from audiollm.evaluation.evaluate import main
from audiollm.evaluation.generating import Generator, Reply, adapter_windows, in_halves
from audiollm.evaluation.run import choose_systems, index, wrong_recordings
from audiollm.evaluation.systems import (
    DEFAULT_SYSTEMS,
    SystemBuilder,
    base_text_model,
    holds_its_base,
    why_not,
)
from audiollm.evaluation.tasks import Item, Task, find_task, tables
from audiollm.inference.answering import answer, ask
from evaluation_runs import evaluate, rows_of
from small_corpus import example_rows, write_recordings, write_rows
from transformers import AutoModelForCausalLM

TOKENS = 6


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(int(seconds * 16_000))).astype(np.float32)


@pytest.fixture(scope="module")
def items() -> list[Item]:
    return [
        Item("one", "<audio>\nWhat is said?", [noise(0.4, 1)], ["x"], {}),
        Item("two", "Compare <audio> with <audio>.", [noise(0.3, 2), noise(0.5, 3)], ["x"], {}),
        Item("three", "<audio>", [noise(0.6, 4)], ["x"], {}),
    ]


def task_of(items: list[Item], kind: str = "chat", language: str = "en") -> Task:
    known = {"source": {}, "max_new_tokens": TOKENS, "group": None, "reader": lambda task, data: iter(items)}
    return Task("made", kind, ("word_error",), language, "english", **known)


@pytest.fixture
def builder(shared_tiny_model, tiny_processor, talking_whisper, tmp_path) -> SystemBuilder:
    return SystemBuilder(shared_tiny_model, tiny_processor, talking_whisper, None, tmp_path, 4)


def answers_of(builder: SystemBuilder, items: list[Item], name: str, kind: str = "chat") -> list[Reply]:
    system = builder.build(task_of(items, kind), name)
    asked = wrong_recordings(items) if name == "wrong_audio" else items
    return system(asked, [item.recordings for item in asked], [TOKENS] * len(items))


@pytest.fixture(scope="module")
def base_alone(tiny_bases):
    """The base language model, loaded by itself."""
    return AutoModelForCausalLM.from_pretrained(tiny_bases[1]).eval().requires_grad_(False)


def texts_of_base(model, processor, prompts: list[str]) -> list[str]:
    """Return what a language model by itself says to prompts, one by one."""
    said = []
    for prompt in prompts:
        inputs = processor.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        output = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
        new = output[0, inputs["input_ids"].shape[1] :]
        said.append(processor.tokenizer.decode(new, skip_special_tokens=True).strip())
    return said


def test_the_model_and_its_control(builder, items, shared_tiny_model, tiny_processor) -> None:
    def said(recordings: list[list[np.ndarray]]) -> list[str]:
        asked = [ask(item.prompt, *played) for item, played in zip(items, recordings)]
        return answer(shared_tiny_model, tiny_processor, asked, max_new_tokens=TOKENS)

    own = said([item.recordings for item in items])
    assert [one.text for one in answers_of(builder, items, "model")] == own
    clips = [clip for item in items for clip in item.recordings]
    wrong = said([[clips[2]], [clips[3], clips[0]], [clips[1]]])
    assert [one.text for one in answers_of(builder, items, "wrong_audio")] == wrong != own


def test_whisper_and_the_cascade_on_its_text(builder, items, base_alone, tiny_processor, talking_whisper) -> None:
    decoder = WhisperDecoder(talking_whisper)
    heard = [[decoder.hear([adapter_windows(tiny_processor, one)], 1)[0] for one in item.recordings] for item in items]
    assert all(text for texts in heard for text in texts)
    assert [one.text for one in answers_of(builder, items, "whisper", "asr")] == [" ".join(texts) for texts in heard]
    prompts = [f"{heard[0][0]}\nWhat is said?", f"Compare {heard[1][0]} with {heard[1][1]}.", heard[2][0]]
    expected = texts_of_base(base_alone, tiny_processor, [prompt.strip() for prompt in prompts])
    found = [(one.prompt, one.extra, one.text) for one in answers_of(builder, items, "cascade")]
    extras = [{"transcripts": texts} for texts in heard]
    assert found == list(zip([prompt.strip() for prompt in prompts], extras, expected))


@pytest.fixture
def trained(tiny_model, tiny_processor) -> SystemBuilder:
    """Systems of a model whose language model was trained too."""
    assert holds_its_base(tiny_model) and base_text_model(tiny_model) is tiny_model
    with torch.no_grad():
        tiny_model.model.language_model.layers[0].mlp.up_proj.base_layer.weight.mul_(3.0)
    return SystemBuilder(tiny_model, tiny_processor, None, None, Path(), 4)


def test_the_deaf_base_is_the_base_where_the_language_model_was_trained_too(
    builder, items, trained, tiny_processor, base_alone
) -> None:
    prompts = ["What is said?", "Compare  with .", ""]
    expected = list(zip(prompts, texts_of_base(base_alone, tiny_processor, prompts)))
    for each in (builder, trained):
        assert [(one.prompt, one.text) for one in answers_of(each, items, "deaf")] == expected
    assert not holds_its_base(trained.model)
    trained.model.config.text_model_id = None
    with pytest.raises(ValueError, match="does not say which language model"):
        base_text_model(trained.model)


def test_text_retention_tells_the_untouched_from_the_trained(builder, trained, base_alone, tiny_processor) -> None:
    texts = [Item(f"{n}", text, [], [], {}) for n, text in enumerate(("Good morning.", "One, two", "x"))]

    def measured(builder: SystemBuilder, name: str) -> list[dict]:
        return [one.extra for one in answers_of(builder, texts, name, "text_retention")]

    kept, base, moved = measured(builder, "model"), measured(builder, "deaf"), measured(trained, "model")
    for item, own, other, far in zip(texts, kept, base, moved):
        assert own["same_logits_as_base"] and own["largest_logit_difference"] == 0
        assert not far["same_logits_as_base"] and far["largest_logit_difference"] > 0
        assert (own["tokens"], own["negative_log_likelihood"]) == (other["tokens"], other["negative_log_likelihood"])
        ids = torch.tensor([tiny_processor.tokenizer(item.prompt)["input_ids"]])
        assert own["tokens"] == ids.shape[1] - 1
        if own["tokens"]:
            mean = float(base_alone(input_ids=ids, labels=ids).loss)
            assert own["negative_log_likelihood"] / own["tokens"] == pytest.approx(mean, rel=1e-4)
    assert moved[0]["negative_log_likelihood"] != kept[0]["negative_log_likelihood"]


@pytest.mark.parametrize(
    ("task", "system", "multilingual", "reason"),
    [
        ("fleurs:de_de", "model", False, None),
        ("fleurs:de_de", "whisper", False, "hears English only, and de is spoken"),
        ("fleurs:de_de", "whisper", True, None),
        ("covost2:de_en", "cascade", False, "hears English only, and de is spoken"),
        ("covost2:de_en", "whisper", True, None),
        ("covost2:en_zh-CN", "cascade", False, None),
        ("covost2:en_zh-CN", "whisper", True, "translates into English only, not into zh"),
        ("air_bench_chat", "whisper", True, "no answer to a question of the kind chat"),
        ("no_speech", "wrong_audio", False, "as good as another"),
    ],
)
def test_what_cannot_answer_says_why(task, system, multilingual, reason) -> None:
    found = why_not(find_task(task), system, "the-whisper", multilingual, True)
    assert found is None if reason is None else reason in found


def test_systems_are_chosen_by_kind_or_as_asked(items) -> None:
    assert set(DEFAULT_SYSTEMS) == set(tables()["kinds"])
    german = index(task_of(items, "asr", "de"), None, None, None)
    chosen = choose_systems(german, (), "w", False)
    assert chosen.systems == ("model", "wrong_audio") and chosen.left_out.keys() == {"whisper"}
    assert choose_systems(german, (), "w", True).systems == ("model", "wrong_audio", "whisper")
    assert choose_systems(german, ("deaf", "model"), "w", False).systems == ("deaf", "model")
    with pytest.raises(ValueError, match="--systems whisper cannot answer made: w hears English only"):
        choose_systems(german, ("model", "whisper"), "w", False)
    task = task_of(items)
    assert "give --whisper" in why_not(task, "cascade", None, False, True)
    assert "no recordings" in why_not(task, "wrong_audio", "w", True, False)


@pytest.fixture
def generator(tiny_model, tiny_processor) -> Generator:
    return Generator(tiny_model, tiny_processor)


def test_each_answer_ends_at_its_own_bound(generator) -> None:
    """And does not depend on its batch; a question longer than the context has none, and spares the others."""
    generator.model.generation_config.eos_token_id = None  # it would talk for ever
    clips = [[noise(0.3, 1)], [noise(0.5, 2)], [noise(0.7, 3)]]
    asked = [ask("<audio>", *clip) for clip in clips]
    together = generator.answer(asked, clips, [3, 9, 5])
    assert {one.finish for one in together} == {"length"}
    lengths = [len(generator.processor.tokenizer(one.text)["input_ids"]) for one in together]
    assert lengths[0] <= 3 < lengths[1] <= 9 and lengths[2] <= 5
    for conversation, clip, bound, found in zip(asked, clips, [3, 9, 5], together):
        assert generator.answer([conversation], [clip], [bound]) == [found]
    generator.model.generation_config.eos_token_id = list(range(128))  # whatever it says first
    assert generator.answer(asked[:1], clips[:1], [5])[0].finish == "stop"
    long, short = generator.answer([ask("x" * 2000), ask("x")], [[], []], [5, 5])
    assert long.finish == "error" and "the model holds 1024" in long.error and short.text is not None


def test_a_batch_too_large_for_the_memory_is_halved(capsys) -> None:
    sizes = []

    def run(rows: list[int]) -> list[int]:
        sizes.append(len(rows))
        if 3 in rows or len(rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.\nMore of it.")
        return [row * 10 for row in rows]

    given_up = "out of memory, even alone in its batch: CUDA out of memory."
    assert in_halves(run, list(range(5)), str) == [0, 10, 20, given_up, 40] and sizes[0] == 5
    assert "A batch of 5 is too large for the memory; going on with 3." in capsys.readouterr().err


def test_another_whisper_may_answer(tiny_checkpoint, tmp_path, talking_whisper) -> None:
    options = ["--tasks", "unseen", "--limit", "2", "--systems", "whisper,cascade", "--max_new_tokens", "3"]
    evaluate(tiny_checkpoint, tmp_path / "own", *options)
    evaluate(tiny_checkpoint, tmp_path / "run", *options, "--whisper", talking_whisper)
    for system in ("whisper", "cascade"):
        own, other = (rows_of(tmp_path / name, "unseen", system) for name in ("own", "run"))
        assert [row["output"] for row in own] != [row["output"] for row in other]
    cascade = rows_of(tmp_path / "run", "unseen", "cascade")
    heard = [row["output"] for row in rows_of(tmp_path / "run", "unseen", "whisper")]
    assert [row["extra"]["transcripts"] for row in cascade] == [[text] for text in heard]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--tasks unseeen --output_dir OUT", "no task 'unseeen'. Perhaps 'unseen'"),
        ("--tasks unseen", "--tasks needs --output_dir"),
        ("--tasks unseen --output_dir OUT --language de", "--language is for your own data"),
        ("--tasks ami slue_ted --output_dir OUT --data x", "expected TASK=COPY for each"),
        ("--tasks unseen --output_dir OUT --systems magic", "there is no 'magic'"),
        ("--tasks unseen --output_dir OUT --judge_url ftp://x", "no http"),
        ("--tasks unseen --output_dir OUT --judge_url https://me:secret@host/v1", "no password"),
        ("--tasks unseen --output_dir OUT --batch_size 0", "--batch_size is 0"),
        ("--tasks unseen --output_dir OUT --limit 1", "needs two different ones"),
        ("--output_dir OUT", "give --tasks"),
        ("--data_path a b", "your own data as one --data_path"),
        ("--data_path a --language gernan", "--language is 'gernan'"),
        ("--data_path /no/data.json", "/no/data.json"),
        ("--data_path DATA --audio_dir /no/folder", "'/no/folder' is not a folder"),
        ("--tasks unseen --output_dir OUT --model BASE", "says model_type 'llama'"),
        ("--tasks unseen --output_dir OUT --model /", "is no AudioLLM checkpoint"),
    ],
)
def test_what_makes_no_sense_is_refused_before_the_model_is_loaded(
    options, message, tiny_bases, tmp_path, capsys
) -> None:
    data = write_rows(tmp_path / "data.json", example_rows(write_recordings(tmp_path, 2))[:2])
    with pytest.raises(SystemExit) as caught:
        given = options.replace("OUT", str(tmp_path / "run")).replace("DATA", data).replace("BASE", tiny_bases[1])
        main(["--model", "/no/model", *given.split()])
    said = " ".join(f"{caught.value.code} {capsys.readouterr().err}".split())
    assert caught.value.code != 0 and message in said and not (tmp_path / "run").exists()


def test_copies_are_given_to_their_tasks() -> None:
    def copies(data: str, names: str) -> dict[str, str]:
        return EvaluateArguments(model="m", tasks=[names], data_path=data.split(), output_dir=Path("x")).copies(
            names.split()
        )

    assert copies("copy", "ami") == copies("ami=copy", "ami") == {"ami": "copy"} and copies("", "ami slue_ted") == {}
    assert copies("slue_ted=x=y fleurs:de_de=z", "fleurs:de_de slue_ted") == {"slue_ted": "x=y", "fleurs:de_de": "z"}


def test_a_revision_is_the_one_that_is_loaded(tiny_checkpoint, tiny_model, tmp_path, monkeypatch) -> None:
    """Of a folder there is none, so that the Hub's cache has two."""
    repository = tmp_path / "hub" / "models--you--m"
    (repository / "refs").mkdir(parents=True)
    tiny_model.model.audio_boundary_embeds.data.mul_(2)
    for revision, commit in (("main", "0" * 40), ("first", "1" * 40)):
        shutil.copytree(tiny_checkpoint, repository / "snapshots" / commit)
        (repository / "refs" / revision).write_text(commit)
    tiny_model.save_pretrained(repository / "snapshots" / commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    options = ["--tasks", "unseen", "--limit", "2", "--systems", "model", "--max_new_tokens", "4"]
    records = []
    for revision in ("main", "first"):
        evaluate(Path("you/m"), tmp_path / revision, *options, "--revision", revision)
        records.append(json.loads((tmp_path / revision / "run.json").read_text()))
    assert records[0]["settings"]["weights"] != records[1]["settings"]["weights"]
    assert [record["revision"] for record in records] == ["main", "first"]

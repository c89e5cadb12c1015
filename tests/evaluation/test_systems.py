"""Systems that answer beside the model: each is what it says it is, and what cannot answer says so before anything is computed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from audiollm import AudioLlmForConditionalGeneration
from audiollm.corpora.hypotheses import WhisperDecoder
from audiollm.evaluation.arguments import EvaluateArguments
from audiollm.evaluation.evaluate import main
from audiollm.evaluation.generating import Generator, Reply, adapter_windows, in_halves
from audiollm.evaluation.run import SystemsError, choose_systems, index, wrong_recordings
from audiollm.evaluation.systems import (
    DEFAULT_SYSTEMS,
    SystemBuilder,
    base_text_model,
    holds_its_base,
    why_not,
)
from audiollm.evaluation.tasks import Item, Task, find_task, tables
from audiollm.inference.answering import answer, ask
from audiollm.publishing.score_table import SYSTEMS as SYSTEM_TITLES
from clients import play
from evaluation_runs import evaluate, rows_of
from loopback_hub import LoopbackHub
from small_corpus import example_rows, write_recordings, write_rows
from transformers import AutoModelForCausalLM

TOKENS = 6
#: Two checkpoints in one repository: one on the branch `first`, and one after it.
PUSH = """
import sys
from huggingface_hub import HfApi
from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor
model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(*sys.argv[1:], lora_rank=4)
processor = AudioLlmProcessor.from_audio_text_pretrained(*sys.argv[1:])
api = HfApi()
api.create_repo("you/m")
api.create_branch("you/m", branch="first")
for revision in ("first", "main"):
    model.push_to_hub("you/m", revision=revision)
    processor.push_to_hub("you/m", revision=revision)
    model.model.audio_boundary_embeds.data.mul_(2)
"""


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
    known = {"source": {}, "max_new_tokens": TOKENS, "group": None, "reader": lambda task, data, limit: iter(items)}
    return Task("made", kind, ("word_error",), language, "english", **known)


@pytest.fixture
def builder(shared_model, tiny_processor, talking_whisper, tmp_path) -> SystemBuilder:
    return SystemBuilder(shared_model, tiny_processor, talking_whisper, None, tmp_path, 4)


def answers_of(builder: SystemBuilder, items: list[Item], name: str, kind: str = "chat") -> list[Reply]:
    system = builder.build(task_of(items, kind), name)
    asked = wrong_recordings(items) if name == "wrong_audio" else items
    return system.answer(asked, [item.recordings for item in asked], [TOKENS] * len(items))


@pytest.fixture(scope="module")
def base_alone(tiny_bases):
    """The base language model, loaded by itself."""
    return AutoModelForCausalLM.from_pretrained(tiny_bases[1]).eval().requires_grad_(False)


def texts_of_base(model, processor, prompts: list[str]) -> list[str]:
    """Return what a language model by itself says to prompts, one by one."""
    said = []
    for prompt in prompts:
        message = [{"role": "user", "content": prompt}]
        text = processor.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        ids = torch.tensor([processor.tokenizer(text, add_special_tokens=False)["input_ids"]])
        output = model.generate(ids, max_new_tokens=TOKENS, do_sample=False)
        said.append(processor.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True).strip())
    return said


def test_the_model_and_its_control(builder, items, shared_model, tiny_processor) -> None:
    def said(recordings: list[list[np.ndarray]]) -> list[str]:
        asked = [ask(item.prompt, *played) for item, played in zip(items, recordings)]
        return answer(shared_model, tiny_processor, asked, max_new_tokens=TOKENS)

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
    prompts = [prompt.strip() for prompt in prompts]
    found = answers_of(builder, items, "cascade")
    assert [one.prompt for one in found] == prompts
    assert [one.extra for one in found] == [{"transcripts": texts} for texts in heard]
    assert [one.text for one in found] == texts_of_base(base_alone, tiny_processor, prompts)


def changed(model: AudioLlmForConditionalGeneration) -> AudioLlmForConditionalGeneration:
    """As after training the language model too."""
    with torch.no_grad():
        model.model.language_model.layers[0].mlp.up_proj.base_layer.weight.mul_(3.0)
    return model


def test_the_deaf_base_is_the_base_where_the_language_model_was_trained_too(
    builder, items, tiny_model, tiny_processor, base_alone
) -> None:
    prompts = ["What is said?", "Compare  with .", ""]
    expected = texts_of_base(base_alone, tiny_processor, prompts)
    found = answers_of(builder, items, "deaf")
    assert ([one.prompt for one in found], [one.text for one in found]) == (prompts, expected)
    assert holds_its_base(tiny_model) and base_text_model(tiny_model) is tiny_model
    assert not holds_its_base(changed(tiny_model))
    trained = SystemBuilder(tiny_model, tiny_processor, None, None, Path(), 4)
    assert [one.text for one in answers_of(trained, items, "deaf")] == expected
    tiny_model.config.text_model_id = None
    with pytest.raises(ValueError, match="does not say which language model"):
        base_text_model(tiny_model)


def test_text_retention_tells_the_untouched_from_the_trained(builder, tiny_model, base_alone, tiny_processor) -> None:
    texts = [Item(f"{n}", text, [], [], {}) for n, text in enumerate(("Good morning.", "One, two", "x"))]
    kept, base = (
        [one.extra for one in answers_of(builder, texts, name, "text_retention")] for name in ("model", "deaf")
    )
    assert all(one["same_logits_as_base"] and one["largest_logit_difference"] == 0 for one in kept)
    for item, own, other in zip(texts, kept, base):
        assert (own["tokens"], own["negative_log_likelihood"]) == (other["tokens"], other["negative_log_likelihood"])
        ids = torch.tensor([tiny_processor.tokenizer(item.prompt)["input_ids"]])
        assert own["tokens"] == ids.shape[1] - 1
        if own["tokens"]:
            mean = float(base_alone(input_ids=ids, labels=ids).loss)
            assert own["negative_log_likelihood"] / own["tokens"] == pytest.approx(mean, rel=1e-4)
    trained = SystemBuilder(changed(tiny_model), tiny_processor, None, None, Path(), 4)
    moved = [one.extra for one in answers_of(trained, texts, "model", "text_retention")]
    assert not any(one["same_logits_as_base"] for one in moved)
    assert all(one["largest_logit_difference"] > 0 for one in moved)
    assert moved[0]["negative_log_likelihood"] != kept[0]["negative_log_likelihood"]


# ------------------------------------------------------------------------------------------------------ what cannot be


@pytest.mark.parametrize(
    ("task", "system", "multilingual", "reason"),
    [
        ("prompts", "whisper", False, None),
        ("fleurs:de_de", "model", False, None),
        ("fleurs:de_de", "whisper", False, "hears English only, and de is spoken"),
        ("fleurs:de_de", "whisper", True, None),
        ("covost2:de_en", "whisper", False, "hears English only"),
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
    assert (found is None) == (reason is None)
    assert reason is None or reason in found


def test_systems_are_chosen_by_kind_or_as_asked(items) -> None:
    assert set(DEFAULT_SYSTEMS) == set(tables()["kinds"])
    assert {name for names in DEFAULT_SYSTEMS.values() for name in names} == set(SYSTEM_TITLES)
    german = index(task_of(items, "asr", "de"), None, None, None)
    chosen = choose_systems(german, (), "w", False)
    assert chosen.systems == ("model", "wrong_audio") and dict(chosen.left_out).keys() == {"whisper"}
    assert choose_systems(german, (), "w", True).systems == ("model", "wrong_audio", "whisper")
    assert choose_systems(german, ("deaf", "model"), "w", False).systems == ("deaf", "model")
    with pytest.raises(SystemsError, match="--systems whisper cannot answer made: w hears English only"):
        choose_systems(german, ("model", "whisper"), "w", False)
    task = task_of(items)
    assert "give --whisper" in why_not(task, "cascade", None, False, True)
    assert all("no recordings" in why_not(task, system, "w", True, False) for system in ("wrong_audio", "cascade"))
    assert why_not(task, "deaf", None, False, False) is None


# ----------------------------------------------------------------------------------------------------------- one batch


@pytest.fixture
def generator(tiny_model, tiny_processor) -> Generator:
    return Generator(tiny_model, tiny_processor)


def test_each_answer_ends_at_its_own_bound(generator) -> None:
    """And is the beginning of what it would have been: nothing that is in the batch with it matters."""
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


def test_a_question_longer_than_the_context_is_no_answer_and_spares_the_others(generator) -> None:
    long, short = generator.answer([ask("x" * 2000), ask("x")], [[], []], [5, 5])
    assert long.finish == "error" and "holds 1024" in long.error
    assert short.text is not None


def test_a_batch_too_large_for_the_memory_is_halved(generator, capsys) -> None:
    def full(module, args, kwargs):
        sizes.append(kwargs["inputs_embeds"].shape[0])
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    clips = [[noise(0.3 + 0.1 * n, n)] for n in range(3)]
    asked = [ask("<audio>", *clip) for clip in clips]
    expected, sizes = generator.answer(asked, clips, [TOKENS] * 3), []
    generator.model.model.language_model.register_forward_pre_hook(full, with_kwargs=True)
    assert generator.answer(asked, clips, [TOKENS] * 3) == expected and sizes[0] == 3
    assert "A batch of 3 is too large for the memory; going on with 2." in capsys.readouterr().err


def test_what_does_not_fit_alone_is_given_up() -> None:
    def run(rows):
        if 3 in rows:
            raise torch.OutOfMemoryError("CUDA out of memory.\nMore of it.")
        return [row * 10 for row in rows]

    expected = [0, 10, 20, "out of memory, even alone in its batch: CUDA out of memory.", 40]
    assert in_halves(run, list(range(5)), str) == expected


# ------------------------------------------------------------------------------------------------------ of the command


def test_another_whisper_may_answer(checkpoint, tmp_path, talking_whisper) -> None:
    options = ["--tasks", "unseen", "--limit", "2", "--systems", "whisper,cascade", "--max_new_tokens", "3"]
    evaluate(checkpoint, tmp_path / "own", *options)
    evaluate(checkpoint, tmp_path / "run", *options, "--whisper", talking_whisper)
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
        ("--tasks unseen --output_dir OUT --audio_dir x", "--audio_dir is for your own data"),
        ("--tasks unseen --output_dir OUT --language de", "--language is for your own data"),
        ("--tasks unseen --output_dir OUT --normaliser basic", "--normaliser is for your own data"),
        ("--tasks ami slue_ted --output_dir OUT --data x", "expected TASK=COPY for each"),
        ("--tasks unseen --output_dir OUT --systems magic", "there is no 'magic'"),
        ("--tasks unseen --output_dir OUT --batch_size 0", "--batch_size is 0"),
        ("--tasks unseen --output_dir OUT --limit 1", "needs two different ones"),
        ("--output_dir OUT", "give --tasks"),
        ("--data_path a b", "your own data as one --data_path"),
        ("--data_path a --language gernan", "--language is 'gernan'"),
        ("--data_path DATA --limit 1", "gives 1 clips of one recording"),
        ("--data_path /no/data.json", "/no/data.json"),
        ("--data_path DATA --audio_dir /no/folder", "'/no/folder' is not a folder"),
        ("--data_path DATA --dtype int3", "invalid choice: 'int3'"),
    ],
)
def test_what_makes_no_sense_is_refused_before_the_model_is_loaded(options, message, tmp_path, capsys) -> None:
    names = write_recordings(tmp_path, 2)
    data = write_rows(tmp_path / "data.json", example_rows(names)[:2])
    with pytest.raises(SystemExit) as caught:
        main(["--model", "/no/model", *options.replace("OUT", str(tmp_path / "run")).replace("DATA", data).split()])
    said = " ".join(f"{caught.value.code} {capsys.readouterr().err}".split())
    assert caught.value.code != 0 and message in said and not (tmp_path / "run").exists()


def test_a_folder_that_is_no_checkpoint_is_named(tiny_bases, tmp_path) -> None:
    for model, message in ((tiny_bases[1], "of the type 'llama'"), (tmp_path, "cannot be read as a checkpoint")):
        with pytest.raises(SystemExit, match=message):
            evaluate(model, tmp_path / "run", "--tasks", "unseen")


@pytest.mark.parametrize(
    ("data", "names", "found"),
    [
        ([], ["ami", "slue_ted"], {}),
        (["copy"], ["ami"], {"ami": "copy"}),
        (["ami=copy"], ["ami"], {"ami": "copy"}),
        (["slue_ted=x=y", "fleurs:de_de=z"], ["fleurs:de_de", "slue_ted"], {"slue_ted": "x=y", "fleurs:de_de": "z"}),
    ],
)
def test_copies_are_given_to_their_tasks(data, names, found) -> None:
    options = EvaluateArguments(model="m", tasks=names, data_path=data, output_dir=Path("x"))
    assert options.copies(names) == found


@pytest.mark.slow
def test_a_revision_is_the_one_that_is_loaded(tiny_bases, tmp_path) -> None:
    """Of a folder there is none, so that a Hub on this machine has to have it."""
    command = "import sys; from audiollm.evaluation.evaluate import main; main(sys.argv[1:])"
    options = ["--tasks", "unseen", "--limit", "2", "--systems", "model", "--max_new_tokens", "4", "--model", "you/m"]
    with LoopbackHub("you") as hub:
        known = {"cwd": tmp_path, **hub.environment(tmp_path / "home")}
        play(PUSH, *tiny_bases, **known)
        for revision in ("main", "first"):
            play(command, *options, "--revision", revision, "--output_dir", tmp_path / revision, **known)
    first, last = (json.loads((tmp_path / name / "run.json").read_text()) for name in ("first", "main"))
    assert first["settings"]["weights"] != last["settings"]["weights"]
    assert (first["revision"], last["revision"]) == ("first", "main")

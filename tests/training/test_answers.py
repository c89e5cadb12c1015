"""Distillation and preferences: what is read, the losses, what they change, and that a run is the same however cut."""

import json
from pathlib import Path

import pytest
import torch
from audiollm import AudioLlmForConditionalGeneration
from audiollm.corpora.examples import ExamplesError
from audiollm.training import distill, prefer
from audiollm.training.arguments import AudioLlmTrainingArguments, TrainingError
from audiollm.training.distill import (
    TEACHER_ANSWERS_FILE,
    DistillArguments,
    DistillCollator,
    build_distill_dataset,
    distillation_loss,
    read_distill_examples,
    write_teacher_answers,
)
from audiollm.training.prefer import (
    PreferArguments,
    PreferenceCollator,
    answer_log_probabilities,
    build_preference_dataset,
    read_preference_examples,
)
from audiollm.training.preparing import Prepared
from audiollm.training.trainer import answer_logits
from runs import differing, logged
from small_corpus import assert_rows_refused
from tiny_models import randomise_trainables

SAID = ("one", "two three", "four", "five six")
CHOSEN = ("yes", "no more", "it is", "so be it")
REJECTED = ("never", "ok", "not at all", "x")


def spoken_rows(corpus) -> list[dict]:
    """Rows of distillation, one a recording."""
    return [
        {"text": "<audio> Again: ", "audio_paths": path, "transcripts": said, "response": f"{said}."}
        for path, said in zip(corpus.paths, SAID)
    ]


def pairs(corpus) -> list[dict]:
    """Rows of preferences, one a recording."""
    return [
        {"text": "<audio>?", "audio_paths": path, "chosen": chosen, "rejected": rejected}
        for path, chosen, rejected in zip(corpus.paths, CHOSEN, REJECTED)
    ]


def without(name: str, of: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key != name} for row in of]


def arguments(output_dir: Path, **options) -> AudioLlmTrainingArguments:
    defaults = {"batch_size": 2, "max_steps": 2, "logging_steps": 1, "disable_tqdm": True, "learning_rate": 0.01}
    return AudioLlmTrainingArguments(output_dir=str(output_dir), **{**defaults, **options})


@pytest.fixture
def build(tiny_model, tiny_processor, corpus, cache, tmp_path):
    """Makes the trainer of a stage: `own` are its own options, `options` the Trainer's."""

    def make(stage, own=(), held_out=False, model=tiny_model, examples=None, **options):
        if stage is distill:
            read, rows, kind = read_distill_examples, spoken_rows(corpus), DistillArguments
        else:
            read, rows, kind = read_preference_examples, pairs(corpus), PreferArguments
        examples = examples or read(rows)
        prepared = Prepared(model, tiny_processor, cache, arguments(tmp_path, **options))
        return stage.build(prepared, examples, examples if held_out else None, kind(**dict(own)))

    return make


@pytest.fixture
def spoken(tiny_processor, corpus, cache) -> dict[str, torch.Tensor]:
    """A batch of distillation."""
    dataset = build_distill_dataset(read_distill_examples(spoken_rows(corpus)), tiny_processor, cache, progress=False)
    return DistillCollator(tiny_processor, cache)(list(dataset))


@pytest.fixture
def preferred(tiny_processor, corpus, cache) -> dict[str, torch.Tensor]:
    """A batch of preferences."""
    dataset = build_preference_dataset(read_preference_examples(pairs(corpus)), tiny_processor, cache, progress=False)
    return PreferenceCollator(tiny_processor, cache)(list(dataset))


# ------------------------------------------------------------------------------------------------------------------ rows


def test_the_teacher_reads_the_transcript_in_place_of_the_audio(corpus) -> None:
    row = {"text": "<audio> or <audio>?", "audio_paths": corpus.paths[:2], "transcripts": ["this", "that"]}
    (example,) = read_distill_examples([row])
    assert example.teacher_text == "this or that?"
    assert not example.response


def test_a_response_is_taken_for_a_transcript_only_when_asked(corpus) -> None:
    transcriptions = without("transcripts", spoken_rows(corpus))
    with pytest.raises(ExamplesError, match="row 3: has no 'transcripts'"):
        read_distill_examples(transcriptions)
    examples = read_distill_examples(transcriptions, response_is_transcript=True)
    assert [example.transcripts for example in examples] == [(f"{said}.",) for said in SAID]


@pytest.mark.parametrize(
    ("stage", "fields", "reason"),
    [
        (distill, {"transcripts": ["a", "b"]}, "has 2 transcripts for 1 recordings"),
        (distill, {"transcripts": "an <audio>"}, "transcript 0 holds <audio>"),
        (distill, {"response": ""}, "'response' is empty"),
        (distill, {"text": "no audio", "audio_paths": None}, "has no audio"),
        (distill, {"answer": "x"}, "unknown field 'answer'"),
        (prefer, {"chosen": " the same", "rejected": "the same "}, "are the same"),
        (prefer, {"rejected": None}, "field 'rejected' is missing"),
    ],
)
def test_bad_rows_are_all_named(corpus, stage, fields: dict, reason: str) -> None:
    read = read_distill_examples if stage is distill else read_preference_examples
    good, *bad = (spoken_rows(corpus) if stage is distill else pairs(corpus))[:3]
    assert_rows_refused(read, [good, *({**row, **fields} for row in bad)], {"row 1", "row 2"}, reason)


def test_rows_are_read_from_files(corpus, tmp_path) -> None:
    expected = read_distill_examples(spoken_rows(corpus))
    (tmp_path / "rows.json").write_text(json.dumps(spoken_rows(corpus)))
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, spoken_rows(corpus))))
    assert read_distill_examples(tmp_path / "rows.json") == read_distill_examples(tmp_path / "rows.jsonl") == expected
    relative = [{**row, "audio_paths": Path(row["audio_paths"]).name} for row in spoken_rows(corpus)]
    assert read_distill_examples(relative, corpus.audio_dir) == expected
    (tmp_path / "empty.json").write_text("[]")
    with pytest.raises(ExamplesError, match="holds no rows"):
        read_distill_examples(tmp_path / "empty.json")


def test_a_batch_has_chosen_rows_before_rejected_ones(tiny_processor, preferred) -> None:
    answers = [tiny_processor.tokenizer.decode(labels[labels != -100]) for labels in preferred["labels"]]
    assert answers == [f"{answer}<|im_end|>" for answer in (*CHOSEN, *REJECTED)]
    first, second = preferred["encoded_audio"].chunk(2)
    assert torch.equal(first, second)


# ------------------------------------------------------------------------------------------------------------------ loss


@torch.no_grad()
def test_logits_and_log_probabilities_are_those_of_the_whole_answers(
    tiny_model, tiny_processor, spoken, preferred
) -> None:
    student = {name: value for name, value in spoken.items() if not name.startswith("teacher_")}
    tiny_model.eval()
    found = answer_logits(tiny_model, student)
    is_answer = student["labels"][:, 1:] != -100
    assert torch.allclose(found.logits, tiny_model(**student).logits[:, :-1][is_answer], atol=1e-5)
    assert torch.equal(found.targets, student["labels"][:, 1:][is_answer])
    answers = [tiny_processor.tokenizer.decode(part) for part in found.targets.split(found.counts)]
    assert answers == [f"{said}.<|im_end|>" for said in SAID]  # the end of the turn counts
    sums = answer_log_probabilities(tiny_model, preferred)
    per_token = tiny_model(**preferred).logits[:, :-1].log_softmax(-1)
    for row, labels in enumerate(preferred["labels"][:, 1:]):
        said = labels != -100
        expected = per_token[row, said].gather(1, labels[said][:, None]).sum()
        assert sums[row].item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_loss_is_the_divergence_from_the_teacher(temperature: float) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 5, 7)
    assert distillation_loss(student, student.clone(), temperature) == 0
    p, q = (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
    expected = temperature**2 * (p * (p / q).log()).sum()
    assert distillation_loss(student, teacher, temperature).item() == pytest.approx(expected.item(), rel=1e-5)


def test_same_inputs_give_exactly_nothing_to_learn_and_gradients_reach_what_trains(tiny_model, build, spoken) -> None:
    """A student that reads what the teacher reads, in training mode, differs from it in no bit."""
    run = build(distill)
    teacher = {name: value for name, value in spoken.items() if name.startswith("teacher_")}
    same = {**teacher, **{name.removeprefix("teacher_"): value for name, value in teacher.items()}}
    tiny_model.train()
    assert run.compute_loss(tiny_model, same) == 0
    loss = run.compute_loss(tiny_model, spoken)
    assert loss > 0
    loss.backward()
    with_gradient = {name for name, parameter in tiny_model.named_parameters() if parameter.grad is not None}
    assert with_gradient == set(tiny_model.trainable_names())
    assert all(tiny_model.get_parameter(name).grad.any() for name in with_gradient)


def test_mixture_and_temperature(tiny_model, build, spoken) -> None:
    plain = {name: value for name, value in spoken.items() if not name.startswith("teacher_")}

    def loss(**own) -> float:
        run = build(distill, own)
        tiny_model.eval()
        return run.compute_loss(tiny_model, dict(spoken)).item()

    cross_entropy, only_distillation = loss(distill_weight=0.0), loss(distill_weight=1.0)
    with torch.no_grad():
        assert cross_entropy == pytest.approx(tiny_model(**plain).loss.item(), rel=1e-5)
    assert loss(distill_weight=0.25) == pytest.approx(0.25 * only_distillation + 0.75 * cross_entropy, rel=1e-5)
    assert loss(temperature=4.0) != pytest.approx(only_distillation, rel=1e-3)


# ---------------------------------------------------------------------------------------------------------------- a run


def test_distillation_learns_and_evaluates(build) -> None:
    steps = {"max_steps": 20, "learning_rate": 3e-3, "save_strategy": "no"}
    run = build(distill, {"temperature": 1.0}, held_out=True, **steps, eval_strategy="steps", eval_steps=20)
    run.train()
    losses = logged(run, "distillation")
    assert len(losses) == len(logged(run, "cross_entropy")) == 20
    assert logged(run, "loss")[0] == pytest.approx(losses[0], rel=1e-3)  # weight 1, temperature 1
    assert losses[-1] < 0.6 * losses[0]
    assert logged(run, "eval_loss") == pytest.approx(
        logged(run, "eval_distillation"), rel=0.2
    )  # of batches, of tokens
    assert logged(run, "eval_cross_entropy")[0] > 0


def test_chosen_beats_rejected_and_lora_alone_changes(tiny_model, build, preferred, tmp_path) -> None:
    before = {name: p.detach().clone() for name, p in tiny_model.named_parameters()}
    steps = {"max_steps": 15, "batch_size": 4, "learning_rate": 3e-3, "save_steps": 15, "eval_steps": 15}
    run = build(prefer, held_out=True, **steps, eval_strategy="steps")
    run.train()
    margins, losses = logged(run, "rewards/margins"), logged(run, "loss")
    # At the start, policy and reference are the same.
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins"):
        assert logged(run, name)[0] == pytest.approx(0, abs=1e-5)
    assert losses[0] == pytest.approx(0.6931, abs=1e-4) and losses[-1] < losses[0]
    assert margins[-1] > 0.01 and logged(run, "rewards/accuracies")[-1] == 1
    assert margins[-1] == pytest.approx(
        logged(run, "rewards/chosen")[-1] - logged(run, "rewards/rejected")[-1], abs=1e-4
    )
    apart = [chosen - rejected for chosen, rejected in zip(logged(run, "logps/chosen"), logged(run, "logps/rejected"))]
    assert apart[-1] > apart[0]
    assert logged(run, "eval_rewards/margins")[0] > 0 and logged(run, "eval_rewards/accuracies") == [1]
    assert logged(run, "eval_loss")[0] < 0.69
    changed = differing(tiny_model, before)
    assert changed and all(".lora_" in name for name in changed)

    run.save_model()
    with torch.no_grad():
        expected = tiny_model.eval()(**preferred).logits
        for folder in (tmp_path, tmp_path / "checkpoint-15"):
            loaded = AudioLlmForConditionalGeneration.from_pretrained(folder)
            assert list(loaded.config.lora_adapters) == ["speech"]
            assert torch.equal(loaded.eval()(**preferred).logits, expected)


def test_beta_changes_the_run(tiny_model, build) -> None:
    start = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    losses = []
    for own in ({}, {"beta": 1.0}):
        tiny_model.load_state_dict(start)
        run = build(prefer, own, max_steps=4, batch_size=4, save_strategy="no")
        run.train()
        losses.append(logged(run, "loss")[-1])
    assert losses[1] < losses[0]


def test_preferences_need_lora_and_turn_its_dropout_off(tiny_bases, build, tmp_path) -> None:
    shapes = {"lora_rank": 4, "lora_dropout": 0.5}, {"lora_rank": 0}
    model, bare = (AudioLlmForConditionalGeneration.from_audio_text_pretrained(*tiny_bases, **each) for each in shapes)
    run = build(prefer, model=randomise_trainables(model), max_steps=1, batch_size=4)
    run.train()
    assert logged(run, "rewards/chosen")[0] == pytest.approx(0, abs=1e-5)
    run.save_model()
    assert AudioLlmForConditionalGeneration.from_pretrained(tmp_path).config.lora_dropout == 0.5
    with pytest.raises(ValueError, match="has no LoRA"):
        build(prefer, model=bare)


@pytest.mark.parametrize(("stage", "batch_size", "steps"), [(distill, 1, 4), (prefer, 3, 2)])
def test_accumulated_batches_give_the_loss_of_a_large_one(
    tiny_model, build, stage, batch_size: int, steps: int
) -> None:
    start = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    results = []
    for options in ({"batch_size": 4}, {"batch_size": batch_size, "gradient_accumulation_steps": steps}):
        tiny_model.load_state_dict(start)
        run = build(stage, **options, optim="sgd", max_steps=1, max_grad_norm=0.0, save_strategy="no")
        run.train()
        trained = torch.cat([p.detach().flatten() for p in tiny_model.parameters() if p.requires_grad])
        results.append((logged(run, "loss")[0], trained))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-4)
    assert torch.allclose(results[0][1], results[1][1], atol=1e-6)


# ------------------------------------------------------------------------------------------------ the teacher's answers


@pytest.fixture
def talkative(tiny_model):
    """A tiny model that ends its turn at times: random weights hardly ever say the one end token."""
    tiny_model.generation_config.eos_token_id = list(range(5, 45))
    return tiny_model


def test_the_teacher_writes_missing_responses_once(talkative, tiny_processor, corpus, tmp_path) -> None:
    given = read_distill_examples(spoken_rows(corpus))[0]
    missing = read_distill_examples(without("response", spoken_rows(corpus)))[1:]
    file = tmp_path / "answers.jsonl"
    first = write_teacher_answers(talkative, tiny_processor, [given, *missing], file, 64, batch_size=2, progress=False)
    assert first[0] == given
    # Each is the base's own.
    messages = [{"role": "user", "content": missing[0].teacher_text}]
    inputs = tiny_processor.apply_chat_template(messages, tokenize=True, add_generation_prompt=True)
    said = talkative.generate(**inputs, adapter_names=[None], do_sample=False, max_new_tokens=64)
    text = tiny_processor.batch_decode(said[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
    assert first[1].response == text.strip()
    written = file.read_text()
    # Cut off in the middle of the last line, it is made whole again in the same way.
    file.write_text(written[: len(written) - 20])
    again = write_teacher_answers(talkative, tiny_processor, [given, *missing], file, 64, batch_size=2, progress=False)
    assert again == first
    lines = [json.loads(line) for line in written.split("\n") if line]
    # What is on disk is not asked for again.
    marked = [json.dumps({**line, "response": f"kept {index}"}) for index, line in enumerate(lines)]
    file.write_text("".join(f"{line}\n" for line in marked))
    kept = write_teacher_answers(talkative, tiny_processor, missing, file, 64, batch_size=2, progress=False)
    assert sorted(example.response for example in kept) == [f"kept {index}" for index in range(len(lines))]


def test_answers_that_do_not_end_are_left_out_aloud(tiny_model, build, corpus, tmp_path, capsys) -> None:
    tiny_model.generation_config.eos_token_id = [127]
    rows = spoken_rows(corpus)
    examples = read_distill_examples([rows[0], *without("response", rows)[1:]])
    run = build(distill, {"max_answer_tokens": 3}, examples=examples)
    assert len(run.train_dataset) == 1
    assert "answers to 3 of 3 prompts do not end within --max_answer_tokens 3" in capsys.readouterr().out
    assert (tmp_path / TEACHER_ANSWERS_FILE).is_file()
    with pytest.raises(TrainingError, match="No example is left"):
        build(distill, {"max_answer_tokens": 3}, examples=examples[1:])

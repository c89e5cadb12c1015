"""Distillation: the base reading the transcript teaches the model that hears, and nothing else changes."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from audiollm.corpora.examples import ExamplesError
from audiollm.training.answer_trainer import answer_logits
from audiollm.training.arguments import AudioLlmTrainingArguments, TrainingError
from audiollm.training.distill import (
    TEACHER_ANSWERS_FILE,
    DistillArguments,
    DistillCollator,
    build_distill_dataset,
    build_trainer,
    distillation_loss,
    read_distill_examples,
    write_teacher_answers,
)
from small_corpus import assert_rows_refused

SAID = ("one", "two three", "four", "five six")


def rows(corpus, **fields) -> list[dict]:
    """One row a recording; `fields` are added to each."""
    return [
        {"text": "<audio> Again: ", "audio_paths": path, "transcripts": said, "response": f"{said}.", **fields}
        for path, said in zip(corpus.paths, SAID)
    ]


def without(name: str, of: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key != name} for row in of]


def arguments(output_dir: Path, **options) -> AudioLlmTrainingArguments:
    defaults = {"batch_size": 2, "max_steps": 2, "logging_steps": 1, "disable_tqdm": True, "learning_rate": 0.01}
    return AudioLlmTrainingArguments(output_dir=str(output_dir), **{**defaults, **options})


def trainer(model, processor, corpus, cache, output_dir: Path, options: dict | None = None, **distillation):
    examples = read_distill_examples(rows(corpus))
    return build_trainer(
        model, processor, examples, cache, arguments(output_dir, **options or {}), DistillArguments(**distillation)
    )


def batch_of(model, processor, corpus, cache) -> dict[str, torch.Tensor]:
    dataset = build_distill_dataset(read_distill_examples(rows(corpus)), processor, cache, progress=False)
    return DistillCollator(processor, cache)(list(dataset))


# ------------------------------------------------------------------------------------------------------------------ rows


def test_the_teacher_reads_the_transcript_in_place_of_the_audio(corpus) -> None:
    row = {"text": "<audio> or <audio>?", "audio_paths": corpus.paths[:2], "transcripts": ["this", "that"]}
    (example,) = read_distill_examples([row])
    assert example.teacher_text == "this or that?"
    assert example.response is None


def test_a_response_is_taken_for_a_transcript_only_when_asked(corpus) -> None:
    transcriptions = without("transcripts", rows(corpus))
    with pytest.raises(ExamplesError, match="row 3: has no 'transcripts'"):
        read_distill_examples(transcriptions)
    examples = read_distill_examples(transcriptions, response_is_transcript=True)
    assert [example.transcripts for example in examples] == [(f"{said}.",) for said in SAID]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"transcripts": ["a", "b"]}, "has 2 transcripts for 1 recordings"),
        ({"transcripts": "an <audio>"}, "transcript 0 holds <audio>"),
        ({"transcripts": " "}, "transcript 0 is empty"),
        ({"transcripts": [3]}, "transcript 0 must be a string"),
        ({"response": ""}, "'response' is empty"),
        ({"response": 3}, "'response' must be a string"),
        ({"text": "no placeholder"}, "there must be one path for each"),
        ({"text": "no audio", "audio_paths": None}, "has no audio"),
        ({"audio_paths": "nowhere.wav"}, "does not exist"),
        ({"answer": "x"}, "unknown field 'answer'"),
    ],
)
def test_bad_rows_are_all_named(corpus, fields: dict, reason: str) -> None:
    good, *bad = rows(corpus)[:3]
    assert_rows_refused(read_distill_examples, [good, *({**row, **fields} for row in bad)], {"row 1", "row 2"}, reason)


def test_rows_are_read_from_files(corpus, tmp_path) -> None:
    expected = read_distill_examples(rows(corpus))
    (tmp_path / "rows.json").write_text(json.dumps(rows(corpus)))
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows(corpus))))
    assert read_distill_examples(tmp_path / "rows.json") == read_distill_examples(tmp_path / "rows.jsonl") == expected
    relative = [{**row, "audio_paths": Path(row["audio_paths"]).name} for row in rows(corpus)]
    assert read_distill_examples(relative, corpus.audio_dir) == expected
    (tmp_path / "empty.json").write_text("[]")
    with pytest.raises(ExamplesError, match="holds no rows"):
        read_distill_examples(tmp_path / "empty.json")


@pytest.mark.parametrize(
    "wrong", [{"temperature": 0.0}, {"distill_weight": 1.1}, {"distill_weight": -0.1}, {"max_answer_tokens": 0}]
)
def test_impossible_options_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=f"--{next(iter(wrong))} is"):
        DistillArguments(**wrong)


# ------------------------------------------------------------------------------------------------------------------ loss


def test_logits_are_those_of_the_answer_positions(tiny_model, tiny_processor, corpus, cache) -> None:
    batch = batch_of(tiny_model, tiny_processor, corpus, cache)
    student = {name: value for name, value in batch.items() if not name.startswith("teacher_")}
    tiny_model.eval()
    with torch.no_grad():
        found = answer_logits(tiny_model, student)
        everything = tiny_model(**student).logits
    is_answer = student["labels"][:, 1:] != -100
    assert torch.allclose(found.logits, everything[:, :-1][is_answer], atol=1e-5)
    assert torch.equal(found.targets, student["labels"][:, 1:][is_answer])
    tokenizer = tiny_processor.tokenizer
    answers = [tokenizer.decode(part) for part in found.targets.split(found.counts)]
    assert answers == [f"{said}.<|im_end|>" for said in SAID]  # the end of the turn counts


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_loss_is_the_divergence_from_the_teacher(temperature: float) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 5, 7)
    assert distillation_loss(student, student.clone(), temperature) == 0
    p, q = (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
    expected = temperature**2 * (p * (p / q).log()).sum()
    assert distillation_loss(student, teacher, temperature).item() == pytest.approx(expected.item(), rel=1e-5)


def test_same_inputs_give_exactly_nothing_to_learn(tiny_model, tiny_processor, corpus, cache, tmp_path) -> None:
    """A student that reads what the teacher reads, in training mode, differs from it in no bit."""
    run = trainer(tiny_model, tiny_processor, corpus, cache, tmp_path)
    batch = batch_of(tiny_model, tiny_processor, corpus, cache)
    teacher = {name: value for name, value in batch.items() if name.startswith("teacher_")}
    same = {**teacher, **{name.removeprefix("teacher_"): value for name, value in teacher.items()}}
    tiny_model.train()
    assert run.compute_loss(tiny_model, same) == 0
    assert run.compute_loss(tiny_model, batch) > 0


def test_gradients_reach_projector_and_lora_alone(tiny_model, tiny_processor, corpus, cache, tmp_path) -> None:
    run = trainer(tiny_model, tiny_processor, corpus, cache, tmp_path)
    tiny_model.train()
    run.compute_loss(tiny_model, batch_of(tiny_model, tiny_processor, corpus, cache)).backward()
    with_gradient = {name for name, parameter in tiny_model.named_parameters() if parameter.grad is not None}
    assert with_gradient == set(tiny_model.trainable_names())
    assert all(parameter.grad.any() for name, parameter in tiny_model.named_parameters() if name in with_gradient)


def test_mixture_and_temperature(tiny_model, tiny_processor, corpus, cache, tmp_path) -> None:
    batch = batch_of(tiny_model, tiny_processor, corpus, cache)
    plain = {name: value for name, value in batch.items() if not name.startswith("teacher_")}

    def loss(**distillation) -> float:
        run = trainer(tiny_model, tiny_processor, corpus, cache, tmp_path, **distillation)
        tiny_model.eval()
        return run.compute_loss(tiny_model, dict(batch)).item()

    cross_entropy, only_distillation = loss(distill_weight=0.0), loss(distill_weight=1.0)
    with torch.no_grad():
        assert cross_entropy == pytest.approx(tiny_model(**plain).loss.item(), rel=1e-5)
    assert loss(distill_weight=0.25) == pytest.approx(0.25 * only_distillation + 0.75 * cross_entropy, rel=1e-5)
    assert loss(temperature=4.0) != pytest.approx(only_distillation, rel=1e-3)


# ---------------------------------------------------------------------------------------------------------------- a run


def test_a_run_learns_and_leaves_text_rows_as_they_were(tiny_model, tiny_processor, corpus, cache, tmp_path) -> None:
    text = tiny_processor(text=["Hello there", "What is two?"])
    with torch.no_grad():
        before = tiny_model.eval()(**text).logits
    run = trainer(
        tiny_model, tiny_processor, corpus, cache, tmp_path, {"max_steps": 30, "learning_rate": 3e-3}, temperature=1.0
    )
    run.train()
    history = [entry for entry in run.state.log_history if "distillation" in entry]
    assert len(history) == 30 and {"cross_entropy", "loss"} <= set(history[0])
    assert history[0]["loss"] == pytest.approx(history[0]["distillation"], rel=1e-3)  # weight 1, temperature 1
    assert history[-1]["distillation"] < 0.5 * history[0]["distillation"]
    with torch.no_grad():
        assert torch.equal(tiny_model.eval()(**text).logits, before)


def test_accumulated_batches_give_the_loss_of_a_large_one(tiny_model, tiny_processor, corpus, cache, tmp_path) -> None:
    start = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    results = []
    for options in ({"batch_size": 4}, {"batch_size": 1, "gradient_accumulation_steps": 4}):
        tiny_model.load_state_dict(start)
        options = {**options, "optim": "sgd", "max_steps": 1, "max_grad_norm": 0.0}
        run = trainer(tiny_model, tiny_processor, corpus, cache, tmp_path, options)
        run.train()
        trained = torch.cat([p.detach().flatten() for p in tiny_model.parameters() if p.requires_grad])
        results.append((run.state.log_history[0]["loss"], trained))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-4)
    assert torch.allclose(results[0][1], results[1][1], atol=1e-6)


def test_evaluation_logs_its_parts(tiny_model, tiny_processor, corpus, cache, tmp_path) -> None:
    examples = read_distill_examples(rows(corpus))
    options = arguments(tmp_path, eval_strategy="steps", eval_steps=1, max_steps=1)
    run = build_trainer(
        tiny_model,
        tiny_processor,
        examples,
        cache,
        options,
        DistillArguments(distill_weight=0.5, temperature=1.0),
        eval_examples=examples[:3],
    )
    metrics = run.evaluate()
    parts = 0.5 * metrics["eval_distillation"] + 0.5 * metrics["eval_cross_entropy"]
    assert metrics["eval_loss"] == pytest.approx(parts, rel=0.2)  # means of batches, and of tokens
    assert metrics["eval_distillation"] > 0


def test_a_run_that_is_cut_off_goes_on_exactly(tiny_bases, tiny_processor, corpus, cache, tmp_path) -> None:
    from audiollm import AudioLlmForConditionalGeneration

    def train(folder: str, steps: int, resume: bool) -> str:
        torch.manual_seed(0)
        model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(*tiny_bases, lora_rank=4, lora_dropout=0.2)
        options = {"max_steps": steps, "save_steps": 3, "lr_scheduler_type": "constant", "warmup_steps": 0}
        run = trainer(model, tiny_processor, corpus, cache, tmp_path / folder, options)
        run.train(resume_from_checkpoint=str(tmp_path / folder / "checkpoint-3") if resume else None)
        run.save_model()
        return hashlib.sha256((tmp_path / folder / "model.safetensors").read_bytes()).hexdigest()

    whole = train("whole", 7, resume=False)
    train("cut", 3, resume=False)
    assert train("cut", 7, resume=True) == whole


# ------------------------------------------------------------------------------------------------ the teacher's answers


@pytest.fixture
def talkative(tiny_model):
    """A tiny model that ends its turn at times: random weights hardly ever say the one end token."""
    tiny_model.generation_config.eos_token_id = list(range(5, 45))
    return tiny_model


def test_the_teacher_writes_missing_responses_once(talkative, tiny_processor, corpus, tmp_path) -> None:
    given, *missing = read_distill_examples(rows(corpus))
    missing = read_distill_examples(without("response", rows(corpus)))[1:]
    file = tmp_path / "answers.jsonl"
    first = write_teacher_answers(talkative, tiny_processor, [given, *missing], file, 64, batch_size=2, progress=False)
    assert first[0] == given
    assert all(example.response is not None for example in first)
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


def test_the_teachers_answer_is_the_bases_own(talkative, tiny_processor, corpus, tmp_path) -> None:
    (example,) = read_distill_examples(without("response", rows(corpus))[:1])
    (complete,) = write_teacher_answers(talkative, tiny_processor, [example], tmp_path / "answers.jsonl", 64)
    messages = [{"role": "user", "content": example.teacher_text}]
    inputs = tiny_processor.apply_chat_template(messages, tokenize=True, add_generation_prompt=True)
    said = talkative.generate(**inputs, adapter_names=[None], do_sample=False, max_new_tokens=64)
    text = tiny_processor.batch_decode(said[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
    assert complete.response == text.strip()


def test_answers_that_do_not_end_are_left_out_aloud(
    tiny_model, tiny_processor, corpus, cache, tmp_path, capsys
) -> None:
    tiny_model.generation_config.eos_token_id = [127]
    given = rows(corpus)[0]
    examples = read_distill_examples([given, *without("response", rows(corpus))[1:]])
    run = build_trainer(
        tiny_model, tiny_processor, examples, cache, arguments(tmp_path), DistillArguments(max_answer_tokens=3)
    )
    assert len(run.train_dataset) == 1
    assert "answers to 3 of 3 prompts do not end within --max_answer_tokens 3" in capsys.readouterr().out
    assert (tmp_path / TEACHER_ANSWERS_FILE).is_file()
    with pytest.raises(TrainingError, match="No example is left"):
        build_trainer(
            tiny_model, tiny_processor, examples[1:], cache, arguments(tmp_path), DistillArguments(max_answer_tokens=3)
        )

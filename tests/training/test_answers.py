"""Distillation and preferences: what is read, the losses, what they change, and that a run is the same however cut."""

import json
from pathlib import Path

import pytest
import torch
from audiollm import AudioLlmForConditionalGeneration
from audiollm.corpora.examples import ExamplesError
from audiollm.training import distill, prefer
from audiollm.training.arguments import AudioLlmTrainingArguments, TrainingError
from audiollm.training.preparing import Prepared
from audiollm.training.trainer import answer_logits
from runs import differing, logged
from small_corpus import assert_rows_refused
from tiny_models import randomise_trainables

SAID = ("one", "two three", "four", "five six")
CHOSEN = ("yes", "no more", "it is", "so be it")
REJECTED = ("never", "ok", "not at all", "x")
METRICS = (
    *("rewards/chosen", "rewards/rejected", "rewards/margins", "loss"),
    *("rewards/accuracies", "logps/chosen", "logps/rejected"),
)


def rows_of(stage, corpus) -> list[dict]:
    """Rows of distillation or of preferences, one a recording."""
    if stage is distill:
        texts = [{"text": "<audio> Again: ", "transcripts": said, "response": f"{said}."} for said in SAID]
    else:
        texts = [{"text": "<audio>?", "chosen": one, "rejected": other} for one, other in zip(CHOSEN, REJECTED)]
    return [{**row, "audio_paths": path} for row, path in zip(texts, corpus.paths)]


def without(name: str, of: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key != name} for row in of]


def read(stage, rows: list[dict]) -> list:
    return (distill.read_distill_examples if stage is distill else prefer.read_preference_examples)(rows)


@pytest.fixture
def build(tiny_model, tiny_processor, corpus, cache, tmp_path):
    """Makes the trainer of a stage: `own` are its own options, `options` the Trainer's."""

    def make(stage, own=(), held_out=False, model=tiny_model, examples=None, **options):
        defaults = {"batch_size": 2, "max_steps": 2, "logging_steps": 1, "disable_tqdm": True, "learning_rate": 0.01}
        arguments = AudioLlmTrainingArguments(output_dir=str(tmp_path), **{**defaults, **options})
        examples = examples or read(stage, rows_of(stage, corpus))
        kind = distill.DistillArguments if stage is distill else prefer.PreferArguments
        prepared = Prepared(model, tiny_processor, cache, arguments)
        return stage.build(prepared, examples, examples if held_out else None, kind(**dict(own)))

    return make


def batch_of(run) -> dict[str, torch.Tensor]:
    """All rows of a run."""
    return run.data_collator(list(run.train_dataset))


def test_rows_are_read_of_every_form_and_the_teacher_reads_the_transcript(corpus, tmp_path) -> None:
    row = {"text": "<audio> or <audio>?", "audio_paths": corpus.paths[:2], "transcripts": ["this", "that"]}
    (example,) = read(distill, [row])
    assert example.teacher_text == "this or that?" and not example.response
    rows = rows_of(distill, corpus)
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    relative = [{**row, "audio_paths": Path(row["audio_paths"]).name} for row in rows]
    given = (tmp_path / "rows.json", None), (tmp_path / "rows.jsonl", None), (relative, corpus.audio_dir)
    assert all(distill.read_distill_examples(*each) == read(distill, rows) for each in given)
    # A response is taken for a transcript only when that is asked for.
    transcriptions = without("transcripts", rows)
    for source, reason in ((transcriptions, "row 3: has no 'transcripts'"), ([], "holds no rows")):
        with pytest.raises(ExamplesError, match=reason):
            read(distill, source)
    examples = distill.read_distill_examples(transcriptions, response_is_transcript=True)
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
    good, *bad = rows_of(stage, corpus)[:3]
    rows = [good, *({**row, **fields} for row in bad)]
    assert_rows_refused(lambda rows: read(stage, rows), rows, {"row 1", "row 2"}, reason)


@torch.no_grad()
def test_logits_and_log_probabilities_are_those_of_the_whole_answers(tiny_model, tiny_processor, build) -> None:
    spoken, preferred = (batch_of(build(stage)) for stage in (distill, prefer))
    del preferred["reference"]
    student = {name: value for name, value in spoken.items() if not name.startswith("teacher_")}
    tiny_model.eval()
    found = answer_logits(tiny_model, student)
    is_answer = student["labels"][:, 1:] != -100
    assert torch.allclose(found.logits, tiny_model(**student).logits[:, :-1][is_answer], atol=1e-5)
    answers = [tiny_processor.tokenizer.decode(part) for part in found.targets.split(found.counts)]
    assert answers == [f"{said}.<|im_end|>" for said in SAID]  # the end of the turn counts
    sums = prefer.answer_log_probabilities(tiny_model, preferred)
    per_token = tiny_model(**preferred).logits[:, :-1].log_softmax(-1)
    for row, (labels, answer) in enumerate(zip(preferred["labels"][:, 1:], CHOSEN + REJECTED, strict=True)):
        said = labels != -100
        assert tiny_processor.tokenizer.decode(labels[said]) == f"{answer}<|im_end|>"
        expected = per_token[row, said].gather(1, labels[said][:, None]).sum()
        assert sums[row].item() == pytest.approx(expected.item(), rel=1e-4)
    assert torch.equal(*preferred["encoded_audio"].chunk(2))


def test_loss_is_the_divergence_from_the_teacher() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 5, 7)
    for temperature in (1.0, 3.0):
        assert distill.distillation_loss(student, student.clone(), temperature) == 0
        p, q = (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
        expected = temperature**2 * (p * (p / q).log()).sum()
        assert distill.distillation_loss(student, teacher, temperature).item() == pytest.approx(
            expected.item(), rel=1e-5
        )


def test_same_inputs_give_exactly_nothing_to_learn_and_gradients_reach_what_trains(tiny_model, build) -> None:
    """A student that reads what the teacher reads, in training mode, differs from it in no bit."""
    run = build(distill)
    spoken = batch_of(run)
    teacher = {name: value for name, value in spoken.items() if name.startswith("teacher_")}
    same = {**teacher, **{name.removeprefix("teacher_"): value for name, value in teacher.items()}}
    tiny_model.train()
    assert run.compute_loss(tiny_model, same) == 0
    loss = run.compute_loss(tiny_model, spoken)
    assert loss > 0
    loss.backward()
    moved = {n for n, p in tiny_model.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == set(tiny_model.trainable_names())
    tiny_model.eval()

    def loss_with(**own) -> float:
        run.distillation = distill.DistillArguments(**own)
        return run.compute_loss(tiny_model, spoken).item()

    cross_entropy, only_distillation = loss_with(distill_weight=0.0), loss_with(distill_weight=1.0)
    plain = {name: value for name, value in spoken.items() if name not in teacher}
    assert cross_entropy == pytest.approx(tiny_model(**plain).loss.item(), rel=1e-5)
    assert loss_with(distill_weight=0.25) == pytest.approx(0.25 * only_distillation + 0.75 * cross_entropy, rel=1e-5)
    assert loss_with(temperature=4.0) != pytest.approx(only_distillation, rel=1e-3)


def test_distillation_learns_and_evaluates(build) -> None:
    steps = {"max_steps": 20, "learning_rate": 3e-3, "save_strategy": "no"}
    run = build(distill, {"temperature": 1.0}, held_out=True, **steps, eval_strategy="steps", eval_steps=20)
    run.train()
    losses = logged(run, "distillation")
    assert len(losses) == len(logged(run, "cross_entropy")) == 20
    assert logged(run, "loss")[0] == pytest.approx(losses[0], rel=1e-3)  # weight 1, temperature 1
    assert losses[-1] < 0.6 * losses[0]
    # Means of batches, and of tokens.
    assert logged(run, "eval_loss") == pytest.approx(logged(run, "eval_distillation"), rel=0.2)
    assert logged(run, "eval_cross_entropy")[0] > 0


def test_chosen_beats_rejected_and_lora_alone_changes(tiny_model, build, tmp_path) -> None:
    before = {name: p.detach().clone() for name, p in tiny_model.named_parameters()}
    steps = {"max_steps": 15, "batch_size": 4, "learning_rate": 3e-3, "save_steps": 15, "eval_steps": 15}
    run = build(prefer, held_out=True, **steps, eval_strategy="steps")
    run.train()
    first, last = ({key: logged(run, key)[at] for key in METRICS} for at in (0, -1))
    # At the start, policy and reference are the same.
    assert [first[name] for name in METRICS[:4]] == pytest.approx([0, 0, 0, 0.6931], abs=1e-4)
    assert last["loss"] < first["loss"] and last["rewards/margins"] > 0.01 and last["rewards/accuracies"] == 1
    assert last["logps/chosen"] - last["logps/rejected"] > first["logps/chosen"] - first["logps/rejected"]
    assert logged(run, "eval_rewards/margins")[0] > 0 and logged(run, "eval_rewards/accuracies") == [1]
    assert logged(run, "eval_loss")[0] < 0.69
    changed = differing(tiny_model, before)
    assert changed and all(".lora_" in name for name in changed)
    batch, losses = batch_of(run), {}
    tiny_model.eval()
    for run.beta in (0.1, 1.0):
        losses[run.beta] = run.compute_loss(tiny_model, batch)
    assert losses[1.0] < losses[0.1] and build(prefer, {"beta": 1.0}).beta == 1.0

    run.save_model()
    del batch["reference"]
    with torch.no_grad():
        expected = tiny_model(**batch).logits
        for folder in (tmp_path, tmp_path / "checkpoint-15"):
            loaded = AudioLlmForConditionalGeneration.from_pretrained(folder)
            assert list(loaded.config.lora_adapters) == ["speech"]
            assert torch.equal(loaded.eval()(**batch).logits, expected)


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


def test_the_teacher_writes_missing_responses_once(tiny_model, tiny_processor, corpus, tmp_path) -> None:
    # Random weights hardly ever say the one end token.
    tiny_model.generation_config.eos_token_id = list(range(5, 45))
    rows = rows_of(distill, corpus)
    (given, *_), missing = read(distill, rows), read(distill, without("response", rows))[1:]
    file = tmp_path / "answers.jsonl"

    def written() -> list:
        examples = [given, *missing]
        return distill.write_teacher_answers(tiny_model, tiny_processor, examples, file, 64, 2, progress=False)

    first = written()
    assert first[0] == given
    # Each is the base's own.
    messages = [{"role": "user", "content": missing[0].teacher_text}]
    inputs = tiny_processor.apply_chat_template(messages, tokenize=True, add_generation_prompt=True)
    said = tiny_model.generate(**inputs, adapter_names=[None], do_sample=False, max_new_tokens=64)
    text = tiny_processor.batch_decode(said[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
    assert first[1].response == text.strip()
    # Cut off in the middle of the last line, it is made whole again in the same way.
    content = file.read_text()
    file.write_text(content[:-20])
    assert written() == first
    # What is on disk is not asked for again.
    lines = [{**json.loads(line), "response": f"kept {n}"} for n, line in enumerate(content.splitlines())]
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert sorted(example.response for example in written()[1:]) == [line["response"] for line in lines]


def test_answers_that_do_not_end_are_left_out_aloud(tiny_model, build, corpus, tmp_path, capsys) -> None:
    tiny_model.generation_config.eos_token_id = [127]
    rows = rows_of(distill, corpus)
    examples = read(distill, [rows[0], *without("response", rows)[1:]])
    run = build(distill, {"max_answer_tokens": 3}, examples=examples)
    assert len(run.train_dataset) == 1
    assert "answers to 3 of 3 prompts do not end within --max_answer_tokens 3" in capsys.readouterr().out
    assert (tmp_path / distill.TEACHER_ANSWERS_FILE).is_file()
    with pytest.raises(TrainingError, match="No example is left"):
        build(distill, {"max_answer_tokens": 3}, examples=examples[1:])

"""Evaluation while training: right questions and scores, nothing disturbed, the best kept, and an end when it is time."""

import json
from pathlib import Path

import pytest
import torch
from audiollm.corpora.examples import Example
from audiollm.evaluation.generating import swapped
from audiollm.evaluation.word_error import score_word_error
from audiollm.inference.answering import answer, ask
from audiollm.training.dataset import load_encoded_audio
from audiollm.training.encoding import build_dataset
from audiollm.training.evaluating import (
    SAMPLES_FILE,
    ListeningEvaluation,
    PatienceCallback,
    Sample,
    cut_at_answer,
    questions,
    share_of,
    write_samples,
)
from audiollm.training.train import main, parse_arguments, train
from audiollm.training.trainer import AudioLlmTrainer
from safetensors.torch import load_file
from small_corpus import write_rows

IGNORED = -100
#: Long enough to tell answers of a random model apart, short enough to be quick.
ANSWER_TOKENS = 6


def evaluation(dataset, processor, cache, **options) -> ListeningEvaluation:
    settings = {"samples_shown": 2, "max_new_tokens": ANSWER_TOKENS, "batch_size": 4, **options}
    return ListeningEvaluation(questions(dataset, processor, "english"), processor, cache, **settings)


def run(options: list[str]) -> AudioLlmTrainer:
    return train(*parse_arguments(options))


@pytest.fixture
def evaluated(options, corpus) -> list[str]:
    """Options of a run that is evaluated at every step."""
    held_out = f"--eval_data_path {corpus.data_path} --eval_strategy steps --eval_steps 1 --save_steps 1"
    return [*options, *held_out.split(), "--eval_max_new_tokens", str(ANSWER_TOKENS), "--warmup_steps", "0"]


def figures(trainer: AudioLlmTrainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


# ---------------------------------------------------------------------------------------------------- the questions


@pytest.mark.parametrize(
    ("labels", "prompt", "reply"),
    [
        ([IGNORED, IGNORED, 3, 4, IGNORED], [1, 2], [3, 4]),
        ([IGNORED, 2, IGNORED, 4, 5], [1, 2, 3], [4, 5]),
        ([IGNORED] * 5, [], []),
        ([1, 2, 3, 4, 5], [], [1, 2, 3, 4, 5]),
    ],
)
def test_the_last_answer_is_cut_off(labels, prompt, reply) -> None:
    assert cut_at_answer([1, 2, 3, 4, 5], labels) == (prompt, reply)


def test_a_question_is_the_prompt_of_generation(corpus, real_processor) -> None:
    example = Example("<audio>\nWhat is said?", (corpus.paths[0],), "It's 5 o'clock,  Maria — isn't it?")
    dataset = build_dataset([example], real_processor, None, progress=False)
    (question,) = questions(dataset, real_processor, "english")
    inputs = real_processor.apply_chat_template(
        [ask(example.text, corpus.paths[0])], tokenize=True, add_generation_prompt=True
    )
    assert question.prompt_ids == inputs["input_ids"][0].tolist()
    assert question.reference == example.response
    assert question.audio == [corpus.paths[0]]


def test_rows_without_recording_or_word_are_not_asked(corpus, tiny_processor, cache) -> None:
    audio = corpus.paths
    rows = [
        Example("hello", (), "no recording"),
        Example("<audio>", (audio[0],), "yes"),
        Example("<audio>", (audio[1],), "..."),
        Example("<audio> or <audio>?", (audio[2], audio[3]), "the first"),
    ]
    dataset = build_dataset(rows, tiny_processor, cache, progress=False)
    asked = questions(dataset, tiny_processor, "english")
    assert [question.row for question in asked] == [1, 3]
    assert [question.reference for question in asked] == ["yes", "the first"]
    assert asked[1].audio == [cache.key(audio[2]), cache.key(audio[3])]


@pytest.mark.parametrize(("limit", "rows"), [(1, [0]), (3, [0, 3, 7]), (11, list(range(11))), (50, list(range(11)))])
def test_fewer_questions_are_spread_over_the_rows(dataset, tiny_processor, limit, rows) -> None:
    assert [question.row for question in questions(dataset, tiny_processor, "english", limit)] == rows


# ------------------------------------------------------------------------------------------------------ the answers


def test_answers_are_those_of_evaluation_whatever_shares_a_batch(
    examples, dataset, tiny_model, tiny_processor, cache
) -> None:
    asked = [example for example in examples if example.audio_paths]
    expected = answer(
        tiny_model,
        tiny_processor,
        [ask(example.text, *example.audio_paths) for example in asked],
        max_new_tokens=ANSWER_TOKENS,
        encoded_audio=lambda paths: load_encoded_audio(cache, [cache.key(path) for path in paths]),
    )
    assert len(set(expected)) > 1
    for batch_size in (1, 4):
        assert evaluation(dataset, tiny_processor, cache, batch_size=batch_size).answers(tiny_model) == expected
    anew = build_dataset(examples, tiny_processor, None, progress=False)
    assert evaluation(anew, tiny_processor, None).answers(tiny_model) == expected


def test_the_control_hears_another_recording(examples, dataset, corpus, tiny_model, tiny_processor, cache) -> None:
    other = dict(zip(corpus.paths, swapped(corpus.paths)))
    asked = [example for example in examples if example.audio_paths]
    expected = answer(
        tiny_model,
        tiny_processor,
        [ask(example.text, *(other[path] for path in example.audio_paths)) for example in asked],
        max_new_tokens=ANSWER_TOKENS,
    )
    listening = evaluation(dataset, tiny_processor, cache)
    assert all(one != another for one, another in listening.wrong.items())
    assert listening.answers(tiny_model, instead=listening.wrong) == expected != listening.answers(tiny_model)


def test_a_model_that_never_ends_is_stopped_and_scored_by_what_it_began_with(
    dataset, tiny_model, tiny_processor, cache
) -> None:
    tiny_model.generation_config.eos_token_id = None
    letter = tiny_processor.tokenizer.convert_tokens_to_ids("a")
    steps = []

    def say_a(module, args, output):
        steps.append(1)
        return torch.full_like(output, -10.0).index_fill_(-1, torch.tensor([letter]), 10.0)

    hook = tiny_model.lm_head.register_forward_hook(say_a)
    try:
        asked = evaluation(dataset, tiny_processor, cache, max_new_tokens=200, batch_size=100)
        said = asked.answers(tiny_model)
    finally:
        hook.remove()
    # Shorter answers end at the bound of so short recordings, before they are a loop.
    assert "a" in said and all(set(text) == {"a"} and len(text) < 40 for text in said)
    assert len(steps) <= 2 * max(question.num_answer_tokens for question in asked.questions)


@pytest.mark.parametrize(("count", "ranks"), [(11, 2), (11, 4), (1, 3), (8, 4), (5, 1)])
def test_every_rank_answers_as_many_questions_and_none_is_left_out(count, ranks) -> None:
    shares = [share_of(list(range(count)), rank, ranks) for rank in range(ranks)]
    assert len({len(share) for share in shares}) == 1
    assert {index for share in shares for index in share} == set(range(count))


def test_the_mode_of_training_comes_back(dataset, tiny_model, tiny_processor, cache) -> None:
    for mode in (True, False):
        tiny_model.train(mode)
        evaluation(dataset, tiny_processor, cache).answers(tiny_model)
        assert tiny_model.training == mode


# ------------------------------------------------------------------------------------------------- a run with options


def test_a_run_logs_word_error_control_and_samples(evaluated, examples, tmp_path, capsys) -> None:
    trainer = run([*evaluated, "--eval_samples_shown", "3"])
    lines = [json.loads(line) for line in (tmp_path / "run" / SAMPLES_FILE).read_text().splitlines()]
    asked = [example for example in examples if example.audio_paths]
    for step in (1, 2):
        said = [line for line in lines if line["step"] == step]
        references = [line["reference"] for line in said]
        assert references == [example.response.strip() for example in asked]
        for name, column in (("word_error", "hypothesis"), ("wrong_audio_word_error", "wrong_audio_hypothesis")):
            expected = score_word_error(references, [line[column] for line in said]).word_error
            assert figures(trainer, f"eval_{name}")[step - 1] == expected
    assert len(figures(trainer, "eval_loss")) == 2
    printed = capsys.readouterr().out
    assert "word error on 11 held-out rows" in printed
    assert printed.count("reference | ") == printed.count("heard | ") == 2 * 3
    assert f"Evaluation at step 2: word error {figures(trainer, 'eval_word_error')[1]:.3f}, wrong audio" in printed


def test_options_bound_what_is_asked_shown_and_said(evaluated, tmp_path, capsys) -> None:
    run([*evaluated, "--eval_max_samples", "2", "--eval_samples_shown", "0", "--eval_max_new_tokens", "1"])
    lines = [json.loads(line) for line in (tmp_path / "run" / SAMPLES_FILE).read_text().splitlines()]
    assert [(line["step"], line["row"]) for line in lines] == [(1, 0), (1, 5), (2, 0), (2, 5)]
    assert max(len(line["hypothesis"]) for line in lines) <= 1
    assert "reference |" not in capsys.readouterr().out


@pytest.mark.parametrize(("normaliser", "asked"), [("english", ["Yes."]), ("basic", ["Uh", "Yes."])])
def test_the_normaliser_says_what_a_word_is(evaluated, corpus, tmp_path, normaliser, asked) -> None:
    rows = [
        {"text": "<audio>", "audio_paths": name, "response": text} for name, text in zip(corpus.names, ["Uh", "Yes."])
    ]
    held_out = write_rows(tmp_path / "held-out.json", rows)
    trainer = run([*evaluated, "--eval_data_path", held_out, "--eval_normaliser", normaliser])
    assert [question.reference for question in trainer.more_metrics.questions] == asked
    said = trainer.more_metrics.answers(trainer.model)
    assert figures(trainer, "eval_word_error")[-1] == score_word_error(asked, said, normaliser).word_error


def test_a_resumed_run_is_evaluated_as_the_whole_one(evaluated, tmp_path) -> None:
    common = [
        "--augment",
        "--lora_dropout",
        "0.2",
        "--warmup_steps",
        "0",
        "--learning_rate",
        "0.01",
        "--max_steps",
        "4",
    ]
    with_evaluation = run([*evaluated, *common, "--save_total_limit", "9"])
    (tmp_path / "resumed").mkdir()
    (tmp_path / "run" / "checkpoint-2").rename(tmp_path / "resumed" / "checkpoint-2")
    write_samples(tmp_path / "resumed" / SAMPLES_FILE, 3, [Sample(0, "of the run", "that was killed", None)])
    resumed = run([*evaluated, *common, "--output_dir", str(tmp_path / "resumed")])
    for name in resumed.model.trainable_names():
        assert torch.equal(with_evaluation.model.get_parameter(name), resumed.model.get_parameter(name)), name
    assert figures(resumed, "eval_word_error") == figures(with_evaluation, "eval_word_error")
    lines = [json.loads(line) for line in (tmp_path / "resumed" / SAMPLES_FILE).read_text().splitlines()]
    assert {line["step"] for line in lines} == {3, 4} and "of the run" not in {line["reference"] for line in lines}


def test_rows_that_cannot_be_scored_are_evaluated_by_loss(evaluated, tmp_path, capsys) -> None:
    text_only = write_rows(tmp_path / "text.json", [{"text": "What is 2 + 2?", "response": "four"}])
    trainer = run([*evaluated, "--eval_data_path", text_only])
    assert figures(trainer, "eval_loss") and not figures(trainer, "eval_word_error")
    assert "Evaluation is by loss alone" in capsys.readouterr().out
    best = ["--load_best_model_at_end", "--metric_for_best_model", "word_error"]
    with pytest.raises(SystemExit) as caught:
        main([*evaluated, "--eval_data_path", text_only, *best, "--output_dir", str(tmp_path / "b")])
    assert "no held-out row has both a recording and a word in its answer" in str(caught.value.code)


# ------------------------------------------------------------------------------------------- the best, and stopping


@pytest.mark.parametrize("name", ["word_error", "eval_word_error"])
def test_less_word_error_is_better(options, corpus, name) -> None:
    given = [
        "--eval_data_path",
        corpus.data_path,
        "--eval_strategy",
        "steps",
        "--eval_steps",
        "2",
        "--save_steps",
        "2",
    ]
    training = parse_arguments([*options, *given, "--load_best_model_at_end", "--metric_for_best_model", name])[2]
    assert training.greater_is_better is False
    by_loss = parse_arguments([*options, *given, "--load_best_model_at_end"])[2]
    assert by_loss.metric_for_best_model == "loss" and by_loss.greater_is_better is False


def test_the_checkpoint_of_least_word_error_is_kept_and_loaded(evaluated, corpus, tmp_path) -> None:
    rows = [{"text": "<audio>", "audio_paths": name, "response": "a"} for name in corpus.names]
    data = write_rows(tmp_path / "a.json", rows)
    best = "--load_best_model_at_end --metric_for_best_model word_error --save_total_limit 1 --eval_max_new_tokens 1"
    often = "--max_steps 12 --learning_rate 0.01 --lr_scheduler_type constant --eval_steps 2 --save_steps 2"
    files = ["--data_path", data, "--eval_data_path", data]
    trainer = run([*evaluated, *files, *best.split(), *often.split()])
    errors = figures(trainer, "eval_word_error")
    step = 2 * (1 + errors.index(min(errors)))
    assert errors[0] > min(errors) and step < 12
    assert trainer.state.best_metric == min(errors) and trainer.state.best_global_step == step
    kept = load_file(tmp_path / "run" / f"checkpoint-{step}" / "model.safetensors")
    assert all(torch.equal(trainer.model.get_parameter(name), value) for name, value in kept.items())
    final = load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(final[name], value) for name, value in kept.items())


STOPPING = "--load_best_model_at_end --early_stopping_patience 2 --learning_rate 0 --max_steps 9 --eval_max_samples 1"


def test_a_run_that_gets_no_better_stops_and_stays_stopped(evaluated, tmp_path) -> None:
    options = [*evaluated, *STOPPING.split()]
    assert run(options).state.global_step == 3  # the first is the best, the second and third are no better
    again = run(options)
    assert again.state.global_step == 3
    assert not (tmp_path / "run" / "checkpoint-4").exists()


def test_patience_is_counted_on_from_a_checkpoint(evaluated, tmp_path) -> None:
    options = [*evaluated, *STOPPING.split()]
    run([*options, "--save_total_limit", "9"])
    (tmp_path / "resumed").mkdir()
    (tmp_path / "run" / "checkpoint-2").rename(tmp_path / "resumed" / "checkpoint-2")
    (tmp_path / "run" / "checkpoint-1").rename(tmp_path / "resumed" / "checkpoint-1")
    resumed = run([*options, "--output_dir", str(tmp_path / "resumed")])
    assert resumed.state.global_step == 3
    counts = [
        c.early_stopping_patience_counter
        for c in resumed.callback_handler.callbacks
        if isinstance(c, PatienceCallback)
    ]
    assert counts == [2]


def test_an_unknown_normaliser_is_refused(evaluated) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*evaluated, "--eval_normaliser", "french"])
    assert "--eval_normaliser is 'french'; expected one of" in str(caught.value.code)


def test_samples_of_a_step_replace_those_of_a_run_before(tmp_path: Path) -> None:
    path = tmp_path / SAMPLES_FILE
    for step in (2, 4, 6, 4):
        write_samples(path, step, [Sample(0, "ä", f"at {step}", None)])
    assert [json.loads(line)["step"] for line in path.read_text(encoding="utf-8").splitlines()] == [2, 4]
    assert "ä" in path.read_text(encoding="utf-8")
    assert sorted(tmp_path.iterdir()) == [path]

"""Evaluation while training: right questions and scores, nothing disturbed, the best kept, and an end when it is time."""

import json

import pytest
import torch
from audiollm.corpora.examples import Example
from audiollm.evaluation.generating import swapped
from audiollm.evaluation.word_error import score_word_error
from audiollm.inference.answering import answer, ask
from audiollm.training.arguments import AudioLlmTrainingArguments
from audiollm.training.evaluating import SAMPLES_FILE, ListeningEvaluation, cut_at_answer, questions, write_samples
from audiollm.training.rows import build_dataset
from runs import differing, logged, refused, resumed, run
from safetensors.torch import load_file
from small_corpus import write_rows

IGNORED = -100
#: Long enough to tell answers of a random model apart, short enough to be quick.
ANSWER_TOKENS = 6


def evaluation(dataset, processor, cache, **options) -> ListeningEvaluation:
    settings = {"eval_max_new_tokens": ANSWER_TOKENS, "per_device_eval_batch_size": 4, **options}
    arguments = AudioLlmTrainingArguments(output_dir="nowhere", **settings)
    return ListeningEvaluation(questions(dataset, processor, "english"), processor, cache, arguments)


@pytest.fixture
def evaluated(options, corpus) -> list[str]:
    """Options of a run that is evaluated at every step."""
    held_out = f"--eval_data_path {corpus.data_path} --eval_strategy steps --eval_steps 1 --save_steps 1"
    return [*options, *held_out.split(), "--eval_max_new_tokens", str(ANSWER_TOKENS), "--warmup_steps", "0"]


def test_the_last_answer_is_cut_off() -> None:
    for labels, prompt, reply in (
        ([IGNORED, IGNORED, 3, 4, IGNORED], [1, 2], [3, 4]),
        ([IGNORED, 2, IGNORED, 4, 5], [1, 2, 3], [4, 5]),
        ([IGNORED] * 5, [], []),
        ([1, 2, 3, 4, 5], [], [1, 2, 3, 4, 5]),
    ):
        assert cut_at_answer([1, 2, 3, 4, 5], labels) == (prompt, reply)


def test_a_question_is_the_prompt_of_generation(corpus, real_processor) -> None:
    example = Example("<audio>\nWhat is said?", (corpus.paths[0],), "It's 5 o'clock,  Maria — isn't it?")
    dataset = build_dataset([example], real_processor, None, progress=False)
    (question,) = questions(dataset, real_processor, "english")
    asked = [ask(example.text, corpus.paths[0])]
    inputs = real_processor.apply_chat_template(asked, tokenize=True, add_generation_prompt=True)
    assert question.prompt_ids == inputs["input_ids"][0].tolist()
    assert (question.reference, question.audio) == (example.response, [corpus.paths[0]])


def test_rows_with_recording_and_word_are_asked_and_of_many_evenly_spaced_ones(
    corpus, dataset, tiny_processor, cache
) -> None:
    audio = corpus.paths
    rows = [
        Example("hello", (), "no recording"),
        Example("<audio>", (audio[0],), "yes"),
        Example("<audio>", (audio[1],), "..."),
        Example("<audio>", (audio[1],), "Uh"),
        Example("<audio> or <audio>?", (audio[2], audio[3]), "the first"),
    ]
    few = build_dataset(rows, tiny_processor, cache, progress=False)
    asked = questions(few, tiny_processor, "english")
    assert [(question.row, question.reference) for question in asked] == [(1, "yes"), (4, "the first")]
    assert [question.row for question in questions(few, tiny_processor, "basic")] == [1, 3, 4]
    assert asked[1].audio == [cache.key(audio[2]), cache.key(audio[3])]
    for limit, chosen in ((1, [0]), (3, [0, 3, 7]), (11, list(range(11))), (50, list(range(11)))):
        assert [question.row for question in questions(dataset, tiny_processor, "english", limit)] == chosen


def test_answers_and_control_are_those_of_evaluation_whatever_shares_a_batch(
    examples, dataset, corpus, tiny_model, tiny_processor, cache
) -> None:
    asked = [example for example in examples if example.audio_paths]
    other = dict(zip(corpus.paths, swapped(corpus.paths)))
    heard, wrong = (
        answer(
            tiny_model,
            tiny_processor,
            [ask(example.text, *map(names, example.audio_paths)) for example in asked],
            max_new_tokens=ANSWER_TOKENS,
        )
        for names in (str, other.__getitem__)
    )
    assert len(set(heard)) > 1 and heard != wrong
    anew = build_dataset(examples, tiny_processor, None, progress=False)
    for rows, store, batch_size in ((dataset, cache, 1), (dataset, cache, 4), (anew, None, 4)):
        tiny_model.train(batch_size == 1)
        listening = evaluation(rows, tiny_processor, store, per_device_eval_batch_size=batch_size)
        assert listening.answers(tiny_model, listening.questions) == heard
        assert tiny_model.training == (batch_size == 1)
    assert listening.answers(tiny_model, listening.control) == wrong
    assert all(one.audio != two.audio for one, two in zip(listening.questions, listening.control))


def test_a_model_that_never_ends_is_stopped_and_scored_by_what_it_began_with(
    dataset, tiny_model, tiny_processor, cache
) -> None:
    tiny_model.generation_config.eos_token_id = None
    letter, steps = tiny_processor.tokenizer.convert_tokens_to_ids("a"), []

    def say_a(module, args, output):
        steps.append(1)
        return torch.full_like(output, -10.0).index_fill_(-1, torch.tensor([letter]), 10.0)

    tiny_model.lm_head.register_forward_hook(say_a)
    asked = evaluation(dataset, tiny_processor, cache, eval_max_new_tokens=200, per_device_eval_batch_size=100)
    said = asked.answers(tiny_model, asked.questions)
    # Shorter answers end at the bound of so short recordings, before they are a loop.
    assert "a" in said and all(set(text) == {"a"} and len(text) < 40 for text in said)
    assert len(steps) <= 2 * max(question.num_answer_tokens for question in asked.questions)


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
            assert logged(trainer, f"eval_{name}")[step - 1] == expected
    assert len(logged(trainer, "eval_loss")) == 2
    printed = capsys.readouterr().out
    assert "word error on 11 held-out rows" in printed
    assert printed.count("reference | ") == printed.count("heard | ") == 2 * 3
    assert f"Evaluation at step 2: word error {logged(trainer, 'eval_word_error')[1]:.3f}, wrong audio" in printed


def test_a_resumed_run_is_evaluated_as_the_whole_one_within_the_bounds_asked_for(evaluated, tmp_path, capsys) -> None:
    bounds = "--eval_max_samples 2 --eval_samples_shown 0 --eval_max_new_tokens 1 --save_total_limit 9"
    draws = "--augment --lora_dropout 0.2 --learning_rate 0.01 --max_steps 4"
    options = [*evaluated, *bounds.split(), *draws.split()]
    whole, folder = run(options), tmp_path / "resumed"
    folder.mkdir()
    write_samples(folder / SAMPLES_FILE, 3, [{"row": "of the run that was killed"}])
    again = resumed(options, tmp_path / "run", 2, folder)
    assert not differing(again.model, whole.model)
    assert logged(again, "eval_word_error") == logged(whole, "eval_word_error")
    lines = [json.loads(line) for line in (folder / SAMPLES_FILE).read_text().splitlines()]
    assert [(line["step"], line["row"]) for line in lines] == [(3, 0), (3, 5), (4, 0), (4, 5)]
    assert max(len(line["hypothesis"]) for line in lines) <= 1
    assert "reference |" not in capsys.readouterr().out


def test_rows_that_cannot_be_scored_are_evaluated_by_loss(evaluated, tmp_path, capsys) -> None:
    text_only = write_rows(tmp_path / "text.json", [{"text": "What is 2 + 2?", "response": "four"}])
    trainer = run([*evaluated, "--eval_data_path", text_only])
    assert logged(trainer, "eval_loss") and not logged(trainer, "eval_word_error")
    assert "Evaluation is by loss alone" in capsys.readouterr().out
    best = ["--load_best_model_at_end", "--metric_for_best_model", "word_error"]
    options = [*evaluated, "--eval_data_path", text_only, *best, "--output_dir", str(tmp_path / "b")]
    assert "no held-out row has both a recording and a word" in refused(options, capsys, early=False)


def test_the_checkpoint_of_least_word_error_is_kept_and_loaded(evaluated, corpus, tmp_path) -> None:
    rows = [{"text": "<audio>", "audio_paths": name, "response": "a"} for name in corpus.names]
    data = write_rows(tmp_path / "a.json", rows)
    best = "--load_best_model_at_end --metric_for_best_model word_error --save_total_limit 1 --eval_max_new_tokens 1"
    often = "--max_steps 12 --learning_rate 0.002 --lr_scheduler_type constant --eval_steps 2 --save_steps 2"
    files = ["--data_path", data, "--eval_data_path", data]
    trainer = run([*evaluated, *files, *best.split(), *often.split()])
    errors = logged(trainer, "eval_word_error")
    step = 2 * (1 + errors.index(min(errors)))
    assert errors[0] > min(errors) and step < 12
    assert trainer.state.best_metric == min(errors) and trainer.state.best_global_step == step
    kept = load_file(tmp_path / "run" / f"checkpoint-{step}" / "model.safetensors")
    assert not differing(kept, dict(trainer.model.named_parameters()))
    assert not differing(kept, load_file(tmp_path / "run" / "model.safetensors"))


def test_a_run_that_gets_no_better_stops_and_stays_stopped_also_when_it_resumes(evaluated, tmp_path) -> None:
    best = "--load_best_model_at_end --metric_for_best_model word_error --early_stopping_patience 2"
    options = [
        *evaluated,
        *f"{best} --learning_rate 0 --max_steps 9 --eval_max_samples 1 --save_total_limit 9".split(),
    ]
    assert run(options).state.global_step == 3  # the first is the best, the second and third are no better
    assert run(options).state.global_step == 3
    assert not (tmp_path / "run" / "checkpoint-4").exists()
    (tmp_path / "run" / "checkpoint-3" / "trainer_state.json").unlink()
    assert run(options).state.global_step == 3

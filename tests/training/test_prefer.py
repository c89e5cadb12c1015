"""Preferences: chosen beats rejected after training, and nothing but LoRA changes."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from audiollm import AudioLlmForConditionalGeneration
from audiollm.training.arguments import AudioLlmTrainingArguments
from audiollm.training.prefer import (
    PreferArguments,
    PreferenceCollator,
    answer_log_probabilities,
    build_preference_dataset,
    build_trainer,
    read_preference_examples,
)
from small_corpus import assert_rows_refused
from tiny_models import randomise_trainables

CHOSEN = ("yes", "no more", "it is", "so be it")
REJECTED = ("never", "ok", "not at all", "x")


def rows(corpus) -> list[dict]:
    return [
        {"text": "<audio>?", "audio_paths": path, "chosen": chosen, "rejected": rejected}
        for path, chosen, rejected in zip(corpus.paths, CHOSEN, REJECTED)
    ]


def arguments(output_dir: Path, **options) -> AudioLlmTrainingArguments:
    defaults = {"batch_size": 2, "max_steps": 2, "logging_steps": 1, "disable_tqdm": True, "learning_rate": 0.01}
    return AudioLlmTrainingArguments(output_dir=str(output_dir), **{**defaults, **options})


def trainer(model, processor, corpus, cache, output_dir: Path, options: dict | None = None, **preference):
    examples = read_preference_examples(rows(corpus))
    return build_trainer(
        model, processor, examples, cache, arguments(output_dir, **options or {}), PreferArguments(**preference)
    )


def batch_of(processor, corpus, cache) -> dict[str, torch.Tensor]:
    dataset = build_preference_dataset(read_preference_examples(rows(corpus)), processor, cache, progress=False)
    return PreferenceCollator(processor, cache)(list(dataset))


# ------------------------------------------------------------------------------------------------------------------ rows


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"chosen": " the same", "rejected": "the same "}, "are the same"),
        ({"chosen": ""}, "'chosen' is empty"),
        ({"rejected": None}, "field 'rejected' is missing"),
        ({"rejected": ["a"]}, "'rejected' must be a string"),
        ({"chosen": "an <audio>"}, "'chosen' holds <audio>"),
        ({"text": "no placeholder"}, "there must be one path for each"),
        ({"text": "no audio", "audio_paths": []}, "has no audio"),
        ({"audio_paths": "nowhere.wav"}, "does not exist"),
        ({"response": "x"}, "unknown field 'response'"),
    ],
)
def test_bad_rows_are_all_named(corpus, fields: dict, reason: str) -> None:
    good, *bad = rows(corpus)[:3]
    assert_rows_refused(
        read_preference_examples, [good, *({**row, **fields} for row in bad)], {"row 1", "row 2"}, reason
    )


def test_rows_are_read_from_a_file(corpus, tmp_path) -> None:
    (tmp_path / "pairs.json").write_text(json.dumps(rows(corpus)))
    examples = read_preference_examples(tmp_path / "pairs.json")
    assert examples == read_preference_examples(rows(corpus))
    assert [(example.chosen, example.rejected) for example in examples] == list(zip(CHOSEN, REJECTED))


def test_beta_is_above_zero() -> None:
    with pytest.raises(ValueError, match=r"--beta is 0\.0"):
        PreferArguments(beta=0.0)


def test_a_batch_has_chosen_rows_before_rejected_ones(tiny_processor, corpus, cache) -> None:
    batch = batch_of(tiny_processor, corpus, cache)
    tokenizer = tiny_processor.tokenizer
    answers = [tokenizer.decode(labels[labels != -100]) for labels in batch["labels"]]
    assert answers == [f"{answer}<|im_end|>" for answer in (*CHOSEN, *REJECTED)]
    first, second = batch["encoded_audio"].chunk(2)
    assert torch.equal(first, second)


@torch.no_grad()
def test_log_probabilities_are_those_of_the_whole_answer(tiny_model, tiny_processor, corpus, cache) -> None:
    batch = batch_of(tiny_processor, corpus, cache)
    tiny_model.eval()
    found = answer_log_probabilities(tiny_model, batch)
    per_token = tiny_model(**batch).logits[:, :-1].log_softmax(-1)
    for row, labels in enumerate(batch["labels"][:, 1:]):
        said = labels != -100
        expected = per_token[row, said].gather(1, labels[said][:, None]).sum()
        assert found[row].item() == pytest.approx(expected.item(), rel=1e-4)


def test_at_the_start_policy_and_reference_are_the_same(tiny_model, tiny_processor, corpus, cache, tmp_path) -> None:
    run = trainer(tiny_model, tiny_processor, corpus, cache, tmp_path, {"max_steps": 1, "batch_size": 4})
    run.train()
    (first,) = [entry for entry in run.state.log_history if "rewards/margins" in entry]
    rewards = [first[f"rewards/{name}"] for name in ("chosen", "rejected", "margins")]
    assert rewards == pytest.approx([0, 0, 0], abs=1e-5)
    assert first["loss"] == pytest.approx(0.6931, abs=1e-4)


def test_a_model_without_lora_is_refused(tiny_bases, tiny_processor, corpus, cache, tmp_path) -> None:
    without_lora = AudioLlmForConditionalGeneration.from_audio_text_pretrained(*tiny_bases, lora_rank=0)
    with pytest.raises(ValueError, match="has no LoRA"):
        trainer(without_lora, tiny_processor, corpus, cache, tmp_path)


# ---------------------------------------------------------------------------------------------------------------- a run


def test_chosen_beats_rejected_and_lora_alone_changes(tiny_model, tiny_processor, corpus, cache, tmp_path) -> None:
    text = tiny_processor(text=["Hello there", "What is two?"])
    frozen = {name: p.detach().clone() for name, p in tiny_model.named_parameters() if ".lora_" not in name}
    with torch.no_grad():
        before = tiny_model.eval()(**text).logits
    options = {"max_steps": 20, "batch_size": 4, "learning_rate": 3e-3}
    run = trainer(tiny_model, tiny_processor, corpus, cache, tmp_path, options)
    run.train()
    history = [entry for entry in run.state.log_history if "rewards/margins" in entry]
    last = history[-1]
    assert last["rewards/margins"] > 0.01 and last["rewards/accuracies"] == 1
    assert last["rewards/margins"] == pytest.approx(last["rewards/chosen"] - last["rewards/rejected"], abs=1e-4)
    assert last["logps/chosen"] - last["logps/rejected"] > history[0]["logps/chosen"] - history[0]["logps/rejected"]
    assert last["loss"] < history[0]["loss"]
    state = dict(tiny_model.named_parameters())
    assert all(torch.equal(state[name], value) for name, value in frozen.items())
    with torch.no_grad():
        assert torch.equal(tiny_model.eval()(**text).logits, before)


def test_the_checkpoint_is_an_adapter_like_any_other(tiny_model, tiny_processor, corpus, cache, tmp_path) -> None:
    names = {name for name in tiny_model.state_dict() if ".lora_" in name}
    run = trainer(tiny_model, tiny_processor, corpus, cache, tmp_path, {"save_steps": 1})
    run.train()
    run.save_model()
    batch = batch_of(tiny_processor, corpus, cache)
    with torch.no_grad():
        expected = tiny_model.eval()(**batch).logits
    for folder in (tmp_path, tmp_path / "checkpoint-2"):
        loaded = AudioLlmForConditionalGeneration.from_pretrained(folder)
        assert set(loaded.config.lora_adapters) == {"speech"}
        assert {name for name in loaded.state_dict() if ".lora_" in name} == names
        with torch.no_grad():
            assert torch.equal(loaded.eval()(**batch).logits, expected)


def test_beta_changes_the_run(tiny_model, tiny_processor, corpus, cache, tmp_path) -> None:
    start = {name: value.clone() for name, value in tiny_model.state_dict().items()}

    def last_loss(**preference) -> float:
        tiny_model.load_state_dict(start)
        run = trainer(
            tiny_model, tiny_processor, corpus, cache, tmp_path, {"max_steps": 4, "batch_size": 4}, **preference
        )
        run.train()
        return [entry["loss"] for entry in run.state.log_history if "loss" in entry][-1]

    plain = last_loss()
    assert last_loss(beta=1.0) < plain


def test_dropout_is_off(tiny_bases, tiny_processor, corpus, cache, tmp_path) -> None:
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(*tiny_bases, lora_rank=4, lora_dropout=0.5)
    randomise_trainables(model)
    run = trainer(model, tiny_processor, corpus, cache, tmp_path, {"max_steps": 1, "batch_size": 4})
    run.train()
    assert run.state.log_history[0]["rewards/chosen"] == pytest.approx(0, abs=1e-5)
    run.save_model()
    assert AudioLlmForConditionalGeneration.from_pretrained(tmp_path).config.lora_dropout == 0.5


def test_accumulated_batches_give_the_loss_of_a_large_one(tiny_model, tiny_processor, corpus, cache, tmp_path) -> None:
    start = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    results = []
    for options in ({"batch_size": 4}, {"batch_size": 3, "gradient_accumulation_steps": 2}):
        tiny_model.load_state_dict(start)
        options = {**options, "optim": "sgd", "max_steps": 1, "max_grad_norm": 0.0}
        run = trainer(tiny_model, tiny_processor, corpus, cache, tmp_path, options)
        run.train()
        trained = torch.cat([p.detach().flatten() for p in tiny_model.parameters() if p.requires_grad])
        results.append((run.state.log_history[0]["loss"], trained))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-4)
    assert torch.allclose(results[0][1], results[1][1], atol=1e-6)


def test_evaluation_gives_margins(tiny_model, tiny_processor, corpus, cache, tmp_path) -> None:
    examples = read_preference_examples(rows(corpus))
    options = arguments(tmp_path, eval_strategy="steps", eval_steps=5, max_steps=10, batch_size=4)
    run = build_trainer(
        tiny_model, tiny_processor, examples, cache, options, PreferArguments(), eval_examples=examples
    )
    run.train()
    metrics = run.evaluate()
    assert metrics["eval_rewards/margins"] > 0 and metrics["eval_rewards/accuracies"] == 1
    assert metrics["eval_loss"] < 0.69


def test_a_run_that_is_cut_off_goes_on_exactly(tiny_bases, tiny_processor, corpus, cache, tmp_path) -> None:
    def train(folder: str, steps: int, resume: bool) -> str:
        torch.manual_seed(0)
        model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(*tiny_bases, lora_rank=4)
        randomise_trainables(model)
        options = {"max_steps": steps, "save_steps": 3, "lr_scheduler_type": "constant", "warmup_steps": 0}
        run = trainer(model, tiny_processor, corpus, cache, tmp_path / folder, options)
        run.train(resume_from_checkpoint=str(tmp_path / folder / "checkpoint-3") if resume else None)
        run.save_model()
        return hashlib.sha256((tmp_path / folder / "model.safetensors").read_bytes()).hexdigest()

    whole = train("whole", 7, resume=False)
    train("cut", 3, resume=False)
    assert train("cut", 7, resume=True) == whole

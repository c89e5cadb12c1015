"""Preferences: chosen beats rejected after training, against a reference that changes in no bit."""

import copy
import hashlib
import json
from pathlib import Path

import pytest
import torch
from audiollm import AudioLlmForConditionalGeneration
from audiollm.training.arguments import AudioLlmTrainingArguments
from audiollm.training.prefer import (
    REFERENCE_ADAPTER,
    PreferArguments,
    PreferenceCollator,
    answer_log_probabilities,
    build_preference_dataset,
    build_trainer,
    hold_reference,
    preference_loss,
    read_preference_examples,
    reference_hash,
    reference_weights,
    release_reference,
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


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"beta": 0.0}, "--beta is 0.0"),
        ({"preference_loss": "ppo"}, "--preference_loss is 'ppo'"),
        ({"preference_smoothing": 0.5}, "--preference_smoothing is 0.5"),
        ({"preference_loss": "ipo", "preference_smoothing": 0.1}, "not defined for --preference_loss ipo"),
    ],
)
def test_impossible_options_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PreferArguments(**wrong)


def test_a_batch_has_chosen_rows_before_rejected_ones(tiny_processor, corpus, cache) -> None:
    batch = batch_of(tiny_processor, corpus, cache)
    tokenizer = tiny_processor.tokenizer
    answers = [tokenizer.decode(labels[labels != -100]) for labels in batch["labels"]]
    assert answers == [f"{answer}<|im_end|>" for answer in (*CHOSEN, *REJECTED)]
    first, second = batch["encoded_audio"].chunk(2)
    assert torch.equal(first, second)


# ------------------------------------------------------------------------------------------------------------------ loss


def test_losses_of_the_papers() -> None:
    difference = torch.tensor([-2.0, 0.0, 3.0])
    sigmoid = -(torch.sigmoid(0.5 * difference)).log()
    assert torch.allclose(preference_loss(difference, PreferArguments(beta=0.5)), sigmoid)
    smoothed = 0.9 * sigmoid - 0.1 * torch.sigmoid(-0.5 * difference).log()
    found = preference_loss(difference, PreferArguments(beta=0.5, preference_smoothing=0.1))
    assert torch.allclose(found, smoothed)
    found = preference_loss(difference, PreferArguments(beta=0.5, preference_loss="hinge"))
    assert found.tolist() == [2.0, 1.0, 0.0]
    found = preference_loss(difference, PreferArguments(beta=0.5, preference_loss="ipo"))
    assert found.tolist() == [9.0, 1.0, 4.0]


@torch.no_grad()
def test_log_probabilities_are_those_of_the_whole_answer(tiny_model, tiny_processor, corpus, cache) -> None:
    batch = batch_of(tiny_processor, corpus, cache)
    tiny_model.eval()
    found = answer_log_probabilities(tiny_model, batch, "speech")
    means = answer_log_probabilities(tiny_model, batch, "speech", mean=True)
    per_token = tiny_model(**batch).logits[:, :-1].log_softmax(-1)
    for row, labels in enumerate(batch["labels"][:, 1:]):
        said = labels != -100
        expected = per_token[row, said].gather(1, labels[said][:, None]).sum()
        assert found[row].item() == pytest.approx(expected.item(), rel=1e-4)
        assert means[row].item() == pytest.approx(expected.item() / int(said.sum()), rel=1e-4)


def test_at_the_start_policy_and_reference_are_the_same(tiny_model, tiny_processor, corpus, cache, tmp_path) -> None:
    run = trainer(tiny_model, tiny_processor, corpus, cache, tmp_path, {"max_steps": 1, "batch_size": 4})
    run.train()
    (first,) = [entry for entry in run.state.log_history if "rewards/margins" in entry]
    assert first["rewards/chosen"] == first["rewards/rejected"] == first["rewards/margins"] == 0
    assert first["loss"] == pytest.approx(0.6931, abs=1e-4)


# ------------------------------------------------------------------------------------------------------------- reference


def test_the_reference_is_a_copy_that_does_not_train(tiny_model) -> None:
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    assert hold_reference(tiny_model) == "speech"
    copies = reference_weights(tiny_model)
    assert copies and all(
        torch.equal(value, before[name.replace(REFERENCE_ADAPTER, "speech")]) for name, value in copies.items()
    )
    trains = {name for name, parameter in tiny_model.named_parameters() if parameter.requires_grad}
    assert trains == {name for name in before if ".lora_" in name}
    with pytest.raises(ValueError, match="already holds"):
        hold_reference(tiny_model)
    release_reference(tiny_model)
    after = tiny_model.state_dict()
    assert set(after) == set(before) and all(torch.equal(after[name], before[name]) for name in before)
    assert set(tiny_model.config.lora_adapters) == {"speech"}
    assert {n for n, p in tiny_model.named_parameters() if p.requires_grad} == set(tiny_model.trainable_names())
    assert copy.deepcopy(tiny_model).merge_adapters() is not None  # which refuses a model of several adapters


def test_the_reference_keeps_the_precision_of_what_trains(tiny_bases) -> None:
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(*tiny_bases, dtype=torch.bfloat16, lora_rank=4)
    randomise_trainables(model)
    hold_reference(model)
    state = dict(model.named_parameters())
    for name, value in reference_weights(model).items():
        assert value.dtype == torch.float32
        assert torch.equal(value, state[name.replace(REFERENCE_ADAPTER, "speech")])


def test_what_cannot_be_preferred_is_refused(tiny_bases, tiny_model, tiny_processor, corpus, cache, tmp_path) -> None:
    with pytest.raises(ValueError, match="projector stays frozen"):
        trainer(tiny_model, tiny_processor, corpus, cache, tmp_path, {"projector_learning_rate": 1e-3})
    tiny_model.model.audio_tower.conv1.weight.requires_grad_(True)
    with pytest.raises(ValueError, match=r"1 weights of the bases, such as model\.audio_tower\.conv1\.weight"):
        trainer(tiny_model, tiny_processor, corpus, cache, tmp_path)
    without_lora = AudioLlmForConditionalGeneration.from_audio_text_pretrained(*tiny_bases, lora_rank=0)
    with pytest.raises(ValueError, match="has no LoRA"):
        trainer(without_lora, tiny_processor, corpus, cache, tmp_path)


# ---------------------------------------------------------------------------------------------------------------- a run


@pytest.mark.parametrize("loss", ["sigmoid", "hinge", "ipo"])
def test_chosen_beats_rejected_and_the_reference_is_unchanged(
    tiny_model, tiny_processor, corpus, cache, tmp_path, loss: str
) -> None:
    text = tiny_processor(text=["Hello there", "What is two?"])
    frozen = {name: p.detach().clone() for name, p in tiny_model.named_parameters() if ".lora_" not in name}
    with torch.no_grad():
        before = tiny_model.eval()(**text).logits
    options = {"max_steps": 20, "batch_size": 4, "learning_rate": 3e-3}
    run = trainer(tiny_model, tiny_processor, corpus, cache, tmp_path, options, preference_loss=loss)
    reference = {name: value.clone() for name, value in reference_weights(tiny_model).items()}
    digest = reference_hash(tiny_model)
    run.train()
    history = [entry for entry in run.state.log_history if "rewards/margins" in entry]
    last = history[-1]
    assert last["rewards/margins"] > 0.01 and last["rewards/accuracies"] == 1
    assert last["rewards/margins"] == pytest.approx(last["rewards/chosen"] - last["rewards/rejected"], abs=1e-4)
    assert last["logps/chosen"] - last["logps/rejected"] > history[0]["logps/chosen"] - history[0]["logps/rejected"]
    assert last["loss"] < history[0]["loss"]
    after = reference_weights(tiny_model)
    assert set(after) == set(reference) and all(torch.equal(after[name], reference[name]) for name in reference)
    assert reference_hash(tiny_model) == digest
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
        assert REFERENCE_ADAPTER not in (folder / "config.json").read_text()
    assert REFERENCE_ADAPTER in tiny_model.config.lora_adapters  # the run could go on


def test_beta_and_smoothing_change_the_run(tiny_model, tiny_processor, corpus, cache, tmp_path) -> None:
    start = {name: value.clone() for name, value in tiny_model.state_dict().items()}

    def last_loss(**preference) -> float:
        tiny_model.load_state_dict(start)
        run = trainer(
            tiny_model, tiny_processor, corpus, cache, tmp_path, {"max_steps": 4, "batch_size": 4}, **preference
        )
        run.train()
        release_reference(tiny_model)
        return [entry["loss"] for entry in run.state.log_history if "loss" in entry][-1]

    plain = last_loss()
    assert last_loss(beta=1.0) < plain
    assert last_loss(preference_smoothing=0.4) > plain


@pytest.mark.parametrize("keep", [False, True])
def test_dropout_is_noise_unless_it_is_asked_for(tiny_bases, tiny_processor, corpus, cache, tmp_path, keep) -> None:
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(*tiny_bases, lora_rank=4, lora_dropout=0.5)
    randomise_trainables(model)
    options = {"max_steps": 1, "batch_size": 4}
    run = trainer(model, tiny_processor, corpus, cache, tmp_path, options, lora_dropout_in_preference=keep)
    run.train()
    assert (run.state.log_history[0]["rewards/chosen"] != 0) is keep
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
        release_reference(tiny_model)
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
    def train(folder: str, steps: int, resume: bool, seed: int = 2) -> str:
        torch.manual_seed(0)
        model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(*tiny_bases, lora_rank=4)
        randomise_trainables(model, seed)
        options = {"max_steps": steps, "save_steps": 3, "lr_scheduler_type": "constant", "warmup_steps": 0}
        run = trainer(model, tiny_processor, corpus, cache, tmp_path / folder, options)
        run.train(resume_from_checkpoint=str(tmp_path / folder / "checkpoint-3") if resume else None)
        run.save_model()
        return hashlib.sha256((tmp_path / folder / "model.safetensors").read_bytes()).hexdigest()

    whole = train("whole", 7, resume=False)
    train("cut", 3, resume=False)
    with pytest.raises(ValueError, match="was not trained against the adapter that this run starts from"):
        train("cut", 7, resume=True, seed=3)
    assert train("cut", 7, resume=True) == whole

"""The plain Trainer with nothing of ours but model, processor and collator."""

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor
from audiollm.processing import ConversationError
from audiollm.training.collator import ConversationCollator
from runs import differing, logged
from small_corpus import write_recordings

EXAMPLES = Path(__file__).parents[2] / "examples"
IGNORED = -100
ANSWERS = ["one", "two", "three"]


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("recordings")
    return [str(folder / name) for name in write_recordings(folder, len(ANSWERS))]


def run_example(name: str | Any, model: Any, processor: Any, rows: list[dict], folder: Path, **options: Any) -> Any:
    """The Trainer of an example, after it trained on rows; what trains has moved in the folder that it saved."""
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = {"learning_rate": 1e-2, "logging_steps": 1, "report_to": "none", "use_cpu": True, **options}
    module = example(name) if isinstance(name, str) else name
    trainer = module.main(*(str(folder / each) for each in ("model", "data.jsonl", "trained")), **options)
    loaded = AudioLlmForConditionalGeneration.from_pretrained(folder / "trained")
    assert differing(model, loaded) == set(model.trainable_names())
    return trainer


def example(name: str) -> Any:
    specification = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def row(recording: str | None, answer: str) -> dict:
    content = "Which number?" if recording is None else "<audio>\nWhich number?"
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "audio": [] if recording is None else [recording]}


def question(path: str) -> list[dict]:
    content = [{"type": "audio", "path": path}, {"type": "text", "text": "\nWhich number?"}]
    return [{"role": "user", "content": content}]


def test_the_example_trains_saves_and_goes_on(tiny_bases, tiny_processor, recordings, tmp_path) -> None:
    torch.manual_seed(0)
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(*tiny_bases, lora_rank=4)
    rows = [*map(row, recordings, ANSWERS), row(None, "none")]
    sizes = {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 3, "dataloader_num_workers": 0}
    trainer = run_example("train_with_trainer", model, tiny_processor, rows, tmp_path, **sizes, num_train_epochs=4)
    losses = logged(trainer)
    assert len(losses) == 8 and sum(losses[-2:]) < 0.9 * sum(losses[:2])
    assert math.isfinite(trainer.evaluate(trainer.train_dataset)["eval_loss"])
    loaded = AudioLlmForConditionalGeneration.from_pretrained(tmp_path / "trained")
    batch = ConversationCollator(AudioLlmProcessor.from_pretrained(tmp_path / "trained"))(rows)
    with torch.no_grad():
        again = loaded.eval()(**batch).loss
    assert again.item() == pytest.approx(trainer.model.eval()(**batch).loss.item(), rel=1e-5)


def test_dpo_with_trl_needs_no_reference_model(tiny_model, tiny_processor, recordings, tmp_path) -> None:
    """The reference is the checkpoint that the model was loaded from."""
    pytest.importorskip("trl", reason="pip install trl")
    answers = {"chosen": "Yes.", "rejected": "No."}
    said = {side: [{"role": "assistant", "content": answer}] for side, answer in answers.items()}
    rows = [{"prompt": question(path), **said} for path in recordings]
    losses = logged(run_example("dpo_with_trl", tiny_model, tiny_processor, rows, tmp_path, max_steps=6))
    assert losses[0] == pytest.approx(math.log(2), abs=1e-3)  # nothing has moved yet
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.slow
def test_sft_with_trl(tiny_model, tiny_processor, recordings, tmp_path) -> None:
    pytest.importorskip("trl", reason="pip install trl")
    rows = [*map(row, recordings, ANSWERS), row(None, "none")]
    losses = logged(run_example("sft_with_trl", tiny_model, tiny_processor, rows, tmp_path, max_steps=8))
    # TRL computes the loss by itself, of the same positions as the model does.
    with torch.no_grad():
        first = tiny_model.eval()(**ConversationCollator(tiny_processor)(rows)).loss
    assert losses[0] == pytest.approx(first.item(), rel=1e-3) and losses[-1] < 0.8 * losses[0]
    assert AudioLlmProcessor.from_pretrained(tmp_path / "trained").audio_token == "<audio>"


@pytest.mark.slow
def test_grpo_with_trl_learns_what_is_rewarded(tiny_model, tiny_processor, recordings, tmp_path, monkeypatch) -> None:
    """A tiny random model says no word, so that the reward is of odd letters instead. What TRL scores is what was heard."""
    pytest.importorskip("trl", reason="pip install trl")
    rows = [{"prompt": question(path), "text": answer} for path, answer in zip(recordings, ANSWERS[:2])]
    module = example("grpo_with_trl")
    said = [[{"content": "good morning"}], [{"content": "good evening"}]]
    assert module.fewer_word_errors(said, ["Good morning.", "Good morning."]) == [0, -0.5]

    def odd_letters(completions: list[Any], text: list[str], **_: Any) -> list[float]:
        assert set(text) == set(ANSWERS[:2])
        answers = [one[0]["content"] for one in completions]
        return [sum(ord(letter) % 2 for letter in one) / max(len(one), 1) for one in answers]

    class Watched(module.AudioGRPOTrainer):
        def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, **options):
            found = super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, **options
            )
            assert len(model.keywords["input_features"]) == len(input_ids)
            with torch.no_grad():
                logits = self.model(input_ids=input_ids, attention_mask=attention_mask, **model.keywords).logits
            answers = input_ids[:, -logits_to_keep:]
            expected = logits.log_softmax(-1)[:, -logits_to_keep - 1 : -1].gather(-1, answers[..., None])[..., 0]
            is_answer = attention_mask[:, -logits_to_keep:].bool()
            torch.testing.assert_close(found[0][is_answer], expected[is_answer], atol=1e-4, rtol=1e-4)
            return found

    monkeypatch.setattr(module, "fewer_word_errors", odd_letters)
    monkeypatch.setattr(module, "AudioGRPOTrainer", Watched)
    options = {"max_steps": 24, "learning_rate": 5e-2, "lr_scheduler_type": "constant"}
    options |= {"per_device_train_batch_size": 16, "num_generations": 8, "max_completion_length": 8}
    trainer = run_example(module, tiny_model, tiny_processor, rows, tmp_path, **options)
    rewards = logged(trainer, "reward")
    assert len(rewards) == 24 and sum(rewards[-12:]) / 12 > sum(rewards[:6]) / 6 + 0.05
    with pytest.raises(ValueError, match="beta"):
        run_example(module, tiny_model, tiny_processor, rows, tmp_path, **options, beta=0.1)


def test_a_batch(tiny_processor, recordings) -> None:
    rows = [row(recordings[2], "three"), row(None, "none")]
    batch = ConversationCollator(tiny_processor, pad_to_multiple_of=16)(rows)
    assert batch["input_ids"].shape[1] % 16 == 0 and batch["attention_mask"][1, -1] == 0
    said = [tiny_processor.decode(labels[labels != IGNORED]) for labels in batch["labels"]]
    assert said == ["three<|im_end|>", "none<|im_end|>"]
    typed = question(recordings[2])
    same = ConversationCollator(tiny_processor, 16)([{"messages": typed + rows[0]["messages"][1:]}, rows[1]])
    assert not differing(batch, same)
    text = ConversationCollator(tiny_processor)([rows[1]])
    assert set(text) == {"input_ids", "attention_mask", "labels"}
    with pytest.raises(ConversationError, match="not both"):
        ConversationCollator(tiny_processor)([{"messages": typed, "audio": recordings[2]}])

"""TRL's DPOTrainer with our model, on preferences between answers to speech."""

import numpy as np
import pytest
import soundfile
import torch
from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor
from audiollm.training.collator import ConversationCollator
from datasets import Dataset

trl = pytest.importorskip("trl", reason="pip install trl")
IGNORED = -100


class PreferenceCollator:
    """Batches as DPOTrainer takes them: chosen answers, then rejected ones, with the recordings of each."""

    def __init__(self, processor: AudioLlmProcessor):
        self.collate = ConversationCollator(processor)

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        batch = self.collate([{"messages": row["prompt"] + row[side]} for side in ("chosen", "rejected") for row in rows])
        batch["completion_mask"] = (batch.pop("labels") != IGNORED).long()
        return batch


@pytest.mark.parametrize("precompute", [False, True], ids=["loaded", "precomputed"])
def test_dpo_without_ref_model(tiny_model, tiny_processor, tmp_path, precompute: bool) -> None:
    """The reference is the checkpoint that the model was loaded from, or its log-probabilities before training."""
    tiny_model.save_pretrained(tmp_path / "model")
    tiny_processor.save_pretrained(tmp_path / "model")
    rows = []
    for seconds in (1, 2):
        path = str(tmp_path / f"{seconds}.wav")
        soundfile.write(path, 0.1 * np.random.default_rng(seconds).standard_normal(seconds * 8_000), 16_000)
        question = [{"type": "audio", "path": path}, {"type": "text", "text": "What is said?"}]
        answers = {"chosen": "Yes.", "rejected": "No."}
        rows.append(
            {
                "prompt": [{"role": "user", "content": question}],
                **{name: [{"role": "assistant", "content": answer}] for name, answer in answers.items()},
            }
        )
    model = AudioLlmForConditionalGeneration.from_pretrained(tmp_path / "model")
    trainer = trl.DPOTrainer(
        model,
        args=trl.DPOConfig(
            str(tmp_path / "out"),
            remove_unused_columns=False,
            precompute_ref_log_probs=precompute,
            max_steps=6,
            logging_steps=1,
            learning_rate=1e-2,
            report_to="none",
            use_cpu=True,
            bf16=False,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny_processor,
        data_collator=PreferenceCollator(tiny_processor),
    )
    assert (trainer.ref_model is None) == precompute
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(np.log(2), abs=1e-3)  # nothing moved yet
    assert losses[-1] < 0.8 * losses[0]
    trained = dict(trainer.model.named_parameters())
    moved = {name for name, value in tiny_model.named_parameters() if not torch.equal(value, trained[name])}
    assert moved == set(tiny_model.trainable_names())

"""
Trains an AudioLLM on preferences with TRL's DPOTrainer: python examples/dpo_with_trl.py MODEL DATA OUTPUT

MODEL is a saved AudioLLM, and the reference too. DATA is a file of JSON Lines with a preference about recordings in each:

    {"prompt": [{"role": "user", "content": [{"type": "audio", "path": "morning.wav"}, {"type": "text", "text": "What?"}]}],
     "chosen": [{"role": "assistant", "content": "Good morning."}], "rejected": [{"role": "assistant", "content": "No."}]}
"""

import sys
from typing import Any

import torch
from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor
from audiollm.training.collator import ConversationCollator
from datasets import load_dataset
from trl import DPOConfig, DPOTrainer


class PreferenceCollator:
    """Batches chosen answers and then rejected ones, each with its recordings; TRL's own collators hand on no audio."""

    def __init__(self, processor: AudioLlmProcessor):
        self.collate = ConversationCollator(processor)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = self.collate(
            [{"messages": row["prompt"] + row[side]} for side in ("chosen", "rejected") for row in rows]
        )
        batch["completion_mask"] = (batch.pop("labels") >= 0).long()
        return batch


def main(model_path: str, data_path: str, output_dir: str, **options) -> DPOTrainer:
    """Trains projector and LoRA, and saves them with the processor; `options` are those of `DPOConfig`."""
    processor = AudioLlmProcessor.from_pretrained(model_path)
    defaults = {"learning_rate": 1e-5, "bf16": torch.cuda.is_available(), "remove_unused_columns": False}
    trainer = DPOTrainer(
        AudioLlmForConditionalGeneration.from_pretrained(model_path),
        args=DPOConfig(output_dir, **{**defaults, **options}),
        train_dataset=load_dataset("json", data_files=data_path, split="train"),
        processing_class=processor,
        data_collator=PreferenceCollator(processor),
    )
    trainer.train()
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    main(*sys.argv[1:])

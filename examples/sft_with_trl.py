"""
Fine-tunes an AudioLLM with TRL's SFTTrainer: python examples/sft_with_trl.py MODEL DATA OUTPUT

MODEL is a saved AudioLLM. DATA is as for `train_with_trainer.py`.
"""

import sys

import torch
from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor
from audiollm.training.collator import ConversationCollator
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer


def main(model_path: str, data_path: str, output_dir: str, **options) -> SFTTrainer:
    """Trains projector and LoRA, and saves them with the processor; `options` are those of `SFTConfig`."""
    processor = AudioLlmProcessor.from_pretrained(model_path)
    defaults = {
        "learning_rate": 2e-4,
        "bf16": torch.cuda.is_available(),
        "remove_unused_columns": False,  # the collator needs `messages` and `audio`
        "dataset_kwargs": {"skip_prepare_dataset": True},  # and it tokenizes: TRL's own preparation knows no audio
    }
    trainer = SFTTrainer(
        AudioLlmForConditionalGeneration.from_pretrained(model_path),
        args=SFTConfig(output_dir, **{**defaults, **options}),
        train_dataset=load_dataset("json", data_files=data_path, split="train"),
        processing_class=processor,
        data_collator=ConversationCollator(processor),
    )
    trainer.train()
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    main(*sys.argv[1:])

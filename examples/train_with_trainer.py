"""
Fine-tunes an AudioLLM with transformers' own Trainer: python examples/train_with_trainer.py MODEL DATA OUTPUT

MODEL is a saved AudioLLM. DATA is a file of JSON Lines with a conversation and its recordings in each:

    {"messages": [{"role": "user", "content": "<audio>\\nWhat is said?"},
                  {"role": "assistant", "content": "Good morning."}], "audio": ["morning.wav"]}
"""

import sys

import torch
from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor
from audiollm.training.collator import ConversationCollator
from datasets import load_dataset
from transformers import Trainer, TrainingArguments


def main(model_path: str, data_path: str, output_dir: str, **options) -> Trainer:
    """Trains projector and LoRA, and saves them with the processor; `options` are those of `TrainingArguments`."""
    model = AudioLlmForConditionalGeneration.from_pretrained(model_path)
    processor = AudioLlmProcessor.from_pretrained(model_path)
    defaults = {
        "per_device_train_batch_size": 8,
        "num_train_epochs": 3,
        "learning_rate": 2e-4,
        "bf16": torch.cuda.is_available(),
        "remove_unused_columns": False,  # the collator needs `messages` and `audio`
    }
    trainer = Trainer(
        model=model,
        args=TrainingArguments(output_dir, **{**defaults, **options}),
        train_dataset=load_dataset("json", data_files=data_path, split="train"),
        data_collator=ConversationCollator(processor),
        processing_class=processor,
    )
    trainer.train()
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])

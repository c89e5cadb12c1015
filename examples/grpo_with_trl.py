"""
Trains an AudioLLM for fewer word errors with TRL's GRPOTrainer: python examples/grpo_with_trl.py MODEL DATA OUTPUT

MODEL is a saved AudioLLM that transcribes already. DATA is a file of JSON Lines with a question about one recording of up to
30 s and its transcript in each:

    {"prompt": [{"role": "user", "content": [{"type": "audio", "path": "morning.wav"},
                                             {"type": "text", "text": "Transcribe the speech."}]}], "text": "Good morning."}
"""

import sys
from functools import partial
from typing import Any

import torch
from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor
from audiollm.evaluation.word_error import score_word_error
from datasets import load_dataset
from trl import GRPOConfig, GRPOTrainer

AUDIO = ("input_features", "input_features_mask")


def fewer_word_errors(completions: list[list[dict[str, str]]], text: list[str], **_: Any) -> list[float]:
    """Return minus the word error rate of each answer."""
    return [
        -score_word_error([expected], [answer[0]["content"]]).word_error for answer, expected in zip(completions, text)
    ]


class AudioGRPOTrainer(GRPOTrainer):
    """
    GRPO on answers to speech; TRL's own hands images on to the model, and no audio.

    Without a reference model (`beta` 0) and with one optimizer step for each generation, as by default: TRL computes the
    log-probabilities of other settings in a place that knows no audio.
    """

    def __init__(
        self, model: AudioLlmForConditionalGeneration, processor: AudioLlmProcessor, args: GRPOConfig, **more
    ):
        if args.beta or args.num_iterations > 1 or args.steps_per_generation != args.gradient_accumulation_steps:
            raise ValueError(
                "Audio needs beta=0, num_iterations=1 and steps_per_generation=gradient_accumulation_steps."
            )
        super().__init__(model, args=args, processing_class=processor.tokenizer, **more)
        self.audio_processor = processor
        self._audio: dict[str, torch.Tensor] = {}

    def _tokenize_prompts(self, prompts: list[list[dict[str, Any]]]):
        """Return ids of prompts with room for their audio, no images, and the features that `generate` needs."""
        batch = self.audio_processor.apply_chat_template(prompts, tokenize=True, add_generation_prompt=True)
        self._audio = {name: batch[name] for name in AUDIO}
        if len(batch["input_features"]) != len(prompts):
            raise ValueError("Each prompt needs one recording of up to 30 s.")
        ids = [row[mask.bool()].tolist() for row, mask in zip(batch["input_ids"], batch["attention_mask"])]
        return ids, None, dict(self._audio)

    def _generate_and_score_completions(self, inputs):
        """Add the features of each row, which TRL shuffles and splits with the rest."""
        scored = super()._generate_and_score_completions(inputs)
        return scored | {name: rows.to(self.accelerator.device) for name, rows in self._audio.items()}

    def _compute_loss(self, model, inputs):
        """Have the model hear each row's audio."""
        return super()._compute_loss(partial(model, **{name: inputs[name] for name in AUDIO}), inputs)


def main(model_path: str, data_path: str, output_dir: str, **options) -> AudioGRPOTrainer:
    """Trains projector and LoRA, and saves them with the processor; `options` are those of `GRPOConfig`."""
    defaults = {"learning_rate": 1e-5, "bf16": torch.cuda.is_available(), "max_completion_length": 128}
    processor = AudioLlmProcessor.from_pretrained(model_path)
    trainer = AudioGRPOTrainer(
        AudioLlmForConditionalGeneration.from_pretrained(model_path),
        processor,
        GRPOConfig(output_dir, **{**defaults, **options}),
        reward_funcs=fewer_word_errors,
        train_dataset=load_dataset("json", data_files=data_path, split="train"),
    )
    trainer.train()
    trainer.save_model()
    processor.save_pretrained(output_dir)
    return trainer


if __name__ == "__main__":
    main(*sys.argv[1:])

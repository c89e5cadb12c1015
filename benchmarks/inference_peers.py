"""
Sides of the comparison in `first_token.py`: AudioLLM and transformers' classes from the same two bases, each with the
processor its users would call.

The peers have no LoRA, as after merging one, and all have a random projector: what they say means nothing, what it costs does.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from audiollm.inference.answering import ask
from training_peers import (
    PEER_SLOT,
    QUESTION,
    SAMPLE_RATE_HZ,
    VOXTRAL_STACK,
    audiollm_model,
    audiollm_processor,
    base_tokenizer,
    feature_extractor,
    qwen2_audio_model,
    voxtral_model,
)
from transformers import PreTrainedModel, Qwen2AudioProcessor, VoxtralProcessor

MEL_FRAMES_PER_S = 100
#: ChatML, which the text base speaks, for contents of typed parts; Qwen2-Audio's processor has no template for others.
TYPED_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'audio' %}" + PEER_SLOT + "{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Side:
    """
    One way to ask about a recording.

    Attributes:
        model: in evaluation mode.
        prepare: a float32 waveform `(samples,)` at 16 kHz to what `generate` takes, features and ids.
        heard_s: seconds of the recording that those inputs hold.
        encoded_s: seconds that the encoder runs over, padding included.
    """

    model: PreTrainedModel
    prepare: Callable[[np.ndarray], dict[str, torch.Tensor]]
    heard_s: Callable[[np.ndarray, dict[str, torch.Tensor]], float]
    encoded_s: Callable[[dict[str, torch.Tensor]], float]


def audiollm(dtype: str, merged: bool = False) -> Side:
    """
    Our model, as the commands load it.

    Args:
        merged: folds LoRA into the language model, as for a deployment without routing.
    """
    model, processor = audiollm_model(getattr(torch, dtype)), audiollm_processor()
    if merged:
        model = model.merge_adapters()

    def prepare(waveform: np.ndarray) -> dict[str, torch.Tensor]:
        conversation = ask(QUESTION, waveform)
        return dict(processor.apply_chat_template(conversation, tokenize=True, add_generation_prompt=True))

    return Side(model.eval(), prepare, _heard_by_mask, _encoded_s)


def audiollm_merged(dtype: str) -> Side:
    """Our model with LoRA merged, as the peers'."""
    return audiollm(dtype, merged=True)


def voxtral(dtype: str) -> Side:
    """
    transformers' Voxtral class. Its processor needs Mistral's own tokenizers, so that its steps are done here: features
    of windows that are padded to 30 s, and a slot for every 80 ms of those, padding included.
    """
    model = voxtral_model(getattr(torch, dtype)).eval()
    tokenizer, extractor = base_tokenizer(), feature_extractor()
    audio_kwargs: dict[str, Any] = dict(VoxtralProcessor.audio_kwargs)
    window_frames = audio_kwargs.pop("max_source_positions")
    slots_per_window = extractor.nb_max_frames // 2 // VOXTRAL_STACK

    def prepare(waveform: np.ndarray) -> dict[str, torch.Tensor]:
        features = extractor(waveform, **audio_kwargs)["input_features"]
        windows = features.reshape(extractor.feature_size, -1, window_frames).transpose(0, 1)
        content = PEER_SLOT * slots_per_window * len(windows) + QUESTION
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")
        return {**ids, "input_features": windows.to(model.dtype)}

    def heard_s(waveform: np.ndarray, inputs: dict[str, torch.Tensor]) -> float:
        return min(len(waveform) / SAMPLE_RATE_HZ, _encoded_s(inputs))

    return Side(model, prepare, heard_s, _encoded_s)


def qwen2_audio(dtype: str) -> Side:
    """transformers' Qwen2-Audio class, with its processor, which pads to 30 s and drops what comes after them."""
    model = qwen2_audio_model(getattr(torch, dtype)).eval()
    processor = Qwen2AudioProcessor(
        feature_extractor(), base_tokenizer(), chat_template=TYPED_CHATML, audio_token=PEER_SLOT
    )

    def prepare(waveform: np.ndarray) -> dict[str, torch.Tensor]:
        text = processor.apply_chat_template(ask(QUESTION, waveform), add_generation_prompt=True, tokenize=False)
        inputs = processor(text=text, audio=[waveform], sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt")
        return {**inputs, "input_features": inputs["input_features"].to(model.dtype)}

    return Side(model, prepare, _heard_by_mask, _encoded_s)


def _heard_by_mask(waveform: np.ndarray, inputs: dict[str, torch.Tensor]) -> float:
    mask = inputs["input_features_mask" if "input_features_mask" in inputs else "feature_attention_mask"]
    return int(mask.sum()) / MEL_FRAMES_PER_S


def _encoded_s(inputs: dict[str, torch.Tensor]) -> float:
    windows, _, frames = inputs["input_features"].shape
    return windows * frames / MEL_FRAMES_PER_S


OURS = {"audiollm": audiollm, "audiollm, merged": audiollm_merged}
PEERS = {"voxtral": voxtral, "qwen2_audio": qwen2_audio}

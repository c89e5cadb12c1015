"""
Sides of the comparison in `training_step.py`: AudioLLM, transformers' classes and Ultravox's recipe, from the same two bases.

AudioLLM and the classes train their projector and LoRA of the same rank on the same layers of the language model; bases are
frozen and the encoder computes no gradients. Each peer gets its audio as its class demands, and its own number of audio tokens.

Ultravox's recipe is written from what its public code does (github.com/fixie-ai/ultravox at 648efe7: `ultravox_model.py`,
`ultravox_processing.py`, `v0.4.1_config.yaml`), with none of it. It trains the projector alone: log-mel features padded to the
batch's longest clip; Whisper's encoder over all of them, padding masked in attention but not in the convolutions; eight frames
a token; RMSNorm, Linear to 4096, SwiGLU, RMSNorm, Linear; the loss is the divergence, at temperature 2, from what the same
language model says after the transcript in place of the audio, whose forward is part of the step. "Ultravox of 30 s" pads to
30 s, as engines that serve it do; its tokens are those of the clip. The encoder's own LoRA of versions from 0.5 on is left out.
"""

from collections.abc import Callable
from functools import cache, partial
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor
from audiollm.base_models import resolve_base
from audiollm.checkpoints import load_audio_base, load_text_base
from audiollm.command_line.cpu_speed import use_cpu_speed
from audiollm.corpora.prompts import load_studio_prompts
from audiollm.inference.answering import ask
from common import Clip
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    LlamaConfig,
    PreTrainedModel,
    Qwen2AudioForConditionalGeneration,
    VoxtralForConditionalGeneration,
    WhisperConfig,
)
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.whisper.modeling_whisper import WhisperEncoder

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
#: Encoder frames (20 ms) that Voxtral's class makes one token of, and log-mel frames (10 ms) of one of them.
VOXTRAL_STACK, MEL_PER_FRAME = 4, 2
ULTRAVOX_STACK, ULTRAVOX_WIDTH, ULTRAVOX_NORM, ULTRAVOX_TEMPERATURE = 8, 4096, 0.4, 2.0
#: Fields of Whisper's configuration that the peers' encoders, which are Whisper's, have too.
ENCODER_FIELDS = (
    "d_model",
    "encoder_layers",
    "encoder_attention_heads",
    "encoder_ffn_dim",
    "num_mel_bins",
    "max_source_positions",
)


class Shape(NamedTuple):
    """A batch of clips: how many, and how long each is; None is the studio prompts as they are, of median length."""

    num_clips: int
    seconds: float | None


#: Windows of 30 s are four, not eight: Qwen2-Audio's logits for eight do not fit into 24 GB in float32.
SHAPES = {"short": Shape(8, None), "10s": Shape(8, 10.0), "30s": Shape(4, 30.0)}


#: A model, and a batch that its `forward` takes.
Step = tuple[nn.Module, dict[str, Any]]
Side = Callable[[torch.dtype, Shape], Step]


def make_clips(shape: Shape) -> list[Clip]:
    """Return training prompts nearest to the median length, or as many in a row as fit into `shape.seconds`, then silence."""
    processor = audiollm_processor()
    prompts = sorted(
        load_studio_prompts("train"), key=lambda row: (abs(row["duration_s"] - MEDIAN_PROMPT_SECONDS), row["id"])
    )
    said = (Clip(processor.load_audio(row["audio"]), row["text"]) for row in prompts)
    if shape.seconds is None:
        return [next(said) for _ in range(shape.num_clips)]
    clips, num_samples, part = [], int(shape.seconds * SAMPLE_RATE_HZ), next(said)
    for _ in range(shape.num_clips):
        waveform, texts, end = np.zeros(num_samples, dtype=np.float32), [], 0
        while end + len(part.audio) <= num_samples:
            waveform[end : end + len(part.audio)] = part.audio
            texts.append(part.text)
            end += len(part.audio)
            part = next(said)
        clips.append(Clip(waveform, " ".join(texts)))
    return clips


@cache
def audiollm_processor() -> AudioLlmProcessor:
    """Return our processor for the two bases."""
    return AudioLlmProcessor.from_audio_text_pretrained(AUDIO_BASE, TEXT_BASE)


def audiollm_model(dtype: torch.dtype) -> AudioLlmForConditionalGeneration:
    """Return our model, with the bases' weights; its projector is random."""
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(
        AUDIO_BASE, TEXT_BASE, dtype=dtype, lora_rank=LORA_RANK, lora_alpha=LORA_ALPHA, lora_target_modules=TARGETS
    )
    use_cpu_speed(model)  # as the commands do
    return model


def audiollm_side(dtype: torch.dtype, shape: Shape) -> Step:
    """Return our model, and its batch with encoder output computed before."""
    model = audiollm_model(dtype).train()
    conversations = [
        [*ask(f"<audio>{QUESTION}", clip.audio), {"role": "assistant", "content": clip.text}]
        for clip in make_clips(shape)
    ]
    batch = audiollm_processor().apply_chat_template(
        conversations, tokenize=True, return_labels=True, padding_side="right"
    )
    with torch.no_grad():
        frames, lengths = model.model.encode_audio(batch.pop("input_features"), batch.pop("input_features_mask"))
    return model, {**batch, "encoded_audio": frames, "encoded_audio_lengths": lengths}


def peer_config(kind: type[PreTrainedModel], whisper: WhisperConfig, llama: LlamaConfig, audio_token_id: int) -> Any:
    """Return the configuration of one of transformers' classes for the bases of these configurations."""
    return cast(Any, kind.config_class)(
        audio_config={name: getattr(whisper, name) for name in ENCODER_FIELDS},
        text_config=llama.to_dict(),
        audio_token_id=audio_token_id,
        tie_word_embeddings=llama.tie_word_embeddings,
    )


def peer_model(kind: type[PreTrainedModel], dtype: torch.dtype) -> Any:
    """Return one of transformers' classes with the bases' weights, frozen; its projector is random."""
    whisper, llama = base_configs()
    model: Any = kind(peer_config(kind, whisper, llama, peer_slot_id()))
    audio, text = load_audio_base(AUDIO_BASE, whisper), load_text_base(TEXT_BASE)
    state = {f"model.audio_tower.{key}": value for key, value in audio.items()} | text
    state["lm_head.weight"] = text["model.language_model.embed_tokens.weight"]
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and all("multi_modal_projector" in key for key in missing), (missing, unexpected)
    model.tie_weights()
    return model.to(dtype).requires_grad_(False)


def voxtral_side(dtype: torch.dtype, shape: Shape) -> Step:
    """Return transformers' Voxtral class: every clip is padded to 30 s, and all of that is its tokens."""
    model, clips = add_lora(peer_model(VoxtralForConditionalGeneration, dtype)), make_clips(shape)
    slots = model.config.audio_config.max_source_positions // VOXTRAL_STACK
    tokens = peer_tokens(clips, [PEER_SLOT * slots] * len(clips))
    return model, {**tokens, "input_features": features_of(clips)[0].to(dtype)}


def qwen2_audio_side(dtype: torch.dtype, shape: Shape) -> Step:
    """Return transformers' Qwen2-Audio class: clips are padded to 30 s for the encoder; tokens of 40 ms, as many as needed."""
    model, clips = add_lora(peer_model(Qwen2AudioForConditionalGeneration, dtype)), make_clips(shape)
    features, mask = features_of(clips)
    encoder_frames = (mask.sum(dim=1) - 1) // 2 + 1
    slots = (encoder_frames - 2) // 2 + 1  # pooled by two
    tokens = peer_tokens(clips, [PEER_SLOT * count for count in slots.tolist()])
    return model, {**tokens, "input_features": features.to(dtype), "feature_attention_mask": mask}


def base_configs() -> tuple[WhisperConfig, LlamaConfig]:
    """Return the configurations of the audio base and of the text base."""
    return (
        AutoConfig.from_pretrained(resolve_base(AUDIO_BASE, "audio")),
        AutoConfig.from_pretrained(resolve_base(TEXT_BASE, "text")),
    )


@cache
def base_tokenizer():
    """Return the language model's tokenizer."""
    return AutoTokenizer.from_pretrained(resolve_base(TEXT_BASE, "text"), padding_side="right")


@cache
def feature_extractor():
    """Return Whisper's feature extractor."""
    return AutoFeatureExtractor.from_pretrained(resolve_base(AUDIO_BASE, "audio"))


def peer_slot_id() -> int:
    """Return the id of the token that stands for a stretch of audio in the peers' prompts."""
    return cast(int, base_tokenizer().convert_tokens_to_ids(PEER_SLOT))


def add_lora(model: Any) -> Any:
    """Add LoRA to a peer's language model; it and the projector train."""
    settings = LoraConfig(r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules=TARGETS)
    inject_adapter_in_model(settings, model.model.language_model)
    model.model.multi_modal_projector.requires_grad_(True)
    model.train()
    model.model.audio_tower.eval()
    return model


def features_of(clips: list[Clip], **padding: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-mel features, `(clips, mel_bins, 3000)` unless padded otherwise, and the mask of their real frames."""
    waveforms = [clip.audio for clip in clips]
    features = feature_extractor()(
        waveforms, sampling_rate=SAMPLE_RATE_HZ, return_attention_mask=True, return_tensors="pt", **padding
    )
    return features["input_features"], features["attention_mask"]


def peer_tokens(clips: list[Clip], heard: list[str]) -> dict[str, torch.Tensor]:
    """
    Return ids, mask and labels of the same question and answer as ours, padded on the right.

    Args:
        heard: stands before each clip's question: slots, or the transcript.
    """
    tokenizer = base_tokenizer()
    rows = []
    for clip, before in zip(clips, heard):
        turn = [{"role": "user", "content": before + QUESTION}]
        prompt = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        answer_ids = tokenizer(clip.text + END_OF_TURN, add_special_tokens=False)["input_ids"]
        labels = [IGNORED_LABEL] * len(prompt_ids) + answer_ids
        rows.append({"input_ids": prompt_ids + answer_ids, "labels": labels})
    return dict(DataCollatorForSeq2Seq(tokenizer)(rows))


class MaskedWhisper(WhisperEncoder):
    """Whisper's encoder for features of up to 30 s, whose padding attention does not look at, as Ultravox runs it."""

    def forward(self, input_features: torch.Tensor, mel_lengths: torch.Tensor) -> torch.Tensor:
        """Return frames `(clips, mel_frames / 2, d_model)` of `(clips, mel_bins, mel_frames)`."""
        hidden = nn.functional.gelu(self.conv1(input_features.to(self.conv1.weight.dtype)))
        hidden = nn.functional.gelu(self.conv2(hidden)).transpose(1, 2)
        hidden = hidden + self.embed_positions.weight[: hidden.shape[1]]
        lengths = (mel_lengths - 1) // MEL_PER_FRAME + 1
        real = torch.arange(hidden.shape[1])[None, :] < lengths[:, None]
        mask = create_bidirectional_mask(config=self.config, inputs_embeds=hidden, attention_mask=real)
        for layer in self.layers:
            hidden = layer(hidden, mask)
        return self.layer_norm(hidden)


class UltravoxProjector(nn.Module):
    """Makes tokens `(clips, ceil(frames / 8), embedding size)` of frames `(clips, frames, width)`."""

    def __init__(self, width: int, embedding_size: int):
        super().__init__()
        self.norm = LlamaRMSNorm(width * ULTRAVOX_STACK, eps=1e-6)
        self.widen = nn.Linear(width * ULTRAVOX_STACK, ULTRAVOX_WIDTH, bias=False)
        self.middle_norm = LlamaRMSNorm(ULTRAVOX_WIDTH // 2, eps=1e-6)
        self.narrow = nn.Linear(ULTRAVOX_WIDTH // 2, embedding_size, bias=False)
        for norm in (self.norm, self.middle_norm):
            nn.init.constant_(norm.weight, ULTRAVOX_NORM)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        frames = nn.functional.pad(frames, (0, 0, 0, -frames.shape[1] % ULTRAVOX_STACK))
        stacked = frames.reshape(len(frames), frames.shape[1] // ULTRAVOX_STACK, -1)
        value, gate = self.widen(self.norm(stacked)).chunk(2, dim=-1)
        return self.narrow(self.middle_norm(nn.functional.silu(gate) * value))


class Ultravox(nn.Module):
    """
    Ultravox's recipe: a frozen encoder, a projector that trains, and a frozen language model.

    The loss is the divergence from what the language model says to the transcript in place of the audio (`teacher`: ids,
    mask and labels).
    """

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        whisper, _ = base_configs()
        self.audio_tower = MaskedWhisper(whisper).requires_grad_(False)
        self.audio_tower.load_state_dict(load_audio_base(AUDIO_BASE, whisper))
        nn.Module.to(self.audio_tower, dtype)  # transformers wraps the method; mypy takes it for a plain function
        self.language_model = AutoModelForCausalLM.from_pretrained(resolve_base(TEXT_BASE, "text"), dtype=dtype)
        self.language_model.requires_grad_(False)
        widths = self.audio_tower.config.d_model, self.language_model.config.hidden_size
        self.projector = UltravoxProjector(*widths).to(dtype)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor,
        input_features: torch.Tensor,
        mel_lengths: torch.Tensor,
        teacher: dict[str, torch.Tensor],
    ) -> SimpleNamespace:
        with torch.no_grad():
            frames = self.audio_tower(input_features, mel_lengths)
            meant = self.language_model(teacher["input_ids"], attention_mask=teacher["attention_mask"]).logits
        tokens = self.projector(frames)
        slots = input_ids == peer_slot_id()
        real = torch.arange(tokens.shape[1])[None, :] < slots.sum(dim=1)[:, None]
        embeds = self.language_model.get_input_embeddings()(input_ids)
        embeds = embeds.masked_scatter(slots[..., None], tokens[real])
        said = self.language_model(inputs_embeds=embeds, attention_mask=attention_mask).logits
        said, meant = (
            logits[:, :-1][wanted[:, 1:] != IGNORED_LABEL] / ULTRAVOX_TEMPERATURE
            for logits, wanted in ((said, labels), (meant, teacher["labels"]))
        )
        loss = nn.functional.kl_div(said.log_softmax(-1), meant.softmax(-1), reduction="batchmean")
        return SimpleNamespace(loss=loss)


def ultravox_side(dtype: torch.dtype, shape: Shape, of_30_s: bool = False) -> Step:
    """Return Ultravox's recipe as it trains, padded to the batch's longest clip; or padded to 30 s, the padding masked."""
    clips = make_clips(shape)
    longest = {"padding": "longest", "truncation": False, "pad_to_multiple_of": feature_extractor().hop_length}
    input_features, mask = features_of(clips, **({} if of_30_s else longest))
    mel_lengths = mask.sum(dim=1)
    slots = -(-mel_lengths // (MEL_PER_FRAME * ULTRAVOX_STACK))
    return Ultravox(dtype), {
        **peer_tokens(clips, [PEER_SLOT * count for count in slots.tolist()]),
        "teacher": peer_tokens(clips, [clip.text for clip in clips]),
        "input_features": input_features,
        "mel_lengths": mel_lengths,
    }


SIDES: dict[str, Side] = {
    "audiollm": audiollm_side,
    "voxtral": voxtral_side,
    "qwen2_audio": qwen2_audio_side,
    "ultravox": ultravox_side,
    "ultravox of 30 s": partial(ultravox_side, of_30_s=True),
}

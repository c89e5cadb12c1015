"""
Two published recipes as sides of the comparisons, on the same bases as the rest: Ultravox's, and SLAM-LLM's.

Written from what their public code does, with none of it; both train the projector alone, so that there is no LoRA.

- Ultravox (github.com/fixie-ai/ultravox at 648efe7: `ultravox_model.py`, `ultravox_processing.py`, `v0.4.1_config.yaml`):
  log-mel features padded to the batch's longest clip; Whisper's encoder over all of them, padding masked in attention but
  not in the convolutions; eight frames a token; RMSNorm, Linear to 4096, SwiGLU, RMSNorm, Linear; the loss is the
  divergence, at temperature 2, from what the same language model says after the transcript in place of the audio, whose
  forward is part of the step. "Ultravox of 30 s" pads to 30 s, as engines that serve it do; its tokens are those of the clip.
  The encoder's own LoRA of versions from 0.5 on is left out.
- SLAM (github.com/X-LANCE/SLAM-LLM at a68e78f: `projector.py`, `slam_model.py`, `speech_dataset.py`, the recipe
  `finetune_whisper_large_linear_vicuna_7b.sh`; arXiv 2402.08846): clips padded to 30 s, all of which become tokens; five
  frames a token; Linear to 2048, ReLU, Linear; cross-entropy on the transcript, with the logits of every position. Only its
  choice of the prompt's words is not reproduced: the question and the template are those of the other sides.
"""

from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from audiollm.base_models import resolve_base
from audiollm.checkpoints import load_audio_base
from torch import nn
from training_peers import (
    AUDIO_BASE,
    IGNORED_LABEL,
    PEER_SLOT,
    SAMPLE_RATE_HZ,
    TEXT_BASE,
    Clip,
    Shape,
    Side,
    base_configs,
    feature_extractor,
    make_clips,
    padded_features,
    peer_slot_id,
    peer_tokens,
)
from transformers import AutoModelForCausalLM
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.whisper.modeling_whisper import WhisperEncoder

ULTRAVOX_STACK, ULTRAVOX_WIDTH, ULTRAVOX_NORM, ULTRAVOX_TEMPERATURE = 8, 4096, 0.4, 2.0
SLAM_STACK, SLAM_WIDTH = 5, 2048
#: Log-mel frames (10 ms) of an encoder frame.
MEL_PER_FRAME = 2


class MaskedWhisper(WhisperEncoder):
    """Whisper's encoder for features of up to 30 s, whose padding attention does not look at, as Ultravox runs it."""

    def forward(self, input_features: torch.Tensor, mel_lengths: torch.Tensor | None = None) -> torch.Tensor:
        """Frames `(clips, mel_frames / 2, d_model)` of `(clips, mel_bins, mel_frames)`; without lengths all are real."""
        hidden = nn.functional.gelu(self.conv1(input_features.to(self.conv1.weight.dtype)))
        hidden = nn.functional.gelu(self.conv2(hidden)).transpose(1, 2)
        hidden = hidden + self.embed_positions.weight[: hidden.shape[1]]
        mask = None
        if mel_lengths is not None:
            lengths = (mel_lengths - 1) // MEL_PER_FRAME + 1
            real = torch.arange(hidden.shape[1])[None, :] < lengths[:, None]
            mask = create_bidirectional_mask(config=self.config, inputs_embeds=hidden, attention_mask=real)
        for layer in self.layers:
            hidden = layer(hidden, mask)
        return self.layer_norm(hidden)


def masked_whisper(dtype: torch.dtype) -> MaskedWhisper:
    """With the audio base's weights, frozen."""
    whisper, _ = base_configs()
    encoder = MaskedWhisper(whisper)
    encoder.load_state_dict(load_audio_base(AUDIO_BASE, whisper))
    nn.Module.to(encoder, dtype)  # transformers wraps the method; mypy takes it for a plain function
    return encoder.requires_grad_(False).eval()


def features_to_the_longest(clips: list[Clip]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-mel features `(clips, mel_bins, frames of the longest)` and the mask of their real frames."""
    extractor = feature_extractor()
    features = extractor(
        [clip.waveform for clip in clips],
        sampling_rate=SAMPLE_RATE_HZ,
        padding="longest",
        pad_to_multiple_of=extractor.hop_length,
        truncation=False,
        return_attention_mask=True,
        return_tensors="pt",
    )
    return features["input_features"], features["attention_mask"]


def stack_frames(frames: torch.Tensor, factor: int) -> torch.Tensor:
    """Joins so many frames that follow each other: `(clips, frames / factor, factor * width)`; `factor` divides frames."""
    clips, count, width = frames.shape
    return frames.reshape(clips, count // factor, factor * width)


class UltravoxProjector(nn.Module):
    """Frames `(clips, frames, width)` to tokens `(clips, ceil(frames / 8), embedding size)`."""

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
        value, gate = self.widen(self.norm(stack_frames(frames, ULTRAVOX_STACK))).chunk(2, dim=-1)
        return self.narrow(self.middle_norm(nn.functional.silu(gate) * value))


class SlamProjector(nn.Module):
    """Frames `(clips, frames, width)` to tokens `(clips, frames // 5, embedding size)`."""

    def __init__(self, width: int, embedding_size: int):
        super().__init__()
        self.first = nn.Linear(width * SLAM_STACK, SLAM_WIDTH)
        self.second = nn.Linear(SLAM_WIDTH, embedding_size)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        frames = frames[:, : frames.shape[1] // SLAM_STACK * SLAM_STACK]
        return self.second(nn.functional.relu(self.first(stack_frames(frames, SLAM_STACK))))


class Recipe(nn.Module):
    """
    A frozen encoder, a projector that trains, and a frozen language model.

    With `teacher` among its inputs (ids, mask and labels of the transcript in place of the audio) the loss is the
    divergence from what the language model says there, else cross-entropy.
    """

    def __init__(self, projector: type[nn.Module], dtype: torch.dtype):
        super().__init__()
        self.audio_tower = masked_whisper(dtype)
        self.language_model = AutoModelForCausalLM.from_pretrained(resolve_base(TEXT_BASE, "text"), dtype=dtype)
        self.language_model.requires_grad_(False)
        self.projector = projector(self.audio_tower.config.d_model, self.language_model.config.hidden_size).to(dtype)
        self.slot_id = peer_slot_id()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor,
        input_features: torch.Tensor,
        mel_lengths: torch.Tensor | None = None,
        teacher: dict[str, torch.Tensor] | None = None,
    ) -> SimpleNamespace:
        with torch.no_grad():
            frames = self.audio_tower(input_features, mel_lengths)
        tokens = self.projector(frames)
        slots = input_ids == self.slot_id
        real = torch.arange(tokens.shape[1])[None, :] < slots.sum(dim=1)[:, None]
        embeds = self.language_model.get_input_embeddings()(input_ids)
        embeds = embeds.masked_scatter(slots[..., None], tokens[real])
        if teacher is None:
            return self.language_model(inputs_embeds=embeds, attention_mask=attention_mask, labels=labels)
        said = self.language_model(inputs_embeds=embeds, attention_mask=attention_mask).logits
        with torch.no_grad():
            meant = self.language_model(teacher["input_ids"], attention_mask=teacher["attention_mask"]).logits
        said, meant = _predictions(said, labels), _predictions(meant, teacher["labels"])
        return SimpleNamespace(
            loss=nn.functional.kl_div(
                nn.functional.log_softmax(said / ULTRAVOX_TEMPERATURE, dim=-1),
                nn.functional.softmax(meant / ULTRAVOX_TEMPERATURE, dim=-1),
                reduction="batchmean",
            )
        )


def _predictions(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Logits that predict a label, `(labels, vocabulary)`."""
    return logits[:, :-1][labels[:, 1:] != IGNORED_LABEL]


def ultravox_side(dtype: torch.dtype, shape: Shape, of_30_s: bool = False) -> tuple[nn.Module, dict[str, Any]]:
    """Ultravox's recipe as it trains, padded to the longest clip of the batch; or padded to 30 s, the padding masked."""
    model = Recipe(UltravoxProjector, dtype).train()
    clips = make_clips(shape)
    input_features, mask = padded_features(clips) if of_30_s else features_to_the_longest(clips)
    mel_lengths = mask.sum(dim=1)
    slots = -(-mel_lengths // (MEL_PER_FRAME * ULTRAVOX_STACK))
    teacher = peer_tokens(clips, [clip.text for clip in clips])
    batch: dict[str, Any] = peer_tokens(clips, [PEER_SLOT * count for count in slots.tolist()])
    return model, {**batch, "teacher": teacher, "input_features": input_features, "mel_lengths": mel_lengths}


def slam_side(dtype: torch.dtype, shape: Shape) -> tuple[nn.Module, dict[str, Any]]:
    """SLAM-LLM's recipe: 30 s of every clip, all of which becomes tokens."""
    model = Recipe(SlamProjector, dtype).train()
    clips = make_clips(shape)
    input_features, _ = padded_features(clips)
    count = input_features.shape[2] // MEL_PER_FRAME // SLAM_STACK
    return model, {**peer_tokens(clips, [PEER_SLOT * count] * len(clips)), "input_features": input_features}


RECIPES: dict[str, Side] = {
    "ultravox": ultravox_side,
    "ultravox of 30 s": partial(ultravox_side, of_30_s=True),
    "slam": slam_side,
}

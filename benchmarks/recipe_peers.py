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

import torch
from audiollm.base_models import resolve_base
from audiollm.checkpoints import load_audio_base
from torch import nn
from training_peers import (
    AUDIO_BASE,
    IGNORED_LABEL,
    PEER_SLOT,
    TEXT_BASE,
    Shape,
    Side,
    Step,
    base_configs,
    feature_extractor,
    features_of,
    make_clips,
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
        """Return frames `(clips, mel_frames / 2, d_model)` of `(clips, mel_bins, mel_frames)`; without lengths all are real."""
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


def stack_frames(frames: torch.Tensor, factor: int) -> torch.Tensor:
    """Join every `factor` frames that follow each other: `(clips, frames / factor, factor * width)`."""
    clips, count, width = frames.shape
    return frames.reshape(clips, count // factor, factor * width)


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
        value, gate = self.widen(self.norm(stack_frames(frames, ULTRAVOX_STACK))).chunk(2, dim=-1)
        return self.narrow(self.middle_norm(nn.functional.silu(gate) * value))


class SlamProjector(nn.Module):
    """Makes tokens `(clips, frames // 5, embedding size)` of frames `(clips, frames, width)`."""

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
        whisper, _ = base_configs()
        self.audio_tower = MaskedWhisper(whisper).requires_grad_(False)
        self.audio_tower.load_state_dict(load_audio_base(AUDIO_BASE, whisper))
        nn.Module.to(self.audio_tower, dtype)  # transformers wraps the method; mypy takes it for a plain function
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
        said = _predictions(said, labels) / ULTRAVOX_TEMPERATURE
        meant = _predictions(meant, teacher["labels"]) / ULTRAVOX_TEMPERATURE
        loss = nn.functional.kl_div(said.log_softmax(-1), meant.softmax(-1), reduction="batchmean")
        return SimpleNamespace(loss=loss)


def _predictions(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the logits that predict a label, `(labels, vocabulary)`."""
    return logits[:, :-1][labels[:, 1:] != IGNORED_LABEL]


def ultravox_side(dtype: torch.dtype, shape: Shape, of_30_s: bool = False) -> Step:
    """Return Ultravox's recipe as it trains, padded to the batch's longest clip; or padded to 30 s, the padding masked."""
    clips = make_clips(shape)
    longest = {"padding": "longest", "truncation": False, "pad_to_multiple_of": feature_extractor().hop_length}
    input_features, mask = features_of(clips, **({} if of_30_s else longest))
    mel_lengths = mask.sum(dim=1)
    slots = -(-mel_lengths // (MEL_PER_FRAME * ULTRAVOX_STACK))
    return Recipe(UltravoxProjector, dtype), {
        **peer_tokens(clips, [PEER_SLOT * count for count in slots.tolist()]),
        "teacher": peer_tokens(clips, [clip.text for clip in clips]),
        "input_features": input_features,
        "mel_lengths": mel_lengths,
    }


def slam_side(dtype: torch.dtype, shape: Shape) -> Step:
    """Return SLAM-LLM's recipe: 30 s of every clip, all of which becomes tokens."""
    clips = make_clips(shape)
    input_features, _ = features_of(clips)
    slots = PEER_SLOT * (input_features.shape[2] // MEL_PER_FRAME // SLAM_STACK)
    tokens = peer_tokens(clips, [slots] * len(clips))
    return Recipe(SlamProjector, dtype), {**tokens, "input_features": input_features}


RECIPES: dict[str, Side] = {
    "ultravox": ultravox_side,
    "ultravox of 30 s": partial(ultravox_side, of_30_s=True),
    "slam": slam_side,
}

"""The audio encoders, of any length up to a full window, padding masked: Whisper's, and Wav2Vec2-BERT's conformer."""

from typing import Any

import torch
from torch import nn
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.wav2vec2_bert.modeling_wav2vec2_bert import Wav2Vec2BertModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder
from transformers.utils.output_capturing import capture_outputs

#: The encoder's second convolution halves the frame rate: 10 ms log-mel frames become 20 ms encoder frames.
MEL_FRAMES_PER_ENCODER_FRAME = 2
#: 30 s, as Whisper's windows; the conformer itself has no limit, but its attention's cost grows with the square.
MAX_CONFORMER_FRAMES = 1500


def encoder_frame_counts(num_mel_frames: torch.Tensor) -> torch.Tensor:
    """Return the encoder frames (20 ms) of so many log-mel frames (10 ms), elementwise."""
    return (num_mel_frames - 1) // MEL_FRAMES_PER_ENCODER_FRAME + 1


def length_mask(lengths: torch.Tensor, max_length: int) -> torch.Tensor:
    """Return a boolean mask `(len(lengths), max_length)`, true at the first `lengths[i]` positions of row `i`."""
    return torch.arange(max_length, device=lengths.device)[None, :] < lengths[:, None]


def check_windows(
    input_features: torch.Tensor, mask: torch.Tensor | None, num_features: int, max_input_frames: int
) -> None:
    """Raise ValueError where an encoder cannot take windows of this shape, or the mask has another."""
    if input_features.ndim != 3:
        raise ValueError(
            f"input_features is of shape {tuple(input_features.shape)}; expected (windows, mel_bins, mel_frames)."
        )
    windows, found, frames = input_features.shape
    if mask is not None and mask.shape != (windows, frames):
        raise ValueError(
            f"input_features_mask is of shape {tuple(mask.shape)}; expected {(windows, frames)}, as input_features."
        )
    if found != num_features:
        raise ValueError(
            f"input_features has {found} mel bins but this encoder takes {num_features}. Use its own feature extractor."
        )
    if not 0 < frames <= max_input_frames:
        raise ValueError(
            f"input_features has {frames} frames per window; expected 1 to {max_input_frames}. AudioLlmProcessor cuts longer "
            "audio into windows."
        )


class AudioTower(WhisperEncoder):
    """
    Whisper's encoder, with the stock weights and layers, for windows of any length up to 30 s.

    The stock encoder takes exactly 3000 frames, so that a 1.4 s clip costs as much as a full window. Here the position
    embeddings are cut to the batch's longest window, and shorter ones are masked in convolutions and attention, so that a
    window's output does not depend on its neighbours in the batch.
    """

    _keys_to_ignore_on_load_unexpected = [r"decoder\.", r"proj_out\."]

    @property
    def max_input_frames(self) -> int:
        """Longest window in log-mel frames (3000, which is 30 s, for every released Whisper)."""
        return self.config.max_source_positions * MEL_FRAMES_PER_ENCODER_FRAME

    @property
    def num_features(self) -> int:
        """Log-mel bins of a frame of `input_features`."""
        return self.num_mel_bins

    frame_counts = staticmethod(encoder_frame_counts)

    @capture_outputs
    def forward(
        self,
        input_features: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutput:
        """
        Args:
            input_features: log-mel windows, `(windows, num_mel_bins, mel_frames)`, padded on the right.
            attention_mask: `(windows, mel_frames)`, 1 for real frames. Without it every frame is real.

        Returns:
            `last_hidden_state` of shape `(windows, ceil(mel_frames / 2), d_model)`; frames past a window's own end
            hold no meaning. With `output_hidden_states`, `output_attentions` also those, layer by layer.

        Raises:
            ValueError: a window is longer than 30 s, has no frame, or has another number of features.
        """
        check_windows(input_features, attention_mask, self.num_features, self.max_input_frames)
        mel_frames = input_features.shape[2]
        input_features = input_features.to(self.conv1.weight.dtype)
        mel_lengths = None
        if attention_mask is not None and not bool(attention_mask.all()):
            mel_lengths = attention_mask.sum(dim=1)

        # Zeros, so that the convolutions see the same at a window's end with any padding.
        if mel_lengths is not None:
            mel_padding = ~length_mask(mel_lengths, mel_frames)[:, None, :]
            input_features = input_features.masked_fill(mel_padding, 0.0)
        hidden_states = nn.functional.gelu(self.conv1(input_features))
        if mel_lengths is not None:
            hidden_states = hidden_states.masked_fill(mel_padding, 0.0)
        hidden_states = nn.functional.gelu(self.conv2(hidden_states)).transpose(1, 2)

        frames = hidden_states.shape[1]
        positions = torch.arange(frames, device=hidden_states.device)
        hidden_states = hidden_states + self.embed_positions(positions)
        hidden_states = nn.functional.dropout(hidden_states, p=self.dropout, training=self.training)

        frame_mask = None
        if mel_lengths is not None:
            frame_mask = create_bidirectional_mask(
                config=self.config,
                inputs_embeds=hidden_states,
                attention_mask=length_mask(encoder_frame_counts(mel_lengths), frames),
            )
        for layer in self.layers:
            hidden_states = layer(hidden_states, frame_mask, **kwargs)
        return BaseModelOutput(last_hidden_state=self.layer_norm(hidden_states))


class ConformerTower(Wav2Vec2BertModel):
    """
    Wav2Vec2-BERT's encoder, with the stock weights and layers.

    Its convolutions look back only and see zeros in place of padding, so that a window's output does not depend on its
    neighbours in the batch.
    """

    _keys_to_ignore_on_load_unexpected = [r"^lm_head\.", r"^classifier\.", r"^projector\."]

    def __init__(self, config):
        if config.add_adapter or config.use_intermediate_ffn_before_adapter:
            raise ValueError(
                "audio_config has add_adapter or use_intermediate_ffn_before_adapter, layers that leave fewer frames. Pass an "
                "encoder without them, such as facebook/w2v-bert-2.0; the projector stacks frames (stack_factor)."
            )
        super().__init__(config)

    #: Longest window, in frames of `input_features`.
    max_input_frames = MAX_CONFORMER_FRAMES

    @property
    def num_features(self) -> int:
        """Features in a frame of `input_features`."""
        return self.config.feature_projection_input_dim

    @staticmethod
    def frame_counts(num_input_frames: torch.Tensor) -> torch.Tensor:
        """Return the encoder frames (20 ms) of so many input frames, which are as long."""
        return num_input_frames

    def forward(
        self,
        input_features: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutput:
        """As [`AudioTower.forward`], of stacked log-mel windows `(windows, features, frames)`, a frame of each."""
        check_windows(input_features, attention_mask, self.num_features, self.max_input_frames)
        frames = input_features.transpose(1, 2).to(self.feature_projection.projection.weight.dtype)
        kwargs["return_dict"] = True
        outputs = super().forward(frames, attention_mask=attention_mask, **kwargs)
        return BaseModelOutput(outputs.last_hidden_state, outputs.hidden_states, outputs.attentions)


#: By `model_type` of the encoder's configuration.
AUDIO_TOWERS: dict[str, Any] = {"whisper": AudioTower, "wav2vec2-bert": ConformerTower}

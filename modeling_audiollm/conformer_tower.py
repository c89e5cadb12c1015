"""A conformer as the encoder: Wav2Vec2-BERT, called as the Whisper tower is."""

import torch
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.wav2vec2_bert.modeling_wav2vec2_bert import Wav2Vec2BertModel

from .audio_tower import check_windows

#: 30 s, as Whisper's windows; the encoder itself has no limit, but its attention's cost grows with the square.
MAX_FRAMES = 1500


class ConformerTower(Wav2Vec2BertModel):
    """
    Wav2Vec2-BERT's encoder, with the stock weights and layers.

    Its convolutions look back only and see zeros in place of padding, so that what comes out for a window does not
    depend on its neighbours in the batch.

    Raises:
        ValueError: the configuration has an adapter, which halves the frames.
    """

    _keys_to_ignore_on_load_unexpected = [r"^lm_head\.", r"^classifier\.", r"^projector\."]

    def __init__(self, config):
        if config.add_adapter or config.use_intermediate_ffn_before_adapter:
            raise ValueError(
                "audio_config has add_adapter or use_intermediate_ffn_before_adapter, layers behind the encoder that make "
                "fewer frames of it. Pass the encoder without them, such as facebook/w2v-bert-2.0; the projector stacks "
                "frames by itself (stack_factor)."
            )
        super().__init__(config)

    @property
    def max_input_frames(self) -> int:
        """Longest window, in frames of `input_features`."""
        return MAX_FRAMES

    @property
    def num_features(self) -> int:
        """Features in a frame of `input_features`."""
        return self.config.feature_projection_input_dim

    @staticmethod
    def frame_counts(num_input_frames: torch.Tensor) -> torch.Tensor:
        """Encoder frames (20 ms) that come of so many input frames, which are as long; elementwise."""
        return num_input_frames

    def forward(
        self,
        input_features: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutput:
        """
        Args:
            input_features: stacked log-mel windows, `(windows, features, frames)`, padded on the right.
            attention_mask: `(windows, frames)`, 1 for real frames. Without it every frame is real.

        Returns:
            `last_hidden_state` of shape `(windows, frames, hidden_size)`; frames past a window's own end hold no
            meaning.

        Raises:
            ValueError: see [`check_windows`].
        """
        check_windows(input_features, attention_mask, self.num_features, self.max_input_frames)
        frames = input_features.transpose(1, 2).to(self.feature_projection.projection.weight.dtype)
        kwargs["return_dict"] = True
        outputs = super().forward(frames, attention_mask=attention_mask, **kwargs)
        return BaseModelOutput(outputs.last_hidden_state, outputs.hidden_states, outputs.attentions)


__all__ = ["ConformerTower"]

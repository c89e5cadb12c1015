"""Which class encodes audio, by the encoder's configuration."""

from typing import Any

from .audio_tower import AudioTower
from .conformer_tower import ConformerTower

#: By `model_type` of `audio_config`.
AUDIO_TOWERS: dict[str, Any] = {"whisper": AudioTower, "wav2vec2-bert": ConformerTower}


def audio_tower_class(audio_config: Any) -> Any:
    """The class for an encoder's configuration, of those that `AudioLlmConfig` allows."""
    return AUDIO_TOWERS[audio_config.model_type]


__all__ = ["AUDIO_TOWERS", "audio_tower_class"]

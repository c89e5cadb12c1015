"""Augmentation of encoder output: what a cache can hold, varied anew each time it is read."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class FeatureAugmentation:
    """
    SpecAugment (Park et al. 2019, arXiv:1904.08779) on encoder frames instead of log-mel ones, and a change of tempo.

    The encoder need not run again, so that the cache stays useful. Draws come from torch's global generator, whose
    state a checkpoint keeps.

    Attributes:
        time_masks: stretches of frames set to zero, each up to `max_time_share` of the clip.
        channel_masks: bands of channels set to zero, each up to `max_channel_share` of the width.
        tempo_probability: share of clips whose frames are stretched or squeezed, where lengths may change.
        tempo_range: bounds of the new length over the old.
    """

    time_masks: int = 2
    max_time_share: float = 0.1
    channel_masks: int = 2
    max_channel_share: float = 0.1
    tempo_probability: float = 0.5
    tempo_range: tuple[float, float] = (0.88, 1.14)

    def __call__(self, frames: torch.Tensor, may_change_length: bool = False) -> torch.Tensor:
        """A varied copy of one clip's frames `(frames, width)`."""
        if may_change_length and _uniform() < self.tempo_probability:
            low, high = self.tempo_range
            length = max(2, round(len(frames) * (low + (high - low) * _uniform())))
            stretched = torch.nn.functional.interpolate(frames.float().T[None], size=length, mode="linear")[0].T
            frames = stretched.to(frames.dtype)
        frames = frames.clone()
        length, width = frames.shape
        for _ in range(self.time_masks):
            start, size = _span(length, self.max_time_share)
            frames[start : start + size] = 0
        for _ in range(self.channel_masks):
            start, size = _span(width, self.max_channel_share)
            frames[:, start : start + size] = 0
        return frames


def _uniform() -> float:
    return float(torch.rand(()))


def _span(total: int, max_share: float) -> tuple[int, int]:
    """A random stretch of up to `max_share` of `total`: where it starts, and its size."""
    size = int(_uniform() * (max_share * total + 1))
    return int(_uniform() * (total - size + 1)), size

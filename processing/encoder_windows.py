"""What a speech encoder is given of a recording: windows of at most 30 s, and how many frames it makes of each."""

import math

import numpy as np
from transformers import SeamlessM4TFeatureExtractor, WhisperFeatureExtractor

#: Longest window. Whisper has positions for no more; others get the same, so that memory does not grow with length.
WINDOW_SECONDS = 30


class WhisperWindows:
    """
    Windows for Whisper's encoder: log-mel frames of 10 ms, of which its second convolution makes frames of 20 ms.

    Args:
        extractor: a [`WhisperFeatureExtractor`].
    """

    INPUT_FRAMES_PER_ENCODER_FRAME = 2

    def __init__(self, extractor: WhisperFeatureExtractor):
        self.extractor = extractor
        #: Samples in a full window.
        self.max_samples: int = extractor.n_samples

    def input_frames(self, num_samples: int) -> int:
        """Log-mel frames (10 ms) of so many samples."""
        return math.ceil(num_samples / self.extractor.hop_length)

    def encoder_frames(self, num_samples: int) -> int:
        """Frames of 20 ms that the encoder makes of a window of so many samples."""
        return math.ceil(self.input_frames(num_samples) / self.INPUT_FRAMES_PER_ENCODER_FRAME)

    def features(self, window: np.ndarray) -> np.ndarray:
        """
        Log-mel frames of a window `(samples,)`, as long as its audio: `(num_mel_bins, ceil(samples / hop))`.

        They are those that Whisper's own extractor computes of the audio padded to 30 s, up to rounding of the last bit
        in windows below 0.1 s: as much silence is added as the last frame can see, and the frames of silence alone are
        cut off again.
        """
        extractor = self.extractor
        num_frames = self.input_frames(len(window))
        padded_length = min(num_frames * extractor.hop_length + extractor.n_fft, extractor.n_samples)
        padded = np.zeros(padded_length, dtype=np.float32)
        padded[: len(window)] = window
        features = extractor(
            padded, sampling_rate=extractor.sampling_rate, padding="do_not_pad", truncation=False, return_tensors="np"
        )["input_features"][0]
        return features[:, :num_frames]


class ConformerWindows:
    """
    Windows for Wav2Vec2-BERT's conformer: Kaldi's log-mel frames of 10 ms, stacked by twos, each an encoder frame.

    Args:
        extractor: a [`SeamlessM4TFeatureExtractor`]. Its frames begin every 160 samples and see 400; what is left at
            the end of a window and fills no pair of them (less than 35 ms) it leaves out, as for its own models.
    """

    FRAME_SAMPLES, HOP_SAMPLES = 400, 160

    def __init__(self, extractor: SeamlessM4TFeatureExtractor):
        self.extractor = extractor
        self.max_samples: int = WINDOW_SECONDS * extractor.sampling_rate
        #: What one encoder frame needs; shorter windows are filled up with silence.
        self.min_samples = self.FRAME_SAMPLES + (extractor.stride - 1) * self.HOP_SAMPLES

    def input_frames(self, num_samples: int) -> int:
        """Stacked log-mel frames (20 ms) of so many samples."""
        whole = 1 + (max(num_samples, self.min_samples) - self.FRAME_SAMPLES) // self.HOP_SAMPLES
        return whole // self.extractor.stride

    def encoder_frames(self, num_samples: int) -> int:
        """Frames of 20 ms that the encoder makes of a window of so many samples: one for each it is given."""
        return self.input_frames(num_samples)

    def features(self, window: np.ndarray) -> np.ndarray:
        """Stacked log-mel frames of a window `(samples,)`: `(stride * num_mel_bins, encoder frames)`."""
        padded = np.zeros(max(len(window), self.min_samples), dtype=np.float32)
        padded[: len(window)] = window
        features = self.extractor(
            padded, sampling_rate=self.extractor.sampling_rate, pad_to_multiple_of=None, return_tensors="np"
        )["input_features"][0]
        return np.ascontiguousarray(features.T)


WINDOWS_BY_EXTRACTOR = {
    "WhisperFeatureExtractor": WhisperWindows,
    "SeamlessM4TFeatureExtractor": ConformerWindows,
}


def windows_for(extractor) -> WhisperWindows | ConformerWindows:
    """
    What cuts recordings for the encoder that a feature extractor belongs to.

    Raises:
        ValueError: it is another kind of extractor.
    """
    for base in type(extractor).__mro__:
        if base.__name__ in WINDOWS_BY_EXTRACTOR:
            return WINDOWS_BY_EXTRACTOR[base.__name__](extractor)
    raise ValueError(
        f"The feature extractor is a {type(extractor).__name__}; expected one of {sorted(WINDOWS_BY_EXTRACTOR)}, which "
        "come with Whisper and with Wav2Vec2-BERT."
    )


__all__ = ["ConformerWindows", "WhisperWindows", "windows_for"]

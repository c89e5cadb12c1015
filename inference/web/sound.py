"""Pictures of recordings as the model gets them: waveform and log-mel features."""

import base64
import html
import io

import numpy as np
from audiollm.processing import AudioLlmProcessor
from audiollm.processing.processing_audiollm import windows_for
from matplotlib.figure import Figure

from ..recordings import clock

#: Most columns of the picture; of frames that share a column the loudest is drawn.
MAX_COLUMNS = 1_500
PICTURE_INCHES, PICTURE_DPI = (5.0, 2.2), 150
#: Readable on white and on black.
AXIS_COLOUR, WAVE_COLOUR = "#808890", "#d2602b"
COLOUR_MAP = "magma"
AXIS_FONT_POINTS = 10


def log_mel(waveform: np.ndarray, processor: AudioLlmProcessor, max_columns: int = MAX_COLUMNS) -> np.ndarray:
    """
    Return the processor's features of a waveform `(samples,)`, `(mel_bins, columns)`, computed window by window.

    Neighbouring frames are joined by their maximum if there are more than `max_columns`.
    """
    frames = windows_for(processor.feature_extractor).input_frames(len(waveform))
    frames_per_column = max(1, -(-frames // max_columns))
    columns, start = [], 0
    for length in processor.window_lengths(len(waveform)):
        (window,) = processor.extract_features(waveform[start : start + length])
        edges = np.arange(0, window.shape[1], frames_per_column)
        columns.append(np.maximum.reduceat(window, edges, axis=1))
        start += length
    return np.concatenate(columns, axis=1)


def picture(waveform: np.ndarray, processor: AudioLlmProcessor) -> str:
    """Return waveform and log-mel features over time as an HTML figure, with the image in it."""
    seconds = len(waveform) / processor.sampling_rate
    features = log_mel(waveform, processor)
    figure = Figure(figsize=PICTURE_INCHES, dpi=PICTURE_DPI, layout="constrained")
    wave_axes, mel_axes = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2))
    edges = np.linspace(0, len(waveform), min(features.shape[1], len(waveform)) + 1).astype(int)[:-1]
    low, high = np.minimum.reduceat(waveform, edges), np.maximum.reduceat(waveform, edges)
    wave_axes.fill_between(np.linspace(0, seconds, len(low)), low, high, color=WAVE_COLOUR, linewidth=0.6)
    wave_axes.set_axis_off()
    extent = (0, seconds, 0, len(features))
    mel_axes.imshow(features, origin="lower", aspect="auto", cmap=COLOUR_MAP, extent=extent, rasterized=True)
    mel_axes.tick_params(colors=AXIS_COLOUR, labelsize=AXIS_FONT_POINTS)
    mel_axes.set_xlabel("seconds", fontsize=AXIS_FONT_POINTS, color=AXIS_COLOUR)
    mel_axes.set_ylabel("mel bin", fontsize=AXIS_FONT_POINTS, color=AXIS_COLOUR)
    mel_axes.set_frame_on(False)
    file = io.BytesIO()
    figure.savefig(file, format="png", transparent=True)
    data = base64.b64encode(file.getvalue()).decode()
    alt = html.escape(f"Waveform and log-mel features of {clock(seconds)} of sound")
    return f'<figure><img alt="{alt}" style="width: 100%" src="data:image/png;base64,{data}"></figure>'

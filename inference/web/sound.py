"""A visitor's recording: decoded within bounds, told in words, and drawn as the model gets it, a log-mel picture."""

import base64
import html
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from audiollm.processing import AudioError, AudioLlmProcessor
from audiollm.processing.processing_audiollm import windows_for
from matplotlib.figure import Figure

from ..audio_blocks import check_file, header_seconds, read_blocks
from ..recordings import Recording

MINUTE_SECONDS = 60
#: Columns of the picture at most; of the frames that share one the loudest is drawn.
MAX_COLUMNS = 1_500
PICTURE_INCHES, PICTURE_DPI = (5.0, 2.2), 150
#: Readable on white and on black.
AXIS_COLOUR, WAVE_COLOUR = "#808890", "#d2602b"
COLOUR_MAP = "magma"
AXIS_FONT_POINTS = 10


def load_recording(path: str, processor: AudioLlmProcessor, max_seconds: float) -> Recording:
    """
    Decodes a visitor's file as far as the bound.

    Raises:
        AudioError: it is no audio, is damaged or empty, or is longer than `max_seconds`; it is called by its name alone.
        FileNotFoundError: it is gone.
    """
    name = Path(path).name
    waveform = np.concatenate(list(_bounded_blocks(path, name, processor.sampling_rate, max_seconds)))
    recording = Recording.load(waveform, processor)
    recording.source = name
    return recording


def check_length(path: str, sampling_rate: int, max_seconds: float) -> None:
    """
    Decodes a file to see that it is audio no longer than the bound, and keeps nothing of it.

    Raises:
        AudioError, FileNotFoundError: see [`load_recording`].
    """
    for _ in _bounded_blocks(path, Path(path).name, sampling_rate, max_seconds):
        pass


def _bounded_blocks(path: str, name: str, sampling_rate: int, max_seconds: float) -> Iterator[np.ndarray]:
    check_file(Path(path), name)
    declared_s = header_seconds(path)
    if declared_s is not None and declared_s > max_seconds:
        raise _too_long(name, clock(declared_s), max_seconds)
    samples = 0
    try:
        for block in read_blocks(path, sampling_rate, name):
            samples += len(block)
            if samples > max_seconds * sampling_rate:
                raise _too_long(name, f"more than {clock(max_seconds)}", max_seconds)
            yield block
    except AudioError as error:  # decoders name the path, which is the server's own affair
        raise AudioError(str(error).replace(path, name)) from error


def _too_long(name: str, length: str, max_seconds: float) -> AudioError:
    return AudioError(f"{name}: the recording is {length} long; this page takes at most {clock(max_seconds)}.")


def clock(seconds: float) -> str:
    """A length in words: `2.1 s`, `3 min 20 s`."""
    if seconds < MINUTE_SECONDS:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), MINUTE_SECONDS)
    return f"{minutes} min {rest} s" if rest else f"{minutes} min"


def log_mel(waveform: np.ndarray, processor: AudioLlmProcessor, max_columns: int = MAX_COLUMNS) -> np.ndarray:
    """
    The features that the processor makes of a waveform `(samples,)`, `(mel_bins, columns)`, one window at a time.

    A recording of more frames than `max_columns` is drawn by the maximum of neighbouring frames.
    """
    lengths = processor.window_lengths(len(waveform))
    frames = windows_for(processor.feature_extractor).input_frames(len(waveform))
    frames_per_column = max(1, -(-frames // max_columns))
    columns, start = [], 0
    for length in lengths:
        (window,) = processor.extract_features(waveform[start : start + length])
        edges = np.arange(0, window.shape[1], frames_per_column)
        columns.append(np.maximum.reduceat(window, edges, axis=1))
        start += length
    return np.concatenate(columns, axis=1)


def picture(waveform: np.ndarray, processor: AudioLlmProcessor) -> str:
    """Waveform and log-mel features over time as an HTML figure; the image is in the page, not in a file."""
    seconds = len(waveform) / processor.sampling_rate
    features = log_mel(waveform, processor)
    figure = Figure(figsize=PICTURE_INCHES, dpi=PICTURE_DPI, layout="constrained")
    wave_axes, mel_axes = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2))
    low, high = _envelope(waveform, features.shape[1])
    times = np.linspace(0, seconds, len(low))
    wave_axes.fill_between(times, low, high, color=WAVE_COLOUR, linewidth=0.6)
    wave_axes.set_yticks([])
    wave_axes.tick_params(bottom=False)
    mel_axes.imshow(
        features,
        origin="lower",
        aspect="auto",
        cmap=COLOUR_MAP,
        extent=(0, seconds, 0, len(features)),
        rasterized=True,
    )
    mel_axes.set_xlabel("seconds", fontsize=AXIS_FONT_POINTS)
    mel_axes.set_ylabel("mel bin", fontsize=AXIS_FONT_POINTS)
    for axes in (wave_axes, mel_axes):
        axes.tick_params(colors=AXIS_COLOUR, labelsize=AXIS_FONT_POINTS)
        axes.xaxis.label.set_color(AXIS_COLOUR)
        axes.yaxis.label.set_color(AXIS_COLOUR)
        axes.patch.set_alpha(0)
        for spine in axes.spines.values():
            spine.set_visible(False)
    file = io.BytesIO()
    figure.savefig(file, format="png", transparent=True)
    data = base64.b64encode(file.getvalue()).decode()
    alt = html.escape(f"Waveform and log-mel features of {clock(seconds)} of sound")
    return f'<figure class="sound"><img alt="{alt}" src="data:image/png;base64,{data}"></figure>'


def _envelope(waveform: np.ndarray, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest sample of each of so many stretches, `(columns,)` each."""
    edges = np.linspace(0, len(waveform), min(columns, len(waveform)) + 1).astype(int)[:-1]
    return np.minimum.reduceat(waveform, edges), np.maximum.reduceat(waveform, edges)


__all__ = ["check_length", "clock", "load_recording", "log_mel", "picture"]

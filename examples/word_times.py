"""
Draw a recording's waveform with its words, each where it is said, coloured by confidence.

    python examples/word_times.py recording.wav words.png
"""

import sys

import audiollm
import matplotlib
import numpy as np
from audiollm.processing import load_waveform

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RATE_HZ = 16_000


def main(recording: str, picture: str, model: str | None = None) -> list:
    """Write the picture, and return the words."""
    words = (audiollm.load(model) if model else audiollm.load()).transcribe(recording, timestamps="word").words
    waveform = load_waveform(recording, None, RATE_HZ, recording)
    colours = plt.get_cmap("RdYlGn")
    figure, axis = plt.subplots(figsize=(max(8, len(waveform) / RATE_HZ * 2), 3), layout="constrained")
    axis.plot(np.arange(len(waveform)) / RATE_HZ, waveform / (np.abs(waveform).max() or 1), color="#8a8a8a", lw=0.4)
    for word in words:
        colour = "#bbbbbb" if word.confidence is None else colours(word.confidence)
        axis.axvspan(word.start_s, word.end_s, color=colour, alpha=0.35, ec="white", lw=2)
        sure = "" if word.confidence is None else f"\n{word.confidence:.2f}"
        axis.text((word.start_s + word.end_s) / 2, 1.1, word.text + sure, ha="center", va="bottom", fontsize=9)
    axis.set(xlabel="seconds", ylim=(-1.05, 1.6), yticks=[], xlim=(0, len(waveform) / RATE_HZ))
    axis.spines[["top", "right", "left"]].set_visible(False)
    figure.savefig(picture, dpi=120)
    plt.close(figure)
    return words


if __name__ == "__main__":
    main(*sys.argv[1:])

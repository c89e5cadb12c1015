"""The demo's picture: how the loss fell, and how word error stands beside its controls after so many minutes."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

BLUE, ORANGE, GREY, GREEN = "#3b6fb6", "#d9822b", "#8a8a8a", "#3a8f5c"


def plot_report(record: dict[str, Any], path: Path) -> None:
    """Draws the loss of both stages, and word error against minutes, to a PNG."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    seconds = record["seconds"]
    for stage, color in (("align", ORANGE), ("instruct", BLUE)):
        curve = record.get("losses", {}).get(stage, [])
        if curve:
            start = _minutes_before(seconds, stage)
            last_step = curve[-1][0]
            minutes = [start + step / last_step * seconds[stage] / 60 for step, _ in curve]
            label = (
                "warm start: CTC, per word piece" if stage == "align" else "projector + LoRA: cross-entropy, per token"
            )
            left.plot(minutes, [loss for _, loss in curve], color=color, label=label)
    left.set(xlabel="minutes after downloads", ylabel="training loss", yscale="log", title="Loss")
    left.legend(frameon=False)

    scores = record["scores"]
    control, decoder = scores["wrong_audio_control"]["word_error"], scores["whisper_own_decoder"]["word_error"]
    test = [
        (_minutes_before(seconds, "instruct"), record["projector_alone"]["word_error"]),
        (_minutes_before(seconds, "evaluate"), scores["word_error"]["word_error"]),
    ]
    right.plot(*zip(*test), color=BLUE, marker="o", linestyle="none", label="test: projector alone, then AudioLLM")
    for when, error in test:
        right.annotate(f"{error:.2f}", (when, error), textcoords="offset points", xytext=(0, 8), ha="center")
    validation = [(entry["minutes"], entry["word_error"]) for entry in record["curve"]]
    if validation:
        right.plot(*zip(*validation), color=ORANGE, marker=".", label="validation, on the way")
    right.axhline(control, color=GREY, linestyle=":", label=f"given the wrong recording: {control:.2f}")
    right.axhline(decoder, color=GREEN, linestyle="--", label=f"Whisper's own decoder: {decoder:.3f}")
    right.set(
        xlabel="minutes after downloads",
        ylabel="held-out word error",
        title="Held-out word error",
        xlim=(0, None),
        ylim=(0, None),
    )
    right.legend(frameon=False)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _minutes_before(seconds: dict[str, float], stage: str) -> float:
    names = list(seconds)
    return sum(seconds[name] for name in names[: names.index(stage)] if name != "bases") / 60

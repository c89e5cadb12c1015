"""
Five minutes with the shipped adapter: `make demo`.

Transcribes recordings of this repository, answers a question about one, fine-tunes the projector on the studio prompts for
--minutes, and shows word error before and after, beside Whisper's own decoder and the same model given the wrong recordings.
The fine-tuned adapter, `report.json` and `report.png` are left in --output_dir.
"""

import argparse
import contextlib
import io
import json
import logging
import random
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # libraries warn while they are imported
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")

import matplotlib
import torch
from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor, shipped_adapter
from audiollm.command_line.machine import bfloat16_is_faster
from audiollm.corpora.hypotheses import WhisperDecoder
from audiollm.corpora.prompts import load_studio_prompts
from audiollm.corpora.unseen import load_unseen_speech
from audiollm.evaluation.word_error import score_word_error
from audiollm.inference.answering import answer, ask
from audiollm.inference.loaded import AudioLlm
from audiollm.inference.loading import fetch_bases
from audiollm.training.align import AlignTrainer
from audiollm.training.augmentation import BatchAugmentation
from audiollm.training.feature_cache import FeatureCache
from datasets.utils import logging as datasets_logging
from transformers import TrainerCallback, TrainingArguments, set_seed
from transformers.utils import logging as transformers_logging

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SEED = 0
#: Clips that are scored: drawn once from the studio prompts that nothing was trained on.
NUM_CLIPS = 20
#: Recordings shown, by id: two readers and the studio's speaker.
SHOWN_UNSEEN = ("cards-005", "librivox-0880")
SHOWN_PROMPT = "vm-rec-temp"
QUESTION = "<audio>\nWhat is this about? Answer in a few words."
#: Share of the time that encoding the training clips may take: a slow machine trains on fewer of them.
ENCODING_SHARE = 0.4
CLIPS_ENCODED_AT_ONCE = 16
BATCH_SIZE = 16
LEARNING_RATE = 3e-4
MAX_EPOCHS = 1000  # never reached: time ends the training
LINE_WIDTH = 100
#: In the plot: batches of short and of long clips take turns.
STEPS_AVERAGED = 20


class TimeBudget(TrainerCallback):
    """Ends training after `seconds` from now, with the learning rate going down to zero until then."""

    def __init__(self, seconds: float):
        self.start, self.seconds = time.perf_counter(), seconds

    @property
    def share(self) -> float:
        """Share of the time that is used up."""
        return (time.perf_counter() - self.start) / self.seconds

    def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * max(0.0, 1 - self.share)

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = self.share >= 1

    def on_log(self, args, state, control, logs=None, **kwargs):
        if sys.stderr.isatty() and "loss" in logs:
            line = f"  {self.share:4.0%}, step {state.global_step}, loss {logs['loss']}"
            print(f"\r{line:60}", end="" if self.share < 1 else "\n", file=sys.stderr)


def hear(model, processor, recordings: list[Any]) -> list[str]:
    """Return transcripts, as `audiollm transcribe` makes them."""
    return [one.text for one in AudioLlm(model, processor).transcribe(recordings, batch_size=BATCH_SIZE)]


def fine_tune(model, processor, seconds: float, folder: Path) -> dict[str, Any]:
    """Train the projector by CTC on the studio prompts for so many seconds, encoding included, and save the adapter."""
    budget = TimeBudget(seconds)
    prompts = load_studio_prompts("train").shuffle(seed=SEED)
    cache = FeatureCache(model, processor)
    keys: list[str] = []
    while len(keys) < len(prompts) and budget.share < ENCODING_SHARE:
        more = prompts.select(range(len(keys), min(len(keys) + CLIPS_ENCODED_AT_ONCE, len(prompts))))
        keys += cache.add(list(more["audio"]), progress=False)
    arguments = TrainingArguments(
        output_dir=str(folder / "training"),
        num_train_epochs=MAX_EPOCHS,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",  # the budget lowers the rate
        per_device_train_batch_size=BATCH_SIZE,
        weight_decay=0.05,
        adam_beta2=0.98,
        train_sampling_strategy="group_by_length",
        save_strategy="no",
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        bf16=model.dtype == torch.bfloat16,
        use_cpu=not torch.cuda.is_available(),
        seed=SEED,
    )
    texts = list(prompts["text"])[: len(keys)]
    with contextlib.redirect_stdout(io.StringIO()):  # since the Trainer prints every loss
        trainer = AlignTrainer(model, cache, keys, texts, arguments)
        trainer.add_callback(budget)
        trainer.augmentation = BatchAugmentation(processor)
        trainer.train()
    model.eval()
    model.save_pretrained(folder / "adapter")
    processor.save_pretrained(folder / "adapter")
    losses = [(entry["step"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    return {"clips": len(keys), "steps": trainer.state.global_step, "losses": losses}


def plot(report: dict[str, Any], path: Path) -> None:
    """Draw the loss, and word error before and after beside its controls, to a PNG."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    steps, losses = zip(*report["training"]["losses"])
    left.plot(steps, losses, color="#3b6fb6", alpha=0.3)
    means = [statistics.fmean(losses[max(0, end - STEPS_AVERAGED) : end]) for end in range(1, len(losses) + 1)]
    left.plot(steps, means, color="#3b6fb6", label=f"mean of {STEPS_AVERAGED} steps")
    left.legend(frameon=False)
    left.set(xlabel="step", ylabel="CTC loss per word piece", title=f"{report['minutes']:g} minutes of fine-tuning")
    rates = {name.replace(", ", "\n"): value for name, value in report["word_error"].items()}
    bars = right.barh(list(rates), list(rates.values()), color=["#3a8f5c", "#3b6fb6", "#d9822b", "#8a8a8a"])
    right.bar_label(bars, fmt="%.2f", padding=3)
    right.invert_yaxis()
    right.set(xlabel="word error rate", title=f"{NUM_CLIPS} held-out clips")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def run(folder: Path, minutes: float) -> dict[str, Any]:
    """Run the whole demo; return the contents of `report.json`."""
    fetch_bases(str(shipped_adapter.FOLDER))
    start = time.perf_counter()
    set_seed(SEED)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = torch.bfloat16 if bfloat16_is_faster() else torch.float32
    model = AudioLlmForConditionalGeneration.from_pretrained(shipped_adapter.FOLDER, dtype=dtype)
    processor = AudioLlmProcessor.from_pretrained(shipped_adapter.FOLDER)
    prompts = load_studio_prompts("test")
    chosen = prompts.select(sorted(random.Random(SEED).sample(range(len(prompts)), NUM_CLIPS)))
    references, recordings = list(chosen["text"]), list(chosen["audio"])

    shown = [row for row in load_unseen_speech() if row["id"] in SHOWN_UNSEEN]
    shown += [row for row in prompts if row["id"] == SHOWN_PROMPT]
    heard = hear(model, processor, [row["audio"] for row in shown])
    print("\nThe shipped adapter hears")
    for row, text in zip(shown, heard):
        print(_line(row["id"], text))
        print(_line("  said", row["text"]))
    said = answer(model, processor, [ask(QUESTION, shown[-1]["audio"])], max_new_tokens=32)[0]
    print(_line(f"Asked about {SHOWN_PROMPT}", QUESTION.split("\n")[-1]))
    print(_line("  answer", said))

    before = hear(model, processor, recordings)
    print(f"\nFine-tuning the projector on the studio prompts, {minutes:g} minutes …", flush=True)
    training = fine_tune(model, processor, 60 * minutes, folder)
    print(f"{training['steps']} steps on {training['clips']} clips. Word error of {NUM_CLIPS} other prompts:")
    whisper = WhisperDecoder(model.config.audio_model_id, model.config.audio_model_revision, language="en")
    columns = {
        "Whisper's own decoder": whisper.hear([[processor.load_audio(each)] for each in recordings], BATCH_SIZE),
        "shipped adapter": before,
        "shipped adapter, fine-tuned": hear(model, processor, recordings),
        "fine-tuned, given the wrong recordings": hear(model, processor, recordings[1:] + recordings[:1]),
    }
    rates = {name: score_word_error(references, texts).word_error for name, texts in columns.items()}
    for name, rate in rates.items():
        print(f"  {rate:5.2f}  {name}")
    seconds = time.perf_counter() - start
    report = {
        "minutes": minutes,
        "seconds": seconds,
        "precision": str(dtype).removeprefix("torch."),
        "word_error": rates,
        "training": training,
        "question": {"clip": SHOWN_PROMPT, "question": QUESTION, "answer": said},
        "clips": [
            dict(zip(("id", "reference", *columns), row)) for row in zip(chosen["id"], references, *columns.values())
        ],
    }
    (folder / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    plot(report, folder / "report.png")
    print(f"{seconds / 60:.1f} minutes. Left in {folder}: adapter/, report.json and report.png. Next:")
    print(f"  .venv/bin/audiollm transcribe --model {folder / 'adapter'} YOUR_RECORDING.wav")
    return report


def _line(label: str, text: str) -> str:
    """Return a labelled text, cut to the width of a screen."""
    line = f"  {label:24}{' '.join(text.split())}"
    return line if len(line) <= LINE_WIDTH else line[: LINE_WIDTH - 1] + "…"


def main() -> None:
    """Entry of `make demo`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/demo"), help="default: %(default)s")
    parser.add_argument("--minutes", type=float, default=3.0, help="of fine-tuning; default: %(default)g")
    options = parser.parse_args()
    if options.minutes <= 0:
        parser.error(f"--minutes is {options.minutes:g}; expected more than 0")
    transformers_logging.disable_progress_bar()
    datasets_logging.disable_progress_bar()
    run(options.output_dir, options.minutes)


if __name__ == "__main__":
    main()

"""
The whole story on a laptop: `make demo`.

Fetches the two small real bases, encodes 24 minutes of real speech once, teaches the projector by CTC, trains projector
and LoRA with the Trainer, scores held-out clips beside the wrong-audio control and Whisper's own decoder, answers a
question about a recording, and writes `report.json` and `report.png` beside the trained adapter.

Run again, it reuses what is done and goes on where it was cut off; `--output_dir` starts another run.
"""

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import torch
from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor
from audiollm.corpora.breadth import join_clips, read_aloud, read_sentences, word_lists
from audiollm.corpora.examples import Example, read_examples, write_examples
from audiollm.corpora.normalisers import normalize_english
from audiollm.corpora.prompts import PROMPT_TASKS, load_studio_prompts, write_prompt_examples
from audiollm.embedded_bases import DEFAULT_TEXT_BASE, fetch
from audiollm.evaluation.listening import ListeningReport, evaluate_listening, transcribe
from audiollm.evaluation.word_error import score_word_error
from audiollm.inference.answering import answer, ask
from audiollm.machine import bfloat16_is_faster
from audiollm.publishing.record import add_run, command_line, library_versions, machine_facts, package_facts
from audiollm.training.align import align, greedy_transcripts
from audiollm.training.augment import FeatureAugmentation
from audiollm.training.dataset import load_encoded_audio
from audiollm.training.feature_cache import FeatureCache
from audiollm.training.run_record import RunClock, hyperparameters
from audiollm.training.train import DataArguments, ModelArguments, train
from audiollm.training.trainer import AudioLlmTrainingArguments
from demo_report import plot_report
from transformers import TrainerCallback, TrainingArguments, set_seed

#: The small encoder, with which a laptop trains from nothing in a quarter of an hour.
AUDIO_BASE = "pypi:whisper-tiny.en"
SEED = 0
LORA_RANK = 16
ALIGN_EPOCHS = 7
ALIGN_RATE = 3e-3
ALIGN_BATCH = 28
#: The second moment's decay, for stages of some hundred steps: with the usual 0.999 it still forgets at the end.
ADAM_BETA2 = 0.98
INSTRUCT_STEPS = 370
LORA_RATE = 1.5e-3
PROJECTOR_RATE = 3e-5
#: Bound of a batch of the language model's stage, padding included: this is what bounds the memory.
TOKENS_PER_BATCH = 900
#: Longer clips take part in the warm start only: they would not fit.
MAX_INSTRUCT_SECONDS = 30.0
#: Recordings made of the training clips, sentences and lists of words read by a synthetic voice, and how often a real
#: clip counts.
NUM_JOINED = 400
MAX_CLIPS_JOINED = 3
NUM_SENTENCES = 1159
NUM_WORD_LISTS = 500
REAL_REPEATS = 2
#: Only shorter clips are joined to longer recordings.
MAX_JOINED_SECONDS = 3.0
#: Longer held-out clips are transcribed in pieces, cut where they are quietest.
MAX_PIECE_SECONDS = 10.0
#: The clip of the held-out split that the closing question is about, and the question.
QUESTION_CLIP = "vm-rec-temp"
QUESTION = "<audio>\nTranscribe this recording word for word."
#: Questions other than for a transcript, and steps between points of the word error curve.
NUM_OTHER_QUESTIONS = 80
STEPS_PER_POINT = 200
MIB = 1 << 20


class Demo:
    """
    The stages of one run, each done once: what an earlier run into the same folder finished is loaded instead.

    Args:
        folder: where everything is kept.
        instruct_steps: optimizer steps of the language model's stage.
    """

    def __init__(self, folder: Path, instruct_steps: int = INSTRUCT_STEPS):
        self.folder = folder
        self.instruct_steps = instruct_steps
        self.aligned = folder / "aligned"
        self.adapter = folder / "adapter"
        self.record_file = folder / "stages.json"
        folder.mkdir(parents=True, exist_ok=True)
        self.record: dict[str, Any] = {"seconds": {}, "curve": []}
        if self.record_file.exists():
            self.record = json.loads(self.record_file.read_text())

    @contextmanager
    def stage(self, name: str) -> Iterator[bool]:
        """Times a stage; gives whether it was finished before."""
        seconds = self.record["seconds"]
        known = name in seconds
        print(f"== {name}" + (f" (done before, in {seconds[name]:.0f} s)" if known else ""))
        start = time.perf_counter()
        yield known
        if not known:
            seconds[name] = time.perf_counter() - start
            unfinished = self.record_file.with_suffix(".unfinished")
            unfinished.write_text(json.dumps(self.record, indent=1))
            os.replace(unfinished, self.record_file)  # whole or not at all, whenever the demo is killed
            print(f"== {name}: {seconds[name]:.0f} s\n")

    def run(self) -> dict[str, Any]:
        """All stages; returns what the report says."""
        with self.stage("bases"):
            for base in (AUDIO_BASE, DEFAULT_TEXT_BASE):
                fetch(base)
        self.dtype = torch.bfloat16 if self.record.setdefault("bf16", bfloat16_is_faster()) else torch.float32
        with self.stage("breadth"):
            self.gather()
        with self.stage("features"):
            self.prepare()
        with self.stage("align") as done:
            if not done:
                self.warm_start()
        with self.stage("instruct") as done:
            if done:
                self.model = AudioLlmForConditionalGeneration.from_pretrained(self.adapter, dtype=self.dtype)
            else:
                self.instruct()
        with self.stage("evaluate") as done:
            if not done:
                self.record["scores"], self.record["examples"] = self.evaluate()
        with self.stage("question") as done:
            if not done:
                self.record["answer"] = self.ask_about_a_clip()
        return self.report()

    def gather(self) -> None:
        """The real clips, and what is made of them and of text to hear more than was recorded."""
        self.splits: dict[str, datasets.Dataset] = {s: load_studio_prompts(s) for s in ("train", "test")}
        rows = self.splits["train"].filter(lambda row: row["duration_s"] <= MAX_JOINED_SECONDS)
        folder = self.folder / "data" / "audio"
        joined = join_clips(rows["audio"], rows["text"], folder / "joined", NUM_JOINED, MAX_CLIPS_JOINED, seed=SEED)
        held_out = {
            normalize_english(t) for t in [*self.splits["test"]["text"], *load_studio_prompts("validation")["text"]]
        }
        sentences = [*read_sentences(NUM_SENTENCES), *word_lists(NUM_WORD_LISTS, seed=SEED)]
        sentences = [s for s in sentences if normalize_english(s) not in held_out]
        spoken = read_aloud(sentences, folder / "voice", seed=SEED)
        self.made: list[tuple[str, str]] = [*zip(*joined), *zip(spoken, sentences)]

    def prepare(self) -> None:
        """Composes the model and encodes every clip once."""
        self.processor = AudioLlmProcessor.from_audio_text_pretrained(AUDIO_BASE, DEFAULT_TEXT_BASE)
        set_seed(SEED)
        self.model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(
            AUDIO_BASE, DEFAULT_TEXT_BASE, lora_rank=LORA_RANK, projector_readout="pieces", dtype=self.dtype
        )
        self.model.print_trainable_parameters()
        self.cache = FeatureCache(self.model, self.processor)
        self.keys = {split: self.cache.add(list(rows["audio"])) for split, rows in self.splits.items()}
        self.keys["made"] = self.cache.add([path for path, _ in self.made])
        print(f"Encoder output in {self.cache.folder}: {self.cache.size_bytes() / MIB:.0f} MiB")

    def warm_start(self) -> None:
        """Teaches the projector by CTC; notes what it alone makes of the held-out clips."""
        clock = RunClock()
        rows, held_out = self.splits["train"], self.splits["test"]
        arguments = TrainingArguments(
            output_dir=str(self.folder / "align"),
            num_train_epochs=ALIGN_EPOCHS,
            learning_rate=ALIGN_RATE,
            per_device_train_batch_size=ALIGN_BATCH,
            weight_decay=0.05,
            adam_beta2=ADAM_BETA2,
            warmup_steps=0.05,
            lr_scheduler_type="cosine",
            train_sampling_strategy="group_by_length",
            save_steps=200,
            save_total_limit=1,
            logging_steps=10,
            report_to="none",
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            bf16=self.dtype == torch.bfloat16,
            use_cpu=not torch.cuda.is_available(),
            seed=SEED,
        )
        keys = self.keys["train"] * REAL_REPEATS + self.keys["made"]
        texts = [*rows["text"]] * REAL_REPEATS + [text for _, text in self.made]
        alignment = align(self.model, self.cache, keys, texts, arguments, FeatureAugmentation())
        heard = greedy_transcripts(alignment, self.cache, self.keys["test"])
        score = score_word_error(held_out["text"], heard)
        self.record["projector_alone"] = score.to_dict()
        self.record["losses"] = {"align": alignment.losses}
        print(f"Held-out word error of the projector alone: {score.word_error:.3f}")
        self.model.save_pretrained(self.aligned)
        self.processor.save_pretrained(self.aligned)
        run = {
            "stage": "align",
            "command": command_line(),
            "data": [
                {"path": f"studio prompts, joined clips and sentences read aloud, as of seed {SEED}", "sha256": None}
            ],
            "rows": len(keys),
            "epochs": ALIGN_EPOCHS,
            "final_loss": alignment.losses[-1][1] if alignment.losses else None,
            "seconds": clock.seconds(),
            "hyperparameters": hyperparameters([arguments]),
            "machine": machine_facts(),
            "versions": library_versions(),
            "audiollm": package_facts(),
        }
        add_run(self.aligned, run)

    def instruct(self) -> None:
        """Trains projector and LoRA on the instruction examples, with `audiollm train`'s own function."""
        start = time.perf_counter()
        del self.model  # the stage loads the aligned one; two would only take memory
        trainer = train(
            ModelArguments(model_path=str(self.aligned), base_dtype=str(self.dtype).removeprefix("torch.")),
            DataArguments(data_path=[str(self.instruction_data())], augment=True),
            AudioLlmTrainingArguments(
                output_dir=str(self.adapter),
                max_tokens_per_batch=TOKENS_PER_BATCH,
                adam_beta2=ADAM_BETA2,
                max_steps=self.instruct_steps,
                learning_rate=LORA_RATE,
                projector_learning_rate=PROJECTOR_RATE,
                weight_decay=0.01,
                save_steps=100,
                bf16=self.dtype == torch.bfloat16,
                use_cpu=not torch.cuda.is_available(),
                dataloader_pin_memory=False,
                seed=SEED,
            ),
            callbacks=[WordErrorCurve(self, start)],
        )
        self.model = trainer.model
        history = trainer.state.log_history
        self.record["losses"]["instruct"] = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]

    def instruction_data(self) -> Path:
        """Everything to be transcribed, and some clips with another question, in the instruction format."""
        folder = self.folder / "data"
        options: dict[str, Any] = {"split": "train", "max_seconds": MAX_INSTRUCT_SECONDS}
        examples = read_examples(write_prompt_examples(folder, tasks=("transcribe",), **options)) * REAL_REPEATS
        prompts = PROMPT_TASKS["transcribe"].phrasings
        for index, (path, text) in enumerate(self.made):
            examples.append(Example(prompts[index % len(prompts)], (str(Path(path).absolute()),), text, index=index))
        others = tuple(task for task in PROMPT_TASKS if task != "transcribe")
        examples += read_examples(write_prompt_examples(folder, tasks=others, limit=NUM_OTHER_QUESTIONS, **options))
        data_path = folder / "train.json"
        write_examples(data_path, examples)
        return data_path

    def from_cache(self, clips: list[Any]) -> dict[str, torch.Tensor]:
        """Encoder output of clips, for generation."""
        return load_encoded_audio(self.cache, self.cache.add(clips, progress=False))

    def evaluate(self) -> tuple[dict[str, Any], list[dict[str, str]]]:
        """Held-out word error with its controls, and every transcript beside its reference."""
        rows = self.splits["test"]
        report: ListeningReport = evaluate_listening(
            self.model,
            self.processor,
            rows["text"],
            list(rows["audio"]),
            QUESTION,
            encoded_audio=self.from_cache,
            max_piece_seconds=MAX_PIECE_SECONDS,
        )
        columns = (rows["id"], rows["text"], report.hypotheses, report.control_hypotheses)
        examples = [dict(zip(("id", "reference", "adapter", "wrong_audio"), row)) for row in zip(*columns)]
        return report.to_dict(), examples

    def ask_about_a_clip(self) -> dict[str, str]:
        """One question about one held-out recording."""
        row = next(row for row in self.splits["test"] if row["id"] == QUESTION_CLIP)
        said = answer(self.model, self.processor, [ask(QUESTION, row["audio"])])[0]
        return {"clip": QUESTION_CLIP, "question": QUESTION, "answer": said, "what_is_said": row["text"]}

    def report(self) -> dict[str, Any]:
        """Writes and prints the figures of the run."""
        seconds = self.record["seconds"]
        # Linux reports KiB, macOS bytes.
        unit = 1 if sys.platform == "darwin" else 1 << 10
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB
        self.record["peak_memory_mib"] = max(peak, self.record.get("peak_memory_mib", 0.0))
        self.record["minutes_after_download"] = sum(s for name, s in seconds.items() if name != "bases") / 60
        self.record["adapter_mib"] = (self.adapter / "model.safetensors").stat().st_size / MIB
        self.record_file.write_text(json.dumps(self.record, indent=1))
        (self.folder / "report.json").write_text(json.dumps(self.record, indent=1, ensure_ascii=False))
        plot_report(self.record, self.folder / "report.png")
        print_summary(self.record, self.folder)
        return self.record


class WordErrorCurve(TrainerCallback):
    """Word error on the validation clips while the language model's stage goes on, against minutes since download."""

    def __init__(self, demo: Demo, start: float):
        self.demo = demo
        self.start = start
        self.rows = load_studio_prompts("validation")

    def on_step_end(self, args, state, control, model=None, **kwargs):
        """Scores every so many steps."""
        if state.global_step % STEPS_PER_POINT and state.global_step != state.max_steps:
            return
        demo = self.demo
        heard = transcribe(
            model,
            demo.processor,
            list(self.rows["audio"]),
            QUESTION,
            demo.from_cache,
            max_piece_seconds=MAX_PIECE_SECONDS,
            progress=False,
        )
        score = score_word_error(self.rows["text"], heard)
        before = sum(seconds for name, seconds in demo.record["seconds"].items() if name != "bases")
        minutes = (before + time.perf_counter() - self.start) / 60
        demo.record["curve"].append({"minutes": minutes, "step": state.global_step, "word_error": score.word_error})
        print(f"Validation word error after {minutes:.1f} minutes: {score.word_error:.3f}", flush=True)


def print_summary(record: dict[str, Any], folder: Path) -> None:
    """The lines a reader of the terminal is after."""
    scores, said = record["scores"], record["answer"]
    clips = scores["word_error"]["clips"]
    print(f"Held-out word error on {clips} clips whose sentences were not trained on:")
    for label, score in (
        ("the projector alone, after the warm start", record["projector_alone"]),
        ("AudioLLM", scores["word_error"]),
        ("AudioLLM given the wrong recording", scores["wrong_audio_control"]),
        ("Whisper's own decoder", scores["whisper_own_decoder"]),
    ):
        print(f"  {score['word_error']:6.3f}  {label}")
    print(f"Asked about {said['clip']}: {said['question'].split(chr(10))[-1]}")
    print(f"  answer: {said['answer']}\n  spoken: {said['what_is_said']}")
    print(
        f"{record['minutes_after_download']:.1f} minutes after downloads, peak memory {record['peak_memory_mib']:.0f} "
        f"MiB, adapter {record['adapter_mib']:.0f} MiB in {folder / 'adapter'}; {folder / 'report.png'}"
    )


def main() -> None:
    """Entry of `make demo`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/demo"), help="default: %(default)s")
    parser.add_argument("--instruct_steps", type=int, default=INSTRUCT_STEPS, help="default: %(default)s")
    options = parser.parse_args()
    Demo(options.output_dir, options.instruct_steps).run()


if __name__ == "__main__":
    main()

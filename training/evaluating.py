"""
Evaluation while training: word error on held-out recordings, beside the wrong-audio control.

A loss also falls when a model only learns to guess likely words. So the prompts of held-out rows are answered by
generation, once with their own recordings and once with others'.
"""

import hashlib
import json
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from audiollm.command_line.files import write_whole
from audiollm.corpora.normalisers import has_words
from audiollm.evaluation.generating import swapped, transcript_bound
from audiollm.evaluation.word_error import score_word_error
from audiollm.inference.answer_ends import generate_to_ends
from audiollm.processing import AudioLlmProcessor
from audiollm.processing.conversations import IGNORED_LABEL
from transformers import EarlyStoppingCallback, Trainer

from .arguments import WORD_ERROR, AudioLlmTrainingArguments, TrainingError
from .batching import ENCODER_FRAMES_PER_SECOND
from .collator import AudioLlmCollator, resize_slots, slot_runs
from .feature_cache import FeatureCache
from .trainer import without_learning

SAMPLES_FILE = "eval_samples.jsonl"
CONSOLE_WIDTH = 100  # characters


@dataclass(frozen=True)
class Question:
    """A row cut before its last answer."""

    row: int  # its place in the data set, counting from 0
    prompt_ids: list[int]  # up to where the answer begins
    audio: list[Any]  # the recordings of the prompt, as the data set names them, in reading order
    reference: str  # the answer as text
    num_answer_tokens: int


def cut_at_answer(input_ids: Sequence[int], labels: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the ids before the last run of supervised tokens, and that run; both empty where nothing is supervised."""
    end = len(labels)
    while end and labels[end - 1] == IGNORED_LABEL:
        end -= 1
    start = end
    while start and labels[start - 1] != IGNORED_LABEL:
        start -= 1
    return list(input_ids[:start]), list(input_ids[start:end])


def questions(
    rows: Iterable[dict[str, Any]], processor: AudioLlmProcessor, normaliser: str, limit: int | None = None
) -> list[Question]:
    """Return rows with a recording before the last answer, and a word in it; at most `limit`, evenly spaced."""
    every = []
    for index, row in enumerate(rows):
        prompt_ids, answer_ids = cut_at_answer(row["input_ids"], row["labels"])
        # Recordings after the answer are no part of the question.
        audio = list(row["audio"])[: len(slot_runs(prompt_ids, processor.audio_token_id))]
        reference = processor.tokenizer.decode(answer_ids, skip_special_tokens=True).strip()
        if audio and has_words(reference, normaliser):
            every.append(Question(index, prompt_ids, audio, reference, len(answer_ids)))
    if limit is None or len(every) <= limit:
        return every
    return [every[index * len(every) // limit] for index in range(limit)]


class ListeningEvaluation:
    """Answers held-out questions, and as a control the same about other recordings, and scores the answers."""

    def __init__(
        self,
        held_out: Sequence[Question],
        processor: AudioLlmProcessor,
        cache: FeatureCache | None,
        arguments: AudioLlmTrainingArguments,
    ):
        self.questions = list(held_out)
        self.processor, self.arguments = processor, arguments
        self.collator = AudioLlmCollator(processor, cache)
        self.control: list[Question] = []
        slot_id = processor.audio_token_id
        recordings = {
            identity(one): (one, slots)
            for question in held_out
            for one, slots in zip(question.audio, slot_runs(question.prompt_ids, slot_id))
        }
        if len(recordings) > 1:
            other = dict(zip(recordings, swapped(list(recordings.values()))))
            for question in held_out:
                audio, slots = zip(*(other[identity(one)] for one in question.audio))
                ids, _ = resize_slots(question.prompt_ids, question.prompt_ids, slot_id, slots)
                self.control.append(replace(question, prompt_ids=ids, audio=list(audio)))

    def __call__(self, trainer: Trainer) -> dict[str, float]:
        """Return `word_error` and, with two recordings or more, `wrong_audio_word_error`; write the samples."""
        references = [question.reference for question in self.questions]
        asked = {"word_error": self.questions, "wrong_audio_word_error": self.control}
        said = {name: self.answers(trainer.model, some) for name, some in asked.items() if some}
        scores = {
            name: score_word_error(references, answers, self.arguments.eval_normaliser).word_error
            for name, answers in said.items()
        }
        if trainer.is_world_process_zero():
            heard, control = said["word_error"], said.get("wrong_audio_word_error", [None] * len(references))
            samples: list[dict[str, Any]] = [
                {"row": each.row, "reference": each.reference, "hypothesis": own, "wrong_audio_hypothesis": wrong}
                for each, own, wrong in zip(self.questions, heard, control)
            ]
            step, shown = trainer.state.global_step, self.arguments.eval_samples_shown
            write_samples(Path(str(trainer.args.output_dir)) / SAMPLES_FILE, step, samples)
            if shown:
                metrics = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in scores.items())
                print(f"Evaluation at step {step}: {metrics}")
            for sample in samples[:shown]:
                for name, value in (("reference", sample["reference"]), ("heard", sample["hypothesis"])):
                    print(f"  {name:>9} | {textwrap.shorten(value, CONSOLE_WIDTH, placeholder=' …')}")
        return scores

    def answers(self, model, asked: Sequence[Question]) -> list[str]:
        """Return the answer to every question, on every rank the same."""
        state, size = PartialState(), self.arguments.per_device_eval_batch_size
        # Like lengths together, and on every rank as many calls.
        order = sorted(range(len(asked)), key=lambda index: len(asked[index].prompt_ids))
        said: list[tuple[int, str]] = []
        with state.split_between_processes(order, apply_padding=True) as share, without_learning(model):
            for start in range(0, len(share), size):
                chosen = share[start : start + size]
                answers = self._generate(model, [asked[index] for index in chosen], synced=state.num_processes > 1)
                said += zip(chosen, answers)
        texts = dict(gather_object(said))
        return [texts[index] for index in range(len(asked))]

    def _generate(self, model, asked: Sequence[Question], synced: bool) -> list[str]:
        prompts = {"input_ids": [question.prompt_ids for question in asked]}
        inputs = self.processor.tokenizer.pad(prompts, padding=True, padding_side="left", return_tensors="pt")
        inputs.update(self.collator.audio_inputs([one for question in asked for one in question.audio]))
        language = "en" if self.arguments.eval_normaliser == "english" else None
        bounds = []
        for question in asked:  # as many tokens as the recordings could hold, or twice those of the reference
            slots = question.prompt_ids.count(self.processor.audio_token_id)
            spoken = transcript_bound(slots * self.processor.stack_factor / ENCODER_FRAMES_PER_SECOND, language)
            bounds.append(min(self.arguments.eval_max_new_tokens, max(spoken, 2 * question.num_answer_tokens)))
        options: dict[str, Any] = {"do_sample": False, "num_beams": 1, "use_cache": True, "synced_gpus": synced}
        said = generate_to_ends(model, inputs.to(model.device), bounds, max_new_tokens=max(bounds), **options)
        return [text.strip() for text in self.processor.batch_decode(said, skip_special_tokens=True)]


def identity(recording: Any) -> str:
    """Return an identifier of a recording: its cache key, its path, or a hash of its bytes."""
    if not isinstance(recording, dict):
        return str(recording)
    return str(recording["path"]) if recording["bytes"] is None else hashlib.sha256(recording["bytes"]).hexdigest()


def write_samples(path: Path, step: int, samples: Sequence[dict[str, Any]]) -> None:
    """Add a step's samples to a JSON Lines file, in place of what an earlier run wrote of this step and later ones."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    kept = [line for line in lines if json.loads(line)["step"] < step]
    new = [json.dumps({"step": step, **sample}, ensure_ascii=False) for sample in samples]
    write_whole(path, "".join(f"{line}\n" for line in [*kept, *new]))


class PatienceCallback(EarlyStoppingCallback):
    """transformers' early stopping, whose count a resumed run takes over from the checkpoint."""

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        """Take the count over, and stop at once if it has run out."""
        super().on_train_begin(args, state, control, **kwargs)
        saved = (state.stateful_callbacks or {}).get(type(self).__name__)
        if saved:
            self.early_stopping_patience_counter = saved["attributes"]["early_stopping_patience_counter"]
        control.should_training_stop = self.early_stopping_patience_counter >= self.early_stopping_patience


def listening_evaluation(
    arguments: AudioLlmTrainingArguments,
    rows: Iterable[dict[str, Any]] | None,
    processor: AudioLlmProcessor,
    cache: FeatureCache | None,
) -> ListeningEvaluation | None:
    """Return the evaluation, or None without rows to score; TrainingError where the best checkpoint is kept by it."""
    if rows is None:
        return None
    held_out = questions(rows, processor, arguments.eval_normaliser, arguments.eval_max_samples)
    if not held_out:
        why = "no held-out row has both a recording and a word in its answer"
        if (arguments.metric_for_best_model or "").removeprefix("eval_") == WORD_ERROR:
            raise TrainingError(f"--metric_for_best_model {arguments.metric_for_best_model}: {why}.")
        if arguments.should_log:
            print(f"Evaluation is by loss alone: {why}.")
        return None
    if arguments.should_log:
        print(f"Evaluation: word error on {len(held_out)} held-out rows that have a recording; the loss on all rows.")
    return ListeningEvaluation(held_out, processor, cache, arguments)

"""
Distillation: the model learns to answer speech as its own untouched base answers the transcript.

The teacher is the same model with LoRA off; `<audio>` in its prompt is replaced by the transcript. It also writes missing
responses. Ultravox is trained like this (Fixie AI 2024); the loss is that of Hinton et al. 2015 (arXiv:1503.02531).
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import datasets
import torch
from audiollm.command_line.files import Journal, sha256_of
from audiollm.command_line.option_parser import POSITIVE, SHARE, CheckedOptions, option
from audiollm.corpora.audio_rows import answer_problems, read_audio_rows
from audiollm.corpora.examples import Example
from audiollm.corpora.rows import as_list
from audiollm.evaluation.generating import Generator
from audiollm.evaluation.outputs import STOP
from audiollm.processing import AudioLlmProcessor
from audiollm.processing.conversations import AUDIO_PLACEHOLDER, IGNORED_LABEL, ConversationError
from torch import nn
from tqdm.auto import tqdm

from .arguments import DataArguments, TrainingError
from .collator import AudioLlmCollator, pad_rows
from .feature_cache import FeatureCache
from .preparing import Prepared
from .rows import build_dataset
from .trainer import AnswerTrainer, answer_logits, without_learning

#: In the output folder; what the teacher wrote, one prompt a line.
TEACHER_ANSWERS_FILE = "teacher_answers.jsonl"


@dataclass
class DistillArguments(CheckedOptions):
    """Options of stage distill."""

    _argument_group_name = "stage distill"

    temperature: Annotated[float, POSITIVE] = option(
        2.0, "Softens both distributions; above 1, unlikely tokens count for more."
    )
    distill_weight: Annotated[float, SHARE] = option(
        1.0, "Share of the distillation loss; the rest is cross-entropy on the responses."
    )
    max_answer_tokens: Annotated[int, POSITIVE] = option(
        256,
        "Bound on answers that the teacher writes, for rows without a response. Examples whose answer does "
        "not end within it are left out, and named.",
    )
    response_is_transcript: bool = option(
        False, "Rows of one recording and no transcripts are transcriptions: their response is what is said."
    )


@dataclass(frozen=True)
class DistillExample(Example):
    """A prompt about recordings, with what is said in them; without a response, the teacher writes it."""

    transcripts: tuple[str, ...] = ()  # one per recording

    @property
    def teacher_text(self) -> str:
        """Return the prompt as the teacher reads it: each `<audio>` replaced by its transcript."""
        pieces = self.text.split(AUDIO_PLACEHOLDER)
        return "".join(piece + said for piece, said in zip(pieces, (*self.transcripts, "")))


def read_distill_examples(
    source: Any, audio_dir: str | os.PathLike[str] | None = None, response_is_transcript: bool = False
) -> list[DistillExample]:
    """
    Read rows `{"text", "audio_paths", "transcripts", "response"}`: a JSON list, JSON Lines, or the rows themselves.

    `transcripts` is one text or a list, one per recording; with `response_is_transcript`, rows of one recording without it
    take their response for it. Raises FileNotFoundError, and ExamplesError with all malformed rows, by index.
    """

    def completed(row: dict[str, Any]) -> dict[str, Any]:
        if response_is_transcript and row.get("transcripts") is None and len(as_list(row["audio_paths"])) == 1:
            return {**row, "transcripts": row.get("response")}
        return row

    def problems(given: dict[str, Any]) -> list[str]:
        row = completed(given)
        transcripts, num_recordings = as_list(row.get("transcripts")), len(as_list(row["audio_paths"]))
        if not transcripts:
            return [
                "has no 'transcripts' for the teacher to read (--response_is_transcript takes the response for it)"
            ]
        reasons = []
        if len(transcripts) != num_recordings:
            reasons.append(f"has {len(transcripts)} transcripts for {num_recordings} recordings; expected one each")
        for number, transcript in enumerate(transcripts):
            reasons += answer_problems(f"transcript {number}", transcript)
        return reasons + ([] if row.get("response") is None else answer_problems("'response'", row["response"]))

    examples = []
    for row in read_audio_rows(source, audio_dir, (), ("transcripts", "response"), problems):
        fields = completed({**row.fields, "audio_paths": row.audio_paths})
        response, transcripts = fields.get("response") or "", tuple(as_list(fields["transcripts"]))
        examples.append(DistillExample(row.text, row.audio_paths, response, row.index, transcripts))
    return examples


def write_teacher_answers(
    model,
    processor: AudioLlmProcessor,
    examples: Sequence[DistillExample],
    file: str | os.PathLike[str],
    max_answer_tokens: int,
    batch_size: int = 8,
    progress: bool = True,
) -> list[DistillExample]:
    """
    Let the base answer every example that has no response, greedily, from its transcript; return all with a response.

    Answers are appended to `file` under a hash of prompt and base: a run that is started again writes what is missing, in
    the same batches. Examples whose answer did not end are left out: half an answer teaches to stop in the middle.
    """
    conditions = [model.config.base_fingerprint, str(processor.chat_template), max_answer_tokens]
    keys = [sha256_of(json.dumps([each.teacher_text, *conditions], sort_keys=True).encode()) for each in examples]
    missing = [n for n, each in enumerate(examples) if not each.response]
    missing.sort(key=lambda n: len(examples[n].teacher_text))
    journal = Journal(file)
    known = {line.entry["key"]: line.entry for line in journal.lines() if line.entry is not None}
    batches = [missing[start : start + batch_size] for start in range(0, len(missing), batch_size)]
    to_write = [batch for batch in batches if any(keys[n] not in known for n in batch)]
    teacher = Generator(model, processor)
    for batch in tqdm(to_write, desc="Teacher's answers", unit="batch", disable=not progress or not to_write):
        prompts = [[{"role": "user", "content": examples[n].teacher_text}] for n in batch]
        with without_learning(model):
            answers = teacher.answer(prompts, [()] * len(batch), [max_answer_tokens] * len(batch))
        lines = [
            {"key": keys[n], "response": each.text, "ended": each.finish == STOP} for n, each in zip(batch, answers)
        ]
        journal.append(lines)
        known.update(zip((keys[n] for n in batch), lines))
    written = {n: known[keys[n]] for n in sorted(missing)}
    cut = [examples[n].index for n, line in written.items() if not line["ended"]]
    if cut:
        found = f"The teacher's answers to {len(cut)} of {len(missing)} prompts do not end"
        print(f"{found} within --max_answer_tokens {max_answer_tokens}; they are left out: rows {cut}.")
    complete = [n for n in range(len(examples)) if n not in written or written[n]["ended"]]
    return [replace(examples[n], response=written[n]["response"]) if n in written else examples[n] for n in complete]


def build_distill_dataset(
    examples: Sequence[DistillExample], processor: AudioLlmProcessor, cache: FeatureCache | None, progress: bool = True
) -> datasets.Dataset:
    """Return [`build_dataset`] of the audio rows, with `teacher_input_ids` and `teacher_labels` beside it."""
    read = [replace(each, text=each.teacher_text, audio_paths=()) for each in examples]
    dataset = build_dataset(examples, processor, cache, progress=progress)
    teacher = build_dataset(read, processor, None, progress=False)
    for example, labels, teacher_labels in zip(examples, dataset["labels"], teacher["labels"]):
        learned, same = ([one for one in each if one != IGNORED_LABEL] for each in (labels, teacher_labels))
        if learned != same:
            raise ConversationError(
                f"Example {example.index}: the response is not the same tokens after the transcript as after the audio. "
                "Pass another chat_template."
            )
    teacher = teacher.select_columns(["input_ids", "labels"])
    teacher = teacher.rename_columns({"input_ids": "teacher_input_ids", "labels": "teacher_labels"})
    return datasets.concatenate_datasets([dataset, teacher], axis=1)


class DistillCollator(AudioLlmCollator):
    """Pads rows of [`build_distill_dataset`]: the audio rows as [`AudioLlmCollator`] does, and the teacher's."""

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return the batch of [`AudioLlmCollator`], and `teacher_input_ids`, `teacher_attention_mask`, `teacher_labels`."""
        encoded = [(row["teacher_input_ids"], row["teacher_labels"]) for row in rows]
        teacher = pad_rows(encoded, self.processor.tokenizer.pad_token_id)
        return {**super().__call__(rows), **{f"teacher_{name}": value for name, value in teacher.items()}}


def distillation_loss(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return KL(teacher ‖ student) of softened logits `(positions, vocab_size)`, summed, times the temperature squared."""
    log_student = (student.float() / temperature).log_softmax(dim=-1)
    log_teacher = (teacher.float() / temperature).log_softmax(dim=-1)
    return temperature**2 * nn.functional.kl_div(log_student, log_teacher, reduction="sum", log_target=True)


class DistillTrainer(AnswerTrainer):
    """Trains projector and LoRA towards the base's own distribution at every answer token, the end of the turn included."""

    def __init__(self, *args, distillation: DistillArguments, **kwargs):
        super().__init__(*args, **kwargs)
        self.distillation = distillation

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Return the mixture of both losses per answer token, and record `distillation` and `cross_entropy` as they are."""
        teacher_batch = {n.removeprefix("teacher_"): v for n, v in inputs.items() if n.startswith("teacher_")}
        batch = {name: value for name, value in inputs.items() if not name.startswith("teacher_")}
        with without_learning(model):
            teacher = answer_logits(model, teacher_batch, adapter_names=[None] * len(teacher_batch["input_ids"]))
        student = answer_logits(model, batch)
        distillation = distillation_loss(student.logits, teacher.logits, self.distillation.temperature)
        cross_entropy = nn.functional.cross_entropy(student.logits.float(), student.targets, reduction="sum")
        count = len(student.targets)
        self.record(count, distillation=distillation, cross_entropy=cross_entropy)
        weight = self.distillation.distill_weight
        loss = self.normalised(weight * distillation + (1 - weight) * cross_entropy, count, num_items_in_batch)
        return (loss, {}) if return_outputs else loss


def open_data(data_arguments: DataArguments, own: DistillArguments) -> list[Any]:
    """Return examples of prompt, audio and transcript, and held-out ones."""
    paths, folder = (data_arguments.data_path[0], data_arguments.eval_data_path), data_arguments.audio_dir
    return [path and read_distill_examples(path, folder, own.response_is_transcript) for path in paths]


def build(
    prepared: Prepared,
    examples: Sequence[DistillExample],
    held_out: Sequence[DistillExample] | None,
    own: DistillArguments,
) -> DistillTrainer:
    """Return the Trainer of this stage; the teacher first writes missing responses, into the output folder."""
    arguments, processor, cache = prepared.arguments, prepared.processor, prepared.cache
    file, size = Path(str(arguments.output_dir)) / TEACHER_ANSWERS_FILE, arguments.per_device_eval_batch_size

    def dataset(chosen: Sequence[DistillExample]) -> datasets.Dataset:
        # In distributed training the first process writes, and the others find it written.
        with arguments.main_process_first(desc="the teacher's answers"):
            complete = write_teacher_answers(
                prepared.model, processor, chosen, file, own.max_answer_tokens, size, prepared.progress
            )
        if not complete:
            raise TrainingError("No example is left to distil from: give responses, or a higher --max_answer_tokens.")
        return build_distill_dataset(complete, processor, cache, prepared.progress)

    return DistillTrainer(
        **prepared.for_trainer(),
        train_dataset=dataset(examples),
        eval_dataset=held_out and dataset(held_out),
        data_collator=DistillCollator(processor, cache),
        distillation=own,
    )

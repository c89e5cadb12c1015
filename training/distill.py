"""
Distillation: the model learns to answer speech as its own untouched base answers the transcript.

The teacher is the same model with LoRA off; `<audio>` in its prompt is replaced by the transcript. It also writes missing
responses. Ultravox is trained like this (Fixie AI 2024); the loss is that of Hinton et al. 2015 (arXiv:1503.02531).
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
import torch
from audiollm.corpora.examples import Example, ExamplesError, RowChecker, as_list, json_rows
from audiollm.files import Journal
from audiollm.processing import AudioLlmProcessor
from audiollm.processing.conversations import AUDIO_PLACEHOLDER, IGNORED_LABEL, ConversationError
from torch import nn
from tqdm.auto import tqdm
from transformers import TrainerCallback

from .arguments import AudioLlmTrainingArguments, TrainingError
from .dataset import AudioLlmCollator, pad_rows
from .encoding import build_dataset
from .feature_cache import FeatureCache, FeatureStore
from .trainer import AudioLlmTrainer

#: In the output folder; what the teacher wrote, one prompt a line.
TEACHER_ANSWERS_FILE = "teacher_answers.jsonl"
#: Of a row; the first two are those of the instruction format.
FIELDS = ("text", "audio_paths", "transcripts", "response")


@dataclass
class DistillArguments:
    """Options of stage distill."""

    _argument_group_name = "stage distill"

    temperature: float = field(
        default=2.0, metadata={"help": "Softens both distributions; above 1, unlikely tokens count for more."}
    )
    distill_weight: float = field(
        default=1.0,
        metadata={"help": "Share of the distillation loss; the rest is cross-entropy on the responses."},
    )
    max_answer_tokens: int = field(
        default=256,
        metadata={
            "help": "Bound on answers that the teacher writes, for rows without a response. Examples whose answer does "
            "not end within it are left out, and named."
        },
    )
    response_is_transcript: bool = field(
        default=False,
        metadata={
            "help": "Rows of one recording and no transcripts are transcriptions: their response is what is said."
        },
    )

    def __post_init__(self):
        if not self.temperature > 0:
            raise ValueError(f"--temperature is {self.temperature}; expected a number above 0.")
        if not 0 <= self.distill_weight <= 1:
            raise ValueError(f"--distill_weight is {self.distill_weight}; expected a number from 0 to 1.")
        if self.max_answer_tokens < 1:
            raise ValueError(f"--max_answer_tokens is {self.max_answer_tokens}; expected at least 1.")


@dataclass(frozen=True)
class DistillExample:
    """A prompt about recordings, with what is said in them."""

    text: str  # holds one `<audio>` per recording
    audio_paths: tuple[str, ...]
    transcripts: tuple[str, ...]  # one per recording
    response: str | None = None  # None: the teacher writes it
    index: int = 0  # place in the file it came from, counting from 0

    @property
    def recordings(self) -> tuple[str, ...]:
        """The recording of each `<audio>`, in reading order."""
        return self.audio_paths

    @property
    def teacher_text(self) -> str:
        """The prompt as the teacher reads it: each `<audio>` replaced by its transcript."""
        pieces = self.text.split(AUDIO_PLACEHOLDER)
        return "".join(piece + said for piece, said in zip(pieces, (*self.transcripts, "")))


def read_distill_examples(
    source: Any, audio_dir: str | os.PathLike[str] | None = None, response_is_transcript: bool = False
) -> list[DistillExample]:
    """
    Read rows `{"text", "audio_paths", "transcripts", "response"}`; without a response, the teacher writes it.

    Args:
        source: a JSON list, JSON Lines, or the rows themselves; `transcripts` is one text or a list, one per recording.
        audio_dir: folder that relative audio paths start from; the file's own by default.
        response_is_transcript: rows of one recording that have no transcripts take their response for it. A response
            may be anything, so this is not guessed.

    Raises:
        FileNotFoundError: no such file or folder.
        ExamplesError: rows are malformed; all are listed, by index.
    """

    problems: list[tuple[str, str]] = []
    rows: Iterable[tuple[str, Any]]
    if isinstance(source, (str, os.PathLike)):
        name, path = str(source), Path(source)
        checker, rows = RowChecker(path.parent, audio_dir), json_rows(path, problems)
    else:
        name, checker = "rows", RowChecker(".", audio_dir)
        rows = ((f"row {index}", row) for index, row in enumerate(source))
    examples = []
    for index, (where, row) in enumerate(rows):
        reasons = _row_problems(row, checker)
        if not reasons:
            paths = tuple(checker.locate(path) for path in as_list(row["audio_paths"]))
            if response_is_transcript and row.get("transcripts") is None and len(paths) == 1:
                row = {**row, "transcripts": row.get("response")}
            reasons = _answer_problems(row, len(paths))
        if not reasons:
            transcripts = tuple(as_list(row["transcripts"]))
            examples.append(DistillExample(row["text"], paths, transcripts, row.get("response"), index))
        problems.extend((where, reason) for reason in reasons)
    if not examples and not problems:
        problems.append(("", "holds no rows"))
    if problems:
        raise ExamplesError(name, problems)
    return examples


def _row_problems(row: Any, checker: RowChecker) -> list[str]:
    if not isinstance(row, dict):
        return [f"expected an object, found {row!r}"]
    reasons = [f"unknown field {name!r}; expected only {', '.join(FIELDS)}" for name in row if name not in FIELDS]
    prompt = {name: row[name] for name in FIELDS[:2] if row.get(name) is not None}
    reasons += checker.problems({**prompt, "response": "an answer"})
    if prompt.get("audio_paths") in (None, []) and AUDIO_PLACEHOLDER not in str(prompt.get("text")):
        reasons.append("has no audio: rows without it are answered by the untouched base, which does not learn")
    return reasons


def _answer_problems(row: dict[str, Any], num_recordings: int) -> list[str]:
    transcripts = as_list(row.get("transcripts"))
    if not transcripts:
        return ["has no 'transcripts' for the teacher to read (--response_is_transcript takes the response for it)"]
    reasons = []
    if len(transcripts) != num_recordings:
        reasons.append(f"has {len(transcripts)} transcripts for {num_recordings} recordings; expected one each")
    for number, transcript in enumerate(transcripts):
        reasons += _text_problems(f"transcript {number}", transcript)
    if row.get("response") is not None:
        reasons += _text_problems("'response'", row["response"])
    return reasons


def _text_problems(name: str, text: Any) -> list[str]:
    if not isinstance(text, str):
        return [f"{name} must be a string, found {text!r}"]
    if not text.strip():
        return [f"{name} is empty"]
    if AUDIO_PLACEHOLDER in text:
        return [f"{name} holds {AUDIO_PLACEHOLDER}, which stands for a recording; it may stand in 'text' only"]
    return []


@dataclass(frozen=True)
class AnswerLogits:
    """
    Logits at the positions before each answer token of a batch, rows one after the other.

    Attributes:
        logits: `(answer_tokens, vocab_size)`.
        targets: the answer tokens themselves, the end of the turn included, `(answer_tokens,)`.
        counts: how many of them each row has.
    """

    logits: torch.Tensor
    targets: torch.Tensor
    counts: list[int]


def answer_logits(model: nn.Module, batch: dict[str, Any], **kwargs: Any) -> AnswerLogits:
    """
    Run a model on a batch, and its head on the answer positions alone.

    Args:
        model: an [`AudioLlmForConditionalGeneration`], or a wrapper of one for distributed training.
        batch: as [`AudioLlmCollator`] makes it, `labels` included.
        kwargs: further ones of the model, such as `adapter_names`.
    """
    labels = batch["labels"]
    next_labels = nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED_LABEL)
    is_answer = next_labels != IGNORED_LABEL
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits = model(**inputs, logits_to_keep=is_answer, use_cache=False, **kwargs).logits
    return AnswerLogits(logits, next_labels[is_answer], is_answer.sum(dim=1).tolist())


@contextmanager
def without_learning(model: nn.Module) -> Iterator[None]:
    """Turn gradients and dropout off, as for a teacher or a reference."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


# ------------------------------------------------------------------------------------------------ the teacher's answers


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
    Let the base answer every example that has no response, greedily, from its transcript.

    Answers are appended to `file` batch by batch, under a hash of prompt and base: a run that is
    started again writes what is missing, in the same batches.

    Returns:
        The examples, all with a response. Those whose answer did not end within `max_answer_tokens` are left out, and
        printed by index: half an answer, taken for a whole one, teaches to stop in the middle.
    """
    prompts = [[{"role": "user", "content": each.teacher_text}] for each in examples]
    conditions = [model.config.base_fingerprint, str(processor.chat_template), max_answer_tokens]
    keys = [_answer_key(each.teacher_text, *conditions) for each in examples]
    missing = [n for n, each in enumerate(examples) if each.response is None]
    missing.sort(key=lambda n: len(examples[n].teacher_text))
    journal = Journal(file)
    known = {line.entry["key"]: line.entry for line in journal.lines() if line.entry is not None}
    batches = [missing[start : start + batch_size] for start in range(0, len(missing), batch_size)]
    to_write = [batch for batch in batches if any(keys[n] not in known for n in batch)]
    for batch in tqdm(to_write, desc="Teacher's answers", unit="batch", disable=not progress or not to_write):
        answers = _greedy_answers(model, processor, [prompts[n] for n in batch], max_answer_tokens)
        lines = [{"key": keys[n], "response": text, "ended": ended} for n, (text, ended) in zip(batch, answers)]
        journal.append(lines)
        known.update(zip((keys[n] for n in batch), lines))
    complete, cut = [], []
    for n, example in enumerate(examples):
        if example.response is None and not known[keys[n]]["ended"]:
            cut.append(example.index)
        else:
            response = known[keys[n]]["response"] if example.response is None else example.response
            complete.append(replace(example, response=response))
    if cut:
        print(
            f"The teacher's answers to {len(cut)} of {len(missing)} prompts do not end within --max_answer_tokens "
            f"{max_answer_tokens}; they are left out: rows {cut}."
        )
    return complete


def _answer_key(*of: Any) -> str:
    return hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()


def _greedy_answers(model, processor, conversations: list[Any], max_new_tokens: int) -> list[tuple[str, bool]]:
    """Return the base's answer to each conversation, and whether it came to its end."""
    inputs = processor.apply_chat_template(conversations, tokenize=True, add_generation_prompt=True).to(model.device)
    with without_learning(model):
        output = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
    said = output[:, inputs["input_ids"].shape[1] :]
    ends = torch.tensor(as_list(model.generation_config.eos_token_id), device=said.device)
    ended = torch.isin(said, ends).any(dim=1).tolist()
    texts = processor.batch_decode(said, skip_special_tokens=True)
    return [(text.strip(), end) for text, end in zip(texts, ended)]


# -------------------------------------------------------------------------------------------------------------- training


def build_distill_dataset(
    examples: Sequence[DistillExample], processor: AudioLlmProcessor, cache: FeatureCache | None, progress: bool = True
) -> datasets.Dataset:
    """
    Return [`build_dataset`] of the audio rows, with `teacher_input_ids` and `teacher_labels` beside it.

    Raises:
        ExamplesError: a recording cannot be used, or an example cannot be shown as a conversation; all are listed.
        ConversationError: an answer has other tokens after the transcript than after the audio; it is named.
    """
    heard = [Example(each.text, each.audio_paths, str(each.response), each.index) for each in examples]
    read = [Example(each.teacher_text, (), str(each.response), each.index) for each in examples]
    dataset = build_dataset(heard, processor, cache, progress=progress)
    teacher = build_dataset(read, processor, None, progress=False)
    for example, labels, teacher_labels in zip(examples, dataset["labels"], teacher["labels"]):
        if _learned(labels) != _learned(teacher_labels):
            raise ConversationError(
                f"Example {example.index}: the response is not the same tokens after the transcript as after the "
                "audio, so that teacher and student cannot be compared. Pass another chat_template."
            )
    teacher = teacher.select_columns(["input_ids", "labels"])
    teacher = teacher.rename_columns({"input_ids": "teacher_input_ids", "labels": "teacher_labels"})
    return datasets.concatenate_datasets([dataset, teacher], axis=1)


def _learned(labels: Sequence[int]) -> list[int]:
    return [label for label in labels if label != IGNORED_LABEL]


@dataclass
class DistillCollator:
    """Pads rows of [`build_distill_dataset`]: the audio rows as [`AudioLlmCollator`] does, and the teacher's."""

    processor: AudioLlmProcessor
    cache: FeatureStore | None = None

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return the batch of [`AudioLlmCollator`], and `teacher_input_ids`, `teacher_attention_mask`, `teacher_labels`."""
        teacher = pad_rows(
            [row["teacher_input_ids"] for row in rows],
            [row["teacher_labels"] for row in rows],
            self.processor.tokenizer.pad_token_id,
        )
        batch = AudioLlmCollator(self.processor, self.cache)(rows)
        return {**batch, **{f"teacher_{name}": value for name, value in teacher.items()}}


def distillation_loss(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """
    KL(teacher ‖ student) of softened distributions, summed over positions; zero where the logits are the same.

    Times the temperature squared, as gradients shrink by that (Hinton et al. 2015, section 2).

    Args:
        student, teacher: logits `(positions, vocab_size)`.
    """
    log_student = (student.float() / temperature).log_softmax(dim=-1)
    log_teacher = (teacher.float() / temperature).log_softmax(dim=-1)
    return temperature**2 * nn.functional.kl_div(log_student, log_teacher, reduction="sum", log_target=True)


class DistillTrainer(AudioLlmTrainer):
    """
    Trains projector and LoRA towards the base's own distribution at every answer token, the end of the turn included.

    Args:
        distillation: temperature and mixture.
        args, kwargs: the Trainer's.
    """

    def __init__(self, *args, distillation: DistillArguments, **kwargs):
        super().__init__(*args, **kwargs)
        self.distillation = distillation
        #: Sums and counts of each metric since it was last logged, in training and in evaluation.
        self._figures: dict[str, dict[str, torch.Tensor]] = {"train": {}, "eval": {}}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Return the mixture of both losses per answer token; logs `distillation` and `cross_entropy` as they are."""
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

    def record(self, count: int, **sums: torch.Tensor) -> None:
        """
        Keep metrics for the next log, which shows their means.

        Args:
            count: how many items the sums are over; the same for all of one call.
            sums: by name.
        """
        figures = self._figures["train" if self.model.training else "eval"]
        for name, total in sums.items():
            sum_and_count = torch.stack([total.detach().float(), total.new_tensor(count, dtype=torch.float32)])
            figures[name] = figures[name] + sum_and_count if name in figures else sum_and_count

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as the Trainer does, with the means of what was recorded."""
        names = [name for name in logs if name == "loss" or (name.startswith("eval") and name.endswith("_loss"))]
        if names:
            mode = "train" if names[0] == "loss" else "eval"
            figures, self._figures[mode] = self._figures[mode], {}
            for name, sum_and_count in figures.items():
                total, count = self.accelerator.reduce(sum_and_count, "sum").tolist()
                logs[names[0].removesuffix("loss") + name] = total / count
        super().log(logs, start_time)

    def normalised(self, total: torch.Tensor, count: int, num_items_in_batch: Any) -> torch.Tensor:
        """
        Return a sum over this batch as its share of the mean over all batches of a step.

        Args:
            total: the sum, a scalar.
            count: items in this batch, which it is divided by where the step's count is not known (evaluation).
            num_items_in_batch: items in the whole step, on all devices, as the Trainer counts them.
        """
        if num_items_in_batch is None:
            return total / count
        # As in Trainer.compute_loss: gradients are averaged over devices, but the count is that of all of them.
        scale = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return total * scale / num_items_in_batch

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Return the loss alone; logits of all positions are never made."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, _ = self.compute_loss(model, inputs, return_outputs=True)
        return loss.detach(), None, None


def build_trainer(
    model,
    processor: AudioLlmProcessor,
    examples: Sequence[DistillExample],
    cache: FeatureCache | None,
    training_arguments: AudioLlmTrainingArguments,
    distill_arguments: DistillArguments,
    callbacks: Sequence[TrainerCallback] = (),
    eval_examples: Sequence[DistillExample] | None = None,
    augmentation: Callable[[dict], dict] | None = None,
) -> DistillTrainer:
    """
    Return the trainer of this stage; the teacher first writes what responses are missing, into the output folder.

    Args:
        model, processor: a pair that belongs together; the model is trained in place.
        examples, eval_examples: as [`read_distill_examples`] gives them.
        cache: holds, or is given, the encoder's output; None to encode in every batch anew.
        augmentation: varies what the student hears in training, as [`BatchAugmentation`] does.

    Raises:
        ValueError: no example is left to train on.
    """
    progress = not training_arguments.disable_tqdm
    file = Path(training_arguments.output_dir) / TEACHER_ANSWERS_FILE

    def dataset(chosen: Sequence[DistillExample]) -> datasets.Dataset:
        # In distributed training the first process writes, and the others find it written.
        with training_arguments.main_process_first(desc="the teacher's answers"):
            complete = write_teacher_answers(
                model,
                processor,
                chosen,
                file,
                distill_arguments.max_answer_tokens,
                training_arguments.per_device_eval_batch_size,
                progress,
            )
        if not complete:
            raise TrainingError("No example is left to distil from: give responses, or a higher --max_answer_tokens.")
        return build_distill_dataset(complete, processor, cache, progress)

    return DistillTrainer(
        model=model,
        args=training_arguments,
        train_dataset=dataset(examples),
        eval_dataset=None if eval_examples is None else dataset(eval_examples),
        data_collator=DistillCollator(processor, None if cache is None else cache.store),
        processing_class=processor,
        callbacks=list(callbacks),
        augmentation=augmentation,
        distillation=distill_arguments,
    )

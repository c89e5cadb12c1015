"""
Stage *read*: LoRA learns to read what the projector hears, from text alone.

Rows of text become simulated audio tokens ([`PosteriorBank`]) behind the usual prompts for a transcript; the response is
the text as it is written. Batches hold rows of real recordings as well, if there are any. So the language model's
knowledge of words helps hearing in any domain that there are texts of, also without recordings.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
import torch
from audiollm.command_line.option_parser import option
from audiollm.corpora.examples import JSON_LINES_SUFFIX, ExamplesError, json_rows
from audiollm.corpora.prompts import PROMPT_TASKS
from audiollm.corpora.rows import ASSISTANT
from audiollm.corpora.sources import PARQUET_SUFFIX, load_table, parse_source, settle_problems
from audiollm.inference.letter_search import add_words
from audiollm.processing import AudioLlmProcessor
from audiollm.processing.conversations import AUDIO_PLACEHOLDER
from tqdm.auto import tqdm

from .align import TranscribedClips
from .arguments import AudioLlmTrainingArguments, DataArguments, TrainingError
from .batching import BatchBudget
from .checkpointing import last_complete_checkpoint
from .collator import AudioLlmCollator, pad_rows, resize_slots, unpadded
from .instruct import InstructData, open_held_out_data, open_training_data
from .posteriors import BANK_FILE, PosteriorBank, SpokenText, collect_from_cache, mix_embeddings
from .preparing import Prepared
from .rows import ExampleEncoder, encode_messages
from .trainer import AudioLlmTrainer, sampling_seed

PROMPTS = PROMPT_TASKS["transcribe"].phrasings
JSON_SUFFIXES = (".json", JSON_LINES_SUFFIX)
#: A longer text is no sentence; 2,000 characters are some two minutes of speech.
MAX_TEXT_CHARACTERS = 2000
TEXTS_PER_CALL = 10_000
PROBLEMS_SHOWN = 3
#: What a batch has one row of for each of its rows.
PER_ROW = ("input_ids", "labels", "attention_mask")
#: Columns of a text's row, beside those of all rows.
TEXT_FEATURES = {
    "text": datasets.Value("string"),
    "prompt": datasets.Value("string"),
    "classes": datasets.List(datasets.Value("int32")),
    "begins": datasets.List(datasets.Value("bool")),
    "length": datasets.Value("int32"),
}


@dataclass
class ReadArguments:
    """Options of stage read."""

    _argument_group_name = "stage read"

    text_path: list[str] = option(
        [],
        "Texts to learn to read, one or several files: plain text with one sentence a line, or *.json, "
        "*.jsonl or *.parquet rows with 'text' as it is written and, if it has figures, 'spoken' as it is said.",
    )
    posterior_bank: str | None = option(
        None,
        f"What the projector hears of real speech ({BANK_FILE}, which --stage align and this stage write). "
        "By default that of --model_path; where it has none, it is collected from --data_path.",
    )
    posterior_data_path: str | None = option(
        None,
        "Recordings to collect the posteriors from, in a form of data_path: best such that the projector was "
        "not trained on, of which it hears less.",
    )
    real_share: float = option(
        0.2, "Share of the rows that are real recordings, drawn from --data_path; none without it."
    )
    hearing_errors: float = option(
        1.0,
        "Misheard word pieces at the end of the run, in proportion to those of the posteriors: 0 is none, 1 "
        "as many, 2 twice as many.",
    )
    first_hearing_errors: float = option(
        0.0, "The same at the beginning of the run, from where it goes in a straight line."
    )

    def __post_init__(self):
        if not self.text_path:
            raise ValueError("--stage read needs --text_path, a file of texts.")
        if not 0 <= self.real_share < 1:
            raise ValueError(f"--real_share is {self.real_share}; expected a number from 0 to below 1.")
        for name in ("hearing_errors", "first_hearing_errors"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"--{name} is {getattr(self, name)}; expected a number of 0 or more.")
        if self.posterior_bank is not None and self.posterior_data_path is not None:
            raise ValueError("--posterior_bank contradicts --posterior_data_path; give one of them.")

    def errors_at(self, progress: float) -> float:
        """Misheard pieces in proportion to those of the bank, by the part of the run that is over (0 to 1)."""
        return self.first_hearing_errors + progress * (self.hearing_errors - self.first_hearing_errors)


# ---------------------------------------------------------------------------------------------------------------- texts


@dataclass(frozen=True)
class Text:
    """A text as it is written, as it is said, and where it stands."""

    written: str
    spoken: str
    where: str


def read_texts(path: str) -> tuple[list[Text], list[tuple[str, str]]]:
    """
    Return the texts of a file, and (where, reason) of those that cannot be used.

    A file is plain text with one text a line; or JSON, JSON Lines or Parquet rows with `text` and, if it is not said as it
    is written, `spoken`.

    Raises:
        FileNotFoundError: there is no such file.
        ExamplesError: it holds no text, or is not of that kind.
    """
    problems: list[tuple[str, str]] = []
    texts = []
    for where, row in _rows(path, problems):
        written, spoken = (row.get("text"), row.get("spoken")) if isinstance(row, dict) else (row, None)
        if not isinstance(written, str) or not isinstance(spoken, (str, type(None))):
            problems.append((where, "expected a string under 'text', and one or nothing under 'spoken'"))
            continue
        written = " ".join(written.split())
        if AUDIO_PLACEHOLDER in written:
            problems.append((where, f"holds {AUDIO_PLACEHOLDER}, which stands for a recording"))
        elif len(written) > MAX_TEXT_CHARACTERS:
            found = f"has {len(written):,} characters; expected a sentence or two, of up to {MAX_TEXT_CHARACTERS:,}"
            problems.append((where, found))
        elif any(map(str.isalnum, written)):
            texts.append(Text(written, spoken or written, where))
    if not texts and not problems:
        raise ExamplesError(path, [("", "holds no text")])
    return texts, problems


def _rows(path: str, problems: list[tuple[str, str]]) -> Iterator[tuple[str, Any]]:
    if path.endswith(PARQUET_SUFFIX):
        try:
            table = load_table(parse_source(path), streaming=False)
            chosen = table.select_columns([name for name in ("text", "spoken") if name in table.column_names])
        except FileNotFoundError:
            raise
        except (OSError, ValueError) as error:
            raise ExamplesError(path, [("", f"cannot be read: {' '.join(str(error).split())}")]) from error
        yield from ((f"row {index}", row) for index, row in enumerate(chosen))
    elif path.endswith(JSON_SUFFIXES):
        for where, row, problem in json_rows(Path(path)):
            if problem is None:
                yield where, row
            else:
                problems.append((where, problem))
    else:
        content = Path(path).read_bytes()
        try:
            lines = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ExamplesError(path, [("", f"is not UTF-8 text: {error.reason} at byte {error.start}")]) from None
        if "\0" in lines:
            raise ExamplesError(path, [("", f"is not text: byte {lines.index(chr(0))} is zero")])
        yield from ((f"line {index}", line) for index, line in enumerate(lines.split("\n"), 1))


# ------------------------------------------------------------------------------------------------------------------ rows


def encode_text(processor: AudioLlmProcessor, prompt: str, text: str, slots: int) -> tuple[list[int], list[int]]:
    """Return token ids and labels of a text as the transcript of a recording of so many audio tokens."""
    messages = [{"role": "user", "content": prompt}, {"role": ASSISTANT, "content": text}]
    return encode_messages(processor, messages, [slots])


def build_text_rows(
    texts: Sequence[Text],
    bank: PosteriorBank,
    processor: AudioLlmProcessor,
    budget: BatchBudget,
    progress: bool = True,
) -> tuple[datasets.Dataset, list[tuple[str, str]]]:
    """
    Return rows of the texts that can be simulated and fit into a batch, and (where, reason) of the others.

    A row has the `text` as it is written, the `prompt` before it, its `classes`, which of them `begins` a word, and its
    `length` in tokens with as many audio tokens as are expected.
    """
    tokenizer = processor.tokenizer
    spoken = SpokenText(tokenizer, bank.token_ids.tolist())
    # Around a response of one token.
    around = max(len(encode_text(processor, prompt, "a", 1)[0]) for prompt in PROMPTS) - 2
    tokens = {*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens}
    special = re.compile("|".join(map(re.escape, tokens)))
    problems: list[tuple[str, str]] = []
    rows: list[dict[str, Any]] = []
    for start in tqdm(range(0, len(texts), TEXTS_PER_CALL), desc="Reading texts", disable=not progress):
        chunk = texts[start : start + TEXTS_PER_CALL]
        written = tokenizer([text.written for text in chunk], add_special_tokens=False)["input_ids"]
        for text, ids in zip(chunk, written):
            own_classes, own_begins = spoken.encode(text.spoken)
            slots = bank.expected_slots(own_classes, own_begins) if own_classes else 0
            length = around + round(slots) + len(ids)
            if words := spoken.unspeakable(text.spoken):
                reason = f"{words[0]!r} has no word pieces that the projector hears; say it in words under 'spoken'"
            elif found := special.search(text.written):
                reason = f"holds {found.group()!r}, a special token of the language model"
            else:
                reason = budget.problem(length) or ""
            if reason:
                problems.append((text.where, reason))
                continue
            prompt = PROMPTS[len(rows) % len(PROMPTS)]
            row = (text.written, prompt, own_classes, own_begins, length)
            rows.append(dict(zip(TEXT_FEATURES, row)))
    return datasets.Dataset.from_list(rows, features=datasets.Features(TEXT_FEATURES)), problems


def num_recordings(num_texts: int, share: float) -> int:
    """Return how many recordings beside so many texts make up this share of all rows."""
    return round(num_texts * share / (1 - share))


def choose_recordings(count: int, available: int, seed: int) -> list[int]:
    """Return indices of so many recordings, each as often as the others, drawn by the seed."""
    random = np.random.default_rng(seed)
    rounds = [random.permutation(available) for _ in range(-(-count // available))]
    return np.concatenate([*rounds, []]).astype(int).tolist()[:count]


@dataclass
class ReadCollator:
    """Pads rows of texts and of recordings together, texts first, with one audio token for each text."""

    processor: AudioLlmProcessor
    recordings: AudioLlmCollator

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Return the batch of [`AudioLlmCollator`] of all rows, and the texts to simulate.

        These are `text_classes` and `text_begins` of all texts one after the other, and how many each has, `text_sizes`.
        """
        texts = [row for row in rows if row.get("text") is not None]
        encoded = [encode_text(self.processor, row["prompt"], row["text"], 1) for row in texts]
        batch = self.recordings(
            [
                *({"input_ids": ids, "labels": labels, "audio": []} for ids, labels in encoded),
                *(row for row in rows if row.get("text") is None),
            ]
        )
        if texts:
            for name in ("classes", "begins"):
                batch[f"text_{name}"] = torch.tensor([value for row in texts for value in row[name]])
            batch["text_sizes"] = torch.tensor([len(row["classes"]) for row in texts])
        return batch


class ReadTrainer(AudioLlmTrainer):
    """
    Trains LoRA on simulated and real speech, within a budget.

    Texts are simulated in the step: its place in the run says how many errors are heard, and the random state is the one
    that a resumed run has.
    """

    def __init__(self, *args, bank: PosteriorBank, options: ReadArguments, **kwargs):
        super().__init__(*args, **kwargs)
        self.bank, self.options = bank, options

    @property
    def errors(self) -> float:
        """Misheard pieces of this step, in proportion to those of the bank."""
        return self.options.errors_at(min(1.0, self.state.global_step / max(1, self.state.max_steps - 1)))

    def vary(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return a batch with the audio tokens of its texts, and its recordings varied as the augmentation says."""
        if "text_sizes" not in batch:
            return super().vary(batch)
        batch = dict(batch)
        sizes = batch.pop("text_sizes").tolist()
        parts = (batch.pop(name).cpu().split(sizes) for name in ("text_classes", "text_begins"))
        texts = [(classes.tolist(), begins.tolist()) for classes, begins in zip(*parts)]
        random = np.random.default_rng(int(torch.randint(2**31, ())))
        heard, weights, counts = self.bank.simulate(texts, self.errors, random)

        model, processor, device = cast(Any, self.model), cast(Any, self.processing_class), batch["input_ids"].device
        readout, embeddings = model.model.multi_modal_projector.readout, model.get_input_embeddings().weight
        tokens = mix_embeddings(readout, embeddings, *(torch.from_numpy(each).to(device) for each in (heard, weights)))
        real = {name: value[len(texts) :] if name in PER_ROW else value for name, value in batch.items()}
        real = real if self.augmentation is None else self.augmentation(real)
        texts_only = zip(unpadded(batch), counts.tolist())
        rows = [resize_slots(*row, processor.audio_token_id, [count]) for row, count in texts_only] + unpadded(real)
        ids, labels = zip(*rows)
        padded = pad_rows(ids, labels, processor.tokenizer.pad_token_id)
        return {**real, **{name: value.to(device) for name, value in padded.items()}, "audio_embeds": tokens}


# ----------------------------------------------------------------------------------------------------------- the stage


@dataclass
class ReadData:
    """Texts of the stage, and its recordings: beside the texts, and to collect the posteriors from."""

    texts: list[Text]
    recordings: InstructData | None
    posterior_clips: InstructData | None
    skip_bad: bool = False
    num_real: int = 0  # rows of an epoch that are recordings

    def __len__(self) -> int:
        return len(self.texts) + self.num_real


def open_data(data_arguments: DataArguments, own_arguments: ReadArguments | None):
    """Return texts and recordings, and held-out recordings."""
    own = own_arguments or ReadArguments()
    found = [read_texts(path) for path in own.text_path]
    skip_bad = data_arguments.on_bad_example == "skip"
    settle_problems([(path, problems) for path, (_, problems) in zip(own.text_path, found)], skip_bad)
    texts = [text for some, _ in found for text in some]
    recordings = open_training_data(data_arguments) if data_arguments.data_path else None
    clips = recordings
    if own.posterior_data_path is not None:
        clips = open_training_data(replace(data_arguments, data_path=[own.posterior_data_path]))
    if own.real_share == 0:
        recordings = None
    num_real = 0 if recordings is None else num_recordings(len(texts), own.real_share)
    return ReadData(texts, recordings, clips, skip_bad, num_real), open_held_out_data(data_arguments)


def check_model(model) -> None:
    """
    Raises:
        TrainingError: the model has no readout whose posteriors could be simulated, or no LoRA to learn with.
    """
    readout = model.model.multi_modal_projector.readout
    if readout is None:
        raise TrainingError(
            "--stage read needs a checkpoint whose audio tokens are mixtures of word pieces; this one's "
            f"projector_readout is {model.config.projector_readout!r}. `--stage align --projector_readout pieces` makes one."
        )
    if bool(readout.lexicon.all()):
        raise TrainingError(
            "--stage read needs a projector that was aligned: this one's readout has no lexicon yet. Train it with "
            "--stage align, and name the result as --model_path."
        )
    if not model.config.lora_adapters or not any(".lora_" in name for name, _ in model.named_parameters()):
        raise TrainingError("--stage read trains LoRA, but the checkpoint has none (lora_rank 0).")
    if gain := float(readout.residual_gain.detach()):
        print(f"Simulated tokens lack what the projector adds beside its word pieces (residual gain {gain:.3g}).")


def find_bank(prepared: Prepared, data: ReadData, arguments: AudioLlmTrainingArguments, own: ReadArguments):
    """
    Return the posterior bank: of the run that is resumed, as given, of the checkpoint, or collected from recordings.

    Raises:
        TrainingError: there is none, and no recordings; or it is of another model.
    """
    mine = Path(str(arguments.output_dir)) / BANK_FILE
    beside = None if prepared.source is None else Path(prepared.source) / BANK_FILE
    if mine.is_file() and last_complete_checkpoint(mine.parent) is not None:
        bank = PosteriorBank.load(mine)
    elif own.posterior_bank is not None:
        given = Path(own.posterior_bank)
        bank = PosteriorBank.load(given / BANK_FILE if given.is_dir() else given)
    elif own.posterior_data_path is None and beside is not None and beside.is_file():
        bank = PosteriorBank.load(beside)
    elif data.posterior_clips is None:
        raise TrainingError(
            f"--model_path {prepared.source} has no {BANK_FILE}, which --stage align leaves beside its checkpoint. Give "
            "--posterior_bank, or recordings to collect one from: --data_path or --posterior_data_path."
        )
    elif prepared.cache is None:
        raise TrainingError("Posteriors are collected through the feature cache; leave out --feature_cache off.")
    else:
        clips, progress = TranscribedClips(data.posterior_clips.sources, "none"), not arguments.disable_tqdm
        encoder = ExampleEncoder(prepared.processor, prepared.cache)
        clips.leave_out_undecodable(encoder, data.skip_bad, progress)
        encoder.add_features(clips, progress)
        keys = [encoder.measure(clip.recordings[0])[0] for clip in clips]
        bank = collect_from_cache(prepared.model, prepared.cache, list(zip(keys, clips.transcripts)), progress)
    bank.check_fits(prepared.model)
    if arguments.should_save:
        bank.save(mine)
        print(bank.describe())
    return bank


def build(prepared: Prepared, data: ReadData, held_out, training_arguments, own_arguments, callbacks) -> ReadTrainer:
    """
    Return the Trainer of this stage.

    Raises:
        TrainingError: the model cannot learn this, or no text can be simulated.
    """
    own = own_arguments or ReadArguments()
    processor, cache = prepared.processor, prepared.cache
    progress = not training_arguments.disable_tqdm
    seed = sampling_seed(training_arguments)
    check_model(prepared.model)
    bank = find_bank(prepared, data, training_arguments, own)
    budget = training_arguments.batch_budget()
    budget = budget or BatchBudget(max_rows=training_arguments.per_device_train_batch_size)
    texts, left_out = build_text_rows(data.texts, bank, processor, budget, progress)
    if left_out:
        shown = "; ".join(f"{where} {reason}" for where, reason in left_out[:PROBLEMS_SHOWN])
        print(
            f"{len(left_out)} of {len(data.texts)} texts are left out: {shown}{'; ...' * (len(left_out) > PROBLEMS_SHOWN)}."
        )
    if not len(texts):
        raise TrainingError("No text is left to read.")
    add_words(prepared.model, (text.spoken for text in data.texts))
    rows = texts
    if data.recordings is not None:
        recordings = data.recordings.dataset(ExampleEncoder(processor, cache, budget), seed, progress)
        chosen = choose_recordings(num_recordings(len(texts), own.real_share), len(recordings), seed)
        rows = datasets.concatenate_datasets([texts, recordings.select(chosen)])
    return ReadTrainer(
        model=prepared.model,
        args=training_arguments,
        train_dataset=rows,
        eval_dataset=None if held_out is None else held_out.dataset(ExampleEncoder(processor, cache), seed, progress),
        data_collator=ReadCollator(processor, AudioLlmCollator(processor, cache)),
        processing_class=processor,
        budget=budget,
        bank=bank,
        options=own,
        callbacks=callbacks,
    )

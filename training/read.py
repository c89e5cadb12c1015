"""
Stage *read*: LoRA learns to read what the projector hears, from text alone.

Rows of text become simulated audio tokens ([`PosteriorBank`]) behind the usual prompts for a transcript; the response is
the text as it is written. Batches hold rows of real recordings as well, if there are any.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, cast

import datasets
import numpy as np
import torch
from audiollm.command_line.option_parser import NOT_NEGATIVE, CheckedOptions, Expected, option
from audiollm.corpora.examples import JSON_LINES_SUFFIX, json_rows
from audiollm.corpora.prompts import PROMPT_TASKS
from audiollm.corpora.rows import ASSISTANT
from audiollm.corpora.sources import PARQUET_SUFFIX, load_table, parse_source, settle_problems
from audiollm.inference.letter_search import add_words
from audiollm.processing import AudioLlmProcessor
from audiollm.processing.conversations import AUDIO_PLACEHOLDER
from tqdm.auto import tqdm

from .align import TranscribedClips
from .arguments import DataArguments, TrainingError
from .batching import BatchBudget
from .checkpointing import last_complete_checkpoint
from .collator import AudioLlmCollator, pad_rows, resize_slots, unpadded
from .instruct import InstructData, open_held_out_data, open_training_data
from .posteriors import BANK_FILE, PosteriorBank, SpokenText, collect_posteriors, mix_embeddings
from .preparing import Prepared
from .rows import encode_messages
from .trainer import AudioLlmTrainer, sampling_seed

PROMPTS = PROMPT_TASKS["transcribe"].phrasings
JSON_SUFFIXES = (".json", JSON_LINES_SUFFIX)
#: A longer text is no sentence; 2,000 characters are some two minutes of speech.
MAX_TEXT_CHARACTERS = 2000
PROBLEMS_SHOWN = 3
#: Fields of a batch that have one row for each of its rows.
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
class ReadArguments(CheckedOptions):
    """Options of stage read."""

    _argument_group_name = "stage read"

    text_path: list[str] = option(
        [],
        "Texts to learn to read, one or several files: plain text with one sentence a line, or *.json, "
        "*.jsonl or *.parquet rows with 'text' as it is written and, if it has figures, 'spoken' as it is said.",
    )
    posterior_bank: str | None = option(
        None,
        f"Posteriors of real speech ({BANK_FILE}, which --stage align and this stage write). "
        "By default that of --model_path; where it has none, it is collected from --data_path.",
    )
    posterior_data_path: str | None = option(
        None,
        "Recordings to collect the posteriors from, in a form of data_path: best such that the projector was "
        "not trained on, of which it hears less.",
    )
    real_share: Annotated[float, Expected("a share below 1", lambda share: 0 <= share < 1)] = option(
        0.2, "Share of the rows that are real recordings, drawn from --data_path; none without it."
    )
    hearing_errors: Annotated[float, NOT_NEGATIVE] = option(
        1.0,
        "Misheard word pieces at the end of the run, in proportion to those of the posteriors: 0 is none, 1 "
        "as many, 2 twice as many.",
    )
    first_hearing_errors: Annotated[float, NOT_NEGATIVE] = option(
        0.0, "The same at the beginning of the run, from where it goes in a straight line."
    )

    def __post_init__(self):
        if not self.text_path:
            raise ValueError("--stage read needs --text_path, a file of texts.")
        super().__post_init__()
        if self.posterior_bank is not None and self.posterior_data_path is not None:
            raise ValueError("--posterior_bank contradicts --posterior_data_path; give one of them.")


@dataclass(frozen=True)
class Text:
    """A text as it is written, as it is said, and where it stands."""

    written: str
    spoken: str
    where: str


def read_texts(path: str) -> tuple[list[Text], list[tuple[str, str]]]:
    """Return the texts of a file, and (where, reason) of those that cannot be used. Raises FileNotFoundError."""
    problems: list[tuple[str, str]] = []
    texts = []
    for where, row, problem in _rows(path):
        written, spoken = (row.get("text"), row.get("spoken")) if isinstance(row, dict) else (row, None)
        if problem is None and not (isinstance(written, str) and isinstance(spoken, (str, type(None)))):
            problem = "expected a string under 'text', and one or nothing under 'spoken'"
        written = "" if problem else " ".join(str(written).split())
        if AUDIO_PLACEHOLDER in written:
            problem = f"holds {AUDIO_PLACEHOLDER}, which stands for a recording"
        elif "\0" in written:
            problem = "is not text: it holds a zero byte"
        elif len(written) > MAX_TEXT_CHARACTERS:
            problem = f"has {len(written):,} characters; expected a sentence or two, of up to {MAX_TEXT_CHARACTERS:,}"
        if problem is not None:
            problems.append((where, problem))
        elif any(map(str.isalnum, written)):
            texts.append(Text(written, spoken or written, where))
    return texts, problems if texts or problems else [("", "holds no text")]


def _rows(path: str) -> Iterator[tuple[str, Any, str | None]]:
    """Yield where each row of a file stands, the row, and what is wrong with it, as [`json_rows`] does."""
    if path.endswith(JSON_SUFFIXES):
        yield from json_rows(Path(path))
        return
    is_table, rows = path.endswith(PARQUET_SUFFIX), []  # type: bool, Any
    try:
        if is_table:
            table = load_table(parse_source(path), streaming=False)
            rows = table.select_columns([name for name in ("text", "spoken") if name in table.column_names])
        else:
            rows = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        yield "", None, f"cannot be read: {' '.join(str(error).split())}"
    for index, row in enumerate(rows):
        yield f"row {index}" if is_table else f"line {index + 1}", row, None


def encode_text(processor: AudioLlmProcessor, prompt: str, text: str) -> tuple[list[int], list[int]]:
    """Return token ids and labels of a text as the transcript of a recording of one audio token."""
    messages = [{"role": "user", "content": prompt}, {"role": ASSISTANT, "content": text}]
    return encode_messages(processor, messages, [1])


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
    around = max(len(encode_text(processor, prompt, "a")[0]) for prompt in PROMPTS) - 2
    special = re.compile("|".join(map(re.escape, {*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens})))
    problems: list[tuple[str, str]] = []
    rows: list[dict[str, Any]] = []
    for text in tqdm(texts, desc="Reading texts", disable=not progress):
        classes, begins = spoken.encode(text.spoken)
        slots = round(bank.expected_slots(classes, begins)) if classes else 0
        length = around + slots + len(tokenizer(text.written, add_special_tokens=False)["input_ids"])
        if words := spoken.unspeakable(text.spoken):
            problem = f"{words[0]!r} has no word pieces that the projector hears; say it in words under 'spoken'"
        elif found := special.search(text.written):
            problem = f"holds {found.group()!r}, a special token of the language model"
        else:
            problem = budget.problem(length) or ""
        if problem:
            problems.append((text.where, problem))
        else:
            row = text.written, PROMPTS[len(rows) % len(PROMPTS)], classes, begins, length
            rows.append(dict(zip(TEXT_FEATURES, row)))
    return datasets.Dataset.from_list(rows, features=datasets.Features(TEXT_FEATURES)), problems


def num_recordings(num_texts: int, share: float) -> int:
    """Return the number of recordings that make up this share of all rows beside so many texts."""
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

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the batch of [`AudioLlmCollator`], and as `texts` the classes to simulate and which begin a word."""
        texts = [row for row in rows if row.get("text") is not None]
        encoded = [encode_text(self.processor, row["prompt"], row["text"]) for row in texts]
        heard = [{"input_ids": ids, "labels": labels, "audio": []} for ids, labels in encoded]
        batch: dict[str, Any] = self.recordings([*heard, *(row for row in rows if row.get("text") is None)])
        return {**batch, "texts": [(row["classes"], row["begins"]) for row in texts]} if texts else batch


class ReadTrainer(AudioLlmTrainer):
    """Trains LoRA on real speech and on speech that is simulated in the step, whose place says how much is misheard."""

    def __init__(self, *args, bank: PosteriorBank, options: ReadArguments, **kwargs):
        super().__init__(*args, **kwargs)
        self.bank, self.options = bank, options

    @property
    def errors(self) -> float:
        """Misheard pieces of this step, in proportion to those of the bank."""
        progress = min(1.0, self.state.global_step / max(1, self.state.max_steps - 1))
        first, last = self.options.first_hearing_errors, self.options.hearing_errors
        return first + progress * (last - first)

    def vary(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return a batch with the audio tokens of its texts, and its recordings varied as the augmentation says."""
        if "texts" not in batch:
            return super().vary(batch)
        texts = batch["texts"]
        batch = {name: value for name, value in batch.items() if name != "texts"}
        random = np.random.default_rng(int(torch.randint(2**31, ())))
        heard, weights, counts = self.bank.simulate(texts, self.errors, random)

        model, processor, device = cast(Any, self.model), cast(Any, self.processing_class), batch["input_ids"].device
        readout, embeddings = model.model.multi_modal_projector.readout, model.get_input_embeddings().weight
        tokens = mix_embeddings(readout, embeddings, *(torch.from_numpy(each).to(device) for each in (heard, weights)))
        real = {name: value[len(texts) :] if name in PER_ROW else value for name, value in batch.items()}
        real = real if self.augmentation is None else self.augmentation(real)
        texts_only = zip(unpadded(batch), counts.tolist())
        rows = [resize_slots(*row, processor.audio_token_id, [count]) for row, count in texts_only] + unpadded(real)
        padded = pad_rows(rows, processor.tokenizer.pad_token_id)
        return {**real, **{name: value.to(device) for name, value in padded.items()}, "audio_embeds": tokens}


@dataclass
class ReadData:
    """Texts of the stage, and its recordings: beside the texts, and to collect the posteriors from."""

    texts: list[Text]
    recordings: InstructData | None
    posterior_clips: InstructData | None
    real_share: float

    def __len__(self) -> int:
        texts = len(self.texts)
        return texts if self.recordings is None else texts + num_recordings(texts, self.real_share)


def open_data(data_arguments: DataArguments, own: ReadArguments) -> tuple[ReadData, InstructData | None]:
    """Return texts and recordings, and held-out recordings."""
    found = [(path, *read_texts(path)) for path in own.text_path]
    settle_problems([(path, problems) for path, _, problems in found], data_arguments.on_bad_example == "skip")
    texts = [text for _, some, _ in found for text in some]
    recordings = clips = open_training_data(data_arguments) if data_arguments.data_path else None
    if own.posterior_data_path is not None:
        clips = open_training_data(replace(data_arguments, data_path=[own.posterior_data_path]))
    data = ReadData(texts, recordings if own.real_share else None, clips, own.real_share)
    return data, open_held_out_data(data_arguments)


def check_model(model) -> None:
    """Raise TrainingError where a model has no readout to simulate posteriors of, or no LoRA to learn with."""
    readout = model.model.multi_modal_projector.readout
    if readout is None:
        kind = model.config.projector_readout
        raise TrainingError(
            f"--stage read needs a checkpoint with --projector_readout pieces; that of this one is {kind!r}."
        )
    if bool(readout.lexicon.all()):
        raise TrainingError("--stage read needs a projector that was aligned: run --stage align first.")
    if not model.config.lora_adapters or not any(".lora_" in name for name, _ in model.named_parameters()):
        raise TrainingError("--stage read trains LoRA, but the checkpoint has none (lora_rank 0).")
    if gain := float(readout.residual_gain.detach()):
        print(f"Simulated tokens lack what the projector adds beside its word pieces (residual gain {gain:.3g}).")


def find_bank(prepared: Prepared, clips: InstructData | None, own: ReadArguments) -> PosteriorBank:
    """Return the posterior bank: of the run that is resumed, as given, of the checkpoint, or collected from recordings."""
    mine = Path(str(prepared.arguments.output_dir)) / BANK_FILE
    beside = Path(prepared.source or "") / BANK_FILE
    if mine.is_file() and last_complete_checkpoint(mine.parent) is not None:
        bank = PosteriorBank.load(mine)
    elif own.posterior_bank is not None:
        given = Path(own.posterior_bank)
        bank = PosteriorBank.load(given / BANK_FILE if given.is_dir() else given)
    elif prepared.source and own.posterior_data_path is None and beside.is_file():
        bank = PosteriorBank.load(beside)
    elif clips is None:
        advice = "give --posterior_bank, or recordings to collect one from: --data_path or --posterior_data_path"
        raise TrainingError(f"--model_path {prepared.source} has no {BANK_FILE}; {advice}.")
    elif prepared.cache is None:
        raise TrainingError("Posteriors are collected through the feature cache; leave out --feature_cache off.")
    else:
        spoken = [(key, str(text)) for key, text in TranscribedClips(clips, "none").encode(prepared)]
        bank = collect_posteriors(prepared.model, prepared.cache, spoken, prepared.progress)
    bank.check_fits(prepared.model)
    if prepared.arguments.should_save:
        bank.save(mine)
        print(bank.describe())
    return bank


def build(prepared: Prepared, data: ReadData, held_out: InstructData | None, own: ReadArguments) -> ReadTrainer:
    """Return the Trainer of this stage. Raises TrainingError where model or texts are of no use for it."""
    arguments, processor = prepared.arguments, prepared.processor
    check_model(prepared.model)
    bank = find_bank(prepared, data.posterior_clips, own)
    budget = arguments.batch_budget() or BatchBudget(max_rows=arguments.per_device_train_batch_size)
    rows, left_out = build_text_rows(data.texts, bank, processor, budget, prepared.progress)
    if left_out:
        shown = "; ".join(f"{where} {reason}" for where, reason in left_out[:PROBLEMS_SHOWN])
        print(f"{len(left_out)} of {len(data.texts)} texts are left out, among them: {shown}.")
    if not len(rows):
        raise TrainingError("No text is left to read.")
    add_words(prepared.model, (text.spoken for text in data.texts))
    if data.recordings is not None:
        recordings = data.recordings.dataset(prepared, budget)
        count = num_recordings(len(rows), own.real_share)
        chosen = choose_recordings(count, len(recordings), sampling_seed(arguments))
        rows = datasets.concatenate_datasets([rows, recordings.select(chosen)])
    return ReadTrainer(
        **prepared.for_trainer(),
        train_dataset=rows,
        eval_dataset=held_out and held_out.dataset(prepared),
        data_collator=ReadCollator(processor, AudioLlmCollator(processor, prepared.cache)),
        budget=budget,
        bank=bank,
        options=own,
    )

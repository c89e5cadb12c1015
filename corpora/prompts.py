"""The studio prompts: 24 minutes of real speech that ship inside the package, and a worked example of the format.

551 telephone prompts spoken by Allison Smith for Asterisk (CC-BY-SA 3.0, see `studio_prompts/README.md`), with
train, validation and test splits that share no text. Enough to train, evaluate and demonstrate without a download:

    audiollm prompts --output_dir data/studio_prompts
"""

import argparse
import hashlib
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import pyarrow.compute as pc
import pyarrow.parquet as pq
from audiollm.command_line.files import naming_the_disk
from audiollm.processing.conversations import AUDIO_PLACEHOLDER
from datasets.table import InMemoryTable

from .examples import Example, write_examples
from .tasks import known_tasks

CORPUS_FOLDER = Path(__file__).parent / "studio_prompts"
CORPUS_FILE = CORPUS_FOLDER / "prompts.parquet"
LICENCE_FILE = CORPUS_FOLDER / "LICENSE.md"
SPLITS = ("train", "validation", "test")


def load_studio_prompts(split: str | None = None) -> datasets.Dataset:
    """
    Return the studio prompts of a split, or all, in memory, without network, cache folder or torchcodec.

    The columns are `id`, `audio` (`Audio(decode=False)`: a dict of `bytes`, 16 kHz mono Ogg Opus, and `path`), `text`
    (the transcript, cased and punctuated), `duration_s`, `split` and `speaker`; rows are sorted by id.
    """
    if split is not None and split not in SPLITS:
        raise ValueError(f"The studio prompts have no split {split!r}; expected one of {', '.join(SPLITS)}, or None.")
    table = pq.read_table(CORPUS_FILE)
    if split is not None:
        table = table.filter(pc.equal(table["split"], split))
    return datasets.Dataset(InMemoryTable(table), split=datasets.NamedSplit(split) if split else None)


def _words(transcript: str) -> list[str]:
    """Return lower-case words without punctuation; apostrophes and hyphens inside a word stay."""
    return re.findall(r"[a-z0-9]+(?:['-][a-z0-9]+)*", transcript.lower())


def _is_plain(transcript: str) -> bool:
    """Return whether written and spoken words are one to one: two or more, no figures, acronyms or hyphens."""
    return len(transcript.split()) > 1 and not re.search(r"[0-9-]|[A-Z]{2}|\b[A-Za-z]\.|\w\.\w", transcript)


@dataclass(frozen=True)
class PromptTask:
    """One thing to ask about a recording, in several wordings, and how the transcript answers it."""

    phrasings: tuple[str, ...]
    answer: Callable[[str], str]
    weight: int = 1  # share of draws, relative to the other tasks
    applies: Callable[[str], bool] = _is_plain


PROMPT_TASKS: dict[str, PromptTask] = {
    "transcribe": PromptTask(known_tasks()["transcribe"].prompts, str, weight=7, applies=lambda transcript: True),
    "lower_case": PromptTask(
        phrasings=(
            f"{AUDIO_PLACEHOLDER}\nRepeat the words you hear in lower case.",
            f"Write what is said in lower case, without punctuation: {AUDIO_PLACEHOLDER}",
        ),
        answer=lambda transcript: " ".join(_words(transcript)),
    ),
    "count_words": PromptTask(
        phrasings=(
            f"How many words are spoken? {AUDIO_PLACEHOLDER}",
            f"{AUDIO_PLACEHOLDER}\nCount the words in this recording.",
        ),
        answer=lambda transcript: str(len(_words(transcript))),
    ),
    "last_word": PromptTask(
        phrasings=(
            f"What is the last word in this recording? {AUDIO_PLACEHOLDER}",
            f"{AUDIO_PLACEHOLDER}\nWhich word does the speaker end on?",
        ),
        answer=lambda transcript: _words(transcript)[-1],
    ),
}


def write_prompt_examples(
    output_dir: str | Path,
    split: str,
    tasks: Sequence[str] = tuple(PROMPT_TASKS),
    limit: int | None = None,
    max_seconds: float | None = None,
) -> Path:
    """
    Write one split as `<output_dir>/audio/*.ogg`, with its licence, and `<output_dir>/<split>.json`, which is returned.

    Each prompt becomes one example; task (among those of `tasks` that fit its transcript, if any) and wording are drawn by a
    hash of its id, so the result is the same each time. There are at most `limit` examples, the first by id; recordings
    longer than `max_seconds` are left out. ValueError is raised for an unknown split or task, and without any task.
    """
    unknown = [name for name in tasks if name not in PROMPT_TASKS]
    if unknown or not tasks:
        raise ValueError(f"Unknown prompt tasks {unknown}; expected some of {', '.join(PROMPT_TASKS)}.")
    audio_folder = Path(output_dir) / "audio"
    audio_folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(LICENCE_FILE, audio_folder / LICENCE_FILE.name)
    examples: list[Example] = []
    for row in load_studio_prompts(split):
        if len(examples) == limit:
            break
        fitting = [name for name in tasks if PROMPT_TASKS[name].applies(row["text"])]
        if not fitting or (max_seconds is not None and row["duration_s"] > max_seconds):
            continue
        audio_path = audio_folder / row["audio"]["path"]
        audio_path.write_bytes(row["audio"]["bytes"])
        tickets = [name for name in fitting for _ in range(PROMPT_TASKS[name].weight)]
        task = PROMPT_TASKS[tickets[_hash(row["id"], "task") % len(tickets)]]
        phrasing = task.phrasings[_hash(row["id"], "phrasing") % len(task.phrasings)]
        examples.append(
            Example(phrasing, (str(audio_path.absolute()),), task.answer(row["text"]), index=len(examples))
        )
    examples_file = Path(output_dir) / f"{split}.json"
    write_examples(examples_file, examples)
    return examples_file


def _hash(prompt_id: str, purpose: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{prompt_id}\n{purpose}".encode()).digest()[:8], "big")


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Write the bundled studio prompts as audio files and JSON examples.")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for audio/ and <split>.json")
    parser.add_argument("--split", choices=SPLITS, action="append", help="repeat for several; all by default")
    parser.add_argument(
        "--task", choices=tuple(PROMPT_TASKS), action="append", help="repeat for several; all by default"
    )
    parser.add_argument("--limit", type=int, help="at most this many examples per split")
    parser.add_argument("--max_seconds", type=float, help="leave out longer recordings")
    arguments = parser.parse_args(argv)
    tasks = arguments.task or tuple(PROMPT_TASKS)
    try:
        with naming_the_disk(arguments.output_dir, "make room and give the command again"):
            for split in arguments.split or SPLITS:
                print(
                    write_prompt_examples(arguments.output_dir, split, tasks, arguments.limit, arguments.max_seconds)
                )
    except OSError as error:
        sys.exit(f"audiollm prompts: {error}")

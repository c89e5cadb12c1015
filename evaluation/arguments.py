"""Options of `audiollm evaluate`."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

from audiollm.command_line.option_parser import option
from audiollm.publishing.score_table import SYSTEM_TITLES
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from .word_error import NORMALISERS

DTYPES = ("auto", "float32", "bfloat16", "float16")
SEPARATORS = re.compile(r"[,\s]+")
#: A language by ISO 639, with what BCP 47 puts behind it: `de`, `cmn`, `pt-BR`.
LANGUAGE_CODE = re.compile(r"[a-z]{2,3}([-_]\w+)*")


def listed(given: list[str]) -> list[str]:
    """Return names given with commas, with spaces, or with both; each once, in the order given."""
    return list(dict.fromkeys(name for one in given for name in SEPARATORS.split(one) if name))


def language_code(language: str) -> str:
    """Return the code of a language that is given by its code or English name."""
    name = language.strip().lower()
    code = TO_LANGUAGE_CODE.get(name, name)
    if not LANGUAGE_CODE.fullmatch(code):
        raise ValueError(f"--language is {language!r}; expected a code or an English name, such as hi or Hindi")
    return code


@dataclass
class JudgeArguments:
    """A language model behind an OpenAI-compatible endpoint that marks answers to open questions."""

    judge_model: str | None = option(None, "Model that marks open answers, as its endpoint calls it; none by default.")
    judge_url: str = option("https://api.openai.com/v1", "Base address of an OpenAI-compatible endpoint.")
    judge_key_variable: str | None = option(
        None,
        "Environment variable with the endpoint's key, which is written nowhere; OPENAI_API_KEY for OpenAI's by default.",
    )

    def __post_init__(self):
        address = urlsplit(self.judge_url)
        if address.scheme not in ("http", "https") or not address.netloc:
            raise ValueError(f"--judge_url {self.judge_url} is no http or https address")
        if "@" in address.netloc or address.query:
            raise ValueError("--judge_url must hold no password or key; put the key into the environment")


@dataclass
class EvaluateArguments(JudgeArguments):
    """Options of `audiollm evaluate`."""

    GROUPS: ClassVar[dict[str, tuple[str, ...]]] = {
        "what is evaluated (required)": ("model", "revision"),
        "your own recordings": ("data_path", "audio_dir", "language", "normaliser"),
        "benchmarks": ("tasks", "list_tasks", "limit"),
        "results": ("output_dir", "no_report"),
        "what answers beside the model": ("systems", "whisper"),
        "how the model answers": ("ctc_weight", "max_new_tokens", "batch_size", "dtype", "device_map"),
        "a judge for open answers": tuple(JudgeArguments.__dataclass_fields__),
    }

    model: str = option("", "AudioLLM checkpoint: a folder or a Hub id.")
    revision: str | None = option(None, "Branch, tag or commit of a Hub id.")
    tasks: list[str] = option([], "Tasks, with commas or spaces between; --list_tasks shows them.")
    list_tasks: bool = option(False, "Show the tasks and exit.")
    data_path: list[str] = option(
        [],
        "Your own recordings: JSON, *.jsonl, *.parquet, a folder of Parquet files or saved dataset, or "
        "hub:org/name?split=test, of {text, audio_paths or audio, response: the transcript}. With --tasks: a copy of "
        "the benchmark on disk; of several, TASK=COPY for each.",
        aliases=["--data"],
    )
    audio_dir: str | None = option(None, "Folder that audio_paths are relative to; that of the JSON if not given.")
    language: str | None = option(
        None,
        "Their language, as a code or an English name, such as hi or German; English by default. It is told to Whisper's "
        "decoder, and decides how words are compared and how long a transcript may be.",
    )
    normaliser: str | None = option(
        None,
        "Makes texts alike before they are compared; by default english for English, characters for languages without "
        "spaces, basic for all others.",
        choices=list(NORMALISERS),
    )
    output_dir: Path | None = option(
        None, "Folder for raw answers, scores and the report. The same command goes on where it was interrupted."
    )
    no_report: bool = option(False, "Leave out report.html.")
    systems: list[str] = option(
        [], f"Systems that answer, of {', '.join(SYSTEM_TITLES)}; those that fit the task if not given."
    )
    whisper: str | None = option(
        None, "Whisper whose decoder answers too: a Hub id or folder; by default the model's."
    )
    limit: int | None = option(
        None, "At most this many items of each task, or of your own recordings, the first ones."
    )
    batch_size: int = option(16, "Items at a time.")
    max_new_tokens: int | None = option(
        None, "Bound on each answer, in tokens; if not given, the task's, or what the length of the recording allows."
    )
    ctc_weight: float | None = option(
        None,
        "Weight of CTC in n-best rescoring of transcripts, such as 1.5; 0 for greedy ones. The checkpoint's "
        "default if not given. For models trained with --projector_readout pieces.",
    )
    dtype: str = option("auto", "Precision of the bases.", choices=DTYPES)
    device_map: str | None = option(None, "Device for the model, such as auto or cuda:1; a GPU if there is one.")

    def __post_init__(self):
        super().__post_init__()
        self.tasks, self.systems = listed(self.tasks), listed(self.systems)
        if self.list_tasks:
            return
        if not self.model:
            raise ValueError("give --model with an AudioLLM checkpoint: a folder or a Hub id")
        for name in ("limit", "batch_size", "max_new_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} is {value}; expected at least 1")
        for name in self.systems:
            if name not in SYSTEM_TITLES:
                raise ValueError(f"--systems: there is no {name!r}; expected some of {', '.join(SYSTEM_TITLES)}")
        if self.tasks:
            if self.output_dir is None:
                raise ValueError("--tasks needs --output_dir, a folder for raw outputs and scores")
            for name in ("audio_dir", "language", "normaliser"):
                if getattr(self, name) is not None:
                    raise ValueError(f"--{name} is for your own data, without --tasks; leave it out")
        elif len(self.data_path) != 1:
            raise ValueError("give --tasks (--list_tasks shows them), or your own data as one --data_path")
        elif self.language is not None:
            self.language = language_code(self.language)

    def copies(self, names: list[str]) -> dict[str, str]:
        """Return the copies of tasks' data on disk; a task that is not named is read where the benchmark is."""
        if len(self.data_path) == 1 and len(names) == 1 and not self.data_path[0].startswith(f"{names[0]}="):
            return {names[0]: self.data_path[0]}
        pairs = [given.partition("=") for given in self.data_path]
        for given, (name, is_pair, _) in zip(self.data_path, pairs):
            if not is_pair or name not in names:
                raise ValueError(f"--data {given} names no task; expected TASK=COPY for each of {', '.join(names)}")
        return {name: copy for name, _, copy in pairs}

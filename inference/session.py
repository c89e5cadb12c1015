"""
A conversation with a model, with a cache of keys and values: a follow-up question neither encodes a recording again nor
runs the language model over it again. Answers equal those of the whole conversation read again.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor
from audiollm.command_line.machine import is_out_of_memory
from audiollm.modeling_audiollm import CACHE_NAME
from audiollm.processing.conversations import AUDIO_SOURCES, flatten_conversation
from transformers import DynamicCache, StoppingCriteriaList

from .answering import ask, recordings_of
from .recording_encoder import as_model_inputs, content_key, encode_windows
from .streaming import AnswerStream, AnswerStreamer, StopWhenSet

DEFAULT_MAX_NEW_TOKENS = 512
#: Options of `generate` that contradict one row with a cache of its own.
REFUSED = ("num_beams", "num_return_sequences", "cache_implementation", "past_key_values", "cache", "use_cache")
MEMORY_ADVICE = "Give less audio at a time, a smaller bound on new tokens, --dtype bfloat16, or --load_in_8bit."
#: Locks by which models give one answer at a time.
_MODEL_LOCKS: WeakKeyDictionary[torch.nn.Module, threading.Lock] = WeakKeyDictionary()


@dataclass(eq=False)
class Recording:
    """
    One recording of a conversation.

    Attributes:
        source: as the user gave it: a path, a URL, bytes, a waveform, …
        waveform: `(samples,)` at the processor's rate; None once it has been encoded.
        digest: of the waveform; equal recordings have equal ones.
        num_slots: number of its audio tokens.
        frames: encoder output of each window, `(frames, d_model)`, once it has been encoded.
    """

    source: Any
    waveform: np.ndarray | None
    digest: bytes
    num_slots: int
    seconds: float
    frames: Sequence[torch.Tensor] = ()

    @classmethod
    def load(cls, source: Any, processor: AudioLlmProcessor) -> "Recording":
        """Decode a recording of any kind that the processor takes; errors are the processor's."""
        waveform = processor.load_audio(source)
        slots, seconds = processor.num_audio_slots(len(waveform)), len(waveform) / processor.sampling_rate
        return cls(source, waveform, content_key(waveform), slots, seconds)

    def encode(self, model: AudioLlmForConditionalGeneration, processor: AudioLlmProcessor) -> None:
        """Run the encoder over the recording. Its frames take the place of the waveform."""
        if self.waveform is not None:
            self.frames, self.waveform = encode_windows(model, processor, self.waveform), None


class ContextLengthError(ValueError):
    """A conversation that is longer than the language model's context. The message gives both lengths."""


class AnswerMemoryError(RuntimeError):
    """Too little memory for an answer. The message says how far it came, and what takes less."""


@dataclass(frozen=True)
class AnswerReport:
    """
    Counts of an answer.

    Attributes:
        finish_reason: "stop" if the model ended it, "length" at the bound, "interrupted" if it was stopped.
        prompt_tokens: length of the conversation that was answered.
        reused_tokens: number of them that were in the cache.
        new_tokens: length of the answer, its end-of-turn token included.
    """

    finish_reason: str
    prompt_tokens: int
    reused_tokens: int
    new_tokens: int


class Session:
    """
    A conversation with one model: turns of text, of recordings, or of both, in any order.

    A turn of recordings alone is speech to answer; one with text as well is a question about them. A conversation with
    audio runs through the model's adapter as a whole, one without through the base alone.

    Args:
        model, processor: a pair that belongs together. The model is put in evaluation mode.
        system: a system message to begin with.
        messages: a conversation to go on with, as for `AudioLlmProcessor.apply_chat_template`, instead of `system`.
        generate_options: further ones of `generate`; greedy unless they say otherwise.

    Raises:
        ValueError: system and messages are both given, or an option is one that a session cannot have.
        AudioError: a recording of `messages` cannot be used.

    Example:

    ```python
    session = Session(model, processor)
    print(session.ask("What is said?", "meeting.wav"))
    for piece in session.stream("And who says it?"):
        print(piece, end="", flush=True)
    ```
    """

    def __init__(
        self,
        model: AudioLlmForConditionalGeneration,
        processor: AudioLlmProcessor,
        system: str | None = None,
        messages: Sequence[dict[str, Any]] = (),
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        **generate_options: Any,
    ):
        if system is not None and messages:
            raise ValueError("Give system or messages, not both: a system message is the first of the messages.")
        self.model, self.processor = model.eval(), processor
        self.options = {"do_sample": False, "max_new_tokens": max_new_tokens, **_checked(generate_options)}
        #: Counts of the last answer; None before the first.
        self.report: AnswerReport | None = None
        self._system = system
        self._messages: list[dict[str, Any]] = []
        self._answering = threading.Lock()
        self._cache: DynamicCache
        self._cached: list[Any]  # the tokens in the cache, as `_encoded_text` has them
        self._cached_adapter: str | None
        self.reset()
        self._messages += [self._loaded(message) for message in messages]

    # ---- the conversation ----------------------------------------------------------------------------------------

    @property
    def messages(self) -> list[dict[str, Any]]:
        """Copy of the conversation so far, with recordings as they were given."""
        return [_with_sources(message) for message in self._messages]

    def reset(self) -> None:
        """Start over: forget recordings and all messages but the system message."""
        self._refuse_while_answering()
        self._messages = [] if self._system is None else [{"role": "system", "content": self._system}]
        self._forget_cache()

    def go_on_from(self, messages: Sequence[dict[str, Any]]) -> None:
        """
        Replace the conversation. The cache and the recordings of the beginning that both have in common are kept.

        Args and errors are those of [`Session`] and [`stream`]; the messages have the system message.
        """
        self._refuse_while_answering()
        self._messages = [self._loaded(message) for message in messages]

    def ask(self, text: str | None = None, *recordings: Any, **options: Any) -> str:
        """Return the answer to the next turn; see [`stream`]."""
        return self.stream(text, *recordings, **options).read()

    def stream(
        self, text: str | None = None, *recordings: Any, stop: threading.Event | None = None, **options: Any
    ) -> AnswerStream:
        """
        Yield the answer to the next turn piece by piece. When the iteration ends, both are part of the conversation.

        An answer that is interrupted, by `stop`, Ctrl-C or `close()`, stays as far as it came, and the conversation
        goes on from there. If it had not begun, or an error ended it, the turn is taken back.

        Args:
            text: the user's words; each `<audio>` in them stands for one recording, or they come first. None for
                speech to answer, or without recordings for an answer to the messages as they are.
            recordings: each of any kind the processor takes, or a [`Recording`] that is decoded already.
            stop: stops the answer within a token once it is set.
            options: of `generate`, for this answer.

        Raises:
            AnswerMemoryError: there is not enough memory; raised by the iteration.
            AudioError: a recording cannot be used.
            ContextLengthError: the conversation is too long for the language model.
            RuntimeError: an answer is still being written.
            ValueError: there is nothing to answer, or the text's `<audio>` and the recordings differ in number.
        """
        _checked(options)
        self._refuse_while_answering()
        if text is not None and not text.strip() and not recordings:
            raise ValueError("There is nothing to answer: the text is empty, and there is no recording.")
        turns = [] if text is None and not recordings else ask(text, *recordings)
        messages = [*self._messages, *map(self._loaded, turns)]
        if not messages or messages[-1]["role"] != "user":
            raise ValueError(
                "There is nothing to answer: the last message is not the user's. Give text or recordings."
            )
        prompt = self._encoded_text(messages)
        merged = {**self.options, **options}
        merged["max_new_tokens"] = self._fitting(len(prompt), merged["max_new_tokens"], recordings_of(messages))

        def write(streamer: AnswerStreamer, stop: StopWhenSet) -> None:
            try:
                self._answer(messages, prompt, merged, streamer, stop)
                return
            except BaseException as error:
                self._forget_cache()  # nobody knows how far it came
                if not is_out_of_memory(error):
                    raise
            finally:
                self._answering.release()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            after = f"Memory ran out after {len(streamer.ids)} tokens of the answer to a conversation of {len(prompt)}"
            raise AnswerMemoryError(f"{after} tokens. {MEMORY_ADVICE}")

        self._answering.acquire()
        return AnswerStream(write, self.processor.tokenizer, stop)

    # ---- one answer ----------------------------------------------------------------------------------------------

    def _answer(self, messages, prompt: list[Any], options: dict[str, Any], streamer, stop: StopWhenSet) -> None:
        """Run the model, and add the turn and its answer to the conversation. `prompt`: see `_encoded_text`."""
        model, recordings = self.model, recordings_of(messages)
        self.report = AnswerReport("interrupted", len(prompt), 0, 0)
        for recording in recordings:
            if not stop.is_set():
                recording.encode(model, self.processor)
        if stop.is_set():
            return
        reused = self._reuse(prompt, self._adapter(recordings, options))
        # The recordings that do not stand in the cached beginning of the conversation.
        unread = recordings[sum(isinstance(token, tuple) and token[1] == 0 for token in prompt[:reused]) :]
        slot_id = model.config.audio_token_id
        plain = [slot_id if isinstance(token, tuple) else token for token in prompt]
        ids = torch.tensor([plain], device=model.device)
        with model_lock(model):
            output = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                **{CACHE_NAME: self._cache},
                streamer=streamer,
                stopping_criteria=StoppingCriteriaList([stop]),
                **as_model_inputs([window for one in unread for window in one.frames]),
                **options,
            )
        answer = output[0, ids.shape[1] :].tolist()
        self._cached = [*prompt, *answer][: self._cache.get_seq_length()]
        text = self.processor.tokenizer.decode(answer, skip_special_tokens=True).strip()
        self._messages = [*messages, {"role": "assistant", "content": text}]
        self.report = AnswerReport(self._finish_reason(answer, options), len(prompt), reused, len(answer))

    def _reuse(self, prompt: list[Any], adapter: str | None) -> int:
        """Cut the cache back to the tokens that it has in common with the prompt and adapter, and return their number."""
        common = 0
        if adapter == self._cached_adapter:
            limit = min(len(self._cached), len(prompt) - 1)  # at least one token is run
            common = next((n for n in range(limit) if self._cached[n] != prompt[n]), limit)
        if common and isinstance(prompt[common], tuple):  # a recording's slots are run together
            common -= prompt[common][1]
        surplus = self._cache.get_seq_length() - common
        if surplus and common:
            try:
                self._cache.crop(-surplus)
            except (RuntimeError, NotImplementedError):  # layers with a sliding window
                common = 0
            if self._cache.get_seq_length() != common:
                common = 0
        if not common:
            self._forget_cache()
        self._cached_adapter = adapter
        return common

    def _forget_cache(self) -> None:
        self._cache = DynamicCache(config=self.model.config.get_text_config(decoder=True))
        self._cached = []
        self._cached_adapter = None

    def _adapter(self, recordings: list[Recording], options: dict[str, Any]) -> str | None:
        """Return the adapter that the conversation runs through; None is the base alone."""
        if options.get("adapter_names") is not None:
            return options["adapter_names"][0]
        return next(iter(self.model.config.lora_adapters), None) if recordings else None

    def _finish_reason(self, answer: list[int], options: dict[str, Any]) -> str:
        ends = options.get("eos_token_id", self.model.generation_config.eos_token_id)
        ends = ends if isinstance(ends, list) else [ends]
        if answer and answer[-1] in ends:
            return "stop"
        return "length" if len(answer) >= options["max_new_tokens"] else "interrupted"

    # ---- text and recordings -------------------------------------------------------------------------------------

    def _encoded_text(self, messages: list[dict[str, Any]]) -> list[Any]:
        """
        Return the conversation's token ids, with the opening of the answer.

        An audio token is written as its recording's digest and its number therein: equal entries are equal to the model.
        """
        flat, recordings = flatten_conversation(messages)
        segments = self.processor.conversation_segments(flat, add_generation_prompt=True)
        ids, _ = self.processor.encode_segments(segments, [recording.num_slots for recording in recordings])
        slots = iter([(one.digest, number) for one in recordings for number in range(one.num_slots)])
        slot_id = self.processor.audio_token_id
        return [next(slots) if token == slot_id else token for token in ids]

    def _loaded(self, message: dict[str, Any]) -> dict[str, Any]:
        """Return a message with its recordings decoded; an equal recording of the conversation is shared."""
        flatten_conversation([message])  # refuses malformed messages
        if isinstance(message["content"], str):
            return dict(message)
        parts = []
        known = {one.digest: one for one in (recordings_of(self._messages) if self._messages else ())}
        for part in message["content"]:
            if part["type"] == "audio":
                name = next(name for name in AUDIO_SOURCES if part.get(name) is not None)
                value = part[name]
                recording = value if isinstance(value, Recording) else Recording.load(value, self.processor)
                recording = known.setdefault(recording.digest, recording)
                part = {"type": "audio", "audio": recording, "given": {**part, name: recording.source}}
            parts.append(part)
        return {**message, "content": parts}

    def _fitting(self, prompt_tokens: int, max_new_tokens: int, recordings: list[Recording]) -> int:
        """Return the bound on the answer that the language model's context allows."""
        limit = context_length(self.model)
        if limit is None:
            return max_new_tokens
        if prompt_tokens < limit:
            return min(max_new_tokens, limit - prompt_tokens)
        message = f"The conversation is {prompt_tokens} tokens long, but the language model can hold {limit}, with its answer."
        if not recordings:
            raise ContextLengthError(f"{message} Start a new one.")
        slots = sum(recording.num_slots for recording in recordings)
        seconds = sum(recording.seconds for recording in recordings)
        raise ContextLengthError(
            f"{message} {slots} of them are {seconds:.1f} s of recordings. Start a new one, ask about a shorter part, or let "
            "`audiollm summarize RECORDING --prompt QUESTION` ask part by part and join the answers."
        )

    def _refuse_while_answering(self) -> None:
        if self._answering.locked():
            raise RuntimeError("An answer is still being written. Read it to its end, or close() it, before going on.")


def model_lock(model: torch.nn.Module) -> threading.Lock:
    """Return the lock that is held while a model generates, by everything that answers from threads of its own."""
    return _MODEL_LOCKS.setdefault(model, threading.Lock())


def context_length(model: Any) -> int | None:
    """Return the tokens that a language model can hold; None where it names no bound."""
    return getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)


def sampling_options(temperature: float, top_p: float = 1.0) -> dict[str, Any]:
    """Return options of `generate`: greedy at a temperature of 0, or else a draw from all tokens."""
    if not temperature:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}


def _checked(options: dict[str, Any]) -> dict[str, Any]:
    for name in REFUSED:
        if name in options:
            raise ValueError(f"A session cannot have {name}: it keeps one row's keys and values from turn to turn.")
    return options


def _with_sources(message: dict[str, Any]) -> dict[str, Any]:
    if isinstance(message["content"], str):
        return dict(message)
    return {**message, "content": [part.get("given", part) for part in message["content"]]}

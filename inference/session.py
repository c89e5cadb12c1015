"""
A conversation whose keys and values are kept: a follow-up question about a recording neither encodes it nor runs the
language model over it again, and is answered as if the whole conversation had been read anew.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor
from audiollm.processing.conversations import flatten_conversation
from transformers import DynamicCache, StoppingCriteriaList

from .answering import ask, audio_part
from .memory import ADVICE, AnswerMemoryError, free_memory, is_out_of_memory
from .recordings import Recording, as_model_inputs, encode
from .streaming import AnswerStream, AnswerStreamer, StopWhenSet

DEFAULT_MAX_NEW_TOKENS = 512
#: Options of `generate` that one row with a cache of its own cannot have.
REFUSED_OPTIONS = ("num_beams", "num_return_sequences", "cache_implementation", "past_key_values", "use_cache")
#: One answer at a time from one model: its adapters are routed for the batch that runs.
_MODEL_LOCKS: WeakKeyDictionary[torch.nn.Module, threading.Lock] = WeakKeyDictionary()


class ContextLengthError(ValueError):
    """A conversation is longer than what the language model can hold; the message gives both lengths."""


@dataclass(frozen=True)
class AnswerReport:
    """
    What an answer took.

    Attributes:
        finish_reason: "stop" where the model ended it, "length" at the bound, "interrupted" where it was stopped.
        prompt_tokens: length of the conversation that was answered.
        reused_tokens: how many of them were in the cache.
        encoded_recordings: how many recordings went through the encoder.
        new_tokens: length of the answer, its end-of-turn token included.
    """

    finish_reason: str
    prompt_tokens: int
    reused_tokens: int
    encoded_recordings: int
    new_tokens: int


class Session:
    """
    A conversation with one model: turns of text, of recordings, or of both, in any order.

    A turn that is only recordings is speech to answer; one with text as well is a question about them. Once it holds
    audio, all of the conversation runs through the model's adapter, and until then through the base alone.

    Args:
        model, processor: a pair that belongs together. The model is put in evaluation mode.
        system: a system message to begin with.
        messages: a conversation to go on with, as for `AudioLlmProcessor.apply_chat_template`, instead of `system`.
        max_new_tokens: bound on each answer, in tokens.
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
        #: What the last answer took; None before the first.
        self.report: AnswerReport | None = None
        self._system = system
        self._recordings: dict[str, Recording] = {}
        self._messages: list[dict[str, Any]] = []
        self._answering = threading.Lock()
        self._cache: DynamicCache
        self._cached: list[Any]  # the tokens in the cache, as `_encoded_text` has them
        self._cached_adapter: str | None
        self.reset()
        for message in messages:
            self._messages.append(self._loaded(message))

    # ---- the conversation ----------------------------------------------------------------------------------------

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation so far, recordings as they were given; a copy."""
        return [_with_sources(message) for message in self._messages]

    def reset(self) -> None:
        """Starts over: forgets messages, but for the system message, and recordings."""
        self._refuse_while_answering()
        self._messages = [] if self._system is None else [{"role": "system", "content": self._system}]
        self._recordings = {}
        self._forget_cache()

    def ask(self, text: str | None = None, *recordings: Any, **options: Any) -> str:
        """The answer to the next turn, as a whole; see [`stream`]."""
        return self.stream(text, *recordings, **options).read()

    def stream(
        self, text: str | None = None, *recordings: Any, stop: threading.Event | None = None, **options: Any
    ) -> AnswerStream:
        """
        The answer to the next turn, piece by piece; both are part of the conversation when the iteration ends.

        An answer that is interrupted, by `stop`, Ctrl-C or `close()`, stays as far as it came, and the conversation
        goes on from there. If it had not begun, or an error ended it, the turn is taken back.

        Args:
            text: what the user writes; each `<audio>` in it stands for one recording, or they come first. None for
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
        turns = [] if text is None and not recordings else [self._loaded(user_turn(text, *recordings))]
        messages = [*self._messages, *turns]
        if not messages or messages[-1]["role"] != "user":
            raise ValueError(
                "There is nothing to answer: the last message is not the user's. Give text or recordings."
            )
        prompt = self._encoded_text(messages)
        merged = {**self.options, **options}
        merged["max_new_tokens"] = self._fitting(len(prompt), merged["max_new_tokens"], _recordings(messages))

        def write(streamer: AnswerStreamer, stop: StopWhenSet) -> None:
            try:
                self._answer(messages, prompt, merged, streamer, stop)
            except BaseException as error:
                self._forget_cache()  # nobody knows how far it came
                if not is_out_of_memory(error):
                    raise
            else:
                return
            finally:
                self._answering.release()
            free_memory()
            raise AnswerMemoryError(
                f"Memory ran out after {len(streamer.ids)} tokens of the answer to a conversation of {len(prompt)} tokens. "
                + ADVICE
            )

        self._answering.acquire()
        return AnswerStream(write, self.processor.tokenizer, stop)

    # ---- one answer ----------------------------------------------------------------------------------------------

    def _answer(self, messages, prompt: list[Any], options: dict[str, Any], streamer, stop: StopWhenSet) -> None:
        """Runs the model and takes the turn and its answer into the conversation. `prompt`: see `_encoded_text`."""
        model = self.model
        recordings = _recordings(messages)
        fresh = 0
        self.report = AnswerReport("interrupted", len(prompt), 0, 0, 0)
        for recording in recordings:
            if stop.is_set():
                return
            fresh += recording.frames is None
            encode(recording, model, self.processor)
        if stop.is_set():
            return
        reused = self._reuse(prompt, self._adapter(recordings, options))
        ids = torch.tensor([[_token_id(token, model.config) for token in prompt]], device=model.device)
        with model_lock(model):
            output = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                past_key_values=self._cache,
                streamer=streamer,
                stopping_criteria=StoppingCriteriaList([stop]),
                **as_model_inputs(_after(prompt[:reused], recordings)),
                **options,
            )
        answer = output[0, ids.shape[1] :].tolist()
        self._cached = [*prompt, *answer][: self._cache.get_seq_length()]
        text = self.processor.tokenizer.decode(answer, skip_special_tokens=True).strip()
        self._messages = [*messages, {"role": "assistant", "content": text}]
        self.report = AnswerReport(self._finish_reason(answer, options), len(prompt), reused, fresh, len(answer))

    def _reuse(self, prompt: list[Any], adapter: str | None) -> int:
        """
        Cuts the cache back to what it has in common with the prompt; returns how many tokens that is.

        Keys and values that were made through another adapter, or the base alone, are none of this prompt's.
        """
        common = 0
        if adapter == self._cached_adapter:
            limit = min(len(self._cached), len(prompt) - 1)  # one token is left to run
            common = next((n for n in range(limit) if self._cached[n] != prompt[n]), limit)
        if common and isinstance(prompt[common], tuple):  # a recording's slots are run together
            common -= prompt[common][1]
        surplus = self._cache.get_seq_length() - common
        if surplus and common:
            try:
                self._cache.crop(-surplus)
            except (RuntimeError, NotImplementedError):  # layers that let go of what is long past
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
        """The adapter that the conversation runs through; None is the base alone."""
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
        The conversation's token ids, with the opening of the answer.

        In place of an audio slot's id stand the recording's digest and the slot's number in it, so that what is equal
        in two of these lists is equal to the model.
        """
        flat, recordings = flatten_conversation(messages)
        segments = self.processor.conversation_segments(flat, add_generation_prompt=True)
        ids, _ = self.processor.encode_segments(segments, [recording.num_slots for recording in recordings])
        slots = iter([(one.digest, number) for one in recordings for number in range(one.num_slots)])
        slot_id = self.processor.audio_token_id
        return [next(slots) if token == slot_id else token for token in ids]

    def _loaded(self, message: dict[str, Any]) -> dict[str, Any]:
        """A message with each recording in it decoded, or the one that sounds the same and is there already."""
        flatten_conversation([message])  # raises for malformed ones
        if isinstance(message["content"], str):
            return dict(message)
        parts = []
        for part in message["content"]:
            if part["type"] == "audio":
                name = next(name for name in ("audio", "path", "url") if part.get(name) is not None)
                value = part[name]
                recording = value if isinstance(value, Recording) else Recording.load(value, self.processor)
                known = self._recordings.setdefault(recording.digest, recording)
                part = {"type": "audio", "audio": known, "given": {**part, name: recording.source}}
            parts.append(part)
        return {**message, "content": parts}

    def _fitting(self, prompt_tokens: int, max_new_tokens: int, recordings: list[Recording]) -> int:
        """The bound on the answer that the language model's context allows."""
        limit = getattr(self.model.config.get_text_config(decoder=True), "max_position_embeddings", None)
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
    """The lock that is held while a model generates, by everything that answers from threads of its own."""
    return _MODEL_LOCKS.setdefault(model, threading.Lock())


def user_turn(text: str | None, *recordings: Any) -> dict[str, Any]:
    """
    A user's message: recordings alone, or text about them; see `audiollm.inference.answering.ask`.

    Raises:
        ValueError: the text's `<audio>` and the recordings differ in number.
    """
    if text is None:
        return {"role": "user", "content": [audio_part(recording) for recording in recordings]}
    return ask(text, *recordings)[-1]


def _checked(options: dict[str, Any]) -> dict[str, Any]:
    for name in REFUSED_OPTIONS:
        if name in options:
            raise ValueError(f"A session cannot have {name}: it keeps one row's keys and values from turn to turn.")
    return options


def _recordings(messages: list[dict[str, Any]]) -> list[Recording]:
    return flatten_conversation(messages)[1]


def _after(cached: list[Any], recordings: list[Recording]) -> list[Recording]:
    """The recordings that do not stand in the cached beginning of the conversation."""
    return recordings[sum(isinstance(token, tuple) and token[1] == 0 for token in cached) :]


def _token_id(token: Any, config) -> int:
    return config.audio_token_id if isinstance(token, tuple) else token


def _with_sources(message: dict[str, Any]) -> dict[str, Any]:
    if isinstance(message["content"], str):
        return dict(message)
    return {**message, "content": [part.get("given", part) for part in message["content"]]}


__all__ = ["AnswerReport", "ContextLengthError", "Session", "model_lock", "user_turn"]

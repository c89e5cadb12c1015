"""Answers piece by piece from another thread, equal to the whole answer, and stopped within a token."""

import re
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from transformers import StoppingCriteria, TextIteratorStreamer

#: Character that decoders write for bytes that are no character, or not yet.
REPLACEMENT_CHARACTER = "\ufffd"
#: Name of a token of one byte in vocabularies with byte fallback.
BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class AnswerStreamer(TextIteratorStreamer):
    """
    Streamer of text that no further token can change; all of it together is `decode(ids).strip()`.

    transformers' own streamers lose blanks with some tokenizers, and hold words back until a blank follows. This one
    decodes all tokens again for every token. It holds back incomplete characters and blanks at the end, and with a
    tokenizer that cleans up blanks the last word.
    """

    def __init__(self, tokenizer):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.ids: list[int] = []
        self.text = ""
        added = tokenizer.added_tokens_decoder.items()
        self._skipped = {*tokenizer.all_special_ids, *(token_id for token_id, token in added if token.special)}
        self._tidies = bool(getattr(tokenizer, "clean_up_tokenization_spaces", False))

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt `(1, length)`, which is skipped, and then new tokens `(count,)`."""
        if self.next_tokens_are_prompt:
            self.next_tokens_are_prompt = False
            return
        self.ids.extend(value.flatten().tolist())
        text = self._decode(self._without_last_bytes()).rstrip(REPLACEMENT_CHARACTER).strip()
        if self._tidies:
            text = text[: len(text) - len(text.split()[-1])].rstrip() if text else text
        self._give(text)

    def end(self) -> None:
        """Give the rest, and end the iteration."""
        self._give(self._decode(self.ids).strip())
        self.next_tokens_are_prompt = True
        self.text_queue.put(self.stop_signal)

    def _decode(self, ids: list[int]) -> str:
        return cast(str, self.tokenizer.decode(ids, **self.decode_kwargs))

    def _without_last_bytes(self) -> list[int]:
        """Return the tokens before a run of bytes at the end, which is decoded as a whole or not at all."""
        count = len(self.ids)
        while count and (self.ids[count - 1] in self._skipped or self._is_byte(self.ids[count - 1])):
            count -= 1  # skipped tokens do not end the run
        return self.ids[:count]

    def _is_byte(self, token_id: int) -> bool:
        token = cast(str | None, self.tokenizer.convert_ids_to_tokens(token_id))
        return bool(BYTE_TOKEN.fullmatch(token or ""))

    def _give(self, text: str) -> None:
        if len(text) > len(self.text):
            self.on_finalized_text(text[len(self.text) :])
            self.text = text


class StopWhenSet(StoppingCriteria):
    """End generation after the current token once any of the events is set."""

    def __init__(self, *events: threading.Event | None):
        self.events = [event for event in events if event is not None]

    def is_set(self) -> bool:
        """Return whether any of the events is set."""
        return any(event.is_set() for event in self.events)

    def __call__(self, input_ids: torch.LongTensor, scores, **kwargs) -> torch.BoolTensor:
        stopped = torch.full((input_ids.shape[0],), self.is_set(), device=input_ids.device)
        return stopped  # type: ignore[return-value]  # a tensor of booleans


class AnswerStream(Iterator[str]):
    """
    Iterator over an answer's text while another thread writes it.

    Leaving it early, by Ctrl-C in a `with` statement or by letting it go, stops the answer. An error of the writing thread
    is raised here.

    Args:
        write: writes the answer; takes a streamer for the tokens, and the criterion that stops it.
        stop: stops the answer once it is set, from any thread; the iteration then ends.
    """

    def __init__(
        self,
        write: Callable[[AnswerStreamer, StopWhenSet], None],
        tokenizer,
        stop: threading.Event | None = None,
    ):
        self._ended = False
        self._closed = threading.Event()
        self._streamer = AnswerStreamer(tokenizer)
        self._errors: list[BaseException] = []
        # No reference to this object: the thread must not keep it alive.
        arguments = (write, self._streamer, StopWhenSet(stop, self._closed), self._errors)
        self._thread = threading.Thread(target=_run, args=arguments, name="answer", daemon=True)
        self._thread.start()

    def __next__(self) -> str:
        if self._ended:
            raise StopIteration
        try:
            return next(self._streamer)
        except StopIteration:
            self._ended = True
            self._thread.join()
            if self._errors:
                raise self._errors[0] from None
            raise

    def __enter__(self) -> "AnswerStream":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def close(self) -> None:
        """Stop the answer, and wait for the current token. Text given so far is kept."""
        self._closed.set()
        self._ended = True
        self._thread.join()

    def read(self) -> str:
        """Return the rest of the answer in one piece."""
        return "".join(self)

    def __del__(self) -> None:
        self._closed.set()


def _run(write, streamer: AnswerStreamer, stop: StopWhenSet, errors: list[BaseException]) -> None:
    try:
        write(streamer, stop)
    except BaseException as error:  # raised in the reader's thread
        errors.append(error)
    finally:
        streamer.text_queue.put(streamer.stop_signal)  # even if there was no token

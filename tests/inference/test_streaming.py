"""Streamed text: equal to the decoded whole for every tokenizer, ended by Ctrl-C, an event, an error or neglect."""

import gc
import os
import signal
import threading
import time

import pytest
import torch
from audiollm.inference.streaming import AnswerStream, AnswerStreamer, StopWhenSet
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import character_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

#: With characters of one to four bytes, blanks of all kinds at all places, and what tidying changes.
TEXT = "  Hé, 你好! 👍🏽 it 's\n\n fine .\n a\u0301 do n't\ttab — ünï¢ødé   end \n"
PROMPT = torch.tensor([[1, 2, 3]])
#: Longer than any of these tests waits.
TIMEOUT_S = 20


def byte_level_tokenizer(tidies: bool = False) -> PreTrainedTokenizerFast:
    """One token per byte, as GPT-2's and Llama 3's vocabularies have them under their merges."""
    vocabulary = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True, normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=tidies)


def byte_fallback_tokenizer() -> PreTrainedTokenizerFast:
    """Letters, and bytes for all else, with blanks as Llama 2's vocabulary has them."""
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *map(chr, range(ord("a"), ord("z") + 1))]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", clean_up_tokenization_spaces=False)


TOKENIZERS = {
    "byte level": byte_level_tokenizer(),
    "tidying": byte_level_tokenizer(tidies=True),
    "byte fallback": byte_fallback_tokenizer(),
    "characters": character_tokenizer(),
}


def streamed(tokenizer, ids: list[int], at_once: int = 1) -> list[str]:
    """Return the pieces that come of ids, so many at a time; together they are the decoded text."""
    streamer = AnswerStreamer(tokenizer)
    streamer.put(PROMPT)
    for start in range(0, len(ids), at_once):
        streamer.put(torch.tensor(ids[start : start + at_once]))
    streamer.end()
    pieces = list(streamer)
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True).strip()
    return pieces


@pytest.mark.parametrize("name", TOKENIZERS)
def test_pieces_add_up_to_the_text(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    for at_once in (1, 3):
        pieces = streamed(tokenizer, tokenizer(TEXT, add_special_tokens=False)["input_ids"], at_once)
        assert len(pieces) > 8
        if name != "characters":  # whose vocabulary lacks most of it
            assert "你好" in "".join(pieces) and not any("\ufffd" in piece for piece in pieces)

    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.integers(0, len(tokenizer) - 1), max_size=30))
    def whatever_the_tokens_are(ids: list[int]) -> None:
        """Bytes that are no characters, special tokens, and answers that end within a character included."""
        streamed(tokenizer, ids)

    whatever_the_tokens_are()


def test_bytes_on_both_sides_of_a_skipped_token_are_one_run() -> None:
    tokenizer = TOKENIZERS["byte fallback"]
    ids = tokenizer.convert_tokens_to_ids(["a", "<0x00>", "<unk>", "<0xE4>"])
    assert "".join(streamed(tokenizer, ids)) == "a\ufffd\ufffd"


def test_a_character_comes_with_its_last_byte_and_a_word_without_waiting_for_a_blank() -> None:
    tokenizer = TOKENIZERS["byte level"]
    streamer = AnswerStreamer(tokenizer)
    streamer.put(PROMPT)
    counts = []
    for token in tokenizer("aé👍")["input_ids"]:
        streamer.put(torch.tensor([token]))
        counts.append(len(streamer.text))
    assert counts == [1, 1, 2, 2, 2, 2, 3]


# ------------------------------------------------------------------------------------------------- how a stream ends


class Endless:
    """Writes a letter every few milliseconds until it is told to stop."""

    def __init__(self) -> None:
        self.started, self.ended = threading.Event(), threading.Event()

    def __call__(self, streamer: AnswerStreamer, stop: StopWhenSet) -> None:
        streamer.put(PROMPT)
        while not stop.is_set():
            streamer.put(torch.tensor([40]))
            self.started.set()
            time.sleep(0.005)
        streamer.end()
        self.ended.set()


def test_an_event_or_close_or_neglect_ends_it() -> None:
    stop, tokenizer = threading.Event(), TOKENIZERS["characters"]
    write = Endless()
    stream = AnswerStream(write, tokenizer, stop)
    next(stream)
    stream.close()
    assert write.ended.is_set() and not stop.is_set() and list(stream) == []
    write = Endless()
    stream = AnswerStream(write, tokenizer, stop)
    next(stream)
    stop.set()
    assert all(stream) and write.ended.is_set()
    write = Endless()
    next(AnswerStream(write, tokenizer))
    gc.collect()
    assert write.ended.wait(TIMEOUT_S)


def test_ctrl_c_stops_the_writer_and_is_raised() -> None:
    write = Endless()

    def press() -> None:
        write.started.wait(TIMEOUT_S)
        os.kill(os.getpid(), signal.SIGINT)

    presser = threading.Thread(target=press)
    with pytest.raises(KeyboardInterrupt), AnswerStream(write, TOKENIZERS["characters"]) as stream:
        presser.start()
        for _ in stream:
            pass
    presser.join()
    assert write.ended.is_set()


def test_errors_are_raised_where_it_is_read() -> None:
    def write(streamer: AnswerStreamer, stop: StopWhenSet) -> None:
        streamer.put(PROMPT)
        streamer.put(torch.tensor([40]))
        raise MemoryError("no room")

    stream = AnswerStream(write, TOKENIZERS["characters"])
    assert next(stream)
    with pytest.raises(MemoryError, match="no room"):
        next(stream)
    assert list(stream) == []
    assert AnswerStream(lambda streamer, stop: None, TOKENIZERS["characters"]).read() == ""

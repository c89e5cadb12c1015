"""`audiollm generate`: an answer about a real recording, every option, and errors that name what is wrong."""

import io
import os
import re
import signal
import sys

import pytest
import torch
from audiollm.inference import generate
from audiollm.inference.answering import answer, ask
from audiollm.inference.generate import main
from audiollm.inference.session import Session


class Terminal(io.StringIO):
    """Standard output that says it is a terminal, keeps what is written at once, and may press Ctrl-C on it."""

    def __init__(self, interrupt_after: int | None = None):
        super().__init__()
        self.pieces: list[str] = []
        self.interrupt_after = interrupt_after

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.pieces.append(text)
        if len(self.pieces) == self.interrupt_after:
            os.kill(os.getpid(), signal.SIGINT)
        return super().write(text)


def test_it_prints_the_models_answer(checkpoint, clips, tiny_model, tiny_processor, run) -> None:
    two = "Is <audio> like <audio>?"
    for words, conversation, tokens in (
        (["--audio", *clips[:2], "--prompt", two, "--max_new_tokens", "12"], ask(two, *clips[:2]), 12),
        (["--audio", clips[0], "--max-new-tokens", "3"], ask("<audio>\nTranscribe the speech.", clips[0]), 3),
        (["--audio", clips[0], "--prompt", "", "--max_new_tokens", "8"], ask(None, clips[0]), 8),
        (["--prompt", "Hi?", "--max_new_tokens", "3", "--system", "Be brief."], ask("Hi?", system="Be brief."), 3),
    ):
        printed = run(main, "--model", checkpoint, *words)
        expected = answer(tiny_model, tiny_processor, [conversation], max_new_tokens=tokens)[0]
        assert printed.out == f"{expected}\n" and expected
    assert "The answer was cut at 3 tokens; --max_new_tokens sets another bound." in printed.err


def test_on_a_terminal_the_answer_comes_in_pieces_and_ctrl_c_ends_it(checkpoint, clips, monkeypatch, run) -> None:
    command = ["--model", str(checkpoint), "--audio", clips[0], "--max_new_tokens"]
    streamed, whole, stopped = Terminal(), Terminal(), Terminal(interrupt_after=3)
    for terminal, options in ((streamed, ["12"]), (whole, ["12", "--no_stream"])):
        monkeypatch.setattr(sys, "stdout", terminal)
        main([*command, *options])
    assert streamed.getvalue() == whole.getvalue() != "\n"
    assert len(streamed.pieces) > 5 and len(whole.pieces) == 2
    monkeypatch.setattr(sys, "stdout", stopped)
    run(main, *command, "900", code=130)
    assert stopped.getvalue().endswith("\n") and len(stopped.pieces) < 30


def test_draws_depend_on_seed_temperature_and_top_p(checkpoint, run) -> None:
    def drawn(temperature: str, *extra: str) -> str:
        words = ["--prompt", "Hi", "--max_new_tokens", "16", "--temperature", temperature]
        return run(main, "--model", checkpoint, *words, *extra).out

    greedy, one = drawn("0"), drawn("1", "--seed", "1")
    assert len({greedy, one, drawn("1", "--seed", "2"), drawn("9", "--seed", "1")}) == 4
    assert one == drawn("1", "--seed", "1")
    assert drawn("1", "--seed", "1", "--top_p", "0.0001") == greedy


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("--audio /no/such.wav", "/no/such.wav"),
        ("--audio BAD", "bad.wav"),
        ("--audio BAD BAD", "give --prompt, with one <audio> per file"),
        ("--prompt=", "there is nothing to answer"),
        ("--prompt <audio>", "has 1 <audio> for 0 recordings"),
        ("--prompt x --max_new_tokens 0", "--max_new_tokens is 0; expected at least 1"),
        ("--prompt x --temperature -1", "--temperature is -1; expected 0 or more"),
        ("--prompt x --top_p 2", "--top_p is 2; expected more than 0, and at most 1"),
        ("--prompt x --seed 5", "--seed does nothing without sampling"),
    ],
)
def test_what_is_wrong_is_named_before_the_model_is_loaded(
    extra, message, tiny_model, tiny_processor, tmp_path, run
) -> None:
    tiny_processor.save_pretrained(tmp_path / "no_weights")
    tiny_model.config.save_pretrained(tmp_path / "no_weights")
    (tmp_path / "bad.wav").write_bytes(b"this is not sound")
    words = extra.replace("BAD", str(tmp_path / "bad.wav")).split()
    assert message in run(main, "--model", tmp_path / "no_weights", *words, code=2).err


@pytest.mark.parametrize("after_tokens", [0, 4])
def test_memory_that_runs_out_is_said(after_tokens, checkpoint, clips, monkeypatch, run) -> None:
    """In the middle of an answer: what there is of it, and what would take less, instead of a traceback."""

    def session_that_runs_out(model, *arguments, **options) -> Session:
        runs = []

        def ask_for_too_much(module, inputs) -> None:
            runs.append(1)
            if len(runs) > after_tokens:
                torch.empty(1 << 60, dtype=torch.uint8)

        model.get_decoder().layers[0].register_forward_pre_hook(ask_for_too_much)
        return Session(model, *arguments, **options)

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(generate, "Session", session_that_runs_out)
    printed = run(main, "--model", checkpoint, "--audio", clips[0], "--max_new_tokens", "20", code=1)
    assert re.search(f"Memory ran out after {after_tokens} tokens.*--load_in_8bit", printed.err)
    assert bool(terminal.getvalue().strip()) == bool(after_tokens)

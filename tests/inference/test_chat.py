"""`audiollm chat`: text, recordings and speech in one conversation, every command, and trouble that does not end it."""

import io
import os
import signal
import sys
from typing import Any

import pytest
from audiollm.inference.answering import answer, ask
from audiollm.inference.chat import GREETING, Chat, main
from audiollm.inference.session import Session

NEW_TOKENS = 8


@pytest.fixture
def clip(clips) -> str:
    return clips[0]


@pytest.fixture
def session(tiny_model, tiny_processor) -> Session:
    return Session(tiny_model, tiny_processor, max_new_tokens=NEW_TOKENS)


def converse(session: Session, *lines: Any, piecewise: bool = False) -> Chat:
    """A chat that reads these lines and then the end of the input; exceptions among them are raised."""
    left = iter([*lines, EOFError()])

    def read_line() -> str:
        line = next(left)
        if isinstance(line, BaseException):
            raise line
        return line

    chat = Chat(session, read_line, piecewise)
    chat.run()
    return chat


def sent(session: Session) -> list[list[str]]:
    """Return what the user has sent: words and paths."""
    turns = [message["content"] for message in session.messages if message["role"] == "user"]
    return [[part[part["type"]] for part in turn] for turn in turns]


def test_lines_are_turns_of_one_conversation(session, clip, capsys) -> None:
    chat = converse(session, "Hello?", "", "  ", KeyboardInterrupt(), "And again?", "/quit", "Never read")
    assert sent(session) == [["Hello?"], ["And again?"]]
    said = [message["content"] for message in session.messages if message["role"] == "assistant"]
    printed = capsys.readouterr()
    assert printed.out == "".join(f"{one}\n" for one in said) and "/quit or Ctrl-D leaves." in printed.err
    assert answer(session.model, session.processor, [session.messages[:3]], max_new_tokens=NEW_TOKENS) == said[1:]
    assert chat.failures == 0
    session.reset()
    converse(session, f"/audio '{clip}'", "What is said?", f'/audio "{clip}"', "", "Is it true?")
    assert sent(session) == [[clip, "\nWhat is said?"], [clip], ["Is it true?"]]
    assert f"Attached: {clip}" in capsys.readouterr().err
    session.reset()
    converse(session, f"/audio '{clip}' '{clip}'", f"/audio '{clip}'", "Is <audio> like <audio> or <audio>?")
    assert sent(session) == [["Is ", clip, " like ", clip, " or ", clip, "?"]]
    converse(session, f"/audio '{clip}'", "/clear", f"/audio '{clip}'", "/drop", "And again?", f"/audio '{clip}'")
    assert sent(session) == [["And again?"]] and session.report.reused_tokens == 0
    assert f"has not been sent: {clip}" in capsys.readouterr().err


def test_trouble_is_told_and_the_conversation_goes_on(session, clip, capsys) -> None:
    for line, message in (
        ("/audio", "/audio needs files"),
        ("/audio /no/such.wav", "/no/such.wav"),
        ("/audio 'unclosed", "cannot be split into names"),
        ("/oops", "There is no /oops"),
        ("/clear all", "/clear takes nothing after it, got 'all'"),
        ("<audio>", "has 1 <audio> for 0 recordings"),
        ("x" * 2000, "tokens long, but the language model can hold 1024"),
    ):
        assert converse(session, line).failures == 1
        assert message in capsys.readouterr().err
    converse(session, f"/audio '{clip}'", "<audio> or <audio>?", "What is said?")  # which keeps what is attached
    assert sent(session) == [[clip, "\nWhat is said?"]]
    session.options["suppress_tokens"] = [4]
    converse(session, "/help", "Hello?")
    printed = capsys.readouterr().err
    assert "/drop" in printed and f"[cut at {NEW_TOKENS} tokens" in printed


def test_ctrl_c_stops_the_answer_and_not_the_chat(session, clip, monkeypatch, capsys) -> None:
    class Terminal(io.StringIO):
        pressed = False

        def write(self, written: str) -> int:
            if not Terminal.pressed:
                Terminal.pressed = True
                os.kill(os.getpid(), signal.SIGINT)
            return super().write(written)

    session.options |= {"max_new_tokens": 900, "suppress_tokens": [4]}
    monkeypatch.setattr(sys, "stdout", Terminal())
    chat = converse(session, f"/audio '{clip}'", "What is said?", piecewise=True)
    assert session.report.finish_reason == "interrupted" and session.report.new_tokens < 900
    assert [message["role"] for message in session.messages] == ["user", "assistant"] and not chat.attached
    assert "[stopped]" in capsys.readouterr().err
    session.ask("Go on.", max_new_tokens=2)
    assert session.report.reused_tokens > 0


def test_piped_it_prints_answers_alone(checkpoint, clip, tiny_model, tiny_processor, monkeypatch, run) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"/audio '{clip}'\nWhat is said?\n/quit\n"))
    printed = run(main, "--model", checkpoint, "--max_new_tokens", "6", "--system", "Be brief.")
    asked = ask("What is said?", clip, system="Be brief.")
    assert printed.out == f"{answer(tiny_model, tiny_processor, [asked], max_new_tokens=6)[0]}\n"
    assert GREETING not in printed.err
    monkeypatch.setattr(sys, "stdin", io.StringIO("/oops\nHello?\n"))
    assert "There is no /oops" in run(main, "--model", checkpoint, "--max_new_tokens", "2", code=1).err

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


def converse(session: Session, *lines: str) -> Chat:
    """A chat that reads these lines and then the end of the input."""
    left = iter(lines)

    def read_line() -> str:
        line = next(left, None)
        if line is None:
            raise EOFError
        return line

    chat = Chat(session, read_line, piecewise=False)
    chat.run()
    return chat


def contents(session: Session) -> list[Any]:
    """Return what the user has sent."""
    return [message["content"] for message in session.messages if message["role"] == "user"]


def audio(path: str) -> dict[str, str]:
    return {"type": "audio", "audio": path}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def test_lines_are_turns_of_one_conversation(session, capsys) -> None:
    chat = converse(session, "Hello?", "", "  ", "And again?", "/quit", "Never read")
    assert contents(session) == [[text("Hello?")], [text("And again?")]]
    said = [message["content"] for message in session.messages if message["role"] == "assistant"]
    assert capsys.readouterr().out == "".join(f"{one}\n" for one in said)
    assert answer(session.model, session.processor, [session.messages[:3]], max_new_tokens=NEW_TOKENS) == said[1:]
    assert chat.failures == 0


def test_audio_with_text_is_a_question_and_alone_it_is_speech(session, clip, capsys) -> None:
    converse(session, f"/audio '{clip}'", "What is said?", f'/audio "{clip}"', "", "Is it true?")
    assert contents(session) == [[audio(clip), text("\nWhat is said?")], [audio(clip)], [text("Is it true?")]]
    assert f"Attached: {clip}" in capsys.readouterr().err
    session.reset()
    converse(session, f"/audio '{clip}' '{clip}'", f"/audio '{clip}'", "Is <audio> like <audio> or <audio>?")
    assert [part["type"] for part in contents(session)[0]] == ["text", "audio"] * 3 + ["text"]


def test_drop_clear_and_what_is_left_attached(session, clip, capsys) -> None:
    converse(session, f"/audio '{clip}'", "/drop", "Hello?")
    assert contents(session) == [[text("Hello?")]]
    converse(session, f"/audio '{clip}'", "/clear", "And again?", f"/audio '{clip}'")
    assert contents(session) == [[text("And again?")]] and session.report.reused_tokens == 0
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
    assert contents(session) == [[audio(clip), text("\nWhat is said?")]]
    session.options["suppress_tokens"] = [4]
    converse(session, "Hello?")
    assert f"[cut at {NEW_TOKENS} tokens" in capsys.readouterr().err


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
    chat = Chat(session, iter([f"/audio '{clip}'", "What is said?", "/quit"]).__next__, piecewise=True)
    chat.run()
    assert session.report.finish_reason == "interrupted" and session.report.new_tokens < 900
    assert [message["role"] for message in session.messages] == ["user", "assistant"] and not chat.attached
    assert "[stopped]" in capsys.readouterr().err
    session.ask("Go on.", max_new_tokens=2)
    assert session.report.reused_tokens > 0


def test_ctrl_c_at_the_prompt_says_how_to_leave(session, capsys) -> None:
    presses = iter([KeyboardInterrupt, EOFError])

    def read_line() -> str:
        raise next(presses)

    Chat(session, read_line).run()
    assert "/quit or Ctrl-D leaves." in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------- the command


def test_piped_it_prints_answers_alone(checkpoint, clip, tiny_model, tiny_processor, monkeypatch, capsys) -> None:
    call = ["--model", str(checkpoint), "--max_new_tokens"]
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"/audio '{clip}'\nWhat is said?\n/quit\n"))
    main([*call, "6", "--system", "Be brief."])
    asked = ask("What is said?", clip, system="Be brief.")
    printed = capsys.readouterr()
    assert printed.out == f"{answer(tiny_model, tiny_processor, [asked], max_new_tokens=6)[0]}\n"
    assert GREETING not in printed.err
    monkeypatch.setattr(sys, "stdin", io.StringIO("/oops\nHello?\n"))
    with pytest.raises(SystemExit) as caught:
        main([*call, "2"])
    assert caught.value.code == 1 and "There is no /oops" in capsys.readouterr().err

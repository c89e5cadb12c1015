"""`audiollm chat`: text, recordings and speech in one conversation, every command, and trouble that does not end it."""

import io
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from audiollm.corpora.prompts import load_studio_prompts
from audiollm.inference import chat as chat_module
from audiollm.inference.answering import answer, ask
from audiollm.inference.chat import Chat, main
from audiollm.inference.session import Session
from audiollm.training.instruct import read_sources

NEW_TOKENS = 8
RATE_HZ = 16_000


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    """A real recording, in a folder with a blank in its name."""
    row = load_studio_prompts("test").sort("duration_s")[0]
    path = tmp_path_factory.mktemp("some clips") / "a clip.ogg"
    path.write_bytes(row["audio"]["bytes"])
    return str(path)


@pytest.fixture
def session(tiny_model, tiny_processor) -> Session:
    return Session(tiny_model, tiny_processor, max_new_tokens=NEW_TOKENS)


def converse(session: Session, *lines: str, piecewise: bool = False) -> Chat:
    """A chat that reads these lines and then the end of the input."""
    left = iter(lines)

    def read_line() -> str:
        line = next(left, None)
        if line is None:
            raise EOFError
        return line

    chat = Chat(session, read_line, piecewise)
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
    chat = converse(session, "Hello?", "", "  ", "And again?")
    assert contents(session) == [[text("Hello?")], [text("And again?")]]
    said = [message["content"] for message in session.messages if message["role"] == "assistant"]
    assert capsys.readouterr().out == "".join(f"{one}\n" for one in said)
    assert answer(session.model, session.processor, [session.messages[:3]], max_new_tokens=NEW_TOKENS) == said[1:]
    assert chat.failures == 0


def test_audio_with_text_is_a_question_and_alone_it_is_speech(session, clip, capsys) -> None:
    converse(session, f"/audio '{clip}'", "What is said?", f'/audio "{clip}"', "", "Is it true?")
    assert contents(session) == [[audio(clip), text("\nWhat is said?")], [audio(clip)], [text("Is it true?")]]
    assert f"Attached: {clip}" in capsys.readouterr().err


def test_several_recordings_in_a_turn(session, clip) -> None:
    converse(session, f"/audio '{clip}' '{clip}'", f"/audio '{clip}'", "Is <audio> like <audio> or <audio>?")
    assert [part["type"] for part in contents(session)[0]] == [
        "text",
        "audio",
        "text",
        "audio",
        "text",
        "audio",
        "text",
    ]


def test_drop_and_clear(session, clip) -> None:
    converse(session, f"/audio '{clip}'", "/drop", "Hello?")
    assert contents(session) == [[text("Hello?")]]
    converse(session, f"/audio '{clip}'", "/clear", "And again?")
    assert contents(session) == [[text("And again?")]]
    assert session.report.reused_tokens == 0


def test_what_is_left_attached_is_told(session, clip, capsys) -> None:
    converse(session, f"/audio '{clip}'")
    assert f"has not been sent: {clip}" in capsys.readouterr().err


def test_quit_ends_it(session) -> None:
    converse(session, "Hello?", "/quit", "Never read")
    assert contents(session) == [[text("Hello?")]]


def test_save_writes_what_training_reads(session, clip, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(Path(clip).parent)
    saved = tmp_path / "my chat.json"
    converse(session, "/audio 'a clip.ogg'", "What is said?", f"/save '{saved}'", "Why?", f"/save '{saved}'")
    (row,) = json.loads(saved.read_text(encoding="utf-8"))
    assert row["messages"][0]["content"] == [{"type": "audio", "path": clip}, text("\nWhat is said?")]
    assert [message["role"] for message in row["messages"]] == ["user", "assistant"] * 2
    (examples,) = read_sources([str(saved)], None)
    assert not examples.problems and len(examples) == 1
    assert f"Saved to {saved}" in capsys.readouterr().err


def test_save_does_not_overwrite_what_it_did_not_write(session, tmp_path, capsys) -> None:
    (tmp_path / "other.json").write_text("mine")
    chat = converse(session, "Hello?", f"/save {tmp_path}/other.json", "/save", f"/save {tmp_path}/no/folder.json")
    assert (tmp_path / "other.json").read_text() == "mine" and chat.failures == 3
    told = capsys.readouterr().err
    assert "is there already" in told and "/save needs one file" in told and "folder.json" in told


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/audio", "/audio needs files"),
        ("/audio /no/such.wav", "/no/such.wav"),
        ("/audio 'unclosed", "cannot be split into names"),
        ("/oops", "There is no /oops"),
        ("/clear all", "/clear takes nothing after it, got 'all'"),
        ("<audio>", "has 1 <audio> for 0 recordings"),
        ("x" * 2000, "tokens long, but the language model can hold 1024"),
    ],
)
def test_trouble_is_told_and_the_conversation_goes_on(session, line: str, message: str, capsys) -> None:
    chat = converse(session, line, "Hello?")
    assert message in capsys.readouterr().err and chat.failures == 1
    assert contents(session) == [[text("Hello?")]]


def test_a_question_that_failed_keeps_what_is_attached(session, clip) -> None:
    converse(session, f"/audio '{clip}'", "<audio> or <audio>?", "What is said?")
    assert contents(session) == [[audio(clip), text("\nWhat is said?")]]


def test_an_answer_that_is_cut_says_so(session, capsys) -> None:
    converse(session, "Hello?")
    assert (f"[cut at {NEW_TOKENS} tokens" in capsys.readouterr().err) == (session.report.finish_reason == "length")
    session.options["suppress_tokens"] = [4]
    converse(session, "Hello?")
    assert f"[cut at {NEW_TOKENS} tokens" in capsys.readouterr().err


def test_ctrl_c_stops_the_answer_and_not_the_chat(tiny_model, tiny_processor, clip, monkeypatch, capsys) -> None:
    class Terminal(io.StringIO):
        pressed = False

        def write(self, written: str) -> int:
            if not Terminal.pressed:
                Terminal.pressed = True
                os.kill(os.getpid(), signal.SIGINT)
            return super().write(written)

    session = Session(tiny_model, tiny_processor, max_new_tokens=900, suppress_tokens=[4])
    monkeypatch.setattr(sys, "stdout", Terminal())
    session.options["max_new_tokens"] = 900
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


@pytest.fixture
def checkpoint(tiny_model, tiny_processor, tmp_path) -> str:
    tiny_model.save_pretrained(tmp_path / "model")
    tiny_processor.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_piped_it_prints_answers_alone(checkpoint, clip, tiny_model, tiny_processor, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"/audio '{clip}'\nWhat is said?\n/quit\n"))
    main(["--model", checkpoint, "--max_new_tokens", "6", "--system", "Be brief."])
    asked = ask("What is said?", clip, system="Be brief.")
    printed = capsys.readouterr()
    assert printed.out == f"{answer(tiny_model, tiny_processor, [asked], max_new_tokens=6)[0]}\n"
    assert chat_module.GREETING not in printed.err


def test_piped_trouble_is_in_the_status(checkpoint, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("/oops\nHello?\n"))
    with pytest.raises(SystemExit) as caught:
        main(["--model", checkpoint, "--max_new_tokens", "2"])
    assert caught.value.code == 1 and "There is no /oops" in capsys.readouterr().err


def test_draws_follow_the_options(checkpoint, monkeypatch, capsys) -> None:
    printed = []
    for extra in ([], ["--temperature", "1", "--seed", "1"], ["--temperature", "1", "--seed", "1"]):
        monkeypatch.setattr(sys, "stdin", io.StringIO("Hello?\n"))
        main(["--model", checkpoint, "--max_new_tokens", "12", *extra])
        printed.append(capsys.readouterr().out)
    assert printed[0] != printed[1] == printed[2]

"""`audiollm generate`: an answer about a real recording, every option, and errors that name what is wrong."""

import io
import os
import signal
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from audiollm.corpora.prompts import load_studio_prompts
from audiollm.inference import generate
from audiollm.inference.answering import answer, ask
from audiollm.inference.generate import main
from audiollm.inference.loading import load_model
from audiollm.inference.session import Session


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[str]:
    """Two real recordings as Ogg Opus files."""
    folder = tmp_path_factory.mktemp("clips")
    paths = []
    for row in load_studio_prompts("test").sort("duration_s").select(range(2)):
        paths.append(str(folder / row["audio"]["path"]))
        Path(paths[-1]).write_bytes(row["audio"]["bytes"])
    return paths


@pytest.fixture
def checkpoint(tiny_model, tiny_processor, tmp_path) -> str:
    tiny_model.save_pretrained(tmp_path / "model")
    tiny_processor.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


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


def test_it_prints_the_models_answer(checkpoint, clips, tiny_model, tiny_processor, capsys) -> None:
    question = ["--prompt", "Is <audio> like <audio>?", "--max_new_tokens", "12"]
    main(["--model", checkpoint, "--audio", *clips, *question])
    printed = capsys.readouterr().out
    expected = answer(tiny_model, tiny_processor, [ask(question[1], *clips)], max_new_tokens=12)[0]
    assert printed == f"{expected}\n" and expected
    main(["--model", checkpoint, "--audio", clips[0], "--max-new-tokens", "3"])
    expected = answer(tiny_model, tiny_processor, [ask("<audio>\nTranscribe the speech.", clips[0])], max_new_tokens=3)
    assert capsys.readouterr().out == f"{expected[0]}\n"


def test_a_question_without_recordings_is_answered_too(checkpoint, tiny_model, tiny_processor, capsys) -> None:
    main(["--model", checkpoint, "--prompt", "Hello?", "--max_new_tokens", "4"])
    expected = answer(tiny_model, tiny_processor, [ask("Hello?")], max_new_tokens=4)[0]
    assert capsys.readouterr().out == f"{expected}\n"


def test_a_recording_without_words_is_what_is_said(checkpoint, clips, tiny_model, tiny_processor, capsys) -> None:
    main(["--model", checkpoint, "--audio", clips[0], "--prompt", "", "--max_new_tokens", "8"])
    speech = [{"role": "user", "content": [{"type": "audio", "path": clips[0]}]}]
    assert capsys.readouterr().out == f"{answer(tiny_model, tiny_processor, [speech], max_new_tokens=8)[0]}\n"


def test_on_a_terminal_the_answer_comes_in_pieces_unless_it_is_not_wanted(checkpoint, clips, monkeypatch) -> None:
    command = ["--model", checkpoint, "--audio", clips[0], "--max_new_tokens", "12"]
    printed = []
    for extra in ([], ["--no_stream"]):
        monkeypatch.setattr(sys, "stdout", Terminal())
        main([*command, *extra])
        printed.append(sys.stdout)
    streamed, whole = printed
    assert streamed.getvalue() == whole.getvalue() != "\n"
    assert len(streamed.pieces) > 5 and len(whole.pieces) == 2


def test_ctrl_c_ends_it_with_what_there_is(checkpoint, clips, monkeypatch) -> None:
    terminal = Terminal(interrupt_after=3)
    monkeypatch.setattr(sys, "stdout", terminal)
    with pytest.raises(SystemExit) as caught:
        main(["--model", checkpoint, "--audio", clips[0], "--max_new_tokens", "900"])
    assert caught.value.code == 130
    assert terminal.getvalue().endswith("\n") and len(terminal.pieces) < 30


def test_the_system_message_is_read(checkpoint, tiny_model, tiny_processor, capsys) -> None:
    main(["--model", checkpoint, "--prompt", "Hello?", "--max_new_tokens", "8", "--system", "You are terse."])
    expected = answer(tiny_model, tiny_processor, [ask("Hello?", system="You are terse.")], max_new_tokens=8)[0]
    assert capsys.readouterr().out == f"{expected}\n"


def test_draws_depend_on_seed_temperature_and_top_p(checkpoint, tiny_model, tiny_processor, capsys) -> None:
    def drawn(*extra: str) -> str:
        main(["--model", checkpoint, "--prompt", "Hello?", "--max_new_tokens", "16", *extra])
        return capsys.readouterr().out

    greedy = drawn()
    one = drawn("--temperature", "1", "--seed", "1")
    assert one == drawn("--temperature", "1", "--seed", "1")
    assert (
        len({greedy, one, drawn("--temperature", "1", "--seed", "2"), drawn("--temperature", "9", "--seed", "1")}) == 4
    )
    assert drawn("--temperature", "1", "--seed", "1", "--top_p", "0.0001") == greedy


def test_precision_and_device_reach_the_model(checkpoint, tiny_processor, capsys) -> None:
    main(["--model", checkpoint, "--prompt", "Why?", "--max_new_tokens", "30", "--dtype", "bfloat16"])
    printed = capsys.readouterr().out
    half, single = (load_model(checkpoint, dtype) for dtype in ("bfloat16", "float32"))
    said = [Session(model, tiny_processor, max_new_tokens=30).ask("Why?") for model in (half, single)]
    assert printed == f"{said[0]}\n" and said[0] != said[1]
    main(["--model", checkpoint, "--prompt", "Why?", "--max_new_tokens", "2", "--device", "cpu"])
    with pytest.raises(SystemExit) as caught:
        main(["--model", checkpoint, "--prompt", "Why?", "--device", "tpu9"])
    assert "--device tpu9 cannot be used" in str(caught.value.code)


def test_an_answer_that_is_cut_says_so(checkpoint, capsys) -> None:
    main(["--model", checkpoint, "--prompt", "Hello?", "--max_new_tokens", "1"])
    assert "The answer was cut at 1 tokens; --max_new_tokens sets another bound." in capsys.readouterr().err


def test_a_revision_is_asked_of_the_hub(monkeypatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SystemExit) as caught:
        main(["--model", "you/no-such-audiollm-model", "--revision", "v7", "--prompt", "Hello?"])
    assert "you/no-such-audiollm-model" in str(caught.value.code)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--audio", "/no/such.wav"], "/no/such.wav"),
        (["--audio", "BAD"], "bad.wav"),
        (["--audio", "CLIP", "CLIP"], "give --prompt, with one <audio> per file"),
        ([], "give --prompt, with one <audio> per file"),
        (["--prompt", ""], "there is nothing to answer"),
        (["--audio", "CLIP", "--prompt", "<audio> <audio>"], "has 2 <audio> for 1 recordings"),
        (["--audio", "CLIP", "--dtype", "float3"], "invalid choice: 'float3'"),
        (["--prompt", "x", "--max_new_tokens", "0"], "--max_new_tokens is 0; expected at least 1"),
        (["--prompt", "x", "--temperature", "-1"], "--temperature is -1; expected 0 or more"),
        (["--prompt", "x", "--temperature", "1", "--top_p", "1.5"], "--top_p is 1.5; expected more than 0"),
        (["--prompt", "x", "--top_p", "0.5"], "--top_p does nothing without sampling"),
        (["--prompt", "x", "--seed", "5"], "--seed does nothing without sampling"),
    ],
)
def test_what_is_wrong_is_named_before_the_model_is_loaded(
    extra, message, tiny_model, tiny_processor, clips, tmp_path, capsys
) -> None:
    tiny_processor.save_pretrained(tmp_path / "no_weights")
    tiny_model.config.save_pretrained(tmp_path / "no_weights")
    (tmp_path / "bad.wav").write_bytes(b"this is not sound")
    places = {"CLIP": clips[0], "BAD": str(tmp_path / "bad.wav")}
    with pytest.raises(SystemExit) as caught:
        main(["--model", str(tmp_path / "no_weights"), *[places.get(word, word) for word in extra]])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_memory_that_runs_out_is_said(checkpoint, clips, monkeypatch) -> None:
    """In the middle of an answer: what there is of it, and what would take less, instead of a traceback."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(generate, "Session", session_that_runs_out(after_tokens=4))
    with pytest.raises(SystemExit) as caught:
        main(["--model", checkpoint, "--audio", clips[0], "--max_new_tokens", "20"])
    message = str(caught.value.code)
    assert message.startswith("audiollm generate: Memory ran out after ") and "--load_in_8bit" in message
    assert 0 < int(message.split()[6]) < 20 and terminal.getvalue().strip()
    # At once, before a word of it.
    monkeypatch.setattr(generate, "Session", session_that_runs_out(after_tokens=0))
    with pytest.raises(SystemExit, match="Memory ran out after 0 tokens"):
        main(["--model", checkpoint, "--audio", clips[0], "--max_new_tokens", "20"])


def session_that_runs_out(after_tokens: int):
    """Sessions of models that ask for more memory than there is, after so many tokens."""

    def make(model, *arguments, **options) -> Session:
        runs = []

        def ask_for_too_much(module, inputs) -> None:
            runs.append(1)
            if len(runs) > after_tokens:
                torch.empty(1 << 60, dtype=torch.uint8)

        model.get_decoder().layers[0].register_forward_pre_hook(ask_for_too_much)
        return Session(model, *arguments, **options)

    return make

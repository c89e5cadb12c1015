"""The server behind its answers: who waits for whom, who goes away, what is kept, and the command with its options."""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import openai
import prepared_python
import pytest
import torch
import uvicorn
from audiollm.inference.loaded import AudioLlm
from audiollm.inference.serve import ServeArguments, bind, main
from audiollm.inference.serving import gateway
from audiollm.inference.serving.chat import StopStrings
from audiollm.inference.serving.responses import GoneError
from audiollm.inference.serving.service import Service, ServingSettings, Turns
from audiollm.inference.transcribing import TranscribingSettings
from long_recordings import noise, prompts
from servers import audio, client_of, in_thread, text, user, wav
from web_server import Slowed, wait_for

MAX_NEW_TOKENS = 900
SLOW_STEP_SECONDS = 0.1
UPLOAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\n"


@pytest.fixture(scope="module")
def served(model, processor) -> Iterator[tuple[str, Service]]:
    transcribing = TranscribingSettings(window_seconds=1, batch_size=1, voice_activity=False)
    limits = {"max_new_tokens": MAX_NEW_TOKENS, "max_requests": 4, "kept_sessions": 2}
    with in_thread(model, processor, ServingSettings("tiny", **limits, transcribing=transcribing)) as running:
        yield running


@pytest.fixture
def steps(model) -> Iterator[list[tuple[int, int]]]:
    """Rows and positions of each run of the language model."""
    runs: list[tuple[int, int]] = []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: runs.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    yield runs
    hook.remove()


def ask(url: str, *messages: Any, **options: Any) -> Any:
    asked = {"model": "tiny", "messages": list(messages), "max_tokens": 4, **options}
    return client_of(url).chat.completions.create(**asked)


def cached(response: Any) -> int:
    return response.usage.prompt_tokens_details.cached_tokens


def endless(url: str) -> Any:
    """Return a stream that would go on for long, once it has begun."""
    stream = ask(url, user("Hello?"), max_tokens=MAX_NEW_TOKENS, stream=True)
    next(stream)
    return stream


def transcribe(url: str, file: bytes, **options: Any) -> str:
    return client_of(url).audio.transcriptions.create(model="tiny", file=("a.wav", file), **options).text


def waiting(service: Service, count: int) -> Callable[[], bool]:
    return lambda: service.turns.waiting == count


# ---- clients that go away ------------------------------------------------------------------------------------------


def test_what_is_left_stops(served, model, steps) -> None:
    url, service = served
    with Slowed(model, SLOW_STEP_SECONDS):  # longer than it takes to see that a connection is closed
        stream = endless(url)
        with pytest.raises(openai.APITimeoutError):
            ask(url, user("x" * 40), timeout=0.3)
        wait_for(waiting(service, 1))
        assert sum(positions > 1 for _, positions in steps) == 1  # the second never began
        stream.close()
        at = len(steps)
        wait_for(waiting(service, 0))
        assert len(steps) <= at + 2  # the one in the making, and one on a busy machine
    for left, all_steps in (
        (lambda: ask(url, user("Hello?"), max_tokens=MAX_NEW_TOKENS, timeout=0.15), MAX_NEW_TOKENS),
        (lambda: transcribe(url, wav(noise(60)), timeout=0.5), 60 * 41),  # windows with as many tokens
    ):
        steps.clear()
        with pytest.raises(openai.APITimeoutError):
            left()
        wait_for(waiting(service, 0))
        assert len(steps) < all_steps / 2


def test_uploads_that_break_or_stand_still_are_given_up(served, monkeypatch) -> None:
    url, service = served
    address = ("127.0.0.1", int(url.rsplit(":", 1)[1]))
    for body in (b"", b'{"messages": ['):
        with socket.create_connection(address) as raw:
            raw.sendall(UPLOAD + body)
    monkeypatch.setattr(gateway, "IDLE_SECONDS", 0.2)
    monkeypatch.setattr(gateway, "DRAIN_SECONDS", 0.2)
    for refused, status in ((b"", b"408"), (b"Origin: http://a.example\r\n", b"403")):
        with socket.create_connection(address, timeout=10) as raw:
            raw.sendall(UPLOAD.replace(b"Content", refused + b"Content") + b"{")
            assert raw.recv(1000).startswith(b"HTTP/1.1 " + status)
    assert ask(url, user("Hello?")).choices and waiting(service, 0)()


def test_the_end_of_the_server_is_the_end_of_its_answers(model, processor) -> None:
    """Answers that do not end in time are stopped, in the model as for the client."""
    with Slowed(model, 0.02):
        began = time.monotonic()
        with in_thread(model, processor, ServingSettings("tiny", max_new_tokens=MAX_NEW_TOKENS)) as (url, service):
            stream = endless(url)
        assert waiting(service, 0)() and time.monotonic() - began < 0.02 * MAX_NEW_TOKENS / 2
        stream.close()


# ---- several at once -----------------------------------------------------------------------------------------------


def test_a_chat_comes_in_between_the_windows_of_a_transcription(served) -> None:
    url, service = served
    with ThreadPoolExecutor(1) as pool:
        transcription = pool.submit(transcribe, url, wav(noise(8)))
        wait_for(waiting(service, 1))
        ask(url, user("Hello?"))
        assert not transcription.done() and transcription.result()


def test_transcriptions_at_once_share_batches_and_get_their_own_texts(model, processor, steps) -> None:
    """Uploads of like length, and one that is longer; one client leaves while it waits."""
    lengths = [*(1 + number / 20 for number in range(7)), 5.0]
    files = [wav(noise(seconds, seed)) for seed, seconds in enumerate(lengths)]
    settings = TranscribingSettings(voice_activity=False, max_new_tokens=12)
    expected = [AudioLlm(model, processor).transcribe(file, **vars(settings)).text for file in files]
    assert len(set(expected)) == len(files)
    steps.clear()
    with (
        in_thread(model, processor, ServingSettings("tiny", transcribing=settings)) as (url, service),
        ThreadPoolExecutor(10) as pool,
        Slowed(model, 0.02),
    ):
        stream = endless(url)  # holds the turn until all others wait
        left = pool.submit(transcribe, url, files[0], timeout=1.0)
        texts = [pool.submit(transcribe, url, file) for file in files]
        with pytest.raises(openai.APITimeoutError):
            left.result()
        wait_for(waiting(service, 1 + len(files)))
        stream.close()
        assert [each.result() for each in texts] == expected
    rows = [count for count, _ in steps]
    assert max(rows) == 7 and rows.count(1) > 12  # the longer one by itself


def test_a_batch_that_fails_fails_for_nobody_else() -> None:
    turns, never, batches = Turns(), threading.Event(), []

    def run(items: list[int], stop: Any) -> list[int]:
        batches.append(items)
        if 3 in items:
            raise ValueError("three")
        return [10 * item for item in items]

    def share(*items: int) -> list[int]:
        return list(turns.share("kind", items, run, lambda all_of_them: len(all_of_them) <= 4, never))

    with ThreadPoolExecutor(5) as pool:
        with turns.take(never):
            shared = []
            for number, items in enumerate(((1, 2), (3,), (4,), (5, 6), (7, 8)), start=2):
                shared.append(pool.submit(share, *items))
                wait_for(lambda number=number: turns.waiting == number)
        with pytest.raises(ValueError, match="three"):
            shared.pop(1).result()
        assert [each.result() for each in shared] == [[10, 20], [40], [50, 60], [70, 80]]
    assert batches[:2] == [[1, 2, 3, 4], [1, 2]] and turns.waiting == 0
    assert sorted(batches[2:]) == [[3], [4], [5, 6, 7, 8]]


def test_more_than_may_be_under_way_are_sent_away(served) -> None:
    url, service = served
    stream = endless(url)
    with ThreadPoolExecutor(3) as pool:
        others = [pool.submit(ask, url, user(f"Hello {n}?")) for n in range(3)]
        wait_for(waiting(service, 4))
        with pytest.raises(openai.InternalServerError) as caught:
            ask(url, user("Hello?"))
        assert caught.value.status_code == 503 and caught.value.code == "overloaded"
        assert caught.value.response.headers["retry-after"]
        assert httpx.get(f"{url}/health").status_code == 200
        stream.close()
        assert all(each.result().choices for each in others)


def test_turns_come_in_the_order_in_which_they_were_asked_for() -> None:
    turns, order, never, gone = Turns(), [], threading.Event(), threading.Event()

    def take(number: int, stop: threading.Event) -> None:
        try:
            with turns.take(stop):
                order.append(number)
        except GoneError:
            order.append(-number)

    with ThreadPoolExecutor(5) as pool, turns.take(never):
        for number in range(1, 6):
            pool.submit(take, number, gone if number == 3 else never)
            wait_for(lambda number=number: turns.waiting == number + 1)
        gone.set()
        turns.wake()
        wait_for(lambda: order == [-3])
    assert order == [-3, 1, 2, 4, 5] and turns.waiting == 0


# ---- what is kept, and what goes wrong -----------------------------------------------------------------------------


def test_as_many_conversations_are_kept_as_is_said_but_none_that_was_cut(served) -> None:
    url, service = served
    begun = [[user(f"Hello {n}?")] for n in range(3)]
    for messages in begun:
        messages.append(ask(url, *messages).choices[0].message.model_dump())
    assert len(service.sessions) == 2
    newest, second, oldest = (cached(ask(url, *messages, user("Why?"))) for messages in reversed(begun))
    assert newest > 0 and second > 0 and oldest == 0
    plain = ask(url, user("Hello?"), max_tokens=9).choices[0].message.content
    cut = ask(url, user("Hello?"), max_tokens=9, stop=plain[3]).choices[0].message
    assert cut.content == plain[: plain.index(plain[3])]
    assert cached(ask(url, user("Hello?"), cut, user("Why?"))) == 0


@contextmanager
def failing(part: torch.nn.Module, error: Exception, after: int = 0) -> Iterator[None]:
    """Let a part of the model fail after some runs."""
    left = iter(range(after))

    def fail(*args: Any) -> None:
        if next(left, None) is None:
            raise error

    hook = part.register_forward_pre_hook(fail)
    try:
        yield
    finally:
        hook.remove()


def test_a_failure_is_told_without_its_insides_and_the_next_answer_comes(served, model, caplog) -> None:
    url, service = served
    ears, words = model.model.audio_tower, model.model.language_model
    heard = user(audio(wav(prompts(1)[0])), text("What?"))
    for part, error, message, code in (
        (words, RuntimeError("secret of the machine"), user("Hello?"), "internal_error"),
        (ears, torch.OutOfMemoryError("no 9 GiB"), heard, "out_of_memory"),
    ):
        for stream in (False, True):
            with failing(part, error), pytest.raises(openai.InternalServerError) as caught:
                ask(url, message, stream=stream)
            assert "secret" not in caught.value.message and caught.value.code == code
    with failing(words, RuntimeError("late"), after=6), pytest.raises(openai.APIError, match="server failed"):
        list(ask(url, user("Hello?"), max_tokens=50, stream=True))
    wait_for(waiting(service, 0))
    assert "secret of the machine" in caplog.text
    assert ask(url, user("Hello?")).choices


@pytest.mark.parametrize("size", [1, 3, 20])
def test_stop_strings_wherever_pieces_are_cut(size: int) -> None:
    for whole, strings, expected in (
        ("one END two", ["END"], "one "),
        ("one EN two", ["END"], "one EN two"),
        ("a\n\nb", ["\n\n", "b"], "a"),
        ("abcd", ["cd", "bcde"], "ab"),
        ("ENEND", ["END"], "EN"),
        ("plain", [], "plain"),
    ):
        pieces = StopStrings(strings, [whole[at : at + size] for at in range(0, len(whole), size)])
        assert "".join(pieces) == expected and pieces.is_hit == (expected != whole)


# ---- the command ---------------------------------------------------------------------------------------------------


def test_what_hinders_it_is_said_before_a_model_is_loaded(checkpoint, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(ServeArguments, "load_model", None)
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        for option, value in (
            ("--port", str(taken.getsockname()[1])),
            ("--port", "70000"),
            ("--host", "192.0.2.1"),
            ("--host", "no.such.host.invalid"),
            ("--window_seconds", "31"),
            ("--device", "abacus"),
            ("--max_new_tokens", "0"),
            ("--max_audio_seconds", "-1"),
            ("--kept_conversations", "-1"),
            ("--api_key", ""),
            ("--api_key", "schlüssel"),
        ):
            with pytest.raises(SystemExit):
                main(["--model", str(checkpoint), option, value])
            assert option in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "python_multipart", None)
    with pytest.raises(SystemExit):
        main(["--model", str(checkpoint)])
    assert 'pip install "audiollm[serving]"' in capsys.readouterr().err
    # A model is not called by where it lies.
    assert ServeArguments().name(str(tmp_path / ".")) == tmp_path.name
    assert ServeArguments().name("you/your-model") == "you/your-model"
    assert ServeArguments(served_name="ears").name(str(tmp_path)) == "ears"


def test_what_is_asked_for_is_what_runs(checkpoint, monkeypatch, capsys) -> None:
    """All but the server's own loop, which is uvicorn's."""
    ran = []
    monkeypatch.setattr(
        uvicorn.Server, "run", lambda server, sockets: ran.append((server.config, sockets[0].getsockname()))
    )
    main(["--model", str(checkpoint), "--port", "0", "--dtype", "bfloat16", "--log_level", "error"])
    assert "Warning" not in capsys.readouterr().err
    main(["--model", str(checkpoint), "--port", "0", "--host", "0.0.0.0", "--merge_adapters"])
    assert "Warning: 0.0.0.0 is reached from other machines, without an API key" in capsys.readouterr().err
    (config, address), (other, _) = ran
    assert address[0] == "127.0.0.1" and (config.log_level, other.log_level) == ("error", "info")
    one, merged = config.app.state.service, other.app.state.service
    assert one.model.dtype == torch.bfloat16 and merged.model.dtype == torch.float32
    assert one.settings.is_local and one.settings.name == checkpoint.name and not merged.settings.is_local
    assert one.model.config.lora_adapters and not merged.model.config.lora_adapters


def test_the_command_keeps_nothing_of_a_request_and_ends_with_ctrl_c(checkpoint, tmp_path) -> None:
    temporary, pid = tmp_path / "temporary", tmp_path / "pid"
    temporary.mkdir()
    with bind("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    script = "import os; open('pid', 'w').write(str(os.getpid())); from audiollm.inference.serve import main; main()"
    variables = {"HF_HUB_OFFLINE": "1", "TMPDIR": str(temporary), "AUDIOLLM_API_KEY": "secret"}

    def is_there() -> bool:
        with suppress(httpx.TransportError):
            return httpx.get(f"http://127.0.0.1:{port}/health").is_success
        return False

    with ThreadPoolExecutor(1) as pool:
        options = ("--port", port, "--model", checkpoint)
        running = pool.submit(prepared_python.run, script, *options, env={**os.environ, **variables}, cwd=tmp_path)
        wait_for(lambda: is_there() or running.done(), prepared_python.PATIENCE_SECONDS)
        client = client_of(f"http://127.0.0.1:{port}", "secret")
        client.audio.transcriptions.create(model=checkpoint.name, file=("a.wav", wav(prompts(1)[0])))
        assert not list(temporary.glob("audiollm-serve-*"))
        asked = {"model": checkpoint.name, "messages": [user("Hello?")], "max_tokens": 20}
        stream = client.chat.completions.create(**asked, stream=True)
        next(stream)
        os.kill(int(pid.read_text()), signal.SIGINT)
        ended = running.result()
    assert ended.returncode == 130
    assert f"Serving {checkpoint.name} at http://127.0.0.1:{port}/v1, to programs on this machine" in ended.stderr
    assert 'Authorization: Bearer $KEY"' in ended.stderr and "Finished server process" in ended.stderr
    assert not any(word in ended.stderr for word in ("secret", "Hello?", "Traceback")), ended.stderr

"""The server behind its answers: who waits for whom, who goes away, what is kept, and its options."""

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest
import torch
import uvicorn
from audiollm.inference import serve
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
    settings = ServingSettings(
        "tiny",
        max_new_tokens=MAX_NEW_TOKENS,
        max_requests=4,
        kept_sessions=2,
        transcribing=TranscribingSettings(window_seconds=1, batch_size=1, voice_activity=False),
    )
    with in_thread(model, processor, settings) as running:
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


def endless(url: str) -> Any:
    """A stream that would go on for long, once it has begun."""
    stream = ask(url, user("Hello?"), max_tokens=MAX_NEW_TOKENS, stream=True)
    next(stream)
    return stream


def transcribe(url: str, file: bytes, **options: Any) -> str:
    return client_of(url).audio.transcriptions.create(model="tiny", file=("a.wav", file), **options).text


def idle(service: Service) -> bool:
    return not service.turns.waiting


# ---- clients that go away ------------------------------------------------------------------------------------------


def test_a_stream_that_is_left_stops_within_a_token(served, model, steps) -> None:
    """Steps are slow here, so that a token takes longer than it takes to see that a connection is closed."""
    url, service = served
    with Slowed(model, SLOW_STEP_SECONDS):
        endless(url).close()
        at = len(steps)
        wait_for(lambda: idle(service))
        assert len(steps) <= at + 2  # the one in the making, and one on a busy machine


def test_whole_answers_and_transcriptions_that_are_left_stop(served, steps) -> None:
    url, service = served
    with pytest.raises(openai.APITimeoutError):
        ask(url, user("Hello?"), max_tokens=MAX_NEW_TOKENS, timeout=0.15)
    wait_for(lambda: idle(service))
    assert 0 < len(steps) < MAX_NEW_TOKENS / 2
    steps.clear()
    with pytest.raises(openai.APITimeoutError):
        transcribe(url, wav(noise(60)), timeout=0.5)
    wait_for(lambda: idle(service))
    assert 0 < len(steps) < 30 * 41  # of 60 windows with as many tokens


def test_who_leaves_the_queue_is_not_waited_for(served, steps) -> None:
    url, service = served
    stream = endless(url)
    with pytest.raises(openai.APITimeoutError):
        ask(url, user("x" * 40), timeout=0.1)
    wait_for(lambda: service.turns.waiting == 1)
    assert sum(positions > 1 for _, positions in steps) == 1  # the second never began
    stream.close()
    wait_for(lambda: idle(service))


def test_uploads_that_break_or_stand_still_are_given_up(served, monkeypatch) -> None:
    url, service = served
    address = ("127.0.0.1", int(url.rsplit(":", 1)[1]))
    for body in (b"", b'{"messages": ['):
        with socket.create_connection(address) as raw:
            raw.sendall(UPLOAD + body)
    monkeypatch.setattr(gateway, "IDLE_SECONDS", 0.2)
    monkeypatch.setattr(gateway, "DRAIN_SECONDS", 0.2)
    with socket.create_connection(address, timeout=10) as raw:
        raw.sendall(UPLOAD + b"{")
        assert raw.recv(1000).startswith(b"HTTP/1.1 408")
    assert ask(url, user("Hello?")).choices and idle(service)


def test_the_end_of_the_server_is_the_end_of_its_answers(model, processor) -> None:
    """Answers that do not end in time are stopped, in the model as for the client."""
    with Slowed(model, 0.02):
        began = time.monotonic()
        with in_thread(model, processor, ServingSettings("tiny", max_new_tokens=MAX_NEW_TOKENS)) as (url, service):
            stream = endless(url)
        assert idle(service) and time.monotonic() - began < 0.02 * MAX_NEW_TOKENS / 2
        stream.close()


# ---- several at once -----------------------------------------------------------------------------------------------


def test_a_chat_comes_in_between_the_windows_of_a_transcription(served) -> None:
    url, service = served
    ended: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(lambda: ended.append(f"transcription {transcribe(url, wav(noise(8)))}"))
        wait_for(lambda: not idle(service))
        ask(url, user("Hello?"))
        ended.append("chat")
        done.result()
    assert ended[0] == "chat" and len(ended) == 2


def test_transcriptions_at_once_share_batches_and_get_their_own_texts(model, processor, steps) -> None:
    """Uploads of like length, and one that is longer; one client leaves while it waits."""
    files = [
        wav(noise(seconds, seed)) for seed, seconds in enumerate([*(1 + number / 20 for number in range(7)), 5.0])
    ]
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
        wait_for(lambda: service.turns.waiting == 1 + len(files))
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
            waiting = []
            for number, items in enumerate(((1, 2), (3,), (4,), (5, 6), (7, 8)), start=2):
                waiting.append(pool.submit(share, *items))
                wait_for(lambda number=number: turns.waiting == number)
        with pytest.raises(ValueError, match="three"):
            waiting.pop(1).result()
        assert [each.result() for each in waiting] == [[10, 20], [40], [50, 60], [70, 80]]
    assert batches[:2] == [[1, 2, 3, 4], [1, 2]] and turns.waiting == 0
    assert sorted(batches[2:]) == [[3], [4], [5, 6, 7, 8]]


def test_more_than_may_be_under_way_are_sent_away(served) -> None:
    url, service = served
    stream = endless(url)
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(ask, url, user(f"Hello {n}?")) for n in range(3)]
        wait_for(lambda: service.turns.waiting == 4)
        with pytest.raises(openai.InternalServerError) as caught:
            ask(url, user("Hello?"))
        assert caught.value.status_code == 503 and caught.value.code == "overloaded"
        assert caught.value.response.headers["retry-after"]
        assert httpx.get(f"{url}/health").status_code == 200
        stream.close()
        assert all(each.result().choices for each in waiting)


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


def test_as_many_conversations_are_kept_as_is_said(served) -> None:
    url, service = served
    begun = [[user(f"Hello {n}?")] for n in range(3)]
    for messages in begun:
        messages.append(ask(url, *messages).choices[0].message.model_dump())
    assert len(service.sessions) == 2
    newest_first = [ask(url, *messages, user("Why?")) for messages in reversed(begun)]
    reused = [response.usage.prompt_tokens_details.cached_tokens for response in newest_first]
    assert reused[0] > 0 and reused[1] > 0 and reused[2] == 0


def test_an_answer_cut_by_a_stop_string_is_read_anew(served) -> None:
    url, _ = served
    plain = ask(url, user("Hello?"), max_tokens=9).choices[0].message.content
    cut = ask(url, user("Hello?"), max_tokens=9, stop=plain[3]).choices[0].message
    assert cut.content == plain[: plain.index(plain[3])]
    response = ask(url, user("Hello?"), cut, user("Why?"))
    assert response.usage.prompt_tokens_details.cached_tokens == 0


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
    with failing(model.model.language_model, RuntimeError("secret of the machine")):
        for options in ({}, {"stream": True}):
            with pytest.raises(openai.InternalServerError) as caught:
                ask(url, user("Hello?"), **options)
            assert "secret" not in caught.value.message and caught.value.code == "internal_error"
    with (
        failing(model.model.audio_tower, torch.OutOfMemoryError("no 9 GiB")),
        pytest.raises(openai.InternalServerError) as caught,
    ):
        ask(url, user(audio(wav(prompts(1)[0])), text("What?")))
    assert caught.value.code == "out_of_memory"
    with (
        failing(model.model.language_model, RuntimeError("late"), after=6),
        pytest.raises(openai.APIError, match="server failed"),
    ):
        list(ask(url, user("Hello?"), max_tokens=50, stream=True))
    wait_for(lambda: idle(service))
    assert "secret of the machine" in caplog.text
    assert ask(url, user("Hello?")).choices and idle(service)


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
        stops = StopStrings(strings)
        given = "".join(stops.feed(whole[at : at + size]) for at in range(0, len(whole), size)) + stops.rest()
        assert given == expected and stops.is_hit == (expected != whole)


# ---- options -------------------------------------------------------------------------------------------------------


def test_options_that_make_no_sense_are_named(tmp_path) -> None:
    for name, value in (
        ("port", 70_000),
        ("max_new_tokens", 0),
        ("max_audio_seconds", -1),
        ("kept_conversations", -1),
        ("api_key", ""),
        ("api_key", "schlüssel"),
    ):
        with pytest.raises(ValueError, match=f"--{name}"):
            ServeArguments(**{name: value})
    # A model is not called by where it lies.
    assert ServeArguments().name(str(tmp_path / ".")) == tmp_path.name
    assert ServeArguments().name("you/your-model") == "you/your-model"
    assert ServeArguments(served_name="ears").name(str(tmp_path)) == "ears"


def test_what_hinders_it_is_said_before_a_model_is_loaded(checkpoint, tmp_path, monkeypatch, capsys) -> None:
    def ends(*arguments: str) -> str:
        with pytest.raises(SystemExit):
            main(["--model", str(checkpoint), *arguments])
        return capsys.readouterr().err

    monkeypatch.setattr(serve.ServeArguments, "load_model", None)
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = str(taken.getsockname()[1])
        said = ends("--port", port)
    assert port in said and "--port" in said
    assert "--host" in ends("--host", "192.0.2.1") and "--host" in ends("--host", "no.such.host.invalid")
    assert "--window_seconds" in ends("--window_seconds", "31")
    assert "--device" in ends("--device", "abacus")
    assert "nothing" in ends("--model", str(tmp_path / "nothing"))
    monkeypatch.setattr(serve, "LIBRARIES", ("starlette", "no_such_library"))
    assert 'pip install "audiollm[serving]"' in ends()


def test_what_is_asked_for_is_what_runs(checkpoint, monkeypatch) -> None:
    """All but the server's own loop, which is uvicorn's."""
    ran = []
    monkeypatch.setattr(
        uvicorn.Server, "run", lambda server, sockets: ran.append((server.config, sockets[0].getsockname()))
    )
    with bind("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    main(["--model", str(checkpoint), "--port", str(port), "--dtype", "bfloat16", "--log_level", "error"])
    main(["--model", str(checkpoint), "--port", "0", "--host", "localhost", "--merge_adapters"])
    (config, address), (other, _) = ran
    assert address == ("127.0.0.1", port) and (config.log_level, other.log_level) == ("error", "info")
    one, merged = config.app.state.service, other.app.state.service
    assert one.model.dtype == torch.bfloat16 and merged.model.dtype == torch.float32
    assert one.settings.is_local and one.settings.name == checkpoint.name
    assert one.model.config.lora_adapters and not merged.model.config.lora_adapters


def test_web_pages_that_are_named_get_in(model, processor) -> None:
    settings = ServingSettings("tiny", allow_origins=("https://a.example",), api_key="k")
    with in_thread(model, processor, settings) as (url, _):
        wanted = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
        wanted["Access-Control-Request-Headers"] = "authorization"
        before = httpx.options(f"{url}/v1/chat/completions", headers=wanted)
        assert before.status_code == 200 and before.headers["access-control-allow-origin"] == "https://a.example"
        headers = {"Origin": "https://a.example", "Authorization": "Bearer k"}
        assert httpx.get(f"{url}/v1/models", headers=headers).headers["access-control-allow-origin"]
        other = {**headers, "Origin": "https://b.example"}
        assert httpx.get(f"{url}/v1/models", headers=other).status_code == 403

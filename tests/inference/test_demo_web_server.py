"""`audiollm demo-web` over HTTP, by the calls that its controls make: visitors at once, uploads, what is left behind."""

import copy
import os
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from audiollm.inference.demo_web import DemoWebArguments, served
from audiollm.inference.loaded import AudioLlm
from audiollm.inference.options import is_loopback
from audiollm.inference.session import Session
from audiollm.inference.web.own_files import MAX_CALL_BYTES
from web_server import Served, Slowed, bad_uploads, serve, wait_for, write_noise

pytest.importorskip("gradio", reason='the page needs Gradio: pip install "audiollm[web]"')
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

TOKENS = 12
MANY_TOKENS, SECONDS_PER_TOKEN = 300, 0.02


@pytest.fixture(scope="module")
def page(endless_pair) -> Iterator[Served]:
    with serve(*endless_pair) as page:
        yield page
        elsewhere = [address for address in page.connected_to if not is_loopback(address)]
        assert not elsewhere, "the page connected to other machines"


@pytest.fixture(scope="module")
def visitors(page) -> Iterator[list[Client]]:
    clients = [Client(page.url, verbose=False) for _ in range(2)]
    yield clients
    for client in clients:
        client.close()


@pytest.fixture
def visitor(page) -> Iterator[Client]:
    client = Client(page.url, verbose=False)
    yield client
    client.close()


@pytest.fixture(scope="module")
def uploads(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("clips")
    return [write_noise(folder / f"clip{index}.wav", 0.8 + index, index) for index in range(2)]


def ask(
    client: Client, text: str, *paths: str, adapter: bool = True, tokens: int = TOKENS, temperature: float = 0.0
) -> Any:
    """A job that asks; its outputs are the answer as it grows, a picture and a line about it."""
    message = {"text": text, "files": [handle_file(path) for path in paths]}
    return client.submit(message, adapter, tokens, temperature, api_name="/chat")


def answer(client: Client, *asked: Any, **options: Any) -> str:
    text, *_ = ask(client, *asked, **options).result()
    return text


def uploads_folder() -> Path:
    return Path(os.environ["GRADIO_TEMP_DIR"])


def test_visitors_at_once_get_streams_of_their_own_and_go_on(page, visitors, uploads) -> None:
    with Slowed(page.model, SECONDS_PER_TOKEN):
        jobs = [
            ask(client, "What?", path, adapter=adapter)
            for client, path, adapter in zip(visitors, uploads, (True, False))
        ]
        shown = [job.result() for job in jobs]
    session = Session(page.model, page.processor, max_new_tokens=TOKENS)
    assert shown[0][0] == session.ask("What?", uploads[0]) and len(jobs[0].outputs()) > 4
    assert shown[0][1].startswith("<figure") and "clip0.wav: 0.8 s" in shown[0][1] and "tokens in" in shown[0][2]
    assert shown[1][0] == page.answer("What?", uploads[1], max_new_tokens=TOKENS, adapter_names=[None])
    assert answer(visitors[0], "By whom?") == session.ask("By whom?")


def test_bad_uploads_are_told_and_do_no_harm(page, visitor, tmp_path) -> None:
    for path, reason in bad_uploads(tmp_path / "sent"):
        said, text, files = visitor.predict(handle_file(path), api_name="/transcribe")
        assert 'role="alert"' in said and reason in said and not text and not files
    (tmp_path / "page.html").write_text("<script>alert(1)</script>")
    with pytest.raises(AppError, match="Invalid file type"):
        ask(visitor, "What?", str(tmp_path / "page.html")).result()
    assert "Write a question" in ask(visitor, "").result()[0]["content"]
    with pytest.raises(AppError, match="is greater than maximum value 400"):
        ask(visitor, "Hello?", tokens=9999).result()
    assert answer(visitor, "Hello?") == page.answer("Hello?", max_new_tokens=TOKENS)


def test_a_file_that_is_too_large_is_not_taken(page) -> None:
    upload = f"{page.url}gradio_api/upload"
    answer = httpx.post(upload, files={"files": ("big.wav", bytes(1_100_000))})
    assert answer.status_code == 413 and "maximum allowed size" in answer.text
    assert httpx.post(upload, files={"files": ("small.wav", bytes(900_000))}).status_code == 200


def test_files_of_the_server_cannot_be_had(page, tmp_path) -> None:
    secret = write_noise(tmp_path / "secret.wav", 0.5)
    for path in (secret, "/etc/hostname", str(uploads_folder()), f"{uploads_folder()}/../../{secret}"):
        assert httpx.get(f"{page.url}gradio_api/file={path}").status_code == 403
    named = {"path": secret, "meta": {"_type": "gradio.FileData"}}
    for name, data in (("transcribe", [named]), ("chat", [{"text": "What?", "files": [named]}, True, 5, 0])):
        event = httpx.post(f"{page.url}gradio_api/call/{name}", json={"data": data}).json()["event_id"]
        said = httpx.get(f"{page.url}gradio_api/call/{name}/{event}").text
        assert "event: error" in said and "figure" not in said


def test_nothing_is_fetched_for_a_visitor(page, visitor, uploads) -> None:
    """Of addresses Gradio would fetch as much as there is."""
    address = "https://audio.example/large.wav"
    for method in ("GET", "HEAD"):
        for path in (address, address.replace(":", "%3A"), address.replace("https", "HTTP")):
            response = httpx.request(method, f"{page.url}gradio_api/file={path}")
            assert response.status_code == 403 and (method == "HEAD" or "fetches nothing" in response.text)
    named = {"path": address, "meta": {"_type": "gradio.FileData"}}
    for call in ("call/chat", "call/transcribe", "run/chat", "api/chat", "queue/join"):
        body = {"data": [named], "fn_index": 0, "session_hash": "somebody"}
        for shown in (body, {**body, "data": [{"deeper": [named]}]}):
            response = httpx.post(f"{page.url}gradio_api/{call}", json=shown)
            assert response.status_code == 403 and "fetches nothing" in response.text
    call = f"{page.url}gradio_api/call/chat"
    assert httpx.post(call, json={"data": ["x" * MAX_CALL_BYTES]}).status_code == 413
    assert httpx.post(call, content=b"[" * 200_000).status_code == 400
    assert answer(visitor, f"Is {address} a path?", uploads[0])  # an address is nothing bad to ask about


def test_who_leaves_stops_the_answer_and_leaves_nothing(page, visitor, tmp_path) -> None:
    path = write_noise(tmp_path / "mine.wav", 0.7, 99)
    client = Client(page.url, verbose=False)
    with Slowed(page.model, SECONDS_PER_TOKEN) as steps:
        job = ask(client, "What?", path, tokens=MANY_TOKENS)
        wait_for(lambda: len(job.outputs()) > 2)
        before = steps.count
        (mine,) = uploads_folder().rglob("mine.wav")
        assert httpx.get(f"{page.url}gradio_api/file={mine}").status_code == 200  # for the player
        # A page keeps such a connection open for as long as it is there.
        with httpx.stream("GET", f"{page.url}gradio_api/heartbeat/{client.session_hash}") as response:
            next(response.iter_lines())
        wait_for(lambda: not page.is_busy)
        assert steps.count - before < MANY_TOKENS / 2
    wait_for(lambda: not mine.exists())
    assert httpx.get(f"{page.url}gradio_api/file={mine}").status_code == 403
    assert answer(visitor, "Hello?")


def test_transcribing_ends_with_text_and_files(page, visitor, tmp_path) -> None:
    path = write_noise(tmp_path / "meeting.wav", 6)
    job = visitor.submit(handle_file(path), api_name="/transcribe")
    done, text, files = job.result()
    expected = AudioLlm(page.model, page.processor).transcribe(path)
    assert text == expected.text != "" and "6.0 s transcribed" in done
    assert any("<progress" in output[0] for output in job.outputs())
    assert all(f'download="meeting.{ending}"' in files for ending in ("txt", "srt", "vtt", "json"))
    assert not [*uploads_folder().rglob("meeting.wav")]


def test_password_examples_system_and_no_adapter(endless_pair, uploads) -> None:
    model, processor = endless_pair
    model = copy.deepcopy(model).merge_adapters()
    with serve(model, processor, auth="guest:secret", examples=[uploads[0]], system="Be brief.") as page:
        assert httpx.get(f"{page.url}config").status_code == 401
        wrong = httpx.post(f"{page.url}login", data={"username": "guest", "password": "wrong"})
        assert wrong.status_code == 400 and not wrong.cookies
        client = Client(page.url, auth=("guest", "secret"), verbose=False)
        properties = [each["props"] for each in client.config["components"]]
        assert any("clip0.wav" in str(each.get("examples")) for each in properties)
        (adapter,) = [each for each in properties if each.get("label") == "Adapter"]
        assert not adapter["interactive"] and "no adapter" in adapter["info"]
        expected = Session(model, processor, system="Be brief.").ask("Hello?", max_new_tokens=TOKENS)
        assert answer(client, "Hello?", adapter=False) == expected
        client.close()
        folder = uploads_folder()
        assert folder.stat().st_mode & 0o077 == 0  # nobody else's to read
    assert not folder.exists()


def test_what_hinders_the_page_is_said(tmp_path, endless_pair, monkeypatch) -> None:
    pair = endless_pair
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=str(port)), served(*pair, DemoWebArguments(port=port)):
            pass
    (tmp_path / "bad.wav").write_bytes(b"words")
    examples = [str(tmp_path / "bad.wav")]
    with pytest.raises(ValueError, match=re.escape("bad.wav")), served(*pair, DemoWebArguments(examples=examples)):
        pass
    monkeypatch.setitem(sys.modules, "gradio", None)
    needed = re.escape('pip install "audiollm[web]"')
    with pytest.raises(ImportError, match=needed), served(*pair, DemoWebArguments()):
        pass

"""The page of `audiollm demo-web`, by the calls that its controls make: visitors at once, refusals, files, options."""

import copy
import os
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from audiollm.inference import demo_web
from audiollm.inference.demo_web import DemoWebArguments, served
from audiollm.inference.loaded import AudioLlm
from audiollm.inference.options import is_loopback
from audiollm.inference.session import Session, model_lock
from audiollm.inference.web.own_files import MAX_CALL_BYTES
from audiollm.processing import load_waveform
from web_server import Slowed, serve, wait_for, write_noise

pytest.importorskip("gradio", reason='the page needs Gradio: pip install "audiollm[web]"')
import gradio
from audiollm.inference.web.page import Page
from audiollm.inference.web.sound import log_mel, picture
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

TOKENS, MANY_TOKENS, SECONDS_PER_TOKEN = 12, 300, 0.02


@pytest.fixture(scope="module")
def url(endless_pair) -> Iterator[str]:
    """The page, whose process connects to no other machine."""
    connected_to: list[str] = []

    def note(event: str, values: tuple) -> None:
        if event == "socket.connect" and isinstance(values[1], tuple):
            connected_to.append(str(values[1][0]))

    sys.addaudithook(note)  # it stays
    with serve(*endless_pair, max_new_tokens=MANY_TOKENS, max_audio_seconds=20.0, max_upload_mb=1.0) as url:
        yield url
        assert all(map(is_loopback, connected_to))


@pytest.fixture(scope="module")
def clients(url) -> Iterator[list[Client]]:
    clients = [Client(url, verbose=False) for _ in range(2)]
    yield clients
    for client in clients:
        client.close()


@pytest.fixture
def visitors(clients) -> list[Client]:
    """Two visitors who have not asked yet."""
    for client in clients:
        client.reset_session()
    return clients


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("clips")
    return [write_noise(folder / f"clip{index}.wav", 0.8 + index, index) for index in range(2)]


def ask(client: Client, text: str, *paths: str, adapter: bool = True, tokens: int = TOKENS, heat: float = 0.0) -> Any:
    """Return a job that asks; its outputs are the answer as it grows, pictures and a line about it."""
    message = {"text": text, "files": [handle_file(path) for path in paths]}
    return client.submit(message, adapter, tokens, heat, api_name="/chat")


def answer(client: Client, *asked: Any, **options: Any) -> str:
    return ask(client, *asked, **options).result()[0]


def uploads(pattern: str) -> list[Path]:
    return [*Path(os.environ["GRADIO_TEMP_DIR"]).rglob(pattern)]


# ---- answers -------------------------------------------------------------------------------------------------------


def test_visitors_at_once_get_streams_of_their_own_and_go_on(visitors, endless_pair, clips) -> None:
    session = Session(*endless_pair, max_new_tokens=TOKENS)
    with Slowed(session.model, SECONDS_PER_TOKEN):
        jobs = [
            ask(client, "What?", path, adapter=adapter)
            for client, path, adapter in zip(visitors, clips, (True, False))
        ]
        (said, pictures, note), bare = (job.result() for job in jobs)
    assert said == session.ask("What?", clips[0]) and len(jobs[0].outputs()) > 4
    assert pictures.startswith("<figure") and "clip0.wav: 0.8 s, 10 audio tokens." in pictures
    assert note.startswith(f"Cut at {TOKENS} tokens.") and bare[2].endswith("Adapter off.")
    assert bare[0] == Session(*endless_pair).ask("What?", clips[1], max_new_tokens=TOKENS, adapter_names=[None])
    assert answer(visitors[0], "By whom?") == session.ask("By whom?")
    assert len(answer(visitors[0], "Why?", tokens=3)) <= 3
    visitors[1].reset_session()
    assert len({answer(visitors[1], "What?", heat=2.0) for _ in range(3)}) > 1


def test_questions_that_are_stopped_refused_and_asked_again(endless_pair, clips) -> None:
    """In the forms in which Gradio gives conversation and files."""
    page, session = Page(*endless_pair, DemoWebArguments(), str(Path(clips[0]).parent)), Session(*endless_pair)
    chatbot = next(block for block in page.blocks.blocks.values() if isinstance(block, gradio.Chatbot))
    request: Any = SimpleNamespace(session_hash="one")
    history: list[dict[str, Any]] = []

    def asked(text: str, *paths: str) -> Iterator[Any]:
        files = [{"path": path} for path in paths]
        known: Any = chatbot.preprocess(chatbot.postprocess(history))  # type: ignore[arg-type]
        history.append({"role": "user", "content": [*files, *([text] if text else [])]})
        yield from page.answer({"text": text, "files": files}, known, True, TOKENS, 0, request)

    for text, *paths in (("What?", clips[0]), ("By whom?",), ("", clips[1]), ("Both?", *clips)):
        *_, (said, _, _) = asked(text, *paths)
        assert said == session.ask(text or None, *paths, max_new_tokens=TOKENS)
        history.append({"role": "assistant", "content": said})
    next(asked("Why?"))  # and stopped before its answer
    with pytest.raises(gradio.Error, match="was not uploaded"):
        list(asked("Why?", __file__))
    answers = asked("Who?")
    so_far = [next(answers)[0] for _ in range(4)][-1]
    answers.close()
    assert not model_lock(session.model).locked()
    history.append({"role": "assistant", "content": so_far})
    *_, (said, _, _) = asked("When?")
    messages = [*session.messages, {"role": "user", "content": "Who?"}, {"role": "assistant", "content": so_far}]
    assert said == Session(*endless_pair, messages=messages).ask("When?", max_new_tokens=TOKENS)


def test_what_cannot_be_asked_is_told_and_is_no_part_of_the_conversation(
    visitors, endless_pair, clips, tmp_path
) -> None:
    visitor, _ = visitors
    for text, reason in (
        ("  ", "Write a question"),
        ("<audio>?", "for 0 recordings"),
        ("word " * 300, "the language model can hold 1024"),
    ):
        with pytest.raises(AppError, match=reason):
            answer(visitor, text)
    with pytest.raises(AppError, match="is greater than maximum value"):
        answer(visitor, "Hello?", tokens=9999)
    for name, content, reason in (
        ("notes.wav", b"These are no samples, but words." * 9, "notes.wav: corrupt, or not audio"),
        ("nothing.wav", b"", "nothing.wav: the file is empty"),
        ("long.flac", None, "long.flac is 21.0 s long, and 20.0 s are the most that this page takes"),
    ):
        path = Path(write_noise(tmp_path / name, 21))
        path.write_bytes(path.read_bytes() if content is None else content)
        with pytest.raises(AppError, match=f"^{reason}"):
            answer(visitor, "What?", str(path))
        with pytest.raises(AppError, match=f"^{reason}"):
            visitor.predict(handle_file(path), api_name="/transcribe")
    page = tmp_path / "page.html"
    page.write_text("<script>alert(1)</script>")
    with pytest.raises(AppError, match="Invalid file type"):
        answer(visitor, "What?", str(page))
    assert answer(visitor, "What?", clips[1]) == Session(*endless_pair).ask("What?", clips[1], max_new_tokens=TOKENS)


def test_transcribing_ends_with_text_and_files_or_is_stopped(visitors, endless_pair, tmp_path) -> None:
    visitor, _ = visitors
    path = write_noise(tmp_path / "meeting.wav", 6)
    job = visitor.submit(handle_file(path), api_name="/transcribe")
    done, text, files = job.result()
    assert text == AudioLlm(*endless_pair).transcribe(path).text != "" and "6.0 s transcribed" in done
    assert any("of 6.0 s are done" in output[0] for output in job.outputs())
    assert all(f'download="meeting.{ending}"' in files for ending in ("txt", "srt", "vtt", "json"))
    with Slowed(endless_pair[0], SECONDS_PER_TOKEN) as steps:
        job = visitor.submit(handle_file(path), api_name="/transcribe")
        wait_for(lambda: steps.count > 3)
        job.cancel()
        wait_for(lambda: not uploads("meeting.wav"))
    with pytest.raises(AppError, match="Choose a recording"):
        visitor.predict(None, api_name="/transcribe")


# ---- recordings and files ------------------------------------------------------------------------------------------


def test_who_leaves_stops_the_answer_and_leaves_nothing(visitors, url, endless_pair, tmp_path) -> None:
    def leave(client: Client) -> None:
        """Close the connection that a page keeps open for as long as it is there."""
        with httpx.stream("GET", f"{url}gradio_api/heartbeat/{client.session_hash}") as response:
            next(response.iter_lines())

    first, second = visitors
    path = write_noise(tmp_path / "mine.wav", 0.7, 99)
    assert answer(first, "What?", path)
    with Slowed(endless_pair[0], SECONDS_PER_TOKEN) as steps:
        job = ask(second, "What?", path, tokens=MANY_TOKENS)
        wait_for(lambda: len(job.outputs()) > 2)
        (mine,) = uploads("mine.wav")
        assert httpx.get(f"{url}gradio_api/file={mine}").status_code == 200  # for the player
        job.cancel()
        leave(second)
        wait_for(lambda: not model_lock(endless_pair[0]).locked())
        assert steps.count < MANY_TOKENS / 2
    assert mine.exists()  # somebody else has asked about the same
    leave(first)
    wait_for(lambda: not mine.exists())
    assert httpx.get(f"{url}gradio_api/file={mine}").status_code == 403


def test_files_of_the_server_and_of_other_addresses_cannot_be_had(visitors, url, clips, tmp_path) -> None:
    api = f"{url}gradio_api"
    secret = write_noise(tmp_path / "secret.wav", 0.5)
    for path in (secret, "/etc/hostname", os.environ["GRADIO_TEMP_DIR"]):
        assert httpx.get(f"{api}/file={path}").status_code == 403
    named = {"path": secret, "meta": {"_type": "gradio.FileData"}}
    for name, data in (("transcribe", [named]), ("chat", [{"text": "What?", "files": [named]}, True, 5, 0])):
        event = httpx.post(f"{api}/call/{name}", json={"data": data}).json()["event_id"]
        said = httpx.get(f"{api}/call/{name}/{event}").text
        assert "event: error" in said and "figure" not in said

    address = "https://audio.example/large.wav"  # of which Gradio would fetch as much as there is
    for path in (address, address.replace(":", "%3A"), address.replace("https", "HTTP")):
        response = httpx.get(f"{api}/file={path}")
        assert response.status_code == 403 and "fetches nothing" in response.text
    for call in ("call/chat", "run/chat", "queue/join"):
        response = httpx.post(f"{api}/{call}", json={"data": [{"deeper": [{**named, "path": address}]}]})
        assert response.status_code == 403 and "fetches nothing" in response.text
    assert httpx.post(f"{api}/call/chat", json={"data": ["x" * MAX_CALL_BYTES]}).status_code == 413
    assert httpx.post(f"{api}/call/chat", content=iter([b"{}"])).status_code == 413  # does not say how large it is
    assert httpx.post(f"{api}/call/chat", content=b"[" * 200_000).status_code == 403
    for size, status in ((1_100_000, 413), (900_000, 200)):
        assert httpx.post(f"{api}/upload", files={"files": ("a.wav", bytes(size))}).status_code == status
    assert answer(visitors[0], f"Is {address} a path?", clips[0])  # an address is nothing bad to ask about


def test_the_picture_is_what_the_processor_computes(endless_pair, clips) -> None:
    waveform, processor = load_waveform(clips[1]), endless_pair[1]
    (features,) = processor.extract_features(waveform)
    np.testing.assert_array_equal(log_mel(waveform, processor), features)
    pooled = log_mel(waveform, processor, max_columns=40)
    assert pooled.shape[1] <= 40 and pooled.max() == features.max()
    long = np.tile(waveform, 20)
    assert log_mel(long, processor, max_columns=10_000).shape[1] == len(long) // 160
    assert picture(waveform[:1], processor).startswith('<figure><img alt="Waveform')


# ---- options -------------------------------------------------------------------------------------------------------


def test_password_examples_system_and_no_adapter(endless_pair, clips) -> None:
    model, processor = copy.deepcopy(endless_pair[0]).merge_adapters(), endless_pair[1]
    with serve(model, processor, auth="guest:secret", examples=[clips[0]], system="Be brief.") as url:
        assert httpx.get(f"{url}config").status_code == 401
        wrong = httpx.post(f"{url}login", data={"username": "guest", "password": "wrong"})
        assert wrong.status_code == 400 and not wrong.cookies
        client = Client(url, auth=("guest", "secret"), verbose=False)
        properties = [each["props"] for each in client.config["components"]]
        assert any("clip0.wav" in str(each.get("examples")) for each in properties)
        (adapter,) = [each for each in properties if each.get("label") == "Adapter"]
        assert not adapter["interactive"] and "no adapter" in adapter["info"]
        expected = Session(model, processor, system="Be brief.").ask("Hello?", max_new_tokens=TOKENS)
        assert answer(client, "Hello?", adapter=False) == expected
        client.close()
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        assert folder.stat().st_mode & 0o077 == 0  # nobody else's to read
    assert not folder.exists()


def test_what_hinders_the_page_is_said(tmp_path, endless_pair, monkeypatch) -> None:
    def hindered(kind: type[Exception], said: str, **options: Any) -> None:
        with pytest.raises(kind, match=re.escape(said)), served(*endless_pair, DemoWebArguments(**options)):
            pass

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        hindered(OSError, str(port), port=port)
    (tmp_path / "bad.wav").write_bytes(b"words")
    hindered(ValueError, "bad.wav", examples=[str(tmp_path / "bad.wav")])
    hindered(ValueError, "--port is 0", port=0)
    hindered(ValueError, "USER:PASSWORD", auth="guest")
    hindered(ValueError, "--max_audio_seconds is -1", max_audio_seconds=-1.0)
    monkeypatch.setitem(sys.modules, "gradio", None)
    hindered(ImportError, 'pip install "audiollm[web]"')


def test_by_default_nobody_else_gets_in() -> None:
    for options, is_open in (
        ({}, False),
        ({"host": "localhost"}, False),
        ({"host": "0.0.0.0"}, True),
        ({"share": True}, True),
        ({"host": "0.0.0.0", "auth": "a:b"}, False),
    ):
        assert DemoWebArguments(**options).is_open == is_open


def test_the_command_loads_what_it_is_told_and_says_what_hinders_it(checkpoint, monkeypatch, capsys) -> None:
    loaded: list[Any] = []

    def no_page(model: Any, *_: Any) -> None:
        loaded.append(model)
        raise OSError("no page here")

    monkeypatch.setattr(demo_web, "served", no_page)
    for option, said in (("--merge_adapters", "no page here"), ("--device=no_such", "no_such cannot be used")):
        with pytest.raises(SystemExit):
            demo_web.main(["--model", str(checkpoint), option])
        assert said in capsys.readouterr().err
    assert [bool(model.config.lora_adapters) for model in loaded] == [False]

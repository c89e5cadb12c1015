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
from audiollm.inference.session import Session
from audiollm.inference.web.own_files import MAX_CALL_BYTES
from audiollm.processing import load_waveform
from web_server import MAX_AUDIO_SECONDS, Served, Slowed, bad_uploads, serve, wait_for, write_noise

pytest.importorskip("gradio", reason='the page needs Gradio: pip install "audiollm[web]"')
import gradio
from audiollm.inference.web.page import REFUSED, Page, Uploads, Visitor
from audiollm.inference.web.sound import log_mel, picture
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


def refusal(client: Client, *asked: Any, **options: Any) -> str:
    """Ask, and return the reason why there is no answer."""
    said, *_ = ask(client, *asked, **options).result()
    assert said["metadata"]["title"] == REFUSED
    return said["content"]


def leave(page: Served, client: Client) -> None:
    """Close the connection that a page keeps open for as long as it is there."""
    with httpx.stream("GET", f"{page.url}gradio_api/heartbeat/{client.session_hash}") as response:
        next(response.iter_lines())


def uploads_folder() -> Path:
    return Path(os.environ["GRADIO_TEMP_DIR"])


# ---- answers -------------------------------------------------------------------------------------------------------


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


def test_a_question_that_is_asked_again_and_one_that_is_stopped_before_its_answer(endless_pair, uploads) -> None:
    """In the form in which Gradio gives conversation and files when somebody asks again."""
    options = DemoWebArguments(max_new_tokens=TOKENS)
    page, session = Page(*endless_pair, options, str(Path(uploads[0]).parent)), Session(*endless_pair)
    chatbot = next(block for block in page.blocks.blocks.values() if isinstance(block, gradio.Chatbot))
    visitor, request = Visitor(Session(*endless_pair)), SimpleNamespace(session_hash="one")
    history: list[dict[str, Any]] = []

    def asked(text: str, *paths: str, tokens: float = TOKENS, temperature: float = 0) -> Iterator[Any]:
        files = [{"path": path} for path in paths]
        known: Any = chatbot.preprocess(chatbot.postprocess(history))  # type: ignore[arg-type]
        history.append({"role": "user", "content": [*files, *([text] if text else [])]})
        here: Any = request
        yield from page.answer({"text": text, "files": files}, known, True, tokens, temperature, visitor, here)

    for text, *paths in (("What?", uploads[0]), ("By whom?",), ("", uploads[1]), ("Both?", *uploads)):
        *_, (said, _, note) = asked(text, *paths)
        assert said == session.ask(text or None, *paths, max_new_tokens=TOKENS)
        history.append({"role": "assistant", "content": said})
    assert "were in the cache" in note and f"Cut at {TOKENS} tokens." in note
    answers = asked("Why?")
    next(answers)
    visitor.stop.set()
    assert [said for said, *_ in answers] == [""]
    history.append({"role": "assistant", "content": ""})
    for tokens, temperature in ((0, 0), (5, float("nan"))):
        *_, (refused, _, _) = asked("Why?", tokens=tokens, temperature=temperature)
        assert "This page takes" in refused["content"] and refused["metadata"]["title"] == REFUSED
        history.append(refused)
    *_, (said, _, _) = asked("Who?")
    assert said == session.ask("Who?", max_new_tokens=TOKENS)


def test_settings_matter_and_what_cannot_be_asked_is_no_part_of_the_conversation(
    page, visitor, uploads, tmp_path
) -> None:
    path = str(tmp_path / "clip.mp3")  # a wrong ending does not matter
    Path(path).write_bytes(Path(uploads[0]).read_bytes())
    said, drawn, note = ask(visitor, "What?", path, tokens=3, adapter=False).result()
    assert len(said) <= 3 and "clip.mp3: 0.8 s, 10 audio tokens." in drawn and note.endswith("Adapter off.")
    client = Client(page.url, verbose=False)
    assert len({answer(client, "What?", path, temperature=2.0) for _ in range(3)}) > 1
    client.reset_session()
    with pytest.raises(AppError, match="is greater than maximum value 400"):
        ask(client, "Hello?", tokens=9999).result()
    assert "Write a question" in refusal(client, "  ")
    assert "1 <audio> for 0 recordings" in refusal(client, "<audio>?")
    assert "the language model can hold 1024" in refusal(client, "word " * 300)
    assert answer(client, "What?", uploads[1]) == page.answer("What?", uploads[1], max_new_tokens=TOKENS)
    client.close()


def test_stop_ends_an_answer_and_the_conversation_goes_on_from_there(page, visitor, uploads) -> None:
    with Slowed(page.model, SECONDS_PER_TOKEN) as steps:
        job = ask(visitor, "What?", uploads[0], tokens=MANY_TOKENS)
        wait_for(lambda: len(job.outputs()) > 4)
        visitor.predict(api_name="/stop")
        so_far, _, note = job.result()
        assert note.startswith("Stopped.") and so_far and steps.count < MANY_TOKENS / 2
    content = [{"type": "audio", "path": uploads[0]}, {"type": "text", "text": "\nWhat?"}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": so_far}]
    session = Session(page.model, page.processor, messages=messages, max_new_tokens=TOKENS)
    assert answer(visitor, "Why?") == session.ask("Why?")


# ---- recordings and files ------------------------------------------------------------------------------------------


def test_bad_uploads_are_told_and_do_no_harm(page, visitor, tmp_path) -> None:
    for path, reason in bad_uploads(tmp_path / "sent"):
        said = refusal(visitor, "What?", path)
        assert reason in said and str(uploads_folder()) not in said
        assert [*uploads_folder().rglob(Path(path).name)]  # the conversation plays it
        said, text, files = visitor.predict(handle_file(path), api_name="/transcribe")
        assert 'role="alert"' in said and reason in said and not text and not files
    (tmp_path / "page.html").write_text("<script>alert(1)</script>")
    with pytest.raises(AppError, match="Invalid file type"):
        ask(visitor, "What?", str(tmp_path / "page.html")).result()
    assert answer(visitor, "Hello?") == page.answer("Hello?", max_new_tokens=TOKENS)


def test_a_container_that_does_not_say_its_length_is_read_no_further_than_the_bound(visitor, tmp_path) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / "long.aac"
    with av.open(str(path), "w", format="adts") as container:
        stream = container.add_stream("aac", rate=16_000)
        stream.layout = "mono"
        samples = np.zeros((1, int(16_000 * (MAX_AUDIO_SECONDS + 5))), dtype=np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate = 16_000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    assert "long.aac is longer than 20.0 s, the most that this page takes" in refusal(visitor, "What?", str(path))


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


def test_who_leaves_stops_the_answer_and_leaves_nothing(page, visitor, uploads, tmp_path) -> None:
    path = write_noise(tmp_path / "mine.wav", 0.7, 99)
    assert answer(visitor, "What?", path)
    client = Client(page.url, verbose=False)
    with Slowed(page.model, SECONDS_PER_TOKEN) as steps:
        job = ask(client, "What?", path, tokens=MANY_TOKENS)
        wait_for(lambda: len(job.outputs()) > 2)
        before = steps.count
        (mine,) = uploads_folder().rglob("mine.wav")
        assert httpx.get(f"{page.url}gradio_api/file={mine}").status_code == 200  # for the player
        leave(page, client)
        wait_for(lambda: not page.is_busy)
        assert steps.count - before < MANY_TOKENS / 2
    assert mine.exists()  # somebody else has asked about the same
    leave(page, visitor)
    wait_for(lambda: not mine.exists())
    assert httpx.get(f"{page.url}gradio_api/file={mine}").status_code == 403
    held = Uploads()
    own = Path(write_noise(tmp_path / "own.wav", 0.5))
    for deed in (held.hold, held.hold, held.release):  # an example of the page
        deed([str(own)])
    assert own.exists()


def test_the_picture_is_what_the_processor_computes(page, uploads) -> None:
    waveform = load_waveform(uploads[1])
    (features,) = page.processor.extract_features(waveform)
    np.testing.assert_array_equal(log_mel(waveform, page.processor), features)
    pooled = log_mel(waveform, page.processor, max_columns=40)
    assert pooled.shape[1] <= 40 and pooled.max() == features.max()
    long = np.tile(waveform, 20)
    assert log_mel(long, page.processor, max_columns=10_000).shape[1] == len(long) // 160
    assert picture(waveform[:1], page.processor).startswith('<figure class="sound"><img alt="Waveform')


def test_transcribing_ends_with_text_and_files_or_is_stopped(page, visitor, tmp_path) -> None:
    path = write_noise(tmp_path / "meeting.wav", 6)
    job = visitor.submit(handle_file(path), api_name="/transcribe")
    done, text, files = job.result()
    expected = AudioLlm(page.model, page.processor).transcribe(path)
    assert text == expected.text != "" and "6.0 s transcribed" in done
    assert any("<progress" in output[0] for output in job.outputs())
    assert all(f'download="meeting.{ending}"' in files for ending in ("txt", "srt", "vtt", "json"))
    with Slowed(page.model, SECONDS_PER_TOKEN) as steps:
        job = visitor.submit(handle_file(path), api_name="/transcribe")
        wait_for(lambda: steps.count > 3)
        visitor.predict(api_name="/stop_transcribing")
        assert job.result()[0] == "Stopped."
    assert not [*uploads_folder().rglob("meeting.wav")]
    assert "Choose a recording" in visitor.predict(None, api_name="/transcribe")[0]


# ---- options -------------------------------------------------------------------------------------------------------


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


def test_options_that_cannot_be_are_refused_and_by_default_nobody_else_gets_in() -> None:
    for options, reason in (
        ({"port": 0}, "--port is 0"),
        ({"auth": "guest"}, "USER:PASSWORD"),
        ({"max_audio_seconds": -1.0}, "--max_audio_seconds is -1"),
    ):
        with pytest.raises(ValueError, match=re.escape(reason)):
            DemoWebArguments(**options)
    options = DemoWebArguments()
    assert options.host == "127.0.0.1" and not options.share and not options.is_open
    assert DemoWebArguments(host="0.0.0.0").is_open and DemoWebArguments(share=True).is_open
    assert not DemoWebArguments(host="0.0.0.0", auth="a:b").is_open and not DemoWebArguments(host="localhost").is_open


def test_the_command_says_what_hinders_it(checkpoint, monkeypatch, tmp_path, capsys) -> None:
    served: list[Any] = []

    def no_page(model: Any, *_: Any) -> None:
        served.append(model)
        raise OSError("no page here")

    monkeypatch.setattr(demo_web, "served", no_page)
    for options, said in (
        (["--merge_adapters"], "no page here"),
        (["--device", "no_such"], "no_such cannot be used"),
        (["--model", str(tmp_path)], "no config.json"),
        (["--port", "99999"], "--port is 99999"),
    ):
        with pytest.raises(SystemExit):
            demo_web.main(["--model", str(checkpoint), *options])
        assert said in capsys.readouterr().err
    (model,) = served
    assert not model.config.lora_adapters

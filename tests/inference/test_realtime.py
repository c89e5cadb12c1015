"""Live transcripts by websocket: OpenAI's own client, clients that leave, and messages that cannot be used."""

import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import soundfile
import torch
from audiollm import AudioLlmForConditionalGeneration
from audiollm.inference.live import LiveTranscriber
from audiollm.inference.serving.service import ServingSettings
from long_recordings import RATE, in_a_row, prompts
from servers import client_of, in_thread
from tiny_models import hearing_model
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.sync.client import ClientConnection, connect

NAME, KEY = "tiny", "secret"
WAIT_SECONDS = 60
DOCUMENT = Path(__file__).parents[2] / "docs" / "serve.md"
DELTA, COMPLETED = (f"conversation.item.input_audio_transcription.{kind}" for kind in ("delta", "completed"))


@pytest.fixture(scope="module")
def model(tiny_bases, tiny_processor) -> AudioLlmForConditionalGeneration:
    return hearing_model(tiny_bases, tiny_processor)


@pytest.fixture(scope="module")
def server(model, tiny_processor) -> Iterator[str]:
    with in_thread(model, tiny_processor, ServingSettings(NAME, api_key=KEY)) as (url, _):
        yield url


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    """Two phrases with a pause between them, 16 bits."""
    return (in_a_row(prompts(2), [0.3, 1.2, 0.3]) * 32_767).astype("<i2")


def socket_of(server: str, key: str = KEY) -> ClientConnection:
    """Return a connection that has been told of its session."""
    url = server.replace("http", "ws") + "/v1/realtime?intent=transcription"
    socket = connect(url, additional_headers={"Authorization": f"Bearer {key}"})
    assert json.loads(socket.recv(WAIT_SECONDS))["type"] == "session.created"
    return socket


def told(socket: ClientConnection, message: Any) -> dict[str, Any]:
    """Send a message, and return the next event."""
    socket.send(message if isinstance(message, (str, bytes)) else json.dumps(message))
    return json.loads(socket.recv(WAIT_SECONDS))


def appended(samples: np.ndarray, seconds: float = 0.1) -> list[str]:
    """Return messages with sound, so many seconds each."""
    size = int(seconds * RATE)
    blocks = [samples[start : start + size] for start in range(0, len(samples), size)]
    return [
        json.dumps({"type": "input_audio_buffer.append", "audio": base64.b64encode(block.tobytes()).decode()})
        for block in blocks
    ]


def at_own_rate(**transcription: Any) -> dict[str, Any]:
    form = {"type": "audio/pcm", "rate": RATE}
    session = {"type": "transcription", "audio": {"input": {"format": form, "transcription": transcription}}}
    return {"type": "session.update", "session": session}


def heard(socket: ClientConnection, samples: np.ndarray, seconds: float = 0.1) -> tuple[str, list[str]]:
    """Send sound, and return all deltas as one text, and the texts of completed items."""
    for message in appended(samples, seconds):
        socket.send(message)
    for kind in ("commit", "clear"):
        socket.send(json.dumps({"type": f"input_audio_buffer.{kind}"}))
    deltas, items = "", []
    while (event := json.loads(socket.recv(WAIT_SECONDS)))["type"] != "input_audio_buffer.cleared":
        assert event["type"] != "error", event
        if event["type"] == DELTA:
            deltas += f" {event['delta']}"
            assert all(word["start"] <= word["end"] for word in event["words"])
        elif event["type"] == COMPLETED:
            items.append(event["transcript"])
    return deltas, items


def test_a_socket_gives_the_words_of_the_package(server, model, tiny_processor, samples) -> None:
    updates = LiveTranscriber(model, tiny_processor).transcribe([samples.astype(np.float32) / 32_768])
    expected = [word.text for update in updates for word in update.final]
    with socket_of(server) as socket:
        assert told(socket, at_own_rate(model=NAME))["type"] == "session.updated"
        whole = heard(socket, samples, seconds=60.0)
        deltas, items = heard(socket, samples)
    assert expected and whole[0].split() == expected == " ".join(whole[1]).split()
    assert deltas.split() == " ".join(items).split()


def test_openais_client_and_a_name_that_may_be_said(server, samples) -> None:
    client = client_of(server, KEY).with_options(websocket_base_url=f"{server.replace('http', 'ws')}/v1")
    with client.realtime.connect(model=NAME, extra_query={"intent": "transcription"}) as connection:
        connection.session.update(session=at_own_rate(prompt="Zyx")["session"])
        for block in np.array_split(samples, 40):
            connection.input_audio_buffer.append(audio=base64.b64encode(block.tobytes()).decode())
        connection.input_audio_buffer.commit()
        text = ""
        for event in connection:
            if event.type == DELTA:
                text += event.delta
            if event.type == COMPLETED and "Zyx" in text:
                break
    assert "Zyx" in text


def test_a_transcriptions_prompt_names_what_may_be_said(server, samples) -> None:
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format="wav")
    asked = {"model": NAME, "file": ("a.wav", file.getvalue())}
    client = client_of(server, KEY)
    assert "Zyx" in client.audio.transcriptions.create(**asked, prompt="Zyx, Qoph").text
    assert "Zyx" not in client.audio.transcriptions.create(**asked).text
    with pytest.raises(openai.BadRequestError, match="no word"):
        client.audio.transcriptions.create(**asked, prompt="...")


def test_the_documents_snippet_runs(model, tiny_processor, samples, tmp_path, monkeypatch, capsys) -> None:
    (snippet,) = re.findall(r"```python\n([^`]*realtime[^`]*)```", DOCUMENT.read_text(encoding="utf-8"))
    soundfile.write(tmp_path / "recording.wav", samples, RATE)
    monkeypatch.chdir(tmp_path)
    with in_thread(model, tiny_processor, ServingSettings(NAME)) as (url, _):
        exec(compile(snippet.replace("//127.0.0.1:8000", url.removeprefix("http:")), "serve.md", "exec"), {})
    assert f"{COMPLETED} \n" in capsys.readouterr().out


def test_a_client_that_leaves_disturbs_nobody(server, samples) -> None:
    for _ in range(2):
        with socket_of(server) as socket:
            for message in [json.dumps(at_own_rate()), *appended(samples)[:20]]:
                socket.send(message)
    with socket_of(server) as socket:
        told(socket, at_own_rate())
        assert heard(socket, samples)[0]


@pytest.mark.parametrize(
    ("message", "named"),
    [
        (b"\x00\x01\xff", "no JSON object"),
        ("[1]", "no JSON object"),
        ({"type": "response.create"}, "response.create"),
        ({"type": "input_audio_buffer.append", "audio": "?"}, "base64"),
        ({"type": "input_audio_buffer.append", "audio": base64.b64encode(b"123").decode()}, "3 bytes"),
        ({"type": "session.update", "session": 3}, "session"),
        ({"type": "session.update", "session": {"audio": {"input": {"format": {"rate": 1}}}}}, "rate is 1"),
        ({"type": "session.update", "session": {"input_audio_format": "g711_ulaw"}}, "g711_ulaw"),
        (at_own_rate(model="another"), "another"),
        (at_own_rate(prompt=",,"), "no word"),
    ],
)
def test_what_cannot_be_used_is_said_and_the_socket_stays_open(message, named, server) -> None:
    with socket_of(server) as socket:
        event = told(socket, message)
        assert event["type"] == "error" and named in event["error"]["message"]
        assert told(socket, {"type": "input_audio_buffer.clear"})["type"] == "input_audio_buffer.cleared"


def test_a_failure_of_the_model_is_told_and_the_server_goes_on(model, tiny_processor, samples, monkeypatch) -> None:
    with in_thread(model, tiny_processor, ServingSettings(NAME, api_key=KEY)) as (url, _):
        with monkeypatch.context() as patch, socket_of(url) as socket:
            patch.setattr(LiveTranscriber, "feed", lambda *_: torch.zeros(2, 3) @ torch.zeros(2))
            event = told(socket, appended(samples[:4800])[0])
            assert (event["type"], event["error"]["code"]) == ("error", "internal_error")
            with pytest.raises(ConnectionClosedError):
                socket.recv(WAIT_SECONDS)
        socket_of(url).close()


def test_a_prompt_reads_no_file(server, tmp_path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("Secret")
    with socket_of(server) as socket:
        assert "Secret" not in json.dumps(told(socket, at_own_rate(prompt=str(path))))


def test_a_wrong_key_and_too_many_at_once_are_refused(model, tiny_processor) -> None:
    with in_thread(model, tiny_processor, ServingSettings(NAME, api_key=KEY, max_requests=2)) as (url, _):
        with pytest.raises(InvalidStatus, match="401"):
            socket_of(url, "wrong")
        with socket_of(url), socket_of(url), pytest.raises(InvalidStatus, match="503"):
            socket_of(url)


def test_a_model_without_posteriors_says_so(tiny_model, tiny_processor) -> None:
    with (
        in_thread(tiny_model, tiny_processor, ServingSettings(NAME)) as (url, _),
        connect(f"{url.replace('http', 'ws')}/v1/realtime") as socket,
    ):
        event = json.loads(socket.recv(WAIT_SECONDS))
    assert event["type"] == "error" and "projector_readout" in event["error"]["message"]

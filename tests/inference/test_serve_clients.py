"""Requests of the clients that people use, each against `audiollm serve`: which are answered, which are refused."""

import base64
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from audiollm.inference.loaded import AudioLlm
from audiollm.inference.serving.service import ServingSettings
from audiollm.inference.session import Session
from audiollm.inference.transcribing import TranscribingSettings
from long_recordings import RATE, prompts
from servers import audio, client_of, in_thread, text, user, wav

NAME, MAX_NEW_TOKENS = "tiny", 24
LOOK = {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": {"type": "object"}}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"at": "sky"}'}}
TOOL_TURNS = [
    user("Hello?"),
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "blue"},
]
SCHEMA = {"name": "answer", "schema": {"type": "object", "properties": {"answer": {"type": "string"}}}}
SETTINGS = TranscribingSettings(window_seconds=2, max_new_tokens=12, batch_size=2, voice_activity=False)


@pytest.fixture(scope="module")
def url(model, processor) -> Iterator[str]:
    settings = ServingSettings(NAME, max_new_tokens=MAX_NEW_TOKENS, max_requests=16, transcribing=SETTINGS)
    with in_thread(model, processor, settings) as (url, _):
        yield url


@pytest.fixture(scope="module")
def speech() -> bytes:
    return wav(np.concatenate(prompts(2))[: 5 * RATE])


# ---- one way to ask for each client --------------------------------------------------------------------------------

#: Text of an answer, and why it ended; the text alone where a client does not tell.
Answer = tuple[str, str | None]


def by_openai(url: str, messages: list[dict[str, Any]], stream: bool, **options: Any) -> Answer:
    completions = client_of(url).chat.completions
    if not stream:
        choice = completions.create(model=NAME, messages=messages, **options).choices[0]
        return choice.message.content, choice.finish_reason
    chunks = list(completions.create(model=NAME, messages=messages, stream=True, **options))
    return "".join(each.choices[0].delta.content or "" for each in chunks), chunks[-1].choices[0].finish_reason


def by_langchain(url: str, messages: list[dict[str, Any]], stream: bool, **options: Any) -> Answer:
    ChatOpenAI = pytest.importorskip("langchain_openai").ChatOpenAI
    messages_of = importlib.import_module("langchain_core.messages").convert_to_messages
    named = {each: options.pop(each) for each in ("temperature", "max_tokens", "seed", "n") if each in options}
    chat = ChatOpenAI(model=NAME, base_url=f"{url}/v1", api_key="none", max_retries=0, **named)
    tools = options.pop("tools", None)
    chosen = chat.bind_tools(tools, **options) if tools else chat.bind(**options)
    if not stream:
        answer = chosen.invoke(messages_of(messages))
        return answer.content, answer.response_metadata["finish_reason"]
    chunks = list(chosen.stream(messages_of(messages)))
    reasons = [each.response_metadata.get("finish_reason") for each in chunks]
    return "".join(each.content for each in chunks), next(filter(None, reasons))


def by_litellm(url: str, messages: list[dict[str, Any]], stream: bool, **options: Any) -> Answer:
    litellm = pytest.importorskip("litellm")
    asked = {"model": f"openai/{NAME}", "api_base": f"{url}/v1", "api_key": "none", "max_retries": 0}
    answer = litellm.completion(messages=messages, stream=stream, **asked, **options)
    if not stream:
        return answer.choices[0].message.content, answer.choices[0].finish_reason
    chunks = list(answer)
    reasons = [each.choices[0].finish_reason for each in chunks]
    return "".join(each.choices[0].delta.content or "" for each in chunks), next(filter(None, reasons))


CLIENTS: dict[str, Callable[..., Answer]] = {"openai": by_openai, "langchain": by_langchain, "litellm": by_litellm}


@pytest.fixture(autouse=True)
def offline(monkeypatch) -> None:
    """Keep LiteLLM from asking the internet for its table of prices."""
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")


# ---- chat ----------------------------------------------------------------------------------------------------------

HELLO = [user("Hello?")]
TOLD = [*HELLO, {"role": "assistant", "content": 'Call of look: {"at": "sky"}'}, user("Result of look: blue")]
FEW = {"max_tokens": 5}
#: Requests and what comes of them: the messages that the model answers, or the field that is refused.
REQUESTS: dict[str, tuple[list[dict[str, Any]], dict[str, Any], list[dict[str, Any]] | str]] = {
    "text": (HELLO, FEW, HELLO),
    "name": ([{**user("Hello?"), "name": "ann"}], FEW, HELLO),
    "more tokens than there may be": (HELLO, {"max_tokens": 4096}, HELLO),
    "tools and tool_choice none": (HELLO, {"tools": [LOOK], "tool_choice": "none"}, HELLO),
    "tools": (HELLO, {"tools": [LOOK]}, "tools"),
    "tools and tool_choice required": (HELLO, {"tools": [LOOK], "tool_choice": "required"}, "tool_choice"),
    "history with tool calls": (TOOL_TURNS, FEW, TOLD),
    "json_object": (HELLO, {"response_format": {"type": "json_object"}}, "response_format"),
    "json_schema": (HELLO, {"response_format": {"type": "json_schema", "json_schema": SCHEMA}}, "response_format"),
    "two answers": (HELLO, {"n": 2}, "n"),
    "hints": (HELLO, {**FEW, "user": "ann", "parallel_tool_calls": False, "store": True}, HELLO),
    "unknown field": (HELLO, {**FEW, "extra_body": {"best_tokens": 3, "reasoning_effort": "low"}}, HELLO),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("client", CLIENTS)
def test_request_matrix(client, stream, url, model, processor, speech) -> None:
    sent, own = ([user(part, text("What?"))] for part in (audio(speech), {"type": "audio", "audio": speech}))
    for name, (messages, options, expected) in {**REQUESTS, "recording": (sent, FEW, own)}.items():
        if isinstance(expected, str):
            with pytest.raises(Exception, match=f"{expected} is not supported") as caught:
                CLIENTS[client](url, messages, stream, **options)
            assert caught.value.status_code == 400, name
            continue
        bound = min(options.get("max_tokens", MAX_NEW_TOKENS), MAX_NEW_TOKENS)
        right = Session(model, processor, messages=expected).ask(max_new_tokens=bound)
        assert CLIENTS[client](url, messages, stream, **options) == (right, "length"), name


def test_langchain_says_recordings_in_its_own_way(url, model, processor, speech) -> None:
    block = {"type": "audio", "base64": base64.b64encode(speech).decode(), "mime_type": "audio/wav"}
    right = Session(model, processor).ask("<audio>What is said?", speech, max_new_tokens=5)
    answer, _ = by_langchain(url, [user(block, text("What is said?"))], stream=False, max_tokens=5)
    assert answer == right


def test_results_of_tools_are_joined_and_called_by_their_tools(url, model, processor) -> None:
    other = {"id": "call_2", "type": "function", "function": {"name": "hear", "arguments": "{}"}}
    turns = [
        user("Hello?"),
        {"role": "assistant", "content": "I look.", "tool_calls": [CALL, other]},
        {"role": "tool", "tool_call_id": "call_2", "content": [text("a bird")]},
        {"role": "tool", "tool_call_id": "call_1", "content": "blue"},
        {"role": "assistant", "content": "A bird."},
        user("Why?"),
    ]
    plain = [
        turns[0],
        {"role": "assistant", "content": 'I look.\nCall of look: {"at": "sky"}\nCall of hear: {}'},
        user("Result of hear: a bird\nResult of look: blue"),
        *turns[4:],
    ]
    right = Session(model, processor, messages=plain).ask(max_new_tokens=5)
    assert by_openai(url, turns, stream=False, max_tokens=5) == (right, "length")
    hidden = {**CALL, "function": {"name": "look", "arguments": '{"at": "<audio>"}'}}
    body = {"messages": [turns[0], {"role": "assistant", "tool_calls": [hidden]}, user("Why?")]}
    refused = httpx.post(f"{url}/v1/chat/completions", json=body)
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "messages[1]"


# ---- transcriptions ------------------------------------------------------------------------------------------------


def transcribed_by_openai(url: str, file: bytes, **options: Any) -> str:
    return client_of(url).audio.transcriptions.create(model=NAME, file=("a.wav", file), **options).text


def transcribed_by_litellm(url: str, file: bytes, **options: Any) -> str:
    litellm = pytest.importorskip("litellm")
    asked = {"model": f"openai/{NAME}", "api_base": f"{url}/v1", "api_key": "none", "max_retries": 0}
    return litellm.transcription(file=("a.wav", file), **asked, **options).text


TRANSCRIBERS = {"openai": transcribed_by_openai, "litellm": transcribed_by_litellm}


@pytest.fixture(scope="module")
def transcript(model, processor, speech) -> Callable[..., Any]:
    return lambda **changed: AudioLlm(model, processor).transcribe(speech, **{**vars(SETTINGS), **changed})


@pytest.mark.parametrize("client", TRANSCRIBERS)
def test_transcription_matrix(client, url, transcript, speech) -> None:
    expected = transcript().text
    for options in ({}, {"language": "de"}, {"language": "tlh"}, {"temperature": 0.2}, {"prompt": ""}):
        assert TRANSCRIBERS[client](url, speech, **options) == expected != "", options
    if client == "openai":  # unknown fields are ignored
        unknown = {"chunking_strategy": {"type": "server_vad"}, "extra_body": {"beams": 2}}
        assert transcribed_by_openai(url, speech, **unknown) == expected


def test_a_language_is_told_to_a_multilingual_model(url, model, transcript, speech, monkeypatch) -> None:
    monkeypatch.setattr(model.config.audio_config, "vocab_size", 51_865)
    asked = transcript(prompt=f"The speech is in German.\n{SETTINGS.prompt}").text
    for language in ("de-AT", "German"):
        assert transcribed_by_openai(url, speech, language=language) == asked != transcript().text
    verbose = client_of(url).audio.transcriptions.create(
        model=NAME, file=("a.wav", speech), language="de", response_format="verbose_json"
    )
    assert verbose.language == "german" and verbose.text == asked
    response = httpx.post(
        f"{url}/v1/audio/transcriptions", files={"file": ("a.wav", speech)}, data={"language": "tlh"}
    )
    assert response.status_code == 400 and response.json()["error"]["param"] == "language"


def test_a_streamed_transcript_comes_window_by_window(url, transcript, speech) -> None:
    whole = transcript()
    stream = client_of(url).audio.transcriptions.create(model=NAME, file=("a.wav", speech), stream=True)
    *deltas, done = list(stream)
    assert [each.type for each in deltas] == ["transcript.text.delta"] * len(whole.passages) and len(deltas) > 2
    assert done.type == "transcript.text.done" and done.text == whole.text
    assert "".join(each.delta for each in deltas) == whole.text
    assert done.usage.seconds == pytest.approx(whole.seconds)


def test_a_bad_recording_is_refused_before_its_stream(url) -> None:
    data = {"stream": "true"}
    response = httpx.post(f"{url}/v1/audio/transcriptions", files={"file": ("a.wav", b"junk" * 99)}, data=data)
    assert response.status_code == 400 and response.json()["error"]["code"] == "invalid_audio"

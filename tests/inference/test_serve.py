"""Requests of the clients that people use, against `audiollm serve`: the package's answers, and a clear no to the rest."""

import importlib
import io
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from audiollm.inference.answering import answer
from audiollm.inference.loaded import AudioLlm
from audiollm.inference.serving.service import ServingSettings
from audiollm.inference.transcribing import TranscribingSettings
from audiollm.inference.transcripts import Transcript, as_srt, as_vtt
from audiollm.processing import load_waveform
from long_recordings import RATE, in_a_row, noises, prompts
from servers import as_own, audio, client_of, in_thread, text, user, wav

NAME, KEY, MAX_UPLOAD_MB, MAX_NEW_TOKENS = "tiny", "open-sesame", 3, 24
AUTHORISED = {"Authorization": f"Bearer {KEY}"}
TRANSCRIBING = TranscribingSettings(window_seconds=2, max_new_tokens=12, batch_size=2)


@pytest.fixture(scope="module")
def url(model, processor) -> Iterator[str]:
    limits: dict[str, Any] = {
        "max_upload_mb": MAX_UPLOAD_MB,
        "max_audio_seconds": 60,
        "max_new_tokens": MAX_NEW_TOKENS,
    }
    settings = ServingSettings(NAME, KEY, transcribing=TRANSCRIBING, **limits)
    with in_thread(model, processor, settings) as (url, _):
        yield url


@pytest.fixture(scope="module")
def client(url) -> openai.OpenAI:
    return client_of(url, KEY)


@pytest.fixture(scope="module")
def sounds(clips) -> list[np.ndarray]:
    """The shortest real prompts."""
    return [load_waveform(path) for path in clips]


def ask(client: openai.OpenAI, messages: list[Any], **options: Any) -> Any:
    return client.chat.completions.create(**{"model": NAME, "messages": messages, "max_tokens": 12, **options})


def refusal(call: Callable[[], Any]) -> tuple[int, str, str | None]:
    """Return status, message and code of the error that a call ends with, in OpenAI's shape."""
    with pytest.raises(openai.APIStatusError) as caught:
        call()
    body = caught.value.response.json()
    assert body.keys() == {"error"} and body["error"].keys() == {"message", "type", "param", "code"}
    assert body["error"]["type"] == "invalid_request_error"
    return caught.value.status_code, body["error"]["message"], body["error"]["code"]


# ---- one way to ask for each client --------------------------------------------------------------------------------


def by_openai(url: str, messages: list[dict[str, Any]], stream: bool, **options: Any) -> tuple[str, str]:
    """Return text and reason of the end, as the other functions do; a stream says the same of itself as a whole answer."""
    completions = client_of(url, KEY).chat.completions
    whole = completions.create(model=NAME, messages=messages, **options)
    usage, (choice,) = whole.usage, whole.choices
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    if not stream:
        return choice.message.content, choice.finish_reason
    asked = {"stream": True, "stream_options": {"include_usage": True}, **options}
    *chunks, last = completions.create(model=NAME, messages=messages, **asked)
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (usage.prompt_tokens, usage.completion_tokens)
    assert chunks[0].choices[0].delta.role == "assistant" and len({chunk.id for chunk in chunks}) == 1
    *reasons, end = (chunk.choices[0].finish_reason for chunk in chunks)
    assert not any(reasons) and len(reasons) > 2
    return "".join(each.choices[0].delta.content or "" for each in chunks), end


def by_langchain(url: str, messages: list[dict[str, Any]], stream: bool, **options: Any) -> tuple[str, str]:
    ChatOpenAI = pytest.importorskip("langchain_openai").ChatOpenAI
    messages_of = importlib.import_module("langchain_core.messages").convert_to_messages
    named = {each: options.pop(each) for each in ("max_tokens", "n") if each in options}
    chat = ChatOpenAI(model=NAME, base_url=f"{url}/v1", api_key=KEY, max_retries=0, **named)
    tools = options.pop("tools", None)
    chosen = chat.bind_tools(tools, **options) if tools else chat.bind(**options)
    chunks = list(chosen.stream(messages_of(messages))) if stream else [chosen.invoke(messages_of(messages))]
    reasons = [each.response_metadata.get("finish_reason") for each in chunks]
    return "".join(each.content for each in chunks), next(filter(None, reasons))


def by_litellm(url: str, messages: list[dict[str, Any]], stream: bool, **options: Any) -> tuple[str, str]:
    litellm = pytest.importorskip("litellm")
    asked = {"model": f"openai/{NAME}", "api_base": f"{url}/v1", "api_key": KEY, "max_retries": 0}
    found = litellm.completion(messages=messages, stream=stream, **asked, **options)
    if not stream:
        return found.choices[0].message.content, found.choices[0].finish_reason
    chunks = list(found)
    reasons = [each.choices[0].finish_reason for each in chunks]
    return "".join(each.choices[0].delta.content or "" for each in chunks), next(filter(None, reasons))


CLIENTS: dict[str, Callable[..., tuple[str, str]]] = {
    "openai": by_openai,
    "langchain": by_langchain,
    "litellm": by_litellm,
}


@pytest.fixture(autouse=True)
def offline(monkeypatch) -> None:
    """Keep LiteLLM from asking the internet for its table of prices."""
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")


# ---- chat ----------------------------------------------------------------------------------------------------------

HELLO, FEW = [user("Hello?")], {"max_tokens": 5}
LOOK = {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": {"type": "object"}}}
CALLS = [
    {"id": f"call_{name}", "type": "function", "function": {"name": name, "arguments": '{"at": "sky"}'}}
    for name in ("look", "hear")
]
TOOL_TURNS = [
    *HELLO,
    {"role": "assistant", "content": None, "tool_calls": CALLS[:1]},
    {"role": "tool", "tool_call_id": "call_look", "content": "blue"},
    {"role": "assistant", "content": "I go on.", "tool_calls": CALLS},
    {"role": "tool", "tool_call_id": "call_hear", "content": [text("a bird")]},
    {"role": "tool", "tool_call_id": "call_look", "content": "blue"},
]
LOOKED, HEARD = (f'Call of {name}: {{"at": "sky"}}' for name in ("look", "hear"))
TOLD = [
    *HELLO,
    {"role": "assistant", "content": LOOKED},
    user("Result of look: blue"),
    {"role": "assistant", "content": f"I go on.\n{LOOKED}\n{HEARD}"},
    user("Result of hear: a bird\nResult of look: blue"),
]
SCHEMA = {"name": "answer", "schema": {"type": "object", "properties": {"answer": {"type": "string"}}}}
BRIEF = [{"role": "system", "content": "Be terse."}, *HELLO]
#: Requests and what comes of them: the messages that the model answers, or the field that is refused.
REQUESTS: dict[str, tuple[list[dict[str, Any]], dict[str, Any], list[dict[str, Any]] | str]] = {
    "system": (BRIEF, FEW, BRIEF),
    "developer": ([{**BRIEF[0], "role": "developer"}, *HELLO], FEW, BRIEF),
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


@pytest.mark.quick
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("client", CLIENTS)
def test_request_matrix(client, stream, url, model, processor, sounds) -> None:
    mp3, flac = audio(wav(sounds[1], "MP3"), "mp3"), audio(wav(sounds[2], "FLAC"), "flac")
    told: dict[str, list[dict[str, Any]]] = {
        "speech": [user(audio(wav(sounds[0])))],
        "several": [user(text("Is "), mp3, text(" like "), flac, text("?"))],
        "turns": [user(flac, text("What?")), {"role": "assistant", "content": "Yes."}, user("Why?")],
    }
    requests = {**REQUESTS, **{name: (messages, FEW, as_own(messages)) for name, messages in told.items()}}
    for name, (messages, options, expected) in requests.items():
        if isinstance(expected, str):
            with pytest.raises(Exception, match=f"{expected} is not supported") as caught:
                CLIENTS[client](url, messages, stream, **options)
            assert caught.value.status_code == 400, name
            continue
        bound = min(options.get("max_tokens", MAX_NEW_TOKENS), MAX_NEW_TOKENS)
        [right] = answer(model, processor, [expected], max_new_tokens=bound)
        assert CLIENTS[client](url, messages, stream, **options) == (right, "length") != ("", "length"), name


def test_a_follow_up_goes_on_and_is_as_read_anew(client, sounds, model, processor) -> None:
    messages: list[Any] = [user(audio(wav(sounds[3])), text("What is said?"))]
    reused = []
    for question in ("And who says it?", "Why?", None):
        response = ask(client, messages)
        [expected] = answer(model, processor, [as_own(messages)], max_new_tokens=12)
        assert response.choices[0].message.content == expected
        inputs = processor.apply_chat_template(as_own(messages), tokenize=True, add_generation_prompt=True)
        assert response.usage.prompt_tokens == inputs["input_ids"].shape[1]
        reused.append(response.usage.prompt_tokens_details.cached_tokens)
        # As clients send it back: with every field of the answer, most of them null.
        messages += [response.choices[0].message.model_dump(), user(question)]
    slots = processor.num_audio_slots(len(sounds[3]))
    assert reused[0] == 0 and slots < reused[1] < reused[2]

    def cached(messages: list[Any], **options: Any) -> int:
        return ask(client, messages, **options).usage.prompt_tokens_details.cached_tokens

    assert cached(messages[:5]) == 0  # asked once more
    going_on = [*messages[:1], ask(client, messages[:1], user="one").choices[0].message, user("Why?")]
    assert cached(going_on, user="other") == 0 and cached(going_on, user="one") > slots
    changed = [user(audio(wav(sounds[3] * 0.9)), text("What is said?")), *going_on[1:]]
    assert ask(client, messages[:1]).choices and cached(changed) == 0


def test_many_at_once_get_their_own_answers(client, sounds, model, processor) -> None:
    questions = [[user(audio(wav(clip)), text(f"What is {number}?"))] for number, clip in enumerate(sounds[:3])]
    questions += [[user(words)] for words in ("Who?", "Hello?", "Is it 4?")]
    expected = answer(model, processor, list(map(as_own, questions)), max_new_tokens=12)
    assert len(set(expected)) == len(questions)
    with ThreadPoolExecutor(len(questions)) as pool:
        answers = pool.map(lambda each: ask(client, each).choices[0].message.content, questions)
        assert list(answers) == expected


def test_options_of_a_request_decide_its_answer(client) -> None:
    def said(**options: Any) -> str:
        return ask(client, HELLO, **{"max_tokens": 24, **options}).choices[0].message.content

    greedy, one = said(frequency_penalty=0), said(temperature=1, seed=1)
    assert said(temperature=0, top_p=0.5, seed=1) == greedy and said(temperature=1, seed=1) == one
    assert len({greedy, one, said(temperature=1, seed=2), said(temperature=2, seed=3)}) == 4
    assert len({one, said(temperature=1), said(temperature=1)}) == 3
    assert said(temperature=1, seed=1, top_p=0.001) == greedy == said(top_p=0.001) != said(top_p=0.999, seed=1)
    assert said(extra_body={"repetition_penalty": 1.5}) != greedy
    assert ask(client, HELLO, max_completion_tokens=5).usage.completion_tokens == 5

    stop = greedy[10:12]
    for given in (stop, ["not there", stop]):
        response = ask(client, HELLO, max_tokens=24, stop=given)
        assert response.choices[0].message.content == greedy[: greedy.index(stop)]
        assert response.choices[0].finish_reason == "stop" and response.usage.completion_tokens < 24


def test_bad_requests_are_named(client, url, sounds) -> None:
    def refused(*messages: Any, **options: Any) -> str:
        status, message, _ = refusal(lambda: ask(client, list(messages), **options))
        assert status == 400
        return message

    for name, value in (("logprobs", True), ("presence_penalty", 0.5), ("modalities", ["text", "audio"])):
        assert f"{name} is not supported" in refused(*HELLO, **{name: value})
    for name, value in (("temperature", 3), ("stop", [""]), ("seed", "one")):
        assert name in refused(*HELLO, **{name: value})
    good, call = audio(wav(sounds[0])), {**CALLS[0], "function": {"name": "look", "arguments": "<audio>"}}
    for messages, said in (
        ([], "messages"),
        ([{"role": "oracle", "content": "x"}], "messages[0].role"),
        ([user("x"), user({"type": "image_url", "image_url": {"url": "x"}})], "messages[1].content[0]"),
        ([user({"type": "input_audio", "input_audio": {"data": "é"}})], "content[0].input_audio.data: expected"),
        ([user(audio(b"junk" * 99))], "messages[0].content[0]"),
        ([user(audio(b""))], "empty"),
        ([user(*[audio(wav(np.zeros(25 * RATE), "FLAC"))] * 3)], "rest of the 60 s"),
        ([user("What is <audio>?")], "messages[0].content[0]: the text contains <audio>"),
        ([*HELLO, {"role": "assistant", "tool_calls": [call]}, *HELLO], "messages[1]: the text contains <audio>"),
        ([user("What is <|audio_slot|>?")], "<|audio_slot|>"),
        ([{"role": "system", "content": [good]}, user("x")], "text alone"),
        ([user("x"), {"role": "assistant", "content": "y"}], "last message is one of assistant"),
        ([user("x"), user("  ")], "empty"),
        ([user("x" * 2000)], "1024"),
    ):
        assert said in refused(*messages)
    for body in (b"{", b"[1]", b"\xff\xfe", b"[" * 100_000, b'{"messages": ["x"]}'):
        response = httpx.post(f"{url}/v1/chat/completions", content=body, headers=AUTHORISED)
        assert response.status_code == 400 and response.json()["error"]["message"], body[:20]
    assert refusal(lambda: ask(client, HELLO, model="openai/whisper-tiny"))[::2] == (404, "model_not_found")


# ---- transcriptions ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recording() -> bytes:
    """Prompts with pauses between them, and a noise."""
    row = in_a_row(prompts(2), [1.0, 2.9, 3.0])
    return wav(np.concatenate([row, noises(3.0, -30)["white"]]), "FLAC")


@pytest.fixture(scope="module")
def transcript(model, processor, recording) -> Callable[..., Transcript]:
    return lambda **changed: AudioLlm(model, processor).transcribe(recording, **{**vars(TRANSCRIBING), **changed})


@pytest.fixture
def transcribed(client, recording) -> Callable[..., Any]:
    given = {"model": NAME, "file": ("a.flac", recording)}
    return lambda **options: client.audio.transcriptions.create(**{**given, **options})


def test_transcripts_in_every_format_are_those_of_the_package(transcribed, transcript, processor) -> None:
    expected = transcript()
    for options in ({"language": "de"}, {"language": "tlh"}, {"temperature": 0.2}, {"prompt": ""}, {"model": ""}):
        assert transcribed(**options).text == expected.text, options
    unknown = {"chunking_strategy": {"type": "server_vad"}, "extra_body": {"beams": 2}}
    assert transcribed(**unknown).text == expected.text
    heard = [each for each in expected.passages if each.text]
    assert len(heard) > 2 and expected.skipped
    plain = transcribed(response_format="json")
    assert plain.text == expected.text and plain.usage.seconds == math.ceil(expected.seconds)
    for name, whole in (("text", f"{expected.text}\n"), ("srt", as_srt(expected)), ("vtt", as_vtt(expected))):
        assert transcribed(response_format=name) == whole
    verbose = transcribed(response_format="verbose_json", timestamp_granularities=["segment"])
    assert verbose.duration == pytest.approx(expected.seconds) and verbose.text == expected.text
    assert [(each.start, each.end) for each in verbose.segments] == [(each.start_s, each.end_s) for each in heard]
    assert [each.text for each in verbose.segments] == [" ".join(each.text.split()) for each in heard]
    assert [processor.decode(each.tokens) for each in verbose.segments] == [each.text for each in verbose.segments]
    *deltas, done = transcribed(stream=True)
    assert [each.type for each in deltas] == ["transcript.text.delta"] * len(heard)
    assert done.type == "transcript.text.done" and done.text == expected.text
    assert "".join(each.delta for each in deltas) == expected.text


def test_litellm_transcribes(url, transcript, recording) -> None:
    asked = {"model": f"openai/{NAME}", "api_base": f"{url}/v1", "api_key": KEY, "file": ("a.flac", recording)}
    assert pytest.importorskip("litellm").transcription(**asked, language="de").text == transcript().text


def test_prompt_and_language_are_told_to_the_model(transcribed, transcript, model, monkeypatch) -> None:
    hinted = transcript(prompt=f"Before this was said: Names: Ann.\n{TRANSCRIBING.prompt}").text
    assert transcribed(prompt="Names: Ann.").text == hinted != transcript().text
    monkeypatch.setattr(model.config.audio_config, "vocab_size", 51_865)  # a multilingual one
    german = transcript(prompt=f"{TRANSCRIBING.prompt} The language is German.").text
    for language in ("de-AT", "German"):
        verbose = transcribed(language=language, response_format="verbose_json")
        assert (verbose.text, verbose.language) == (german, "german") and german != transcript().text
    assert "language" in refusal(lambda: transcribed(language="tlh"))[1]


def aac(seconds: float) -> bytes:
    """Return silence in a container that does not say its length."""
    av, file = pytest.importorskip("av"), io.BytesIO()
    with av.open(file, "w", format="adts") as container:
        stream = container.add_stream("aac", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, int(seconds * RATE)), np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate = RATE
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return file.getvalue()


def test_bad_transcription_requests_are_named(client, url, transcribed) -> None:
    for options, said in (
        ({"extra_body": {"stream": "perhaps"}}, "stream"),
        ({"response_format": "diarized_json"}, "response_format"),
        ({"stream": True, "response_format": "srt"}, "response_format"),
        ({"response_format": "verbose_json", "timestamp_granularities": ["word"]}, "projector_readout"),
        ({"timestamp_granularities": ["word"]}, "verbose_json"),
        ({"include": ["logprobs"]}, "include"),
        ({"prompt": "<audio>"}, "<audio>"),
        ({"file": ("talk.wav", b"junk" * 99)}, "'talk.wav'"),
        ({"file": ("talk.wav", b"junk" * 99), "stream": True}, "'talk.wav'"),
        ({"file": ("../../talk.wav", b"")}, "empty"),
        ({"file": ("long.flac", wav(np.zeros(61 * RATE), "FLAC"))}, "1 min 1 s long"),
    ):
        status, message, _ = refusal(lambda options=options: transcribed(**options))
        assert status == 400 and said in message and "/tmp" not in message
    assert refusal(lambda: transcribed(model="whisper-1"))[::2] == (404, "model_not_found")
    form = {"content-type": "multipart/form-data"}
    for body in ({"json": {}}, {"files": {"model": (None, NAME)}}, {"content": b"x", "headers": form}):
        headers = {**AUTHORISED, **body.pop("headers", {})}
        response = httpx.post(f"{url}/v1/audio/transcriptions", headers=headers, **body)
        assert response.status_code == 400 and response.json()["error"]["message"]


# ---- limits, and who gets in ---------------------------------------------------------------------------------------


def test_models_health_and_paths_that_are_none(client, url) -> None:
    assert [each.id for each in client.models.list()] == [client.models.retrieve(NAME).id] == [NAME]
    assert refusal(lambda: client.models.retrieve("gpt-5"))[0] == 404
    assert httpx.get(f"{url}/health").json() == {"status": "ok"}
    for method, path, status in (("GET", "chat/completions", 405), ("POST", "nothing", 404)):
        response = httpx.request(method, f"{url}/v1/{path}", headers=AUTHORISED)
        assert response.status_code == status and path in response.json()["error"]["message"]


def test_huge_uploads_end_at_the_limit(client, url, transcribed) -> None:
    too_large = bytes(MAX_UPLOAD_MB * 1_000_000 + 1)
    assert refusal(lambda: transcribed(file=("a.wav", too_large)))[::2] == (413, "too_large")
    assert refusal(lambda: ask(client, [user(audio(too_large))]))[::2] == (413, "too_large")
    endless = iter([bytes(1_000_000)] * 4 * MAX_UPLOAD_MB)  # which does not say its size before
    assert httpx.post(f"{url}/v1/chat/completions", content=endless, headers=AUTHORISED).status_code == 413
    unending = ("a.aac", aac(65))
    assert "longer than 1 min, the most" in refusal(lambda: transcribed(file=unending))[1]


def test_without_the_key_nobody_gets_in(url) -> None:
    for key in ("Bearer wrong", "", f"Bearer {KEY[:-1]}", "Bearer é"):
        for method, path in (("GET", "models"), ("POST", "chat/completions"), ("POST", "audio/transcriptions")):
            response = httpx.request(method, f"{url}/v1/{path}", headers={"Authorization": key.encode()})
            assert response.status_code == 401 and response.json()["error"]["code"] == "invalid_api_key"
    assert refusal(lambda: client_of(url, "wrong").models.list())[0] == 401


def test_no_web_page_gets_in_unless_it_is_named(url, model, processor) -> None:
    def asked(headers: dict[str, str], url: str = url) -> httpx.Response:
        return httpx.get(f"{url}/v1/models", headers={**AUTHORISED, **headers})

    for header, value, status in (
        ("Host", "localhost", 200),
        ("Host", "rebound.example", 403),
        ("Host", "[", 400),
        ("Origin", "https://other.example", 403),
        ("Origin", "http://[", 400),
    ):
        assert asked({header: value}).status_code == status
    own = asked({"Origin": url})
    assert own.status_code == 200 and "access-control-allow-origin" not in own.headers
    site = {"Origin": "https://a.example"}
    with in_thread(model, processor, ServingSettings(NAME, KEY, allow_origins=(site["Origin"],))) as (named, _):
        wanted = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        before = httpx.options(f"{named}/v1/chat/completions", headers={**site, **wanted})
        for response in (before, asked(site, named)):
            assert response.status_code == 200 and response.headers["access-control-allow-origin"] == site["Origin"]
        assert asked({"Origin": "https://b.example"}, named).status_code == 403

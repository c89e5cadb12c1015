"""`audiollm serve`, asked by OpenAI's own client: the package's answers, whole and streamed, and a clear no to the rest."""

import json
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import soundfile
from audiollm import AudioLlmForConditionalGeneration
from audiollm.inference.answering import answer
from audiollm.inference.loaded import AudioLlm
from audiollm.inference.transcripts import as_srt, as_vtt
from audiollm.processing import load_waveform
from long_recordings import RATE, in_a_row, noises
from servers import Command, as_own, audio, client_of, command, text, user, wav
from transformers import pipeline

MAX_UPLOAD_MB, MAX_NEW_TOKENS = 3, 100
NEW_TOKENS = 12
API_KEY = "open-sesame"
AUTHORISED = {"Authorization": f"Bearer {API_KEY}"}


@pytest.fixture(scope="module")
def checkpoint(checkpoint, tmp_path_factory) -> Path:
    """The tiny pair, which brings along that transcripts are short."""
    folder = shutil.copytree(checkpoint, tmp_path_factory.mktemp("served") / checkpoint.name)
    config = folder / "generation_config.json"
    stored = {"audiollm_transcribe": {"max_new_tokens": NEW_TOKENS}}
    config.write_text(json.dumps(json.loads(config.read_text()) | stored))
    return folder


@pytest.fixture(scope="module")
def model(checkpoint) -> AudioLlmForConditionalGeneration:
    return AudioLlmForConditionalGeneration.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def served(checkpoint, tmp_path_factory) -> Iterator[Command]:
    limits = ["--max_upload_mb", MAX_UPLOAD_MB, "--max_audio_seconds", 60, "--max_new_tokens", MAX_NEW_TOKENS]
    folder = tmp_path_factory.mktemp("server")
    (folder / "temporary").mkdir()
    variables = {"TMPDIR": str(folder / "temporary"), "AUDIOLLM_API_KEY": API_KEY}
    with command(folder, "--model", checkpoint, *limits, **variables) as running:
        yield running


@pytest.fixture(scope="module")
def client(served) -> openai.OpenAI:
    return client_of(served.url, API_KEY)


@pytest.fixture(scope="module")
def sounds(clips) -> list[np.ndarray]:
    """The shortest real prompts."""
    return [load_waveform(path) for path in clips]


def ask(client: openai.OpenAI, messages: list[Any], **options: Any) -> Any:
    return client.chat.completions.create(
        **{"model": "tiny-ears", "messages": messages, "max_tokens": NEW_TOKENS, **options}
    )


def said(client: openai.OpenAI, messages: list[Any], **options: Any) -> str:
    return ask(client, messages, **options).choices[0].message.content


def streamed(client: openai.OpenAI, messages: list[Any], **options: Any) -> tuple[str, list[Any]]:
    """Return the text of a streamed answer, and its chunks."""
    chunks = list(ask(client, messages, stream=True, **options))
    return "".join(each.choices[0].delta.content or "" for each in chunks if each.choices), chunks


def refusal(call: Callable[[], Any]) -> tuple[int, str, str | None]:
    """Status, message and code of the error that a call ends with, in OpenAI's shape."""
    with pytest.raises(openai.APIStatusError) as caught:
        call()
    body = caught.value.response.json()
    assert body.keys() == {"error"} and body["error"].keys() == {"message", "type", "param", "code"}
    kind = "server_error" if caught.value.status_code >= 500 else "invalid_request_error"
    assert body["error"]["type"] == kind
    return caught.value.status_code, body["error"]["message"], body["error"]["code"]


def conversations(sounds: list[np.ndarray]) -> dict[str, list[dict[str, Any]]]:
    mp3, flac = wav(sounds[1], "MP3"), wav(sounds[2], "FLAC")
    return {
        "system": [{"role": "system", "content": "Be terse."}, user("Hello?")],
        "developer": [{"role": "developer", "content": "Be terse."}, user("Hello?")],
        "speech": [user(audio(wav(sounds[0])))],
        "several": [user(text("Is "), audio(mp3, "mp3"), text(" like "), audio(flac, "flac"), text("?"))],
        "turns": [user(audio(flac, "flac"), text("What?")), {"role": "assistant", "content": "Yes."}, user("Why?")],
    }


# ---- the same answers ----------------------------------------------------------------------------------------------


@pytest.mark.quick
def test_answers_are_the_packages_and_streams_hold_the_same(client, sounds, model, processor) -> None:
    listen = pipeline("audio-text-to-text", model=model, processor=processor, device="cpu")
    for name, messages in conversations(sounds).items():
        own = [{**each, "role": each["role"].replace("developer", "system")} for each in as_own(messages)]
        [expected] = answer(model, processor, [own], max_new_tokens=NEW_TOKENS)
        assert listen(own, max_new_tokens=NEW_TOKENS)[0]["generated_text"].strip() == expected
        whole = ask(client, messages)
        assert whole.choices[0].message.content == expected and expected, name
        given, chunks = streamed(client, messages, stream_options={"include_usage": True})
        assert given == expected and len(chunks) > 6, name
        assert chunks[0].choices[0].delta.role == "assistant" and len({chunk.id for chunk in chunks}) == 1
        ends = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
        assert ends[:-1] == [None] * (len(ends) - 1) and ends[-1] == whole.choices[0].finish_reason == "length"
        usage = whole.usage
        assert chunks[-1].usage.total_tokens == usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
        assert usage.completion_tokens == NEW_TOKENS
        inputs = processor.apply_chat_template(own, tokenize=True, add_generation_prompt=True)
        assert usage.prompt_tokens == inputs["input_ids"].shape[1]


def test_a_follow_up_goes_on_and_is_as_read_anew(client, sounds, model, processor) -> None:
    messages: list[Any] = [user(audio(wav(sounds[3])), text("What is said?"))]
    reused = []
    for question in ("And who says it?", "Why?", None):
        response = ask(client, messages)
        [expected] = answer(model, processor, [as_own(messages)], max_new_tokens=NEW_TOKENS)
        assert response.choices[0].message.content == expected
        reused.append(response.usage.prompt_tokens_details.cached_tokens)
        # As clients send it back: with every field of the answer, most of them null.
        messages += [response.choices[0].message.model_dump(), user(question)]
    slots = processor.num_audio_slots(len(sounds[3]))
    assert reused[0] == 0 and slots < reused[1] < reused[2]
    # Asked once more, and by another user, it is not in the cache.
    assert ask(client, messages[:5]).usage.prompt_tokens_details.cached_tokens == 0
    begun = ask(client, messages[:1], user="one")
    going_on = [*messages[:1], begun.choices[0].message, user("Why?")]
    assert ask(client, going_on, user="other").usage.prompt_tokens_details.cached_tokens == 0
    assert ask(client, going_on, user="one").usage.prompt_tokens_details.cached_tokens > slots
    begun = ask(client, messages[:1])
    changed = [user(audio(wav(sounds[3] * 0.9)), text("What is said?")), begun.choices[0].message, user("Why?")]
    assert ask(client, changed).usage.prompt_tokens_details.cached_tokens == 0


def test_many_at_once_get_their_own_answers(client, sounds, model, processor) -> None:
    questions = [[user(audio(wav(clip)), text(f"What is {number}?"))] for number, clip in enumerate(sounds[:3])]
    questions += [[user(words)] for words in ("Who?", "Hello?", "Is it 4?")]
    expected = answer(model, processor, list(map(as_own, questions)), max_new_tokens=NEW_TOKENS)
    assert len(set(expected)) == len(questions)

    with ThreadPoolExecutor(len(questions)) as pool:
        assert [text for text, _ in pool.map(lambda each: streamed(client, each), questions)] == expected


# ---- options of a request ------------------------------------------------------------------------------------------


def test_bounds_are_honoured(client) -> None:
    response = ask(client, [user("Hello?")], max_completion_tokens=5)
    assert response.usage.completion_tokens == 5 and response.choices[0].finish_reason == "length"
    response = client.chat.completions.create(model="tiny-ears", messages=[user("Hello?")])
    assert response.usage.completion_tokens == MAX_NEW_TOKENS or response.choices[0].finish_reason == "stop"


def test_draws_depend_on_seed_temperature_and_top_p(client) -> None:
    def drawn(**options: Any) -> str:
        return said(client, [user("Hello?")], max_tokens=24, **options)

    greedy = drawn()
    assert drawn(temperature=0, top_p=0.5, seed=1) == greedy
    one = drawn(temperature=1, seed=1)
    assert one == drawn(temperature=1, seed=1)
    assert len({greedy, one, drawn(temperature=1, seed=2), drawn(temperature=2, seed=1)}) == 4
    assert len({one, drawn(temperature=1), drawn(temperature=1)}) == 3
    assert drawn(temperature=1, seed=1, top_p=0.001) == greedy == drawn(top_p=0.001)
    assert drawn(top_p=0.999, seed=1) != greedy


def test_a_penalty_changes_what_is_written(client) -> None:
    plain = said(client, [user("Hello?")], max_tokens=60, frequency_penalty=0, presence_penalty=0)
    found = said(client, [user("Hello?")], max_tokens=60, extra_body={"repetition_penalty": 1.5})
    assert found != plain and len(found) - len(set(found)) < len(plain) - len(set(plain))


def test_stop_strings_end_an_answer_before_them(client) -> None:
    plain = said(client, [user("Hello?")], max_tokens=40)
    stop = plain[10:12]
    at = plain.index(stop)
    for given in (stop, ["not there", stop]):
        response = ask(client, [user("Hello?")], max_tokens=40, stop=given)
        assert response.choices[0].message.content == plain[:at] and response.choices[0].finish_reason == "stop"
        assert response.usage.completion_tokens < 40
        whole, chunks = streamed(client, [user("Hello?")], max_tokens=40, stop=given)
        assert whole == plain[:at] and chunks[-1].choices[0].finish_reason == "stop"


def test_what_cannot_be_done_is_named(client) -> None:
    for name, value in (
        ("logprobs", True),
        ("presence_penalty", 0.5),
        ("modalities", ["text", "audio"]),
        ("temperature", 3),
        ("stop", [""]),
        ("seed", "one"),
    ):
        status, message, _ = refusal(lambda name=name, value=value: ask(client, [user("Hello?")], **{name: value}))
        assert status == 400 and name in message


# ---- bad requests --------------------------------------------------------------------------------------------------


def test_bad_messages_are_named(client, sounds) -> None:
    def refused(*messages: Any) -> str:
        status, message, _ = refusal(lambda: ask(client, list(messages)))
        assert status == 400
        return message

    good = audio(wav(sounds[0]))
    assert "messages" in refused()
    assert "messages[0].role" in refused({"role": "oracle", "content": "x"})
    assert "messages[1].content[0]" in refused(user("x"), user({"type": "image_url", "image_url": {"url": "x"}}))
    assert "messages[0].content[1]" in refused(user(text("x"), {"type": "audio", "path": "/etc/hostname"}))
    assert "input_audio.data is not base64" in refused(
        user({"type": "input_audio", "input_audio": {"data": "é", "format": "wav"}})
    )
    assert "messages[0].content[0]" in refused(user(audio(b"junk" * 99)))
    assert "empty" in refused(user(audio(b"")))
    assert "rest of the 60 s" in refused(user(*[audio(wav(np.zeros(25 * RATE), "FLAC"))] * 3))
    assert "<audio>" in refused(user("What is <audio>?"))
    assert "<|audio_slot|>" in refused(user("What is <|audio_slot|>?"))
    assert "text alone" in refused({"role": "system", "content": [good]}, user("x"))
    assert "last message is one of assistant" in refused(user("x"), {"role": "assistant", "content": "y"})
    assert "empty" in refused(user("x"), user("  "))
    assert "1024" in refused(user("x" * 2000))


def test_bad_bodies_are_refused(client, served) -> None:
    url = f"{served.url}/v1/chat/completions"
    for body in (b"{", b"[1]", b"\xff\xfe", b"[" * 100_000, b'{"messages": ["x"]}'):
        response = httpx.post(url, content=body, headers=AUTHORISED)
        assert response.status_code == 400 and response.json()["error"]["message"], body[:20]
    for method, path, status in (("GET", "chat/completions", 405), ("POST", "nothing", 404)):
        response = httpx.request(method, f"{served.url}/v1/{path}", headers=AUTHORISED)
        assert response.status_code == status and path in response.json()["error"]["message"]
    assert refusal(lambda: ask(client, [user("x")], model="openai/whisper-tiny"))[::2] == (404, "model_not_found")
    assert "whisper" not in served.log


def test_huge_uploads_end_at_the_limit(client, served) -> None:
    too_large = bytes(MAX_UPLOAD_MB * 1_000_000 + 1)

    def transcription() -> Any:
        return client.audio.transcriptions.create(model="tiny-ears", file=("a.wav", too_large))

    assert refusal(transcription)[::2] == (413, "too_large")
    assert refusal(lambda: ask(client, [user(audio(too_large))]))[::2] == (413, "too_large")

    def endless() -> Iterator[bytes]:
        for _ in range(4 * MAX_UPLOAD_MB):
            yield bytes(1_000_000)

    # It does not say its size before.
    url = f"{served.url}/v1/chat/completions"
    assert httpx.post(url, content=endless(), headers=AUTHORISED).status_code == 413
    assert said(client, [user("Hello?")])


# ---- transcriptions ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recording(sounds, tmp_path_factory) -> Path:
    """Prompts with pauses between them, and a noise."""
    path = tmp_path_factory.mktemp("sound") / "row.flac"
    row = in_a_row(sounds[:2], [1.0, 2.9, 3.0])
    soundfile.write(path, np.concatenate([row, noises(3.0, -30)["white"]]), RATE)
    return path


def test_transcripts_are_those_of_the_command(client, recording, model, processor) -> None:
    expected = AudioLlm(model, processor).transcribe(recording)
    assert len([each for each in expected.passages if each.text]) >= 2 and expected.skipped

    def got(**options: Any) -> Any:
        with open(recording, "rb") as file:
            return client.audio.transcriptions.create(**{"model": "tiny-ears", "file": file, **options})

    assert got(model="").text == expected.text
    plain = got(response_format="json", temperature=0)
    assert plain.text == expected.text and plain.usage.seconds == pytest.approx(expected.seconds)
    assert got(response_format="text") == f"{expected.text}\n"
    assert got(response_format="srt") == as_srt(expected) and got(response_format="vtt") == as_vtt(expected)
    verbose = got(response_format="verbose_json", timestamp_granularities=["segment"])
    heard = [each for each in expected.passages if each.text]
    assert verbose.duration == pytest.approx(expected.seconds) and verbose.text == expected.text
    assert [(each.start, each.end) for each in verbose.segments] == [(each.start_s, each.end_s) for each in heard]
    assert [each.text for each in verbose.segments] == [" ".join(each.text.split()) for each in heard]
    assert [processor.decode(each.tokens) for each in verbose.segments] == [each.text for each in verbose.segments]
    prompt = "Before this was said: Names: Ann.\n<audio>\nTranscribe the speech."
    hinted = AudioLlm(model, processor).transcribe(recording, prompt=prompt)
    assert got(prompt="Names: Ann.").text == hinted.text != expected.text


def test_bad_transcription_requests_are_named(client, served, recording) -> None:
    file = recording.read_bytes()

    def refused(**options: Any) -> str:
        given = {"model": "tiny-ears", "file": ("talk.flac", file), **options}
        status, message, _ = refusal(lambda: client.audio.transcriptions.create(**given))
        assert status == 400 and "/temporary" not in message
        return message

    assert "temperature" in refused(temperature="warm") and "stream" in refused(extra_body={"stream": "perhaps"})
    assert "response_format" in refused(response_format="diarized_json")
    assert "response_format" in refused(stream=True, response_format="srt")
    assert "projector_readout" in refused(response_format="verbose_json", timestamp_granularities=["word"])
    assert "include" in refused(include=["logprobs"])
    assert "<audio>" in refused(prompt="<audio>")
    assert "'talk.wav'" in refused(file=("talk.wav", b"junk" * 99))
    assert "empty" in refused(file=("../../talk.wav", b""))
    assert "1 min 1 s long" in refused(file=("long.flac", wav(np.zeros(61 * RATE), "FLAC")))
    url = f"{served.url}/v1/audio/transcriptions"
    for body in ({"json": {}}, {"files": {"model": (None, "tiny-ears")}}):
        response = httpx.post(url, headers=AUTHORISED, **body)
        assert response.status_code == 400 and "file" in response.json()["error"]["message"]
    form = {**AUTHORISED, "content-type": "multipart/form-data"}
    assert httpx.post(url, content=b"x", headers=form).status_code == 400
    other = refusal(lambda: client.audio.transcriptions.create(model="whisper-1", file=("a.flac", file)))
    assert other[::2] == (404, "model_not_found")


# ---- the rest ------------------------------------------------------------------------------------------------------


def test_models_and_health(client, served) -> None:
    assert [each.id for each in client.models.list()] == [served.name] == ["tiny-ears"]
    assert client.models.retrieve("tiny-ears").id == "tiny-ears"
    assert refusal(lambda: client.models.retrieve("gpt-5"))[0] == 404
    assert httpx.get(f"{served.url}/health").json() == {"status": "ok"}


def test_no_web_page_gets_in(served) -> None:
    ask_it = {"url": f"{served.url}/v1/models"}
    host = served.url.removeprefix("http://")
    assert httpx.get(**ask_it, headers={**AUTHORISED, "Host": "localhost"}).status_code == 200
    assert httpx.get(**ask_it, headers={**AUTHORISED, "Host": "rebound.example"}).status_code == 403
    assert httpx.get(**ask_it, headers={**AUTHORISED, "Origin": "https://other.example"}).status_code == 403
    for header, value in (("Host", "["), ("Host", "[::1"), ("Origin", "http://[")):
        response = httpx.get(**ask_it, headers={header: value})  # before the key is looked at
        assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_header")
    own = httpx.get(**ask_it, headers={**AUTHORISED, "Origin": f"http://{host}"})
    assert own.status_code == 200 and "access-control-allow-origin" not in own.headers


def test_only_this_machine_is_listened_to(served) -> None:
    port = int(served.url.rsplit(":", 1)[1])
    assert served.url.startswith("http://127.0.0.1:") and "Warning" not in served.log
    own = socket.gethostbyname(socket.gethostname())
    if not own.startswith("127."):
        with pytest.raises(OSError), socket.create_connection((own, port), timeout=2):
            pass


def test_nothing_of_a_request_stays(served, client, recording) -> None:
    """After all tests before: no file, and no word or sample in the log."""
    with open(recording, "rb") as file:
        client.audio.transcriptions.create(model="tiny-ears", file=file)
    temporary = Path(served.log_path.parent / "temporary")
    assert not list(temporary.glob("audiollm-serve-*"))
    assert "Hello?" not in served.log and "Traceback" not in served.log


def test_without_the_key_nobody_gets_in(served) -> None:
    for key in ("Bearer wrong", "", f"Bearer {API_KEY[:-1]}", "Bearer é"):
        headers = {"Authorization": key.encode()}
        for method, path in (("GET", "models"), ("POST", "chat/completions"), ("POST", "audio/transcriptions")):
            response = httpx.request(method, f"{served.url}/v1/{path}", headers=headers)
            assert response.status_code == 401 and response.json()["error"]["code"] == "invalid_api_key"
    assert refusal(lambda: client_of(served.url, "wrong").models.list())[0] == 401
    assert 'Authorization: Bearer $KEY"' in served.log and API_KEY not in served.log


def test_ctrl_c_ends_it_with_what_is_under_way(served, client) -> None:
    """The last test of this server."""
    stream = client.chat.completions.create(model="tiny-ears", messages=[user("Hello?")], stream=True)
    next(stream)
    assert served.stop(signal.SIGINT) == 130
    assert "Traceback" not in served.log and "Finished server process" in served.log

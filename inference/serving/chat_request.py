"""The body of `/v1/chat/completions`, as OpenAI describes it: what is understood of it, and a clear no to the rest."""

import base64
import binascii
import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .errors import BAD_REQUEST, ApiError

#: What cannot be done, and the values that ask for nothing, which many clients send all the same.
NOTHING_ASKED: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "metadata": ({},),
    "modalities": (["text"],),
    "n": (1,),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": (),
    "web_search_options": (),
}
AUDIO_FORMATS = ("wav", "mp3", "flac", "ogg", "opus", "m4a", "mp4", "webm", "aac", "aiff")
#: Before base64, where a recording is written as a `data:` URL.
DATA_URL, DATA_URL_MARK = "data:", ";base64,"
AUDIO_PLACEHOLDER = "<audio>"
MAX_STOP_STRINGS = 16
MIN_SEED, MAX_SEED = -(2**63), 2**63 - 1
DEFAULT_TEMPERATURE = 1.0
PARTS_FIELD = "content"


class _Strict(BaseModel):
    """What has no fields but those named."""

    model_config = ConfigDict(extra="forbid", strict=True)


class TextPart(_Strict):
    """Words."""

    type: Literal["text"]
    text: str


class AudioBytes(_Strict):
    """A recording's file in base64; its format is seen from the bytes."""

    data: str
    format: Literal[AUDIO_FORMATS] | None = None  # type: ignore[valid-type]  # a tuple of names


class AudioPart(_Strict):
    """A recording."""

    type: Literal["input_audio"]
    input_audio: AudioBytes


class Message(_Strict):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: list[Annotated[TextPart | AudioPart, Field(discriminator="type")]]

    @model_validator(mode="before")
    @classmethod
    def _string_as_part(cls, given: Any) -> Any:
        if isinstance(given, dict) and isinstance(given.get(PARTS_FIELD), str):
            return {**given, PARTS_FIELD: [{"type": "text", "text": given[PARTS_FIELD]}]}
        return given


class StreamOptions(_Strict):
    """What a stream holds besides words."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class ChatRequest(_Strict):
    """What a client asks."""

    model: str | None = None
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=MIN_SEED, le=MAX_SEED)
    stop: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list, max_length=MAX_STOP_STRINGS)
    stream: bool = False
    stream_options: StreamOptions | None = None
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0)
    user: str | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_stop_string(cls, given: Any) -> Any:
        return {**given, "stop": [given["stop"]]} if isinstance(given.get("stop"), str) else given

    @model_validator(mode="after")
    def _one_bound(self) -> "ChatRequest":
        bounds = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(bounds) > 1:
            raise ValueError("max_tokens and max_completion_tokens differ; give one of them")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options does nothing without stream; leave it out, or set stream to true")
        return self

    @property
    def bound(self) -> int | None:
        """The bound on new tokens that is asked for."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def drawing_temperature(self) -> float:
        """0 takes the likeliest words, which is what a request gets that says nothing of it."""
        if self.temperature is not None:
            return self.temperature
        return DEFAULT_TEMPERATURE if self.top_p is not None and self.top_p < 1 else 0.0


def read_chat_request(body: bytes) -> ChatRequest:
    """
    Reads a request's body.

    Raises:
        ApiError: it is no JSON, a field is missing, wrong or unknown, or asks for what cannot be done; all with its name.
    """
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(
            BAD_REQUEST, f"The body is no JSON ({type(error).__name__}: {error}).", "invalid_json"
        ) from None
    if not isinstance(given, dict):
        raise ApiError(BAD_REQUEST, f"The body is a JSON {type(given).__name__}; expected an object.", "invalid_json")
    given = _without_nulls(given)
    _refuse_what_cannot_be_done(given)
    try:
        request = ChatRequest.model_validate(given)
    except ValidationError as error:
        raise _about(error) from None
    last = request.messages[-1]
    if last.role != "user" or not any(isinstance(part, AudioPart) or part.text.strip() for part in last.content):
        is_empty = "an empty one" if last.role == "user" else "one"
        raise ApiError(
            BAD_REQUEST,
            f"The last message is {is_empty} of {last.role}; expected one of user, with words or a recording.",
            "invalid_value",
            "messages",
        )
    for index, message in enumerate(request.messages):
        for number, part in enumerate(message.content):
            _check_part(message, part, f"messages[{index}].content[{number}]")
    return request


def _without_nulls(given: dict[str, Any]) -> dict[str, Any]:
    """null is what is left out; answers that are sent back hold many."""
    given = {name: value for name, value in given.items() if value is not None}
    messages = given.get("messages")
    if isinstance(messages, list):
        given["messages"] = [
            {name: value for name, value in each.items() if value is not None} if isinstance(each, dict) else each
            for each in messages
        ]
    return given


def _refuse_what_cannot_be_done(given: dict[str, Any]) -> None:
    for name, harmless in NOTHING_ASKED.items():
        if name in given and not any(given[name] == each and type(given[name]) is type(each) for each in harmless):
            instead = f" Leave it out, or give {' or '.join(map(repr, harmless))}." if harmless else " Leave it out."
            raise ApiError(
                BAD_REQUEST, f"{name} is not supported by this server.{instead}", "unsupported_parameter", name
            )
        given.pop(name, None)


def _about(error: ValidationError) -> ApiError:
    """The first of what is wrong, by the name of its field; never with what was given, which may be long."""
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    field = ""
    after_part = False
    for step in first["loc"]:
        if isinstance(step, int):
            after_part = field.endswith(PARTS_FIELD)
            field += f"[{step}]"
            continue
        if not after_part:  # else it is pydantic's name for the kind of part
            field += f".{step}" if field else step
        after_part = False
    if first["type"] == "extra_forbidden":
        return ApiError(BAD_REQUEST, f"There is no {field} that this server knows.", "unknown_parameter", field)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"].startswith("union_tag"):
        message = "expected a part of type 'text', or 'input_audio' with base64 data"
    return ApiError(BAD_REQUEST, f"{field}: {message}." if field else f"{message}.", "invalid_value", field or None)


def _check_part(message: Message, part: TextPart | AudioPart, where: str) -> None:
    if isinstance(part, TextPart):
        if AUDIO_PLACEHOLDER in part.text:
            raise ApiError(
                BAD_REQUEST,
                f"{where}: the text contains {AUDIO_PLACEHOLDER}, which stands for a recording; send recordings as "
                "parts of type input_audio, in the place where they belong.",
                "invalid_value",
                where,
            )
    elif message.role != "user":
        raise ApiError(BAD_REQUEST, f"{where}: a message of {message.role} holds words alone.", "invalid_value", where)


def audio_bytes(part: AudioPart, where: str) -> bytes:
    """
    The file of a recording.

    Raises:
        ApiError: it is no base64.
    """
    data = part.input_audio.data
    if data.startswith(DATA_URL):
        data = data.partition(DATA_URL_MARK)[2]
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError(
            BAD_REQUEST,
            f"{where}.input_audio.data is no base64 ({error}); expected a file's bytes, encoded.",
            "invalid_audio",
            f"{where}.input_audio.data",
        ) from None


def digest(messages: list[tuple[str, list[tuple[str, str]]]]) -> str:
    """One of messages: each a role with its parts, and each of those a kind with its text or its recording's sha256."""
    return hashlib.sha256(json.dumps(messages).encode()).hexdigest()


__all__ = ["AudioPart", "ChatRequest", "Message", "TextPart", "audio_bytes", "digest", "read_chat_request"]

"""
The body of `/v1/chat/completions`, as OpenAI describes it.

Fields that the server does not know, and those that only give a hint, are ignored. A field that asks for something the
server cannot do is refused by name.
"""

import base64
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from .responses import ApiError, invalid

#: Fields that ask for something the server cannot do, with the values that ask for nothing beside empty ones.
NOTHING_ASKED: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "frequency_penalty": (),
    "function_call": ("none",),
    "functions": (),
    "logit_bias": (),
    "logprobs": (),
    "modalities": (["text"],),
    "n": (1,),
    "presence_penalty": (),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
    "tools": (),
    "top_logprobs": (),
    "web_search_options": (),
}
#: More helpful than "leave it out".
INSTEAD = {
    "frequency_penalty": "Give repetition_penalty, a factor such as 1.1.",
    "presence_penalty": "Give repetition_penalty, a factor such as 1.1.",
    "response_format": "The model cannot promise JSON or a schema: ask for it in a message, and leave response_format out.",
    "tools": "The model calls no tools: give tool_choice 'none', or leave tools out.",
}
#: Before base64, where a recording is written as a `data:` URL.
DATA_URL, DATA_URL_MARK = "data:", ";base64,"
AUDIO_PLACEHOLDER = "<audio>"
MAX_STOP_STRINGS = 16
MIN_SEED, MAX_SEED = -(2**63), 2**63 - 1
DEFAULT_TEMPERATURE = 1.0
#: pydantic puts the kind of a part before its fields.
PART_KINDS = ("text", "input_audio")
#: Role of messages that hold what a tool returned.
RESULT_ROLE = "tool"


class _Body(BaseModel):
    """Part of a body; values are not converted, unknown fields are ignored, and so are those that are null."""

    model_config = ConfigDict(extra="ignore", strict=True, ser_json_bytes="base64")

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:  # clients send answers back with all their fields
        return {name: one for name, one in given.items() if one is not None} if isinstance(given, dict) else given


class TextPart(_Body):
    """Text."""

    type: Literal["text"]
    text: str


def _decoded(data: Any) -> bytes:
    """Return the bytes of a file in base64; pydantic makes a ValueError the fault of the field."""
    if not isinstance(data, str):
        raise ValueError("expected text")
    if data.startswith(DATA_URL):
        data = data.partition(DATA_URL_MARK)[2]
    try:
        return base64.b64decode(data, validate=True)
    except ValueError as error:
        raise ValueError(f"expected the bytes of a file in base64 ({error})") from None


class AudioBytes(_Body):
    """A file in base64; its format is read from the bytes."""

    data: Annotated[bytes, BeforeValidator(_decoded)]


class AudioPart(_Body):
    """A recording."""

    type: Literal["input_audio"]
    input_audio: AudioBytes
    _where: str = PrivateAttr("")  # its place in the request, for errors


class FunctionCall(_Body):
    """A call that an assistant asked for: a function's name, and its arguments as JSON."""

    name: str
    arguments: str = "{}"

    def __str__(self) -> str:
        return f"Call of {self.name}: {self.arguments}"


class ToolCall(_Body):
    """A function call with an id, by which its result is found."""

    id: str = ""
    function: FunctionCall


class Message(_Body):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: list[Annotated[TextPart | AudioPart, Field(discriminator="type")]]
    name: str | None = None
    tool_calls: list[ToolCall] = Field(default_factory=list)
    tool_call_id: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _content_as_parts(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        content = given.get("content")
        if content is None and given.get("tool_calls"):
            content = []
        return {**given, "content": [{"type": "text", "text": content}] if isinstance(content, str) else content}


class ChatRequest(_Body):
    """A request."""

    model: str | None = None
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=MIN_SEED, le=MAX_SEED)
    stop: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list, max_length=MAX_STOP_STRINGS)
    stream: bool = False
    stream_options: dict[str, Any] = Field(default_factory=dict)
    repetition_penalty: float | None = Field(None, gt=0)
    user: str | None = None
    prompt_cache_key: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_stop_string(cls, given: Any) -> Any:
        return {**given, "stop": [given["stop"]]} if isinstance(given.get("stop"), str) else given

    @property
    def bound(self) -> int | None:
        """The smaller bound on new tokens, where two are given."""
        return min(filter(None, (self.max_completion_tokens, self.max_tokens)), default=None)

    @property
    def sampling_temperature(self) -> float:
        """0 decodes greedily; so does a request that gives neither a temperature nor top_p."""
        if self.temperature is not None:
            return self.temperature
        return DEFAULT_TEMPERATURE if self.top_p is not None and self.top_p < 1 else 0.0


def read_chat_request(body: bytes) -> ChatRequest:
    """
    Read the body of a request.

    Raises:
        ApiError: it is not JSON, a field is missing or wrong, or one asks for what cannot be done. The error names it.
    """
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:
        reason = f"The body is not JSON ({type(error).__name__}: {error})."
        raise invalid(reason, code="invalid_json") from None
    if not isinstance(given, dict):
        raise invalid(f"The body is a JSON {type(given).__name__}; expected an object.", code="invalid_json")
    for name, harmless in NOTHING_ASKED.items():
        if given.get(name) and given[name] not in harmless:
            if name == "tools" and given.get("tool_choice") == "none":
                continue
            instead = INSTEAD.get(name) or f"Leave it out{''.join(f', or give {each!r}' for each in harmless)}."
            raise invalid(f"{name} is not supported by this server. {instead}", name, "unsupported_parameter")
    try:
        request = ChatRequest.model_validate(given)
    except ValidationError as error:
        raise about_field(error) from None
    for index, message in enumerate(request.messages):
        for number, part in enumerate(message.content):
            where = f"messages[{index}].content[{number}]"
            if isinstance(part, TextPart):
                _refuse_placeholder(part.text, where)
            elif message.role != "user":
                raise invalid(f"{where}: a message of {message.role} holds text alone.", where)
            else:
                part._where = where
        message.role = "system" if message.role == "developer" else message.role
    request.messages = _tools_as_text(request.messages)
    last = request.messages[-1]
    if last.role != "user" or not any(isinstance(part, AudioPart) or part.text.strip() for part in last.content):
        is_empty = "an empty one" if last.role == "user" else "one"
        expected = "expected one of user, with text or a recording"
        raise invalid(f"The last message is {is_empty} of {last.role}; {expected}.", "messages")
    return request


def _refuse_placeholder(text: str, where: str) -> None:
    if AUDIO_PLACEHOLDER in text:
        raise invalid(
            f"{where}: the text contains {AUDIO_PLACEHOLDER}, which stands for a recording. Send a recording as a part "
            "of type input_audio, in its place among the parts.",
            where,
        )


def _tools_as_text(messages: list[Message]) -> list[Message]:
    """
    Return the messages with tool calls and their results in words, which every chat template can render.

    Calls follow the text of their turn. Results become a turn of the user; those of one turn are joined.
    """
    names = {call.id: call.function.name for message in messages for call in message.tool_calls}
    plain: list[Message] = []
    previous = ""
    for index, message in enumerate(messages):
        role, lines = message.role, [str(call.function) for call in message.tool_calls]
        if role == RESULT_ROLE:
            name = names.get(message.tool_call_id or "") or message.name or message.tool_call_id or "the tool"
            said = "".join(part.text for part in message.content if isinstance(part, TextPart))
            lines, message.content, message.role = [f"Result of {name}: {said}"], [], "user"
            if previous == RESULT_ROLE:
                message.content = plain.pop().content
        if lines:
            joined = "\n".join(lines)
            _refuse_placeholder(joined, f"messages[{index}]")
            message.content.append(TextPart(type="text", text=f"\n{joined}" if message.content else joined))
        plain.append(message)
        previous = role
    return plain


def about_field(error: ValidationError) -> ApiError:
    """Return the first fault by the name of its field, without the value, which may be long."""
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    steps = [
        step
        for before, step in zip((None, *first["loc"]), first["loc"])
        if not (isinstance(before, int) and step in PART_KINDS)
    ]
    field = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).removeprefix(".")
    message = first["msg"].removeprefix("Value error, ")
    return invalid(f"{field}: {message}." if field else f"{message}.", field or None)

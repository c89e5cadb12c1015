"""Conversations with typed audio content, rendered through any language model's own chat template."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

#: What stands for a recording in text, until it is expanded.
AUDIO_PLACEHOLDER = "<audio>"
#: Label of a position that is not learned.
IGNORED_LABEL = -100
AUDIO_SOURCES = ("path", "audio", "url")


class ConversationError(ValueError):
    """A conversation that cannot be rendered; the message names the message and part at fault."""


@dataclass(frozen=True)
class Segment:
    """A stretch of rendered text, and whether it is what the model is to learn to say."""

    text: str
    is_target: bool


def flatten_conversation(messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[Any]]:
    """
    Messages with string contents only, and the recordings that stood in them in reading order.

    Raises:
        ConversationError: a message has no role or content, or a part is of an unknown type or lacks its value.
    """
    if not messages:
        raise ConversationError("The conversation is empty; expected a list of messages.")
    flat, recordings = [], []
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or "role" not in message or "content" not in message:
            raise ConversationError(f"Message {index} is {message!r}; expected a dict with 'role' and 'content'.")
        content = message["content"]
        if not isinstance(content, str):
            content = "".join(
                _flatten_part(part, f"Message {index}, part {n}", recordings) for n, part in enumerate(content)
            )
        flat.append({**message, "content": content})
    return flat, recordings


def _flatten_part(part: Any, where: str, recordings: list[Any]) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text":
        if not isinstance(part.get("text"), str):
            raise ConversationError(f"{where}: a text part needs a string under 'text', got {part!r}.")
        if AUDIO_PLACEHOLDER in part["text"]:
            raise ConversationError(
                f"{where}: the text contains {AUDIO_PLACEHOLDER}, which stands for a recording. Give the recording as a "
                "part of its own: {'type': 'audio', 'path': ...}."
            )
        return part["text"]
    if kind == "audio":
        given = [name for name in AUDIO_SOURCES if part.get(name) is not None]
        if len(given) != 1:
            raise ConversationError(
                f"{where}: an audio part needs exactly one of {AUDIO_SOURCES}, got {sorted(part)}."
            )
        recordings.append(part[given[0]])
        return AUDIO_PLACEHOLDER
    raise ConversationError(f"{where}: expected a dict of type 'text' or 'audio', got {part!r}.")


def render_segments(
    messages: list[dict[str, Any]],
    render: Callable[..., str],
    add_generation_prompt: bool = False,
    continue_final_message: bool = False,
) -> list[Segment]:
    """
    Renders a conversation and marks what the assistant says, whatever the template.

    Templates seldom say where a turn begins. So the conversation is also rendered up to each assistant turn, with the
    opening of that turn at its end; what the full text has after it is what the model should say there.

    Args:
        messages: with string contents.
        render: `render(messages, add_generation_prompt=..., continue_final_message=...)` gives the text.
        add_generation_prompt, continue_final_message: how the text ends.

    Raises:
        ConversationError: an assistant turn cannot be found in the rendered text.
    """
    full = render(messages, add_generation_prompt=add_generation_prompt, continue_final_message=continue_final_message)
    segments: list[Segment] = []
    position = 0
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        is_last = index == len(messages) - 1
        start, end = _find_turn(messages, index, full, position, render, is_last and continue_final_message)
        # Blank space after the end-of-turn token belongs to the template, not to the answer.
        end = start + len(full[start:end].rstrip())
        segments.append(Segment(full[position:start], False))
        segments.append(Segment(full[start:end], True))
        position = end
    segments.append(Segment(full[position:], False))
    return [segment for segment in segments if segment.text]


def _find_turn(
    messages: list[dict[str, Any]], index: int, full: str, position: int, render: Callable[..., str], is_open: bool
) -> tuple[int, int]:
    before = render(messages[:index], add_generation_prompt=True) if index else ""
    through = full if is_open else render(messages[: index + 1], add_generation_prompt=False)
    if index and through.startswith(before) and full.startswith(through) and len(before) >= position:
        return len(before), len(through)
    # The template adds something to earlier or later turns: look for the answer itself.
    content = messages[index]["content"].strip()
    start = full.find(content, position)
    if not content or start < 0:
        raise ConversationError(
            f"The chat template does not show message {index} (assistant) as written, so that its labels cannot be "
            "placed. Pass another chat_template."
        )
    end = start + len(content)
    next_turn = full.find("\n", end)
    return start, next_turn if next_turn >= 0 else len(full)


__all__ = [
    "AUDIO_PLACEHOLDER",
    "IGNORED_LABEL",
    "ConversationError",
    "Segment",
    "flatten_conversation",
    "render_segments",
]

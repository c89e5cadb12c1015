"""Conversations with audio, rendered through any language model's own chat template, and a tokenizer that knows audio."""

import copy
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from numbers import Number
from typing import Any

#: `<audio>` opens a recording in the text, and stands for it in what users write; `</audio>` closes it.
AUDIO_BEGIN_TOKEN = AUDIO_PLACEHOLDER = "<audio>"
AUDIO_SLOT_TOKEN = "<|audio_slot|>"
AUDIO_END_TOKEN = "</audio>"
#: Takes an id that the embedding matrix has but the tokenizer does not.
UNUSED_TOKEN = "<|audiollm_unused_{}|>"
#: Each of several templates is saved as a file of its name.
TEMPLATE_NAME = re.compile(r"\w[\w.-]*")
DEFAULT_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
#: Label of a position that is not learned.
IGNORED_LABEL = -100
#: Fields of an audio part that may hold the recording; the last is Qwen's.
AUDIO_SOURCES = ("path", "audio", "url", "audio_url")
#: Stands for an answer while its place is looked for: characters that no text contains.
MARK = "\ue000\uf8ff\ue000"
#: Opens what the assistant says, in templates written for training.
GENERATION_TAG = re.compile(r"\{%-?\s*generation\b")
#: Rendering options of a text that ends with its last message.
NO_ENDING = {"add_generation_prompt": False, "continue_final_message": False}


class ConversationError(ValueError):
    """A conversation that cannot be rendered; the message names the message and part at fault."""


@dataclass(frozen=True)
class Segment:
    """A stretch of rendered text, and whether it is what the model is to learn to say."""

    text: str
    is_target: bool


def flatten_batch(conversations: Iterable[Any], beside: bool = False) -> list[tuple[list[dict[str, Any]], list[Any]]]:
    """`flatten_conversation` of each; errors name the conversation."""
    flat = []
    for number, messages in enumerate(conversations):
        try:
            flat.append(flatten_conversation(messages, beside))
        except ConversationError as error:
            raise ConversationError(f"Conversation {number}: {error}") from error
    return flat


def flatten_conversation(messages: Any, beside: bool = False) -> tuple[list[dict[str, Any]], list[Any]]:
    """
    Return messages with string contents only, and the recordings that stood in them in reading order.

    Args:
        messages: each with a role and a content: a string, or typed parts.
        beside: lets an audio part be a placeholder, for a recording that is passed beside the conversation.

    Raises:
        ConversationError: a message or a part is malformed.
    """
    if not isinstance(messages, (list, tuple)) or not messages:
        found = repr(messages) if messages else "empty"
        raise ConversationError(f"The conversation is {found}; expected a list of messages.")
    flat: list[dict[str, Any]] = []
    recordings: list[Any] = []
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str) or "content" not in message:
            raise ConversationError(f"Message {index} is {message!r}; expected a dict with 'role' and 'content'.")
        content = message["content"]
        if isinstance(content, (list, tuple)):
            parts = enumerate(content)
            content = "".join(
                _flatten_part(part, f"Message {index}, part {n}", recordings, beside) for n, part in parts
            )
        elif not isinstance(content, str):
            raise ConversationError(
                f"Message {index} ({message['role']}): content is {content!r}; expected a string or a list of parts."
            )
        flat.append({**message, "content": content})
    return flat, recordings


def _flatten_part(part: Any, where: str, recordings: list[Any], beside: bool) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text":
        if not isinstance(part.get("text"), str):
            raise ConversationError(f"{where}: a text part needs a string under 'text', got {part!r}.")
        if AUDIO_PLACEHOLDER in part["text"]:
            raise ConversationError(
                f"{where}: the text contains {AUDIO_PLACEHOLDER}. Give the recording as a part: {{'type': 'audio', ...}}."
            )
        return part["text"]
    if kind == "audio":
        given = [name for name in AUDIO_SOURCES if part.get(name) is not None]
        if not given and beside:
            return AUDIO_PLACEHOLDER
        if len(given) != 1:
            raise ConversationError(
                f"{where}: an audio part needs exactly one of {AUDIO_SOURCES}, got {sorted(part)}."
            )
        recordings.append(part[given[0]])
        return AUDIO_PLACEHOLDER
    raise ConversationError(f"{where}: expected a dict of type 'text' or 'audio', got {part!r}.")


@lru_cache(maxsize=8)
def takes_parts(template: str | None) -> bool:
    """Return True where a template shows contents that are lists of typed parts, and none that are strings."""
    from transformers.utils.chat_template_utils import render_jinja_template

    def shown(content: Any) -> bool:
        messages = [{"role": role, "content": content} for role in ("user", "assistant")]
        try:
            rendered: Any = render_jinja_template([messages], chat_template=template, bos_token="", eos_token="")
        except Exception:  # the template's own, of any kind
            return False
        return rendered[0][0].count(MARK) == len(messages)

    return template is not None and not shown(MARK) and shown([{"type": "text", "text": MARK}])


def split_at_spans(text: str, spans: Iterable[tuple[int, int]]) -> list[Segment]:
    """Split a text into segments, those at `spans` to be learned."""
    segments, position = [], 0
    for start, end in spans:
        segments += [Segment(text[position:start], False), Segment(text[start:end], True)]
        position = end
    segments.append(Segment(text[position:], False))
    return [segment for segment in segments if segment.text]


def render_segments(
    messages: list[dict[str, Any]],
    render: Callable[..., str],
    add_generation_prompt: bool = False,
    continue_final_message: bool = False,
    special_tokens: Iterable[str] = (),
) -> list[Segment]:
    """
    Render a conversation and mark what the assistant says, whatever the template.

    Templates do not say where a turn begins or ends. An answer begins where its prompt ends: the text of the messages
    before it, with the opening of the assistant's turn. What follows it is found by putting a mark in its place. A turn
    ends with the first special token of that, or with all that the template puts after the last turn.

    Args:
        messages: with string contents.
        render: `render(messages, add_generation_prompt=..., continue_final_message=...)` gives the text.
        add_generation_prompt, continue_final_message: how the text ends.
        special_tokens: of the tokenizer.
    """
    ending = {"add_generation_prompt": add_generation_prompt, "continue_final_message": continue_final_message}
    full = render(messages, **ending)
    special = re.compile(r"\s*(?:" + "|".join(map(re.escape, sorted(special_tokens, key=len, reverse=True))) + ")")
    spans: list[tuple[int, int]] = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        start, end = _find_answer(messages, index, full, render, ending)
        start = max(start, spans[-1][1] if spans else 0)
        is_open = continue_final_message and index == len(messages) - 1
        if not is_open:
            _, closing = _split_at_answer(messages[: index + 1], index, render, NO_ENDING)
            first = special.match(closing)
            closing = first.group() if first and first.group().strip() else closing.rstrip()
            end += len(closing) if full.startswith(closing, end) else 0
        spans.append((start, end))
    return split_at_spans(full, spans)


def _find_answer(
    messages: list[dict[str, Any]], index: int, full: str, render: Callable[..., str], ending: dict[str, bool]
) -> tuple[int, int]:
    """Return where in `full` the answer `index` begins, and where the message's content ends."""
    before, after = _split_at_answer(messages, index, render, ending)
    if not full.endswith(after):
        raise _unlike_written(index)
    end = len(full) - len(after)
    prompt = render(messages[:index], **{**NO_ENDING, "add_generation_prompt": True}) if index else None
    if prompt is not None and full[:end].startswith(prompt):
        return len(prompt), end
    # The template shows earlier messages differently once this one is there: begin with the content itself.
    differs = (n for n, (one, other) in enumerate(zip(full[:end], before)) if one != other)
    return next(differs, min(end, len(before))), end


def _split_at_answer(
    messages: list[dict[str, Any]], index: int, render: Callable[..., str], ending: dict[str, bool]
) -> tuple[str, str]:
    """Return the rendered text before and after the content of message `index`."""
    marked = [*messages[:index], {**messages[index], "content": MARK}, *messages[index + 1 :]]
    before, mark, after = render(marked, **ending).partition(MARK)
    if not mark or MARK in after:
        raise _unlike_written(index)
    return before, after


def _unlike_written(index: int) -> ConversationError:
    return ConversationError(
        f"The chat template does not show message {index} (assistant) once and as written. Pass another chat_template."
    )


# ---- which recordings belong to which text ------------------------------------------------------------------------------


def is_list(item: Any) -> bool:
    """Return True where `item` is a list or another sequence, and no text or bytes."""
    return isinstance(item, Sequence) and not isinstance(item, (str, bytes, bytearray))


def is_recording(item: Any) -> bool:
    """Return True where `item` is one recording rather than a list of them; a list of numbers is one."""
    return not is_list(item) or (len(item) > 0 and isinstance(item[0], Number))


def as_recordings(audio: Any) -> list[Any]:
    """Return one recording, a list of them, or None as a list of recordings or of lists of them."""
    if audio is None:
        return []
    return [audio] if is_recording(audio) else list(audio)


def distribute(audio: Any, counts: list[int], single_text: bool) -> list[list[Any]]:
    """
    Hand recordings to texts: `counts[i]` of them to text `i`.

    Raises:
        ValueError: they do not match; both counts are stated.
    """
    items = as_recordings(audio)
    if items and not any(is_recording(item) for item in items):
        if len(items) != len(counts) and not (single_text and len(items) == 1):
            raise ValueError(f"audio has lists for {len(items)} texts, but there are {len(counts)}.")
        for index, (row, count) in enumerate(zip(items, counts)):
            if len(row) != count:
                raise ValueError(
                    f"Text {index} has {count} {AUDIO_PLACEHOLDER} but is given {len(row)} recordings; expected one each."
                )
        return [list(row) for row in items]
    if len(items) != sum(counts):
        raise ValueError(
            f"The texts have {sum(counts)} {AUDIO_PLACEHOLDER} in all ({counts} each) but {len(items)} recordings are "
            "given; expected one recording per placeholder."
        )
    remaining = iter(items)
    return [[next(remaining) for _ in range(count)] for count in counts]


# ---- tokenizers -------------------------------------------------------------------------------------------------------


def add_audio_tokens(tokenizer, text_vocab_size: int | None = None):
    """
    Return a copy of `tokenizer` that knows the three audio tokens, with ids at and after `text_vocab_size`.

    Embedding matrices are often padded past the tokenizer's last id; placeholders that no text contains take the ids
    between. A tokenizer without a padding token pads with its end-of-text token; one without a chat template gets a
    plain one.
    """
    if AUDIO_SLOT_TOKEN in tokenizer.get_vocab():
        return tokenizer
    audio_tokens = [AUDIO_BEGIN_TOKEN, AUDIO_SLOT_TOKEN, AUDIO_END_TOKEN]
    taken = sorted(set(audio_tokens) & set(tokenizer.get_vocab()))
    if taken:
        raise ValueError(f"The tokenizer has a meaning of its own for {taken}; AudioLLM needs these for recordings.")
    first_id = len(tokenizer) if text_vocab_size is None else text_vocab_size
    if len(tokenizer) > first_id:
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} tokens, more than the language model's {text_vocab_size} embeddings."
        )
    tokenizer = copy.deepcopy(tokenizer)
    unused = [UNUSED_TOKEN.format(index) for index in range(len(tokenizer), first_id)]
    tokenizer.add_tokens(unused + audio_tokens, special_tokens=True)
    tokenizer.padding_side = "left"  # as the processor pads, and as generation needs
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.chat_template is None:
        logging.getLogger(__name__).warning("The tokenizer has no chat template; using a plain one.")
        tokenizer.chat_template = DEFAULT_CHAT_TEMPLATE
    return tokenizer


def check_template_names(chat_template: Any) -> None:
    """Raise ValueError where one of several templates has a name that would be saved as a file elsewhere."""
    names = chat_template if isinstance(chat_template, dict) else ()
    wrong = [name for name in names if not isinstance(name, str) or not TEMPLATE_NAME.fullmatch(name)]
    if wrong:
        raise ValueError(f"The chat template is named {wrong[0]!r}; expected letters, digits, '_', '-' and '.' alone.")

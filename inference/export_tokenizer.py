"""Tokenizer and chat template of an export: the boundary tokens are in the vocabulary, and put around each recording."""

import json
from collections.abc import Iterator
from typing import Any

from audiollm import AudioLlmProcessor
from audiollm.processing.conversations import AUDIO_BEGIN_TOKEN, AUDIO_END_TOKEN, AUDIO_SLOT_TOKEN

from .export_ultravox import ULTRAVOX_AUDIO_TOKEN, ExportError

#: How llama.cpp's markers of a recording begin and end; between them may be letters that change with every start.
LLAMA_CPP_MARKER = ("<__media", "__>")

#: Puts the boundary tokens around each recording, whichever engine says where it is, and hands the base's own template
#: plain strings. Engines tell by the loop over the content that parts are welcome.
TEMPLATE_PREAMBLE = """\
{%- set audiollm = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- set turn = namespace(text='', pieces=[]) -%}
{%- if message['content'] is string -%}
{%- set turn.text = message['content'] -%}
{%- elif message['content'] -%}
{%- for content in message['content'] -%}
{%- if content['type'] in ['audio', 'input_audio', 'audio_url'] -%}
{%- set turn.text = turn.text + 'AUDIO' -%}
{%- else -%}
{%- set turn.text = turn.text + content['text'] -%}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- if 'AUDIO' in turn.text -%}
{%- set turn.text = turn.text.replace('BEGINAUDIOEND', 'AUDIO').replace('AUDIO', 'BEGINAUDIOEND') -%}
{%- elif 'MARKER_START' in turn.text and 'BEGINMARKER_START' not in turn.text -%}
{%- set turn.pieces = turn.text.split('MARKER_START') -%}
{%- set turn.text = turn.pieces[0] -%}
{%- for piece in turn.pieces[1:] -%}
{%- set name = piece.split('MARKER_END', 1) -%}
{%- set turn.text = turn.text + 'BEGINMARKER_START' + name[0] + 'MARKER_ENDEND' + name[1] -%}
{%- endfor -%}
{%- endif -%}
{%- if turn.text -%}
{%- set audiollm.messages = audiollm.messages + [dict(message, content=turn.text)] -%}
{%- else -%}
{%- set audiollm.messages = audiollm.messages + [message] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = audiollm.messages %}"""


def chat_template(own: str) -> str:
    """The base's own chat template, after a preamble that puts `<audio>` and `</audio>` around each recording."""
    filled = TEMPLATE_PREAMBLE
    for name, value in (
        ("MARKER_START", LLAMA_CPP_MARKER[0]),
        ("MARKER_END", LLAMA_CPP_MARKER[1]),
        ("BEGIN", AUDIO_BEGIN_TOKEN),
        ("AUDIO", ULTRAVOX_AUDIO_TOKEN),
        ("END", AUDIO_END_TOKEN),
    ):
        filled = filled.replace(name, value)
    return filled + own


def tokenizer_files(processor: AudioLlmProcessor) -> Iterator[tuple[str, dict[str, Any]]]:
    """
    `tokenizer.json` and `tokenizer_config.json` of the processor's tokenizer, its slot named as Ultravox names it.

    Raises:
        ExportError: the tokenizer is not one of the `tokenizers` library, or has no default chat template.
    """
    tokenizer = processor.tokenizer
    if not tokenizer.is_fast:
        raise ExportError(f"{type(tokenizer).__name__} has no tokenizer.json, which engines read.")
    serialised = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in serialised["added_tokens"]:
        if token["content"] == AUDIO_SLOT_TOKEN:
            token["content"] = ULTRAVOX_AUDIO_TOKEN
    yield "tokenizer.json", serialised
    templates = processor.chat_template
    template = templates.get("default") if isinstance(templates, dict) else templates
    if template is None:
        raise ExportError(f"There is no default chat template, only {sorted(templates or ())}; engines need one.")
    special = dict(tokenizer.special_tokens_map)
    yield (
        "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **{name: str(value) for name, value in special.items() if isinstance(value, str)},
            "additional_special_tokens": [AUDIO_BEGIN_TOKEN, ULTRAVOX_AUDIO_TOKEN, AUDIO_END_TOKEN],
            "clean_up_tokenization_spaces": False,
            "model_max_length": tokenizer.model_max_length,
            "padding_side": "left",
            "chat_template": chat_template(template),
        },
    )


__all__ = ["chat_template", "tokenizer_files"]

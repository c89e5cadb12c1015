"""The three tokens that stand for a recording in text, and a tokenizer that knows them."""

import copy
import re
from typing import Any

from transformers.utils import logging

from .conversations import AUDIO_PLACEHOLDER

logger = logging.get_logger(__name__)

#: `<audio>` opens a recording in the text, and stands for it in what users write; `</audio>` closes it.
AUDIO_BEGIN_TOKEN = AUDIO_PLACEHOLDER
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


def add_audio_tokens(tokenizer, text_vocab_size: int | None = None):
    """
    A copy of `tokenizer` that knows the three audio tokens, with ids at and after `text_vocab_size`.

    Embedding matrices are often padded past the tokenizer's last id. The ids between are then taken by placeholders
    that no text contains, so that the audio ids lie past the matrix in tokenizer and model alike. A tokenizer without
    a padding token pads with its end-of-text token, under a mask; one without a chat template gets a plain one.
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
            f"The tokenizer has {len(tokenizer)} tokens, more than the language model's {text_vocab_size} embeddings. Is "
            "it another model's?"
        )
    tokenizer = copy.deepcopy(tokenizer)
    unused = [UNUSED_TOKEN.format(index) for index in range(len(tokenizer), first_id)]
    tokenizer.add_tokens(unused + audio_tokens, special_tokens=True)
    tokenizer.padding_side = "left"  # as the processor pads, and as generation needs
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.chat_template is None:
        logger.warning(
            "The tokenizer has no chat template (a base model rather than a chat model); using a plain one."
        )
        tokenizer.chat_template = DEFAULT_CHAT_TEMPLATE
    return tokenizer


def check_template_names(chat_template: Any) -> None:
    """
    Raises:
        ValueError: one of several templates has a name that would be saved as a file elsewhere.
    """
    names = chat_template if isinstance(chat_template, dict) else ()
    wrong = [name for name in names if not isinstance(name, str) or not TEMPLATE_NAME.fullmatch(name)]
    if wrong:
        raise ValueError(f"The chat template is named {wrong[0]!r}; expected letters, digits, '_', '-' and '.' alone.")


__all__ = ["AUDIO_BEGIN_TOKEN", "AUDIO_END_TOKEN", "AUDIO_SLOT_TOKEN", "add_audio_tokens", "check_template_names"]

"""What a field of the configuration may hold; errors name the field, the value and what is allowed."""

from typing import Any

from transformers.configuration_utils import PretrainedConfig

#: Largest sizes that are believed, several times those of the largest models there are. A configuration of a damaged or
#: hostile checkpoint is so refused before memory is asked for, or layers are built one by one, for what it claims.
LARGEST_SIZES = {
    "vocab_size": 1 << 22,
    "hidden_size": 1 << 17,
    "d_model": 1 << 17,
    "intermediate_size": 1 << 20,
    "encoder_ffn_dim": 1 << 20,
    "decoder_ffn_dim": 1 << 20,
    "num_hidden_layers": 1 << 10,
    "encoder_layers": 1 << 10,
    "decoder_layers": 1 << 10,
    "num_attention_heads": 1 << 12,
    "num_key_value_heads": 1 << 12,
    "encoder_attention_heads": 1 << 12,
    "decoder_attention_heads": 1 << 12,
    "head_dim": 1 << 14,
    "num_mel_bins": 1 << 12,
    "max_source_positions": 1 << 16,
    "max_target_positions": 1 << 16,
}
LARGEST_PROJECTOR = 1 << 20
LARGEST_RANK = 1 << 14
#: Token ids are stored in 32 bits.
LARGEST_TOKEN_ID = (1 << 31) - 1
MAX_SHOWN_CHARACTERS = 200


def shown(value: Any) -> str:
    """A value in an error, however long it is."""
    text = str(value) if isinstance(value, int) and abs(value) >= 1 << 64 else repr(value)
    return text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[:MAX_SHOWN_CHARACTERS]}…"


def require_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} is {shown(value)}; expected one of {choices}.")


def require_flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {shown(value)}; expected True or False.")


def require_text(name: str, value: Any) -> None:
    if value is not None and (not isinstance(value, str) or not value.isprintable()):
        raise ValueError(f"{name} is {shown(value)}; expected text on one line, or None.")


def require_texts(name: str, value: Any) -> None:
    """A non-empty list of texts that are not empty."""
    valid = isinstance(value, (list, tuple)) and len(value) > 0
    if not (valid and all(isinstance(each, str) and each and each.isprintable() for each in value)):
        raise ValueError(f"{name} is {shown(value)}; expected a non-empty list of module names.")


def require_integer(name: str, value: Any, at_least: int, at_most: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ValueError(f"{name} is {shown(value)}; expected an integer of at least {at_least}.")
    if at_most is not None and value > at_most:
        raise ValueError(f"{name} is {shown(value)}; expected at most {at_most}.")


def require_number(
    name: str, value: Any, above: float | None = None, at_least: float | None = None, below: float | None = None
) -> None:
    """A finite number within the bounds."""
    bounds = {"above": above, "at least": at_least, "below": below}
    expected = " and ".join(f"{word} {bound}" for word, bound in bounds.items() if bound is not None)
    valid = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")
    valid = valid and (above is None or value > above) and (at_least is None or value >= at_least)
    if not (valid and (below is None or value < below)):
        raise ValueError(f"{name} is {shown(value)}; expected a number {expected}.")


def require_sizes(name: str, config: PretrainedConfig) -> None:
    """The sizes of a sub-configuration, as far as it has them."""
    for field, largest in LARGEST_SIZES.items():
        value = getattr(config, field, None)
        if isinstance(value, int):
            require_integer(f"{name}.{field}", value, at_least=0, at_most=largest)


__all__ = [
    "LARGEST_PROJECTOR",
    "LARGEST_RANK",
    "LARGEST_TOKEN_ID",
    "require_choice",
    "require_flag",
    "require_integer",
    "require_number",
    "require_sizes",
    "require_text",
    "require_texts",
    "shown",
]

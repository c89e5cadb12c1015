"""Quantisation to 8 or 4 bits, as the commands' options ask for it."""

import torch
from transformers import BitsAndBytesConfig

#: Of QLoRA (Dettmers et al. 2023, arXiv:2305.14314): four bits spaced as weights are, their scales quantised again.
FOUR_BIT_TYPE, FOUR_BIT_SCALES_TOO = "nf4", True


def quantisation(load_in_8bit: bool, load_in_4bit: bool, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """
    Return the quantisation of the language model's layers; None leaves them as they are.

    Args:
        load_in_8bit, load_in_4bit: the commands' options.
        dtype: precision that the products are computed in.
    """
    if load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True)
    if load_in_4bit:
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=FOUR_BIT_TYPE,
            bnb_4bit_use_double_quant=FOUR_BIT_SCALES_TOO,
            bnb_4bit_compute_dtype=dtype,
        )
    return None


__all__ = ["quantisation"]

"""`--load_in_8bit` and `--load_in_4bit` in training: what a language model in few bits cannot do there (QLoRA)."""

from transformers import TrainingArguments
from transformers.utils import is_bitsandbytes_available

from .sharding import asks_for_fsdp


def check_quantisation(load_in_8bit: bool, load_in_4bit: bool, llm_trains: bool, arguments: TrainingArguments) -> None:
    """
    Refuses what quantised layers cannot do.

    Raises:
        ValueError: both widths are asked for, the language model itself is to train, training is sharded, or
            bitsandbytes is not installed.
    """
    given = [name for name, asked in (("8bit", load_in_8bit), ("4bit", load_in_4bit)) if asked]
    if not given:
        return
    option = f"--load_in_{given[0]}"
    if len(given) > 1:
        raise ValueError("--load_in_8bit contradicts --load_in_4bit; give one of them.")
    if llm_trains:
        raise ValueError(f"{option} freezes the language model in few bits; --trainable cannot include it.")
    if asks_for_fsdp(arguments):
        raise ValueError(
            f"{option} cannot be sharded by FSDP. A quantised base is small: train it under DDP "
            "(training/distributed/ddp.yaml), or shard it without quantising."
        )
    if not is_bitsandbytes_available():
        raise ValueError(f"{option} needs bitsandbytes, which is not installed: pip install 'audiollm[quantised]'.")

"""Options of every command that loads a model: which one, where, in what precision, and what makes it answer sooner."""

from dataclasses import dataclass, field
from typing import Any

from audiollm import AudioLlmForConditionalGeneration

from .loading import DEFAULT_MODEL, DTYPES, check_few_bits, load_model


@dataclass
class LoadingArguments:
    """Which model, and how it is loaded."""

    model: str | None = field(
        default=None,
        metadata={"help": f"AudioLLM checkpoint: a folder or a Hub id. When not given, {DEFAULT_MODEL}."},
    )
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub id."})
    dtype: str = field(default="auto", metadata={"help": "Precision of the bases.", "choices": DTYPES})
    device: str | None = field(
        default=None,
        metadata={"help": "Where to put the model: cpu, cuda:0, or auto to spread it; a GPU if there is one."},
    )
    load_in_8bit: bool = field(
        default=False, metadata={"help": "Language model in 8 bits, by bitsandbytes: less memory, other rounding."}
    )
    load_in_4bit: bool = field(default=False, metadata={"help": "Language model in 4 bits, likewise."})
    attn_implementation: str | None = field(
        default=None,
        metadata={"help": "Attention: sdpa, eager, flash_attention_2, ...; sdpa where the bases have it."},
    )
    merge_adapters: bool = field(
        default=False,
        metadata={
            "help": "Fold the adapter into the language model, which then answers sooner. Questions without audio are "
            "then answered by the adapted model too, no more by the base as it was."
        },
    )

    def __post_init__(self):
        check_few_bits(self.load_in_8bit, self.load_in_4bit, self.merge_adapters)

    def load_model(self, checkpoint: str) -> AudioLlmForConditionalGeneration:
        """
        The model of a checkpoint that `find_checkpoint` has found, as these options have it.

        Raises:
            CheckpointError: see `loading.load_model`.
        """
        return load_model(checkpoint, self.dtype, self.device, self.revision, **self.loading_options())

    def loading_options(self) -> dict[str, Any]:
        """What `loading.load_model` and `loading.load` take beside precision, device and revision."""
        return {
            "load_in_8bit": self.load_in_8bit,
            "load_in_4bit": self.load_in_4bit,
            "attn_implementation": self.attn_implementation,
            "merge_adapters": self.merge_adapters,
        }


__all__ = ["LoadingArguments"]

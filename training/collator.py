"""Batches of conversations for transformers' own Trainer, and for any other that takes a data collator."""

from dataclasses import dataclass
from typing import Any

import torch
from audiollm.processing import AudioLlmProcessor
from audiollm.processing.conversations import as_recordings


@dataclass
class ConversationCollator:
    """
    Encodes rows of conversations, with labels on what the assistant says.

    A row has `messages`, as for [`AudioLlmProcessor.apply_chat_template`]. Its recordings are parts of the messages
    (`{"type": "audio", "path": ...}`), or lie beside them in `audio`: one recording or a list, in the order of the
    `<audio>` in the text. One batch keeps to one of the two ways. Rows without audio may be mixed in.

    With the Trainer pass `remove_unused_columns=False`: the model knows no column of that name.

    Attributes:
        processor: the model's.
        pad_to_multiple_of: rounds the length up, for hardware that likes it.
    """

    processor: AudioLlmProcessor
    pad_to_multiple_of: int | None = None

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return `input_ids`, `attention_mask` and `labels` `(rows, length)`, and the features of all recordings."""
        recordings = [as_recordings(row.get("audio")) for row in rows]
        batch = self.processor.apply_chat_template(
            [row["messages"] for row in rows],
            audio=recordings if any(recordings) else None,
            tokenize=True,
            output_labels=True,
            padding_side="right",
            pad_to_multiple_of=self.pad_to_multiple_of,
        )
        return dict(batch)

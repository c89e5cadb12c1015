"""A corpus of the bundled speech, as a source to prepare."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from audiollm.corpora.clips import BadClip, Clip, ClipSource
from audiollm.corpora.prompts import load_studio_prompts


@dataclass
class StudioSource(ClipSource):
    """The first clips of a split of the studio prompts, with whatever else a test puts after them."""

    limit: int = 12
    split: str = "test"
    more: list[Clip | BadClip] = field(default_factory=list)
    name: str = "studio prompts"

    @property
    def identity(self) -> dict[str, Any]:
        return {"corpus": self.name, "split": self.split, "limit": self.limit}

    def count(self) -> int:
        return self.limit + len(self.more)

    def clips(self, start: int = 0) -> Iterator[Clip | BadClip]:
        rows = load_studio_prompts(self.split).select(range(self.limit))
        made = [Clip(row["id"], row["audio"], row["text"], fields={"speaker": row["speaker"]}) for row in rows]
        yield from [*made, *self.more][start:]


def tone(path: Path, seconds: float = 0.2) -> Path:
    """A recording of one tone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    waveform = 0.3 * np.sin(2 * np.pi * 440 * np.arange(round(16_000 * seconds)) / 16_000)
    soundfile.write(path, waveform, 16_000, format="MP3" if path.suffix == ".mp3" else "WAV")
    return path

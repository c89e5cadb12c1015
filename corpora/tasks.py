"""Tasks: questions about clips, from `tasks.yaml`, and the examples that they make of a clip."""

import hashlib
import string
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from audiollm.processing.conversations import AUDIO_PLACEHOLDER

TASKS_FILE = Path(__file__).parent / "tasks.yaml"


@dataclass(frozen=True)
class Task:
    """One thing to ask about a clip."""

    name: str
    response: str  # the field that answers
    prompts: tuple[str, ...]  # wordings, in which `{name}` stands for a field and `<audio>`, once, for the recording

    def __post_init__(self):
        bad = [prompt for prompt in self.prompts if prompt.count(AUDIO_PLACEHOLDER) != 1]
        if bad or not self.prompts:
            found = f"found {bad[0]!r}" if bad else "found none"
            raise ValueError(f"Task {self.name!r}: expected prompts with one {AUDIO_PLACEHOLDER} each, {found}.")

    @property
    def fields(self) -> tuple[str, ...]:
        """Return the fields that a clip must have to take part, the response first."""
        named = (name for prompt in self.prompts for _, name, _, _ in string.Formatter().parse(prompt) if name)
        return tuple(dict.fromkeys((self.response, *named)))

    def missing(self, fields: Mapping[str, Any]) -> list[str]:
        """Return the fields that a clip lacks, or has as an empty text."""
        return [name for name in self.fields if not str(fields.get(name) or "").strip()]

    def ask(self, identity: str, fields: Mapping[str, Any]) -> tuple[str, str]:
        """
        Return prompt and response for one clip; the wording depends on the clip's id alone.

        ValueError is raised where a field that the prompt quotes holds `<audio>` itself.
        """
        digest = hashlib.sha256(f"{self.name}/{identity}".encode("utf-8", "surrogatepass")).digest()
        wording = self.prompts[int.from_bytes(digest[:8], "big") % len(self.prompts)]
        prompt = wording.format_map(fields)
        if prompt.count(AUDIO_PLACEHOLDER) != 1 or AUDIO_PLACEHOLDER in str(fields[self.response]):
            raise ValueError(f"a field holds {AUDIO_PLACEHOLDER}, which stands for a recording")
        return prompt, str(fields[self.response]).strip()


@lru_cache(maxsize=1)
def known_tasks() -> dict[str, Task]:
    """Return the tasks that ship with the package, by name."""
    table = yaml.safe_load(TASKS_FILE.read_text(encoding="utf-8"))
    return {name: Task(name, entry["response"], tuple(entry["prompts"])) for name, entry in table.items()}

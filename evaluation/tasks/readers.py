"""The functions that read tasks' data, by the names that `tasks.yaml` calls them."""

from collections.abc import Callable, Iterator

from .air_bench import air_bench_chat, air_bench_foundation
from .embedded import no_speech, retention_choices, retention_texts, studio_prompts, unseen_speech
from .joined import fleurs_translation, sessions
from .settings import Settings
from .tables import librispeech_items, table_items
from .task import Item, Problem

#: Each takes the task's name, its settings, a copy on disk or None, and how many questions are wanted.
READERS: dict[str, Callable[[str, Settings, str | None, int | None], Iterator[Item | Problem]]] = {
    "table": table_items,
    "librispeech": librispeech_items,
    "sessions": sessions,
    "fleurs_translation": fleurs_translation,
    "air_bench_foundation": air_bench_foundation,
    "air_bench_chat": air_bench_chat,
    "studio_prompts": studio_prompts,
    "unseen_speech": unseen_speech,
    "no_speech": no_speech,
    "retention_texts": retention_texts,
    "retention_choices": retention_choices,
}

__all__ = ["READERS"]

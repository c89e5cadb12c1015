"""Two processes that write into one file at once."""

import json
import multiprocessing
from pathlib import Path

from audiollm.inference.transcribing import PartialTranscript, Phrase

WINDOWS = 400
MADE_WITH = {"audio_sha256": "0", "weights": "1"}


def _add_windows(path: Path, first: int, step: int) -> None:
    partial = PartialTranscript(path, MADE_WITH)
    for start in range(first, WINDOWS, step):
        partial.add({(start, start + 1): [Phrase(f"é {start}\\n", False)]})


def test_two_processes_keep_partial_transcripts_in_one_file(tmp_path) -> None:
    path = tmp_path / "long.partial.jsonl"
    PartialTranscript(path, MADE_WITH).add({(-1, 0): [Phrase("begun", False)]})
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_add_windows, args=(path, first, 2)) for first in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    kept = PartialTranscript(path, MADE_WITH)
    assert len(kept) == WINDOWS + 1
    assert all(kept.get(start, start + 1) == [Phrase(f"é {start}\\n", False)] for start in range(WINDOWS))


def test_what_the_other_process_has_removed_is_written_anew(tmp_path) -> None:
    """Whoever is done first removes the partial transcript; the other goes on."""
    path = tmp_path / "long.partial.jsonl"
    ours, theirs = PartialTranscript(path, MADE_WITH), PartialTranscript(path, MADE_WITH)
    ours.add({(0, 1): [Phrase("one", False)]})
    theirs.add({(0, 1): [Phrase("one", False)]})
    theirs.journal.path.unlink()
    ours.add({(1, 2): [Phrase("two", False)]})
    assert PartialTranscript(path, MADE_WITH).get(1, 2) == [Phrase("two", False)]
    assert all(json.loads(line) for line in path.read_text().splitlines())

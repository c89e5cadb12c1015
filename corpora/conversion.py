"""
The first pass over a corpus: every clip decoded and written once, by several processes, with a journal to go on from.

A line of the journal stands for a clip, in the source's order, and is written after the clip's file: after a kill, what
has a line is done. Memory holds a bounded number of clips, whatever the corpus' size.
"""

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from audiollm.files import Journal, written
from audiollm.interruption import check_interrupted, interruptible
from audiollm.processing.audio_io import AudioError
from tqdm.auto import tqdm

from .clips import BadClip, Clip, ClipSource, safe_name
from .output_folder import is_inside
from .parallel import in_order
from .recordings import AUDIO_FORMATS, AudioSettings, write_clip

AUDIO_FOLDER = "audio"
CLIPS_PER_FOLDER = 1000
#: What is handed to a process at once: at most so many clips, and no more once they hold so many bytes.
CLIPS_PER_BATCH, BYTES_PER_BATCH = 32, 8 << 20
#: Batches under way for each process.
BATCHES_PER_WORKER = 2
SECONDS_PER_HOUR = 3600

Row = dict[str, Any]


class ClipJournal(Journal):
    """
    The rows of the clips that are done.

    Args:
        path: the file.
        output: the folder that the rows' audio lies in.
    """

    def __init__(self, path: Path, output: Path):
        super().__init__(path)
        self.output = output

    def mend(self, is_good: Callable[[Row], bool] | None = None) -> int:
        """Cut off everything from the first line on that is torn, corrupt, or of a clip whose file is gone."""
        return super().mend(is_good or self._is_whole)

    def _is_whole(self, row: Row) -> bool:
        if "problem" in row:
            return True
        try:
            return is_inside(row["audio"]) and (self.output / row["audio"]).stat().st_size == row["bytes"]
        except (OSError, KeyError):
            return False


def retry(
    source: ClipSource, output: Path, journal: ClipJournal, settings: AudioSettings, progress: bool = True
) -> int:
    """
    Tries the clips again that could not be used, and mends their rows; returns how many can be used now.

    Args:
        source, output, journal, settings, progress: as [`convert`], which has been through all clips before.
    """
    mended = 0
    seen: set[int] = set()
    clips = tqdm(
        source.clips(), total=source.count(), desc="Trying bad clips again", unit="clip", disable=not progress
    )
    with written(journal.path, tag="") as file:
        for index, (clip, row) in enumerate(zip(interruptible(clips), journal.entries())):
            if "problem" in row:
                ((item,),) = _batches([clip], index, seen)
                (row,) = _write_batch([item], output, settings)
                mended += "problem" not in row
            else:
                seen.add(_fingerprint(row["id"]))
            file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())
    return mended


def convert(
    source: ClipSource,
    output: Path,
    journal: ClipJournal,
    settings: AudioSettings,
    workers: int,
    progress: bool = True,
) -> None:
    """
    Writes every clip that the journal does not have yet, and its row.

    A row has `id`, `split`, and either `problem`, or `audio` (relative to `output`, with forward slashes), `text`,
    `duration` (in seconds), `bytes`, `sha256` and `fields`.

    Args:
        source: the corpus.
        output: where `audio/` goes.
        journal: of the pass.
        settings: how clips are kept.
        workers: processes; 1 works in this one.
        progress: shows a bar with rate, time left and hours of audio.

    Raises:
        CorpusError: a process died, which only a decoder's crash or too little memory brings about.
        OSError: the disk is full, or the folder cannot be written to; what is done is kept.
    """
    done = journal.mend()
    seen = set()
    seconds = 0.0
    for row in journal.entries():
        seen.add(_fingerprint(row["id"]))
        seconds += row.get("duration", 0.0)
    with tqdm(total=source.count(), initial=done, desc="Clips", unit="clip", disable=not progress) as bar:
        write = functools.partial(_write_batch, output=output, settings=settings)
        batches = ((None, batch) for batch in _batches(source.clips(done), done, seen))
        for _, rows in in_order(write, batches, workers, BATCHES_PER_WORKER, __name__):
            journal.append(rows, sync=False)
            seconds += sum(row.get("duration", 0.0) for row in rows)
            bar.set_postfix_str(f"{seconds / SECONDS_PER_HOUR:.2f} h of audio", refresh=False)
            bar.update(len(rows))
    journal.append([])  # has everything on disk


#: A clip with the file that it is to become; a problem is a row already.
_Item = tuple[Clip, str] | Row


def _batches(clips: Iterable[Clip | BadClip], start: int, seen: set[int]) -> Iterator[list[_Item]]:
    """Clips in batches, with their files' names; what is bad, and ids that came before, as rows."""
    batch: list[_Item] = []
    size = 0
    for index, clip in enumerate(interruptible(clips), start=start):
        fingerprint = _fingerprint(clip.id)
        if isinstance(clip, BadClip):
            batch.append({"id": clip.id, "split": clip.split, "problem": clip.reason})
        elif not _is_text(clip.id) or not _is_text(clip.text):
            problem = (
                "its id or transcript has characters that are not Unicode text (a file name in another encoding?)"
            )
            batch.append({"id": clip.id, "split": clip.split, "problem": problem})
        elif fingerprint in seen:
            batch.append(
                {"id": clip.id, "split": clip.split, "problem": "another clip of this corpus has the same id"}
            )
        else:
            batch.append((clip, f"{AUDIO_FOLDER}/{index // CLIPS_PER_FOLDER:05d}/{safe_name(clip.id)}"))
            recording = clip.recording
            size += len(recording.get("bytes") or b"") if isinstance(recording, dict) else 0
        seen.add(fingerprint)
        if len(batch) >= CLIPS_PER_BATCH or size >= BYTES_PER_BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _fingerprint(identity: str) -> int:
    """Eight bytes in place of an id."""
    return int.from_bytes(hashlib.blake2b(identity.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _write_batch(batch: list[_Item], output: Path, settings: AudioSettings) -> list[Row]:
    return [item if isinstance(item, dict) else _write_one(*item, output, settings) for item in batch]


def _write_one(clip: Clip, name: str, output: Path, settings: AudioSettings) -> Row:
    check_interrupted()
    audio = name + AUDIO_FORMATS[settings.audio_format][0]
    row: Row = {"id": clip.id, "split": clip.split}
    try:
        written = write_clip(clip, output / audio, settings)
    except (AudioError, FileNotFoundError, IsADirectoryError, PermissionError) as error:
        if isinstance(error, PermissionError) and not os.access(output, os.W_OK):
            raise
        return row | {"problem": " ".join(str(error).split())}
    return row | {"audio": audio, "text": clip.text, **written, "fields": dict(clip.fields)}


__all__ = ["AUDIO_FOLDER", "ClipJournal", "Row", "convert", "retry"]

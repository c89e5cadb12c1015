"""
Clips of a Kaldi data folder: `wav.scp` and `text`, with `segments`, `utt2spk` and `utt2lang` where they are there.

The form is that of kaldi-asr.org/doc/data_prep.html. Commands in `wav.scp` are never run.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import replace

from .clips import BadClip, Clip, FieldValue
from .disk_table import DiskTable
from .folder_rows import FolderReader, Manifest
from .manifest_columns import Reading, RowError, number
from .manifests import lines_of, printable, text_problem

RECORDINGS_FILE, TEXT_FILE, SEGMENTS_FILE = "wav.scp", "text", "segments"
#: Files with a word about each utterance, and the field that it becomes.
FIELD_FILES = {"utt2spk": "speaker", "utt2lang": "language"}
COMMAND_MARK = "|"
#: "file.ark:1234" is a place in an archive.
ARCHIVE_PLACE = re.compile(r"\.ark:\d+$")
#: What `segments` has after the utterance: recording, start and end; a channel may follow.
SEGMENT_COLUMNS = 3
#: As the end of a segment: that of the recording.
OPEN_END = "-1"


def kaldi_clips(manifest: Manifest, reader: FolderReader) -> Iterator[Clip | BadClip]:
    """
    The clips of a Kaldi folder in the order of `segments`, or of `wav.scp` without it; then what has no counterpart.

    Raises:
        CorpusError: one of its files cannot be read.
    """
    with DiskTable() as texts, DiskTable() as recordings, DiskTable() as used, DiskTable() as spoken:
        tables: dict[str, DiskTable] = {}
        try:
            yield from _fill(manifest, reader, TEXT_FILE, texts)
            for name in FIELD_FILES:
                if os.path.isfile(os.path.join(manifest.path, name)):
                    tables[name] = DiskTable()
                    yield from _fill(manifest, reader, name, tables[name])
            for where, utterance, recording, reading in _utterances(manifest, reader, recordings):
                used.add(utterance)
                spoken.add(recording)
                if isinstance(reading, BadClip):
                    yield reading
                    continue
                said = {FIELD_FILES[name]: table.get(utterance) for name, table in tables.items()}
                yield _clip(manifest, reader, where, utterance, reading, texts.get(utterance) or "", said)
            yield from _left_over(manifest, reader, TEXT_FILE, used, "is a transcript without a recording")
            if os.path.isfile(os.path.join(manifest.path, SEGMENTS_FILE)):
                yield from _left_over(manifest, reader, RECORDINGS_FILE, spoken, "is a recording without a segment")
        finally:
            for table in tables.values():
                table.close()


def _clip(
    manifest: Manifest,
    reader: FolderReader,
    where: str,
    utterance: str,
    reading: Reading,
    words: str,
    said: dict[str, str | None],
) -> Clip | BadClip:
    """The clip of an utterance with its words and what else is said of it."""
    problems = (text_problem(text or "", reader.encoding) for text in (words, *said.values()))
    reason = next(filter(None, problems), None)
    if reading.audio.endswith(COMMAND_MARK):
        reason = (
            f"{reading.audio!r} is a command, and commands are never run; write its output to a file, and name that in "
            f"{RECORDINGS_FILE}"
        )
    elif ARCHIVE_PLACE.search(reading.audio):
        reason = (
            f"{reading.audio!r} is a place in an archive, which is not read; write the recording to a file of its own"
        )
    elif not words:
        reason = f"{utterance!r} has no transcript in {TEXT_FILE!r}"
    identity = printable(utterance)
    if reason:
        return BadClip(identity, printable(f"{manifest.name}, {where}: {reason}"), reader.split_of("", manifest, ""))
    fields: dict[str, FieldValue] = {name: value for name, value in said.items() if value is not None}
    return reader.clip(replace(reading, text=words, id=identity, fields=fields), manifest, where)


def _utterances(
    manifest: Manifest, reader: FolderReader, recordings: DiskTable
) -> Iterator[tuple[str, str, str, Reading | BadClip]]:
    """Where each utterance stands, its id, its recording's, and where that lies and which part is meant."""
    if not os.path.isfile(os.path.join(manifest.path, SEGMENTS_FILE)):
        for where, recording, path in _entries(manifest, reader, RECORDINGS_FILE):
            yield where, recording, recording, Reading(path)
        return
    yield from (("", "", "", bad) for bad in _fill(manifest, reader, RECORDINGS_FILE, recordings))
    for where, utterance, rest in _entries(manifest, reader, SEGMENTS_FILE):
        parts = rest.split()
        try:
            if len(parts) < SEGMENT_COLUMNS:
                raise RowError("expected an utterance, a recording, a start and an end in seconds")
            recording = parts[0]
            audio = recordings.get(recording)
            if audio is None:
                raise RowError(f"there is no recording {recording!r} in {RECORDINGS_FILE}")
            start = number(parts[1], "start") or 0.0
            end = None if _is_number(parts[2], OPEN_END) else number(parts[2], "end")
            if end is not None and end <= start:
                raise RowError(f"ends at {end:g} s, which is not after its start at {start:g} s")
        except RowError as error:
            reason = printable(f"{manifest.name}, {where}: {error}")
            yield where, utterance, "", BadClip(printable(utterance), reason, reader.split_of("", manifest, ""))
        else:
            yield where, utterance, recording, Reading(audio, start=start, end=end)


def _is_number(given: str, wanted: str) -> bool:
    """Whether two texts are the same number."""
    try:
        return float(given) == float(wanted)
    except ValueError:
        return False


def _entries(manifest: Manifest, reader: FolderReader, name: str) -> Iterator[tuple[str, str, str]]:
    """Where each line of a file stands, its key, and what follows."""
    for place, line in enumerate(lines_of(os.path.join(manifest.path, name), reader.encoding), start=1):
        key, _, rest = line.strip().replace("\t", " ", 1).partition(" ")
        if key:
            yield f"{name} line {place}", key, rest.strip()


def _fill(manifest: Manifest, reader: FolderReader, name: str, table: DiskTable) -> Iterator[BadClip]:
    """Reads a file into a table; ids that come twice are problems."""
    for where, key, rest in _entries(manifest, reader, name):
        if not table.add(key, rest):
            reason = printable(f"{manifest.name}, {where}: {key!r} stands further up already")
            yield BadClip(f"{printable(key)} ({where})", reason, reader.split_of("", manifest, ""))


def _left_over(manifest: Manifest, reader: FolderReader, name: str, used: DiskTable, reason: str) -> Iterator[BadClip]:
    for where, key, _ in _entries(manifest, reader, name):
        if key not in used:
            identity, why = printable(key), printable(f"{manifest.name}, {where}: {key!r} {reason}")
            yield BadClip(identity, why, reader.split_of("", manifest, ""))


__all__ = ["RECORDINGS_FILE", "SEGMENTS_FILE", "TEXT_FILE", "kaldi_clips"]

"""In which of the usual shapes a folder holds its recordings and what is said in them, found by looking."""

import json
import os
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from audiollm.files import is_audio

from .clips import CorpusError
from .folder_kaldi import RECORDINGS_FILE, TEXT_FILE
from .folder_lhotse import lhotse_role
from .folder_paths import SPLIT_KEYWORDS, PathError, split_in, walk
from .folder_rows import (
    AUDIO_FOLDERS,
    LJSPEECH_DELIMITER,
    LJSPEECH_NAMES,
    FolderReader,
    Manifest,
    is_json,
    table_form,
    without_gzip,
)
from .folder_sidecar import suffixes_seen
from .manifest_columns import LESSONS
from .manifests import JSON_SUFFIXES, PARQUET_SUFFIX, TABLE_SUFFIXES, first_line, parquet_names, printable, shown

#: Layouts by the names of --layout, and what messages call them.
LAYOUTS = {
    "sidecar": "audio with transcripts beside it",
    "csv": "table",
    "ljspeech": "LJSpeech table",
    "commonvoice": "Common Voice table",
    "nemo": "NeMo manifest",
    "jsonl": "JSON lines",
    "lhotse": "Lhotse manifest",
    "kaldi": "Kaldi data folder",
    "audiofolder": "metadata of an audiofolder",
}
#: Layouts whose manifests each speak of their own folder: any number may belong to one split.
LOCAL_LAYOUTS = ("audiofolder",)
#: How far below the folder manifests are looked for.
MANIFEST_DEPTH = 3
#: Names that mark a layout.
METADATA_STEM, METADATA_AUDIO = "metadata", "file_name"
NEMO_COLUMNS = ("audio_filepath", "audio_filename")
COMMON_VOICE_COLUMNS = ("client_id", "path", "sentence")
#: Tables of Common Voice that make up its splits; "validated" is read without them, the others only when named.
COMMON_VOICE_TABLES, COMMON_VOICE_WHOLE = ("train", "dev", "test"), "validated"
SUPERVISIONS, RECORDINGS = "supervisions", "recordings"
MAX_NAMES_SHOWN = 5


def find_layout(reader: FolderReader, layout: str | None, suffix: str | None) -> tuple[list[Manifest], list[str]]:
    """
    What a folder's recordings are listed in.

    Args:
        reader: of the folder.
        layout: one of `LAYOUTS` to look for; any by default.
        suffix: what transcripts beside audio end in.

    Returns:
        Manifests of one layout, in the order of splits and names; and what looks like one but cannot be read.

    Raises:
        CorpusError: nothing fits, or several do.
    """
    found, notes, reasons = _manifests_below(reader)
    audio = 0
    if layout in (None, "sidecar"):
        seen, audio = suffixes_seen(reader.root)
        if suffix or seen or layout:
            if len(seen) > 1 and not suffix:
                raise CorpusError(
                    f"Transcripts beside audio in {reader.root.folder!r} end in {' and in '.join(seen)}; name the one to "
                    "read with --transcript_suffix."
                )
            ending = suffix or (seen or [".txt"])[0]
            found["sidecar"] = [Manifest("sidecar", reader.root.folder, f"*{ending}")]
    fitting = {name: found[name] for name in LAYOUTS if name in found and layout in (None, name)}
    if not fitting:
        raise CorpusError(_nothing(reader, layout, audio, notes, reasons))
    if len(fitting) > 1:
        listed = "; ".join(f"as {name} ({LAYOUTS[name]} {_names(each)})" for name, each in fitting.items())
        raise CorpusError(
            f"The folder {reader.root.folder!r} can be read in more than one way: {listed}. Say which with --layout, or "
            "name one file with --manifest."
        )
    ((name, manifests),) = fitting.items()
    return _select(name, manifests), notes


def open_manifest(reader: FolderReader, path: str, layout: str | None) -> Manifest:
    """
    The manifest that the user names.

    Args:
        reader: of the folder that its recordings lie in.
        path: relative to the folder, or to the working directory.
        layout: one of `LAYOUTS`; by its content by default.

    Raises:
        CorpusError: it is not there, or of no known form.
    """
    below = os.path.join(reader.root.folder, path)
    path = os.path.abspath(below if os.path.exists(below) else path)
    if not os.path.exists(path):
        raise CorpusError(
            f"--manifest {path!r} does not exist, in {reader.root.folder!r} or in the working directory."
        )
    if os.path.isdir(path):
        path = os.path.join(path, RECORDINGS_FILE)
        if not os.path.isfile(path):
            raise CorpusError(f"--manifest {os.path.dirname(path)!r} is a folder without a {RECORDINGS_FILE}.")
    found = _classify(path, reader, named=True)
    if found is None and layout is None:
        raise CorpusError(
            f"--manifest {path!r} begins with {shown(_head(path, reader))}; expected a header with known names of columns, "
            f"or JSON objects. Say what it is with --layout ({', '.join(LAYOUTS)}), or its columns with --columns."
        )
    kind, role = found or (layout or "", "")
    if layout is not None and (layout == "lhotse" or layout == "kaldi") and kind != layout:
        raise CorpusError(
            f"--manifest {path!r} is not what --layout {layout} reads: it is {LAYOUTS.get(kind, 'unknown')}."
        )
    manifest = _manifest(layout or kind, path, reader)
    if role == RECORDINGS:
        raise CorpusError(f"--manifest {path!r} holds recordings; name the supervisions that speak of them.")
    return _with_recordings(manifest, reader) if role == SUPERVISIONS else manifest


def _manifests_below(reader: FolderReader) -> tuple[dict[str, list[Manifest]], list[str], list[str]]:
    """Manifests by layout; notes of those that cannot be read; of other tables, why they are no lists of recordings."""
    found: dict[str, list[Manifest]] = {}
    notes, reasons = [], []
    for folder in walk(reader.root, MANIFEST_DEPTH):
        stems = {os.path.splitext(name)[0] for name in folder.files if is_audio(name)}
        for name in folder.files:
            if not _may_be_manifest(name) or os.path.splitext(without_gzip(name))[0] in stems:
                continue
            path = os.path.join(folder.path, name)
            try:
                kind = _classify(reader.root.locate(path), reader)
            except (PathError, CorpusError) as error:
                notes.append(printable(f"{path!r}: {error}"))
                continue
            if kind is None:
                reasons.append(_why_no_list(os.path.join(reader.root.folder, path), path, reader))
            elif kind[1] != RECORDINGS:
                manifest = _manifest(kind[0], os.path.join(reader.root.folder, path), reader)
                if kind[1] == SUPERVISIONS:
                    try:
                        manifest = _with_recordings(manifest, reader)
                    except CorpusError as error:
                        notes.append(printable(str(error)))
                        continue
                found.setdefault(kind[0], []).append(manifest)
    return found, notes, [reason for reason in reasons if reason]


def _why_no_list(path: str, name: str, reader: FolderReader) -> str:
    """What columns a table lacks; empty of what is no table."""
    if path.endswith(PARQUET_SUFFIX):
        names = parquet_names(path)
    elif is_json(path, reader.encoding):
        names = list(_json_head(path, reader) or {})
    else:
        names = table_form(path, reader)[2]
    try:
        if len(names) > 1:
            reader.columns.check(names, printable(repr(name)))
    except CorpusError as error:
        return str(error)
    return ""


def _may_be_manifest(name: str) -> bool:
    stem, ending = os.path.splitext(without_gzip(name))
    is_metadata = stem == METADATA_STEM and ending == PARQUET_SUFFIX
    return name == RECORDINGS_FILE or ending in (*JSON_SUFFIXES, *TABLE_SUFFIXES) or is_metadata


def _classify(path: str, reader: FolderReader, named: bool = False) -> tuple[str, str] | None:
    """
    The layout of a file and, of Lhotse's, what it holds; None if it lists no recordings.

    Args:
        path: of the file.
        reader: of its folder.
        named: whether the user named it, so that its own name need not tell.
    """
    base, folder = os.path.basename(path), os.path.dirname(path)
    if base == RECORDINGS_FILE:
        if not os.path.isfile(os.path.join(folder, TEXT_FILE)):
            raise CorpusError(f"{path!r} has no {TEXT_FILE!r} beside it, which would hold the transcripts")
        return "kaldi", ""
    is_metadata = os.path.splitext(without_gzip(base))[0] == METADATA_STEM
    if base.endswith(PARQUET_SUFFIX):
        return _table_kind(parquet_names(path), reader, is_metadata, "audiofolder" if named else None)
    if is_json(path, reader.encoding):
        values = _json_head(path, reader)
        if values is None:
            return None
        role = lhotse_role(values)
        if role:
            return "lhotse", role
        if any(name in values for name in NEMO_COLUMNS):
            return "nemo", ""
        return _table_kind(list(values), reader, is_metadata, "jsonl")
    delimiter, _, header = table_form(path, reader)
    if delimiter == "\t" and all(name in header for name in COMMON_VOICE_COLUMNS):
        return "commonvoice", ""
    kind = _table_kind(header, reader, is_metadata, "csv")
    if kind is None and _is_ljspeech(path, reader, named):
        return "ljspeech", ""
    return kind


def _table_kind(
    names: Sequence[str], reader: FolderReader, is_metadata: bool, kind: str | None
) -> tuple[str, str] | None:
    if is_metadata and METADATA_AUDIO in names:
        return "audiofolder", ""
    mapping = reader.columns.mapping(names)
    if kind is None or "audio" not in mapping or not any(lesson in mapping for lesson in LESSONS):
        return None
    return kind, ""


def _is_ljspeech(path: str, reader: FolderReader, named: bool) -> bool:
    """Whether a table has no header, two or three columns parted by pipes, and its recordings beside it."""
    columns = _head(path, reader).split(LJSPEECH_DELIMITER)
    if not len(LJSPEECH_NAMES) - 1 <= len(columns) <= len(LJSPEECH_NAMES):
        return False
    return named or os.path.isdir(os.path.join(os.path.dirname(path), AUDIO_FOLDERS["ljspeech"]))


def _json_head(path: str, reader: FolderReader) -> dict[str, Any] | None:
    try:
        values = json.loads(_head(path, reader))
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def _head(path: str, reader: FolderReader) -> str:
    return first_line(path, reader.encoding)


def _manifest(layout: str, path: str, reader: FolderReader) -> Manifest:
    if layout == "kaldi":
        path = os.path.dirname(path)
    inside = os.path.commonpath([reader.root.folder, path]) == reader.root.folder
    name = os.path.relpath(path, reader.root.folder) if inside else path
    return Manifest(layout, path, printable(name), split_in(name if inside else os.path.basename(name)))


def _with_recordings(manifest: Manifest, reader: FolderReader) -> Manifest:
    """Supervisions with the recordings of the same name, or the only ones beside them."""
    folder, name = os.path.split(manifest.path)
    wanted = os.path.join(folder, name.replace(SUPERVISIONS, RECORDINGS))
    if wanted != manifest.path and os.path.isfile(wanted):
        return Manifest(manifest.layout, manifest.path, manifest.name, manifest.split, wanted)
    beside = []
    for other in sorted(os.listdir(folder), key=os.fsencode):
        path = os.path.join(folder, other)
        if _may_be_manifest(other) and path != manifest.path and os.path.isfile(path):
            try:
                kind = _classify(path, reader)
            except CorpusError:
                continue
            beside += [path] if kind == ("lhotse", RECORDINGS) else []
    if len(beside) != 1:
        raise CorpusError(
            f"{manifest.name!r} holds supervisions, and {len(beside)} files beside it hold recordings; expected one, "
            f"called {os.path.basename(wanted)!r}."
        )
    return Manifest(manifest.layout, manifest.path, manifest.name, manifest.split, beside[0])


def _select(layout: str, manifests: list[Manifest]) -> list[Manifest]:
    """Those manifests of one layout that make up a corpus, ordered; one for each split."""
    if layout == "commonvoice":
        by_stem = {os.path.splitext(os.path.basename(each.name))[0]: each for each in manifests}
        parts = [by_stem[name] for name in COMMON_VOICE_TABLES if name in by_stem]
        manifests = parts or ([by_stem[COMMON_VOICE_WHOLE]] if COMMON_VOICE_WHOLE in by_stem else manifests)
    order = {split: place for place, split in enumerate(SPLIT_KEYWORDS)}
    manifests = sorted(manifests, key=lambda each: (order.get(each.split or "", len(order)), os.fsencode(each.name)))
    for one, other in pairwise(manifests):
        if one.split == other.split and layout not in LOCAL_LAYOUTS:
            raise CorpusError(
                f"Both {one.name!r} and {other.name!r} list recordings"
                + (f" of the split {one.split!r}" if one.split else "")
                + "; name one of them with --manifest, and prepare the other by itself."
            )
    return manifests


def _names(manifests: list[Manifest]) -> str:
    names = [each.name for each in manifests[:MAX_NAMES_SHOWN]]
    return ", ".join(names) + (f" and {len(manifests) - len(names)} more" if len(manifests) > len(names) else "")


def _nothing(reader: FolderReader, layout: str | None, audio: int, notes: list[str], reasons: list[str]) -> str:
    wanted = f"nothing that --layout {layout} reads" if layout else "no transcripts in a shape that is known"
    there = f" It has {audio:,} audio files." if audio else ""
    unread = f" Not read: {'; '.join(notes[:MAX_NAMES_SHOWN])}." if notes else ""
    if reasons:
        return f"The folder {reader.root.folder!r} has {wanted}.{there}{unread} {' '.join(reasons[:MAX_NAMES_SHOWN])}"
    return (
        f"The folder {reader.root.folder!r} has {wanted}.{there}{unread} Expected transcripts beside the audio (a.wav, "
        "a.txt), or a table, NeMo, Lhotse, JSON lines, Kaldi, LJSpeech, Common Voice or audiofolder manifest; name it "
        "with --manifest, and its columns with --columns."
    )


__all__ = ["LAYOUTS", "find_layout", "open_manifest"]

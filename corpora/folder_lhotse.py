"""
Clips of Lhotse manifests: cuts, or supervisions with the recordings that they speak of.

The fields are those of `MonoCut`, `SupervisionSegment`, `Recording` and `AudioSource` in lhotse-speech/lhotse. What
would need more than a part of one file (mixed cuts, one channel of several, transforms, commands) is a problem.
"""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from .clips import BadClip, Clip
from .disk_table import DiskTable
from .folder_rows import FolderReader, Manifest
from .manifest_columns import Columns, Reading, RowError, number
from .manifests import json_rows, printable, shown, text_problem

FILE_SOURCE = "file"
#: Kinds of cuts that are a part of one recording.
PLAIN_CUTS = ("MonoCut", "MultiCut")
#: A part that lacks less of its recording than this is the recording.
WHOLE_TOLERANCE_SECONDS = 0.001
#: What a supervision says of its words, beside them.
SUPERVISION_FIELDS = ("speaker", "language", "gender")
#: Parts of supervisions and cuts whose values become fields by their own names.
CUSTOM = "custom"


def lhotse_role(values: Mapping[str, Any]) -> str | None:
    """What a manifest with such a row holds: cuts, supervisions or recordings; None if none of these."""
    if "supervisions" in values or str(values.get("type", "")).endswith("Cut"):
        return "cuts"
    if "recording_id" in values and "start" in values and "duration" in values:
        return "supervisions"
    return "recordings" if isinstance(values.get("sources"), list) and "id" in values else None


def lhotse_clips(manifest: Manifest, reader: FolderReader) -> Iterator[Clip | BadClip]:
    """
    The clips of cuts, one for each; or of supervisions, one for each, and then the recordings without any.

    Raises:
        CorpusError: a file cannot be read.
    """
    if not manifest.companion:
        for row in json_rows(manifest.path, reader.encoding):
            try:
                if row.problem:
                    raise RowError(row.problem)
                reading = _cut(row.values, reader)
            except RowError as error:
                yield _bad(manifest, reader, row.where, row.values, error)
            else:
                yield reader.clip(reading, manifest, row.where)
        return
    with DiskTable() as recordings, DiskTable() as used:
        for row in json_rows(manifest.companion, reader.encoding):
            name = row.values.get("id")
            if row.problem or not isinstance(name, str):
                problem = RowError(f"of the recordings: {row.problem or 'has no id'}")
                yield _bad(manifest, reader, row.where, {}, problem)
            elif not recordings.add(name, json.dumps(row.values)):
                yield _bad(
                    manifest, reader, row.where, row.values, RowError("of the recordings: stands further up already")
                )
        for row in json_rows(manifest.path, reader.encoding):
            try:
                if row.problem:
                    raise RowError(row.problem)
                name = row.values.get("recording_id")
                found = recordings.get(name) if isinstance(name, str) else None
                if found is None:
                    raise RowError(f"there is no recording {shown(name)} among the recordings")
                used.add(str(name))
                cut = {"recording": json.loads(found), **row.values}
                reading = _reading(
                    row.values, [row.values], cut, number(row.values.get("start"), "start") or 0.0, reader
                )
            except RowError as error:
                yield _bad(manifest, reader, row.where, row.values, error)
            else:
                yield reader.clip(reading, manifest, row.where)
        for row in json_rows(manifest.companion, reader.encoding):
            name = row.values.get("id")
            if isinstance(name, str) and name not in used:
                yield _bad(
                    manifest, reader, row.where, row.values, RowError("of the recordings: nothing is said of it")
                )


def _cut(cut: Mapping[str, Any], reader: FolderReader) -> Reading:
    kind = cut.get("type", PLAIN_CUTS[0])
    if kind not in PLAIN_CUTS:
        raise RowError(
            f"is a {shown(kind)}; expected one of {', '.join(PLAIN_CUTS)}: save its audio, and make cuts of that"
        )
    said = cut.get("supervisions")
    if not isinstance(said, list) or not all(isinstance(each, dict) for each in said):
        raise RowError(f"has as supervisions {shown(said)}; expected a list of objects")
    said = sorted(said, key=_begins)
    return _reading(cut, said, cut, number(cut.get("start"), "start") or 0.0, reader)


def _begins(supervision: Mapping[str, Any]) -> float:
    """When words begin, in seconds; less than 0 before their cut."""
    start = supervision.get("start") or 0.0
    if not isinstance(start, (int, float)) or not math.isfinite(start):
        raise RowError(f"has a supervision that starts at {shown(start)}; expected seconds")
    return start


def _reading(
    named: Mapping[str, Any],
    said: list[dict[str, Any]],
    cut: Mapping[str, Any],
    start: float,
    reader: FolderReader,
) -> Reading:
    """
    What is said in a part of a recording.

    Args:
        named: what has the id.
        said: supervisions in the order of time; their words are joined.
        cut: has the recording, duration and channel.
        start: of the part, in seconds.
        reader: as in `folder_rows`.
    """
    recording = cut.get("recording")
    if not isinstance(recording, dict):
        raise RowError(f"has as recording {shown(recording)}; expected an object (features alone are not read)")
    if recording.get("transforms"):
        raise RowError(
            f"asks for transforms, {shown(recording['transforms'])}, which are not applied: save the audio first"
        )
    path = _path(recording, cut)
    duration, whole = number(cut.get("duration"), "duration"), number(recording.get("duration"), "duration")
    if not duration:
        raise RowError(f"has the duration {shown(cut.get('duration'))}; expected seconds, more than 0")
    is_whole = whole is not None and not start and abs(whole - duration) < WHOLE_TOLERANCE_SECONDS
    text = " ".join(words for each in said if (words := str(each.get("text") or "").strip()))
    problem = text_problem(text, reader.encoding)
    if problem:
        raise RowError(problem)
    values: dict[str, Any] = {}
    for custom in (each.get(CUSTOM) for each in (cut, *said)):
        values |= custom if isinstance(custom, dict) else {}
    for name in SUPERVISION_FIELDS:
        found = {each[name] for each in said if isinstance(each.get(name), (str, int))}
        values |= {name: found.pop()} if len(found) == 1 else {}  # several speakers are none
    # "path" and "text" come first among the usual names, so that nothing custom takes their place.
    read = Columns((("audio", "path"), ("text", "text")), reader.encoding).read({**values, "path": path, "text": text})
    identity = printable(str(named.get("id") or ""))
    fields = {**read.fields, "declared_seconds": duration}
    return Reading(path, text, identity, read.split, start, None if is_whole else start + duration, fields)


def _path(recording: Mapping[str, Any], cut: Mapping[str, Any]) -> str:
    """The one file that holds a recording."""
    sources = recording.get("sources")
    if not isinstance(sources, list) or len(sources) != 1 or not isinstance(sources[0], dict):
        count = len(sources) if isinstance(sources, list) else shown(sources)
        raise RowError(f"its recording has {count} sources; expected one file: join the channels into one")
    (source,) = sources
    kind, path = source.get("type"), source.get("source")
    if kind != FILE_SOURCE:
        raise RowError(
            f"its recording comes from a {shown(kind)}, {shown(path)}, which is never run, downloaded or unpacked; "
            "write the recording to a file, and name that"
        )
    if not isinstance(path, str):
        raise RowError(f"its recording's source is {shown(path)}; expected a path")
    there, meant = source.get("channels"), cut.get("channel")
    meant = meant if isinstance(meant, list) else [meant]
    if (
        isinstance(there, list)
        and len(there) > 1
        and meant != [None]
        and sorted(map(str, meant)) != sorted(map(str, there))
    ):
        raise RowError(
            f"means channel {meant[0]} of {len(there)}, and channels are mixed here; write it to a file of its own"
        )
    return path


def _bad(manifest: Manifest, reader: FolderReader, where: str, values: Mapping[str, Any], error: RowError) -> BadClip:
    bad = reader.bad(manifest, where, str(error))
    name = values.get("id")
    return BadClip(printable(name), bad.reason, bad.split) if isinstance(name, str) and name else bad


__all__ = ["lhotse_clips", "lhotse_role"]

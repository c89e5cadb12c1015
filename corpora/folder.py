"""
`audiollm prepare folder`: a folder of audio with its transcripts, in any of the usual shapes.

    audiollm prepare folder recordings
    audiollm prepare folder recordings --manifest list.csv --columns audio=clip text=words
"""

import codecs
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from .clips import BadClip, Clip, CorpusError
from .columns import WER_UNITS
from .disk_table import DiskTable
from .folder_kaldi import RECORDINGS_FILE, SEGMENTS_FILE, kaldi_clips
from .folder_layouts import LAYOUTS, find_layout, open_manifest
from .folder_lhotse import lhotse_clips
from .folder_paths import AudioRoot, existing_folder, split_named
from .folder_rows import ClipReader, FolderReader, Manifest, open_rows, row_clips
from .folder_sidecar import digest, sidecar_clips
from .manifest_columns import Columns, parse_columns
from .manifests import QUOTES, fingerprint, lines_of, printable

DEFAULT_TASKS = ("transcribe",)
DEFAULT_OUTPUT = "data/folder"
#: How layouts are read that are not one row for each clip.
READERS: dict[str, ClipReader] = {"kaldi": kaldi_clips, "lhotse": lhotse_clips}
#: Layouts that have no columns to name, and that have no quotation marks.
WITHOUT_COLUMNS = ("sidecar", "kaldi", "lhotse")
WITH_QUOTES = ("csv", "commonvoice", "ljspeech", "audiofolder")
#: Files of a Kaldi folder that decide what comes of it.
KALDI_FILES = (RECORDINGS_FILE, "text", SEGMENTS_FILE, "utt2spk", "utt2lang")


@dataclass
class FolderArguments:
    """Which folder, and how to read it where looking at it does not tell."""

    folder: str = field(metadata={"help": "Folder of audio, with transcripts or manifests in it."})
    layout: str | None = field(
        default=None,
        metadata={"help": f"How it is laid out, of {', '.join(LAYOUTS)}; found by looking when not given."},
    )
    manifest: str | None = field(
        default=None,
        metadata={"help": "The list of recordings to read, relative to the folder or the working directory."},
    )
    columns: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Which column of the manifest holds what, as text=sentence audio=path; guessed by usual names when "
            "not given. Other columns are kept by their names."
        },
    )
    audio_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder that relative paths start from and that none may leave; that of the manifest, and the "
            "folder as a whole, when not given."
        },
    )
    follow_symlinks: bool = field(
        default=False, metadata={"help": "Read what symbolic links lead to outside the folder."}
    )
    encoding: str | None = field(
        default=None, metadata={"help": "Of manifests and transcripts, as latin-1; UTF-8 when not given."}
    )
    quotes: str | None = field(
        default=None,
        metadata={
            "help": "What quotation marks mean in a table: csv (they enclose columns), none (they stand for themselves) "
            "or lenient (either, by column); lenient between tabs, none for LJSpeech, else csv, when not given."
        },
    )
    transcript_suffix: str | None = field(
        default=None,
        metadata={"help": "What transcripts beside audio end in, as .txt; found by looking when not given."},
    )
    split: str | None = field(
        default=None,
        metadata={
            "help": "The split that all clips belong to; by names of columns, files and folders when not given."
        },
    )
    splits: list[str] = field(
        default_factory=list,
        metadata={"help": "Only these splits are read, separated by spaces or commas; all when not given."},
    )
    wer_unit: str | None = field(
        default=None,
        metadata={"help": "Unit of the word errors in the manifest's column wer, for --max_wer: percent or fraction."},
    )

    def __post_init__(self):
        parse_columns(self.columns)
        self.splits = [name for given in self.splits for name in given.split(",")]
        if self.wer_unit is not None and self.wer_unit not in WER_UNITS:
            raise ValueError(f"--wer_unit {self.wer_unit!r}: expected {' or '.join(WER_UNITS)}.")
        if self.layout is not None and self.layout not in LAYOUTS:
            raise ValueError(f"--layout is {self.layout!r}; expected one of {', '.join(LAYOUTS)}.")
        if self.quotes is not None and self.quotes not in QUOTES:
            raise ValueError(f"--quotes is {self.quotes!r}; expected one of {', '.join(QUOTES)}.")
        if self.split is not None and self.splits:
            raise ValueError(
                f"--split {self.split} puts all clips into one split, so --splits has nothing to choose from."
            )
        if self.layout == "sidecar" and self.manifest is not None:
            raise ValueError(f"--layout sidecar reads no manifest, but --manifest is {self.manifest!r}.")
        if self.transcript_suffix is not None and (self.manifest or self.layout not in (None, "sidecar")):
            raise ValueError(
                "--transcript_suffix is for transcripts beside audio, not for --manifest or another --layout."
            )
        if self.transcript_suffix == "":
            raise ValueError("--transcript_suffix is empty; expected an ending such as .txt.")
        if self.split == "" or "" in self.splits:
            raise ValueError("--split and --splits expect names; found an empty one.")
        try:
            codecs.lookup(self.encoding or "utf-8")
        except LookupError:
            raise ValueError(
                f"--encoding {self.encoding!r} is not one that Python knows, as utf-8 or latin-1."
            ) from None


class FolderSource:
    """
    The clips of a folder. Satisfies `ClipSource`.

    Args:
        arguments: the options of the command.

    Attributes:
        name, identity: as in `ClipSource`; manifests are a part of the identity by their sha256, recordings with
            transcripts beside them by their names and what the transcripts say.
        description: how the folder is read, in one line.

    Raises:
        CorpusError: there is no such folder, nothing in it fits, several things do, or the manifest cannot be read.
    """

    def __init__(self, arguments: FolderArguments):
        folder = existing_folder(arguments.folder, "The folder")
        start = None if arguments.audio_dir is None else existing_folder(arguments.audio_dir, "--audio_dir")
        columns = Columns(parse_columns(arguments.columns), arguments.encoding)
        split = None if arguments.split is None else split_named(arguments.split)
        options = (columns, arguments.encoding, arguments.quotes, split)
        looking = FolderReader(AudioRoot(folder, arguments.follow_symlinks), False, *options)
        self._reader = FolderReader(AudioRoot(start or folder, arguments.follow_symlinks), start is not None, *options)
        self._suffix = arguments.transcript_suffix
        self._splits = [split_named(name) for name in arguments.splits]
        self.notes: list[str] = []
        if arguments.manifest is None:
            self._manifests, self.notes = find_layout(looking, arguments.layout, self._suffix)
        else:
            self._manifests = [open_manifest(looking, arguments.manifest, arguments.layout)]
        self.layout = self._manifests[0].layout
        self._check(arguments)
        self.name, self.folder, self.reads_all_below = printable(folder), folder, False
        self._count: int | None = None
        self.identity, self.description = self._describe(arguments, folder)

    def clips(self, start: int = 0) -> Iterator[Clip | BadClip]:
        """As in `ClipSource`; what comes before `start` is read again, but no audio is decoded."""
        return islice(self._unique(), start, None)

    def count(self) -> int | None:
        """As in `ClipSource`: known of audio with transcripts beside it."""
        return self._count

    def _unique(self) -> Iterator[Clip | BadClip]:
        with DiskTable() as seen:
            for clip in self._all():
                if self._splits and clip.split not in self._splits:
                    continue
                if isinstance(clip, Clip) and not seen.add(clip.id, str(clip.recording)):
                    reason = f"the id {clip.id!r} is already that of the clip from {seen.get(clip.id)!r}"
                    yield BadClip(clip.id, reason, clip.split)
                else:
                    yield clip

    def _all(self) -> Iterator[Clip | BadClip]:
        for manifest in self._manifests:
            if manifest.layout == "sidecar":
                yield from sidecar_clips(self._reader.root, self._transcripts_end_in(manifest), self._reader)
            else:
                yield from READERS.get(manifest.layout, row_clips)(manifest, self._reader)

    def _transcripts_end_in(self, manifest: Manifest) -> str:
        return manifest.name.removeprefix("*")

    def _check(self, arguments: FolderArguments) -> None:
        """Refuses what the layout that was found has no use for, and manifests that cannot be opened."""
        title = LAYOUTS[self.layout]
        if arguments.columns and self.layout in WITHOUT_COLUMNS:
            raise CorpusError(f"--columns {' '.join(arguments.columns)} is given, but {title} has no columns.")
        if arguments.wer_unit and (self.layout in WITHOUT_COLUMNS or "wer" not in self._mapping()):
            raise CorpusError(f"--wer_unit {arguments.wer_unit} is given, but {title} has no column of word errors.")
        if arguments.quotes and self.layout not in WITH_QUOTES:
            raise CorpusError(
                f"--quotes {arguments.quotes} is given, but {title} has no quotation marks around columns."
            )
        if arguments.audio_dir and self.layout == "sidecar":
            raise CorpusError("--audio_dir is given, but transcripts lie beside their audio; name that folder itself.")
        if self.layout not in READERS and self.layout != "sidecar":
            for manifest in self._manifests:
                open_rows(manifest, self._reader)

    def _describe(self, arguments: FolderArguments, folder: str) -> tuple[dict[str, Any], str]:
        """The identity, and the line that says how the folder is read."""
        identity: dict[str, Any] = {"source": "folder", "folder": printable(folder), "layout": self.layout}
        identity |= {"audio_dir": printable(self._reader.root.folder), "follow_symlinks": arguments.follow_symlinks}
        identity |= {"columns": arguments.columns, "encoding": arguments.encoding, "quotes": arguments.quotes}
        identity |= {"split": self._reader.split, "splits": self._splits, "manifests": []}
        parts = []
        for manifest in self._manifests:
            if manifest.layout == "sidecar":
                sha256, count = digest(self._reader.root, self._transcripts_end_in(manifest))
                self._count = None if self._splits else count
                identity["files"] = sha256
                parts.append(f"{manifest.name}, {_counted(count, 'file')}")
                continue
            paths = [manifest.path, *filter(None, [manifest.companion])]
            if manifest.layout == "kaldi":
                paths = [os.path.join(manifest.path, name) for name in KALDI_FILES]
            sums = {printable(os.path.basename(path)): fingerprint(path) for path in paths if os.path.isfile(path)}
            identity["manifests"].append([manifest.name, sums])
            split = self._reader.split or manifest.split
            rows = self._count_rows(manifest)
            parts.append(f"{manifest.name}, {_counted(rows, 'row')}" + (f", as {split}" if split else ""))
            if manifest.layout not in READERS and not self._splits:
                self._count = (self._count or 0) + rows
        return identity, f"read as: {LAYOUTS[self.layout]} {'; '.join(parts)}{self._columns_shown()}"

    def _count_rows(self, manifest: Manifest) -> int:
        """Return how many recordings a manifest lists; a header is none of them."""
        if manifest.layout in READERS:
            path = os.path.join(manifest.path, RECORDINGS_FILE) if manifest.layout == "kaldi" else manifest.path
            return sum(1 for line in lines_of(path, self._reader.encoding) if line.strip())
        return sum(1 for _ in open_rows(manifest, self._reader)[1])

    def _columns_shown(self) -> str:
        """What the columns of a table are read as."""
        if self.layout in WITHOUT_COLUMNS or not (mapping := self._mapping()):
            return ""
        return f" ({', '.join(f'{name}={printable(column)}' for name, column in mapping.items())})"

    def _mapping(self) -> dict[str, str]:
        """Column by what it is read as, in the first row of a table."""
        columns, rows = open_rows(self._manifests[0], self._reader)
        first = next((row for row in rows if not row.problem), None)
        return {} if first is None else columns.mapping(list(first.values))


def open_source(arguments: FolderArguments) -> FolderSource:
    """
    The clips of a folder, for `prepare`; says how it is read.

    Raises:
        CorpusError: as [`FolderSource`].
    """
    source = FolderSource(arguments)
    print(f"{source.name}: {source.description}")
    for note in source.notes:
        print(f"{source.name}: not read: {note}")
    return source


def _counted(count: int, thing: str) -> str:
    return f"{count:,} {thing}" + ("" if count == 1 else "s")


__all__ = ["DEFAULT_OUTPUT", "DEFAULT_TASKS", "FolderArguments", "FolderSource", "open_source"]

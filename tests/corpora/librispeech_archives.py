"""Archives of LibriSpeech's real form, made of real speech: same tree, FLAC, transcripts in capitals."""

import hashlib
import io
import tarfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile
from audiollm.corpora.librispeech import PublishedArchive, openslr
from audiollm.corpora.prompts import load_studio_prompts
from audiollm.processing import load_waveform

SPLITS = ("dev-clean", "train-clean-5")
#: Speaker and chapter of each split, in the order of the archive, which is not sorted.
CHAPTERS = {
    "dev-clean": [("2035", "147960"), ("84", "121550"), ("84", "121123")],
    "train-clean-5": [("1088", "129236"), ("60", "121082")],
}
CLIPS_PER_CHAPTER = 3
Files = dict[str, bytes]
#: A recording as FLAC, its transcript as LibriSpeech writes it, and the samples that must come back.
Recording = tuple[bytes, str, np.ndarray]


@lru_cache(maxsize=1)
def real_speech() -> list[Recording]:
    """As many recordings as the archives hold."""
    rows = load_studio_prompts("test").select(range(sum(map(len, CHAPTERS.values())) * CLIPS_PER_CHAPTER))
    made = []
    for row in rows:
        waveform = load_waveform(row["audio"])
        file = io.BytesIO()
        soundfile.write(file, waveform, 16_000, format="FLAC", subtype="PCM_16")
        words = "".join(letter if letter.isalnum() or letter in " '" else " " for letter in row["text"])
        made.append((file.getvalue(), " ".join(words.upper().split()), soundfile.read(io.BytesIO(file.getvalue()))[0]))
    return made


@lru_cache(maxsize=1)
def librispeech_trees() -> dict[str, Files]:
    """Return what each split's archive holds, by path, in archive order: transcripts last, first, and in between."""
    recordings = iter(real_speech())
    trees = {}
    for split, chapters in CHAPTERS.items():
        files = {"LibriSpeech/README.TXT": b""}
        for position, (speaker, chapter) in enumerate(chapters):
            folder = f"LibriSpeech/{split}/{speaker}/{chapter}"
            clips = [(f"{speaker}-{chapter}-{n:04}", *next(recordings)[:2]) for n in range(CLIPS_PER_CHAPTER)]
            entries = [(f"{folder}/{name}.flac", flac) for name, flac, _ in reversed(clips)]
            lines = "".join(f"{name} {text}\n" for name, _, text in clips)
            entries.insert([3, 0, 1][position], (f"{folder}/{speaker}-{chapter}.trans.txt", lines.encode()))
            files |= dict(entries)
        trees[split] = files
    return trees


def clip_ids(split: str) -> list[str]:
    """Ids of a split's clips, in order."""
    return [
        f"{speaker}-{chapter}-{number:04}"
        for speaker, chapter in CHAPTERS[split]
        for number in range(CLIPS_PER_CHAPTER)
    ]


def packed(files: Files, mode: str = "w:gz", extra: tuple[tarfile.TarInfo, ...] = (), **options: int) -> bytes:
    """A tar.gz of files, and of further members without content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, **options) as tar:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for member in extra:
            tar.addfile(member)
    return buffer.getvalue()


def unpacked(files: Files, folder: Path) -> Path:
    """Files in a folder."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@lru_cache(maxsize=1)
def librispeech_archives() -> dict[str, bytes]:
    """Both splits' archives."""
    return {split: packed(files) for split, files in librispeech_trees().items()}


def published(archives: dict[str, bytes]) -> dict[str, PublishedArchive]:
    """Return what OpenSLR would publish of them."""
    return {
        split: PublishedArchive(
            resource=openslr()[1][split].resource,
            bytes=len(data),
            md5=hashlib.md5(data, usedforsecurity=False).hexdigest(),
            clips=len(CHAPTERS[split]) * CLIPS_PER_CHAPTER,
        )
        for split, data in archives.items()
    }


def served(archives: dict[str, bytes]) -> dict[str, bytes]:
    """The archives by their paths on a mirror."""
    return {f"/resources/{openslr()[1][split].resource}/{split}.tar.gz": data for split, data in archives.items()}

"""The same three recordings with transcripts as a folder of every usual shape, and how tests read such folders."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import soundfile
from audiollm.corpora.clips import BadClip, Clip
from audiollm.corpora.folder import FolderArguments, open_source

RATE_HZ = 16_000
SENTENCES = {"a": "One two.", "b": "Three, four.", "sub/c": "Five \N{EM DASH} six."}


def tone(path: Path, seconds: float = 0.2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    times = np.arange(round(RATE_HZ * seconds)) / RATE_HZ
    file_format = {".mp3": "MP3", ".flac": "FLAC"}.get(path.suffix, "WAV")
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * 440 * times), RATE_HZ, format=file_format)
    return path


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


def write_lines(path: Path, rows: list[dict]) -> Path:
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def source_of(folder: Path, **options):
    return open_source(FolderArguments(str(folder), **options))


def read(folder: Path, **options) -> list[Clip | BadClip]:
    """All clips, after checking that they come the same again, and from any start."""
    source = source_of(folder, **options)
    clips = list(source.clips())
    assert list(source_of(folder, **options).clips()) == clips
    for start in (1, len(clips) - 1, len(clips), len(clips) + 3):
        assert list(source.clips(start)) == clips[start:]
    assert source.count() in (None, len(clips))
    json.dumps([source.identity, [clip.id for clip in clips]]).encode()
    return clips


def said(clips: list[Clip | BadClip]) -> dict[str, str]:
    """Texts by id of clips that are all good, with their recordings there."""
    assert [clip for clip in clips if isinstance(clip, BadClip)] == []
    assert all(os.path.isabs(clip.recording) and os.path.isfile(clip.recording) for clip in clips)
    return {clip.id: clip.text for clip in clips}


def make_sidecar(folder: Path, suffix: str = ".txt") -> None:
    for name, text in SENTENCES.items():
        tone(folder / f"{name}.flac")
        write(folder / f"{name}{suffix}", text + "\n")


def make_csv(folder: Path) -> None:
    for name in SENTENCES:
        tone(folder / f"{name}.wav")
    write(folder / "list.csv", "file,words,transcript\n" + "".join(f'{n}.wav,2,"{t}"\n' for n, t in SENTENCES.items()))


def make_tsv(folder: Path) -> None:
    """As Common Voice has it."""
    header = "client_id\tpath\tsentence\tup_votes\tlocale\n"
    for table, names in {"train": "ab", "dev": ["sub/c"]}.items():
        rows = "".join(f"v1\tclips/{name}.mp3\t{SENTENCES[name]}\t2\ten\n" for name in names)
        write(folder / f"{table}.tsv", header + rows)
    write(folder / "reported.tsv", "sentence\tsentence_id\tlocale\treason\n")
    for name in SENTENCES:
        tone(folder / "clips" / f"{name}.mp3")


def make_nemo(folder: Path) -> None:
    rows = [
        {"audio_filepath": f"audio/{name}.wav", "text": text, "duration": 0.2, "lang": "en", "pred_text": text.lower()}
        for name, text in SENTENCES.items()
    ]
    for name in SENTENCES:
        tone(folder / "audio" / f"{name}.wav")
    write_lines(folder / "manifest.json", rows)


def make_json(folder: Path) -> None:
    for name in SENTENCES:
        tone(folder / f"{name}.wav")
    rows = [{"id": n, "path": f"{n}.wav", "sentence": t} for n, t in SENTENCES.items()]
    write(folder / "data.json", json.dumps(rows))


def make_audiofolder(folder: Path, ending: str = ".jsonl") -> None:
    rows = [{"file_name": f"{name}.wav", "transcription": text} for name, text in SENTENCES.items()]
    for name in SENTENCES:
        tone(folder / f"{name}.wav")
    if ending == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "metadata.parquet")
    elif ending == ".csv":
        lines = "".join(f'{row["file_name"]},"{row["transcription"]}"\n' for row in rows)
        write(folder / "metadata.csv", "file_name,transcription\n" + lines)
    else:
        write_lines(folder / "metadata.jsonl", rows)


MAKERS = {name.removeprefix("make_"): make for name, make in globals().items() if name.startswith("make_")}

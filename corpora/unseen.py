"""Speech that no bundled corpus holds: ten recordings by other speakers, of other text, to test on and never to train on.

Playing cards and LibriVox, from PocketSphinx's test data; see `unseen_speech/README.md`.
"""

import json
from pathlib import Path

import datasets
import soundfile

UNSEEN_FOLDER = Path(__file__).parent / "unseen_speech"
CLIPS_FILE = UNSEEN_FOLDER / "clips.json"
SOURCES = ("cards", "librivox")


def load_unseen_speech(source: str | None = None) -> datasets.Dataset:
    """
    Return the unseen clips of a source, or all, in memory, without network, cache folder or torchcodec.

    The columns are `id`, `audio` (`Audio(decode=False)`: a dict of `bytes`, 16 kHz mono FLAC, and `path`), `text` (the
    transcript, cased and punctuated), `duration_s`, `source` and `speaker`; rows are sorted by id.
    """
    if source is not None and source not in SOURCES:
        raise ValueError(f"The unseen speech has no source {source!r}; expected one of {', '.join(SOURCES)}, or None.")
    rows = []
    for clip in json.loads(CLIPS_FILE.read_text(encoding="utf-8")):
        if source is None or clip["source"] == source:
            path = UNSEEN_FOLDER / clip["file"]
            row = {"id": clip["id"], "audio": {"bytes": path.read_bytes(), "path": path.name}, "text": clip["text"]}
            row |= {"duration_s": soundfile.info(path).duration, "source": clip["source"], "speaker": clip["speaker"]}
            rows.append(row)
    table = datasets.Dataset.from_list(rows, split=datasets.Split.TEST)
    return table.cast_column("audio", datasets.Audio(decode=False))

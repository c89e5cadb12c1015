"""Speech that no bundled corpus holds: ten recordings by other speakers, of other text, to test on and never to train on.

Playing cards and LibriVox, from PocketSphinx's test data; see `unseen_speech/README.md`.
"""

import json
from pathlib import Path

import datasets
import pyarrow as pa
import soundfile
from datasets.table import InMemoryTable

UNSEEN_FOLDER = Path(__file__).parent / "unseen_speech"
CLIPS_FILE = UNSEEN_FOLDER / "clips.json"
SOURCES = ("cards", "librivox")
FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),
        "audio": datasets.Audio(decode=False),
        "text": datasets.Value("string"),
        "duration_s": datasets.Value("float64"),
        "source": datasets.Value("string"),
        "speaker": datasets.Value("string"),
    }
)


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
            row = {name: clip[name] for name in ("id", "text", "source", "speaker")}
            audio = {"bytes": path.read_bytes(), "path": path.name}
            rows.append({**row, "audio": audio, "duration_s": soundfile.info(path).duration})
    table = pa.Table.from_pylist(rows, schema=FEATURES.arrow_schema)
    return datasets.Dataset(InMemoryTable(table), split=datasets.Split.TEST)

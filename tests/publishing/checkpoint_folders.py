"""The record of a run, and changes to a checkpoint's JSON."""

import json
from pathlib import Path
from typing import Any

RUN = {
    "stage": "instruct",
    "command": "audiollm train --config=instruct --data_path=data.json",
    "data": [{"path": "data.json", "sha256": "ab" * 32}, {"path": "hub:org/speech?split=train", "sha256": None}],
    "rows": 12,
    "steps": 3,
    "epochs": 1.0,
    "final_loss": 3.25,
    "hyperparameters": {"learning_rate": 2e-4, "seed": 42},
    "seconds": 90.0,
    "machine": {"processor": "A processor", "cores": 2, "system": "Linux"},
    "versions": {"python": "3.11", "torch": "2.13.0"},
    "audiollm": {"version": "0.1.0", "commit": "c0ffee"},
}


def change_json(path: Path, **fields: Any) -> None:
    """Sets fields of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

"""Records of runs, and the files that lie beside the checkpoints of real people."""

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
#: What a run and its user leave beside a checkpoint.
STRAYS = (
    *("training_args.bin", "optimizer.pt", "rng_state.pth", "trainer_state.json", "stage.json", ".env", "token"),
    *("notes.txt", "run.log", "scratch.py", "other.safetensors", "checkpoint-3/model.safetensors"),
    *("checkpoint-3/optimizer.pt", "runs/events.out.tfevents.1", ".git/config", ".cache/x", "__pycache__/x.pyc"),
)


def change_json(path: Path, **fields: Any) -> None:
    """Sets fields of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

"""Checksum that tells one model from another."""

import hashlib
import os
from pathlib import Path
from typing import Any

from audiollm.files import sha256_of

#: What of a model's folder decides what it hears or writes.
MODEL_FILES = ("*.json", "*.txt", "*.jinja", "*.model", "*.safetensors")


def model_checksum(folder: str, config: Any) -> str | None:
    """
    What a model is known by, whatever its name: its commit on the Hub, or the sha256 of all that counts in its folder.

    Args:
        folder: a folder, or a Hub id, as `from_pretrained` takes it.
        config: the model's, as `AutoConfig` has read it.
    """
    if not os.path.isdir(folder):
        return getattr(config, "_commit_hash", None)
    digest = hashlib.sha256()
    for file in sorted({file for pattern in MODEL_FILES for file in Path(folder).glob(pattern)}):
        digest.update(f"{file.name} {sha256_of(file)}\n".encode())
    return digest.hexdigest()


__all__ = ["model_checksum"]

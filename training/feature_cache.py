"""
Encoder output, computed once per recording and kept on disk.

It is stored under a hash of the recording, in a folder of the encoder's fingerprint, and shared by epochs, runs and
evaluation. With tiny.en, 25 minutes of speech take 58 MB in float32; large-v3-turbo takes 461 MB an hour in bfloat16.
"""

import json
import multiprocessing
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from audiollm.base_models import audiollm_cache_dir
from audiollm.checkpoints import fingerprint
from audiollm.command_line.files import check_writable, naming_the_disk, sha256_of, write_whole
from audiollm.command_line.interruption import interruptible
from audiollm.command_line.machine import worker_processes
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

#: Raised when what is computed, or how it is stored, changes.
FORMAT_VERSION = 1
KEY_LENGTH = 32
#: Fields of a feature extractor's configuration that say whose it is, not what it computes; saving may add them.
NOT_OF_THE_FEATURES = frozenset({"auto_map", "processor_class", "_processor_class", "_commit_hash"})
BYTES_PER_MB = 1_000_000
#: Recordings for which it is worth starting another process, which takes some 50 ms.
RECORDINGS_PER_PROCESS = 8


class FeatureCache:
    """
    A folder of encoder frames, one safetensors file per recording.

    Files appear whole or not at all, so runs may share a folder. Each recording is encoded by itself. The folder is by
    default `features` in AudioLLM's cache folder. `processes` decode, and on a CPU also encode.
    """

    def __init__(self, model, processor, folder: str | os.PathLike | None = None, processes: int | None = None):
        self.model, self.processor = model, processor
        self.processes = worker_processes() if processes is None else processes
        tower, extractor = model.model.audio_tower, processor.feature_extractor.to_dict()
        settings = {
            "version": FORMAT_VERSION,
            "encoder": fingerprint(tower.state_dict()),
            "dtype": str(tower.dtype),
            "feature_extractor": {name: extractor[name] for name in extractor if name not in NOT_OF_THE_FEATURES},
        }
        encoder_key = sha256_of(json.dumps(settings, sort_keys=True, default=str).encode())[:KEY_LENGTH]
        root = audiollm_cache_dir() / "features" if folder is None else Path(folder)
        self.folder = check_writable(root / encoder_key)

    def __getstate__(self) -> dict[str, Any]:
        """Return what reads the folder: the DataLoader's workers must not be sent the model."""
        return {"folder": self.folder}

    def path(self, key: str) -> Path:
        """Return the file of a key; they are spread over 256 folders."""
        return self.folder / key[:2] / f"{key}.safetensors"

    def _read(self, key: str, *names: str) -> list[torch.Tensor]:
        try:
            with safe_open(self.path(key), framework="pt") as file:
                return [file.get_tensor(name) for name in names]
        except (FileNotFoundError, SafetensorError) as error:
            raise KeyError(f"No features for {key} in {self.folder} ({error}).") from error

    def load(self, key: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return frames `(total_frames, d_model)` of all windows, and each one's number; KeyError without a whole file."""
        frames, lengths = self._read(key, "frames", "lengths")
        return frames, lengths

    def lengths(self, key: str) -> list[int]:
        """Return the number of frames of each window, without reading them. Raises KeyError as [`load`]."""
        return self._read(key, "lengths")[0].tolist()

    def has(self, key: str) -> bool:
        """Return whether a key's features are there and readable."""
        try:
            return bool(self.lengths(key))
        except KeyError:
            return False

    def describe(self) -> str:
        """Return a line with the disk space of this encoder's features, and their place."""
        size = sum(path.stat().st_size for path in self.folder.rglob("*.safetensors"))
        return f"Feature cache: {size / BYTES_PER_MB:.0f} MB in {self.folder}."

    def key(self, recording: Any) -> str:
        """Return a hash of a path's or encoded bytes' content, or of a float waveform at the processor's rate."""
        if isinstance(recording, dict):
            recording = recording["bytes"] if recording.get("bytes") is not None else recording["path"]
        if not isinstance(recording, (str, os.PathLike, bytes, bytearray)):
            recording = b"waveform" + np.ascontiguousarray(recording, dtype=np.float32).tobytes()
        return sha256_of(recording)[:KEY_LENGTH]

    def compute(self, recording: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode one recording; the result is as [`load`] gives it."""
        return self._encode(self._features(recording))

    def _features(self, recording: Any) -> dict[str, torch.Tensor]:
        recording = recording() if callable(recording) else recording
        return self.processor.batch_features([self.processor.load_audio(recording)])

    @torch.no_grad()
    def _encode(self, features: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        device = self.model.model.audio_tower.device
        frames, lengths = [], []
        # A window at a time: a short last one does not depend on the full ones, and memory stays that of one.
        for window, mask in zip(features["input_features"], features["input_features_mask"]):
            encoded, count = self.model.model.encode_audio(window[None, :, : int(mask.sum())].to(device))
            frames.append(encoded[0].cpu())
            lengths.append(int(count))
        return torch.cat(frames), torch.tensor(lengths)

    def add(self, recordings: Iterable[Any], progress: bool = True) -> list[str]:
        """Store what is missing, and return the keys; several processes share the work, and wait for each other."""
        recordings = list(recordings)
        keys = [self.key(recording) for recording in recordings]
        self.fill(dict(zip(keys, recordings)), progress)
        return keys

    def fill(self, by_key: Mapping[str, Any], progress: bool = True) -> None:
        """Store what is missing under keys of the caller's own: recordings, or functions that make one when it is missing."""
        missing = [key for key in by_key if not self.has(key)]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            group = PartialState()
            group.wait_for_everyone()  # for all to have seen the same ones missing
            share = missing[group.process_index :: group.num_processes]
            self._fill({key: by_key[key] for key in share}, progress and group.is_main_process)
            group.wait_for_everyone()
            missing = [key for key in missing if not self.has(key)]  # what others stored on disks of their own
        self._fill({key: by_key[key] for key in missing}, progress)

    def _fill(self, recordings: dict[str, Any], progress: bool) -> None:
        processes = min(self.processes, len(recordings) // RECORDINGS_PER_PROCESS)
        if processes == 1 or multiprocessing.current_process().daemon:  # which may start none
            processes = 0
        loader: DataLoader = DataLoader(
            _Recordings(self, recordings),
            batch_size=None,
            num_workers=processes,
            multiprocessing_context="fork" if processes else None,  # they share the model's memory
            in_order=False,  # a process whose core is busy gets less to do
            generator=torch.Generator(),  # not torch's own, from which training draws
        )
        shown = {"desc": "Encoding audio", "unit": "clip", "disable": not (progress and recordings)}
        for key, features in tqdm(interruptible(loader), total=len(recordings), **shown):
            if features is not None or not self.has(key):
                self._store(key, *self._encode(features or self._features(recordings[key])))

    def add_one(self, recording: Any) -> str:
        """Store one recording, in this process alone, and return its key."""
        key = self.key(recording)
        if not self.has(key):
            self._store(key, *self.compute(recording))
        return key

    def _store(self, key: str, frames: torch.Tensor, lengths: torch.Tensor) -> None:
        with naming_the_disk(self.folder):
            write_whole(self.path(key), save({"frames": frames.contiguous(), "lengths": lengths}))


class _Recordings(Dataset):
    """Items are (key, encoder input), or (key, None) once stored, as on a CPU, or where that failed."""

    def __init__(self, cache: FeatureCache, recordings: Mapping[str, Any]):
        self.cache = cache
        self.recordings = list(recordings.items())

    def __len__(self) -> int:
        return len(self.recordings)

    def __getitem__(self, index: int) -> tuple[str, dict[str, torch.Tensor] | None]:
        key, recording = self.recordings[index]
        try:
            features = self.cache._features(recording)
            if self.cache.model.model.audio_tower.device.type != "cpu":
                return key, features
            self.cache._store(key, *self.cache._encode(features))
        except Exception:  # whatever it is: the main process tries again, and its error is the one that is raised
            pass
        return key, None

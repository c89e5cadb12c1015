"""
Encoder output, computed once per recording and kept on disk.

The encoder is frozen, so what it says of a recording never changes: it is stored under the recording's own content and
the encoder's fingerprint, and shared by epochs, runs and evaluation. For tiny.en and 25 minutes of speech this trades
58 MB of disk (float32) for the whole encoder time of every epoch after the first.
"""

import hashlib
import json
import multiprocessing
import os
import shutil
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from audiollm.base_models import audiollm_cache_dir
from audiollm.checkpoints import fingerprint
from audiollm.interruption import interruptible
from audiollm.machine import worker_processes
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
#: Recordings decoded ahead of an encoder that is not on the CPU: 12 s of speech take a core 34 ms to decode and to make
#: log-mel frames of, but a GPU a few to encode.
READ_AHEAD = 8
#: Recordings for which it is worth starting another process, which takes some 50 ms.
RECORDINGS_PER_PROCESS = 8


class FeatureCacheError(OSError):
    """A folder that features cannot be kept in; the message says why and what to do."""


class FeatureStore:
    """
    A folder of encoder frames, to be read: without model or processor, so that it is light to send to other processes.

    Args:
        folder: of one encoder, as [`FeatureCache`] fills it.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, key: str) -> Path:
        """File of a key; they are spread over 256 folders."""
        return self.folder / key[:2] / f"{key}.safetensors"

    def load(self, key: str) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Frames `(total_frames, d_model)` of a recording's windows one after the other, and how many each window has.

        Raises:
            KeyError: the key was never computed, or its file is damaged.
        """
        try:
            with safe_open(self.path(key), framework="pt") as file:
                return file.get_tensor("frames"), file.get_tensor("lengths")
        except (FileNotFoundError, SafetensorError) as error:
            raise KeyError(f"No features for {key} in {self.folder} ({error}).") from error

    def lengths(self, key: str) -> list[int]:
        """
        How many frames each window of a recording has, without reading them.

        Raises:
            KeyError: as [`load`].
        """
        try:
            with safe_open(self.path(key), framework="pt") as file:
                return file.get_tensor("lengths").tolist()
        except (FileNotFoundError, SafetensorError) as error:
            raise KeyError(f"No features for {key} in {self.folder} ({error}).") from error

    def has(self, key: str) -> bool:
        """Whether a key's features are there and readable."""
        try:
            with safe_open(self.path(key), framework="pt") as file:
                return {"frames", "lengths"} <= set(file.keys())
        except (FileNotFoundError, SafetensorError):
            return False

    def size_bytes(self, keys: Iterable[str] | None = None) -> int:
        """What this encoder's features take on disk: those of some keys, or all."""
        paths = self.folder.rglob("*.safetensors") if keys is None else map(self.path, keys)
        return sum(path.stat().st_size for path in paths)

    def describe(self) -> str:
        """Where it is and how large."""
        return f"Feature cache: {self.size_bytes() / BYTES_PER_MB:.0f} MB in {self.folder}."


class FeatureCache(FeatureStore):
    """
    A folder of encoder frames, one safetensors file per recording.

    Files appear whole or not at all (written aside, then renamed), so that runs may share a folder, and a run that is
    killed loses nothing but the recording it was at. Each recording is encoded by itself: its features do not depend,
    not even in the last bit, on which others were missing from the cache.

    Args:
        folder: where to keep them; `features` in AudioLLM's cache folder by default.
        model: the [`AudioLlmForConditionalGeneration`] whose encoder is used.
        processor: its processor.
        read_ahead: how many recordings threads decode while others are encoded. None for `READ_AHEAD` where the encoder
            is on a GPU, and 0 on a CPU, which has no time to spare.
        processes: how many encode many recordings, with one thread each. None for what suits this machine: 1, the
            process itself, where the encoder is on a GPU.
    """

    def __init__(
        self,
        model,
        processor,
        folder: str | os.PathLike | None = None,
        read_ahead: int | None = None,
        processes: int | None = None,
    ):
        self.model = model
        self.processor = processor
        tower = model.model.audio_tower
        on_cpu = tower.device.type == "cpu"
        self.read_ahead = (0 if on_cpu else READ_AHEAD) if read_ahead is None else read_ahead
        self.processes = (worker_processes() if on_cpu else 1) if processes is None else processes
        settings = {
            "version": FORMAT_VERSION,
            "encoder": fingerprint(tower.state_dict()),
            "dtype": str(tower.dtype),
            "feature_extractor": {
                name: value
                for name, value in processor.feature_extractor.to_dict().items()
                if name not in NOT_OF_THE_FEATURES
            },
        }
        encoder_key = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
        root = Path(folder) if folder is not None else audiollm_cache_dir() / "features"
        super().__init__(root / encoder_key[:KEY_LENGTH])
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FeatureCacheError(f"--feature_cache {root} cannot be used: {error}") from error
        if not os.access(self.folder, os.W_OK | os.X_OK):
            raise FeatureCacheError(f"--feature_cache {root} cannot be written to.")

    @property
    def store(self) -> FeatureStore:
        """What reads what is stored."""
        return FeatureStore(self.folder)

    def key(self, recording: Any) -> str:
        """
        What a recording is stored under: a hash of the file's bytes, or of a waveform's samples.

        Args:
            recording: a path, encoded bytes, a `datasets` audio dict with `bytes` or `path`, or a float waveform at
                the processor's rate.
        """
        if isinstance(recording, dict):
            recording = recording["bytes"] if recording.get("bytes") is not None else recording["path"]
        digest = hashlib.sha256()
        if isinstance(recording, (str, os.PathLike)):
            digest.update(Path(recording).read_bytes())
        elif isinstance(recording, (bytes, bytearray)):
            digest.update(recording)
        else:
            digest.update(b"waveform")
            digest.update(np.ascontiguousarray(recording, dtype=np.float32).tobytes())
        return digest.hexdigest()[:KEY_LENGTH]

    def compute(self, recording: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Encodes one recording, window by window; the result is as [`load`] gives it."""
        return self._run_encoder(self._features(recording))

    def _features(self, recording: Any) -> dict[str, torch.Tensor]:
        return self.processor.batch_features([self.processor.load_audio(recording)])

    @torch.no_grad()
    def _run_encoder(self, features: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        device = self.model.model.audio_tower.device
        frames, lengths = [], []
        # A window at a time: a short last one does not depend on the full ones, and memory stays that of one.
        for window, mask in zip(features["input_features"], features["input_features_mask"]):
            window = window[None, :, : int(mask.sum())].to(device)
            encoded, count = self.model.model.encode_audio(window)
            frames.append(encoded[0].cpu())
            lengths.append(int(count))
        return torch.cat(frames), torch.tensor(lengths)

    def add(self, recordings: Iterable[Any], progress: bool = True) -> list[str]:
        """
        Computes and stores what is missing; in distributed training each process its share, and all wait for it.

        Args:
            recordings: as in [`key`]; repeats cost nothing.
            progress: shows a bar with rate and time left.

        Returns:
            The key of each recording.

        Raises:
            AudioError, FileNotFoundError: a recording cannot be used; those before it stay stored.
        """
        recordings = list(recordings)
        keys = [self.key(recording) for recording in recordings]
        self.fill(dict(zip(keys, recordings)), progress)
        return keys

    def fill(self, by_key: Mapping[str, Any], progress: bool = True) -> None:
        """
        [`add`] under keys of the caller's own.

        Args:
            by_key: recordings as in [`key`], or functions that make one when it is missing.
            progress: as in [`add`].
        """
        missing = [key for key in by_key if not self.has(key)]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            processes = PartialState()
            processes.wait_for_everyone()  # for all to have seen the same ones missing
            share = missing[processes.process_index :: processes.num_processes]
            self._encode({key: by_key[key] for key in share}, progress and processes.is_main_process)
            processes.wait_for_everyone()
            missing = [key for key in missing if not self.has(key)]  # what others stored on disks of their own
        self._encode({key: by_key[key] for key in missing}, progress)

    def _encode(self, recordings: dict[str, Any], progress: bool) -> None:
        silent = not progress or not recordings
        bar = partial(tqdm, total=len(recordings), desc="Encoding audio", unit="clip", disable=silent)
        processes = min(self.processes, len(recordings) // RECORDINGS_PER_PROCESS)
        if processes <= 1 or multiprocessing.current_process().daemon:  # which may start none
            for key, features in bar(interruptible(self._all_features(recordings))):
                self._store(key, *self._run_encoder(features))
            return
        loader = DataLoader(
            _Encoding(self, recordings),
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=processes,
            multiprocessing_context="fork",  # they share the model's memory
            in_order=False,  # a process whose core is busy gets less to do
            generator=torch.Generator(),  # not torch's own, from which training draws
        )
        for key, stored in bar(interruptible(loader)):
            if not stored:
                self._store(key, *self.compute(_made(recordings[key])))  # raises what was raised there

    def _all_features(self, recordings: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
        """The encoder's input for each key, in order; up to `read_ahead` are made while others are encoded."""

        def make(recording: Any) -> dict[str, torch.Tensor]:
            return self._features(_made(recording))

        if not self.read_ahead:
            yield from ((key, make(recording)) for key, recording in recordings.items())
            return
        with ThreadPoolExecutor(self.read_ahead) as threads:
            ahead: deque[tuple[str, Future]] = deque()
            try:
                for key, recording in recordings.items():
                    ahead.append((key, threads.submit(make, recording)))
                    if len(ahead) > self.read_ahead:
                        first, features = ahead.popleft()
                        yield first, features.result()
                for key, features in ahead:
                    yield key, features.result()
            finally:
                threads.shutdown(wait=False, cancel_futures=True)

    def add_one(self, recording: Any) -> str:
        """As [`add`] of one recording, by this process alone: it waits for no other, and no other for it."""
        key = self.key(recording)
        if not self.has(key):
            self._store(key, *self.compute(recording))
        return key

    def _store(self, key: str, frames: torch.Tensor, lengths: torch.Tensor) -> None:
        path = self.path(key)
        # Neither tempfile's nor safetensors' own: only their owner can read these, and a cache may be shared.
        unfinished = path.with_name(f"{key}.{uuid.uuid4().hex}.part")
        content = save({"frames": frames.contiguous(), "lengths": lengths})
        try:
            path.parent.mkdir(exist_ok=True)
            unfinished.write_bytes(content)
            os.replace(unfinished, path)
        except OSError as error:
            free = shutil.disk_usage(self.folder).free / BYTES_PER_MB
            raise FeatureCacheError(
                f"The feature cache {self.folder} cannot take {len(content) / BYTES_PER_MB:.1f} MB more ({error}); its "
                f"disk has {free:.0f} MB free. Make room, or give --feature_cache another folder, or off. What is stored "
                "stays good."
            ) from error
        finally:
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)


class _Encoding(Dataset):
    """Recordings that are encoded and stored where they are asked for: (key, whether it is stored)."""

    def __init__(self, cache: FeatureCache, recordings: Mapping[str, Any]):
        self.cache = cache
        self.recordings = list(recordings.items())

    def __len__(self) -> int:
        return len(self.recordings)

    def __getitem__(self, index: int) -> tuple[str, bool]:
        key, recording = self.recordings[index]
        try:
            self.cache._store(key, *self.cache.compute(_made(recording)))
        except Exception:  # it is tried once more in the process that asked
            return key, False
        return key, True


def _made(recording: Any) -> Any:
    return recording() if callable(recording) else recording


def _unchanged(item: Any) -> Any:
    return item

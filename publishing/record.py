"""
The training record of a checkpoint, `training_record.json`: the commands that trained it, their data, machine and time.

It holds nothing private: paths are written relative to the working folder, secrets are masked.
"""

import contextlib
import importlib.metadata
import json
import os
import platform
import re
import resource
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import audiollm
import torch
from audiollm.command_line.files import sha256_of, write_json
from transformers.utils import cached_file

RECORD_FILE = "training_record.json"
#: Libraries whose versions are recorded, so that a run can be repeated.
LIBRARIES = (
    *("torch", "transformers", "peft", "accelerate", "datasets", "huggingface_hub", "safetensors", "numpy"),
    *("soundfile", "soxr"),
)
#: Options whose values are never written down.
SECRET_OPTION = re.compile(r"token|password|secret|api_?key", re.IGNORECASE)
MASK = "HIDDEN"
MIB = 1 << 20
GIB = 1 << 30
GIT_TIMEOUT_SECONDS = 10
#: Unit of `ru_maxrss`: KiB, on macOS bytes.
MEMORY_UNIT_BYTES = 1 if sys.platform == "darwin" else 1 << 10


class CardError(ValueError):
    """A card that cannot be made. The message says why, and what to do."""


def read_record(folder: str | os.PathLike) -> dict[str, Any]:
    """Return the record in a checkpoint's folder, without runs if there is no file; CardError if it is no record."""
    path = Path(folder) / RECORD_FILE
    if not path.is_file():
        return {"runs": []}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(run, dict) and isinstance(run["stage"], str) for run in record["runs"]):
            raise ValueError("a run is not an object with a stage")
    except (ValueError, KeyError, TypeError) as error:
        raise CardError(f"{path} is not a training record ({error!r}); move it away or train again.") from error
    return record


def add_run(folder: str | os.PathLike, run: Mapping[str, Any], starts_from: str | None = None) -> Path:
    """
    Write the record of a new checkpoint, and return its path: the runs of the one it started from, and the run that made it.

    Args:
        folder: of the new checkpoint.
        run: JSON with a `stage` at least; see `audiollm.training.run_record`.
        starts_from: folder or Hub id of the checkpoint it started from.
    """
    earlier: list[dict[str, Any]] = []
    if starts_from is not None:
        with contextlib.suppress(OSError):  # a repository without a record
            is_here = os.path.isdir(starts_from)
            before = starts_from if is_here else os.path.dirname(str(cached_file(starts_from, RECORD_FILE)))
            earlier = read_record(before)["runs"]
    path = Path(folder) / RECORD_FILE
    write_json(path, {"runs": [*earlier, dict(run)]})
    return path


def command_line(words: Sequence[str] | None = None) -> str:
    """Return a command, by default this process', without the folders of this machine and without secrets."""
    first, *rest = sys.argv if words is None else words
    program = Path(first).name
    if program in ("cli.py", "audiollm"):
        start = ["audiollm"]
    else:  # without a script, an interactive session or -c
        start = ["python", *([shown_path(first)] if program.endswith(".py") else [])]
    shown, hide_next = [], False
    for word in rest:
        name, is_pair, value = word.partition("=")
        is_secret = name.startswith("--") and SECRET_OPTION.search(name) is not None
        if hide_next:
            shown.append(MASK)
        elif is_pair and name.startswith("--"):
            shown.append(f"{name}={MASK if is_secret else shown_path(value)}")
        else:
            shown.append(shown_path(word))
        hide_next = is_secret and not is_pair
    return shlex.join([*start, *shown])


def shown_path(path: str) -> str:
    """Return an absolute path relative to the working folder, or its last part if it lies elsewhere; other words as given."""
    if not os.path.isabs(path):
        return path
    relative = os.path.relpath(path)
    return relative if not relative.startswith(os.pardir) else Path(path).name


def describe_file(path: str) -> dict[str, str | None]:
    """Return name and SHA-256 of a data file; of a folder or a dataset on the Hub the name alone."""
    return {"path": shown_path(path), "sha256": sha256_of(path) if os.path.isfile(path) else None}


def package_facts() -> dict[str, str | None]:
    """
    Return the version of AudioLLM, and the commit it was installed from (PEP 610) or runs from, if known.

    That of a clone is marked if there are changes.
    """
    commit, folder = None, Path(str(audiollm.__file__)).resolve().parents[1]
    with contextlib.suppress(importlib.metadata.PackageNotFoundError, ValueError):
        text = importlib.metadata.distribution("audiollm").read_text("direct_url.json")
        commit = json.loads(text or "{}").get("vcs_info", {}).get("commit_id")
    if commit is None and (folder / ".git").exists() and (folder / "setup.cfg").is_file():
        command = [
            "git",
            "-C",
            str(folder),
            "describe",
            "--always",
            "--abbrev=40",
            "--exclude=*",
            "--dirty= with changes",
        ]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=GIT_TIMEOUT_SECONDS)
            commit = done.stdout.strip()
    return {"version": audiollm.__version__, "commit": commit}


def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that a run depends on."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def machine_facts() -> dict[str, Any]:
    """Return the facts about this machine: processor, usable cores, memory in GiB, names of GPUs."""
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, IndexError):  # of Linux, which names it here alone
        processor = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB
    facts: dict[str, Any] = {"system": platform.system(), "processor": processor, "cores": cores}
    facts["memory_gib"] = round(memory, 1)
    if torch.cuda.is_available():
        facts["gpus"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return facts


def peak_memory_mib() -> float:
    """Return the peak memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MEMORY_UNIT_BYTES / MIB

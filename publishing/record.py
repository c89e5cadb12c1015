"""
The training record of a checkpoint: what was run, on what data, with what, for how long, as `training_record.json`.

Facts only, and none that belong to one machine's user: paths are shown relative, secrets masked.
"""

import hashlib
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
from transformers.utils import cached_file

RECORD_FILE = "training_record.json"
#: Libraries whose versions say what a run can be repeated with.
LIBRARIES = (
    *("torch", "transformers", "peft", "accelerate", "datasets", "huggingface_hub", "safetensors", "numpy"),
    *("soundfile", "soxr"),
)
#: Options whose values are never written down.
SECRET_OPTION = re.compile(r"token|password|secret|api_?key", re.IGNORECASE)
MASK = "HIDDEN"
READ_BYTES = 1 << 20
MIB = 1 << 20
GIB = 1 << 30
GIT_TIMEOUT_SECONDS = 10
#: What `ru_maxrss` counts in: KiB, but on macOS bytes.
MEMORY_UNIT_BYTES = 1 if sys.platform == "darwin" else 1 << 10


class RecordError(ValueError):
    """A training record that cannot be read."""


def read_record(folder: str | os.PathLike) -> dict[str, Any]:
    """
    The record in a checkpoint's folder; without one, that of no runs.

    Raises:
        RecordError: it is there, but is not what `add_run` writes.
    """
    path = Path(folder) / RECORD_FILE
    if not path.is_file():
        return {"runs": []}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(run, dict) and isinstance(run["stage"], str) for run in record["runs"]):
            raise ValueError("a run is not an object with a stage")
    except (ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{path} is not a training record ({error!r}); move it away or train again.") from error
    return record


def add_run(folder: str | os.PathLike, run: Mapping[str, Any], starts_from: str | None = None) -> Path:
    """
    Writes the record of a checkpoint that `run` has made, behind the runs of the one that it started from.

    Args:
        folder: of the checkpoint.
        run: what `describe_run` of the training room gives, or the like: JSON with a `stage` at least.
        starts_from: folder or Hub id of the checkpoint before.

    Returns:
        The file.
    """
    earlier: list[dict[str, Any]] = []
    if starts_from is not None:
        found = starts_from if os.path.isdir(starts_from) else _folder_on_the_hub(starts_from)
        earlier = read_record(found)["runs"] if found is not None else []
    path = Path(folder) / RECORD_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"runs": [*earlier, dict(run)]}, indent=1, ensure_ascii=False) + "\n"
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
    return path


def _folder_on_the_hub(repo_id: str) -> str | None:
    try:
        found = cached_file(repo_id, RECORD_FILE, _raise_exceptions_for_missing_entries=False)
    except OSError:
        return None
    return str(Path(str(found)).parent) if found else None


def command_line(words: Sequence[str] | None = None) -> str:
    """
    This process' command, as somebody else would give it: without the folders of this machine and without secrets.

    Args:
        words: of the command; those of this process when not given.
    """
    first, *rest = sys.argv if words is None else words
    program = Path(first).name
    if program == "cli.py" or program == "audiollm":
        start = ["audiollm"]
    elif program.endswith(".py"):
        start = ["python", shown_path(first)]
    else:
        start = ["python"]  # an interactive session, or -c
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
    """An absolute path as seen from the working folder, or, elsewhere, by its last part alone; other words as they are."""
    if not os.path.isabs(path):
        return path
    relative = os.path.relpath(path)
    return relative if not relative.startswith(os.pardir) else Path(path).name


def describe_file(path: str) -> dict[str, str | None]:
    """A file of training data by name and SHA-256; of a folder or something on the Hub only the name."""
    return {"path": shown_path(path), "sha256": sha256_of([Path(path)]) if os.path.isfile(path) else None}


def sha256_of(paths: Sequence[Path]) -> str:
    """SHA-256 of files' contents, one after the other, in hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(READ_BYTES):
                digest.update(block)
    return digest.hexdigest()


def package_facts() -> dict[str, str | None]:
    """Version of AudioLLM, and the commit it was installed from or lies in, if that can be known."""
    return {"version": audiollm.__version__, "commit": _installed_commit() or _checkout_commit()}


def _installed_commit() -> str | None:
    """The commit that pip wrote down (PEP 610), where it installed from a repository."""
    try:
        text = importlib.metadata.distribution("audiollm").read_text("direct_url.json")
        return json.loads(text or "{}").get("vcs_info", {}).get("commit_id")
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None


def _checkout_commit() -> str | None:
    """The commit of the clone that the package runs from; one with changes says so."""
    folder = Path(str(audiollm.__file__)).resolve().parents[1]
    if not ((folder / ".git").exists() and (folder / "setup.cfg").is_file()):
        return None
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit} with changes" if changed else commit


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=GIT_TIMEOUT_SECONDS
    )
    return done.stdout.strip()


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that a run depends on."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def machine_facts() -> dict[str, Any]:
    """What computes here: processor, cores that may be used, memory in GiB, accelerators by name."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts: dict[str, Any] = {"system": platform.system(), "processor": _processor(), "cores": cores}
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        facts["memory_gib"] = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB, 1)
    if torch.cuda.is_available():
        facts["gpus"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return facts


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def peak_memory_mib() -> float:
    """The most memory that this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MEMORY_UNIT_BYTES / MIB

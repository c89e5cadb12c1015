"""`run.json`: what a folder of outputs was made with, so that none of another making is put beside them."""

import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .outputs import write_whole

RUN_FILE = "run.json"
#: Packages on whose versions an answer may depend.
PACKAGES = ("audiollm", "torch", "transformers", "peft", "accelerate", "numpy", "soundfile", "soxr")
#: What must be alike in all that one folder holds: fields of `settings`, and of each task's.
SETTINGS = "settings"


class OtherSettingsError(ValueError):
    """A folder holds the outputs of a run with other settings; the message has every difference."""


def installed_versions() -> dict[str, str]:
    """Versions of what computes, and of Python."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def read_run(folder: Path) -> dict[str, Any]:
    """
    The record of a folder; empty where there is none.

    Raises:
        OtherSettingsError: there is a file of that name, but no record.
    """
    path = folder / RUN_FILE
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise OtherSettingsError(f"{path} cannot be read ({error}); choose another --output_dir.") from error
    if not isinstance(record, dict) or not isinstance(record.get("tasks"), dict):
        raise OtherSettingsError(f"{path} is no record of an evaluation; choose another --output_dir.")
    return record


def write_run(folder: Path, record: Mapping[str, Any]) -> None:
    """Puts the record in its place."""
    write_whole(folder / RUN_FILE, json.dumps(record, indent=1, ensure_ascii=False).encode())


def check_same(folder: Path, settings: Mapping[str, Any], tasks: Mapping[str, Mapping[str, Any]]) -> None:
    """
    Compares what is to be run with what a folder holds. Tasks that it has not are no difference.

    Args:
        settings: of the run, as far as they are known yet.
        tasks: settings of each task, by its name.

    Raises:
        OtherSettingsError: they differ.
    """
    record = read_run(folder)
    if not record:
        return
    differences = _differences("", record.get(SETTINGS, {}), settings)
    for name, own in tasks.items():
        if name in record["tasks"]:
            differences += _differences(f"{name}: ", record["tasks"][name].get(SETTINGS, {}), own)
    if differences:
        raise OtherSettingsError(
            f"{folder} holds outputs that were made otherwise:\n  "
            + "\n  ".join(differences)
            + "\nGive what was given then, or choose another --output_dir."
        )


def changed_versions(record: Mapping[str, Any]) -> list[str]:
    """What is installed in other versions than those a record was begun with."""
    now = installed_versions()
    return [
        f"{name} was {then} and is {now.get(name)}"
        for name, then in record.get("versions", {}).items()
        if now.get(name) != then
    ]


def _differences(where: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [
        f"{where}{name} was {then[name]!r} and is {value!r}"
        for name, value in now.items()
        if name in then and then[name] != value
    ]


def place(path: str | None) -> str | None:
    """A path that means the same from any folder; other names of data as they are."""
    return os.path.abspath(path) if path is not None and os.path.exists(path) else path


__all__ = [
    "RUN_FILE",
    "SETTINGS",
    "OtherSettingsError",
    "changed_versions",
    "check_same",
    "installed_versions",
    "place",
    "read_run",
    "write_run",
]

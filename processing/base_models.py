"""Places of base models, by the ids that AudioLLM accepts."""

import os
from pathlib import Path
from typing import Any

#: Prefix of base model ids that name one of the embedded pair rather than a Hub repository or a folder.
EMBEDDED_PREFIX = "pypi:"


def audiollm_cache_dir() -> Path:
    """Return AudioLLM's cache folder: `$AUDIOLLM_CACHE`, or `audiollm` in the user's cache folder."""
    if "AUDIOLLM_CACHE" in os.environ:
        return Path(os.environ["AUDIOLLM_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "audiollm"


def embedded_base_folder(name: str) -> Path:
    """Return the folder of the embedded base `name`."""
    return audiollm_cache_dir() / "bases" / name


def resolve_base(model_id: str | os.PathLike, role: str) -> str:
    """
    Turn a base model id into what `from_pretrained` takes: a folder, or a Hub id.

    Args:
        model_id: a Hub id, a folder, or `pypi:<name>` for one of the embedded bases.
        role: `"audio"` or `"text"`, for the error message.

    Raises:
        FileNotFoundError: the folder is not there, or the embedded base has not been fetched.
    """
    model_id = os.fspath(model_id)
    if model_id.startswith(EMBEDDED_PREFIX):
        if Path(model_id).name != model_id:
            raise FileNotFoundError(f"The {role} base {model_id!r} is no embedded base; their names hold no slashes.")
        folder = embedded_base_folder(model_id.removeprefix(EMBEDDED_PREFIX))
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(
                f"The {role} base {model_id!r} is not in {folder}. Fetch it with `audiollm bases`, or pass "
                f"{role}_model_id= with another copy of the same model."
            )
        return str(folder)
    looks_local = model_id.startswith((".", "~", os.sep)) or os.path.isabs(model_id) or model_id.count("/") > 1
    if looks_local and not os.path.isdir(os.path.expanduser(model_id)):
        raise FileNotFoundError(
            f"The {role} base {model_id!r} is not a folder on this machine. Pass {role}_model_id= with the folder or "
            "the Hub id of the same model."
        )
    return os.path.expanduser(model_id) if looks_local else model_id


def load_base(loader: Any, model_id: str | os.PathLike, role: str, revision: str | None = None, **options: Any) -> Any:
    """Return `loader.from_pretrained` of a base; errors about missing files name the base, and how to get it."""
    place = resolve_base(model_id, role)
    try:
        return loader.from_pretrained(place, revision=revision or "main", **options)
    except OSError as error:
        raise OSError(f"The {role} base {str(model_id)!r} cannot be loaded: {error}{how_to_get(model_id)}") from error


def how_to_get(model_id: str | os.PathLike) -> str:
    """Return advice for missing files of a Hub repository, as a further line; empty for local folders."""
    name = os.fspath(model_id)
    if name.startswith(EMBEDDED_PREFIX) or os.path.isdir(os.path.expanduser(name)):
        return ""
    return f"\nWhere there is a network, `hf download {name}` fetches all its files, which then serve without one."

"""Import libraries of this package's extras where they are used, and name the extra where one is missing."""

import importlib
from types import ModuleType


def optional_library(name: str, extra: str) -> ModuleType:
    """
    A library of one of this package's extras.

    Raises:
        ImportError: it is not installed; the message says what installs it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f'{name} is not installed: {error}. `pip install "audiollm[{extra}]"` installs it.'
        ) from error

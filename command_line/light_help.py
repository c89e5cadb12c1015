"""
Help of a command without importing torch, transformers and other libraries, which would take seconds.

For help a library's names are annotations, base classes and decorators. Stand-ins serve as these and nothing else; a command
that does more is imported normally instead.
"""

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from inspect import CO_OPTIMIZED
from io import StringIO
from types import ModuleType
from typing import Any

#: Imported normally: this package, and YAML, from which options are read.
REAL = {"audiollm", "yaml", "_yaml"}


class StandInUsedError(Exception):
    """A function of a library was called."""


class _Kind(type):
    """Metaclass of stand-ins: what can be done with the class itself."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return StandIn

    def __call__(cls, *arguments: Any, **options: Any) -> Any:
        in_function = sys._getframe(1).f_code.co_flags & CO_OPTIMIZED  # not in the body of a module or class
        if _Libraries.in_use and in_function:
            raise StandInUsedError(cls.__name__)
        is_decorator = len(arguments) == 1 and callable(arguments[0]) and not options
        return arguments[0] if is_decorator else StandIn

    def __getitem__(cls, key: Any) -> Any:
        return cls

    def __or__(cls, other: Any) -> Any:
        return cls

    __ror__ = __or__

    def __iter__(cls) -> Iterator[Any]:
        return iter(())


@dataclass
class StandIn(metaclass=_Kind):
    """Stand-in for any class, function or value; also a dataclass and a TypedDict, since some of them are."""

    __optional_keys__ = __required_keys__ = frozenset[str]()


class _Module(ModuleType):
    __version__ = "0"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return StandIn


class _Libraries(MetaPathFinder, Loader):
    """Finder and loader of stand-in modules."""

    #: True once the command's module has been imported, so that calls are no longer part of an import.
    in_use = False

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        library = fullname.partition(".")[0]
        is_real = library in REAL or library in sys.stdlib_module_names
        return None if is_real else ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: there is no code to run."""


def show_help(module: str, arguments: Sequence[str]) -> None:
    """Show the help of the command in `module` and exit, without importing libraries; return if that is not possible."""
    if "transformers" in sys.modules:  # there is nothing to save
        return
    from . import option_parser  # noqa: F401 - needs a real file of transformers

    packages = [vars(sys.modules[name]) for name in ("audiollm", __package__)]
    modules, names, finder = set(sys.modules), [set(package) for package in packages], _Libraries()
    sys.meta_path.insert(0, finder)
    try:
        with redirect_stderr(StringIO()):
            command = importlib.import_module(module)
            _Libraries.in_use = True
            command.main(arguments)
    except SystemExit as finished:
        if not finished.code:  # an error is reported by the command itself
            raise
    except Exception:  # StandInUsedError, or a failure on a stand-in
        return
    finally:
        sys.meta_path.remove(finder)
        _Libraries.in_use = False
        for name in set(sys.modules) - modules:
            del sys.modules[name]
        for package, before in zip(packages, names):
            for name in set(package) - before:
                del package[name]

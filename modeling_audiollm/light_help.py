"""
Help without the libraries: while a command says what its options are, everything that is not Python's own is a stand-in.

Importing torch and transformers takes seconds, and the help of a command needs nothing of them but names: to annotate with,
to derive classes from, to decorate functions with. Stand-ins can do these things and nothing else; where a command does more,
the caller imports it in earnest.
"""

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from inspect import CO_OPTIMIZED
from types import ModuleType
from typing import Any

#: Not stood in for: ourselves, and the reader of the tables that options come from.
REAL = {"audiollm", "yaml", "_yaml"}


class StandInUsedError(Exception):
    """A command wants more of a library than its names."""


class _Kind(type):
    """What can be done with a stand-in, which is a class."""

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
    """Any class, function or value of a library: a dataclass and a TypedDict as well, since some of them are."""

    __optional_keys__ = __required_keys__ = frozenset[str]()


class _Module(ModuleType):
    __path__: Sequence[str] = ()
    __version__ = "0"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return StandIn


class _Libraries(MetaPathFinder, Loader):
    """Finds a stand-in for every module of a library."""

    #: Whether the command's module is imported, and functions now run in earnest.
    in_use = False

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        library = fullname.partition(".")[0]
        is_real = library in REAL or library in sys.stdlib_module_names
        return None if is_real else ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing to run."""


@contextmanager
def _stood_in() -> Iterator[None]:
    package = vars(sys.modules[__package__])
    modules, names, finder = set(sys.modules), set(package), _Libraries()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        _Libraries.in_use = False
        for name in set(sys.modules) - modules:
            del sys.modules[name]
        for name in set(package) - names:
            del package[name]


def show_help(module: str, arguments: Sequence[str]) -> None:
    """
    Show a command's help and exit, importing no library; return where that is not possible.

    Args:
        module: of the command; has `main`.
        arguments: of the command line, `--help` among them.
    """
    if "transformers" in sys.modules:  # nothing is left to save
        return
    from . import option_parser  # noqa: F401 - reads a file of transformers, in earnest

    with suppress(Exception), _stood_in():  # whatever stand-ins cannot do
        command = importlib.import_module(module)
        _Libraries.in_use = True
        command.main(arguments)


__all__ = ["show_help"]

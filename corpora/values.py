"""Numbers, JSON, options, and how values are shown in messages, for all readers of corpora."""

import json
import math
import re
from collections.abc import Collection
from typing import Any

LONE_SURROGATE = re.compile("[\ud800-\udfff]")
MAX_SHOWN_CHARACTERS = 60


def printable(text: str) -> str:
    """Return a text with escapes for what no encoding can write, so that it goes into any file."""
    return text.encode("utf-8", "backslashreplace").decode()


def shown(value: Any) -> str:
    """Return a value as messages show it: quoted, and cut if it is long."""
    quoted = repr(value)
    return quoted if len(quoted) <= MAX_SHOWN_CHARACTERS else quoted[: MAX_SHOWN_CHARACTERS - 3] + "..."


def counted(count: int, thing: str) -> str:
    """Return a number of things in words."""
    return f"{count:,} {thing}" + ("" if count == 1 else "s")


def number(value: Any, name: str) -> float | None:
    """Return a number from 0 on, as JSON or a table has it; None where there is none, ValueError for anything else."""
    if value is None or value == "":
        return None
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not 0 <= found < math.inf:
        raise ValueError(f"{name} is {shown(value)}; expected a number from 0 on")
    return found


def parse_json(text: str) -> Any:
    """Return a JSON value; raise ValueError, which says where, if it is none, or an object has a field twice."""
    try:
        return json.loads(text, object_pairs_hook=_object_without_duplicates)
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"is not JSON: {error.msg} at {place}") from None
    except RecursionError as error:
        raise ValueError(f"cannot be read: {error}") from None


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"field {', '.join(map(shown, twice))} is given more than once in one row")
    return fields


def check_at_least(options: Any, least: int, *names: str) -> None:
    """Raise ValueError if one of these options is given and below `least`."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value < least:
            raise ValueError(f"--{name} is {value}; expected {least} or more.")


def check_known(name: str, given: Collection[str], known: Collection[str]) -> None:
    """Raise ValueError if an option is given a name that is not known, or none at all."""
    unknown = [one for one in given if one not in known]
    if unknown or not given:
        found = repr(unknown[0]) if unknown else "none"
        raise ValueError(f"--{name} has {found}; expected some of {', '.join(known)}.")

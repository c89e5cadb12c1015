"""
The table of `make bench`: figures that `bench.yaml` names, taken out of result files, beside peers' and beside targets.

What is read where, and what each target is, stands in `bench.yaml`; here is how a line of it becomes lines of the table.
"""

import fnmatch
import itertools
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
MEASURES_FILE = HERE / "bench.yaml"
RESULTS = HERE / "results"
#: A step of a path: a field, or of a list the entry of a number or the one that has these values, as in
#: `runs[side=ours&clips=1000].seconds`.
PATH_STEP = re.compile(r"\.?([^.\[\]]+)|\[([^\]]*)\]")
YAML_HEAD = "---\n"
#: How each kind of target is said.
TARGETS_IN_WORDS = {
    "times_better": "≥ {:g}x",
    "share_at_most": "≤ {:.0%} of it",
    "at_least": "≥ {:g}",
    "at_most": "≤ {:g}",
    "equals": "{}",
}
#: In place of cases that only a result names, before there is one.
UNKNOWN_CASE = "?"
FIELDS_OF_MEASURE = {"name", "title", "script", "arguments", "minutes", "result", "runs", "rows"}
FIELDS_OF_ROW = {"figure", "unit", "each", "ours", "peers", "better", "targets"}
FIELDS_OF_TARGET = {"issue", "over", "where", "why"}


class TableError(ValueError):
    """`bench.yaml` says something that cannot be; the message says what."""


@dataclass(frozen=True)
class Measure:
    """
    One script to run, and what of its results goes into the table.

    Attributes:
        name: short, for the command line.
        title: for people.
        script: file in this folder; empty for what is quoted alone and no script here writes.
        arguments: of the script, as a shell would take them; without a script, the whole command.
        minutes: roughly, on two quiet cores.
        result: JSON in `results/` that the script writes, or a Markdown file whose YAML head is read.
        runs: False for what takes too long for `make bench`; its result file is quoted.
        rows: of the table; see [`lines_of`].
    """

    name: str
    title: str
    result: str
    script: str = ""
    arguments: str = ""
    minutes: float = 1.0
    runs: bool = True
    rows: list[dict[str, Any]] = field(default_factory=list)

    def data(self, results: Path = RESULTS) -> Any:
        """What the script wrote; None when there is nothing."""
        path = results / self.result
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        return yaml.safe_load(text.split(YAML_HEAD)[1]) if path.suffix == ".md" else json.loads(text)

    @property
    def command(self) -> str:
        """How to get the result again."""
        return f"benchmarks/{self.script} {self.arguments}".strip() if self.script else self.arguments


@dataclass(frozen=True)
class Judgement:
    """A target, and whether it is met: None where there is nothing to judge; `missed_by` is relative to the target."""

    text: str
    issue: int
    met: bool | None
    missed_by: float | None = None
    why: str = ""


@dataclass(frozen=True)
class Line:
    """A line of the table; `ratio` is how many times better ours is than theirs."""

    measure: str
    figure: str
    unit: str
    ours: Any
    peer: str = ""
    theirs: Any = None
    ratio: float | None = None
    judgements: tuple[Judgement, ...] = ()


def load_measures(path: Path = MEASURES_FILE) -> list[Measure]:
    """
    The measures of a YAML file, in its order.

    Raises:
        TableError: a field is unknown, a name is given twice, or a target is of no known kind.
    """
    measures = []
    for entry in yaml.safe_load(path.read_text(encoding="utf-8"))["measures"]:
        _refuse_unknown(entry, FIELDS_OF_MEASURE, f"measure {entry.get('name')!r}")
        for row in entry.get("rows", ()):
            _refuse_unknown(row, FIELDS_OF_ROW, f"row {row.get('figure')!r}")
            for target in row.get("targets", ()):
                _refuse_unknown(target, FIELDS_OF_TARGET | set(TARGETS_IN_WORDS), f"target of {row['figure']!r}")
                _kind(target)
        measures.append(Measure(**entry))
    names = [measure.name for measure in measures]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise TableError(f"{path.name} has {twice} more than once; every measure needs a name of its own.")
    return measures


def value_at(data: Any, path: str) -> Any:
    """
    What lies at a path of fields and selections, or None where there is nothing.

    Raises:
        TableError: several entries of a list are as asked for.
    """
    for name, selection in PATH_STEP.findall(path):
        if data is None:
            return None
        if name:
            data = data.get(name) if isinstance(data, dict) else None
            continue
        if selection.isdecimal():
            data = data[int(selection)] if int(selection) < len(data) else None
            continue
        wanted = dict(pair.split("=", 1) for pair in selection.split("&"))
        found = [entry for entry in data if all(str(entry.get(key)) == value for key, value in wanted.items())]
        if len(found) > 1:
            raise TableError(f"{path}: {len(found)} entries are {selection}; expected one.")
        data = found[0] if found else None
    return data


def lines_of(measure: Measure, data: Any) -> list[Line]:
    """
    Lines of the table for a measure: one per row, value of `each`, and peer; one without a peer where a row has none.

    Args:
        data: the content of its result file, or None.
    """
    lines = []
    for row in measure.rows:
        # A name in place of a list of values is a path: what the fields there are called.
        each = {
            name: list(value_at(data, values) or [UNKNOWN_CASE]) if isinstance(values, str) else values
            for name, values in row.get("each", {}).items()
        }
        for values in itertools.product(*each.values()):
            lines += _lines_of_row(measure.name, row, dict(zip(each, values)), data)
    return lines


def _lines_of_row(measure: str, row: dict[str, Any], chosen: dict[str, Any], data: Any) -> list[Line]:
    ours = value_at(data, row["ours"].format(**chosen))
    common = {"measure": measure, "figure": row["figure"].format(**chosen), "unit": row.get("unit", ""), "ours": ours}
    targets = [target for target in row.get("targets", ()) if _applies(target, chosen)]
    if not row.get("peers"):
        return [Line(**common, judgements=tuple(judge(target, ours, None) for target in targets))]
    lines = []
    for peer, path in row["peers"].items():
        theirs = value_at(data, path.format(**chosen))
        if theirs is None and ours is not None:
            continue  # this side was not run, or did not hear all of the recording
        ratio = _times_better(ours, theirs, row.get("better", "less"))
        judgements = [judge(target, ours, theirs, ratio) for target in targets if peer in target.get("over", [peer])]
        lines.append(Line(**common, peer=peer, theirs=theirs, ratio=ratio, judgements=tuple(judgements)))
    return lines


def judge(target: dict[str, Any], ours: Any, theirs: Any, ratio: float | None = None) -> Judgement:
    """Whether a figure meets a target, and by how much of the target it misses."""
    kind = _kind(target)
    goal = target[kind]
    text = TARGETS_IN_WORDS[kind].format(goal)
    why = target.get("why", "")
    seen = ours
    if kind == "times_better":
        seen = ratio
    elif kind == "share_at_most" and None not in (ours, theirs):
        seen = ours / theirs
    if seen is None or (kind == "share_at_most" and theirs is None):
        return Judgement(text, target["issue"], None, why=why)
    if kind == "equals":
        return Judgement(text, target["issue"], seen == goal, why=why)
    met = seen <= goal if kind.endswith("at_most") else seen >= goal
    missed_by = None if met or not goal else abs(seen / goal - 1)
    return Judgement(text, target["issue"], met, missed_by, why)


def _times_better(ours: Any, theirs: Any, better: str) -> float | None:
    if not ours or not theirs:
        return None
    return theirs / ours if better == "less" else ours / theirs


def _applies(target: dict[str, Any], chosen: dict[str, Any]) -> bool:
    wanted = target.get("where", {}).items()
    return all(fnmatch.fnmatchcase(str(chosen.get(key)), str(value)) for key, value in wanted)


def _kind(target: dict[str, Any]) -> str:
    kinds = [kind for kind in TARGETS_IN_WORDS if kind in target]
    if len(kinds) != 1 or "issue" not in target:
        raise TableError(f"The target {target} needs an issue and exactly one of {', '.join(TARGETS_IN_WORDS)}.")
    return kinds[0]


def _refuse_unknown(entry: dict[str, Any], known: set[str], what: str) -> None:
    if unknown := set(entry) - known:
        raise TableError(f"The {what} has {sorted(unknown)}; known are {sorted(known)}.")

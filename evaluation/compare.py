"""
Compare two models on the items that both have answered: differences with intervals, and whether they may be chance.

    audiollm evaluate compare runs/evaluation_a runs/evaluation_b
    audiollm evaluate compare runs/evaluation runs/evaluation --systems model whisper
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from audiollm.command_line.files import write_json
from audiollm.command_line.option_parser import option, parser_of

from .bootstrap import SAMPLES, SIGNIFICANCE
from .measures import LOWER_IS_BETTER, Answer, Convention, paired, paired_bleu_p
from .outputs import RunFolderError, convention_of, joined_sessions, open_run, read_answers
from .score import ScoringOptions, measure_answers
from .systems import MODEL

SIDES = ("first", "second")
BLEU = "bleu"
#: The test of all metrics but BLEU, which sacreBLEU tests itself.
RANDOMISATION = "paired approximate randomisation"
#: Ids that a line names; JSON has all of them.
MAX_IDS_SHOWN = 5


def compare_runs(
    first: str | Path,
    second: str | Path,
    systems: tuple[str, str] = (MODEL, MODEL),
    tasks: Sequence[str] | None = None,
    normaliser: str | None = None,
    samples: int = SAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """
    Compare two systems of two folders, or of one, on every task that both have answered, item by item.

    Items are matched by id, and compared where their right answers are the same; all others are named. Both sides are
    scored again by the convention of the first; for its options, and errors, see [`audiollm.evaluation.score.score_run`].
    """
    runs = open_run(first), open_run(second)
    answered = []
    for run, system in zip(runs, systems):
        answered.append([task for task, files in run.outputs.items() if system in files])
        if not answered[-1]:
            known = sorted({each for files in run.outputs.values() for each in files})
            raise RunFolderError(f"{run.folder} has no answers of {system!r}; it has {', '.join(known)}.")
    either = dict.fromkeys([*answered[0], *answered[1]])
    for task in tasks or ():
        if task not in either:
            raise ValueError(f"Neither run has {task!r}; they have {', '.join(either)}.")
    chosen = [[task for task in each if tasks is None or task in tasks] for each in answered]
    common = [task for task in chosen[0] if task in chosen[1]]
    if not common:
        told = f"{first} has {', '.join(answered[0])}; {second} has {', '.join(answered[1])}"
        raise RunFolderError(f"The runs have no task in common: {told}.")
    compared = {}
    for task in common:
        answers = [read_answers(run, task, system) for run, system in zip(runs, systems)]
        convention = convention_of(runs[0].task(task), normaliser)
        compared[task] = compare_answers(answers, runs[0].task(task)["metrics"], convention, samples, seed)
    scoring = {"normaliser": normaliser, "samples": samples, "seed": seed}
    comparison: dict[str, Any] = {"scoring": scoring, "tasks": compared}
    for side, run, system, asked in zip(SIDES, runs, systems, chosen):
        comparison[side] = {"folder": str(run.folder), "system": system, "model": run.record.get("model")}
        comparison[f"tasks_only_in_{side}"] = [task for task in asked if task not in common]
    return comparison


def compare_answers(
    answers: Sequence[Sequence[Answer]], metrics: Sequence[str], convention: Convention, samples: int, seed: int
) -> dict[str, Any]:
    """Compare what two systems answered to one task's items; see [`compare_runs`]."""
    sides = [{each.id: each for each in side} for side in answers]
    both = [one for one in sides[0] if one in sides[1]]
    same = {one: None for one in both if list(sides[0][one].references) == list(sides[1][one].references)}
    entry: dict[str, Any] = {
        "items": len(same),
        "only_in_first": [one for one in sides[0] if one not in sides[1]],
        "only_in_second": [one for one in sides[1] if one not in sides[0]],
        "other_reference": [one for one in both if one not in same],
        "metrics": {},
    }
    matched = [joined_sessions([side[one] for one in same])[0] for side in sides]
    measured = [measure_answers(side, metrics, convention) for side in matched]
    for name, one in measured[0].items():
        other = measured[1][name]
        common, found = paired(one, other, samples, seed)
        counted = set(common)
        compared: dict[str, Any] = {
            **{"unit": one.unit, "signature": one.signature, "scored": len(common)},
            "scored_only_in_first": [each for each in one.ids if each not in counted],
            "scored_only_in_second": [each for each in other.ids if each not in counted],
            **dict.fromkeys((*SIDES, "difference", "low", "high", "p")),
        }
        if found is not None:
            compared |= asdict(found) | {"difference": found.value, "test": RANDOMISATION}
            if name == BLEU:
                texts = [[each for each in side if each.id in counted] for side in matched]
                compared["p"], compared["test"] = paired_bleu_p(texts[0], texts[1], convention, samples)
            del compared["value"]
            is_clear = compared["p"] < SIGNIFICANCE and not np.isclose(found.value, 0.0)
            better = "second" if (found.value < 0) == (name in LOWER_IS_BETTER) else "first"
            compared["better"] = better if is_clear else None
        entry["metrics"][name] = compared
    return entry


def comparison_table(comparison: Mapping[str, Any]) -> str:
    """Return a comparison for people."""
    lines = []
    for side in SIDES:
        compared = comparison[side]
        model = f" ({compared['model']})" if compared["model"] else ""
        lines.append(f"{side + ':':7} {compared['system']} of {compared['folder']}{model}")
    head = f"{'task':24} {'metric':22} {'first':>9} {'second':>9} {'difference':>11}  {'95% interval':22} {'p':>7}  better"
    lines.append(f"\n{head}")
    for task, entry in comparison["tasks"].items():
        left_out = {key: entry[key] for key in ("only_in_first", "only_in_second", "other_reference")}
        for name, each in entry["metrics"].items():
            left_out |= {f"{name}: {key}": each[key] for key in ("scored_only_in_first", "scored_only_in_second")}
            if each["difference"] is None:
                lines.append(f"{task:24} {name:22} nothing to score in both")
                continue
            spread = f"[{each['low']:+.4f}, {each['high']:+.4f}]"
            better = each["better"] or "no clear difference"
            figures = f"{each['first']:9.4f} {each['second']:9.4f} {each['difference']:+11.4f}"
            lines.append(
                f"{task:24} {name:22} {figures}  {spread:22} {each['p']:7.4f}  {better} ({each['scored']} items)"
            )
        for key, ids in left_out.items():
            if ids:
                shown = ", ".join(ids[:MAX_IDS_SHOWN])
                more = f" and {len(ids) - MAX_IDS_SHOWN} more" if len(ids) > MAX_IDS_SHOWN else ""
                lines.append(f"{task:24} left out, {key.replace('_', ' ')}: {len(ids)} ({shown}{more})")
    for side in SIDES:
        if only := comparison[f"tasks_only_in_{side}"]:
            lines.append(f"tasks only in {side}: {', '.join(only)}")
    return "\n".join(lines)


@dataclass
class CompareOptions(ScoringOptions):
    """Options of a comparison."""

    systems: list[str] = option([MODEL], "System of each: one name for both, or two, such as model whisper.")
    tasks: list[str] = option([], "Only these tasks; all in common if not given.")
    output: Path | None = option(None, "File for the comparison as JSON.")

    def __post_init__(self):
        super().__post_init__()
        if len(self.systems) not in (1, 2):
            raise ValueError(f"--systems names {len(self.systems)}; expected one for both, or two")
        if self.output is not None and not self.output.parent.is_dir():
            raise ValueError(f"--output {self.output}: there is no folder {self.output.parent}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run `audiollm evaluate compare`."""
    parser = parser_of(CompareOptions, "evaluate compare", "FIRST SECOND [options]", __doc__)
    parser.add_argument("first", help="the --output_dir of audiollm evaluate")
    parser.add_argument("second", help="another, or the same with two --systems")
    given = vars(parser.parse_args(list(sys.argv[1:] if argv is None else argv)))
    first, second = given.pop("first"), given.pop("second")
    try:
        options = CompareOptions(**given)
        systems = (options.systems[0], options.systems[-1])
        if first == second and systems[0] == systems[1]:
            raise ValueError(f"{first} is compared with itself; name two --systems of it, or another folder")
        scoring = (options.normaliser, options.samples, options.seed)
        found = compare_runs(first, second, systems, options.tasks or None, *scoring)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"audiollm evaluate compare: {error}")
    print(comparison_table(found))
    if options.output is not None:
        write_json(options.output, found)

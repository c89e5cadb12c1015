"""Marks for the answers of a run that wait for a judge, each on disk as it comes; see `judge`."""

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from .judge import Judge, JudgeError, Rubric, UnreadableReplyError, read_rubrics
from .judge_arguments import JudgeArguments
from .outputs import OUTPUTS, as_line, read_rows, whole_bytes, write_whole
from .run_record import OtherSettingsError, read_run

JUDGEMENTS, JUDGE_FILE = "judgements", "judge.json"
#: Noted of a judge that takes no temperature.
MODELS_OWN = "the model's own"
#: What an error begins with, by what has failed.
REQUEST, REPLY = "request: ", "reply: "


@dataclass(frozen=True)
class Asked:
    """One request: about which item, which comes first, and which time the same is asked."""

    id: str
    order: str
    sample: int
    prompt: str

    @property
    def key(self) -> tuple[str, str, int]:
        """What tells requests apart within a task and system."""
        return (self.id, self.order, self.sample)


def judge_run(folder: Path, tasks: Sequence[str], options: JudgeArguments) -> None:
    """
    Marks what a run's tasks have answered and no mark is there for.

    Args:
        folder: the run's.
        tasks: names; those without a judge are passed over.

    Raises:
        JudgeError: there is no key or no such model; what has been marked until then is kept.
        OtherSettingsError: the folder has marks of another judge.
    """
    recorded = read_run(folder)["tasks"]
    names = {name: recorded[name]["source"].get("judge") for name in tasks if name in recorded}
    waiting = {name: rubric for name, rubric in names.items() if rubric}
    if not waiting:
        return
    if options.judge_model is None:
        print(f"Answers to {', '.join(waiting)} have no marks: give --judge_model, and the same command again.")
        return
    rubrics = read_rubrics(options.judge_prompts)
    unknown = sorted(set(waiting.values()) - set(rubrics))
    if unknown:
        raise JudgeError(f"There is no prompt {unknown[0]!r} among the judge's; there are {', '.join(rubrics)}.")
    chosen = {name: rubrics[rubric] for name, rubric in waiting.items()}
    judge = Judge(options)
    _check_settings(folder, options, {waiting[name]: rubric for name, rubric in chosen.items()})
    settings = folder / JUDGEMENTS / JUDGE_FILE
    for name, rubric in chosen.items():
        for path in sorted((folder / OUTPUTS / name).glob("*.jsonl")):
            if not path.name.endswith(".partial.jsonl"):
                judge_outputs(path, folder / JUDGEMENTS / name / path.name, rubric, judge, options)
    if not judge.takes_temperature:
        noted = {**json.loads(settings.read_text(encoding="utf-8")), "temperature": MODELS_OWN}
        write_whole(settings, json.dumps(noted, indent=1, ensure_ascii=False).encode())


def _check_settings(folder: Path, options: JudgeArguments, rubrics: Mapping[str, Rubric]) -> None:
    """Writes down who judges and how, or refuses another judge than the one that is written down."""
    path = folder / JUDGEMENTS / JUDGE_FILE
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    now: dict[str, Any] = {"model": options.judge_model, "url": options.judge_url}
    for name, rubric in rubrics.items():
        samples = options.judge_samples or rubric.samples
        now[name] = {"prompt": rubric.text, "temperature": rubric.temperature, "samples": samples}
    differing = [name for name in now if name in before and before[name] != now[name]]
    if differing:
        told = "; ".join(f"{name} was {before[name]!r} and is {now[name]!r}" for name in differing)
        raise OtherSettingsError(
            f"{path.parent} holds the marks of another judge: {told}. Give what was given then, or move that folder away."
        )
    write_whole(path, json.dumps({**before, **now}, indent=1, ensure_ascii=False).encode())


def judge_outputs(outputs: Path, verdicts: Path, rubric: Rubric, judge: Judge, options: JudgeArguments) -> None:
    """
    Marks the answers of one system to one task that have no mark yet.

    Args:
        outputs, verdicts: files of answers and of what the judge said.
    """
    samples = options.judge_samples or rubric.samples
    asked = list(_asked(outputs, rubric, samples))
    kept = {_key(row): row for row in read_rows(verdicts)}
    done = {one.key for one in asked if _is_done(kept.get(one.key), one)}
    new = [one for one in asked if one.key not in done]
    title = f"Judging {outputs.parent.name}: {outputs.stem}"
    if new:
        verdicts.parent.mkdir(parents=True, exist_ok=True)
        failed: Counter[str] = Counter()
        with open(verdicts, "ab") as file, tqdm(total=len(new), desc=title, unit="mark") as bar:
            file.truncate(whole_bytes(verdicts))
            for verdict in _verdicts(new, rubric, judge, options.judge_concurrency):
                kept[_key(verdict)] = verdict
                file.write(as_line(verdict))
                file.flush()
                os.fsync(file.fileno())
                if verdict["error"]:
                    failed[verdict["error"].partition(":")[0]] += 1
                bar.update()
        if failed:
            print(
                f"{title}: {failed['request']} requests failed and {failed['reply']} replies could not be read; given "
                "again, the same command asks them again.",
                file=sys.stderr,
            )
    ordered = [kept[one.key] for one in asked if one.key in kept]
    write_whole(verdicts, b"".join(map(as_line, ordered)))


def _asked(outputs: Path, rubric: Rubric, samples: int) -> Iterator[Asked]:
    for row in read_rows(outputs):
        if row["output"] is None:
            continue
        for order in rubric.orders:
            prompt = rubric.prompt(order, row)
            yield from (Asked(row["id"], order, sample, prompt) for sample in range(samples))


def _verdicts(new: Sequence[Asked], rubric: Rubric, judge: Judge, concurrency: int) -> Iterator[dict[str, Any]]:
    """What the judge says, in the order it comes."""
    with ThreadPoolExecutor(concurrency) as pool:
        futures = [pool.submit(_verdict, one, rubric, judge) for one in new]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _verdict(asked: Asked, rubric: Rubric, judge: Judge) -> dict[str, Any]:
    reply = scores = error = None
    try:
        reply = judge.reply(asked.prompt, rubric.temperature)
        scores = rubric.read(reply, asked.order)
    except JudgeError:
        raise
    except UnreadableReplyError as problem:
        error = f"{REPLY}{problem}"
    except RuntimeError as problem:
        error = f"{REQUEST}{problem}"
    return {
        "id": asked.id,
        "order": asked.order,
        "sample": asked.sample,
        "prompt": asked.prompt,
        "reply": reply,
        "scores": scores,
        "error": error,
    }


def _key(row: Mapping[str, Any]) -> tuple[str, str, int]:
    return (row["id"], row["order"], row["sample"])


def _is_done(verdict: Mapping[str, Any] | None, asked: Asked) -> bool:
    return verdict is not None and verdict["scores"] is not None and verdict["prompt"] == asked.prompt


__all__ = ["JUDGEMENTS", "JUDGE_FILE", "judge_outputs", "judge_run"]

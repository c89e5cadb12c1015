"""
Judge answers: a language model behind an OpenAI-compatible endpoint marks them, and every mark is written down as it comes.

Requests that the endpoint's client gives up on, and replies without a mark, are kept with the reason, and asked again.
"""

import os
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import yaml
from audiollm.command_line.files import Journal, write_json
from tqdm.auto import tqdm

from .arguments import JudgeArguments
from .outputs import JUDGEMENTS, RunFolderError, finished_outputs, read_object, read_rows, read_run, write_rows
from .word_error import optional_library

JUDGE_FILE = "judge.json"
#: Noted of a judge that takes no temperature.
MODELS_OWN = "the model's own"
#: Beginnings of errors.
REQUEST, REPLY = "request", "reply"
PROMPTS_FILE = Path(__file__).parent / "judge_prompts.yaml"
REFERENCE_FIRST, ANSWER_FIRST, ANSWER_ONLY = "reference_first", "answer_first", "answer_only"
#: Requests at a time; how often one is sent again when the endpoint is busy or fails; and seconds that a reply may take.
CONCURRENCY, RETRIES, TIMEOUT_S = 4, 8, 600.0
#: Tokens that a reply may have, also of models that think aloud; and of reasoning models, whose thoughts are counted.
MAX_REPLY_TOKENS, MAX_REASONING_TOKENS = 1024, 8192
#: The host that gets the usual variable's key without being asked to.
OPENAI_HOST = "https://api.openai.com/"
OPENAI_VARIABLE = "OPENAI_API_KEY"
#: Sent to an endpoint that needs no key.
NO_KEY = "none"
NUMBER = r"(\d+(?:\.\d+)?)"
#: Patterns of replies, by the field `reads` of a rubric.
REPLIES = {
    "two_scores": re.compile(rf"^\W*{NUMBER}(?:\s*[,;/|]\s*|\s+){NUMBER}\W*$"),
    "one_score": re.compile(rf"^[^\d.]*{NUMBER}[^\d]*$"),
    "yes_no": re.compile(r"^\W*(yes|no)\b", re.IGNORECASE),
}
YES_NO = {"yes": "1", "no": "0"}
#: Named by an endpoint that refuses an option for its model.
REFUSED_OPTION = re.compile(r"max_tokens|max_completion_tokens|temperature")


class JudgeError(ValueError):
    """Nothing can be judged; the message says what is missing."""


class UnreadableReplyError(ValueError):
    """A judge's reply holds no mark."""


@dataclass(frozen=True)
class Rubric:
    """Rules for marking answers; see `judge_prompts.yaml`."""

    text: str
    orders: tuple[str, ...]
    reads: str
    least: float
    most: float
    samples: int
    temperature: float

    def prompt(self, order: str, row: Mapping[str, Any]) -> str:
        """Return the prompt of the judge about one row of outputs."""
        extra = row["extra"]
        reference, answer = "\n".join(row["references"]), row["output"]
        first, second = (answer, reference) if order == ANSWER_FIRST else (reference, answer)
        shown = {
            "question": extra.get("question") or extra.get("transcript") or row["prompt"],
            "description": extra.get("meta_info", ""),
            **{"reference": reference, "answer": answer, "first": first, "second": second},
        }
        return self.text.format_map(shown).strip()

    def read(self, reply: str, order: str) -> dict[str, float]:
        """Return the marks of a reply, `answer` and, where both are marked, `reference`, or raise UnreadableReplyError."""
        lines = reply.splitlines() if self.reads == "two_scores" else [reply]
        found = next(filter(None, (REPLIES[self.reads].match(line.strip()) for line in lines)), None)
        marks = [float(YES_NO.get(mark.lower(), mark)) for mark in found.groups()] if found else []
        if not marks or not all(self.least <= mark <= self.most for mark in marks):
            wanted = "two scores" if self.reads == "two_scores" else "a score"
            raise UnreadableReplyError(f"expected {wanted} from {self.least:g} to {self.most:g}")
        names = {REFERENCE_FIRST: ("reference", "answer"), ANSWER_FIRST: ("answer", "reference")}
        return dict(zip(names.get(order, ("answer",)), marks))


@lru_cache(maxsize=1)
def known_rubrics() -> dict[str, Rubric]:
    """Return the rubrics of `judge_prompts.yaml` by name."""
    table = yaml.safe_load(PROMPTS_FILE.read_text(encoding="utf-8"))
    return {name: Rubric(**{**entry, "orders": tuple(entry["orders"])}) for name, entry in table.items()}


class Judge:
    """Sends prompts to one model of one endpoint; JudgeError is raised if the environment has no key."""

    def __init__(self, options: JudgeArguments):
        self._openai = optional_library("openai", "judge")
        self.model = options.judge_model
        #: False once the endpoint has refused `max_tokens` with a temperature and taken `max_completion_tokens`
        #: without, as OpenAI's reasoning models do.
        self.takes_temperature = True
        # The key of OpenAI goes nowhere else unless its variable is named.
        is_openai = options.judge_url.startswith(OPENAI_HOST)
        variable = options.judge_key_variable or (OPENAI_VARIABLE if is_openai else "")
        self._key = os.environ.get(variable, "").strip()
        if variable and not self._key:
            raise JudgeError(
                f"The environment variable {variable} is empty; set it to the key of {options.judge_url}."
            )
        known = {"max_retries": RETRIES, "timeout": TIMEOUT_S}
        self._client = self._openai.OpenAI(base_url=options.judge_url, api_key=self._key or NO_KEY, **known)

    def reply(self, prompt: str, temperature: float) -> str:
        """Return the reply to a prompt; JudgeError if every prompt would be refused, RuntimeError if this one failed."""
        openai = self._openai
        try:
            content = self._complete(prompt, temperature).choices[0].message.content
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            raise JudgeError(f"The judge refuses: {self.scrubbed(error)}") from error
        except openai.OpenAIError as error:
            raise RuntimeError(self.scrubbed(error)) from error
        except (ValueError, AttributeError, IndexError, TypeError) as error:  # no JSON, or other JSON
            raise RuntimeError(f"the endpoint's answer is no chat completion: {self.scrubbed(error)}") from error
        return self.scrubbed(content or "")

    def _complete(self, prompt: str, temperature: float) -> Any:
        messages = [{"role": "user", "content": prompt}]
        ask = partial(self._client.chat.completions.create, model=self.model, messages=messages)
        if self.takes_temperature:
            try:
                return ask(max_tokens=MAX_REPLY_TOKENS, temperature=temperature)
            except self._openai.BadRequestError as error:
                if not REFUSED_OPTION.search(str(error)):
                    raise
        completion = ask(max_completion_tokens=MAX_REASONING_TOKENS)
        self.takes_temperature = False
        return completion

    def scrubbed(self, text: object) -> str:
        """Return a text without the key, should an endpoint repeat it."""
        return str(text).replace(self._key, "***") if self._key else str(text)


def judge_run(folder: Path, tasks: Sequence[str], options: JudgeArguments) -> None:
    """
    Mark the answers of a run's tasks that have no mark yet; tasks without a judge are passed over.

    JudgeError is raised if there is no key or no such model; RunFolderError if the folder has marks of another judge.
    """
    recorded = read_run(folder)["tasks"]
    waiting = {name: recorded[name]["source"]["judge"] for name in tasks if recorded[name]["source"].get("judge")}
    if not waiting:
        return
    if options.judge_model is None:
        print(f"Answers to {', '.join(waiting)} have no marks: give --judge_model, and the same command again.")
        return
    judge, rubrics = Judge(options), known_rubrics()
    settings = folder / JUDGEMENTS / JUDGE_FILE
    before = read_object(settings) if settings.is_file() else {}
    now: dict[str, Any] = {"model": options.judge_model, "url": options.judge_url}
    for name in waiting.values():
        rubric = rubrics[name]
        now[name] = {"prompt": rubric.text, "temperature": rubric.temperature, "samples": rubric.samples}
    differing = [name for name in now if before.get(name, now[name]) != now[name]]
    if differing:
        told = "; ".join(f"{name} was {before[name]!r} and is {now[name]!r}" for name in differing)
        raise RunFolderError(
            f"{settings.parent} holds other marks: {told}. Give what was given then, or move it away."
        )
    write_json(settings, {**before, **now})
    for name, rubric in waiting.items():
        for path in finished_outputs(folder, name).values():
            judge_outputs(path, folder / JUDGEMENTS / name / path.name, rubrics[rubric], judge)
    if not judge.takes_temperature:
        write_json(settings, {**read_object(settings), "temperature": MODELS_OWN})


def judge_outputs(outputs: Path, verdicts: Path, rubric: Rubric, judge: Judge) -> None:
    """Mark the answers of one system to one task that have no mark yet, from one file to the other."""
    asked = [
        {"id": row["id"], "order": order, "sample": sample, "prompt": rubric.prompt(order, row)}
        for row in read_rows(outputs)
        if row["output"] is not None
        for order in rubric.orders
        for sample in range(rubric.samples)
    ]
    kept = {_identity(row): row for row in read_rows(verdicts)}
    done = {(key, row["prompt"]) for key, row in kept.items() if row["scores"] is not None}
    new = [one for one in asked if (_identity(one), one["prompt"]) not in done]
    title = f"Judging {outputs.parent.name}: {outputs.stem}"
    failed: Counter[str] = Counter()
    bar = tqdm(total=len(new), desc=title, unit="mark", disable=not new)
    with bar, ThreadPoolExecutor(CONCURRENCY) as pool:
        futures = [pool.submit(_verdict, one, rubric, judge) for one in new]
        try:
            for future in as_completed(futures):
                verdict = future.result()
                kept[_identity(verdict)] = verdict
                Journal(verdicts).append([verdict])
                if verdict["error"]:
                    failed[verdict["error"].partition(":")[0]] += 1
                bar.update()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    if failed:
        told = f"{failed[REQUEST]} requests failed and {failed[REPLY]} replies could not be read"
        print(f"{title}: {told}; the same command asks them again.", file=sys.stderr)
    write_rows(verdicts, [kept[_identity(one)] for one in asked if _identity(one) in kept])


def _verdict(asked: Mapping[str, Any], rubric: Rubric, judge: Judge) -> dict[str, Any]:
    verdict = {**asked, "reply": None, "scores": None, "error": None}
    try:
        verdict["reply"] = judge.reply(asked["prompt"], rubric.temperature)
        verdict["scores"] = rubric.read(verdict["reply"], asked["order"])
    except UnreadableReplyError as problem:
        verdict["error"] = f"{REPLY}: {problem}"
    except RuntimeError as problem:
        verdict["error"] = f"{REQUEST}: {problem}"
    return verdict


def _identity(row: Mapping[str, Any]) -> tuple[str, str, int]:
    """Return the key of a request among others about the same answers: item, order, and number of the sample."""
    return (row["id"], row["order"], row["sample"])

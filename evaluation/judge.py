"""
A judge: a language model behind an OpenAI-compatible endpoint that marks answers.

The endpoint's own client sends requests again when it is busy (as long as it says under Retry-After, up to a minute, else
longer each time), and gives up after so many. What it gives up on, and replies that no mark can be read from, are counted, kept
with the reason, and asked again when the command is given again.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from .judge_arguments import JudgeArguments
from .optional import optional_library

PROMPTS_FILE = Path(__file__).parent / "judge_prompts.yaml"
REFERENCE_FIRST, ANSWER_FIRST, ANSWER_ONLY = "reference_first", "answer_first", "answer_only"
ORDERS = (REFERENCE_FIRST, ANSWER_FIRST, ANSWER_ONLY)
#: Tokens that a reply may have; models that think aloud take more than a number does.
MAX_REPLY_TOKENS = 1024
#: The same for models that OpenAI calls reasoning: what they think is counted.
MAX_REASONING_TOKENS = 8192
#: The host that gets the usual variable's key without being asked to.
OPENAI_HOST = "https://api.openai.com/"
OPENAI_VARIABLE = "OPENAI_API_KEY"
#: What is sent where an endpoint needs no key.
NO_KEY = "none"
NUMBER = r"(\d+(?:\.\d+)?)"
TWO_NUMBERS = re.compile(rf"^\W*{NUMBER}(?:\s*[,;/|]\s*|\s+){NUMBER}\W*$")
ONE_NUMBER = re.compile(rf"^[^\d.]*{NUMBER}[^\d]*$")
#: What an endpoint names that refuses an option for its model.
REFUSED_OPTION = re.compile(r"max_tokens|max_completion_tokens|temperature")
YES_NO = re.compile(r"^\W*(yes|no)\b", re.IGNORECASE)


class JudgeError(ValueError):
    """Nothing can be judged; the message says what is missing."""


class UnreadableReplyError(ValueError):
    """A judge's reply holds no mark."""


@dataclass(frozen=True)
class Rubric:
    """How answers are marked; see `judge_prompts.yaml`."""

    text: str
    orders: tuple[str, ...]
    reads: str
    least: float
    most: float
    samples: int
    temperature: float

    def prompt(self, order: str, row: Mapping[str, Any]) -> str:
        """What the judge is sent about one row of outputs."""
        extra = row["extra"]
        reference, answer = "\n".join(row["references"]), row["output"]
        first, second = (answer, reference) if order == ANSWER_FIRST else (reference, answer)
        shown = {
            "question": extra.get("question") or extra.get("transcript") or row["prompt"],
            "description": extra.get("meta_info", ""),
            "reference": reference,
            "answer": answer,
            "first": first,
            "second": second,
        }
        return self.text.format_map(shown).strip()

    def read(self, reply: str, order: str) -> dict[str, float]:
        """
        The marks of a reply, `answer` and, where both are marked, `reference`.

        Raises:
            UnreadableReplyError: it has none, or some beyond the scale.
        """
        text = reply.strip()
        if self.reads == "yes_no":
            said = YES_NO.match(text)
            numbers = [float(said[1].lower() == "yes")] if said else []
        elif self.reads == "one_score":
            found = ONE_NUMBER.match(text)
            numbers = [float(found[1])] if found else []
        else:
            matches = filter(None, (TWO_NUMBERS.match(line.strip()) for line in text.splitlines()))
            pair = next(matches, None)
            numbers = [float(pair[1]), float(pair[2])] if pair else []
        if not numbers or not all(self.least <= number <= self.most for number in numbers):
            wanted = "two scores" if self.reads == "two_scores" else "a score"
            raise UnreadableReplyError(f"expected {wanted} from {self.least:g} to {self.most:g}")
        if len(numbers) == 1:
            return {"answer": numbers[0]}
        first, second = numbers
        by_order = {REFERENCE_FIRST: (first, second), ANSWER_FIRST: (second, first)}
        return dict(zip(("reference", "answer"), by_order[order]))


def read_rubrics(path: Path | None = None) -> dict[str, Rubric]:
    """
    Rubrics by name.

    Args:
        path: a file in the form of `judge_prompts.yaml`, or None for that.

    Raises:
        JudgeError: it cannot be read, or an entry is malformed.
    """
    path = path or PROMPTS_FILE
    try:
        table = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise JudgeError(f"The judge's prompts {path} cannot be read: {error}") from error
    if not isinstance(table, dict):
        raise JudgeError(f"The judge's prompts {path} are no mapping of names to prompts.")
    rubrics = {}
    for name, entry in table.items():
        try:
            rubric = Rubric(**{**entry, "orders": tuple(entry["orders"])})
            example = {"extra": {}, "references": [""], "output": "", "prompt": ""}
            for order in rubric.orders:
                if order not in ORDERS:
                    raise KeyError(f"order {order}")
                rubric.prompt(order, example)
        except (TypeError, KeyError, ValueError, IndexError) as error:
            raise JudgeError(f"The judge's prompts {path}, {name!r}: {error}") from error
        rubrics[name] = rubric
    return rubrics


class Judge:
    """
    Sends prompts to one model of one endpoint.

    Args:
        options: which, where, and how patiently.

    Attributes:
        takes_temperature: False once the endpoint has refused `max_tokens` with a temperature and taken
            `max_completion_tokens` without, as OpenAI's reasoning models do.

    Raises:
        ImportError: the client is not installed.
        JudgeError: the environment has no key.
    """

    def __init__(self, options: JudgeArguments):
        self._openai = optional_library("openai", "judge")
        self.model = options.judge_model
        self.takes_temperature = True
        self._key = _key(options)
        self._client = self._openai.OpenAI(
            base_url=options.judge_url,
            api_key=self._key or NO_KEY,
            max_retries=options.judge_retries,
            timeout=options.judge_timeout_s,
        )

    def reply(self, prompt: str, temperature: float) -> str:
        """
        What the judge says to a prompt.

        Raises:
            JudgeError: it says so to every prompt: the key is refused, or there is no such model.
            RuntimeError: this request has failed; the message says why.
        """
        openai = self._openai
        try:
            completion = self._complete(prompt, temperature)
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            raise JudgeError(f"The judge refuses: {self.scrubbed(error)}") from error
        except openai.OpenAIError as error:
            raise RuntimeError(self.scrubbed(error)) from error
        except ValueError as error:  # a body that is no JSON
            raise RuntimeError(f"the endpoint's answer cannot be read: {self.scrubbed(error)}") from error
        try:
            content = completion.choices[0].message.content
        except (AttributeError, IndexError, TypeError) as error:
            raise RuntimeError("the endpoint's answer is no chat completion") from error
        return self.scrubbed(content or "")

    def _complete(self, prompt: str, temperature: float) -> Any:
        usual: dict[str, Any] = {"max_tokens": MAX_REPLY_TOKENS, "temperature": temperature}
        ask = partial(
            self._client.chat.completions.create,
            model=self.model,
            messages=[{"role": "user", "content": prompt}],
        )
        if self.takes_temperature:
            try:
                return ask(**usual)
            except self._openai.BadRequestError as error:
                if not REFUSED_OPTION.search(str(error)):
                    raise
        completion = ask(max_completion_tokens=MAX_REASONING_TOKENS)
        self.takes_temperature = False
        return completion

    def scrubbed(self, text: object) -> str:
        """A text without the key, should an endpoint repeat it."""
        return str(text).replace(self._key, "***") if self._key else str(text)


def _key(options: JudgeArguments) -> str | None:
    """The key for the endpoint; that of OpenAI goes nowhere else unless its variable is named."""
    is_openai = options.judge_url.startswith(OPENAI_HOST)
    variable = options.judge_key_variable or (OPENAI_VARIABLE if is_openai else None)
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise JudgeError(f"The environment variable {variable} is empty; set it to the key of {options.judge_url}.")
    return key


__all__ = [
    "ANSWER_FIRST",
    "ANSWER_ONLY",
    "REFERENCE_FIRST",
    "Judge",
    "JudgeError",
    "Rubric",
    "UnreadableReplyError",
    "read_rubrics",
]

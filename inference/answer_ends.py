"""Ends of answers besides the one that the model writes: a bound of its own, or a loop."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

#: A loop: a unit of up to so many tokens, so many times in a row, and so many tokens in all.
MAX_LOOP_UNIT, MIN_LOOP_TIMES, MIN_LOOP_TOKENS = 32, 5, 32


class AnswerEnds(StoppingCriteria):
    """
    Ends each row at its own bound, and a row that repeats itself without end.

    Args:
        prompt_length: tokens of the prompts, padded.
        bounds: new tokens that each row may have; with beams, those of all of a row's.
        may_loop: rows that are not watched for loops; none by default.

    Attributes:
        repeated: `(rows,)`, after how many new tokens a row was found in a loop; 0 where it was not.
        loop_starts: `(rows,)`, after how many tokens its second time round began.
    """

    def __init__(self, prompt_length: int, bounds: Sequence[int], may_loop: Sequence[bool] | None = None):
        self.prompt_length = prompt_length
        self.bounds = torch.as_tensor(bounds)
        self.may_loop = torch.zeros(len(self.bounds), dtype=torch.bool) if may_loop is None else torch.tensor(may_loop)
        self.repeated = self.loop_starts = torch.zeros(0, dtype=torch.long)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Return which rows `(rows * beams,)` of `input_ids` `(rows * beams, length)` are at their end."""
        written = input_ids[:, self.prompt_length :]
        length, device = written.shape[1], written.device
        if len(self.repeated) != len(written):
            beams = len(written) // len(self.bounds)
            self.bounds = self.bounds.to(device).repeat_interleave(beams)
            self.may_loop = self.may_loop.to(device).repeat_interleave(beams)
            self.repeated = self.loop_starts = torch.zeros_like(self.bounds)
        loops = torch.zeros_like(self.may_loop)
        for unit in range(1, MAX_LOOP_UNIT + 1):
            tail = unit * max(MIN_LOOP_TIMES, -(-MIN_LOOP_TOKENS // unit))
            if tail > length:
                continue
            found = (written[:, -tail:-unit] == written[:, unit - tail :]).all(dim=1) & ~self.may_loop & ~loops
            self.loop_starts = torch.where(found & (self.repeated == 0), length - tail + unit, self.loop_starts)
            loops |= found
        self.repeated = torch.where(loops & (self.repeated == 0), length, self.repeated)
        return (self.bounds <= length) | loops

    def cut(self, answers: torch.Tensor) -> list[list[int]]:
        """
        Return the tokens of each answer up to its end, a loop once round.

        Args:
            answers: new tokens `(rows, length)` of `generate`, one sequence for each row.
        """
        starts = self.loop_starts.tolist() if len(self.loop_starts) else [0] * len(answers)
        return [row[: start or bound] for row, start, bound in zip(answers.tolist(), starts, self.bounds.tolist())]


def generate_to_ends(
    model, inputs: Any, bounds: Sequence[int], may_loop: Sequence[bool] | None = None, **options: Any
) -> list[list[int]]:
    """
    Return the new tokens of each row, each up to its own bound or end, and a loop once round.

    Args:
        inputs: of `generate`, with `input_ids` `(rows, length)`.
        bounds, may_loop: see [`AnswerEnds`].
        options: of `generate`, without beams.
    """
    length = inputs["input_ids"].shape[1]
    ends = AnswerEnds(length, bounds, may_loop)
    criteria = StoppingCriteriaList([*options.pop("stopping_criteria", ()), ends])
    output = model.generate(**inputs, stopping_criteria=criteria, **options)
    return ends.cut(getattr(output, "sequences", output)[:, length:])

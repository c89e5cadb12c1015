"""Answers end at their own bounds and where they repeat themselves, and text that people say is never cut."""

import pytest
import torch
from audiollm.corpora.prompts import load_studio_prompts
from audiollm.evaluation.generating import transcript_bound
from audiollm.inference.answer_ends import MIN_LOOP_TOKENS, AnswerEnds
from audiollm.inference.answering import answer, ask
from long_recordings import noise

PROMPT = [1, 2, 3]
UNBOUNDED = 10_000


def written(ends: AnswerEnds, rows: list[list[int]]) -> list[list[int]]:
    """Return the rows after they are written token by token, each padded once it is at its end."""
    stopped = [False] * len(rows)
    ids = torch.tensor([PROMPT] * len(rows))
    for step in range(max(map(len, rows))):
        new = [0 if over or step >= len(row) else row[step] for row, over in zip(rows, stopped)]
        ids = torch.cat([ids, torch.tensor(new)[:, None]], dim=1)
        found = ends(ids, None).tolist()
        stopped = [one or two for one, two in zip(stopped, found)]
        if all(stopped):
            break
    return ends.cut(ids[:, len(PROMPT) :])


@pytest.mark.parametrize("unit", [[7], [7, 8], list(range(10, 42))])
def test_a_loop_ends_and_is_kept_once(unit: list[int]) -> None:
    start = [50, 51, 52]
    ends = AnswerEnds(len(PROMPT), [UNBOUNDED])
    assert written(ends, [start + unit * 100]) == [start + unit]
    assert int(ends.repeated) == len(start) + len(unit) * max(5, -(-MIN_LOOP_TOKENS // len(unit)))


def test_rows_end_by_themselves() -> None:
    looping, other = [5] * 200, list(range(100, 300))
    ends = AnswerEnds(len(PROMPT), [60, UNBOUNDED, 60, 90], may_loop=[False, False, False, True])
    assert written(ends, [other, looping, other, looping]) == [other[:60], [5], other[:60], [5] * 90]
    ends = AnswerEnds(len(PROMPT), [2, 4])  # with three beams each
    assert ends(torch.randint(100, (6, len(PROMPT) + 3)), None).tolist() == [True] * 3 + [False] * 3


def test_what_people_say_is_never_cut(real_processor) -> None:
    rows = load_studio_prompts()
    longest = sorted(range(len(rows)), key=lambda row: -len(rows["text"][row]))[:3]
    rows = rows.select([*range(0, len(rows), 20), *longest])
    texts = [*rows["text"], "No, no, no, no, no! " * 3, "one two three four five six seven eight nine ten " * 3]
    seconds = [*rows["duration_s"], 15 * 0.3, 30 * 0.4]
    encoded = real_processor.tokenizer(texts)["input_ids"]
    bounds = [transcript_bound(one, "en") for one in seconds]
    assert all(len(ids) < bound for ids, bound in zip(encoded, bounds))
    kept = written(AnswerEnds(len(PROMPT), bounds), encoded)
    assert max(map(len, encoded)) > 100
    assert [row[: len(ids)] for row, ids in zip(kept, encoded)] == encoded


def test_answers_about_recordings_stop_in_a_loop_and_others_do_not(tiny_model, tiny_processor) -> None:
    tiny_model.generation_config.eos_token_id = None

    def say_a(module, args, output):
        scores = torch.full_like(output, -10.0)
        scores[..., tiny_processor.tokenizer.convert_tokens_to_ids("a")] = 10.0
        return scores

    hook = tiny_model.lm_head.register_forward_hook(say_a)
    clip = noise(0.5)
    try:
        texts = answer(tiny_model, tiny_processor, [ask("<audio>", clip), ask("Say a.")], max_new_tokens=[60, 50])
        beams = answer(tiny_model, tiny_processor, [ask("<audio>", clip)], max_new_tokens=40, num_beams=2)
    finally:
        hook.remove()
    assert texts == ["a", "a" * 50] and beams == ["a" * 40]

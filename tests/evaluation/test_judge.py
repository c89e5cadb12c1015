"""The judge, against a real server on this machine that is busy, fails, is slow, and talks nonsense."""

import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from audiollm.evaluation.arguments import JudgeArguments
from audiollm.evaluation.judge import (
    ANSWER_FIRST,
    ANSWER_ONLY,
    CONCURRENCY,
    REFERENCE_FIRST,
    JudgeError,
    UnreadableReplyError,
    judge_run,
    known_rubrics,
)
from audiollm.evaluation.outputs import RunFolderError
from audiollm.evaluation.score import score_run
from benchmark_copies import air_bench
from evaluation_runs import evaluate, row, scores_of, write_run
from loopback_site import running

KEY, VARIABLE = "sk-secret-key-of-this-test", "JUDGE_TEST_KEY"
CHAT, OPEN, QA = "air_bench_chat", "voicebench:commoneval", "voicebench_sd_qa:usa"
RUBRICS = {CHAT: "air_bench", OPEN: "voicebench_open", QA: "voicebench_qa"}


class Page(BaseHTTPRequestHandler):
    """Answers chat completions by its server's `answer`: a text, or a status and a body, from the prompt."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][0]["content"]
        seen, answer = self.server.seen, self.server.answer  # a test may replace them before this one's turn comes
        with self.server.lock:
            seen.append({"path": self.path, "key": self.headers["Authorization"], **body})
            self.server.asked[prompt] += 1
            reply = answer(prompt, self.server.asked[prompt])
        status, payload = reply if isinstance(reply, tuple) else (200, reply)
        if isinstance(payload, str):
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": payload}}
            payload = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        self.send_response(status)
        if status == 429:
            self.send_header("Retry-After", "0.01")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args) -> None:
        """Silence."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    """Gives the reference 8 and the answer 6, in either order; 4 of five; yes."""
    monkeypatch.setenv(VARIABLE, KEY)
    monkeypatch.setattr("audiollm.evaluation.judge.RETRIES", 1)
    with running(Page) as server:
        server.lock, server.seen, server.asked, server.answer = threading.Lock(), [], Counter(), good_reply
        yield server


def good_reply(prompt: str, times: int = 1) -> str:
    if "from 1 to 10" in prompt:
        return "8 6" if "Answer of assistant 1:\nreference" in prompt else "6 8"
    return "4" if "from 1 to 5" in prompt else "Yes."


def options(server, **others) -> JudgeArguments:
    url = f"http://127.0.0.1:{server.server_port}/v1"
    return JudgeArguments(**{"judge_model": "marker", "judge_url": url, "judge_key_variable": VARIABLE, **others})


@pytest.fixture
def run(tmp_path) -> Path:
    """A run of three tasks, with three answers each, of which one is none and one is empty."""
    rows = []
    for number, output in enumerate(["answer to 0 {braces}", None, ""]):
        about = "a dog, then reference of nobody" if number else "a dog"
        extra = {"question": f"question {number}", "meta_info": about}
        rows.append(row(f"{number}", f"reference of {number}", output, extra=extra))
    tasks = {
        task: {"kind": "chat", "metrics": ["judge_score"], "source": {"judge": rubric}, "items": 3}
        for task, rubric in RUBRICS.items()
    }
    return write_run(tmp_path / "run", {task: {"model": rows} for task in tasks}, tasks)


def verdicts_of(folder: Path, task: str, system: str = "model") -> list[dict]:
    path = folder / "judgements" / task / f"{system}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_both_orders_and_all_samples_are_asked_and_kept(run, server) -> None:
    judge_run(run, [CHAT, OPEN, QA], options(server))
    chat = verdicts_of(run, CHAT)
    orders = [(item, order, 0) for item in ("0", "2") for order in (REFERENCE_FIRST, ANSWER_FIRST)]
    assert [(one["id"], one["order"], one["sample"]) for one in chat] == orders
    assert chat[0]["scores"] == chat[1]["scores"] == {"reference": 8, "answer": 6}
    assert (chat[0]["reply"], chat[1]["reply"]) == ("8 6", "6 8")
    first, second = (one["prompt"] for one in chat[:2])
    assert all(text in first for text in ("a dog", "question 0", "reference of 0", "answer to 0 {braces}"))
    assert first.index("reference of 0") < first.index("answer to 0")
    assert second.index("reference of 0") > second.index("answer to 0")
    assert [(one["id"], one["sample"]) for one in verdicts_of(run, OPEN)] == [(i, s) for i in "02" for s in range(3)]
    assert all(one["scores"] == {"answer": 1} and "reference of" in one["prompt"] for one in verdicts_of(run, QA))
    assert {(one["path"], one["model"], one["key"]) for one in server.seen} == {
        ("/v1/chat/completions", "marker", f"Bearer {KEY}")
    }
    assert {one["temperature"] for one in server.seen if "from 1 to 10" in one["messages"][0]["content"]} == {0}
    written = json.loads((run / "judgements" / "judge.json").read_text())
    assert written["model"] == "marker" and "{description}" in written["air_bench"]["prompt"]
    assert all(KEY not in path.read_text() for path in run.rglob("*") if path.is_file())
    scored = score_run(run, samples=50)["tasks"][CHAT]["systems"]["model"]
    assert scored["metrics"]["judge_score"]["value"] == 6 and scored["counts"]["errors"] == 1

    # An interrupted judge goes on, and asks nothing twice.
    asked, path = len(server.seen), run / "judgements" / OPEN / "model.jsonl"
    judge_run(run, [CHAT, OPEN, QA], options(server))
    assert len(server.seen) == asked == 4 + 6 + 6
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    judge_run(run, [OPEN], options(server))
    assert path.read_bytes() == whole and 0 < len(server.seen) - asked < 6
    with pytest.raises(RunFolderError, match="model was 'marker'"):
        judge_run(run, [CHAT], options(server, judge_model="another"))


def test_what_fails_for_good_is_counted_and_asked_again_later(run, server, capsys) -> None:
    """Too busy for as long as it was asked, no completion, no marks, marks beyond the scale."""
    bad = {
        "0" + REFERENCE_FIRST: (429, {"error": {"message": f"limit of {KEY} reached"}}),
        "0" + ANSWER_FIRST: "11 5",
        "2" + REFERENCE_FIRST: "I would rather not.",
        "2" + ANSWER_FIRST: (200, {"choices": []}),
    }

    def answer(prompt: str, times: int):
        item = re.search(r"question (\d)", prompt)[1]
        first = re.search(r"Answer of assistant 1:\n(.*)", prompt)[1]
        return bad[item + (REFERENCE_FIRST if first.startswith("reference") else ANSWER_FIRST)]

    server.answer = answer
    judge_run(run, [CHAT], options(server))
    verdicts = verdicts_of(run, CHAT)
    assert [one["scores"] for one in verdicts] == [None] * 4
    assert [one["error"].partition(":")[0] for one in verdicts] == ["request", "reply", "reply", "request"]
    assert "limit of *** reached" in verdicts[0]["error"] and verdicts[2]["reply"] == "I would rather not."
    assert "from 1 to 10" in verdicts[1]["error"]
    assert sorted(server.asked.values()) == [1, 1, 1, 2]  # sent again once where the endpoint was busy
    assert "2 requests failed and 2 replies could not be read" in capsys.readouterr().err
    counts = score_run(run, samples=50)["tasks"][CHAT]["systems"]["model"]["counts"]
    assert counts["judge_failures"] == 4 and counts["unjudged"] == 3
    server.answer = good_reply
    judge_run(run, [CHAT], options(server))
    assert [one["error"] for one in verdicts_of(run, CHAT)] == [None] * 4


@pytest.mark.parametrize("refused", ["max_tokens", "temperature"])
def test_reasoning_models_are_asked_as_they_take_it(run, server, refused) -> None:
    """They refuse `max_tokens`, and any temperature but their own."""

    def answer(prompt: str, times: int):
        if refused in server.seen[-1]:
            return 400, {"error": {"message": f"Unsupported parameter: '{refused}' is not supported with this model."}}
        return good_reply(prompt)

    server.answer = answer
    judge_run(run, [CHAT], options(server))
    assert [one["scores"] for one in verdicts_of(run, CHAT)] == [{"reference": 8, "answer": 6}] * 4
    refusals = [one for one in server.seen if refused in one]
    assert len(server.seen) == 4 + len(refusals) and len(refusals) <= CONCURRENCY  # no thread asks wrongly twice
    taken = server.seen[-1]
    assert taken["max_completion_tokens"] > 1024 and not {"max_tokens", "temperature"} & set(taken)
    noted = json.loads((run / "judgements" / "judge.json").read_text())
    assert noted["temperature"] == "the model's own"
    judge_run(run, [CHAT], options(server))  # and nothing of it differs


def test_a_refused_request_or_a_slow_reply_fails_alone_and_a_refused_key_ends_it(run, server, monkeypatch) -> None:
    server.answer = lambda prompt, times: (400, {"error": {"message": "too long"}})
    judge_run(run, [QA], options(server))
    assert all("too long" in one["error"] for one in verdicts_of(run, QA))
    server.answer = lambda prompt, times: threading.Event().wait(0.4) or good_reply(prompt)
    with monkeypatch.context() as patch:
        patch.setattr("audiollm.evaluation.judge.TIMEOUT_S", 0.05)
        judge_run(run, [QA], options(server))
    assert all("timed out" in one["error"] for one in verdicts_of(run, QA))
    server.seen = []
    server.answer = lambda prompt, times: (401, {"error": {"message": f"bad key {KEY}"}})
    with pytest.raises(JudgeError, match="refuses") as caught:
        judge_run(run, [CHAT, OPEN, QA], options(server))
    assert KEY not in str(caught.value) and len(server.seen) <= CONCURRENCY


def test_keys_go_only_where_they_are_meant_to(run, server, monkeypatch, capsys) -> None:
    """OpenAI's is not sent to another endpoint; where a variable is named, it must hold one."""
    judge_run(run, [CHAT], JudgeArguments())
    assert "give --judge_model" in capsys.readouterr().out and not (run / "judgements").exists()
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai")
    judge_run(run, [CHAT], options(server, judge_key_variable=None))
    assert {one["key"] for one in server.seen} == {"Bearer none"}
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(JudgeError, match=f"{VARIABLE} is empty"):
        judge_run(run, [OPEN], options(server))
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(JudgeError, match="OPENAI_API_KEY is empty"):
        judge_run(run, [OPEN], JudgeArguments(judge_model="marker", judge_url="https://api.openai.com/v1"))


@pytest.mark.parametrize(
    ("rubric", "order", "reply", "scores"),
    [
        ("air_bench", REFERENCE_FIRST, "7 9", {"reference": 7, "answer": 9}),
        ("air_bench", ANSWER_FIRST, "The scores:\n**7.5, 9**\nBecause 2 is not 3.", {"reference": 9, "answer": 7.5}),
        ("air_bench", ANSWER_FIRST, "79", None),
        ("voicebench_open", ANSWER_ONLY, "[Score]: 3.", {"answer": 3}),
        ("voicebench_open", ANSWER_ONLY, "between 3 and 4", None),
        ("voicebench_open", ANSWER_ONLY, "6", None),
        ("voicebench_qa", ANSWER_ONLY, "**No**, because yes is wrong", {"answer": 0}),
        ("voicebench_qa", ANSWER_ONLY, "Nope, yesterday", None),
    ],
)
def test_replies_are_read_or_refused(rubric, order, reply, scores) -> None:
    if scores:
        assert known_rubrics()[rubric].read(reply, order) == scores
    else:
        with pytest.raises(UnreadableReplyError):
            known_rubrics()[rubric].read(reply, order)


def test_the_command_answers_judges_and_scores(server, tiny_checkpoint, tmp_path, capsys) -> None:
    """Also when the judge refuses: what was answered is scored, and the same command goes on with the judge alone."""
    given = f"--tasks {CHAT} --data {air_bench(tmp_path / 'copy')} --systems model,deaf --max_new_tokens 3"
    given += f" --judge_model marker --judge_url {options(server).judge_url} --judge_key_variable {VARIABLE}"
    server.answer = lambda prompt, times: (401, {"error": {"message": "no"}})
    with pytest.raises(SystemExit, match="The judge refuses"):
        evaluate(tiny_checkpoint, tmp_path / "run", *given.split())
    assert scores_of(tmp_path / "run", CHAT)["model"]["counts"]["items"]
    server.answer = good_reply
    capsys.readouterr()
    evaluate(tiny_checkpoint, tmp_path / "run", *given.split())
    printed = capsys.readouterr()
    assert "judge_score" in printed.out and "answer/s" not in printed.err
    for system in ("model", "deaf"):
        verdicts = verdicts_of(tmp_path / "run", CHAT, system)
        assert verdicts and all(one["scores"] for one in verdicts)

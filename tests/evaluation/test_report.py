"""The report of an evaluation: every figure is in it, nothing written in it is markup, and nothing is fetched."""

import base64
import io
import json
import re
from html import unescape
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import soundfile
from audiollm.corpora.prompts import load_studio_prompts
from audiollm.evaluation.evaluate import main as evaluate
from audiollm.evaluation.outputs import RunFolderError
from audiollm.evaluation.report import gather, main, write_report
from audiollm.evaluation.score import main as score
from audiollm.evaluation.score import score_run
from audiollm.publishing.score_table import SYSTEM_TITLES as TITLES
from evaluation_runs import row, write_lines, write_run
from small_corpus import example_rows, write_recordings, write_rows

HOSTILE = "<script>alert(1)</script> & \"quoted\" 'x' | `code` </style>"
TASKS = {
    "prompts": {"source": {"title": HOSTILE, "benchmark": "prompts"}, "left_out": {"deaf": HOSTILE}},
    "librispeech_clean": {"group": "open_asr", "source": {"title": "LibriSpeech", "hub": "org/name"}},
    "spelled": {"metrics": ["character_error"], "language": "zh", "normaliser": "characters"},
    "translation": {"metrics": ["bleu"], "language": "de", "kind": "translation"},
    "choice": {"metrics": ["choice_accuracy"], "kind": "choice"},
    "chat": {"metrics": ["judge_score"], "kind": "chat"},
    "summary": {"metrics": ["rouge"], "kind": "summary"},
    "silence": {"metrics": ["no_speech_rate"], "kind": "no_speech"},
    "text": {"metrics": ["text_retention"], "kind": "text_retention"},
}
RECORD = {
    **{"model": HOSTILE, "bases": {"audio": "a/whisper", "text": "a/llama"}, "versions": {"torch": "9.9"}},
    **{"dtype": "bfloat16", "settings": {"batch_size": 7, "weights": "f1ngerprint"}},
}


def plain(fragment: str) -> str:
    """Return the text of markup, in one line."""
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", fragment)).split())


class Page:
    """A page: its `html`, and by the section's heading its `text` and the `rows` of its tables."""

    def __init__(self, path: Path):
        self.html = path.read_text(encoding="utf-8")
        parts = re.split(r"<h2>(.*?)</h2>", re.sub(r"<style>.*?</style>", "", self.html, flags=re.DOTALL))
        sections = dict(zip(map(plain, ["", *parts[1::2]]), parts[::2], strict=True))
        self.text = {name: plain(part) for name, part in sections.items()}
        self.rows = {
            name: [
                [plain(cell) for cell in re.findall(r"<t[hd]\b.*?</t[hd]>", each, re.DOTALL)]
                for each in re.findall(r"<tr\b.*?</tr>", part, re.DOTALL)
            ]
            for name, part in sections.items()
        }

    def attribute(self, name: str) -> list[str]:
        """Return the values of an attribute."""
        return re.findall(rf'\s{name}="([^"]*)"', self.html)

    def cells(self, section: str, system: str, column: str) -> list[str]:
        """Return the cells of a system in every table that has the column."""
        found, head = [], []
        for cells in self.rows[section]:
            if cells[:1] == ["System"]:
                head = cells
            elif cells[:1] == [TITLES[system]] and column in head:
                found.append(cells[head.index(column)])
        return found


def spoken(prompts: list[dict], *outputs: str) -> list[dict]:
    lengths = (0.5, 3.0, 40.0, 7.0)
    return [row(one["id"], one["text"], said, duration_s=s) for one, said, s in zip(prompts, outputs, lengths)]


def outputs_of(prompts: list[dict]) -> dict[str, dict[str, list[dict]]]:
    """Answers of every system, and of every kind of task."""
    heard = [each["text"] for each in prompts]
    rows = spoken(prompts, heard[0], f"{HOSTILE} {heard[1]}", "", heard[3] + " and more")
    rows[0]["extra"] = {"category": "one <b>"}
    rows[1] |= {"extra": {"category": "two"}, "finish": "length"}
    rows[2] |= {"extra": {"category": "two"}, "output": None, "finish": "error", "error": HOSTILE}
    rows += [row("empty", "...", "x"), row(HOSTILE, "star key", f"{HOSTILE} <img src=http://evil.example/x>")]
    age, mood = ({"extra": {"category": name}} for name in ("age", "mood"))
    asked = {"category": "age", "question": f"Who? {HOSTILE}", "choices": {"A": "x"}}
    choices = [row("1", "A", "A.", **age), row("2", "B", "no idea", extra=asked), row("3", "B", "C", **mood)]
    retention = {"tokens": 2, "negative_log_likelihood": 1.0, "same_logits_as_base": True}
    wrong = spoken(prompts, heard[1], heard[0], heard[3], heard[2])
    return {
        "prompts": {"model": rows, "wrong_audio": wrong, "whisper": spoken(prompts, *heard)},
        "librispeech_clean": {
            "model": spoken(prompts, heard[0], "white paper", *heard[2:]),
            "cascade": spoken(prompts, *heard),
        },
        "spelled": {"model": [row("1", "今天天气好", "今天 天好了"), row("2", "好", "好")]},
        "translation": {"model": [row("1", "Guten Tag, wie geht es dir?", "Guten Tag, wie geht es?")]},
        "choice": {"model": choices, "deaf": [row("1", "A", "B"), row("2", "B", "B"), row("3", "B", "B")]},
        "chat": {"model": [row("1", [], "Hello."), row("2", [], "x")]},
        "summary": {"model": [row("1", "a dog barks", "a dog"), row("2", "rain falls", "rain falls")]},
        "silence": {"model": [row("1", [], "Thank you."), row("2", [], "")], "whisper": [row("1", [], "")]},
        "text": {"model": [row("1", [], "x", duration_s=0.0, extra=retention)]},
    }


class Report(NamedTuple):
    """A report as it is read, and what it was made of."""

    page: Page
    figures: dict
    scores: dict
    prompts: list[dict]


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Report:
    prompts = [each for each in load_studio_prompts("test") if len(each["text"].split()) > 3][:4]
    folder = write_run(tmp_path_factory.mktemp("run") / "runs", outputs_of(prompts), TASKS, **RECORD)
    judgements = folder / "judgements"
    write_lines(judgements / "chat" / "model.jsonl", [{"id": "1", "order": "x", "scores": {"answer": 4.5}}])
    judge = {"model": "judge-of-marks", "voicebench_open": {"prompt": "x", "temperature": 0.5, "samples": 3}}
    (judgements / "judge.json").write_text(json.dumps(judge), encoding="utf-8")
    scores = score_run(folder, samples=50)
    return Report(Page(write_report(folder).page), gather(folder, worst=10), scores, prompts)


def shown(figure: dict) -> str:
    """Return a figure as a reader sees it: three digits that count, fractions as percent, the interval in brackets."""

    def digits(value: float) -> str:
        scaled = 100 * value if figure["unit"] == "fraction" else value
        return f"{scaled:,.0f}" if abs(scaled) >= 100 else f"{scaled:.3g}"

    if figure["value"] is None:
        return "–"
    sign = " %" if figure["unit"] == "fraction" else ""
    interval = "" if figure["low"] is None else f" [{digits(figure['low'])}, {digits(figure['high'])}]"
    return f"{digits(figure['value'])}{sign}{interval}"


def test_every_figure_count_and_setting_is_in_the_page(report) -> None:
    page, scores = report.page, report.scores
    assert set(scores["tasks"]) == set(TASKS)
    for task, entry in scores["tasks"].items():
        for system, scored in entry["systems"].items():
            cells = [cell for cells in page.rows[task] if cells[:1] == [TITLES[system]] for cell in cells]
            for metric, figure in scored["metrics"].items():
                assert shown(figure) in cells, (task, system, metric, cells)
    word_error = scores["tasks"]["prompts"]["systems"]["whisper"]["metrics"]["word_error"]
    assert shown(word_error) in page.cells("prompts", "whisper", "Word error")
    average = shown(scores["averages"]["open_asr"]["model"]["word_error"])
    (cells,) = [cells for cells in page.rows["In short"] if cells[0].startswith("mean of open_asr Word error;")]
    assert cells[1] == average and "NOT the leaderboard's average: without ami" in cells[0]
    for task, title, count in [
        ("prompts", "items asked", "6"),
        ("prompts", "items that count", "5"),
        ("prompts", "left out, because their reference is empty", "1"),
        ("prompts", "failed, counted as empty answers", "1"),
        ("prompts", "cut off at the longest answer allowed", "1"),
        ("prompts", "audio", "54.5 s"),
        ("choice", "answered in a form that could not be read", "1"),
        ("chat", "without a judge's mark", "1"),
    ]:
        assert page.cells(task, "model", title) == [count], title
    made = page.text["How it was made"]
    assert "judge-of-marks; voicebench_open: 3 samples at temperature 0.5" in made
    for said in ("bfloat16", "torch 9.9", "f1ngerprint", "50 samples, seed 0", "normaliser:leaderboard|aligner:kaldi"):
        assert said in made


def test_categories_differences_and_the_worst_examples_are_shown(report) -> None:
    tasks, text = report.figures["tasks"], report.page.text
    task, worst = tasks["prompts"], tasks["prompts"]["worst"]
    assert list(task["by_category"]) == ["one <b>", "two"]
    assert {"said": "", "written": "and", "count": 1} in task["confusions"]["insertion"]
    assert task["differences"]["wrong_audio"]["value"] > 0 > task["differences"]["whisper"]["value"]
    assert task["verdicts"][0] in text["prompts"] and "Most frequent mistakes of the model" in text["prompts"]
    age = tasks["choice"]["by_category"]["age"]["model"]
    assert (age["value"], age["scored"]) == (1.0, 1)  # of those that could be read
    assert len(worst) == 4  # one is right, one does not count
    assert worst[0]["errors"]["count"] == max(each["errors"]["count"] for each in worst)
    for each in worst:
        kinds = [pair["kind"] for pair in each["alignment"]]
        assert sum(kind not in ("equal", "gap") for kind in kinds) == each["errors"]["count"]
    for mark in (
        "missing",
        "added",
        "wrong",
        "failed",
        "cut off at the longest answer allowed",
    ):  # not by colour alone
        assert mark in text["prompts"]
    found = {name: [each["id"] for each in entry["worst"]] for name, entry in tasks.items()}
    assert (found["choice"], found["silence"], found["text"]) == (["2", "3"], ["1"], [])
    assert "no letter could be read" in text["choice"] and "there are no examples" in text["text"]
    assert [each["score"] for each in tasks["summary"]["worst"]] == pytest.approx([0.8, 1.0])
    assert "".join(pair["said"] for pair in tasks["spelled"]["worst"][0]["alignment"]) == "今天天气好"


def test_what_figures_mean_is_said_and_not_overdone(tmp_path) -> None:
    right, half, wrong = ([row(str(n), "red blue", said) for n in range(9)] for said in ("red blue", "red", ""))
    for number, (systems, sentence) in enumerate(
        [
            ({"model": right, "wrong_audio": wrong}, "recordings 100 %: the model answers by what it hears"),
            ({"model": half, "wrong_audio": half}, "NOT clearly better than with wrong recordings"),
            ({"model": wrong, "whisper": half}, "Whisper's own decoder 50 %: the model is worse"),
            ({"model": half, "cascade": wrong}, "Whisper's transcript read by the base 100 %: the model is better"),
            ({"model": half, "deaf": half}, "the base without the recording 50 %: no clear difference"),
        ]
    ):
        folder = write_run(tmp_path / str(number), {"mine": systems})
        score_run(folder, samples=200)
        assert sentence in " ".join(gather(folder, worst=0)["tasks"]["mine"]["verdicts"])


def test_nothing_written_is_markup_and_nothing_is_fetched(report) -> None:
    page = report.page
    assert not re.search(r"<\s*(script|iframe|object|link|img)", page.html, re.IGNORECASE)
    assert page.html.count("</style>") == 1 and not re.search(r"<[a-z][^>]*\son\w+=", page.html)
    for section in ("", "prompts", "choice"):  # the model's name, outputs, a question
        assert HOSTILE in page.text[section]
    assert "<img src=http://evil.example/x>" in page.text["prompts"] and "one <b>" in page.text["prompts"]
    assert all(source.startswith("data:audio/mpeg;base64,") for source in page.attribute("src"))
    ids = page.attribute("id")
    assert len(ids) == len(set(ids)) and {link.removeprefix("#") for link in page.attribute("href")} <= set(ids)
    css = " ".join(re.findall(r"<style[^>]*>(.*?)</style>", page.html, re.DOTALL))
    assert "@import" not in css and "http" not in css and not re.search(r"url\((?!#)", css)
    assert page.html.count('class="bar"') >= 20


def test_recordings_of_a_bundled_task_can_be_played(report) -> None:
    """Only their ids are known."""
    sources = report.page.attribute("src")
    heard = [soundfile.read(io.BytesIO(base64.b64decode(source.partition(",")[2]))) for source in sources]
    lengths = sorted(len(samples) / rate for samples, rate in heard)
    assert lengths == pytest.approx(sorted(each["duration_s"] for each in report.prompts[1:]), abs=0.15)
    assert all(rate == 16_000 and np.abs(samples).max() > 0.01 for samples, rate in heard)
    assert "1 of 4 examples have no player: " in report.page.text["prompts"]
    assert "the recordings are not on this machine" in report.page.text["librispeech_clean"]


def test_own_recordings_are_played_as_far_as_there_is_room(tiny_checkpoint, tmp_path, capsys, monkeypatch) -> None:
    """One is damaged, one long; scoring and evaluating write the report as well."""
    recordings = tmp_path / "recordings"
    names = write_recordings(recordings, 3)
    (recordings / names[1]).write_bytes(b"no audio")
    soundfile.write(recordings / "long.wav", np.full(16_000 * 70, 0.1, np.float32), 16_000)
    rows = [
        row(name, "press one two", "x" * (number + 1), audio=[str(recordings / name)])
        for number, name in enumerate([*names, "long.wav"])
    ]
    folder = write_run(tmp_path / "run", {"local": {"model": rows, "wrong_audio": rows}})
    score([str(folder), "--samples", "20"])
    assert "Shown by" in capsys.readouterr().out

    def page(*options: str) -> str:
        main([str(folder), *options])
        return (folder / "report.html").read_text(encoding="utf-8")

    text, said = page(), capsys.readouterr().out
    assert "1 players: the recording cannot be read" in said and "3 players." in said
    assert str(recordings) not in text and text.count("<article>") == 4 and "20 samples" in text
    assert text.count("<audio") == 3 and "The first 1.0 min of it" in text
    assert "No player: the recording cannot be read" in text
    assert page("--worst", "1").count("<article>") == 1 and page("--worst", "0").count("<article>") == 0
    with pytest.raises(SystemExit, match="--worst is -1"):
        main([str(folder), "--worst", "-1"])
    with monkeypatch.context() as patch:
        patch.setattr("audiollm.evaluation.report.MAX_HTML_MB", (len(text.encode()) - 5_000) / 1e6)
        fewer = page()
    assert 0 < fewer.count("<audio") < 3 and len(fewer) < len(text) - 5_000
    assert "No player: the page would be larger than" in fewer

    data = write_rows(recordings / "data.json", example_rows(["0.wav", "2.wav"])[:2])
    options = f"--model {tiny_checkpoint} --data_path {data} --systems model,wrong_audio --max_new_tokens 4"
    evaluate([*options.split(), "--output_dir", str(tmp_path / "evaluated")])
    assert f"Shown by {tmp_path / 'evaluated' / 'report.html'}" in capsys.readouterr().out
    evaluated = Page(tmp_path / "evaluated" / "report.html")
    assert len(evaluated.attribute("src")) == 2 and TITLES["wrong_audio"] in plain(evaluated.html)

    recordings.rename(recordings.with_name("moved"))
    text = page()
    assert "<audio" not in text and "4 of 4 examples have no player: the recordings are not on this machine" in text


def test_little_and_nothing(tmp_path) -> None:
    """One system, no score at all, a task that nobody has answered, and folders that are not scored."""
    with pytest.raises(RunFolderError, match=r"has no scores\.json; run `audiollm evaluate score"):
        write_report(tmp_path)
    rows = [row("1", "...", "x"), row("2", "", None, error="broken")]
    folder = write_run(tmp_path / "run", {"$mine$": {"whisper": rows}, "unanswered": {}})
    scores = score_run(folder, samples=20)
    page = Page(write_report(folder).page)
    assert page.cells("$mine$", "whisper", "Word error") == ["–"]
    assert page.cells("$mine$", "whisper", "left out, because their reference is empty") == ["2"]
    assert "No system has answered" in page.text["unanswered"] and "this model" not in plain(page.html)
    (folder / "scores.json").write_text(json.dumps({**scores, "tasks": {}, "averages": {}}), encoding="utf-8")
    assert "Nothing was scored" in write_report(folder).page.read_text(encoding="utf-8")
    (folder / "scores.json").write_text("{", encoding="utf-8")
    with pytest.raises(RunFolderError, match=r"scores\.json is no JSON"):
        write_report(folder)


def test_long_texts_are_cut_and_say_so(tmp_path) -> None:
    words = ["".join("abcdefghij"[int(digit)] for digit in f"{number:04}") for number in range(1500)]
    said = " ".join(words)
    written = " ".join(["wrong" if number % 100 == 0 else word for number, word in enumerate(words)])
    folder = write_run(tmp_path / "run", {"long": {"model": [row("1", said, written), row("2", said, "")]}})
    score_run(folder, samples=20)
    text = write_report(folder).page.read_text(encoding="utf-8")
    assert "… 89 right words …" in text and "… 1100 more words …" in text
    assert "more characters)" in text and len(text) < 200_000

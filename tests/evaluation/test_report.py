"""The report of an evaluation: every figure is in it, nothing written in it is markup, nothing is fetched, all is said."""

import base64
import io
import json
import re
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
from audiollm.publishing.score_table import SYSTEMS as TITLES
from evaluation_runs import row, write_lines, write_run
from report_pages import Page
from small_corpus import example_rows, write_recordings, write_rows

HOSTILE = "<script>alert(1)</script> & \"quoted\" 'x' | `code` </style>"
METRICS = {"word_error": "Word error", "plain_word_error": "Word error as written", "bleu": "BLEU", "rtfx": "Speed"}
TASKS = {
    "prompts": {"language": "en", "source": {"title": HOSTILE, "benchmark": "prompts"}, "left_out": {"deaf": HOSTILE}},
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


def spoken(references: dict[str, str], outputs: list[str]) -> list[dict]:
    lengths = (0.5, 3.0, 40.0, 7.0)
    return [
        row(one, reference, output, duration_s=seconds)
        for (one, reference), output, seconds in zip(references.items(), outputs, lengths)
    ]


def outputs_of(prompts: list[dict]) -> dict[str, dict[str, list[dict]]]:
    """Answers of every system, and of every kind of task."""
    texts = {each["id"]: each["text"] for each in prompts}
    heard = list(texts.values())
    rows = spoken(texts, [heard[0], f"{HOSTILE} {heard[1]}", "", heard[3] + " and more"])
    rows[0]["extra"] = {"category": "one <b>"}
    rows[1] |= {"extra": {"category": "two"}, "finish": "length"}
    rows[2] |= {"extra": {"category": "two"}, "output": None, "finish": "error", "error": HOSTILE}
    rows += [row("empty", "...", "x"), row(HOSTILE, "star key", f"{HOSTILE} <img src=http://evil.example/x>")]
    asked = {"category": "age", "question": f"Who? {HOSTILE}", "choices": {"A": "x"}}
    choices = [row("1", "A", "A.", extra={"category": "age"}), row("2", "B", "no idea", extra=asked)]
    retention = {"tokens": 2, "negative_log_likelihood": 1.0, "same_logits_as_base": True}
    controls = {
        "wrong_audio": spoken(texts, [heard[1], heard[0], heard[3], heard[2]]),
        "whisper": spoken(texts, heard),
    }
    return {
        "prompts": {"model": rows, **controls},
        "librispeech_clean": {
            "model": spoken(texts, [heard[0], "white paper", heard[2], heard[3]]),
            "cascade": spoken(texts, heard),
        },
        "spelled": {"model": [row("1", "今天天气好", "今天 天好了"), row("2", "好", "好")]},
        "translation": {"model": [row("1", "Guten Tag, wie geht es dir?", "Guten Tag, wie geht es?")]},
        "choice": {
            "model": [*choices, row("3", "B", "C", extra={"category": "mood"})],
            "deaf": [row("1", "A", "B"), row("2", "B", "B"), row("3", "B", "B")],
        },
        "chat": {"model": [row("1", [], "Hello."), row("2", [], "x")]},
        "summary": {"model": [row("1", "a dog barks", "a dog"), row("2", "rain falls", "rain falls")]},
        "silence": {"model": [row("1", [], "Thank you."), row("2", [], "")], "whisper": [row("1", [], "")]},
        "text": {"model": [row("1", [], "x", duration_s=0.0, extra=retention)]},
    }


@pytest.fixture(scope="module")
def prompts() -> list[dict]:
    held = list(load_studio_prompts("test"))
    return [each for each in held if len(each["text"].split()) > 3][:4]


class Report(NamedTuple):
    """A report as it is written, as it is read, and what it was made of."""

    html: str
    page: Page
    figures: dict
    scores: dict


@pytest.fixture(scope="module")
def report(prompts, tmp_path_factory) -> Report:
    folder = write_run(tmp_path_factory.mktemp("run") / "runs", outputs_of(prompts), TASKS, **RECORD)
    judgements = folder / "judgements"
    write_lines(judgements / "chat" / "model.jsonl", [{"id": "1", "order": "x", "scores": {"answer": 4.5}}])
    rubric = {"prompt": "x", "temperature": 0.5, "samples": 3}
    judge = {"model": "judge-of-marks", "url": "x", "voicebench_open": rubric}
    (judgements / "judge.json").write_text(json.dumps(judge), encoding="utf-8")
    scores = score_run(folder, samples=50)
    html = write_report(folder).page.read_text(encoding="utf-8")
    return Report(html, Page(html), gather(folder, worst=10), scores)


def shown(figure: dict) -> str:
    """A figure as a reader should see it: three digits that count, fractions as percent, the interval in brackets."""

    def digits(value: float) -> str:
        scaled = 100 * value if figure["unit"] == "fraction" else value
        return f"{scaled:,.0f}" if abs(scaled) >= 100 else f"{scaled:.3g}"

    sign = " %" if figure["unit"] == "fraction" else ""
    interval = "" if figure["low"] is None else f" [{digits(figure['low'])}, {digits(figure['high'])}]"
    return f"{digits(figure['value'])}{sign}{interval}"


def test_every_figure_is_in_the_page(report) -> None:
    count = 0
    for task, entry in report.scores["tasks"].items():
        for system, scored in entry["systems"].items():
            for metric, figure in scored["metrics"].items():
                cells = [
                    cell for cells in report.page.rows[task] if cells and cells[0] == TITLES[system] for cell in cells
                ]
                expected = "–" if figure["value"] is None else shown(figure)
                assert expected in cells, (task, system, metric, expected, cells)
                if metric in METRICS:
                    assert expected in report.page.cells(task, TITLES[system], METRICS[metric])
                count += 1
    assert set(report.scores["tasks"]) == set(TASKS) and count > 35


def test_averages_counts_and_settings_are_said(report) -> None:
    average = report.scores["averages"]["open_asr"]["model"]["word_error"]
    (cells,) = [cells for cells in report.page.rows["In short"] if cells[0].startswith("mean of open_asr Word error;")]
    assert cells[1] == shown(average) and "NOT the leaderboard's average: without ami" in cells[0]
    reasons = {
        **{"items asked": "6", "items that count": "5", "left out, because their reference is empty": "1"},
        **{"failed, counted as empty answers": "1", "cut off at the longest answer allowed": "1", "audio": "54.5 s"},
    }
    for title, count in reasons.items():
        assert report.page.cells("prompts", "this model", title) == [count], title
    assert report.page.cells("choice", "this model", "answered in a form that could not be read") == ["1"]
    assert report.page.cells("chat", "this model", "without a judge's mark") == ["1"]
    made = report.page.text["How it was made"]
    assert "judge-of-marks; voicebench_open: 3 samples at temperature 0.5" in made
    for said in ("bfloat16", "torch 9.9", "f1ngerprint", "50 samples, seed 0", "normaliser:leaderboard|aligner:kaldi"):
        assert said in made


def test_where_the_errors_are(report) -> None:
    task = report.figures["tasks"]["prompts"]
    assert list(task["by_category"]) == ["one <b>", "two"]
    assert {"said": "", "written": "and", "count": 1} in task["confusions"]["insertion"]
    assert task["differences"]["wrong_audio"]["value"] > 0 > task["differences"]["whisper"]["value"]
    text = report.page.text["prompts"]
    assert TITLES["wrong_audio"] in text and task["verdicts"][0] in text
    assert "Most frequent mistakes of the model" in text
    age = report.figures["tasks"]["choice"]["by_category"]["age"]["model"]
    assert (age["value"], age["scored"]) == (1.0, 1)  # of those that could be read


def test_what_figures_mean_is_said_and_not_overdone(tmp_path) -> None:
    right, half, wrong = ([row(str(n), "red blue", said) for n in range(9)] for said in ("red blue", "red", ""))

    def said(**systems) -> str:
        folder = write_run(tmp_path / str(len(list(tmp_path.iterdir()))), {"mine": systems})
        score_run(folder, samples=200)
        return " ".join(gather(folder, worst=0)["tasks"]["mine"]["verdicts"])

    heard = said(model=right, wrong_audio=wrong)
    assert "given the wrong recordings 100 %: the model answers by what it hears" in heard
    assert "NOT clearly better than with wrong recordings" in said(model=half, wrong_audio=half)
    assert "Whisper's own decoder 50 %: the model is worse" in said(model=wrong, whisper=half)
    assert "Whisper's transcript read by the base 100 %: the model is better" in said(model=half, cascade=wrong)
    assert "the base without the recording 50 %: no clear difference" in said(model=half, deaf=half)


def test_nothing_written_is_markup_and_nothing_is_fetched(report) -> None:
    attributes = report.page.attributes
    assert (
        "script" not in report.page.tags
        and "img" not in report.page.tags
        and not any(name.startswith("on") for name in attributes)
    )
    assert not re.search(r"<\s*(script|iframe|object|link|img)", report.html, re.IGNORECASE)
    assert report.html.count("</style>") == 1
    for section in ("", "prompts", "choice"):  # the model's name, outputs, a question
        assert HOSTILE in report.page.text[section]
    assert "<img src=http://evil.example/x>" in report.page.all_text and "one <b>" in report.page.all_text
    assert all(source.startswith("data:audio/mpeg;base64,") for source in attributes["src"])
    assert all(link.startswith("#") and link[1:] in attributes["id"] for link in attributes["href"])
    css = " ".join(re.findall(r"<style[^>]*>(.*?)</style>", report.html, re.DOTALL))
    assert "@import" not in css and "http" not in css and not re.search(r"url\((?!#)", css)
    assert report.html.count('class="bar"') >= 20


def test_worst_examples_are_aligned_and_marked(report) -> None:
    worst = report.figures["tasks"]["prompts"]["worst"]
    assert worst[0]["errors"]["count"] == max(each["errors"]["count"] for each in worst)
    assert len(worst) == 4  # one is right, one does not count
    for each in worst:
        kinds = [pair["kind"] for pair in each["alignment"]]
        assert sum(kind not in ("equal", "gap") for kind in kinds) == each["errors"]["count"]
    marked = report.page.text["prompts"]
    assert "missing" in marked and "added" in marked and "wrong" in marked  # in words, not by colour alone
    assert "failed" in marked and "cut off at the longest answer allowed" in marked
    found = {task: [each["id"] for each in entry["worst"]] for task, entry in report.figures["tasks"].items()}
    assert (found["choice"], found["silence"], found["text"]) == (["2", "3"], ["1"], [])
    assert (
        "no letter could be read" in report.page.text["choice"] and "there are no examples" in report.page.text["text"]
    )
    assert [each["score"] for each in report.figures["tasks"]["summary"]["worst"]] == pytest.approx([0.8, 1.0])
    spelled = report.figures["tasks"]["spelled"]["worst"][0]["alignment"]
    assert "".join(pair["said"] for pair in spelled) == "今天天气好"


def test_recordings_are_found_and_can_be_played(prompts, report) -> None:
    """Those of a task that ships with the package, of which only ids are known."""
    sources = report.page.attributes["src"]
    heard = [soundfile.read(io.BytesIO(base64.b64decode(source.partition(",")[2]))) for source in sources]
    lengths = [each["duration_s"] for each in prompts[1:]]
    found = sorted(len(samples) / rate for samples, rate in heard)
    assert found == pytest.approx(sorted(lengths), abs=0.15)
    assert all(rate == 16_000 and np.abs(samples).max() > 0.01 for samples, rate in heard)
    assert "1 of 4 examples have no player: " in report.page.text["prompts"]
    assert "the recordings are not on this machine" in report.page.text["librispeech_clean"]


@pytest.fixture
def own(tmp_path) -> tuple[Path, Path]:
    """A run on one's own recordings, one of which is damaged and one long, and its recordings' folder."""
    recordings = tmp_path / "recordings"
    names = write_recordings(recordings, 3)
    (recordings / names[1]).write_bytes(b"no audio")
    soundfile.write(recordings / "long.wav", np.full(16_000 * 70, 0.1, np.float32), 16_000)
    rows = [
        row(name, "press one two", "x" * (number + 1), audio=[str(recordings / name)])
        for number, name in enumerate([*names, "long.wav"])
    ]
    folder = write_run(tmp_path / "run", {"local": {"model": rows, "wrong_audio": rows}})
    score_run(folder, samples=20)
    return folder, recordings


def test_players_of_own_recordings(own, capsys) -> None:
    folder, recordings = own

    def page(*options: str) -> str:
        main([str(folder), *options])
        return (folder / "report.html").read_text(encoding="utf-8")

    text, said = page(), capsys.readouterr().out
    assert "1 players: the recording cannot be read" in said and "3 players." in said
    assert str(recordings) not in text and text.count("<article>") == 4
    assert text.count("<audio") == 3 and "The first 1.0 min of it" in text
    assert "No player: the recording cannot be read" in text
    assert page("--worst", "1").count("<article>") == 1 and page("--worst", "0").count("<article>") == 0
    with pytest.raises(SystemExit, match="--worst is -1"):
        main([str(folder), "--worst", "-1"])
    recordings.rename(recordings.with_name("moved"))
    text = page()
    assert "<audio" not in text and "4 of 4 examples have no player: the recordings are not on this machine" in text


def test_the_page_has_a_bound(own, monkeypatch) -> None:
    folder, _ = own
    whole = write_report(folder)
    size = whole.page.stat().st_size
    monkeypatch.setattr("audiollm.evaluation.report.MAX_HTML_MB", (size - 5_000) / 1e6)
    fewer = write_report(folder)
    assert whole.players == 3 and 0 < fewer.players < 3 and fewer.page.stat().st_size <= size - 5_000
    assert "No player: the page would be larger than" in fewer.page.read_text(encoding="utf-8")
    monkeypatch.setattr("audiollm.evaluation.report.MAX_HTML_MB", 0.01)
    assert write_report(folder).players == 0


def test_little_and_nothing(tmp_path) -> None:
    """One system, one task, no score at all, a task that nobody has answered, and folders that are not scored."""
    with pytest.raises(RunFolderError, match=r"has no scores\.json; run `audiollm evaluate score"):
        write_report(tmp_path)
    rows = [row("1", "...", "x"), row("2", "", None, error="broken")]
    folder = write_run(tmp_path / "run", {"$mine$": {"whisper": rows}, "unanswered": {}})
    score_run(folder, samples=20)
    page = Page(write_report(folder).page.read_text(encoding="utf-8"))
    assert page.cells("$mine$", TITLES["whisper"], "Word error") == ["–"]
    assert "No system has answered" in page.text["unanswered"] and "this model" not in page.all_text
    assert page.cells("$mine$", TITLES["whisper"], "left out, because their reference is empty") == ["2"]
    scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    (folder / "scores.json").write_text(json.dumps({**scores, "tasks": {}, "averages": {}}), encoding="utf-8")
    assert "Nothing was scored" in write_report(folder).page.read_text(encoding="utf-8")
    (folder / "scores.json").write_text("{", encoding="utf-8")
    with pytest.raises(RunFolderError, match=r"scores\.json is no JSON"):
        write_report(folder)


def test_long_texts_are_cut_and_say_so(tmp_path) -> None:
    words = ["".join("abcdefghij"[int(digit)] for digit in f"{number:04}") for number in range(1500)]
    said = " ".join(words)
    written = " ".join(["wrong" if number % 100 == 0 else word for number, word in enumerate(words)])
    folder = write_run(tmp_path / "run", {"$_^$": {"model": [row("1", said, written), row("2", said, "")]}})
    score_run(folder, samples=20)
    text = write_report(folder).page.read_text(encoding="utf-8")
    assert "… 89 right words …" in text and "… 1100 more words …" in text
    assert "more characters)" in text and len(text) < 200_000


def test_scoring_and_evaluating_end_with_a_report(own, checkpoint, tmp_path, capsys) -> None:
    folder, recordings = own
    score([str(folder), "--samples", "20"])
    assert "Shown by" in capsys.readouterr().out
    assert "20 samples" in (folder / "report.html").read_text(encoding="utf-8")
    data = write_rows(recordings / "data.json", example_rows(["0.wav", "2.wav"])[:2])
    options = f"--model {checkpoint} --data_path {data} --systems model,wrong_audio --max_new_tokens 4"
    evaluate([*options.split(), "--output_dir", str(tmp_path / "evaluated")])
    assert f"Shown by {tmp_path / 'evaluated' / 'report.html'}" in capsys.readouterr().out
    page = Page((tmp_path / "evaluated" / "report.html").read_text(encoding="utf-8"))
    assert len(page.attributes["src"]) == 2 and TITLES["wrong_audio"] in page.all_text

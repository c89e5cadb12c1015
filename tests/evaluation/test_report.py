"""The report of an evaluation: every figure is in it, nothing written in it is markup, nothing is fetched, all is said."""

import base64
import io
import json
import re
from pathlib import Path

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
from report_pages import Page
from run_folders import row, write_run
from small_corpus import example_rows, write_recordings, write_rows

HOSTILE = "<script>alert(1)</script> & \"quoted\" 'x' | `code` </style>"
SYSTEMS = ("model", "wrong_audio", "whisper", "cascade", "deaf")
TASKS = {
    "prompts": {"language": "en", "source": {"title": HOSTILE, "benchmark": "prompts"}, "left_out": {"deaf": HOSTILE}},
    "librispeech_clean": {"group": "open_asr", "source": {"title": "LibriSpeech", "hub": "org/name"}},
    "spelled": {"metrics": ["character_error"], "language": "zh", "normaliser": "characters"},
    "translation": {"metrics": ["bleu"], "language": "de", "kind": "translation"},
    "choice": {"metrics": ["choice_accuracy"], "kind": "choice", "source": {"parsing": "air_bench"}},
    "chat": {"metrics": ["judge_score"], "kind": "chat"},
    "summary": {"metrics": ["rouge"], "kind": "summary"},
    "silence": {"metrics": ["no_speech_rate"], "kind": "no_speech"},
    "text": {"metrics": ["text_retention"], "kind": "text_retention"},
}


def spoken(references: dict[str, str], outputs: list[str], **fields) -> list[dict]:
    lengths = (0.5, 3.0, 40.0, 7.0)
    return [
        row(one, reference, output, duration_s=seconds, **fields)
        for (one, reference), output, seconds in zip(references.items(), outputs, lengths)
    ]


def outputs_of(prompts: list[dict]) -> dict[str, dict[str, list[dict]]]:
    """Answers of every system, and of every kind of task."""
    texts = {each["id"]: each["text"] for each in prompts}
    heard = list(texts.values())
    wrong = [heard[1], heard[0], heard[3], heard[2]]
    model = [heard[0], f"{HOSTILE} {heard[1]}", "", heard[3] + " and more"]
    rows = spoken(texts, model)
    rows[0]["extra"] = {"category": "one <b>"}
    rows[1] |= {"extra": {"category": "two"}, "finish": "length"}
    rows[2] |= {"extra": {"category": "two"}, "output": None, "finish": "error", "error": HOSTILE}
    rows += [row("empty", "...", "x"), row(HOSTILE, "star key", f"{HOSTILE} <img src=http://evil.example/x>")]
    retention = {"tokens": 2, "negative_log_likelihood": 1.0, "same_logits_as_base": True}
    return {
        "prompts": {"model": rows, "wrong_audio": spoken(texts, wrong), "whisper": spoken(texts, heard)},
        "librispeech_clean": {
            "model": spoken(texts, [heard[0], "white paper", heard[2], heard[3]]),
            "cascade": spoken(texts, heard),
        },
        "spelled": {"model": [row("1", "今天天气好", "今天 天好了"), row("2", "好", "好")]},
        "translation": {"model": [row("1", "Guten Tag, wie geht es dir?", "Guten Tag, wie geht es?")]},
        "choice": {
            "model": [
                row("1", "A", "A.", extra={"category": "age"}),
                row(
                    "2",
                    "B",
                    "no idea",
                    extra={"category": "age", "question": f"Who? {HOSTILE}", "choices": {"A": "x"}},
                ),
                row("3", "B", "C", extra={"category": "mood"}),
            ],
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


@pytest.fixture(scope="module")
def folder(prompts, tmp_path_factory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("run") / "runs", outputs_of(prompts), TASKS)
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    record |= {
        **{"model": HOSTILE, "bases": {"audio": "a/whisper", "text": "a/llama"}, "versions": {"torch": "9.9"}},
        **{"dtype": "bfloat16", "settings": {"batch_size": 7, "weights": "f1ngerprint"}},
        "arguments": {
            "tasks": ["prompts"],
            "limit": 5,
            "data_path": ["prompts=/home/me/copy"],
            "judge_key_variable": "K",
        },
    }
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    verdicts = folder / "judgements" / "chat" / "model.jsonl"
    verdicts.parent.mkdir(parents=True)
    verdicts.write_text(json.dumps({"id": "1", "order": "x", "scores": {"answer": 4.5}}) + "\n", encoding="utf-8")
    judge = {
        "model": "judge-of-marks",
        "url": "x",
        "voicebench_open": {"prompt": "x", "temperature": 0.5, "samples": 3},
    }
    (verdicts.parents[1] / "judge.json").write_text(json.dumps(judge), encoding="utf-8")
    score_run(folder, samples=50)
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def page(folder) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def figures(folder) -> dict:
    return json.loads((folder / "figures.json").read_text(encoding="utf-8"))


def shown(figure: dict) -> str:
    """A figure as a reader should see it: three digits that count, fractions as percent, the interval in brackets."""

    def digits(value: float) -> str:
        scaled = 100 * value if figure["unit"] == "fraction" else value
        return f"{scaled:,.0f}" if abs(scaled) >= 100 else f"{scaled:.3g}"

    sign = " %" if figure["unit"] == "fraction" else ""
    interval = "" if figure["low"] is None else f" [{digits(figure['low'])}, {digits(figure['high'])}]"
    return f"{digits(figure['value'])}{sign}{interval}"


def figures_of(folder: Path) -> list[tuple[str, str, str, dict]]:
    """Task, system and metric of every figure of the scores."""
    scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    return [
        (task, system, metric, figure)
        for task, entry in scores["tasks"].items()
        for system, scored in entry["systems"].items()
        for metric, figure in scored["metrics"].items()
    ]


def columns(rows: list[list[str]], first: str, column: str) -> list[str]:
    """Cells of a column in rows that begin with a text, of every table whose head has that column."""
    found, head = [], []
    for cells in rows:
        if cells and cells[0] in ("System", "Task", "task", "system"):
            head = cells
        elif cells and cells[0].startswith(first) and column in head and len(cells) == len(head):
            found.append(cells[head.index(column)])
    return found


METRICS = {"word_error": "Word error", "plain_word_error": "Word error as written", "bleu": "BLEU", "rtfx": "Speed"}


def test_every_figure_is_in_the_page(folder, page) -> None:
    found = figures_of(folder)
    assert len({task for task, *_ in found}) == len(TASKS) and len(found) > 35
    for task, system, metric, figure in found:
        cells = [cell for cells in page.sections[task].rows if cells and cells[0] == TITLES[system] for cell in cells]
        expected = "–" if figure["value"] is None else shown(figure)
        assert expected in cells, (task, system, metric, expected, cells)
        if metric in METRICS:
            assert expected in columns(page.sections[task].rows, TITLES[system], METRICS[metric])


def test_averages_counts_and_settings_are_said(folder, page) -> None:
    scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    average = scores["averages"]["open_asr"]["model"]["word_error"]
    (cells,) = [
        cells for cells in page.sections["In short"].rows if cells[0].startswith("mean of open_asr Word error;")
    ]
    assert cells[1] == shown(average) and "NOT the leaderboard's average: without ami" in cells[0]
    counted = page.sections["prompts"].rows
    reasons = {
        **{"items asked": "6", "items that count": "5", "left out, because their reference is empty": "1"},
        **{"failed, counted as empty answers": "1", "cut off at the longest answer allowed": "1", "audio": "54.5 s"},
    }
    for title, count in reasons.items():
        assert columns(counted, "this model", title) == [count], title
    assert columns(page.sections["choice"].rows, "this model", "answered in a form that could not be read") == ["1"]
    assert columns(page.sections["chat"].rows, "this model", "without a judge's mark") == ["1"]
    assert "no item was left out, failed or was cut off" in page.sections["summary"].text
    made = page.sections["How it was made"].text
    assert "judge-of-marks; voicebench_open: 3 samples at temperature 0.5" in made
    for said in ("bfloat16", "torch 9.9", "f1ngerprint", "50 samples, seed 0", "normaliser:leaderboard|aligner:kaldi"):
        assert said in made
    command = re.search(r"audiollm evaluate .*", made)[0]
    assert f"--tasks={','.join(TASKS)}" in command and "--limit 5" in command and "prompts=copy" in command
    assert "K" not in command.split("--output_dir")[0].replace(HOSTILE, "").split()
    assert "6 items" not in page.sections["In short"].rows[1][0] and "5 items" in page.sections["In short"].rows[1][0]


def test_where_the_errors_are(figures, page) -> None:
    task = figures["tasks"]["prompts"]
    assert [each["name"] for each in task["by_duration"]] == [
        "under 1 s",
        "2 to 5 s",
        "5 to 10 s",
        "30 to 60 s",
    ]
    assert task["by_duration"][0]["systems"]["model"]["value"] == 0.0
    assert task["by_duration"][3]["systems"]["model"]["value"] == 1.0  # the failed one
    assert [each["name"] for each in task["by_category"]] == ["one <b>", "two"]
    assert task["error_kinds"]["whisper"] == {
        **{"substitutions": 0, "deletions": 0, "insertions": 0},
        "reference": task["error_kinds"]["wrong_audio"]["reference"],
    }
    assert {"said": "", "written": "and", "count": 1} in task["confusions"]["insertion"]
    assert task["differences"]["wrong_audio"]["value"] > 0 > task["differences"]["whisper"]["value"]
    text = page.sections["prompts"].text
    assert TITLES["wrong_audio"] in page.sections["prompts"].text and task["verdicts"][0] in text
    assert "Most frequent mistakes of the model" in text and "By length of the recording" in text
    categories = {each["name"]: each["systems"]["model"] for each in figures["tasks"]["choice"]["by_category"]}
    assert categories["age"] == {"value": 1.0, "low": None, "high": None, "items": 1}  # of those that could be read
    assert "kaldialign's" in page.sections["librispeech_clean"].text and "kaldialign's" not in text


def test_what_figures_mean_is_said_and_not_overdone(tmp_path) -> None:
    right, half, wrong = ([row(str(n), "red blue", said) for n in range(9)] for said in ("red blue", "red", ""))

    def said(**systems) -> str:
        folder = write_run(tmp_path / str(len(list(tmp_path.iterdir()))), {"mine": systems})
        score_run(folder, samples=200)
        (task,) = gather(folder, worst=0)["tasks"].values()
        return " ".join(task["verdicts"])

    assert "given the wrong recordings 100 %: the model answers by what it hears" in said(
        model=right, wrong_audio=wrong
    )
    assert "NOT clearly better than with wrong recordings" in said(model=half, wrong_audio=half)
    assert "NOT clearly better" in said(model=wrong, wrong_audio=right)
    assert "Whisper's own decoder 50 %: the model is worse" in said(model=wrong, whisper=half)
    assert "Whisper's transcript read by the base 100 %: the model is better" in said(model=half, cascade=wrong)
    assert "the base without the recording 50 %: no clear difference" in said(model=half, deaf=half)


def test_nothing_written_is_markup(folder, page) -> None:
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert "script" not in page.tags and "img" not in page.tags and not page.handlers
    assert not re.search(r"<\s*(script|iframe|object|link|img)", html, re.IGNORECASE)
    assert html.count("</style>") == 1
    for section in ("", "prompts", "choice"):  # the model's name, outputs, a question
        assert HOSTILE in page.sections[section].text
    assert "<img src=http://evil.example/x>" in page.text and "one <b>" in page.text


def test_the_page_needs_nothing_from_elsewhere(folder, page) -> None:
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert page.sources and all(source.startswith("data:audio/mpeg;base64,") for source in page.sources)
    assert page.links and all(link.startswith("#") for link in page.links)
    assert {link[1:] for link in page.links} <= set(page.ids)
    css = " ".join(re.findall(r"<style[^>]*>(.*?)</style>", html, re.DOTALL))
    assert "@import" not in css and "http" not in css and not re.search(r"url\((?!#)", css)
    assert html.count('class="bar"') >= 20
    assert "prefers-color-scheme: dark" in css and "@media print" in css and "max-width: 36rem" in css
    assert 'name="viewport"' in html


def test_worst_examples_are_aligned_and_marked(figures, page) -> None:
    worst = figures["tasks"]["prompts"]["worst"]
    assert worst[0]["errors"]["count"] == max(each["errors"]["count"] for each in worst)
    assert len(worst) == 4  # one is right, one does not count
    for each in worst:
        kinds = [pair["kind"] for pair in each["alignment"]]
        assert sum(kind not in ("equal", "gap") for kind in kinds) == each["errors"]["count"]
    marked = page.sections["prompts"].text
    assert "missing" in marked and "added" in marked and "wrong" in marked  # in words, not by colour alone
    assert "failed" in marked and "cut off at the longest answer allowed" in marked
    assert [each["id"] for each in figures["tasks"]["choice"]["worst"]] == ["2", "3"]
    assert "no letter could be read" in page.sections["choice"].text
    assert [each["id"] for each in figures["tasks"]["silence"]["worst"]] == ["1"]
    assert [each["score"] for each in figures["tasks"]["summary"]["worst"]] == pytest.approx([0.8, 1.0])
    spelled = figures["tasks"]["spelled"]["worst"][0]["alignment"]
    assert "".join(pair["said"] for pair in spelled) == "今天天气好"
    assert not figures["tasks"]["text"]["worst"] and "there are no examples" in page.sections["text"].text


def test_recordings_are_found_and_can_be_played(prompts, page) -> None:
    """Those of a task that ships with the package, of which only ids are known."""
    heard = [soundfile.read(io.BytesIO(base64.b64decode(source.partition(",")[2]))) for source in page.sources]
    lengths = {round(each["duration_s"], 1) for each in prompts[1:]}
    assert {round(len(samples) / rate, 1) for samples, rate in heard} <= lengths | {length + 0.1 for length in lengths}
    assert all(rate == 16_000 and np.abs(samples).max() > 0.01 for samples, rate in heard) and len(heard) == 3
    assert "examples have no player: the items are made of several" in page.sections["prompts"].text.replace(
        "1 of 4 ", ""
    )
    assert "the recordings are not on this machine" in page.sections["librispeech_clean"].text
    assert "There is no task 'spelled'" in page.sections["spelled"].text


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
    main([str(folder)])
    assert "1 players: the recording cannot be read" in (said := capsys.readouterr().out) and "3 players." in said
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert str(recordings) not in text
    assert (
        text.count("<audio") == 3
        and "The first 1.0 min of it" in text
        and "No player: the recording cannot be read" in text
    )
    recordings.rename(recordings.with_name("moved"))
    main([str(folder)])
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "<audio" not in text and "4 of 4 examples have no player: the recordings are not on this machine" in text
    assert "4 of 4 examples have no player" in capsys.readouterr().out


def test_the_page_has_a_bound(own, monkeypatch) -> None:
    folder, _ = own
    whole = write_report(folder)
    size = whole.page.stat().st_size
    monkeypatch.setattr("audiollm.evaluation.report.MAX_HTML_MB", (size - 5_000) / 1e6)
    fewer = write_report(folder)
    assert whole.players == 3 and 0 < fewer.players < 3 and fewer.page.stat().st_size <= size - 5_000
    text = fewer.page.read_text(encoding="utf-8")
    assert "No player: the page would be larger than" in text and any("larger than" in each for each in fewer.left_out)
    monkeypatch.setattr("audiollm.evaluation.report.MAX_HTML_MB", 0.01)
    with pytest.raises(ValueError, match=r"MB without any player, more than 0\.01"):
        write_report(folder)
    assert fewer.page.read_text(encoding="utf-8") == text


def test_options(own, capsys) -> None:
    folder, _ = own

    def page(*options: str) -> str:
        main([str(folder), *options])
        return (folder / "report.html").read_text(encoding="utf-8")

    assert page("--worst", "1").count("<article>") == 1 and page("--worst", "0").count("<article>") == 0
    assert page().count("<article>") == 4
    with pytest.raises(SystemExit, match="--worst is -1"):
        main([str(folder), "--worst", "-1"])


def test_little_and_nothing(tmp_path) -> None:
    """One system, one task, no score at all, a task that nobody has answered, and folders that are not scored."""
    with pytest.raises(RunFolderError, match=r"has no scores\.json; run `audiollm evaluate score"):
        write_report(tmp_path)
    rows = [row("1", "...", "x"), row("2", "", None, error="broken")]
    folder = write_run(tmp_path / "run", {"$mine$": {"whisper": rows}, "unanswered": {}})
    score_run(folder, samples=20)
    written = write_report(folder)
    page = Page(written.page.read_text(encoding="utf-8"))
    assert columns(page.sections["$mine$"].rows, TITLES["whisper"], "Word error") == ["–"]
    assert "No system has answered" in page.sections["unanswered"].text and "this model" not in page.text
    assert columns(page.sections["$mine$"].rows, TITLES["whisper"], "left out, because their reference is empty") == [
        "2"
    ]
    scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    (folder / "scores.json").write_text(json.dumps({**scores, "tasks": {}, "averages": {}}), encoding="utf-8")
    assert "Nothing was scored" in Page(write_report(folder).page.read_text(encoding="utf-8")).text
    (folder / "scores.json").write_text("{", encoding="utf-8")
    with pytest.raises(RunFolderError, match=r"scores\.json is no JSON"):
        write_report(folder)


def test_long_texts_are_cut_and_say_so(tmp_path) -> None:
    words = ["".join("abcdefghij"[int(digit)] for digit in f"{number:04}") for number in range(3000)]
    said = " ".join(words)
    written = " ".join(["wrong" if number % 100 == 0 else word for number, word in enumerate(words)])
    folder = write_run(tmp_path / "run", {"$_^$": {"model": [row("1", said, written), row("2", said, "")]}})
    score_run(folder, samples=20)
    report = write_report(folder)
    page = Page(report.page.read_text(encoding="utf-8"))
    assert "… 89 right words …" in page.text and "… 2600 more words …" in page.text
    assert "more characters)" in page.text and report.page.stat().st_size < 200_000


def test_scoring_and_evaluating_end_with_a_report(own, tiny_model, tiny_processor, tmp_path, capsys) -> None:
    folder, recordings = own
    score([str(folder), "--no_report", "--samples", "20"])
    assert not (folder / "report.html").exists()
    score([str(folder), "--samples", "20"])
    assert "Shown by" in capsys.readouterr().out and "20 samples" in (folder / "report.html").read_text(
        encoding="utf-8"
    )
    tiny_model.save_pretrained(tmp_path / "model")
    tiny_processor.save_pretrained(tmp_path / "model")
    data = write_rows(recordings / "data.json", example_rows(["0.wav", "2.wav"])[:2])
    given = [
        "--model",
        tmp_path / "model",
        "--data_path",
        data,
        "--systems",
        "model,wrong_audio",
        "--max_new_tokens",
        "4",
    ]
    evaluate([*map(str, given), "--output_dir", str(tmp_path / "evaluated")])
    assert f"Shown by {tmp_path / 'evaluated' / 'report.html'}" in capsys.readouterr().out
    page = Page((tmp_path / "evaluated" / "report.html").read_text(encoding="utf-8"))
    assert len(page.sources) == 2 and TITLES["wrong_audio"] in page.text
    assert "Without the" not in page.text

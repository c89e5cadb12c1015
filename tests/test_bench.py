"""`make bench`: its table of measures is whole, targets are judged rightly, and a bench that was interrupted goes on."""

import ast
import dataclasses
import json
import os
import shlex
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import bench
import bench_report
import bench_table
from bench_table import Measure, TableError, judge, lines_of, load_measures, value_at

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
MEASURES = load_measures()
RESULTS = {
    "summary": [
        {"side": "ours", "shape": "short", "seconds": 2.0, "mib": 10},
        {"side": "peer", "shape": "short", "seconds": 30.0, "mib": 40},
        {"side": "ours", "shape": "long", "seconds": 8.0, "mib": 10},
        {"side": "peer", "shape": "long", "seconds": 4.0, "mib": 20},
    ]
}
ROW = {
    "figure": "step, {shape}",
    "unit": "s",
    "each": {"shape": ["short", "long"]},
    "ours": "summary[side=ours&shape={shape}].seconds",
    "peers": {"Peer": "summary[side=peer&shape={shape}].seconds", "Absent": "summary[side=other].seconds"},
    "targets": [
        {"times_better": 10, "issue": 2, "over": ["Peer"]},
        {"times_better": 20, "issue": 3, "where": {"shape": "short"}, "why": "It is hard."},
    ],
}


def options_of(script: Path) -> dict[str, dict[str, ast.expr]]:
    """Options that a script's `add_argument` calls name, with what else they say."""
    calls = [node for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    return {
        call.args[0].value: {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
        for call in calls
        if isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument" and call.args
        if isinstance(call.args[0], ast.Constant)
    }


# ---- the table of measures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_every_script_is_there_and_takes_its_arguments(measure: Measure) -> None:
    if not measure.script:
        assert not measure.runs and measure.command == measure.arguments
        return
    script = BENCHMARKS / measure.script
    assert script.is_file()
    words = shlex.split(measure.arguments)
    named = {word for word in words if word.startswith("--")}
    assert named <= set(options_of(script)), f"{script.name} does not take {named - set(options_of(script))}"


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_every_result_has_the_fields_that_the_table_reads(measure: Measure) -> None:
    data = measure.data()
    if data is None:
        pytest.skip(f"results/{measure.result} has not been written yet; make bench does")
    lines = lines_of(measure, data)
    assert lines or not measure.rows
    assert not [line.figure for line in lines if line.ours is None]
    if measure.runs and bench.Bench(MEASURES).known()["runs"].get(measure.name, {}).get("status") != "done":
        return  # other arguments than make bench's may have left peers out
    for row in measure.rows:  # a peer that no line has is one whose path leads nowhere
        peers = {line.peer for line in lines if line.ratio is not None}
        assert set(row.get("peers", ())) <= peers, row["figure"]


def test_every_figure_of_an_earlier_target_is_in_the_table() -> None:
    targets = [target for measure in MEASURES for row in measure.rows for target in row.get("targets", ())]
    assert {target["issue"] for target in targets} == {2, 3, 5, 6, 7}  # the fourth set no figure
    goals = [(target["issue"], target.get("times_better")) for target in targets]
    for goal in [(2, 15), (3, 20), (3, 5), (3, 2), (5, 5), (5, 1.5)]:
        assert goal in goals


def test_a_measure_that_says_something_unknown_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bench.yaml"
    for said, message in [
        ("{name: a, title: A, script: a.py, result: a.json, minute: 3}", "minute"),
        (
            "{name: a, title: A, script: a.py, result: a.json}\n  - {name: a, title: A, script: a.py, result: b.json}",
            "once",
        ),
        (
            "{name: a, title: A, script: a.py, result: a.json, rows: [{figure: f, ours: x, targets: [{issue: 2}]}]}",
            "one of",
        ),
    ]:
        path.write_text(f"measures:\n  - {said}\n")
        with pytest.raises(TableError, match=message):
            load_measures(path)


# ---- figures and targets -----------------------------------------------------------------------------------------------


def test_paths_lead_to_values() -> None:
    assert value_at(RESULTS, "summary[side=peer&shape=long].mib") == 20
    assert value_at(RESULTS, "summary[side=nobody].mib") is None and value_at(RESULTS, "other.mib") is None
    assert value_at({"a": {"b": False}}, "a.b") is False and value_at(None, "a") is None
    with pytest.raises(TableError, match="2 entries"):
        value_at(RESULTS, "summary[side=ours].mib")


def test_lines_and_judgements_from_made_up_numbers() -> None:
    measure = Measure("m", "M", "m.json", rows=[ROW])
    short, long = lines_of(measure, RESULTS)  # the absent peer was not run
    assert (short.figure, short.ours, short.theirs, short.ratio) == ("step, short", 2.0, 30.0, 15.0)
    assert [(each.met, each.issue) for each in short.judgements] == [(True, 2), (False, 3)]
    assert short.judgements[1].missed_by == 0.25 and short.judgements[1].why == "It is hard."
    assert long.ratio == 0.5 and [each.missed_by for each in long.judgements] == [0.95]
    unknown = lines_of(measure, None)
    assert len(unknown) == 4 and {each.met for line in unknown for each in line.judgements} == {None}


@pytest.mark.parametrize(
    ("target", "ours", "theirs", "met", "said"),
    [
        ({"share_at_most": 0.4}, 4, 10, True, "met"),
        ({"share_at_most": 0.4}, 5, 10, False, "missed by 25%"),
        ({"at_least": 0.5}, 0.5, None, True, "met"),
        ({"at_least": 0.5}, 0.4, None, False, "missed by 20%"),
        ({"at_most": 0.30}, 0.33, None, False, "missed by 10%"),
        ({"at_most": 0}, 0, None, True, "met"),
        ({"at_most": 0}, 3, None, False, "missed"),
        ({"equals": True}, True, None, True, "met"),
        ({"equals": 10}, 9, None, False, "missed"),
        ({"at_least": 0.5}, None, None, None, "not measured"),
    ],
)
def test_targets_are_judged(target: dict, ours, theirs, met: bool | None, said: str) -> None:
    judgement = judge({**target, "issue": 7}, ours, theirs)
    assert judgement.met is met and bench_report.in_words(judgement) == said


def test_more_is_better_where_it_is_said() -> None:
    row = {**ROW, "each": {"shape": ["short"]}, "better": "more", "peers": {"Peer": ROW["peers"]["Peer"]}}
    (line,) = lines_of(Measure("m", "M", "m.json", rows=[row]), RESULTS)
    assert line.ratio == pytest.approx(1 / 15)


# ---- running -----------------------------------------------------------------------------------------------------------

STAND_IN = """
import json, os, signal, sys, time
from pathlib import Path
name, fails = sys.argv[1:]
folder = Path(__file__).parent
with (folder / "order.txt").open("a") as file:
    file.write(name + " ")
if fails == "yes" and not (folder / "mended").exists():
    sys.exit("It does not work.")
if (folder / "interrupt").exists() and name == "second":
    (folder / "interrupt").write_text(str(os.getpid()))
    os.kill(os.getppid(), signal.SIGINT)
    time.sleep(60)
(folder / f"{name}.json").write_text(json.dumps({"seconds": 2.0, "theirs": 6.0}))
"""


@pytest.fixture
def small_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bench.Bench:
    """Three measures that write made-up numbers; the second one fails until it is mended."""
    monkeypatch.setattr(bench, "POLL_S", 0.01)
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    row = {
        "figure": "it",
        "ours": "seconds",
        "peers": {"Peer": "theirs"},
        "targets": [{"times_better": 4, "issue": 2}],
    }
    measures = [
        Measure(name, name.upper(), f"{name}.json", "stand_in.py", f"{name} {fails}", rows=[row])
        for name, fails in (("first", "no"), ("second", "yes"), ("third", "no"))
    ]
    return bench.Bench(measures, tmp_path, tmp_path, tmp_path / "work")


def order(small: bench.Bench) -> list[str]:
    return (small.results / "order.txt").read_text().split()


def test_one_that_fails_stops_no_other_and_is_tried_again(small_bench: bench.Bench, capsys) -> None:
    assert small_bench.run(small_bench.measures, go_on=True) == ["second"]
    assert order(small_bench) == ["first", "second", "third"]
    said = (small_bench.results / bench_report.TABLE_FILE).read_text()
    assert "failed: ended with 1: It does not work. (see second.log)" in said
    assert "| 2 | it | Peer | 2.00 | 6.00 | 3.00x | ≥ 4x | **missed by 25%** [1] |" in said and "0 of 2 met" in said

    (small_bench.results / "mended").touch()
    assert small_bench.run(small_bench.measures, go_on=True) == []  # goes on: the others are kept
    assert order(small_bench)[3:] == ["second"]
    assert "first: done before" in capsys.readouterr().out
    summary = json.loads(small_bench.summary.read_text())
    assert len(summary["table"]) == 3 and {run["status"] for run in summary["runs"].values()} == {"done"}
    assert not small_bench.journal.path.exists()  # it is over, so that the next one begins anew
    assert (small_bench.results / bench_report.BARS_FILE).stat().st_size > 0


def test_interrupted_it_goes_on_where_it_was(small_bench: bench.Bench) -> None:
    for name in ("mended", "interrupt"):
        (small_bench.results / name).touch()
    with pytest.raises(KeyboardInterrupt):
        small_bench.run(small_bench.measures, go_on=True)
    with pytest.raises(ProcessLookupError):  # it does not go on by itself
        os.kill(int((small_bench.results / "interrupt").read_text()), 0)
    (small_bench.results / "interrupt").unlink()
    assert small_bench.run(small_bench.measures, go_on=True) == []
    assert order(small_bench) == ["first", "second", "second", "third"]
    assert small_bench.run(small_bench.measures, go_on=True) == []  # a new one, since that came to its end
    assert order(small_bench)[4:] == ["first", "second", "third"]


def test_other_arguments_are_run_again_and_only_leaves_the_journal_alone(small_bench: bench.Bench) -> None:
    first, second, third = small_bench.measures
    small_bench.journal.add(first, {"ended": "today", "commit": "abc"})
    assert small_bench.journal.done(first) and not small_bench.journal.done(second)
    other = dataclasses.replace(first, arguments="first maybe")
    assert small_bench.journal.done(other) is None
    small_bench.run([third], go_on=False)
    assert order(small_bench) == ["third"] and small_bench.journal.done(third) is None


def test_table_is_written_from_the_results_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    growing = {"title": "rank", "unit": "", "values": [1, 2]}
    curve = {"unit": "s", "values": [1.0, 2.0], "slope": 1.0, "slope_of_upper_half": 1.0}
    (tmp_path / "m.json").write_text(json.dumps(RESULTS))
    (tmp_path / "growth.json").write_text(json.dumps({"sweeps": [{**growing, "curves": {"step": curve}}]}))
    measures = [Measure("m", "M", "m.json", rows=[ROW]), Measure("growth", "G", "growth.json")]
    small = bench.Bench(measures, tmp_path, tmp_path, tmp_path / "work")
    monkeypatch.setattr(bench, "Bench", lambda _: small)
    monkeypatch.setattr(bench, "load_measures", lambda _: measures)
    bench.main(["--table"])
    text = (tmp_path / "bench.md").read_text()
    assert "| step, long, s | 8.00 | Peer | 4.00 | 0.50x |" in text and "2. It is hard.\n" in text
    assert "| rank | 1, 2  | step | 1.00 s | 2.00 s | 1.00 | 1.00 |" in text
    assert (tmp_path / "growth.png").stat().st_size > 0
    bench.main(["--list"])
    assert "2 min in all" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        bench.main(["--only", "nothing"])


def test_growth_has_the_slope_of_a_power() -> None:
    import growth

    assert growth.slope([1, 2, 4], [3, 12, 48]) == pytest.approx(2.0)
    sweep = growth.Sweep("rank", "")
    for size in (1, 2, 4, 8):
        sweep.add(size, flat_then_steep=(max(size, 2) ** 1.0, "s"), unknown=(None, "MiB"))
    curves = sweep.report()["curves"]
    assert list(curves) == ["flat then steep"]
    assert curves["flat then steep"]["slope"] < curves["flat then steep"]["slope_of_upper_half"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("script", "argument"),
    [("encoder", "--rounds 0"), ("start_up", "--rounds 0"), ("growth", "--repeats 0"), ("growth", "--longest 1")],
)
def test_options_that_measure_nothing_are_refused(script: str, argument: str) -> None:
    with pytest.raises(SystemExit):
        __import__(script).read_options(argument.split())


def test_results_folder_is_the_scripts_own() -> None:
    assert bench_table.RESULTS == BENCHMARKS / "results"

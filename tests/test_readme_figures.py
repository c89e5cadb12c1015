"""Figures in the README are those of the result files."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
STAGES = ("align", "instruct", "distill", "prefer")
PRECISIONS, PEERS = ("float32", "bfloat16"), ("voxtral", "qwen2_audio")
#: Rows of the table of peers: what it is called; of which result, side and case; the field, of which a peer's is the end.
PEER_ROWS = (
    ("training step, clips of 1 to 4 s", "training_step", "audiollm", {"shape": "short"}, "times_faster_than_"),
    ("training step, clips of 10 s", "training_step", "audiollm", {"shape": "10s"}, "times_faster_than_"),
    ("training step, windows of 30 s", "training_step", "audiollm", {"shape": "30s"}, "times_faster_than_"),
    ("first token, 4 s of speech", "first_token", "audiollm", {"recording_s": 4.0}, "first_token_times_faster_than_"),
    (
        "first token, 30 s of speech",
        "first_token",
        "audiollm",
        {"recording_s": 30.0},
        "first_token_times_faster_than_",
    ),
    ("tokens per second after it", "first_token", "audiollm", {"recording_s": 30.0}, "decode_times_faster_than_"),
    (
        "the same with `--merge_adapters`",
        "first_token",
        "audiollm, merged",
        {"recording_s": 30.0},
        "decode_times_faster_than_",
    ),
)


def result(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def peer_row(label: str, name: str, side: str, case: dict[str, Any], field: str) -> str:
    """A line of the README's table of peers, as the results have it."""
    cells = []
    for precision in PRECISIONS:
        wanted = {"side": side, "precision": precision, **case}
        (row,) = (row for row in result(name)["summary"] if wanted.items() <= row.items())
        cells += [f"{row[field + peer]:.1f}x" for peer in PEERS]
    return "| " + " | ".join([label, *cells]) + " |"


@pytest.mark.parametrize("row", PEER_ROWS, ids=lambda row: row[0])
def test_the_table_of_peers_is_what_was_measured(row) -> None:
    assert peer_row(*row) in README


def test_memory_beside_peers_is_what_was_measured() -> None:
    shares = {
        row["precision"]: row
        for row in result("training_step")["summary"]
        if row.get("memory_share_of_voxtral")
        if row["side"] == "audiollm" and row["shape"] == "short"
    }
    for precision in PRECISIONS:
        voxtral, qwen = (shares[precision][f"memory_share_of_{peer}"] for peer in PEERS)
        assert f"{voxtral:.0%} and {qwen:.0%} of their memory in {precision}" in README


def test_every_kill_ended_with_the_same_bits() -> None:
    results = result("kill_and_resume")["results"]
    assert {case.partition(",")[0] for case in results} == set(STAGES) and len(results) == len(STAGES) + 1
    assert all(case["bit_equal"] == case["kills"] == 10 for case in results.values())


def test_figures_of_preparing_are_those_measured() -> None:
    runs = result("prepare_speed")["runs"]
    assert [(run["side"], run["clips"]) for run in runs] == [
        (side, clips) for clips in (1_000, 10_000) for side in ("audiollm prepare", "datasets.map")
    ]
    for run in runs:
        assert f"{run['seconds']:.0f} s and {run['peak_mib']:.0f} MiB" in README, run


def test_figures_of_hearing_twice_are_those_measured() -> None:
    measured = result("hearing_twice")["14 minutes"]
    for split in ("validation", "test"):
        once, twice = (measured[split][way]["word_error"] for way in ("greedy", "twice"))
        assert f"from {once:.3f} to {twice:.3f}" in README


def test_figures_of_long_recordings_are_those_measured() -> None:
    six, sixty = result("hour_long")["recordings"]
    assert (six["minutes"], sixty["minutes"]) == (6, 60)
    hour = f"in {sixty['run_s'] / 60:.0f} minutes and {sixty['peak_memory_mib']:.0f} MiB"
    assert f"{hour}, six minutes of it in {six['peak_memory_mib']:.0f} MiB" in README


def test_figures_of_follow_ups_are_those_measured() -> None:
    ratios = {run["recording_s"]: run["first_over_follow_up"] for run in result("follow_up")["recordings"]}
    assert (
        f"{ratios[4.0]:.1f}x as soon as the first at 4 s, {ratios[30.0]:.1f}x at 30 s and {ratios[600.0]:.0f}x"
        in README
    )


def test_figures_of_the_shipped_adapter_are_those_of_its_card() -> None:
    card = (ROOT / "shipped_adapter" / "README.md").read_text(encoding="utf-8")
    size = (ROOT / "shipped_adapter" / "model.safetensors").stat().st_size / 2**20
    assert f"the adapter of {size:.0f} MiB that comes with the package" in README
    results = yaml.safe_load(card.split("---")[1])["model-index"][0]["results"]
    errors = {
        entry["dataset"]["name"]: metric["value"]
        for entry in results
        for metric in entry["metrics"]
        if metric["type"] == "wer"
    }
    assert errors and all(f"{error:.3f}" in README for error in errors.values()), errors


def test_the_reference_pairs_adapter_is_as_large_as_counted() -> None:
    assert f"the adapter is {result('large_shapes')['checkpoint_bytes'] / 1e6:.0f} MB in float32" in README

"""
Runs the benchmarks one after the other, and writes their figures into the documents.

    python benchmarks/bench.py                # everything that fits into half an hour, then the tables
    python benchmarks/bench.py --only word_times kill_and_resume
    python benchmarks/bench.py --tables       # the tables alone, from the results that are there

Each benchmark is a process of its own with a log in `build/bench/`; one that fails is named and stops no other. The machine
should have nothing else to do. Tables stand in Markdown files between `<!-- measured: NAME -->` and `<!-- end -->`.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT, RESULTS = HERE.parent, HERE / "results"
LOGS = ROOT / "build" / "bench"
#: Scripts by name, with the minutes they take on two quiet cores, and their options.
BENCHMARKS = {
    "training_step": (14, "--ours audiollm --rounds 1 --steps 5 --step_seconds 4"),
    "first_token": (5, "--rounds 3 --new_tokens 16"),
    "follow_up": (3, "--model shipped_adapter"),
    "hour_long": (15, "--model shipped_adapter"),
    "kill_and_resume": (21, ""),
    "no_speech": (2, "--model shipped_adapter"),
    "throughput": (4, ""),
    "word_times": (2, "--model shipped_adapter"),
}
#: Run when none is named.
DEFAULT = ("training_step", "first_token", "follow_up")
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "docs/*.md")
#: The test sets of `audiollm evaluate` that are shown, in words, and the systems.
TEST_SETS = {
    "prompts": "prompts of a studio speaker it was trained on, other sentences",
    "unseen": "clips of two speakers it has never heard",
}
SYSTEMS = {
    "model": "shipped adapter",
    "wrong_audio": "given the wrong recordings",
    "whisper": "Whisper base's own decoder",
}
MARKED = re.compile(r"(<!-- measured: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
PRECISIONS, PEERS = ("float32", "bfloat16"), {"voxtral": "Voxtral", "qwen2_audio": "Qwen2-Audio"}
SHAPES = {"short": "clips of 1 to 4 s", "10s": "clips of 10 s", "30s": "windows of 30 s"}


def result(name: str) -> dict[str, Any]:
    """The result file of a benchmark."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def row_of(name: str, **values: Any) -> dict[str, Any]:
    """The one row of a result's summary that has these values."""
    (row,) = (row for row in result(name)["summary"] if values.items() <= row.items())
    return row


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def ratios(name: str, row: dict[str, Any], field: str) -> list[str]:
    """A result's ratios to the peers, in every precision."""
    return [
        f"{row_of(name, precision=precision, **row)[f'{field}_{peer}']:.1f}x"
        for precision in PRECISIONS
        for peer in PEERS
    ]


def peers_table() -> str:
    """Speed beside the peers: how many times as fast AudioLLM is."""
    ours, merged = "audiollm", "audiollm, merged"
    first = [(f"first token, {seconds:g} s of speech", ours, seconds, "first_token") for seconds in (4.0, 30.0)]
    after = [("tokens per second after it", ours, 30.0, "decode")]
    after += [("the same with `--merge_adapters`", merged, 30.0, "decode")]
    rows = []
    for shape, words in SHAPES.items():
        found: dict[str, Any] = {"side": ours, "shape": shape}
        rows.append([f"training step, {words}", *ratios("training_step", found, "times_faster_than")])
    for words, side, seconds, measure in first + after:
        found = {"side": side, "recording_s": seconds}
        rows.append([words, *ratios("first_token", found, f"{measure}_times_faster_than")])
    return markdown(["", *(f"{precision}: {peer}" for precision in PRECISIONS for peer in PEERS.values())], rows)


def steps_table() -> str:
    """Seconds and peak memory of a training step of every side."""
    rows = [
        [
            SHAPES[row["shape"]],
            row["precision"],
            row["side"],
            f"{row['median_seconds']:.2f}",
            f"{row['peak_memory_mib']:,.0f}",
        ]
        for row in result("training_step")["summary"]
    ]
    return markdown(["batch", "precision", "side", "seconds", "peak MiB"], rows)


def first_token_table() -> str:
    """Seconds to the first token, tokens per second and peak memory of every side."""
    rows = [
        [
            f"{row['recording_s']:g} s",
            row["precision"],
            row["side"] + ("" if row["hears_all"] else f" (hears {row['heard_s']:g} s)"),
            f"{row['first_token_s']:.2f}",
            f"{row['tokens_per_s']:.1f}",
            f"{row['peak_memory_mib']:,.0f}",
        ]
        for row in result("first_token")["summary"]
    ]
    return markdown(["recording", "precision", "side", "first token, s", "tokens/s", "peak MiB"], rows)


def long_table() -> str:
    """Second questions about a recording, and long recordings."""
    follow_ups = [
        [
            f"second question about {row['recording_s']:g} s",
            f"{row['follow_up_s']:.2f} s; the first one {row['first_question_s']:.2f} s",
        ]
        for row in result("follow_up")["recordings"]
    ]
    recordings = [
        [f"transcript of {row['minutes']:g} minutes", f"{row['run_s']:.0f} s, {row['peak_memory_mib']:,.0f} MiB"]
        for row in result("hour_long")["recordings"]
    ]
    return markdown(["", "measured"], [*follow_ups, *recordings])


def shipped_adapter_table() -> str:
    """Word error of the shipped adapter: `shipped_adapter.json` is the `scores.json` of an evaluation."""
    tasks = result("shipped_adapter")["tasks"]
    rows = []
    for task, words in TEST_SETS.items():
        systems = tasks[task]["systems"]
        figures = [systems[system]["metrics"]["word_error"] for system in SYSTEMS]
        cells = [f"{each['value']:.3f} [{each['low']:.3f}, {each['high']:.3f}]" for each in figures]
        rows.append([f"{systems['model']['counts']['items']} {words}", *cells])
    return markdown(["word error rate", *SYSTEMS.values()], rows)


TABLES = {
    "shipped_adapter": shipped_adapter_table,
    "peers": peers_table,
    "steps": steps_table,
    "first_token": first_token_table,
    "long": long_table,
}


def rendered() -> Iterator[tuple[Path, str]]:
    """Each document with tables, and its text with the tables as measured."""
    for path in sorted(path for pattern in DOCUMENTS for path in ROOT.glob(pattern)):
        text = path.read_text(encoding="utf-8")
        if MARKED.search(text):
            yield path, MARKED.sub(lambda match: match[1] + TABLES[match[2]]() + match[3], text)


def main() -> None:
    """Entry of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=BENCHMARKS, help=", ".join(BENCHMARKS))
    parser.add_argument("--tables", action="store_true", help="run nothing; write the tables")
    options = parser.parse_args()
    failed = []
    LOGS.mkdir(parents=True, exist_ok=True)
    for name in () if options.tables else options.only or DEFAULT:
        minutes, arguments = BENCHMARKS[name]
        log = LOGS / f"{name}.log"
        print(f"{name}: about {minutes} minutes; log in {log}", flush=True)
        command = [sys.executable, str(HERE / f"{name}.py"), *arguments.split()]
        with log.open("wb") as file:
            done = subprocess.run(command, stdout=file, stderr=file, cwd=ROOT)
        if done.returncode:
            failed.append(name)
    for path, text in rendered():
        path.write_text(text, encoding="utf-8")
        print(f"wrote the tables of {path.relative_to(ROOT)}")
    if failed:
        sys.exit(f"These failed: {', '.join(failed)}. Their logs are in {LOGS}.")


if __name__ == "__main__":
    main()

"""
Run the benchmarks one after the other, and write their figures into the documents.

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
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT, RESULTS = HERE.parent, HERE / "results"
LOGS = ROOT / "build" / "bench"
#: Scripts by name, with the minutes they take on two quiet cores, and their options.
BENCHMARKS = {
    "training_step": (14, "--rounds 1 --steps 5 --step_seconds 4"),
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
#: Added to a side by whether it hears the whole recording.
HEARS = {True: "", False: " (hears {:g} s)"}
MARKED = re.compile(r"(<!-- measured: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
PRECISIONS, PEERS = ("float32", "bfloat16"), {"voxtral": "Voxtral", "qwen2_audio": "Qwen2-Audio"}
SHAPES = {"short": "clips of 1 to 4 s", "10s": "clips of 10 s", "30s": "windows of 30 s"}


def result(name: str) -> dict[str, Any]:
    """Return the result of a benchmark."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def markdown(header: str, rows: Iterable[str]) -> str:
    """Return a table in Markdown; cells are separated by bars."""
    line = " | ".join(["---"] * (header.count("|") + 1))
    return "".join(f"| {row} |\n" for row in (header, line, *rows))


def ratios(name: str, side: str, measure: str, **batch: Any) -> str:
    """Return how many times as fast a side is as the peers, in every precision."""
    rows = [row for row in result(name)["summary"] if batch.items() <= row.items()]
    values = {(row["precision"], row["side"]): row[measure] for row in rows}
    power = 1 if measure == "tokens_per_s" else -1  # of seconds, fewer are better
    pairs = [(precision, peer) for precision in PRECISIONS for peer in PEERS]
    return " | ".join(f"{(values[one, side] / values[one, peer]) ** power:.1f}x" for one, peer in pairs)


def peers_table() -> str:
    """Return the table of speed beside the peers: how many times as fast AudioLLM is."""
    rows = [
        f"training step, {words} | {ratios('training_step', 'audiollm', 'median_seconds', shape=shape)}"
        for shape, words in SHAPES.items()
    ]
    rows += [
        f"{words} | {ratios('first_token', side, measure, recording_s=seconds)}"
        for words, side, measure, seconds in (
            ("first token, 4 s of speech", "audiollm", "first_token_s", 4.0),
            ("first token, 30 s of speech", "audiollm", "first_token_s", 30.0),
            ("tokens per second after it", "audiollm", "tokens_per_s", 30.0),
            ("the same with `--merge_adapters`", "audiollm, merged", "tokens_per_s", 30.0),
        )
    ]
    return markdown("".join(f" | {one}: {peer}" for one in PRECISIONS for peer in PEERS.values()), rows)


def steps_table() -> str:
    """Return the table of seconds and peak memory of a training step, of every side that is still compared."""
    rows = (
        f"{SHAPES[row['shape']]} | {row['precision']} | {row['side']} | {row['median_seconds']:.2f} | "
        f"{row['peak_memory_mib']:,.0f}"
        for row in result("training_step")["summary"]
        if row["side"] != "slam"  # of older results
    )
    return markdown("batch | precision | side | seconds | peak MiB", rows)


def first_token_table() -> str:
    """Return the table of seconds to the first token, tokens per second and peak memory, of every side."""
    rows = (
        f"{row['recording_s']:g} s | {row['precision']} | {row['side']}"
        f"{HEARS[row['hears_all']].format(row['heard_s'])} | {row['first_token_s']:.2f} | "
        f"{row['tokens_per_s']:.1f} | {row['peak_memory_mib']:,.0f}"
        for row in result("first_token")["summary"]
    )
    return markdown("recording | precision | side | first token, s | tokens/s | peak MiB", rows)


def long_table() -> str:
    """Return the table of second questions about a recording, and of long recordings."""
    follow_ups = (
        f"second question about {row['recording_s']:g} s | "
        f"{row['follow_up_s']:.2f} s; the first one {row['first_question_s']:.2f} s"
        for row in result("follow_up")["recordings"]
    )
    recordings = (
        f"transcript of {row['minutes']:g} minutes | {row['run_s']:.0f} s, {row['peak_memory_mib']:,.0f} MiB"
        for row in result("hour_long")["recordings"]
    )
    return markdown(" | measured", [*follow_ups, *recordings])


def shipped_adapter_table() -> str:
    """Return the table of the shipped adapter's word error: `shipped_adapter.json` is the `scores.json` of an evaluation."""
    rows = []
    for task, words in TEST_SETS.items():
        systems = result("shipped_adapter")["tasks"][task]["systems"]
        rates = [systems[system]["metrics"]["word_error"] for system in SYSTEMS]
        cells = (f"{rate['value']:.3f} [{rate['low']:.3f}, {rate['high']:.3f}]" for rate in rates)
        rows.append(" | ".join([f"{systems['model']['counts']['items']} {words}", *cells]))
    return markdown(" | ".join(["word error rate", *SYSTEMS.values()]), rows)


TABLES = {
    "shipped_adapter": shipped_adapter_table,
    "peers": peers_table,
    "steps": steps_table,
    "first_token": first_token_table,
    "long": long_table,
}


def rendered() -> Iterator[tuple[Path, str]]:
    """Yield each document that has tables, and its text with the tables as measured."""
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

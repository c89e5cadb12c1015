"""
Runs the benchmarks one after the other, and writes their figures into the documents.

    python benchmarks/bench.py                # everything that fits into half an hour, then the tables
    python benchmarks/bench.py --only training_step kill_and_resume
    python benchmarks/bench.py --tables       # the tables alone, from the results that are there

Each benchmark is a process of its own with a log in `build/bench/`; one that fails is named and stops no other. The machine
should have nothing else to do. Tables stand in Markdown files between `<!-- measured: NAME -->` and `<!-- end -->`.
"""

import argparse
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT, RESULTS = HERE.parent, HERE / "results"
LOGS = ROOT / "build" / "bench"
#: Command lines by name, with the minutes they take on two quiet cores.
BENCHMARKS = {
    "training_step": (14, "training_step.py --ours audiollm --rounds 1 --steps 5 --step_seconds 4"),
    "first_token": (5, "first_token.py --model shipped_adapter --rounds 3 --new_tokens 16"),
    "follow_up": (3, "follow_up.py --model shipped_adapter"),
    "prepare_speed": (9, "prepare_speed.py"),
    "hour_long": (15, "hour_long.py --model shipped_adapter"),
    "kill_and_resume": (21, "kill_and_resume.py"),
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


def peers_table() -> str:
    """Speed beside the peers: how many times as fast AudioLLM is."""
    fields: list[tuple[str, str, dict[str, Any], str]] = [
        *(
            (f"training step, {words}", "training_step", {"side": "audiollm", "shape": shape}, "times_faster_than_")
            for shape, words in SHAPES.items()
        ),
        *(
            (
                f"first token, {seconds:g} s of speech",
                "first_token",
                {"side": "audiollm", "recording_s": seconds},
                "first_token_times_faster_than_",
            )
            for seconds in (4.0, 30.0)
        ),
        *(
            (words, "first_token", {"side": side, "recording_s": 30.0}, "decode_times_faster_than_")
            for side, words in (
                ("audiollm", "tokens per second after it"),
                ("audiollm, merged", "the same with `--merge_adapters`"),
            )
        ),
    ]
    rows = [
        [
            words,
            *(
                f"{row_of(name, precision=precision, **key)[field + peer]:.1f}x"
                for precision in PRECISIONS
                for peer in PEERS
            ),
        ]
        for words, name, key, field in fields
    ]
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
    prepared = [
        [f"{row['clips']:,} clips by {row['side']}", f"{row['seconds']:.0f} s, {row['peak_mib']:,.0f} MiB"]
        for row in result("prepare_speed")["runs"]
    ]
    return markdown(["", "measured"], [*follow_ups, *recordings, *prepared])


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


def demo_table() -> str:
    """Word error before and after the demo's fine-tuning, with its controls."""
    report = result("demo")
    header = f"word error of {len(report['clips'])} held-out prompts"
    return markdown([header, ""], [[name, f"{rate:.2f}"] for name, rate in report["word_error"].items()])


TABLES = {
    "demo": demo_table,
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
        minutes, command = BENCHMARKS[name]
        log = LOGS / f"{name}.log"
        print(f"{name}: about {minutes} minutes; log in {log}", flush=True)
        script, *arguments = shlex.split(command)
        with log.open("wb") as file:
            done = subprocess.run([sys.executable, HERE / script, *arguments], stdout=file, stderr=file, cwd=ROOT)
        if done.returncode:
            failed.append(name)
    for path, text in rendered():
        path.write_text(text, encoding="utf-8")
        print(f"wrote the tables of {path.relative_to(ROOT)}")
    if failed:
        sys.exit(f"These failed: {', '.join(failed)}. Their logs are in {LOGS}.")


if __name__ == "__main__":
    main()

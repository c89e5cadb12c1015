"""
Kills training without warning (SIGKILL) at random steps, ten times for every stage, and starts it again.

What the run that was started again ends with is compared, by its sha256, with what one ends with that nothing happened
to. Tiny random models on random sound: what counts is the course, not the words. Prints a table and writes
`benchmarks/results/kill_and_resume.json`.

    python benchmarks/kill_and_resume.py
"""

import multiprocessing
import os
import random
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "training")]

from audiollm.command_line.files import sha256_of  # noqa: E402
from common import parser_of, write_result  # noqa: E402
from posterior_banks import SENTENCES, save_aligned  # noqa: E402
from small_corpus import example_rows, write_recordings, write_rows  # noqa: E402
from tiny_models import save_audio_base, save_text_base  # noqa: E402

#: 20 rows in batches of 4, accumulated by twos: three steps an epoch, of which the last is a half one.
MAX_STEPS = 14
NUM_RECORDINGS = 20
#: Every source of randomness that a stage has is on: shuffling, augmentation, dropout.
COMMON = (
    f"--max_steps {MAX_STEPS} --save_steps 2 --save_total_limit 2 --batch_size 4 --gradient_accumulation_steps 2 "
    "--learning_rate 0.005 --logging_steps 1 --disable_tqdm True"
).split()
NEW_MODEL = ["--lora_rank", "4", "--lora_dropout", "0.2"]
CASES = {
    "align": ["--augment", "True"],
    "read": ["--augment", "True", "--real_share", "0.4"],
    "instruct": ["--augment", "True"],
    "distill": ["--augment", "True", "--distill_weight", "0.5"],
    "prefer": [],
    "instruct, everything trains": ["--trainable", "all", "--lora_dropout", "0.2"],
}
#: Up to so long after the step that was drawn comes the kill: in its checkpoint, or in the next step.
MAX_DELAY_S = 0.06
PATIENCE_S = 300.0


def rows_of(stage: str, names: list[str]) -> list[dict[str, Any]]:
    """One row per recording, as the stage reads them."""
    rows = [row for row in example_rows(names) if isinstance(row.get("audio_paths"), str)]
    if stage == "distill":
        return [{**row, "transcripts": row["response"]} for row in rows]
    if stage == "prefer":
        shared = ("text", "audio_paths")
        return [{**{n: row[n] for n in shared}, "chosen": row["response"], "rejected": "no"} for row in rows]
    return rows


def training(options: list[str], step: Any, log: str) -> None:
    """A run of the command, in a process of its own that says at which step it is."""
    from audiollm.training.train import parse_arguments, train
    from transformers import TrainerCallback

    class Report(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            step.value = state.global_step

    with open(log, "w") as file, redirect_stdout(file), redirect_stderr(file):
        train(*parse_arguments(options), callbacks=[Report()])


class Runs:
    """Starts runs of one case; processes share what importing costs."""

    def __init__(self, folder: Path, case: str):
        self.folder = folder
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["audiollm.training.train"])
        stage = case.partition(",")[0]
        names = write_recordings(folder / "recordings", NUM_RECORDINGS)
        data = write_rows(folder / f"{stage}.json", rows_of(stage, names))
        bases = save_audio_base(folder / "audio"), save_text_base(folder / "text")
        self.options = [
            *f"--stage {stage} --data_path {data} --audio_dir {folder / 'recordings'}".split(),
            *(self._aligned(folder, bases) if stage == "read" else [*_bases(bases), *NEW_MODEL]),
            *COMMON,
            *CASES[case],
        ]
        if "all" not in CASES[case]:
            self.options += ["--feature_cache", str(folder / "features")]

    def _aligned(self, folder: Path, bases: tuple[str, str]) -> list[str]:
        """A checkpoint that can learn to read, and texts for it."""
        (folder / "texts.txt").write_text("\n".join(SENTENCES * 3))
        aligned = save_aligned(folder / "aligned", bases, lora_dropout=0.2)
        return f"--model_path {aligned} --text_path {folder / 'texts.txt'}".split()

    def run(self, output: Path, kill_at: int | None = None, delay_s: float = 0.0) -> int | None:
        """
        Runs to the end, or kills at a step; returns the step of the newest checkpoint then left, or None.

        Raises:
            RuntimeError: the run failed, or was over before the kill.
        """
        from audiollm.training.checkpointing import last_complete_checkpoint

        step, log = self.context.Value("i", 0), output.with_suffix(".log")
        options = [*self.options, "--output_dir", str(output)]
        process = self.context.Process(target=training, args=(options, step, str(log)))
        process.start()
        deadline = time.monotonic() + PATIENCE_S
        if kill_at is not None:
            while step.value < kill_at and process.is_alive() and time.monotonic() < deadline:
                time.sleep(0.0005)
            time.sleep(delay_s)
            process.kill()
        process.join(PATIENCE_S)
        if process.exitcode != (0 if kill_at is None else -9):
            raise RuntimeError(f"{log} ended with {process.exitcode}: {log.read_text()[-2000:]}")
        newest = last_complete_checkpoint(output)
        return None if newest is None else int(newest.rpartition("-")[2])


def _bases(bases: tuple[str, str]) -> list[str]:
    return f"--whisper_path {bases[0]} --llama_path {bases[1]}".split()


def trial(runs: Runs, output: Path, generator: random.Random) -> dict[str, Any]:
    """One kill, one start after it; where it was, from where it went on, and what it ended with."""
    kill_at, delay_s = generator.randint(1, MAX_STEPS - 1), generator.uniform(0, MAX_DELAY_S)
    resumed_from = runs.run(output, kill_at, delay_s)
    # A folder without the file that is written last was being written: the next run passes it over.
    half = [path.name for path in output.glob("checkpoint-*") if not (path / "trainer_state.json").exists()]
    runs.run(output)
    return {
        "killed_at_step": kill_at,
        "delay_s": round(delay_s, 3),
        "half_written_checkpoints": half,
        "resumed_from_step": resumed_from,
        "sha256": sha256_of(output / "model.safetensors"),
    }


def main() -> None:
    """Runs every case and writes the result; the exit code says whether all were the same."""
    parser = parser_of("kill_and_resume", __doc__, model=False)
    parser.add_argument("--kills", type=int, default=10, help="for every case; default: %(default)s")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES), help="default: all")
    parser.add_argument("--seed", type=int, default=0, help="of the steps; default: %(default)s")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    generator = random.Random(arguments.seed)
    results, start = {}, time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for case in arguments.cases:
            place = Path(folder) / case.replace(", ", "-").replace(" ", "-")
            place.mkdir()
            runs = Runs(place, case)
            runs.run(place / "uninterrupted")
            expected = sha256_of(place / "uninterrupted" / "model.safetensors")
            trials = [trial(runs, place / f"killed-{n}", generator) for n in range(arguments.kills)]
            equal = sum(each["sha256"] == expected for each in trials)
            results[case] = {"uninterrupted": expected, "bit_equal": equal, "kills": len(trials), "trials": trials}
            steps = [each["killed_at_step"] for each in trials]
            print(f"{case:28} {equal} of {len(trials)} bit-equal; killed at steps {steps}", flush=True)
    report = {
        "seed": arguments.seed,
        "max_steps": MAX_STEPS,
        "save_steps": 2,
        "seconds": round(time.monotonic() - start, 1),
        "results": results,
    }
    write_result(arguments.output, report)
    sys.exit(any(each["bit_equal"] != each["kills"] for each in results.values()))


if __name__ == "__main__":
    main()

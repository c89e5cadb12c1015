"""
Kill training without warning (SIGKILL) at random moments, ten times for every stage, and start it again.

The weights of the run that was started again are compared, by their sha256, with those of a run that was left alone. Tiny
random models on random sound: the course counts, not the words. Prints a table and writes
`benchmarks/results/kill_and_resume.json`.

    python benchmarks/kill_and_resume.py
"""

import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "training")]

from common import parser_of, write_result  # noqa: E402
from posterior_banks import SENTENCES, save_aligned  # noqa: E402
from runs import PATIENCE_S, digest, stage_rows, started, until_checkpoint  # noqa: E402
from small_corpus import write_recordings, write_rows  # noqa: E402
from tiny_models import save_audio_base, save_text_base  # noqa: E402

#: 20 rows in batches of 4, accumulated by twos: three steps an epoch, the last a half one.
MAX_STEPS, SAVE_STEPS = 14, 2
NUM_RECORDINGS = 20
#: Every source of randomness that a stage has is on: shuffling, augmentation, dropout.
COMMON = (
    f"--max_steps {MAX_STEPS} --save_steps {SAVE_STEPS} --save_total_limit 2 --batch_size 4 "
    "--gradient_accumulation_steps 2 --learning_rate 0.005 --logging_steps 1 --disable_tqdm True"
)
CASES = {
    "align": "--augment True",
    "read": "--augment True --real_share 0.4",
    "instruct": "--augment True",
    "distill": "--augment True --distill_weight 0.5",
    "prefer": "",
    "instruct, everything trains": "--trainable all --lora_dropout 0.2",
}
#: Most time between the drawn checkpoint and the kill: the next steps run meanwhile, or the next one is written.
MAX_DELAY_S = 0.3


def options_of(case: str, folder: Path) -> list[str]:
    """Return the command's options for a case, without its output; its data and bases are written to a folder."""
    stage = case.partition(",")[0]
    names = write_recordings(folder / "recordings", NUM_RECORDINGS)
    data = write_rows(folder / f"{stage}.json", stage_rows(stage, names))
    bases = save_audio_base(folder / "audio"), save_text_base(folder / "text")
    model = f"--whisper_path {bases[0]} --llama_path {bases[1]} --lora_rank 4 --lora_dropout 0.2"
    if stage == "read":
        (folder / "texts.txt").write_text("\n".join(SENTENCES * 3))
        aligned = save_aligned(folder / "aligned", bases, lora_dropout=0.2)
        model = f"--model_path {aligned} --text_path {folder / 'texts.txt'}"
    if "all" not in CASES[case]:
        model += f" --feature_cache {folder / 'features'}"
    given = f"--stage {stage} --data_path {data} --audio_dir {folder / 'recordings'}"
    return f"{given} {model} {COMMON} {CASES[case]}".split()


def whole_run(options: list[str], output: Path) -> str:
    """Run to the end, from the newest checkpoint if there is one; return the sha256 of the weights."""
    log = output.with_suffix(".log")
    process = started([*options, "--output_dir", str(output)], log)
    process.join(PATIENCE_S)
    if process.exitcode != 0:
        raise RuntimeError(f"{log} ended with {process.exitcode}: {log.read_text()[-2000:]}")
    return digest(output)


def trial(options: list[str], output: Path, generator: random.Random) -> dict[str, Any]:
    """Kill a run once and start it again; return the checkpoint behind which it was killed, and the final sha256."""
    step = generator.randrange(SAVE_STEPS, MAX_STEPS - SAVE_STEPS, SAVE_STEPS)
    delay_s, log = generator.uniform(0, MAX_DELAY_S), output.with_suffix(".killed.log")
    process = started([*options, "--output_dir", str(output)], log)
    until_checkpoint(process, output, log, step)
    time.sleep(delay_s)
    process.kill()
    process.join(PATIENCE_S)
    # A folder without the file that is written last was being written: the next run passes it over.
    half = [path.name for path in output.glob("checkpoint-*") if not (path / "trainer_state.json").exists()]
    return {
        "killed_after_step": step,
        "delay_s": round(delay_s, 3),
        "half_written_checkpoints": half,
        "sha256": whole_run(options, output),
    }


def main() -> None:
    """Run every case and write the result; exit with 1 where the weights differ."""
    parser = parser_of("kill_and_resume", __doc__, model=False)
    parser.add_argument("--kills", type=int, default=10, help="for every case; default: %(default)s")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES), help="default: all")
    parser.add_argument("--seed", type=int, default=0, help="of the moments; default: %(default)s")
    arguments = parser.parse_args()
    generator = random.Random(arguments.seed)
    results = {}
    for case in arguments.cases:
        with tempfile.TemporaryDirectory() as folder:
            options = options_of(case, Path(folder))
            expected = whole_run(options, Path(folder) / "uninterrupted")
            trials = [trial(options, Path(folder) / f"killed-{n}", generator) for n in range(arguments.kills)]
        equal = sum(each["sha256"] == expected for each in trials)
        results[case] = {"uninterrupted": expected, "bit_equal": equal, "kills": len(trials), "trials": trials}
        steps = [each["killed_after_step"] for each in trials]
        print(f"{case:28} {equal} of {len(trials)} bit-equal; killed after steps {steps}", flush=True)
    write_result(arguments.output, {"seed": arguments.seed, "max_steps": MAX_STEPS, "results": results})
    sys.exit(any(each["bit_equal"] != each["kills"] for each in results.values()))


if __name__ == "__main__":
    main()

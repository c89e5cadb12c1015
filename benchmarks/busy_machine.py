"""
Measure encoding with and without a busy neighbour: seconds for short clips in one process and in processes of one thread each.

    python benchmarks/busy_machine.py

Each way runs in a process of its own, with OpenMP's threads waiting actively (its default) and passively (the default of the
`audiollm` command). The neighbour is another process that multiplies matrices on one thread, of equal priority.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "busy_machine.json"
AUDIO_BASE, TEXT_BASE = "pypi:whisper-tiny.en", "pypi:smollm2-135m-instruct"
#: Ways to encode: processes of the feature cache, and how OpenMP's threads wait.
WAYS = {"one process, active waiting": (1, "ACTIVE"), "one process": (1, "PASSIVE"), "processes": (0, "PASSIVE")}
NEIGHBOUR = """
import torch
torch.set_num_threads(1)
left, right = torch.randn(600, 600), torch.randn(600, 600)
while True:
    left @ right
"""
#: Seconds that a neighbour gets to import torch before anything is timed.
HEAD_START_S = 15


def encode(clips: int, processes: int) -> None:
    """Print the seconds that a feature cache needs for studio prompts; runs in a process of its own."""
    import torch
    from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor
    from audiollm.corpora.prompts import load_studio_prompts
    from audiollm.machine import bfloat16_is_faster
    from audiollm.training.feature_cache import FeatureCache

    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(AUDIO_BASE, TEXT_BASE, dtype=torch.float32)
    processor = AudioLlmProcessor.from_audio_text_pretrained(AUDIO_BASE, TEXT_BASE)
    audio = list(load_studio_prompts("test").select(range(clips))["audio"])
    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache(model, processor, folder, processes=processes or None)
        cache.add_one(audio[0])
        start = time.perf_counter()
        cache.add(audio[1:], progress=False)
        seconds = time.perf_counter() - start
    facts = {
        "processes": cache.processes,
        "threads": torch.get_num_threads(),
        "bfloat16_is_faster": bfloat16_is_faster(),
    }
    print(json.dumps({"seconds": round(seconds, 2), "torch": torch.__version__, **facts}))


def timed(clips: int, processes: int, waiting: str) -> dict[str, float]:
    """Return what [`encode`] prints in a fresh process."""
    command = [sys.executable, __file__, "--encode", str(processes), "--clips", str(clips)]
    environment = os.environ | {"OMP_WAIT_POLICY": waiting}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=69, help="studio prompts of the test split; default: %(default)s")
    parser.add_argument("--note", default="", help="what else ran on the machine, for the record")
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON to write; default: %(default)s")
    parser.add_argument("--encode", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.encode is not None:
        encode(options.clips, options.encode)
        return
    report = {
        "what": "seconds to encode short clips, with and without a busy neighbour",
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load_before": os.getloadavg(),
        "note": options.note,
        "clips": options.clips,
        "ways": {},
    }
    for name, way in WAYS.items():
        alone = timed(options.clips, *way)
        neighbour = subprocess.Popen([sys.executable, "-c", NEIGHBOUR])
        try:
            time.sleep(HEAD_START_S)
            beside = timed(options.clips, *way)
        finally:
            neighbour.kill()
            neighbour.wait()
        report["ways"][name] = {
            **alone,
            "seconds_beside_a_neighbour": beside["seconds"],
            "times_slower": round(beside["seconds"] / alone["seconds"], 2),
        }
        print(name, report["ways"][name], flush=True)
    report["load_after"] = os.getloadavg()
    options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

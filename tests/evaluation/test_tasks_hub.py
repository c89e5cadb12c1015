"""Benchmarks on the Hub, streamed, give the same questions as their copies on disk."""

import subprocess
import sys
from pathlib import Path

import pytest
from loopback_hub import LoopbackHub

COPIES_FOLDER = Path(__file__).parent
SCRIPT = """
import sys
from pathlib import Path

sys.path[:0] = [sys.argv[2], str(Path(sys.argv[2]).parent)]
import huggingface_hub
from audiollm.evaluation.tasks import TaskError, find_task
from audiollm.processing import load_waveform
from benchmark_copies import COPIES

folder, tokens = Path(sys.argv[1]), dict(pair.split("=") for pair in sys.argv[3:])

def upload(path, hub):
    api = huggingface_hub.HfApi(token=tokens[hub.partition("/")[0]])
    api.create_repo(hub, repo_type="dataset")
    api.upload_folder(folder_path=path, repo_id=hub, repo_type="dataset")

def seen(name, data=None):
    items = find_task(name).items(data)
    return [(i.id, i.prompt, i.references, i.extra, [len(load_waveform(each)) for each in i.recordings]) for i in items]

for name, hub in {"ami": "hf-audio/open-asr-leaderboard", "voicebench_sd_qa:usa": "hlt-lab/voicebench",
                  "air_bench_foundation": "qyang1021/AIR-Bench-Dataset", "earnings22": "ArtificialAnalysis/"}.items():
    copy = COPIES[name](folder / name.replace(":", "-"))
    for part in sorted(copy.iterdir()) if hub.endswith("/") else [copy]:
        upload(part, hub + part.name if hub.endswith("/") else hub)
    assert seen(name) == seen(name, str(copy)), name
assert seen("air_bench_chat") == seen("air_bench_chat", str(folder / "air_bench_foundation"))
try:
    seen("spgispeech")
except TaskError as error:
    print("REFUSED", error)
"""
OWNERS = ("hf-audio", "hlt-lab", "qyang1021", "ArtificialAnalysis")


@pytest.mark.slow  # a process; corpora's tests read the Hub likewise
def test_the_hub_and_a_copy_ask_the_same(tmp_path) -> None:
    with LoopbackHub() as hub:
        tokens = [f"{owner}={hub.add_user(owner)}" for owner in OWNERS]
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, tmp_path, COPIES_FOLDER, *tokens],
            env=hub.environment(tmp_path / "home"),
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    assert "REFUSED Task 'spgispeech'" in done.stdout

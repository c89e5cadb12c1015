"""Memory that runs out: commands say so in one line, leave nothing half-written, and end well once there is enough."""

import json
import os
import re
from pathlib import Path

import numpy as np
import prepared_python
import pytest
import soundfile
from command_calls import make_place

LONG_SECONDS, RATE = 590, 16_000
SPARE_BYTES = 16 << 20
COMMANDS = ("generate", "transcribe", "summarize", "train", "evaluate", "prepare", "validate", "export")
#: Calls commands in a process whose memory is what it has, and a little more; prints what each says.
SCRIPT = """
import contextlib, io, json, resource, sys
sys.path[:0] = sys.argv[1:3]
from pathlib import Path
from audiollm import cli
from command_calls import Place

known = json.loads(sys.argv[3])
place = Place(**{name: Path(value) if isinstance(value, str) else tuple(value) for name, value in known.items()})
long = place.recordings / place.names[0]

def said_by(command, outputs):
    here = Place(**{**vars(place), "outputs": place.root / outputs})
    sys.argv = ["audiollm", *here.line(command)]
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            cli.run()
        except SystemExit as ended:
            print(ended.code, file=said)
    return said.getvalue()

def in_use():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmSize"))
    return int(line.split()[1]) << 10

soft, hard = resource.getrlimit(resource.RLIMIT_AS)
results = {}
hidden = long.rename(long.with_suffix(".long"))
hidden_short = long.with_suffix(".short").rename(long)
for command in known_commands:
    said_by(command, "first")  # imports, and what libraries keep
long.rename(long.with_suffix(".short"))
hidden.rename(long)
for command in known_commands:
    resource.setrlimit(resource.RLIMIT_AS, (in_use() + SPARE, hard))
    try:
        said = said_by(command, "second")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    left = [path.name for path in (place.root / "second").rglob("*") if path.is_file()]
    results[command] = [said, left]
print(json.dumps(results))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory in use is looked up in /proc")
def test_memory_that_runs_out_is_said(tmp_path) -> None:
    place = make_place(tmp_path / "place")
    long = place.recordings / place.names[0]
    long.rename(long.with_suffix(".short"))
    soundfile.write(long, 0.1 * np.random.default_rng(0).standard_normal(LONG_SECONDS * RATE), RATE)
    known = {name: value if isinstance(value, tuple) else str(value) for name, value in vars(place).items()}
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    script = f"known_commands = {COMMANDS!r}\nSPARE = {SPARE_BYTES}\n{SCRIPT}"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "datasets")}
    done = prepared_python.run(script, *folders, json.dumps(known), env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    for command, (said, left) in results.items():
        assert re.search("memory|Cannot allocate", said) and "Traceback" not in said, (command, said)
        assert not [name for name in left if name.endswith((".partial", ".part", ".unfinished"))], left

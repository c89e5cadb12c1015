"""
Python processes that run a script as `python -c` does, and start with torch imported.

Importing takes longer than what most scripts do. They are forked from a process that has imported what reads nothing of
the environment; everything of Hugging Face's, which does read it, each script imports itself.
"""

import multiprocessing
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from multiprocessing.context import ForkServerContext
from pathlib import Path
from types import ModuleType

#: No script here takes that long.
PATIENCE_SECONDS = 300
#: Imported by transformers, peft and datasets; bitsandbytes, which peft imports, compiles with inductor.
PRELOADED = ["torch", "torch._dynamo", "torch._inductor.compile_fx", "torch.distributed.tensor", "pyarrow", "pandas"]


def prepared_context() -> ForkServerContext:
    """Return how processes are started; multiprocessing has one such server, which all of a test process must share."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch's threads do not survive a fork
    return context


def _become(script: str, arguments: list[str], environment: dict[str, str], folder: str, files: list[str]) -> None:
    """Run the script in the forked process."""
    for number, name in enumerate(files, start=1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    own = tuple(str(Path(sysconfig.get_path(name)).resolve()) for name in ("stdlib", "platstdlib", "purelib"))
    sys.path = ["", *(path for path in sys.path if path.startswith(own) or path.endswith(".zip"))]
    sys.path[1:1] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    sys.argv = ["-c", *arguments]
    main = sys.modules["__main__"] = ModuleType("__main__")
    # An error ends the process with status 1; multiprocessing prints its traceback to the redirected standard error.
    exec(compile(script, "<string>", "exec"), main.__dict__)


def run(
    script: str, *arguments: object, env: Mapping[str, str], cwd: Path, timeout: float = PATIENCE_SECONDS
) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, …)`."""
    words = [*map(str, arguments)]
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder) / name) for name in ("stdout", "stderr")]
        process = prepared_context().Process(target=_become, args=(script, words, dict(env), str(cwd), files))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(["python", "-c", script, *words], timeout)
        shown = [Path(name).read_text(encoding="utf-8", errors="replace") for name in files]
        return subprocess.CompletedProcess(["python", "-c", script, *words], process.exitcode, *shown)

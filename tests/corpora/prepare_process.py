"""
`audiollm prepare` as processes that tests kill, interrupt and starve.

Importing takes longer than what is tested. One process, this file run as a script, imports everything once and forks a
process for each command; with `fresh`, a command is an interpreter of its own, started as users start it.
"""

import functools
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

POLL_SECONDS = 0.001
#: No command here takes that long.
PATIENCE_SECONDS = 600


@dataclass
class Command:
    """One running command; `pid` leads a process group of its own, `peak_bytes` is known once it has ended."""

    launcher: "Launcher"
    pid: int
    stdout_file: Path
    stderr_file: Path
    code: int | None = None
    peak_bytes: int = 0

    def poll(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        if self.code is None:
            answer = self.launcher.ask({"poll": self.pid})
            self.code, self.peak_bytes = answer["code"], answer["peak_bytes"]
        return self.code

    def wait(self) -> int:
        self.until(lambda: False)
        assert self.code is not None, "it did not end"
        return self.code

    def until(self, reached: Any) -> bool:
        """Waits for something, or for the end; says whether it was reached before the end."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            if self.poll() is not None:
                return False
            if reached():
                return True
            time.sleep(POLL_SECONDS)
        raise AssertionError(f"waited too long: {self.stderr}")

    def end(self, number: signal.Signals, group: bool = False) -> int:
        """Sends a signal, as a terminal does to the whole group, and waits."""
        if self.poll() is None:
            (os.killpg if group else os.kill)(self.pid, number)
        return self.wait()

    def stop(self) -> bool:
        """Stops it where it is, until SIGCONT; False where it has ended before."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGSTOP)
        return self.poll() is None

    @property
    def stdout(self) -> str:
        return self.stdout_file.read_text(encoding="utf-8", errors="replace")

    @property
    def stderr(self) -> str:
        return self.stderr_file.read_text(encoding="utf-8", errors="replace")


class Launcher:
    """Starts `audiollm prepare`; with `fresh`, as `python -m audiollm.command_line.cli`."""

    def __init__(self, folder: Path):
        self.folder, self._count = folder, 0
        pipe, variables = subprocess.PIPE, os.environ | {"OMP_NUM_THREADS": "1"}
        script = [sys.executable, __file__]
        self._process = subprocess.Popen(script, stdin=pipe, stdout=pipe, text=True, env=variables)
        self.ask({"ready": True})

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def start(self, *arguments: Any, table: dict[str, Any] | None = None, fresh: bool = False) -> Command:
        """Starts a command; `table` is what LibriSpeech is published as, by split."""
        self._count += 1
        files = [self.folder / f"{self._count}.{name}" for name in ("stdout", "stderr")]
        request = {"arguments": ["prepare", *map(str, arguments)], "files": list(map(str, files))}
        return Command(self, self.ask(request | {"table": table, "fresh": fresh})["pid"], *files)

    def run(self, *arguments: Any, **options: Any) -> Command:
        """Starts a command and waits for its end."""
        command = self.start(*arguments, **options)
        command.wait()
        return command

    def succeed(self, *arguments: Any, **options: Any) -> Command:
        command = self.run(*arguments, **options)
        assert command.code == 0, command.stderr
        return command

    def close(self) -> None:
        self._process.communicate()


# ------------------------------------------------------------------------------------------------------- the process


def _become(request: dict[str, Any]) -> None:
    """In the forked process: runs the command as the console script does."""
    os.setsid()
    for number, name in enumerate(request["files"], start=1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if request["fresh"]:
        os.execv(sys.executable, [sys.executable, "-m", "audiollm.command_line.cli", *request["arguments"]])
    from audiollm.command_line.cli import main
    from audiollm.corpora import librispeech

    if request["table"] is not None:
        table = {split: librispeech.PublishedArchive(**row) for split, row in request["table"].items()}
        librispeech.open_source = functools.partial(librispeech.open_source, table=table)
    sys.argv = ["audiollm", *request["arguments"]]
    main()


def _fork(request: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code: Any = 1
    try:
        _become(request)
        code = 0
    except SystemExit as ended:  # as the interpreter does it
        code = ended.code or 0
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _serve() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from audiollm.corpora import prepare

    for kind in prepare.SOURCES.values():
        importlib.import_module(f"audiollm.corpora.{kind.module}")
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any] = {}
        if "poll" in request:
            pid, status, usage = os.wait4(request["poll"], os.WNOHANG)
            answer = {"code": os.waitstatus_to_exitcode(status) if pid else None, "peak_bytes": usage.ru_maxrss << 10}
        elif "arguments" in request:
            answer = {"pid": _fork(request)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    sys.path.pop(0)  # this folder: what is run must not find tests
    _serve()

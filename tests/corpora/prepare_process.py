"""
`audiollm prepare` as processes that tests kill, interrupt and starve.

Importing takes longer than what is tested. One process, this file run as a script, imports everything once and forks a
process for each command; with `fresh`, a command is an interpreter of its own, started as users start it.
"""

import contextlib
import hashlib
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: What is published, as JSON, in place of OpenSLR's table.
TABLE_VARIABLE = "TEST_OPENSLR_TABLE"
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
    """Starts commands; with `fresh`, as `python -m audiollm.cli`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._count = 0
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        self.ask({"ready": True})

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def start(
        self, *arguments: Any, table: dict[str, Any] | None = None, fresh: bool = False, file_bytes: int | None = None
    ) -> Command:
        """
        Starts `audiollm prepare`.

        Args:
            arguments: what follows it.
            table: what LibriSpeech is published as, by split.
            fresh: in an interpreter of its own.
            file_bytes: no file may grow beyond.
        """
        self._count += 1
        files = [self.folder / f"{self._count}.{name}" for name in ("stdout", "stderr")]
        request = {"arguments": ["prepare", *map(str, arguments)], "files": list(map(str, files)), "fresh": fresh}
        pid = self.ask(request | {"table": table, "file_bytes": file_bytes})["pid"]
        return Command(self, pid, *files)

    def run(self, *arguments: Any, **options: Any) -> Command:
        """Starts a command and waits for its end."""
        command = self.start(*arguments, **options)
        command.wait()
        return command

    def succeed(self, *arguments: Any, **options: Any) -> Command:
        """As `run`, of one that must succeed."""
        command = self.run(*arguments, **options)
        assert command.code == 0, command.stderr
        return command

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@contextlib.contextmanager
def launching(folder: Path) -> Iterator[Launcher]:
    """A launcher while it is up."""
    launcher = Launcher(folder)
    try:
        yield launcher
    finally:
        launcher.close()


def contents(folder: Path) -> dict[str, str]:
    """Checksum of every file below a folder, by its path; what links lead to, of links; locks hold nothing."""
    return {
        path.relative_to(folder).as_posix(): f"-> {os.readlink(path)}"
        if path.is_symlink()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or (path.is_file() and not path.name.endswith("lock"))
    }


# ------------------------------------------------------------------------------------------------------- the process


def replace_table(rows: dict[str, dict[str, Any]]) -> None:
    """Another table of published archives for [`librispeech.open_source`], by its own argument."""
    import functools

    from audiollm.corpora import librispeech
    from audiollm.corpora.librispeech import PublishedArchive

    table = {split: PublishedArchive(**row) for split, row in rows.items()}
    librispeech.open_source = functools.partial(librispeech.open_source, table=table)


def _become(request: dict[str, Any]) -> None:
    """In the forked process: runs the command as the console script does."""
    os.setsid()
    for number, name in enumerate(request["files"], start=1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if request["file_bytes"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_bytes"],) * 2)
    if request["fresh"]:
        os.execv(sys.executable, [sys.executable, "-m", "audiollm.cli", *request["arguments"]])
    if request["table"] is not None:
        replace_table(request["table"])
    sys.argv = ["audiollm", *request["arguments"]]
    from audiollm.cli import main

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
        if "ready" in request:
            answer: dict[str, Any] = {}
        elif "poll" in request:
            pid, status, usage = os.wait4(request["poll"], os.WNOHANG)
            answer = {"code": os.waitstatus_to_exitcode(status) if pid else None, "peak_bytes": usage.ru_maxrss << 10}
        else:
            answer = {"pid": _fork(request)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    sys.path.pop(0)  # this folder: what is run must not find tests
    _serve()

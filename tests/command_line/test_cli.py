"""The `audiollm` command: what it lists, that each name leads somewhere, and what it imports."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import prepared_python
import pytest
from audiollm.command_line import cli

#: Packages that take longer to import than all else that help does.
HEAVY = {"accelerate", "datasets", "huggingface_hub", "numpy", "pandas", "peft", "pyarrow", "torch", "transformers"}
#: Runs statements and prints which modules they have imported, in the last line.
IMPORTED = "import json, sys\n{}\nprint('\\n' + json.dumps(sorted(sys.modules)))"
#: Shows the help of all commands as the console script does, each with a form feed after it.
HELP = """
from audiollm.command_line import cli
for name in cli.COMMANDS:
    sys.argv = ["audiollm", name, "--help"]
    try:
        cli.main()
    except SystemExit as error:
        assert not error.code
    print("\\f")
"""


def run(statements: str, **environment: str) -> tuple[str, set[str]]:
    """Return what a process prints, and the modules that it has imported, after these statements."""
    command = [sys.executable, "-c", IMPORTED.format(statements)]
    inherited = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run(command, capture_output=True, text=True, env=inherited | environment)
    assert done.returncode == 0, done.stderr
    printed, _, modules = done.stdout.rstrip("\n").rpartition("\n")
    return printed, set(json.loads(modules))


def with_torch(statements: str) -> subprocess.CompletedProcess[str]:
    """Run statements in a process that begins with torch imported, but nothing of Hugging Face's."""
    return prepared_python.run(statements, env=os.environ, cwd=Path.cwd())


@pytest.mark.quick
def test_the_package_imports_nothing_heavy() -> None:
    assert not run("import audiollm, audiollm.command_line.cli")[1] & HEAVY


@pytest.mark.parametrize("order", [1, -1], ids=["ours first", "theirs first"])
def test_auto_classes_know_the_model_whatever_is_imported_first(order: int) -> None:
    imports = ["import audiollm", "from transformers import AutoConfig, AutoModel"][::order]
    checks = [
        "config = AutoConfig.for_model('audiollm')",
        "assert type(config) in AutoModel._model_mapping",
        "from transformers.models.auto.processing_auto import PROCESSOR_MAPPING",
        "assert PROCESSOR_MAPPING[type(config)].__name__ == 'AudioLlmProcessor'",
    ]
    done = with_torch("\n".join([*imports, *checks]))
    assert done.returncode == 0, done.stderr


def test_inference_and_publishing_need_no_extra_and_a_missing_one_is_named() -> None:
    of_extras = [
        "datasets",
        "jiwer",
        "kaldialign",
        "matplotlib",
        "pandas",
        "pyarrow",
        "gradio",
        "starlette",
        "uvicorn",
    ]
    rooms = [f"inference.{name}" for name in ("answering", "generate", "chat", "transcribe", "summarize", "export")]
    rooms += ["publishing.card", "publishing.push", "publishing.shrink", "command_line.embedded_bases"]
    statements = [f"import sys\nsys.modules.update(dict.fromkeys({of_extras}))"]
    statements += [f"import audiollm.{room}" for room in rooms]
    statements += ["from audiollm.command_line import cli\nsys.argv = ['audiollm', 'serve']\ncli.main()"]
    done = with_torch("\n".join(statements))
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "uvicorn" in done.stderr and "audiollm[serving]" in done.stderr


def call(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["audiollm", *arguments])
    cli.main()


def test_help_lists_all_commands_and_so_does_the_refusal_of_another(monkeypatch, capsys) -> None:
    call([], monkeypatch)
    printed = capsys.readouterr().out
    assert all(f"{name} " in printed and what in printed for name, (_, what) in cli.COMMANDS.items())
    call(["--help"], monkeypatch)
    assert capsys.readouterr().out == printed
    with pytest.raises(SystemExit, match="no command 'trian'") as caught:
        call(["trian", "--help"], monkeypatch)
    assert all(name in str(caught.value.code) for name in cli.COMMANDS)


def test_help_is_the_same_without_the_libraries(monkeypatch, capsys) -> None:
    """In a process of its own no library is imported; here they are, and the parser reads the real classes."""
    monkeypatch.setenv("COLUMNS", "100")
    printed, modules = run(HELP)
    assert not modules & HEAVY
    for name, light in zip(cli.COMMANDS, printed.rstrip("\n\f").split("\f"), strict=True):
        with pytest.raises(SystemExit) as caught:
            call([name, "--help"], monkeypatch)
        assert caught.value.code == 0
        expected = capsys.readouterr().out
        if name == "train":  # whose further options are transformers' own
            assert len(light) > 2000 and {*re.findall(r"--\w+", light)} < {*re.findall(r"--\w+", expected)}
        else:
            assert light.strip() == expected.strip()


def test_the_console_script_ends_with_status_and_message() -> None:
    script = Path(sys.executable).with_name("audiollm")
    start = [str(script)] if script.exists() else [sys.executable, "-m", "audiollm.command_line.cli"]
    for arguments, status, words in ((["bases", "no-such"], 1, "'no-such'"), (["--version"], 0, version("audiollm"))):
        done = subprocess.run([*start, *arguments], capture_output=True, text=True, timeout=120)
        assert done.returncode == status and words in done.stderr + done.stdout and "Traceback" not in done.stderr


@pytest.mark.parametrize(("given", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_wait_passively_before_torch_is_loaded(given: str | None, expected: str) -> None:
    code = "import os, audiollm; print(os.environ)"
    printed, modules = run(code, **({"OMP_WAIT_POLICY": given} if given else {}))
    assert f"'OMP_WAIT_POLICY': '{expected}'" in printed and "torch" not in modules


@pytest.mark.parametrize("error", ["KeyboardInterrupt()", "RuntimeError('torch was imported by half')"])
def test_a_command_that_is_interrupted_while_it_is_imported_says_so(error: str, tmp_path) -> None:
    """An interrupt of C code may come out as another error."""
    code = f"""
import signal, sys
from audiollm.command_line import cli, interruption
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "audiollm.publishing.card":
            interruption._came.append(signal.SIGINT)
            raise {error}
sys.meta_path.insert(0, Finder())
sys.argv = ["audiollm", "card"]
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 130 and done.stderr.strip() == "Interrupted."

"""The `audiollm` command: what it lists, that each name leads somewhere, and the two ways to call it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from audiollm import cli

#: What takes longer to import than all else that help does.
HEAVY = {"accelerate", "datasets", "huggingface_hub", "numpy", "pandas", "peft", "pyarrow", "torch", "transformers"}
#: Runs statements and prints which modules they have imported, in the last line.
IMPORTED = "import json, sys\n{}\nprint('\\n' + json.dumps(sorted(sys.modules)))"
#: Shows the help of a command as the console script does.
HELP = """
from audiollm import cli
sys.argv = ["audiollm", {!r}, "--help"]
try:
    cli.main()
except SystemExit as error:
    assert not error.code
"""


def run(statements: str) -> tuple[str, set[str]]:
    """Return what a process prints, and the modules that it has imported, after these statements."""
    command = [sys.executable, "-c", IMPORTED.format(statements)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    printed, _, modules = done.stdout.rstrip("\n").rpartition("\n")
    return printed, set(json.loads(modules))


@pytest.mark.quick
def test_the_package_imports_nothing_heavy() -> None:
    assert not run("import audiollm, audiollm.cli")[1] & HEAVY


@pytest.mark.parametrize(
    "statements",
    [
        "import audiollm\nfrom transformers import AutoModel, AutoProcessor",
        "from transformers import AutoModel, AutoProcessor\nimport audiollm",
        "from audiollm.modeling_audiollm import AudioLlmModel\nfrom transformers import AutoModel, AutoProcessor",
        "from audiollm import AudioLlmProcessor\nfrom transformers import AutoModel, AutoProcessor",
    ],
)
def test_auto_classes_know_the_model_whatever_is_imported_first(statements: str) -> None:
    checks = [
        "from transformers import AutoConfig",
        "config = AutoConfig.for_model('audiollm')",
        "assert type(config) in AutoModel._model_mapping",
        "from transformers.models.auto.processing_auto import PROCESSOR_MAPPING",
        "assert PROCESSOR_MAPPING[type(config)].__name__ == 'AudioLlmProcessor'",
    ]
    assert "audiollm.modeling_audiollm" in run("\n".join([statements, *checks]))[1]


#: What only extras bring.
OF_EXTRAS = (
    "datasets",
    "jiwer",
    "kaldialign",
    "matplotlib",
    "pandas",
    "pyarrow",
    "gradio",
    "starlette",
    "uvicorn",
)
WITHOUT = f"import sys\nsys.modules.update(dict.fromkeys({OF_EXTRAS}))\n"


def test_inference_and_publishing_need_no_extra() -> None:
    rooms = [
        "inference.answering",
        "inference.generate",
        "inference.chat",
        "inference.transcribe",
        "inference.summarize",
    ]
    rooms += ["inference.export", "publishing.card", "publishing.push", "publishing.shrink", "embedded_bases"]
    run(WITHOUT + "".join(f"import audiollm.{room}\n" for room in rooms))


@pytest.mark.parametrize(
    ("command", "package", "extra"), [("train", "datasets", "train"), ("serve", "starlette", "serving")]
)
def test_a_missing_extra_is_named(command: str, package: str, extra: str) -> None:
    missing = f"import sys\nsys.modules[{package!r}] = None\n"
    statements = missing + f"from audiollm import cli\nsys.argv = ['audiollm', {command!r}]\ncli.main()"
    done = subprocess.run([sys.executable, "-c", statements], capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert package in done.stderr and f"audiollm[{extra}]" in done.stderr


def call(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["audiollm", *arguments])
    cli.main()


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_help_lists_all_commands(arguments, monkeypatch, capsys) -> None:
    call(arguments, monkeypatch)
    printed = capsys.readouterr().out
    assert printed.startswith("usage: audiollm COMMAND")
    for name, (_, what) in cli.COMMANDS.items():
        assert f"{name} " in printed and what in printed


def test_an_unknown_command_is_refused_with_the_known_ones(monkeypatch) -> None:
    with pytest.raises(SystemExit) as caught:
        call(["trian", "--help"], monkeypatch)
    assert "no command 'trian'" in str(caught.value.code)
    assert all(name in str(caught.value.code) for name in cli.COMMANDS)


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_help_is_the_same_without_the_libraries(name: str, monkeypatch, capsys) -> None:
    """In a process of its own no library is imported; here they are, and the parser reads the real classes."""
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as caught:
        call([name, "--help"], monkeypatch)
    assert caught.value.code == 0
    expected = capsys.readouterr().out
    printed, modules = run(HELP.format(name))
    assert not modules & HEAVY
    if name == "train":  # whose further options are transformers' own
        assert len(printed) > 2000 and {*re.findall(r"--\w+", printed)} < {*re.findall(r"--\w+", expected)}
    else:
        assert printed.strip() == expected.strip()


def test_arguments_reach_the_command(monkeypatch) -> None:
    with pytest.raises(SystemExit) as caught:
        call(["train", "--data_path", "x.json", "--batch_size", "0"], monkeypatch)
    assert "--batch_size is 0" in str(caught.value.code)


@pytest.mark.parametrize("way", ["console script", pytest.param("module", marks=pytest.mark.slow)])
def test_the_console_script_and_the_module_answer_alike(way: str, tmp_path: Path) -> None:
    """In a real process: the console script, and `python -m` of the room."""
    script = Path(sys.executable).with_name("audiollm")
    missing = str(tmp_path / "missing.json")
    start = [str(script)] if script.exists() else [sys.executable, "-m", "audiollm.cli"]
    start = [*start, "train"] if way == "console script" else [sys.executable, "-m", "audiollm.training.train"]
    command = [*start, "--data_path", missing, "--output_dir", str(tmp_path / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("audiollm train: ")
    assert missing in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(("given", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_wait_passively_before_torch_is_loaded(given: str | None, expected: str) -> None:
    code = (
        "import os, sys; from audiollm import cli; sys.argv = ['audiollm']; cli.main(); "
        "print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {"OMP_WAIT_POLICY": given} if given else {}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-2:] == [expected, "False"]

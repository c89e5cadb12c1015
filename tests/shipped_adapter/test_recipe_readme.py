"""The recipe's commands: every command, option and script of its README exists."""

import re
import shlex
import sys
from pathlib import Path

import pytest
from audiollm.command_line import cli

ROOT = Path(__file__).parents[2]
README = (ROOT / "shipped_adapter" / "recipe" / "README.md").read_text(encoding="utf-8")


def commands() -> list[list[str]]:
    """Words of the commands in the README's blocks."""
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", README, re.DOTALL)).replace("\\\n", " ")
    lines = (re.sub(r"(^|\s)#.*", "", line) for line in blocks.splitlines())
    return [shlex.split(line) for line in lines if line.strip()]


def options(words: list[str]) -> set[str]:
    return {word for word in words if word.startswith("--")}


def test_commands_and_options_exist(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    called = [words[1:] for words in commands() if words[0] == "audiollm"]
    assert len(called) > 8
    for words in called:
        name = words[:2] if words[0] == "prepare" else words[:1]
        stage = ["--stage", words[words.index("--stage") + 1]] if "--stage" in words else []
        monkeypatch.setattr(sys, "argv", ["audiollm", *name, *stage, "--help"])
        with pytest.raises(SystemExit):
            cli.main()
        known = set(re.findall(r"--\w[\w-]*", capsys.readouterr().out))
        assert options(words) <= known, f"{shlex.join(words)}: {options(words) - known}"


def test_scripts_exist_and_take_the_options() -> None:
    called = [words[1:] for words in commands() if words[0] == "python"]
    assert {Path(words[0]).name for words in called} >= {"amazon_queen.py", "sentences.py", "questions.py"}
    for script, *words in called:
        sources = [ROOT / script, *(ROOT / script).parent.glob("common.py")]
        text = "".join(source.read_text(encoding="utf-8") for source in sources)
        assert all(f'"{option}"' in text for option in options(words)), script

"""Installed packages are whole: the sdist, and the wheel that `pip install .` makes of it, used from another folder."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from configparser import ConfigParser
from pathlib import Path

import audiollm
import pytest

ROOT = Path(__file__).parents[1]
#: Files of a checkout that are not the project's.
NOT_SOURCES = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "runs", "data")

BUILD_SDIST = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
USE = """
import json
import audiollm.evaluation, evaluate
from audiollm.corpora.prompts import LICENCE_FILE, load_studio_prompts
from audiollm.corpora.unseen import load_unseen_speech
from audiollm.training.train import parse_arguments
from audiollm.shipped_adapter import FOLDER

evaluate.load(audiollm.evaluation.METRIC, "word_error").compute(
    predictions=["white paper"], references=["Whitepaper"], normaliser="leaderboard"
)
assert audiollm.AudioLlmConfig.from_pretrained(FOLDER).lora_adapters
assert LICENCE_FILE.is_file() and len(load_unseen_speech()) == 10 and len(load_studio_prompts()) > 500
print(json.dumps({"file": audiollm.__file__, "version": audiollm.__version__}))
"""
SETUP = ConfigParser()
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")


def run(*command: object, cwd: Path, **environment: str) -> str:
    """Run a command in `cwd`; return its output."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def rooms() -> dict[str, str]:
    """Return the folders of the checkout by the package that each is."""
    folders = [path.parent for depth in ("*", "*/*") for path in ROOT.glob(f"{depth}/__init__.py")]
    names = [folder.relative_to(ROOT).as_posix() for folder in folders]
    names = [name for name in names if name.partition("/")[0] not in ("tests", "benchmarks")]
    return {
        ("audiollm." + name.replace("/", ".")).replace("audiollm.modeling_audiollm", "audiollm"): name
        for name in names
    }


def test_versions_agree() -> None:
    version = SETUP["metadata"]["version"]
    assert audiollm.__version__ == version
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (\S+)$", citation, re.MULTILINE)[1] == version


def test_every_room_is_packaged() -> None:
    """A new room, or folder of one, must be named in setup.cfg, which lists packages one by one."""
    options = SETUP["options"]
    assert set(options["packages"].split()) == rooms().keys()
    assert dict(line.split(" = ") for line in options["package_dir"].strip().splitlines()) == rooms()


# ---- built and installed -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment in which the build backend that pyproject.toml asks for is importable, fetched once for all tests."""
    folder = tmp_path_factory.mktemp("backend")
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    requirements = ast.literal_eval(re.search(r"^requires = (\[.*\])$", pyproject, re.MULTILINE)[1])
    pip = [sys.executable, "-m", "pip", "install", "--target", str(folder)]
    done = subprocess.run([*pip, *requirements], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"the build backend cannot be fetched: {done.stderr}")
    return {"PYTHONPATH": str(folder)}


@pytest.fixture(scope="module")
def unpacked(backend, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one folder of the source distribution, built from a copy of the checkout; installs start from it."""
    checkout, built = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("sdist")
    shutil.copytree(ROOT, checkout, ignore=NOT_SOURCES, dirs_exist_ok=True)
    shutil.copytree(ROOT / ".ci", checkout / ".ci")
    name = run(sys.executable, "-c", BUILD_SDIST, built, cwd=checkout, **backend).splitlines()[-1]
    with tarfile.open(built / name) as archive:
        archive.extractall(built, filter="data")
    return built / name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def wheel(backend, unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source distribution."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir")
    run(*pip, folder, unpacked, cwd=folder, **backend)
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.slow
def test_sdist_holds_all_that_is_tested_and_shown(unpacked: Path) -> None:
    shown = ("README.md", "LICENSE", "CITATION.cff", "CHANGELOG.md", "CONTRIBUTING.md", "model_card.md", "Makefile")
    for name in (*shown, ".ci/run", "constraints.txt", "ruff.toml", "benchmarks/demo.py", "tests/conftest.py"):
        assert (unpacked / name).read_bytes() == (ROOT / name).read_bytes(), name
    assert not [*unpacked.rglob("*.pyc")]


@pytest.mark.slow
def test_wheel_holds_all_rooms_and_the_corpus(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (entry_points,) = (archive.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    expected = set()
    for package, folder in rooms().items():
        patterns = ["*.py", *SETUP["options.package_data"].get(package, "").split(", ")]
        paths = [path for pattern in filter(None, patterns) for path in (ROOT / folder).glob(pattern)]
        place = package.replace(".", "/")
        expected |= {f"{place}/{path.relative_to(ROOT / folder).as_posix()}" for path in paths if path.is_file()}
    metadata = {name for name in names if ".dist-info/" in name}
    assert names - metadata == expected
    licences = set(SETUP["metadata"]["license_files"].split())
    assert {name.partition("/licenses/")[2] for name in metadata if "/licenses/" in name} == licences
    assert "audiollm = audiollm.command_line.cli:main" in entry_points


@pytest.mark.slow
def test_the_wheel_works_from_elsewhere(wheel: Path, tmp_path: Path) -> None:
    """In an environment with this one's dependencies, but not with its AudioLLM, which is an editable install."""
    home, elsewhere = tmp_path / "environment", tmp_path / "elsewhere"
    venv.create(home, with_pip=False)
    elsewhere.mkdir()
    python = home / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", wheel, cwd=tmp_path)
    # Only now, so that pip leaves the outer AudioLLM alone. Editable installs in a folder added like this are not seen.
    own = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    (own / "outer.pth").write_text(sysconfig.get_path("purelib"))
    found = json.loads(run(python, "-c", USE, cwd=elsewhere, PYTHONPATH="").splitlines()[-1])
    assert Path(found["file"]).is_relative_to(own) and found["version"] == audiollm.__version__
    helped = run(home / "bin" / "audiollm", "--help", cwd=elsewhere, PYTHONPATH="")
    assert "audiollm COMMAND" in helped and "train" in helped

"""Disks that are read-only or full: the place is named, nothing half-written is left, and with room the command goes on."""

import contextlib
import io
import json
import resource
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
from audiollm.command_line.embedded_bases import EMBEDDED_BASES, fetch
from command_calls import Place, call, make_place
from safetensors.torch import load_file
from small_corpus import contents
from small_disk import mounted

DISK_KIB = 1 << 20
WRITERS = ["train", "transcribe", "summarize", "evaluate", "prepare", "validate", "shrink", "export", "prompts"]
READ_ONLY = ("Read-only file system", "nothing can be written to this folder", "cannot be written to")
NO_ROOM = ("there is no room left (File too large)", "The feature cache", "could not be written to its end")
#: Bytes that a file may have, for each command, and the output that does not fit into them.
LIMITS = [
    pytest.param("train", 30_000, "weights", marks=pytest.mark.slow),
    ("train", 150_000, "the optimizer's state"),
    pytest.param("train", 2_000, "features", marks=pytest.mark.slow),
    ("transcribe", 300, "partial transcripts"),
    ("transcribe", 600, "transcripts"),
    pytest.param("summarize", 500, "answers", marks=pytest.mark.slow),
    pytest.param("evaluate", 500, "the run's record", marks=pytest.mark.slow),
    pytest.param("evaluate", 15_000, "the report", marks=pytest.mark.slow),
    ("validate", 500, "the report"),
    ("shrink", 30_000, "weights"),
    ("export", 30_000, "weights"),
]


def elsewhere(place: Place, outputs: Path) -> Place:
    """Return the same with outputs in another folder."""
    return replace(place, outputs=outputs)


# ---------------------------------------------------------------------------------------------------------- read-only


@pytest.fixture(scope="module")
def read_only(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that root cannot write to either; the one inside is `outputs` of commands, and `there` is a file."""
    disk = tmp_path_factory.mktemp("read-only") / "disk"
    with mounted(disk, DISK_KIB) as remount:
        (disk / "outputs").mkdir()
        remount("ro")
        yield disk / "outputs"


@pytest.mark.parametrize("command", WRITERS)
def test_a_read_only_output_is_named_before_the_work(command, place, read_only, capsys) -> None:
    ended = call(elsewhere(place, read_only).line(command))
    said = f"{ended} {capsys.readouterr().err}"
    assert ended not in (0, None) and any(words in said for words in READ_ONLY), said
    assert str(read_only) in said
    assert "x real time" not in said and not list(read_only.iterdir())


def test_read_only_caches_of_features_bases_and_datasets_are_named(place, read_only, tmp_path, monkeypatch) -> None:
    line = elsewhere(place, tmp_path).line("train")
    assert str(read_only) in str(call([*line, "--feature_cache", str(read_only)]))
    with monkeypatch.context() as patch, pytest.raises(OSError, match=f"Read-only file system: '{read_only}"):
        patch.setenv("AUDIOLLM_CACHE", str(read_only))
        fetch(next(iter(EMBEDDED_BASES)))
    line[line.index(str(place.data))] = str(tmp_path / "data.parquet")
    datasets.Dataset.from_list(json.loads(place.data.read_text())).to_parquet(tmp_path / "data.parquet")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", read_only)
    said = str(call(line))
    assert "Read-only file system" in said and str(read_only) in said


def test_a_read_only_checkpoint_is_read_and_its_card_is_not_written(place, tmp_path, capsys) -> None:
    disk = tmp_path / "disk"
    with mounted(disk, DISK_KIB) as remount:
        there = make_place(disk / "place", tmp_path / "outputs")
        remount("ro")
        assert call(there.line("generate")) == 0 and call(there.line("shrink")) == 0
        assert call(there.line("train")[:1] + ["--model_path", str(there.model), *there.line("train")[5:]]) == 0
        assert "Read-only file system" in str(call(there.line("card")))


# --------------------------------------------------------------------------------------------------------------- full


@contextlib.contextmanager
def limited(file_bytes: int) -> Iterator[io.StringIO]:
    """Bound the size of all files of this process; yield its output, which goes to no file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, hard))
        try:
            yield said
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(("command", "file_bytes", "what"), LIMITS)
def test_without_room_the_place_is_named_and_with_room_it_goes_on(command, file_bytes, what, place, tmp_path) -> None:
    here = elsewhere(place, tmp_path / "outputs")
    line = here.line(command)
    with limited(file_bytes) as said:
        print(call(line))
    assert any(words in said.getvalue() for words in NO_ROOM), said.getvalue()
    assert str(here.outputs) in said.getvalue() and "Traceback" not in said.getvalue()
    for path in here.outputs.rglob("*.safetensors"):
        load_file(path)
    assert not [path for name in ("shrunk", "exported") for path in here.outputs.glob(f"*{name}*")]
    if command == "transcribe":
        line.append("--overwrite")
    assert call(line) == 0
    whole = elsewhere(place, tmp_path / "whole")
    assert call(whole.line(command)) == 0
    assert contents(here.outputs).keys() == contents(whole.outputs).keys()
    for name in ("transcripts", "summaries", "shrunk", "exported"):
        assert contents(here.outputs / name) == contents(whole.outputs / name)


def test_a_disk_that_fills_up_while_features_are_stored(place, tmp_path) -> None:
    """Stored features stay; the rest is computed once there is room."""
    disk = tmp_path / "disk"
    line = [*elsewhere(place, tmp_path).line("train"), "--feature_cache", str(disk / "features")]
    with mounted(disk, 32) as remount:
        filler = disk / "filler"
        filler.write_bytes(bytes(24 << 10))
        said = str(call(line))
        assert str(disk / "features") in said and "make room" in said, said
        stored = {path: path.stat().st_mtime_ns for path in disk.rglob("*.safetensors")}
        remount("size=1g")
        assert call(line) == 0
        after = {path: path.stat().st_mtime_ns for path in disk.rglob("*.safetensors")}
        assert stored.items() <= after.items() and len(stored) < len(after) == len(place.names)
        assert not list(disk.rglob("*.part"))

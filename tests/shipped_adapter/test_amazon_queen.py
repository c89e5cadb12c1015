"""The script that makes the speech table: an archive of a few entries in the game's formats, and its package."""

import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from audiollm.corpora.examples import read_examples

sys.path.insert(0, str(Path(__file__).parents[2] / "shipped_adapter" / "recipe"))

import amazon_queen

AMOS = bytes(amazon_queen.AMOS_HEADER_BYTES)


def string(text: str, alignment: int) -> bytes:
    """A string as `Data.string` reads it, where it begins at a multiple of the alignment."""
    written = bytes([len(text)]) + text.encode("latin-1")
    return written + bytes(-len(written) % alignment if text else 0)


def dialogue(key: int, joe: list[tuple[int, str]], person: list[tuple[int, str]], farewells: tuple[str, str]) -> bytes:
    """A dialogue of one level."""
    tables = [b"".join(struct.pack(">hh", 0, n) + string(text, 4) for n, text in lines) for lines in (joe, person)]
    start = amazon_queen.DIALOGUE_HEADER_BYTES + amazon_queen.LEVEL_BYTES
    person_start = start + len(tables[0])
    end = person_start + len(tables[1])
    header = struct.pack(">11h3H", -1, 0, key, len(joe), len(person), *[0] * 6, person_start, 0, end)
    body = header.ljust(amazon_queen.DIALOGUE_HEADER_BYTES + amazon_queen.LEVEL_BYTES, b"\0")
    return AMOS + body + b"".join(tables) + b"".join(string(text, 2) for text in farewells)


def cutscene(lines: list[str]) -> bytes:
    header = struct.pack(">HhHHH", 0, -len(lines), 0, 0, 10)
    return AMOS + header + string("", 2) + b"".join(string(text, 2) for text in lines)


@pytest.fixture
def archive() -> bytes:
    """A `queen.1c` of a dialogue with an old role, one with a new role, a cutscene and a description."""
    bud = dialogue(
        2,
        joe=[(0, "Hi Bud.*03"), (10, "One,*XY00(237,112)two.*14")],
        person=[(10, "What?"), (11, "Not recorded.")],
        farewells=("You again!*01", "Bye."),
    )
    bob = dialogue(6, joe=[(5, "Hello.")], person=[(5, "What?"), (6, "Only mine.")], farewells=("", ""))
    verbs = ["verb"] * amazon_queen.NUM_VERBS
    texts = ["A bone!*24", "name", "room", *verbs, "I can't.", *["x"] * (amazon_queen.NUM_RESPONSES - 1)]
    recorded = (
        "02SSSSJ1 02000AJ1 02000AJ2 02000AP1 02XXXXP1 02XXXXJ1 060005P1 060006P1 C1A__012 JOE00411 JOE00011 ZZZZ"
    )
    files = {
        "BUD1.DOG": bud,
        "BOB1.DOG": bob,
        "C1A.CUT": cutscene(["*FLHey!*01Over here!*01"]),
        "QUEEN.JAS": AMOS + struct.pack(">4H", 1, 1, 0, 1),
        "QUEEN2.JAS": "\r\n".join(texts).encode(),
        **{f"{name}.SB": name.encode() * 10 for name in recorded.split()},
    }
    place = amazon_queen.HEADER.size + len(files) * amazon_queen.ENTRY.size
    entries = []
    for name, content in files.items():
        entries.append(amazon_queen.ENTRY.pack(name.encode(), 1, place, len(content)))
        place += len(content)
    header = amazon_queen.HEADER.pack(b"QTBL", b"CEM10", 1, len(files))
    return header + b"".join(entries) + b"".join(files.values())


def write_package(folder: Path, content: bytes) -> None:
    """A Debian package `queen.deb` that holds an archive and the game's readme."""
    control = "Package: queen\nVersion: 1\nArchitecture: all\nMaintainer: nobody\nDescription: lines\n"
    readme = amazon_queen.gzip.compress(b"free")
    for name, held in (("DEBIAN/control", control.encode()), ("usr/queen.1c", content), ("usr/readme.txt.gz", readme)):
        (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "tree" / name).write_bytes(held)
    subprocess.run(["dpkg-deb", "--build", "tree", "queen.deb"], cwd=folder, check=True)


def test_lines_are_paired_with_their_recordings(archive: bytes) -> None:
    rows = {row["id"]: row for row in amazon_queen.make_table(amazon_queen.read_archive(archive)).to_pylist()}
    assert {name: (row["text"], row["role"]) for name, row in rows.items()} == {
        "02SSSSJ1": ("Hi Bud.", "joe"),
        "02000AJ1": ("One,", "joe"),
        "02000AJ2": ("two.", "joe"),
        "02000AP1": ("What?", "bud"),
        "02XXXXP1": ("You again!", "bud"),
        "02XXXXJ1": ("Bye.", "joe"),
        "060006P1": ("Only mine.", "bob"),  # the other line of a new role is one that is trained on
        "C1A__012": ("Hey!", "cutscene"),
        "JOE00411": ("A bone!", "joe"),
        "JOE00011": ("I can't.", "joe"),
    }
    assert {row["split"] for row in rows.values() if row["role"] == "bob"} == {"new_roles"}
    assert rows["02000AJ2"]["audio"] == {"bytes": b"02000AJ2" * 10, "path": "02000AJ2.mp3"}


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="packages are unpacked by Debian's dpkg-deb")
@pytest.mark.parametrize("cutscenes", [True, False])
def test_a_package_becomes_a_table_and_training_data(
    archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cutscenes: bool
) -> None:
    write_package(tmp_path, archive)
    options = ["queen.deb", "--output_dir", "made", *([] if cutscenes else ["--without_cutscenes"])]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["amazon_queen.py", *options])
    amazon_queen.main()
    made = tmp_path / "made"
    assert len(pq.read_table(made / "amazon_queen.parquet")) == 10
    assert (made / "amazon_queen_readme.txt").read_bytes() == b"free"
    train = read_examples(made / "train.json")
    assert len(train) == 8 + cutscenes and all(Path(row.audio_paths[0]).is_file() for row in train)
    assert ("Hey!" in {row.response for row in train}) == cutscenes
    assert [row.response for row in read_examples(made / "new_roles.json")] == ["Only mine."]
    with pytest.raises(subprocess.CalledProcessError):
        amazon_queen.read_package(made / "train.json")


def test_what_is_no_archive_is_refused() -> None:
    with pytest.raises(ValueError, match="GIF8"):
        amazon_queen.read_archive(b"GIF89a" + bytes(30))
    with pytest.raises(ValueError, match="compression is 7"):
        amazon_queen.read_archive(amazon_queen.HEADER.pack(b"QTBL", b"CEM10", 7, 0))

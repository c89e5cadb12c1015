"""
Make a table of 6,481 spoken lines of *Flight of the Amazon Queen* (talkie, 1995), with their texts, from Debian's package.

    apt-get download flight-of-the-amazon-queen
    python shipped_adapter/recipe/amazon_queen.py flight-of-the-amazon-queen_1.0.0-9_all.deb --output_dir data/amazon_queen

Writes `amazon_queen.parquet` (id, audio, text, role, seconds, split), and for `audiollm train` the recordings in `audio/` with
`train.json` and `new_roles.json`. The game may be given away free of charge together with its readme, which is written
beside the table, and modified where that is said: this table is a modified form.

The formats were described by the authors of ScummVM's engine (https://www.scummvm.org, engines/queen).
"""

import argparse
import gzip
import io
import re
import struct
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from audiollm.corpora.examples import Example, write_examples
from audiollm.corpora.tasks import known_tasks

#: The archive, as Debian installs it.
INSTALLED = Path("/usr/share/scummvm/flight-of-the-amazon-queen/queen.1c")
README_NAME = "readme.txt.gz"
#: The archive's header: magic, version, two bytes, kind of compression, number of entries.
MAGIC, HEADER, COMPRESSED_AS_MP3 = b"QTBL", struct.Struct(">4s6s2xBH"), 1
#: An entry: name, bundle, offset, size in bytes.
ENTRY = struct.Struct(">12sBII")
#: The lines are MP3 of 16 kbit/s.
BYTES_PER_CENTISECOND = 20
#: Bytes before the data of a file that was made with AMOS.
AMOS_HEADER_BYTES = 20
#: Dialogues: bytes before Joe's lines, and of each level of the tree.
DIALOGUE_HEADER_BYTES, LEVEL_BYTES = 32, 96
#: A line is cut at a star with two characters for an event; after XY come its coordinates.
CUT, COMMAND_LENGTH, PLACE_COMMAND, PLACE_LENGTH = "*", 2, "XY", 11
#: Joe's replies to what cannot be done, and the verbs before them in the list of texts.
NUM_RESPONSES, NUM_VERBS = 40, 12
HERO, CUTSCENE = "joe", "cutscene"
#: Five roles that are kept out of training, as a development set of new speakers.
NEW_ROLES = ("bob", "jim", "lou", "tam", "witch")
TRAIN, DEVELOPMENT = "train", "new_roles"


def read_archive(content: bytes) -> dict[str, bytes]:
    """
    Return the files of a `queen.1c` by name.

    Raises:
        ValueError: it is no such archive, or not one with MP3.
    """
    if len(content) < HEADER.size or not content.startswith(MAGIC):
        raise ValueError(f"The archive begins with {content[:4]!r}; expected {MAGIC!r}, as queen.1c does.")
    _, _, compression, count = HEADER.unpack_from(content)
    if compression != COMPRESSED_AS_MP3:
        raise ValueError(f"The archive's compression is {compression}; expected {COMPRESSED_AS_MP3}, MP3.")
    files = {}
    for index in range(count):
        name, _, offset, size = ENTRY.unpack_from(content, HEADER.size + index * ENTRY.size)
        files[name.partition(b"\0")[0].decode("latin-1")] = content[offset : offset + size]
    return files


class Data:
    """Numbers and strings of a dialogue or a cutscene, by their place."""

    def __init__(self, file: bytes):
        self.bytes = file[AMOS_HEADER_BYTES:]

    def signed(self, place: int) -> int:
        return struct.unpack_from(">h", self.bytes, place)[0]

    def unsigned(self, place: int) -> int:
        return struct.unpack_from(">H", self.bytes, place)[0]

    def string(self, place: int, alignment: int) -> tuple[str, int]:
        """Return the string at a place, and the place after it."""
        length = self.bytes[place]
        end = place + 1 + length
        text = self.bytes[place + 1 : end].decode("latin-1")
        return text, end + (-end % alignment if length else 0)


def segments(text: str) -> Iterator[tuple[int, str]]:
    """Yield the parts of a line that are recordings of their own, with their numbers from 1."""
    number, start = 1, 0
    while (cut := text.find(CUT, start)) >= 0:
        yield number, text[start:cut]
        command = text[cut + 1 : cut + 1 + COMMAND_LENGTH]
        start = cut + 1 + COMMAND_LENGTH + (PLACE_LENGTH if command == PLACE_COMMAND else 0)
        number += 1
    yield number, text[start:]


def dialogue_lines(name: str, file: bytes) -> Iterator[tuple[str, str, str]]:
    """Yield (prefix of the recordings' names, line, role) of a dialogue."""
    data, role = Data(file), re.sub(r"\d*\.DOG$", "", name).lower()
    levels, key, joe_count, person_count = (data.signed(place) for place in (0, 4, 6, 8))
    person, farewell = data.unsigned(22), data.unsigned(26)
    joe = DIALOGUE_HEADER_BYTES + LEVEL_BYTES * abs(levels)
    for who, speaker, start, count in (("J", HERO, joe, joe_count), ("P", role, person, person_count)):
        place = start
        for index in range(count):
            number = data.signed(place + 2)
            text, place = data.string(place + 4, alignment=4)
            if who == "J" and index == 0 and number == 0:
                yield f"{key:02d}SSSSJ", text, HERO  # the first meeting
            yield f"{key:02d}{number & 0xFFFF:04X}{who}", text, speaker
    for who, speaker in (("P", role), ("J", HERO)):  # when they meet again
        text, farewell = data.string(farewell, alignment=2)
        yield f"{key:02d}XXXX{who}", text, speaker


def cutscene_lines(name: str, file: bytes) -> Iterator[tuple[str, str, str]]:
    """Yield what [`dialogue_lines`] does of a cutscene, which does not say who speaks."""
    data, base = Data(file), name.removesuffix(".CUT").ljust(5, "_")
    _, place = data.string(data.unsigned(8), alignment=2)
    for number in range(1, abs(data.signed(2)) + 1):
        if place >= len(data.bytes):
            return
        text, place = data.string(place, alignment=2)
        yield f"{base}{number:02d}", text, CUTSCENE


def description_lines(game: bytes, texts: bytes) -> Iterator[tuple[str, str, str]]:
    """Yield what Joe says of things (`QUEEN2.JAS`, numbered after his responses), and his responses."""
    data, lines = Data(game), texts.decode("latin-1").split("\r\n")
    rooms, names, descriptions = (data.unsigned(place) for place in (0, 2, 6))
    responses = descriptions + names + rooms + NUM_VERBS
    numbered = [*lines[responses : responses + NUM_RESPONSES], *lines[:descriptions]]
    for number, text in enumerate(numbered, start=1):
        yield f"JOE{number:04d}", text, HERO


def spoken_lines(files: dict[str, bytes]) -> dict[str, tuple[str, str]]:
    """Return text and role of the lines that have a recording, by the recording's id; of an id given twice, the first."""
    lines: list[tuple[str, str, str]] = []
    for name, file in files.items():
        if name.endswith(".DOG"):
            lines += dialogue_lines(name, file)
        elif name.endswith(".CUT"):
            lines += cutscene_lines(name, file)
    if {"QUEEN.JAS", "QUEEN2.JAS"} <= set(files):
        lines += description_lines(files["QUEEN.JAS"], files["QUEEN2.JAS"])
    found: dict[str, tuple[str, str]] = {}
    for prefix, line, role in lines:
        for number, part in segments(line):
            text, identity = " ".join(part.split()), f"{prefix}{number:X}"
            if text and f"{identity}.SB" in files:
                found.setdefault(identity, (text, role))
    return found


def make_table(files: dict[str, bytes]) -> pa.Table:
    """Return the table of an archive: lines of new roles whose text is in training too are left out."""
    lines = spoken_lines(files)
    trained = {text for text, role in lines.values() if role not in NEW_ROLES}
    rows = []
    for identity, (text, role) in sorted(lines.items()):
        if role in NEW_ROLES and text in trained:
            continue
        audio = files[f"{identity}.SB"]
        rows.append(
            {
                "id": identity,
                "audio": {"bytes": audio, "path": f"{identity}.mp3"},
                "text": text,
                "role": role,
                "seconds": round(len(audio) / BYTES_PER_CENTISECOND) / 100,
                "split": DEVELOPMENT if role in NEW_ROLES else TRAIN,
            }
        )
    return pa.Table.from_pylist(rows)


def write_training_data(table: pa.Table, folder: Path, cutscenes: bool = True) -> dict[str, int]:
    """Write the recordings and an examples file for each split; return the numbers of rows."""
    prompts = known_tasks()["transcribe"].prompts
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    examples: dict[str, list[Example]] = {TRAIN: [], DEVELOPMENT: []}
    for index, row in enumerate(table.to_pylist()):
        if row["role"] == CUTSCENE and not cutscenes:
            continue
        path = folder / "audio" / row["audio"]["path"]
        path.write_bytes(row["audio"]["bytes"])
        example = Example(prompts[index % len(prompts)], (str(path.absolute()),), row["text"])
        examples[row["split"]].append(example)
    for split, rows in examples.items():
        write_examples(folder / f"{split}.json", rows)
    return {split: len(rows) for split, rows in examples.items()}


def read_package(path: Path) -> dict[str, bytes]:
    """Return the files of a Debian package, by name without folders; raise CalledProcessError if it is none."""
    content = subprocess.run(["dpkg-deb", "--fsys-tarfile", path], check=True, stdout=subprocess.PIPE).stdout
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        members = [member for member in archive if member.isfile()]
        return {Path(member.name).name: archive.extractfile(member).read() for member in members}  # type: ignore[union-attr]


def main() -> None:
    """Make the table and the training data."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, nargs="?", default=INSTALLED, help="*.deb or queen.1c; %(default)s")
    parser.add_argument("--output_dir", type=Path, default=Path("data/amazon_queen"), help="default: %(default)s")
    parser.add_argument(
        "--without_cutscenes",
        action="store_true",
        help="leave cutscenes out of train.json: they may hold voices of the new roles",
    )
    options = parser.parse_args()
    if not options.source.is_file():
        parser.error(f"There is no {options.source}. Fetch it with: apt-get download flight-of-the-amazon-queen")
    if options.source.suffix == ".deb":
        package = read_package(options.source)
        archive, readme = package[INSTALLED.name], gzip.decompress(package[README_NAME])
    else:
        archive, readme = options.source.read_bytes(), b""
    table = make_table(read_archive(archive))
    options.output_dir.mkdir(parents=True, exist_ok=True)
    if readme:
        (options.output_dir / "amazon_queen_readme.txt").write_bytes(readme)
    pq.write_table(table, options.output_dir / "amazon_queen.parquet")
    counts = write_training_data(table, options.output_dir, not options.without_cutscenes)
    hours = sum(table["seconds"].to_pylist()) / 3600
    print(f"{len(table)} lines, {hours:.2f} h, in {options.output_dir}; rows for training and evaluation: {counts}")


if __name__ == "__main__":
    main()

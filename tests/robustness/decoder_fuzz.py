"""
Damaged recordings by the thousand, decoded in a process of their own that has little memory and little time for each.

    python tests/robustness/decoder_fuzz.py FOLDER MUTATIONS SEED

FOLDER holds whole recordings, which are damaged. What a library does that Python cannot catch, a crash or a hang, ends
this process alone, and its last line of standard output says which damage it was. The decoder is imported by itself,
without torch, so that the bound on memory is one on decoding.
"""

import faulthandler
import importlib
import json
import os
import resource
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType, SimpleNamespace

import numpy as np

ROOT = Path(__file__).parents[2]
ROOMS = {
    "audiollm": "modeling_audiollm",
    "audiollm.processing": "processing",
    "audiollm.inference": "inference",
    "audiollm.corpora": "corpora",
}
TARGET_RATE_HZ, MAX_SECONDS = 16_000, 3600.0
#: Address space that decoding a recording of a second may take beside what is taken before it begins.
MEMORY_BYTES = 1 << 30
#: For one recording; decoding a whole one takes milliseconds.
SECONDS_EACH = 20
#: Where headers are, in formats that have them at the beginning.
HEADER_BYTES = 200
#: What lengths, rates, counts and offsets lie about.
LIES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 1 << 20, 1 << 24, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF)
FIELD_WIDTHS = (1, 2, 4, 8)
MAX_FLIPS = 16


def flip(data: bytearray, random: np.random.Generator, others: list[bytes]) -> bytearray:
    """Other values for some bytes, anywhere or in the header."""
    reach = len(data) if random.random() < 0.5 else min(HEADER_BYTES, len(data))
    for position in random.integers(0, reach, random.integers(1, MAX_FLIPS + 1)):
        data[position] = random.integers(0, 256)
    return data


def cut(data: bytearray, random: np.random.Generator, others: list[bytes]) -> bytearray:
    """The end is missing."""
    return data[: random.integers(1, len(data))]


def lie(data: bytearray, random: np.random.Generator, others: list[bytes]) -> bytearray:
    """A number in the header is another one: a length, a rate, a count, an offset, a kind."""
    for _ in range(random.integers(1, 4)):
        width, order = int(random.choice(FIELD_WIDTHS)), "little" if random.random() < 0.5 else "big"
        value = int(random.choice(LIES)) % (1 << 8 * width)
        reach = len(data) if random.random() < 0.2 else min(HEADER_BYTES, len(data))
        position = int(random.integers(0, reach))
        data[position : position + width] = value.to_bytes(width, order)  # type: ignore[arg-type]
    return data


def splice(data: bytearray, random: np.random.Generator, others: list[bytes]) -> bytearray:
    """It goes on as another recording, of another format perhaps."""
    other = others[random.integers(len(others))]
    return data[: random.integers(1, len(data))] + other[random.integers(len(other)) :]


def move(data: bytearray, random: np.random.Generator, others: list[bytes]) -> bytearray:
    """A piece is missing, is there twice, or is zeros."""
    start, end = sorted(int(each) for each in random.integers(0, len(data), 2))
    kind = random.integers(3)
    piece = [b"", bytes(data[start:end]) * 2, bytes(end - start)][kind]
    return data[:start] + piece + data[end:]


DAMAGES = (flip, cut, lie, lie, splice, move)


def damaged(whole: list[bytes], seed: int, index: int) -> tuple[int, bytes]:
    """Return which recording was damaged, and what became of it: the same for the same seed and index."""
    random = np.random.default_rng([seed, index])
    chosen = index % len(whole)
    data = bytearray(whole[chosen])
    for _ in range(1 + int(random.random() < 0.3)):
        data = bytearray(DAMAGES[random.integers(len(DAMAGES))](data, random, whole)) or bytearray(b"\0")
    return chosen, bytes(data)


def import_readers() -> SimpleNamespace:
    """The project's readers of recordings: whole, block by block, and to measure them; without what their rooms import."""
    for name, folder in ROOMS.items():
        room = ModuleType(name)
        room.__path__ = [str(ROOT / folder)]
        sys.modules[name] = room
    decoder = importlib.import_module("audiollm.processing.audio")
    sys.modules["audiollm.processing"].AudioError = decoder.AudioError  # type: ignore[attr-defined]
    blocks = importlib.import_module("audiollm.inference.recordings")
    facts = importlib.import_module("audiollm.corpora.audio_facts")
    return SimpleNamespace(
        load_waveform=decoder.load_waveform,
        error=decoder.AudioError,
        read_blocks=blocks.read_blocks,
        measure=facts.measure,
    )


def check(readers: SimpleNamespace, file: Path, data: bytes) -> str:
    """
    Has a recording read in every way that there is, and says what came of it.

    Raises:
        AssertionError: it is neither a waveform nor an error that names the recording, or the ways differ.
    """
    too_long = False  # a header that claims more than is decoded at once, which is read by blocks
    try:
        waveform = readers.load_waveform(data, name=file.name)
    except readers.error as error:
        assert file.name in str(error), f"the error does not name {file.name}: {error}"
        samples, too_long = None, "decoded at once" in str(error)
    else:
        assert waveform.dtype == np.float32 and waveform.ndim == 1 and len(waveform) and np.isfinite(waveform).all()
        samples = len(waveform)
    file.write_bytes(data)
    try:
        read = sum(len(block) for block in readers.read_blocks(file, TARGET_RATE_HZ))
    except readers.error as error:
        assert file.name in str(error), f"the error does not name {file.name}: {error}"
        read = None
    facts = readers.measure(str(file), MAX_SECONDS)
    # A recording whose end is missing is read as far as it goes, if anything is left; `validate` says that it is cut off.
    readable = samples is not None
    same = readable == (read is not None) and (facts.fault == "cut_off" or readable == (facts.fault == ""))
    assert too_long or same, f"{file.name} read whole: {samples} samples, by blocks: {read}, measured: {facts}"
    return "refused" if samples is None else "waveform"


def bound_memory() -> None:
    """From here on this process gets no more than `MEMORY_BYTES`."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    bound = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (bound, bound))


def main(folder: Path, mutations: int, seed: int) -> None:
    """Decodes `mutations` damaged recordings; prints each one's number before, and in the end how many there were of what."""
    faulthandler.enable()
    sys.unraisablehook = lambda problem: None  # soundfile's own, of a negative seek
    readers = import_readers()
    files = sorted(folder.iterdir())
    whole = [file.read_bytes() for file in files]
    outcomes: Counter[str] = Counter()
    with TemporaryDirectory() as scratch:
        for file, data in zip(files, whole):  # libraries are loaded before memory is bounded
            assert check(readers, Path(scratch, file.name), data) == "waveform", file
        bound_memory()
        for index in range(mutations):
            os.write(1, f"{index}\n".encode())
            faulthandler.dump_traceback_later(SECONDS_EACH, exit=True)
            chosen, data = damaged(whole, seed, index)
            name = f"damaged-{index}{files[chosen].suffix}"
            outcomes[f"{files[chosen].suffix[1:]} {check(readers, Path(scratch, name), data)}"] += 1
            faulthandler.cancel_dump_traceback_later()
            Path(scratch, name).unlink()
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))

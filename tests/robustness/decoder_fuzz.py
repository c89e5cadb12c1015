"""
Damaged recordings by the thousand, decoded in a process of their own that has little memory and little time for each.

    python tests/robustness/decoder_fuzz.py FOLDER MUTATIONS SEED

FOLDER holds whole recordings, which are damaged. A crash or a hang of a library, which Python cannot catch, ends this
process alone, and its last line of standard output says which damage it was. The readers import no
torch, so that the bound on memory is one on decoding.
"""

import faulthandler
import json
import os
import resource
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from audiollm.corpora.audio_facts import measure
from audiollm.inference.recordings import read_blocks
from audiollm.processing import AudioError, load_waveform

TARGET_RATE_HZ, MAX_SECONDS = 16_000, 3600.0
#: Address space that decoding may take beside the process' own.
MEMORY_BYTES = 1 << 30
#: For one recording; decoding a whole one takes milliseconds.
SECONDS_EACH = 20
#: Length of headers, in formats that have them at the beginning.
HEADER_BYTES = 200
#: False lengths, rates, counts and offsets.
LIES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 1 << 20, 1 << 24, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF)
FIELD_WIDTHS = (1, 2, 4, 8)
MAX_FLIPS = 16


def damaged(whole: list[bytes], seed: int, index: int) -> tuple[int, bytes]:
    """Return which recording was damaged, and its bytes then: the same for the same seed and index."""
    random = np.random.default_rng([seed, index])
    chosen = index % len(whole)
    data = bytearray(whole[chosen])
    for _ in range(1 + int(random.random() < 0.3)):
        data = damage(data, random, whole) or bytearray(b"\0")
    return chosen, bytes(data)


def damage(data: bytearray, random: np.random.Generator, others: list[bytes]) -> bytearray:
    """Damage a recording in one of five ways; a third of the time, numbers in its header."""
    header = min(HEADER_BYTES, len(data))
    start, end = sorted(int(each) for each in random.integers(0, len(data), 2))
    kind = random.choice(["flip", "cut", "lie", "lie", "splice", "move"])
    if kind == "cut":
        return data[: start + 1]
    if kind == "splice":  # it goes on as another recording, of another format perhaps
        other = others[random.integers(len(others))]
        return data[: start + 1] + other[random.integers(len(other)) :]
    if kind == "move":  # a piece is missing, is there twice, or is zeros
        piece = [b"", bytes(data[start:end]) * 2, bytes(end - start)][random.integers(3)]
        return data[:start] + piece + data[end:]
    if kind == "flip":
        reach = len(data) if random.random() < 0.5 else header
        for position in random.integers(0, reach, random.integers(1, MAX_FLIPS + 1)):
            data[position] = random.integers(0, 256)
        return data
    for _ in range(random.integers(1, 4)):  # a length, a rate, a count, an offset or a kind is another
        width, value = int(random.choice(FIELD_WIDTHS)), int(random.choice(LIES))
        position = int(random.integers(0, len(data) if random.random() < 0.2 else header))
        field = (value % (1 << 8 * width)).to_bytes(width, "little")
        data[position : position + width] = field if random.random() < 0.5 else field[::-1]
    return data


def check(file: Path, data: bytes) -> str:
    """
    Read a recording in every way that there is; return "refused" or "waveform".

    Raises:
        AssertionError: it is neither a waveform nor an error that names the recording, or the ways differ.
    """
    too_long = False  # a header that claims more than is decoded at once, which is read by blocks
    try:
        waveform = load_waveform(data, name=file.name)
    except AudioError as error:
        assert file.name in str(error), f"the error does not name {file.name}: {error}"
        samples, too_long = None, "decoded at once" in str(error)
    else:
        assert waveform.dtype == np.float32 and waveform.ndim == 1 and len(waveform) and np.isfinite(waveform).all()
        samples = len(waveform)
    file.write_bytes(data)
    try:
        read = sum(len(block) for block in read_blocks(file, TARGET_RATE_HZ))
    except AudioError as error:
        assert file.name in str(error), f"the error does not name {file.name}: {error}"
        read = None
    facts = measure(str(file), MAX_SECONDS)
    # A recording whose end is missing is read as far as it goes, if anything is left; `validate` says that it is cut off.
    readable = samples is not None
    same = readable == (read is not None) and (facts.fault == "cut_off" or readable == (facts.fault == ""))
    assert too_long or same, f"{file.name} read whole: {samples} samples, by blocks: {read}, measured: {facts}"
    return "refused" if samples is None else "waveform"


def bound_memory() -> None:
    """Give this process no more than `MEMORY_BYTES` from here on."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    bound = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (bound, bound))


def main(folder: Path, mutations: int, seed: int) -> None:
    """Decode `mutations` damaged recordings; print each one's number before, and in the end how many were read and refused."""
    faulthandler.enable()
    sys.unraisablehook = lambda problem: None  # soundfile's own, of a negative seek
    files = sorted(folder.iterdir())
    whole = [file.read_bytes() for file in files]
    outcomes: Counter[str] = Counter()
    with TemporaryDirectory() as scratch:
        for file, data in zip(files, whole):  # libraries are loaded before memory is bounded
            assert check(Path(scratch, file.name), data) == "waveform", file
        bound_memory()
        for index in range(mutations):
            os.write(1, f"{index}\n".encode())
            faulthandler.dump_traceback_later(SECONDS_EACH, exit=True)
            chosen, data = damaged(whole, seed, index)
            name = f"damaged-{index}{files[chosen].suffix}"
            outcomes[check(Path(scratch, name), data)] += 1
            faulthandler.cancel_dump_traceback_later()
            Path(scratch, name).unlink()
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))

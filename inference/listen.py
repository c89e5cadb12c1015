"""
`audiollm listen`: write what is said while it is said.

    audiollm listen                                                  # from the microphone
    audiollm listen recording.wav                                    # a file, as if it were spoken now
    arecord -t raw -f S16_LE -r 16000 | audiollm listen -            # 16-bit samples of one channel

Final words are written at once and stay; on a terminal, the words after them are shown dim until they are final. Ctrl-C ends it.
"""

import json
import queue
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import BinaryIO, ClassVar

import numpy as np
import soxr
from audiollm.command_line.option_parser import option

from .context_words import read_context
from .live import STEP_SECONDS, LiveTranscriber, LiveUpdate
from .options import LoadingArguments, ending, parse, tell
from .recordings import from_16_bits, local_file, read_blocks

PIPE = "-"
#: Length of the blocks that sound comes in.
BLOCK_SECONDS = 0.08
TEXT, JSON = FORMATS = ("text", "json")
#: Codes of terminals: to the beginning of the row, so many columns to the right, and the rest of the row made empty.
BEGIN, RIGHT, CLEAR_REST = "\r", "\x1b[{}C", "\x1b[K"
DIM, PLAIN = "\x1b[2m", "\x1b[0m"


@dataclass
class ListenArguments(LoadingArguments):
    """Options of `audiollm listen`."""

    GROUPS: ClassVar = {
        "listening": ("context", "step_seconds", "rate", "fast"),
        "output": ("output_format",),
        **LoadingArguments.MODEL_GROUP,
    }

    context: str | None = option(None, "Names and terms that may be said, between commas, or a text file of them.")
    step_seconds: float = option(
        STEP_SECONDS, "New sound between two looks; less is faster to read and more to compute."
    )
    rate: int = option(16_000, "Sampling rate of standard input, in Hz.")
    fast: bool = option(False, "Take a file as fast as it can be heard, without waiting.")
    output_format: str = option(
        TEXT, "text, or json: a line for each look, with times and confidence.", choices=FORMATS
    )

    def __post_init__(self):
        super().__post_init__()
        if self.rate < 1:
            raise ValueError(f"--rate is {self.rate}; expected a sampling rate in Hz, such as 16000.")
        self.context_words = () if self.context is None else read_context(self.context)


def file_blocks(location: str, rate: int, fast: bool) -> Iterator[np.ndarray]:
    """Yield a recording in short blocks, each once its last sample would have been spoken unless it should be `fast`."""
    size, began, given = int(BLOCK_SECONDS * rate), time.monotonic(), 0
    with local_file(location) as path:
        for block in read_blocks(path, rate, location):
            for start in range(0, len(block), size):
                part = block[start : start + size]
                given += len(part)
                if not fast:
                    time.sleep(max(0.0, began + given / rate - time.monotonic()))
                yield part


def pipe_blocks(pipe: BinaryIO, given_rate: int, rate: int) -> Iterator[np.ndarray]:
    """
    Yield 16-bit little-endian samples of one channel at another rate, until the pipe ends.

    Raises:
        ValueError: it ends within a sample.
    """
    resampler = soxr.ResampleStream(given_rate, rate, 1, dtype="float32")
    rest = b""
    while data := pipe.read1(2 * int(BLOCK_SECONDS * given_rate)):  # type: ignore[attr-defined]  # of a buffered reader
        data = rest + data
        whole = len(data) // 2 * 2
        rest = data[whole:]
        yield resampler.resample_chunk(from_16_bits(data[:whole]))
    if rest:
        raise ValueError("Standard input ends within a sample; expected 16-bit samples of one channel.")
    yield resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True)


def microphone_blocks(rate: int) -> Iterator[np.ndarray]:
    """
    Yield what the microphone hears: all that has come since the block before, so that a slow machine catches up.

    Raises:
        ValueError: there is no microphone, or no `sounddevice`.
    """
    try:
        import sounddevice
    except (ImportError, OSError) as error:  # OSError: PortAudio itself is not there
        raise ValueError(
            f"The microphone needs sounddevice ({error}): pip install 'audiollm[live]', on Linux also `apt install "
            "libportaudio2`. Or give a file, or - for standard input."
        ) from error
    heard: queue.Queue[np.ndarray] = queue.Queue()
    try:
        stream = sounddevice.InputStream(
            samplerate=rate,
            channels=1,
            dtype="float32",
            blocksize=int(BLOCK_SECONDS * rate),
            callback=lambda block, *_: heard.put(block[:, 0].copy()),
        )
    except sounddevice.PortAudioError as error:
        raise ValueError(f"The microphone cannot be opened: {error}. Give a file, or - for standard input.") from error
    with stream:
        while True:
            blocks = [heard.get()]
            while not heard.empty():
                blocks.append(heard.get())
            yield np.concatenate(blocks)


def write_updates(updates: Iterable[LiveUpdate], output_format: str) -> None:
    """Write updates to standard output as they come."""
    on_terminal = sys.stdout.isatty()
    words: list[str] = []
    column = 0
    for update in updates:
        if output_format == JSON:
            print(json.dumps(asdict(update), ensure_ascii=False), flush=True)
        elif on_terminal:
            column = show(update, column, shutil.get_terminal_size().columns)
        else:
            words += [word.text for word in update.final]
            if update.is_pause and words:
                print(*words, flush=True)
                words = []


def show(update: LiveUpdate, column: int, columns: int) -> int:
    """
    Write final words into a terminal, a word that does not fit into the next row, and the words after them dim.

    The dim ones get what is left of the row: only there can the next update write over them.

    Args:
        column: where the final words before have ended.
        columns: width of the terminal.

    Returns:
        The column at which the final words end.
    """
    shown = BEGIN + (RIGHT.format(column) if column else "") + CLEAR_REST
    for word in update.final:
        if column and column + 1 + len(word.text) >= columns:
            shown, column = f"{shown}\n", 0
        space = " " if column else ""
        shown, column = f"{shown}{space}{word.text}", (column + len(space) + len(word.text)) % columns
    if update.is_pause and column:
        shown, column = f"{shown}\n", 0
    elif (room := columns - column - 2) > 0:
        shown += f"{' ' if column else ''}{DIM}{update.pending[:room]}{PLAIN}"
    print(shown, end="", flush=True)
    return column


def run(audio: str | None, arguments: ListenArguments) -> None:
    """
    Listen until the sound ends.

    Args:
        audio: a file or URL; `-` for standard input, None for the microphone.

    Raises:
        CheckpointError: the model is not there, or cannot be used.
        ValueError: the model has no CTC posteriors, or there is nothing to listen to.
        OSError: the recording cannot be read.
    """
    checkpoint, processor = arguments.find()
    model = arguments.load_model(checkpoint)
    live = LiveTranscriber(model, processor, arguments.context_words, arguments.step_seconds)
    rate = processor.sampling_rate
    if audio is None:
        blocks = microphone_blocks(rate)
        tell("Listening. Ctrl-C ends it.")
    elif audio == PIPE:
        blocks = pipe_blocks(sys.stdin.buffer, arguments.rate, rate)
    else:
        blocks = file_blocks(audio, rate, arguments.fast)
    write_updates(live.transcribe(blocks), arguments.output_format)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry of `audiollm listen`; exits with 2 if it cannot begin, and with 130 when interrupted."""
    place = "a file, a URL, or - for standard input; the microphone by default"
    audio, options = parse(ListenArguments, "listen", __doc__, argv, "[AUDIO] [options]", nargs="?", help=place)
    with ending("listen"):
        run(audio, options)


if __name__ == "__main__":
    main()

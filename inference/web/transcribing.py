"""A long recording transcribed for one visitor of the page, with what to show meanwhile; it stops when told to."""

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..transcribing import Failure, Transcriber, TranscribingStopped
from ..transcripts import Transcript
from .sound import check_length
from .visitor import House, VisitError


@dataclass(frozen=True)
class Progress:
    """Seconds of audio that are done, and all there are; None where that is not known beforehand."""

    done_s: float
    total_s: float | None


class Desk:
    """
    Transcribes for one visitor after the other; between batches of windows the model answers others.

    Args:
        house: the model, and how long a recording may be.
    """

    def __init__(self, house: House):
        self.house = house
        self._lock = threading.Lock()
        self._transcriber: Transcriber | None = None

    def transcribe(self, path: str, stop: threading.Event) -> Iterator[Progress | Transcript]:
        """
        Progress, and at the end the transcript; nothing more once `stop` is set. Closing the iteration stops it too.

        Raises:
            AudioError, FileNotFoundError: the file is none that can be used, or too long.
            VisitError: it turned out damaged.
        """
        house, name = self.house, Path(path).name
        check_length(path, house.processor.sampling_rate, house.limits.max_audio_seconds)
        results: queue.Queue[Progress | Transcript | Failure | BaseException | None] = queue.Queue()

        def work() -> None:
            try:
                with self._lock:
                    if stop.is_set():
                        return
                    self._transcriber = self._transcriber or Transcriber(house.model, house.processor, progress=False)
                    for result in self._transcriber.transcribe(
                        [path], on_progress=lambda *progress: results.put(Progress(*progress)), stop=stop
                    ):
                        results.put(result)
            except TranscribingStopped:
                pass
            except BaseException as error:  # raised in the reader's thread
                results.put(error)
            finally:
                results.put(None)

        threading.Thread(target=work, name="transcribing", daemon=True).start()
        try:
            while (result := results.get()) is not None:
                if isinstance(result, Failure):
                    raise VisitError(result.reason.replace(path, name))
                if isinstance(result, BaseException):
                    raise result
                if isinstance(result, Transcript):
                    result.audio = name
                yield result
        finally:
            stop.set()


__all__ = ["Desk", "Progress"]

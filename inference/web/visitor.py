"""One visitor of the page: a conversation, the recording at hand, and the means to stop; nothing is shared but the model."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor

from ..recordings import Recording
from ..session import Session, user_turn
from .sound import clock, load_recording
from .uploads import Uploads

MAX_TEMPERATURE = 2.0


class VisitError(ValueError):
    """Something that a visitor asks for cannot be done; the message says why, in the page's words."""


@dataclass(frozen=True)
class Limits:
    """Bounds on what one visitor may ask for: seconds of a recording, tokens of an answer."""

    max_audio_seconds: float
    max_new_tokens: int


@dataclass(frozen=True)
class House:
    """What all visitors have in common."""

    model: AudioLlmForConditionalGeneration
    processor: AudioLlmProcessor
    limits: Limits
    system: str | None = None
    uploads: Uploads = field(default_factory=Uploads)

    @property
    def has_adapter(self) -> bool:
        """Whether the checkpoint has an adapter that can be left out."""
        return bool(self.model.config.lora_adapters)


@dataclass(frozen=True)
class Sound:
    """The recording at hand: its file, what is in it, and its length in seconds."""

    path: str
    recording: Recording
    seconds: float

    def describe(self) -> str:
        """Name, length and audio tokens, in a line."""
        return f"{self.recording.source}: {clock(self.seconds)}, {self.recording.num_slots} audio tokens."


@dataclass(frozen=True)
class Question:
    """What was asked, and the conversation before it, so that it can be asked again."""

    text: str | None
    sound: Sound | None
    before: tuple[dict[str, Any], ...]

    @property
    def recordings(self) -> tuple[Recording, ...]:
        """None, or the one that the question is about."""
        return () if self.sound is None else (self.sound.recording,)

    def shown(self, adapter: bool) -> str:
        """The question as the page shows it, with what it is about and how it is to be answered."""
        lines = [self.text] if self.text else []
        if self.sound is not None:
            lines.append(f"[{self.sound.recording.source}, {clock(self.sound.seconds)}]")
        return "\n".join(lines if adapter else [*lines, "[adapter off]"])


class Visitor:
    """
    One browser tab.

    Args:
        house: the model, the limits and the files.

    Attributes:
        chat: what the page shows, as `{"role", "content"}`; a question that was asked again stands in it twice.
        sound: the recording at hand.
        note: a line about the last answer.
    """

    def __init__(self, house: House):
        self.house = house
        self.chat: list[dict[str, str]] = []
        self.sound: Sound | None = None
        self.note = ""
        self._is_new = False  # the recording at hand has not been asked about
        self._last: Question | None = None
        self._next: tuple[Question, bool] | None = None  # was put, and waits for its turn
        self._is_answering = False
        self._messages: list[dict[str, Any]] = []
        self._session = self._session_after([])
        self._stop, self._transcribing_stop = threading.Event(), threading.Event()
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Visitor":
        """A visitor of the same house with nothing of this one: what Gradio makes for each session."""
        return Visitor(self.house)

    # ---- the recording at hand -----------------------------------------------------------------------------------

    def take(self, path: str | None) -> Sound | None:
        """
        Takes a file as the recording at hand, and lets go of the one before.

        Raises:
            AudioError: it cannot be used.
            FileNotFoundError: it is gone.
        """
        if self.sound is not None and path == self.sound.path:
            return self.sound
        self._let_go()
        if path is None:
            return None
        house = self.house
        house.uploads.hold(path)
        try:
            recording = load_recording(path, house.processor, house.limits.max_audio_seconds)
        except (ValueError, OSError):
            house.uploads.release(path)
            raise
        assert recording.waveform is not None  # nothing has encoded it yet
        self.sound = Sound(path, recording, len(recording.waveform) / house.processor.sampling_rate)
        self._is_new = True
        return self.sound

    def _let_go(self) -> None:
        if self.sound is not None:
            self.house.uploads.release(self.sound.path)
        self.sound, self._is_new = None, False

    # ---- asking --------------------------------------------------------------------------------------------------

    def ask(self, text: str, path: str | None, adapter: bool) -> None:
        """
        Puts a question, about the recording at hand where that is new; [`answer`] answers it.

        Raises:
            VisitError: there is nothing to ask, or an answer is still being written.
            AudioError, FileNotFoundError: the recording cannot be used.
        """
        with self._lock:
            self._refuse_while_answering()
            self._withdraw()
            self.take(path)
            sound = self.sound if self._is_new else None
            question = Question(text.strip() or None, sound, tuple(self._messages))
            if question.text is None and sound is None:
                raise VisitError("Write a question, or give a recording to be answered.")
            try:
                user_turn(question.text, *question.recordings)
            except ValueError as error:
                raise VisitError(str(error)) from error
            self._put(question, adapter)

    def ask_again(self, adapter: bool) -> None:
        """
        Puts the last question again. As far as the model knows, it was not answered before.

        Raises:
            VisitError: there is none, or an answer is still being written.
        """
        with self._lock:
            self._refuse_while_answering()
            self._withdraw()
            if self._last is None:
                raise VisitError("There is no question yet that could be asked again.")
            self._messages = list(self._last.before)
            self._session = self._session_after(self._messages)
            self._put(self._last, adapter)

    def _put(self, question: Question, adapter: bool) -> None:
        adapter = adapter or not self.house.has_adapter
        self._next, self._stop = (question, adapter), threading.Event()
        self.chat = [*self.chat, {"role": "user", "content": question.shown(adapter)}]
        self._is_new = False
        self.note = "Waiting for the model …"

    def answer(self, max_new_tokens: float, temperature: float) -> Iterator[str]:
        """
        Answers the question that was put, piece by piece; `chat` and `note` are up to date at every piece.

        Raises:
            VisitError: an option is out of bounds.
            ValueError, RuntimeError: the model cannot answer; the question is taken back.
        """
        with self._lock:
            if self._next is None:  # it was withdrawn
                return
            (question, adapter), asked, session = self._next, self.chat, self._session
            self._next, self._is_answering = None, True
        known = len(session.messages)
        began, first_s, text = time.monotonic(), None, ""
        try:
            options = self._options(max_new_tokens, temperature, adapter)
            with session.stream(question.text, *question.recordings, stop=self._stop, **options) as stream:
                for piece in stream:
                    first_s = first_s or time.monotonic() - began
                    text += piece
                    self.chat = [*asked, {"role": "assistant", "content": text}]
                    self.note = "Answering …"
                    yield piece
        finally:
            self._is_answering = False
            if session is self._session:  # else the visitor has left
                if len(session.messages) > known:
                    self._keep(question, asked, first_s, time.monotonic() - began)
                else:
                    self._take_back(question, asked)

    def _keep(self, question: Question, asked: list[dict[str, str]], first_s: float | None, seconds: float) -> None:
        """The question and its answer, as far as it came, become part of the conversation."""
        answer, report = self._session.messages[-1], self._session.report
        self._last, self.chat = question, [*asked, answer]
        self._messages = [*question.before, user_turn(question.text, *question.recordings), answer]
        assert report is not None  # there is an answer
        words = {"length": f"Cut at {report.new_tokens} tokens. ", "interrupted": "Stopped. "}
        first = "" if first_s is None else f", the first after {first_s:.1f} s"
        self.note = f"{words.get(report.finish_reason, '')}{report.new_tokens} tokens in {seconds:.1f} s{first}."
        if report.reused_tokens:
            self.note += f" Of {report.prompt_tokens} tokens before it, {report.reused_tokens} were remembered."

    def _take_back(self, question: Question, asked: list[dict[str, str]]) -> None:
        """As if it had not been asked."""
        self.chat, self.note = asked[:-1], "Stopped before the answer began."
        self._is_new = question.sound is not None and question.sound is self.sound

    def _withdraw(self) -> None:
        """Takes back a question that waits for its turn: a new one is put in its place, or the page is cleared."""
        if self._next is not None:
            (question, _), self._next = self._next, None
            self._take_back(question, self.chat)

    @property
    def is_waiting(self) -> bool:
        """Whether a question was put that waits for its turn."""
        return self._next is not None

    # ---- stopping ------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Ends the answer within a token; a question that waits for its turn is not answered."""
        self._stop.set()

    def stop_transcribing(self) -> None:
        """Ends what is being transcribed within a batch."""
        self._transcribing_stop.set()

    def begin_transcribing(self) -> threading.Event:
        """What says that a transcription that begins now is to stop; an earlier one is stopped."""
        self._transcribing_stop.set()
        self._transcribing_stop = threading.Event()
        return self._transcribing_stop

    def clear(self) -> None:
        """
        Starts a new conversation, for which the recording at hand is new.

        Raises:
            VisitError: an answer is still being written.
        """
        with self._lock:
            self._refuse_while_answering()
            self._withdraw()
            self._forget()
            self._is_new = self.sound is not None

    def leave(self) -> None:
        """Stops what is being written, and forgets everything, with the file at hand."""
        self.stop()
        self.stop_transcribing()
        self._let_go()
        self._forget()

    def _forget(self) -> None:
        self._messages, self._last, self._next, self.chat, self.note = [], None, None, [], ""
        self._session = self._session_after([])

    # ---- the conversation ----------------------------------------------------------------------------------------

    def _session_after(self, messages: list[dict[str, Any]]) -> Session:
        house = self.house
        system = [] if house.system is None else [{"role": "system", "content": house.system}]
        return Session(house.model, house.processor, messages=[*system, *messages])

    def _options(self, max_new_tokens: float, temperature: float, adapter: bool) -> dict[str, Any]:
        bound = self.house.limits.max_new_tokens
        if not 1 <= max_new_tokens <= bound:
            raise VisitError(f"The answer's bound is {max_new_tokens:g} tokens; this page takes 1 to {bound}.")
        if not 0 <= temperature <= MAX_TEMPERATURE:
            raise VisitError(f"The temperature is {temperature:g}; this page takes 0 to {MAX_TEMPERATURE:g}.")
        options: dict[str, Any] = {"max_new_tokens": int(max_new_tokens)}
        if temperature > 0:
            options.update(do_sample=True, temperature=float(temperature), top_k=0)
        if not adapter:
            options["adapter_names"] = [None]  # for this call alone: other visitors' answers keep theirs
        return options

    def _refuse_while_answering(self) -> None:
        if self._is_answering:
            raise VisitError("An answer is still being written. Stop it, or wait for its end.")


__all__ = ["MAX_TEMPERATURE", "House", "Limits", "Question", "Sound", "VisitError", "Visitor"]

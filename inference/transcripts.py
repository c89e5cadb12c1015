"""Transcripts as plain text, JSON and subtitles."""

import html
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from audiollm.command_line.files import write_whole

ALL_FORMATS = "all"
MILLISECONDS = 1_000
#: Times in a transcript: those of windows, or those of words as well.
SEGMENT, WORD = TIMESTAMPS = ("segment", "word")
#: Subtitles by word: a line of usual length, which ends at a pause.
MAX_CUE_CHARACTERS, MIN_PAUSE_SECONDS = 42, 0.6


@dataclass(frozen=True)
class Word:
    """
    A word of a transcript, as it is written, with its times in seconds from the recording's beginning.

    `confidence`: how probably it is right, by CTC's probability of its word pieces, 0 to 1; None where it has no pieces for the word.
    """

    text: str
    start_s: float
    end_s: float
    confidence: float | None


@dataclass(frozen=True)
class Passage:
    """
    Text of one window, with its times in seconds from the recording's beginning.

    Attributes:
        is_cut_off: the model was stopped at the bound on new tokens, and might have gone on.
        words: of the text; none unless their times were asked for.
    """

    start_s: float
    end_s: float
    text: str
    is_cut_off: bool = False
    words: tuple[Word, ...] = ()


@dataclass(frozen=True)
class Skipped:
    """A stretch that was skipped, and the reason."""

    start_s: float
    end_s: float
    reason: str


@dataclass
class Transcript:
    """
    Transcript of one recording.

    Attributes:
        audio: path or URL, as given.
        seconds: its length.
        passages, skipped: together they cover it, in order of time.
        made_with: the settings that decided the text.
        timestamps: "word" where passages have their words, or else "segment".
    """

    audio: str
    seconds: float
    passages: list[Passage] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    made_with: dict[str, Any] = field(default_factory=dict)
    timestamps: str = SEGMENT

    @property
    def text(self) -> str:
        """The whole text, on one line."""
        return " ".join(as_text(self).splitlines())

    @property
    def words(self) -> list[Word]:
        """
        All words, in order.

        Raises:
            ValueError: their times were not asked for.
        """
        if self.timestamps != WORD:
            raise ValueError("This transcript has no words; ask for them with timestamps='word'.")
        return [word for passage in self.passages for word in passage.words]

    @property
    def confidence(self) -> float | None:
        """
        Share of the words that are probably right: the mean of their confidence, 0 to 1; None where none has any.

        Raises:
            ValueError: the times of words were not asked for.
        """
        sure = [word.confidence for word in self.words if word.confidence is not None]
        return round(sum(sure) / len(sure), 3) if sure else None


def add_skipped(skipped: list[Skipped], more: Skipped) -> None:
    """Append a stretch, or extend the last one if it follows without a gap."""
    if skipped and skipped[-1].end_s == more.start_s:
        last = skipped.pop()
        reasons = last.reason.split("; ")
        reason = last.reason if more.reason in reasons else f"{last.reason}; {more.reason}"
        more = Skipped(last.start_s, more.end_s, reason)
    skipped.append(more)


def as_text(transcript: Transcript) -> str:
    """Return one line for each window with text."""
    lines = [" ".join(passage.text.split()) for passage in transcript.passages]
    return "".join(f"{line}\n" for line in lines if line)


def as_json(transcript: Transcript) -> str:
    """Return text, windows with their times, skipped stretches with reasons, and settings."""
    content = {
        "audio": transcript.audio,
        "seconds": round(transcript.seconds, 3),
        "text": transcript.text,
        "windows": [
            {**_times(one), "text": one.text, **({"is_cut_off": True} if one.is_cut_off else {})}
            for one in transcript.passages
        ],
        "skipped": [{**_times(one), "reason": one.reason} for one in transcript.skipped],
        "made_with": transcript.made_with,
    }
    if transcript.timestamps == WORD:
        content["confidence"] = transcript.confidence
        content["words"] = [
            {"word": one.text, "start_s": one.start_s, "end_s": one.end_s, "confidence": one.confidence}
            for one in transcript.words
        ]
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def as_srt(transcript: Transcript) -> str:
    """Return SubRip subtitles, one for each window with text, or short ones where the times of words are known."""
    cues = _cues(transcript, ",")
    return "\n".join(f"{number}\n{times}\n{text}\n" for number, (times, text) in enumerate(cues, start=1))


def as_vtt(transcript: Transcript) -> str:
    """Return WebVTT subtitles (W3C), of the same text and times as [`as_srt`]."""
    cues = [f"{times}\n{html.escape(text, quote=False)}\n" for times, text in _cues(transcript, ".")]
    return "\n".join(["WEBVTT\n", *cues])


def as_word_lines(transcript: Transcript) -> str:
    """Return one line for each word: its start and end in seconds, its confidence, and the word, at tabulators."""
    lines = []
    for one in transcript.words:
        sure = "-" if one.confidence is None else f"{one.confidence:.2f}"
        lines.append(f"{one.start_s:.2f}\t{one.end_s:.2f}\t{sure}\t{one.text}\n")
    return "".join(lines)


#: Forms of a transcript by the ending of the file.
FORMATS: dict[str, Callable[[Transcript], str]] = {"txt": as_text, "json": as_json, "srt": as_srt, "vtt": as_vtt}


def write_transcript(transcript: Transcript, stem: Path, formats: Sequence[str]) -> None:
    """Write `<stem>.<format>` for each format, over existing files."""
    for name in formats:
        write_whole(with_ending(stem, name), FORMATS[name](transcript))


def with_ending(stem: Path, ending: str) -> Path:
    """Return a path with an ending added to its whole name, which may have dots in it."""
    return stem.with_name(f"{stem.name}.{ending}")


def _cues(transcript: Transcript, decimal_mark: str) -> list[tuple[str, str]]:
    cues = []
    for passage in transcript.passages:
        whole = [(passage.start_s, passage.end_s, passage.text)]
        for start_s, end_s, text in _lines(passage.words) if passage.words else whole:
            text = " ".join(text.split()).replace("-->", "->")  # which would end a cue's text
            if text:
                cues.append((f"{_clock(start_s, decimal_mark)} --> {_clock(end_s, decimal_mark)}", text))
    return cues


def _lines(words: Sequence[Word]) -> list[tuple[float, float, str]]:
    """Return start, end and text of short lines, which end at pauses."""
    lines: list[tuple[float, float, str]] = []
    for word in words:
        start_s, end_s, text = lines[-1] if lines else (0.0, 0.0, "")
        fits = len(text) + 1 + len(word.text) <= MAX_CUE_CHARACTERS and word.start_s - end_s < MIN_PAUSE_SECONDS
        if text and fits:
            lines[-1] = start_s, word.end_s, f"{text} {word.text}"
        else:
            lines.append((word.start_s, word.end_s, word.text))
    return lines


def _clock(seconds: float, decimal_mark: str) -> str:
    """Return `hh:mm:ss,mmm`."""
    whole, milliseconds = divmod(round(seconds * MILLISECONDS), MILLISECONDS)
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours:02}:{minute:02}:{second:02}{decimal_mark}{milliseconds:03}"


def _times(one: Passage | Skipped) -> dict[str, float]:
    return {"start_s": round(one.start_s, 3), "end_s": round(one.end_s, 3)}

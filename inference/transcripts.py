"""Transcripts as plain text, JSON and subtitles."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from audiollm.files import write_whole

ALL_FORMATS = "all"
MILLISECONDS = 1_000


@dataclass(frozen=True)
class Passage:
    """
    Text of one window.

    Attributes:
        start_s, end_s: in seconds from the recording's beginning.
        text: without surrounding space; empty if the model wrote nothing.
        is_cut_off: the model was stopped at the bound on new tokens, and might have gone on.
    """

    start_s: float
    end_s: float
    text: str
    is_cut_off: bool = False


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
    """

    audio: str
    seconds: float
    passages: list[Passage] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    made_with: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The whole text, on one line."""
        return " ".join(line for line in map(_one_line, self._texts()) if line)

    def _texts(self) -> list[str]:
        return [passage.text for passage in self.passages]


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
    return "".join(f"{line}\n" for line in map(_one_line, transcript._texts()) if line)


def as_json(transcript: Transcript) -> str:
    """Return text, windows with their times, skipped stretches with reasons, and settings."""
    windows = []
    for passage in transcript.passages:
        entry: dict[str, Any] = {"start_s": _rounded(passage.start_s), "end_s": _rounded(passage.end_s)}
        entry["text"] = passage.text
        if passage.is_cut_off:
            entry["is_cut_off"] = True
        windows.append(entry)
    skipped = [
        {"start_s": _rounded(each.start_s), "end_s": _rounded(each.end_s), "reason": each.reason}
        for each in transcript.skipped
    ]
    content = {
        "audio": transcript.audio,
        "seconds": _rounded(transcript.seconds),
        "text": transcript.text,
        "windows": windows,
        "skipped": skipped,
        "made_with": transcript.made_with,
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def as_srt(transcript: Transcript) -> str:
    """Return SubRip subtitles, one for each window with text."""
    cues = _cues(transcript, ",")
    return "\n".join(f"{number}\n{times}\n{text}\n" for number, (times, text) in enumerate(cues, start=1))


def as_vtt(transcript: Transcript) -> str:
    """Return WebVTT subtitles (W3C), one for each window with text."""
    escaped = [
        (times, text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))
        for times, text in _cues(transcript, ".")
    ]
    return "\n".join(["WEBVTT\n", *(f"{times}\n{text}\n" for times, text in escaped)])


#: Forms of a transcript by the ending of the file.
FORMATS: dict[str, Callable[[Transcript], str]] = {"txt": as_text, "json": as_json, "srt": as_srt, "vtt": as_vtt}


def chosen_formats(names: Sequence[str]) -> list[str]:
    """
    Return formats by name, each once; `all` is all of them.

    Raises:
        ValueError: there is no such format.
    """
    unknown = [name for name in names if name not in (*FORMATS, ALL_FORMATS)]
    if unknown or not names:
        given = repr(unknown[0]) if unknown else "empty"
        raise ValueError(f"--output_format is {given}; expected some of {', '.join(FORMATS)}, or {ALL_FORMATS}.")
    return list(FORMATS) if ALL_FORMATS in names else list(dict.fromkeys(names))


def write_transcript(transcript: Transcript, stem: Path, formats: Sequence[str]) -> list[Path]:
    """Write `<stem>.<format>` for each format, over existing files, and return the paths."""
    paths = [with_ending(stem, name) for name in formats]
    for path, name in zip(paths, formats):
        write_whole(path, FORMATS[name](transcript))
    return paths


def with_ending(stem: Path, ending: str) -> Path:
    """Return a path with an ending added to its whole name, which may have dots in it."""
    return stem.with_name(f"{stem.name}.{ending}")


def _cues(transcript: Transcript, decimal_mark: str) -> list[tuple[str, str]]:
    cues = []
    for passage in transcript.passages:
        text = _one_line(passage.text).replace("-->", "->")  # which would end a cue's text
        if text:
            times = f"{_clock(passage.start_s, decimal_mark)} --> {_clock(passage.end_s, decimal_mark)}"
            cues.append((times, text))
    return cues


def _clock(seconds: float, decimal_mark: str) -> str:
    """`hh:mm:ss,mmm`."""
    whole, milliseconds = divmod(round(seconds * MILLISECONDS), MILLISECONDS)
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours:02}:{minute:02}:{second:02}{decimal_mark}{milliseconds:03}"


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def _rounded(seconds: float) -> float:
    return round(seconds, 3)


__all__ = [
    "ALL_FORMATS",
    "FORMATS",
    "Passage",
    "Skipped",
    "Transcript",
    "add_skipped",
    "as_json",
    "as_srt",
    "as_text",
    "as_vtt",
    "chosen_formats",
    "with_ending",
    "write_transcript",
]

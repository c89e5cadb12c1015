"""Kinds of fault in training data, the limits that some depend on, and the checks of one row and one recording."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from audiollm.command_line.option_parser import option
from audiollm.processing.conversations import AUDIO_PLACEHOLDER

from .audio_facts import AudioFacts
from .tasks import known_tasks
from .values import shown

ERROR, WARNING = "error", "warning"
#: A recording of this length should have more than a word or two of transcript.
LONG_SECONDS = 5.0
#: Level shown for digital silence, in dB relative to full scale.
SILENCE_DBFS = -200.0


class Fault(NamedTuple):
    """Severity and meaning of one kind of fault."""

    severity: str
    meaning: str


#: All kinds, in the order of reports. Training refuses an error or learns wrongly from it; it copes with a warning.
FAULTS: dict[str, Fault] = {
    "unreadable_data": Fault(ERROR, "the file as a whole, or a line of it, cannot be read"),
    "malformed_row": Fault(ERROR, "fields are missing, unknown or of a wrong kind"),
    "audio_count": Fault(ERROR, f"the number of {AUDIO_PLACEHOLDER} is not the number of recordings"),
    "empty_text": Fault(ERROR, "prompt or response is empty"),
    "missing_file": Fault(ERROR, "the audio file does not exist"),
    "not_a_file": Fault(ERROR, "the audio path is a folder, pipe or device"),
    "outside_audio_dir": Fault(ERROR, "the path leads out of --audio_dir"),
    "undecodable": Fault(ERROR, "empty, corrupt, or not audio"),
    "cut_off": Fault(ERROR, "the file ends before its own header says"),
    "not_finite": Fault(ERROR, "samples are NaN or infinite"),
    "too_short": Fault(ERROR, "shorter than --min_seconds"),
    "too_long": Fault(ERROR, "longer than --max_seconds"),
    "silent": Fault(ERROR, "quieter than --min_level_dbfs"),
    "clipped": Fault(WARNING, "more samples at full scale than --max_clipped_share"),
    "impossible_transcript": Fault(ERROR, "more is written than can be said in that time"),
    "sparse_transcript": Fault(WARNING, "hardly anything is written for that much audio"),
    "response_is_prompt": Fault(WARNING, "the response repeats the prompt"),
    "conflicting_responses": Fault(ERROR, "same recording, same question, another response"),
    "duplicate_row": Fault(WARNING, "same recording, same question, same response"),
    "duplicate_audio": Fault(WARNING, "the same sound under another name"),
    "audio_leak": Fault(ERROR, "the same sound is in another split"),
    "transcript_leak": Fault(WARNING, "the same transcript is in another split"),
    "not_compared": Fault(ERROR, "a row of --against whose sound cannot be compared, so that a leak would be missed"),
}


@dataclass
class Limits:
    """Limits of recordings and transcripts."""

    min_seconds: float = option(0.1, "Shorter recordings are errors.")
    max_seconds: float = option(600.0, "Longer recordings are errors, and are read only this far.")
    min_level_dbfs: float = option(-60.0, "Recordings with a lower level (RMS, dB relative to full scale) are silent.")
    max_clipped_share: float = option(0.001, "Share of samples allowed at full scale, 0 to 1.")
    max_characters_per_second: float = option(30.0, "Letters and digits that can be said in a second.")
    max_words_per_second: float = option(8.0, "Words that can be said in a second.")
    min_characters_per_second: float = option(
        1.0, "Letters and digits a second expected in the transcript of a recording of 5 s or more."
    )

    def __post_init__(self):
        in_range = {
            "max_seconds": self.min_seconds < self.max_seconds < math.inf,
            "min_seconds": self.min_seconds >= 0,
            "min_level_dbfs": self.min_level_dbfs <= 0,
            "max_clipped_share": 0 <= self.max_clipped_share <= 1,
            "max_words_per_second": self.max_words_per_second > 0,
            "min_characters_per_second": 0 <= self.min_characters_per_second < self.max_characters_per_second,
        }
        for name, is_right in in_range.items():
            if not is_right:
                raise ValueError(
                    f"--{name} is {getattr(self, name):g}; expected 0 or more (levels: 0 or less, shares: 0 to 1), each "
                    "minimum below its maximum."
                )


#: A fault's name, and the reason in words.
Found = tuple[str, str]


def is_transcribing(prompt: str) -> bool:
    """Return whether a prompt is one of the wordings of the task `transcribe`."""
    return prompt.strip() in {wording.strip() for wording in known_tasks()["transcribe"].prompts}


def count_characters(text: str) -> int:
    """Return the number of letters and digits of any script."""
    return sum(character.isalnum() for character in text)


def level_dbfs(facts: AudioFacts) -> float:
    """Return the level of a recording without its offset, in dB relative to full scale."""
    rms = math.sqrt(max(facts.rms**2 - facts.offset**2, 0.0))
    return 20 * math.log10(rms) if rms else SILENCE_DBFS


def text_faults(prompt: str, response: str, recordings: int) -> Iterator[Found]:
    """Yield the faults of a row's texts that `RowReader` does not refuse."""
    if AUDIO_PLACEHOLDER in response:
        yield "audio_count", f"the response holds {AUDIO_PLACEHOLDER}, which stands for a recording"
    asked = " ".join(prompt.replace(AUDIO_PLACEHOLDER, " ").split())
    if recordings and asked.casefold() == " ".join(response.split()).casefold():
        yield "response_is_prompt", f"the response is the prompt's text: {shown(response)}"


def recording_faults(facts: AudioFacts, limits: Limits) -> Iterator[Found]:
    """Yield the faults of one recording."""
    if facts.fault:
        yield facts.fault, facts.reason
        return
    if facts.seconds < limits.min_seconds:
        yield "too_short", f"lasts {facts.seconds:.3f} s; expected at least {limits.min_seconds:g} s"
    if facts.seconds > limits.max_seconds:
        yield "too_long", f"lasts {facts.seconds:.1f} s; expected at most {limits.max_seconds:g} s"
    level = level_dbfs(facts)
    if level < limits.min_level_dbfs:
        shown = "is digital silence" if level == SILENCE_DBFS else f"has a level of {level:.1f} dBFS"
        yield "silent", f"{shown}; expected at least {limits.min_level_dbfs:g} dBFS"
    if facts.clipped_share > limits.max_clipped_share:
        yield "clipped", f"{facts.clipped_share:.2%} of samples at full scale; expected {limits.max_clipped_share:.2%}"


def transcript_faults(text: str, facts: AudioFacts, limits: Limits) -> Iterator[Found]:
    """Yield the faults of a transcript against its recording; none for an unreadable or too short recording."""
    if facts.fault or facts.seconds < limits.min_seconds:
        return
    characters, words, seconds = count_characters(text), len(text.split()), f"in {facts.seconds:.2f} s"
    for count, most, unit in (
        (characters, limits.max_characters_per_second, "letters and digits"),
        (words, limits.max_words_per_second, "words"),
    ):
        if count > most * facts.seconds:
            yield "impossible_transcript", f"{count} {unit} {seconds}; at most {most:g} a second can be said"
            break
    least = limits.min_characters_per_second
    if not characters or (facts.seconds >= LONG_SECONDS and characters < least * facts.seconds):
        yield "sparse_transcript", f"{characters} letters and digits {seconds}; expected at least {least:g} a second"

"""
What can be wrong with training examples: a table of faults, and the checks of one row and of one recording.

Faults between rows (the same recording twice, leaks between splits) are found by `fault_index`, from what all rows have.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from audiollm.processing.audio_io import SAMPLING_RATE_HZ
from audiollm.processing.conversations import AUDIO_PLACEHOLDER

from .audio_facts import AudioFacts
from .tasks import known_tasks

ERROR, WARNING = "error", "warning"
#: Fault of a row that others cannot be compared with.
NOT_COMPARED = "not_compared"
#: Recordings from here on should have more than a word or two of transcript, in seconds.
LONG_SECONDS = 5.0
#: What digital silence is shown as, in dB relative to full scale.
SILENCE_DBFS = -200.0
TRANSCRIBE_TASK = "transcribe"


class Fault(NamedTuple):
    """One kind of fault: how bad it is unless told otherwise, and what summaries call it."""

    severity: str
    meaning: str


#: Every kind, in the order of reports. Errors are what training refuses or would learn wrongly from; warnings are what it
#: copes with.
FAULTS: dict[str, Fault] = {
    "unreadable_data": Fault(ERROR, "the file as a whole, or a line of it, cannot be read"),
    "malformed_row": Fault(ERROR, "fields are missing, unknown or of a wrong kind"),
    "audio_count": Fault(ERROR, f"{AUDIO_PLACEHOLDER} and recordings are not one for one"),
    "empty_text": Fault(ERROR, "prompt or response is empty"),
    "missing_file": Fault(ERROR, "the audio file is not there"),
    "not_a_file": Fault(ERROR, "the audio path is a folder, pipe or device"),
    "outside_audio_dir": Fault(ERROR, "the path leads out of --audio_dir"),
    "symlink_outside": Fault(ERROR, "a symbolic link leads out of --audio_dir"),
    "undecodable": Fault(ERROR, "empty, corrupt, or not audio"),
    "cut_off": Fault(ERROR, "the file ends before its own header says"),
    "not_finite": Fault(ERROR, "samples are NaN or infinite"),
    "too_short": Fault(ERROR, "shorter than --min_seconds"),
    "too_long": Fault(ERROR, "longer than --max_seconds"),
    "silent": Fault(ERROR, "quieter than --min_level_dbfs"),
    "clipped": Fault(WARNING, "more samples at full scale than --max_clipped_share"),
    "dc_offset": Fault(WARNING, "the mean is further from zero than --max_dc_offset"),
    "wrong_rate": Fault(WARNING, f"not {SAMPLING_RATE_HZ} Hz, and resampled each time"),
    "not_mono": Fault(WARNING, "several channels, and mixed down each time"),
    "impossible_transcript": Fault(ERROR, "more is written than can be said in that time"),
    "sparse_transcript": Fault(WARNING, "hardly anything is written for that much audio"),
    "wrong_transcript": Fault(ERROR, "word error above --max_wer"),
    "response_is_prompt": Fault(WARNING, "the response repeats the prompt"),
    "conflicting_responses": Fault(ERROR, "same recording, same question, another response"),
    "duplicate_row": Fault(WARNING, "same recording, same question, same response"),
    "duplicate_audio": Fault(WARNING, "the same sound under another name"),
    "audio_leak": Fault(ERROR, "the same sound is in another split"),
    "transcript_leak": Fault(WARNING, "the same transcript is in another split"),
    NOT_COMPARED: Fault(
        ERROR, "of a file of --against: its sound cannot be compared, so that a leak would not be seen"
    ),
}


@dataclass(frozen=True)
class Limits:
    """What is allowed; the meaning and unit of each is in `ValidateArguments`."""

    min_seconds: float = 0.1
    max_seconds: float = 600.0
    min_level_dbfs: float = -60.0
    max_clipped_share: float = 0.001
    max_dc_offset: float = 0.05
    max_characters_per_second: float = 30.0
    max_words_per_second: float = 8.0
    min_characters_per_second: float = 1.0
    max_wer: float | None = None


#: A fault's name in `FAULTS`, and the reason in words.
Found = tuple[str, str]


def is_transcribing(prompt: str) -> bool:
    """Whether a prompt is one of the wordings of the task `transcribe`."""
    return prompt.strip() in {wording.strip() for wording in known_tasks()[TRANSCRIBE_TASK].prompts}


def count_characters(text: str) -> int:
    """Letters and digits of any script: what takes time to say."""
    return sum(character.isalnum() for character in text)


def characters_per_second(text: str, facts: AudioFacts) -> float:
    """Letters and digits of a transcript for each second of its recording."""
    return count_characters(text) / facts.seconds


def level_dbfs(facts: AudioFacts) -> float:
    """Level of a recording without its offset, in dB relative to full scale."""
    rms = math.sqrt(max(facts.rms**2 - facts.offset**2, 0.0))
    return 20 * math.log10(rms) if rms else SILENCE_DBFS


def text_faults(prompt: str, response: str, recordings: int) -> Iterator[Found]:
    """What is wrong with a row's texts, beside what `RowReader` refuses."""
    if AUDIO_PLACEHOLDER in response:
        yield "audio_count", f"the response holds {AUDIO_PLACEHOLDER}, which stands for a recording"
    asked = " ".join(prompt.replace(AUDIO_PLACEHOLDER, " ").split())
    if recordings and asked.casefold() == " ".join(response.split()).casefold():
        yield "response_is_prompt", f"the response is the prompt's text: {shortened(response)}"


def recording_faults(facts: AudioFacts, limits: Limits) -> Iterator[Found]:
    """What is wrong with one recording."""
    if facts.fault:
        yield facts.fault, facts.reason
        return
    if facts.seconds < limits.min_seconds:
        yield "too_short", f"lasts {facts.seconds:.3f} s; at least {limits.min_seconds:g} s are expected"
    if facts.seconds > limits.max_seconds:
        yield "too_long", f"lasts {facts.seconds:.1f} s; at most {limits.max_seconds:g} s are expected"
    level = level_dbfs(facts)
    if level < limits.min_level_dbfs:
        shown = "digital silence" if level == SILENCE_DBFS else f"its level is {level:.1f} dBFS"
        yield "silent", f"{shown}; at least {limits.min_level_dbfs:g} dBFS are expected"
    if facts.clipped_share > limits.max_clipped_share:
        share, allowed = f"{facts.clipped_share:.2%}", f"{limits.max_clipped_share:.2%}"
        yield "clipped", f"{share} of its samples are at full scale; at most {allowed} are expected"
    if abs(facts.offset) > limits.max_dc_offset:
        yield "dc_offset", f"its mean is {facts.offset:+.3f}; at most {limits.max_dc_offset:g} either way is expected"
    if facts.rate != SAMPLING_RATE_HZ:
        yield "wrong_rate", f"has {facts.rate} Hz; {SAMPLING_RATE_HZ} Hz are expected"
    if facts.channels != 1:
        yield "not_mono", f"has {facts.channels} channels; one is expected"


def transcript_faults(text: str, facts: AudioFacts, limits: Limits) -> Iterator[Found]:
    """
    What is wrong with a transcript, given its recording.

    Args:
        text: the transcript.
        facts: of its one recording. Nothing is said of one that cannot be read or is too short.
        limits: what is allowed.
    """
    if facts.fault or facts.seconds < limits.min_seconds:
        return
    seconds = f"in {facts.seconds:.2f} s"
    characters, words = count_characters(text), len(text.split())
    if characters > limits.max_characters_per_second * facts.seconds:
        allowed = f"at most {limits.max_characters_per_second:g} a second can be said"
        yield "impossible_transcript", f"{characters} letters and digits {seconds}; {allowed}"
    elif words > limits.max_words_per_second * facts.seconds:
        yield (
            "impossible_transcript",
            f"{words} words {seconds}; at most {limits.max_words_per_second:g} a second can be said",
        )
    is_sparse = facts.seconds >= LONG_SECONDS and characters < limits.min_characters_per_second * facts.seconds
    if is_sparse or not characters:
        expected = f"at least {limits.min_characters_per_second:g} a second are expected"
        yield "sparse_transcript", f"{characters} letters and digits {seconds}; {expected}"


def word_error_faults(wer: float, hypothesis: str, limits: Limits) -> Iterator[Found]:
    """
    What is wrong with a transcript, given its word error.

    Args:
        wer: in percent.
        hypothesis: what was heard instead; empty where that is not known.
        limits: what is allowed.
    """
    if limits.max_wer is not None and wer > limits.max_wer:
        heard = f"; heard was {shortened(hypothesis)}" if hypothesis else ""
        yield "wrong_transcript", f"its word error is {wer:.1f} %; at most {limits.max_wer:g} % is expected{heard}"


def shortened(text: str, characters: int = 60) -> str:
    """A text as reasons quote it."""
    return repr(text if len(text) <= characters else text[: characters - 1] + "…")


__all__ = [
    "ERROR",
    "FAULTS",
    "NOT_COMPARED",
    "WARNING",
    "Fault",
    "Found",
    "Limits",
    "characters_per_second",
    "is_transcribing",
    "level_dbfs",
    "recording_faults",
    "text_faults",
    "transcript_faults",
    "word_error_faults",
]

"""
`audiollm transcribe`: what is said in recordings of any length, as text, JSON and subtitles.

    audiollm transcribe *.wav
    audiollm transcribe interviews/ lecture.mp3 --output_dir transcripts --output_format txt srt json

Interrupted or killed, the same command goes on where it was. Ends with 0, with 1 where a recording could not be
transcribed (the others are), and with 2 where nothing was done.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from audiollm.disks import check_writable
from audiollm.inference.ctc_rescoring import DEFAULT_CTC_WEIGHT

from .loading import check_device, find_checkpoint, load_processor
from .loading_options import LoadingArguments
from .recordings_command import run_over_recordings
from .transcribe_inputs import Recording, find_recordings
from .transcribing import Failure, Transcriber, TranscribingSettings
from .transcripts import ALL_FORMATS, FORMATS, Transcript, chosen_formats, with_ending, write_transcript

PARTIAL_ENDING = "partial.jsonl"
#: Shorter windows would hold no phrase.
MIN_WINDOW_SECONDS = 1.0


@dataclass
class TranscribeArguments(LoadingArguments):
    """What hears, how, and where its transcripts go."""

    output_dir: str | None = field(
        default=None, metadata={"help": "Folder for transcripts; without it they are printed, and nothing is kept."}
    )
    output_format: list[str] = field(
        default_factory=lambda: ["txt"],
        metadata={"help": f"What to write: some of {', '.join(FORMATS)}, or {ALL_FORMATS}."},
    )
    overwrite: bool = field(default=False, metadata={"help": "Write over transcripts that are there already."})
    prompt: str = field(
        default=TranscribingSettings.prompt, metadata={"help": "What to ask about each window; <audio> stands for it."}
    )
    batch_size: int = field(default=TranscribingSettings.batch_size, metadata={"help": "Windows at a time."})
    max_new_tokens: int = field(
        default=TranscribingSettings.max_new_tokens,
        metadata={"help": "Bound on what is written of one window; windows that reach it are named."},
    )
    window_seconds: float = field(
        default=TranscribingSettings.window_seconds,
        metadata={
            "help": "Longest window that is heard at once, at most 30: about what the model was trained on. Cut at pauses."
        },
    )
    voice_activity: str = field(
        default="on", metadata={"help": "on leaves out what holds no voice, off asks about everything."}
    )
    voice_threshold_db: float = field(
        default=TranscribingSettings.voice_rise_db,
        metadata={"help": "How far a voice rises above the quietest moments; less takes more for a voice."},
    )
    min_logprob: float | None = field(
        default=None,
        metadata={
            "help": "Leave out windows whose words the model is less sure of: the mean log-probability of their tokens, such "
            "as -1. For music and noises that --voice_activity takes for a voice; costs speech that is hard to hear."
        },
    )
    ctc_weight: float | None = field(
        default=TranscribingSettings.ctc_weight,
        metadata={
            "help": "N-best rescoring: choose each window's transcript from candidates of the language model and of CTC, "
            f"with this weight for CTC. By default {DEFAULT_CTC_WEIGHT:g} for models with --projector_readout pieces; 0 "
            "keeps the greedy transcript, in about half the time."
        },
    )
    carry_context: bool = field(
        default=False, metadata={"help": "Show the model the end of what was said in the window before."}
    )
    static_cache: bool = field(
        default=False,
        metadata={
            "help": "Fixed memory for keys and values, with which the model is compiled on a GPU: the first batches then "
            "take minutes, for the others to be quicker. Of no use on a CPU."
        },
    )
    progress: bool = field(default=True, metadata={"help": "Show a bar of audio seconds, with speed and time left."})

    def __post_init__(self):
        super().__post_init__()
        self.output_format = chosen_formats(self.output_format)
        if self.output_dir is None and (self.output_format != ["txt"] or self.overwrite):
            raise ValueError("--output_format and --overwrite are about files; give --output_dir with them.")
        if self.prompt.count("<audio>") > 1:
            raise ValueError(f"--prompt has {self.prompt.count('<audio>')} <audio>; expected one, or none.")
        for name in ("batch_size", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} is {getattr(self, name)}; expected at least 1.")
        if self.min_logprob is not None and not -float("inf") < self.min_logprob < 0:
            raise ValueError(f"--min_logprob is {self.min_logprob:g}; expected less than 0, such as -1.")
        if self.ctc_weight is not None and not 0 <= self.ctc_weight < float("inf"):
            raise ValueError(f"--ctc_weight is {self.ctc_weight:g}; expected 0, which is off, or more, such as 1.5.")
        if self.ctc_weight and self.static_cache:
            raise ValueError("--static_cache holds one answer a window, --ctc_weight compares several; leave one out.")
        if self.voice_activity not in ("on", "off"):
            raise ValueError(f"--voice_activity is {self.voice_activity!r}; expected on or off.")
        if not 0 <= self.voice_threshold_db < float("inf"):
            raise ValueError(f"--voice_threshold_db is {self.voice_threshold_db:g}; expected 0 or more.")
        if self.voice_activity == "off" and self.voice_threshold_db != TranscribingSettings.voice_rise_db:
            raise ValueError("--voice_threshold_db does nothing with --voice_activity off; leave one out.")

    def settings(self, longest_window_s: float) -> TranscribingSettings:
        """
        What decides a transcript.

        Raises:
            ValueError: the windows are shorter than a phrase, or longer than the encoder's.
        """
        if not MIN_WINDOW_SECONDS <= self.window_seconds <= longest_window_s:
            raise ValueError(
                f"--window_seconds is {self.window_seconds:g}; expected {MIN_WINDOW_SECONDS:g} to {longest_window_s:g}, "
                "the longest that the encoder takes."
            )
        return TranscribingSettings(
            prompt=self.prompt,
            window_seconds=self.window_seconds,
            voice_activity=self.voice_activity == "on",
            voice_rise_db=self.voice_threshold_db,
            batch_size=self.batch_size,
            max_new_tokens=self.max_new_tokens,
            carry_context=self.carry_context,
            static_cache=self.static_cache,
            min_logprob=self.min_logprob,
            ctc_weight=self.ctc_weight,
        )


def run(given: Sequence[str], arguments: TranscribeArguments) -> list[Failure]:
    """
    Transcribes recordings, to files or to standard output in the order given.

    Args:
        given: files, folders, patterns and URLs; see [`find_recordings`].

    Returns:
        What could not be transcribed.

    Raises:
        CheckpointError: the model is not there, or cannot be used.
        ValueError: options or inputs contradict each other.
        OSError: transcripts cannot be written.
    """
    found = find_recordings(given)
    recordings = [one for one in found if isinstance(one, Recording)]
    failures = [one for one in found if isinstance(one, Failure)]
    stems = [_stem(recording, arguments) for recording in recordings]
    if not recordings:
        return failures
    checkpoint = find_checkpoint(arguments.model)
    check_device(arguments.device)
    processor = load_processor(checkpoint, arguments.revision)
    settings = arguments.settings(processor.window_samples / processor.sampling_rate)
    _refuse_overwriting(stems, arguments)
    if arguments.output_dir is not None:
        check_writable(Path(arguments.output_dir).expanduser())
    model = arguments.load_model(checkpoint)
    transcriber = Transcriber(model, processor, settings, arguments.model or checkpoint, arguments.progress)
    partials = [None if stem is None else with_ending(stem, PARTIAL_ENDING) for stem in stems]
    results = transcriber.transcribe([recording.location for recording in recordings], partials)
    for stem, result in zip(stems, results):
        if isinstance(result, Failure):
            failures.append(result)
            continue
        _warn(result)
        if stem is not None:
            write_transcript(result, stem, arguments.output_format)
        else:
            print(f"{result.audio}: {result.text}" if len(found) > 1 else result.text, flush=True)
    transcriber.remove_partial()
    return failures


def _stem(recording: Recording, arguments: TranscribeArguments) -> Path | None:
    return None if arguments.output_dir is None else Path(arguments.output_dir).expanduser() / recording.name


def _refuse_overwriting(stems: Sequence[Path | None], arguments: TranscribeArguments) -> None:
    """Raises ValueError where transcripts are there that no broken-off run of this command has begun."""
    if arguments.output_dir is not None and Path(arguments.output_dir).is_file():
        raise ValueError(f"--output_dir {arguments.output_dir} is a file; expected a folder.")
    there = [
        path
        for stem in stems
        if stem is not None and not with_ending(stem, PARTIAL_ENDING).exists()
        for path in (with_ending(stem, name) for name in arguments.output_format)
        if path.exists()
    ]
    if there and not arguments.overwrite:
        more = f" and {len(there) - 1} more are" if len(there) > 1 else " is"
        raise ValueError(f"{there[0]}{more} there already; give --overwrite, or another --output_dir.")


def _warn(transcript: Transcript) -> None:
    cut_off = [passage for passage in transcript.passages if passage.is_cut_off]
    if cut_off:
        times = ", ".join(f"{passage.start_s:.1f}-{passage.end_s:.1f} s" for passage in cut_off)
        print(f"{transcript.audio}: stopped at the bound on new tokens: {times}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry of `audiollm transcribe`; exits with 1 where recordings failed, and with 2 where nothing was done."""
    run_over_recordings("transcribe", TranscribeArguments, __doc__, run, "transcribed", argv)


if __name__ == "__main__":
    main()

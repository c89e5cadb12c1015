"""
`audiollm transcribe`: transcribe recordings of any length, to text, JSON and subtitles.

    audiollm transcribe *.wav
    audiollm transcribe interviews/ lecture.mp3 --output_dir transcripts --output_format txt srt json

After an interruption the same command with --output_dir goes on where it was. The exit status is 1 if a recording could not
be transcribed (the others are), and 2 if nothing was done.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from audiollm.command_line.files import check_writable
from audiollm.command_line.option_parser import option

from .context_words import read_context
from .ctc_rescoring import DEFAULT_CTC_WEIGHT
from .loading import check_device, find_checkpoint, load_generation_config, load_processor
from .options import LoadingArguments, Source, check_positive, find_recordings, output_stems, run_over_recordings
from .transcribing import (
    SHORT_WINDOW_SECONDS,
    STORED_SETTINGS,
    TRANSCRIBE_PROMPT,
    WINDOW_SECONDS,
    Failure,
    Transcriber,
    TranscribingSettings,
    check_window,
    stored_settings,
)
from .transcripts import (
    ALL_FORMATS,
    FORMATS,
    TIMESTAMPS,
    WORD,
    Transcript,
    as_word_lines,
    chosen_formats,
    with_ending,
    write_transcript,
)

PARTIAL_ENDING = "partial.jsonl"
WINDOW_HELP = (
    "Longest window that the encoder hears at once, at most 30; windows are cut at pauses. By default that of the checkpoint "
    f"({STORED_SETTINGS} in generation_config.json), or {WINDOW_SECONDS:g} with CTC, which finds the phrases in it, and "
    f"{SHORT_WINDOW_SECONDS:g} without; best is then the length of the training data."
)


@dataclass
class TranscribeArguments(LoadingArguments):
    """Options of `audiollm transcribe`."""

    GROUPS: ClassVar = {
        "output": ("output_dir", "output_format", "timestamps", "overwrite", "progress"),
        "transcription": (
            "prompt",
            "window_seconds",
            "max_new_tokens",
            "batch_size",
            "ctc_weight",
            "context",
        ),
        "stretches without speech": ("voice_activity", "voice_threshold_db", "min_logprob"),
        **LoadingArguments.MODEL_GROUP,
    }

    output_dir: str | None = option(None, "Folder for transcripts. By default they are printed, and nothing is kept.")
    output_format: list[str] = option(["txt"], f"Some of {', '.join(FORMATS)}, or {ALL_FORMATS}.")
    timestamps: str = option(
        TranscribingSettings.timestamps,
        "word gives each word's start, end and confidence, for models with --projector_readout pieces: in json, as "
        "short subtitles, and as lines where no file is written. Times of segments, the windows, are always there.",
        choices=TIMESTAMPS,
    )
    overwrite: bool = option(False, "Write over transcripts that are there already.")
    prompt: str | None = option(
        None, f"Question about each window, with <audio> in its place; by default {TRANSCRIBE_PROMPT!r}."
    )
    batch_size: int = option(TranscribingSettings.batch_size, "Windows at a time.")
    max_new_tokens: int | None = option(
        None,
        "Bound on the text of one window, in tokens; windows that reach it are listed. "
        f"By default {TranscribingSettings.max_new_tokens}.",
    )
    window_seconds: float | None = option(None, WINDOW_HELP)
    voice_activity: str = option("on", "on skips stretches without a voice, off transcribes everything.")
    voice_threshold_db: float = option(
        TranscribingSettings.voice_rise_db,
        "Rise of a voice above the quietest moments; a lower one takes more sounds for a voice.",
    )
    min_logprob: float | None = option(
        None,
        "Leave out windows with a lower mean log-probability of their tokens (of CTC's word pieces, with "
        "rescoring), such as -1: for music and noises that --voice_activity takes for a voice. Costs speech that is hard to hear.",
    )
    ctc_weight: float | None = option(
        TranscribingSettings.ctc_weight,
        "Weight of CTC beside the language model in n-best rescoring. By default "
        f"{DEFAULT_CTC_WEIGHT:g} for models with --projector_readout pieces; 0 decodes greedily.",
    )
    context: str | None = option(
        None,
        "Names and terms that may be said, between commas, or a text file of them: favoured where they are heard, "
        "by models with --projector_readout pieces.",
    )
    progress: bool = option(True, "Show a bar of audio seconds, with speed and time left.")

    def __post_init__(self):
        super().__post_init__()
        self.output_format = chosen_formats(self.output_format)
        if self.output_dir is None and (self.output_format != ["txt"] or self.overwrite):
            raise ValueError("--output_format and --overwrite are about files; give --output_dir with them.")
        if self.prompt is not None and self.prompt.count("<audio>") > 1:
            raise ValueError(f"--prompt has {self.prompt.count('<audio>')} <audio>; expected one, or none.")
        check_positive(self, "batch_size", *(["max_new_tokens"] if self.max_new_tokens is not None else []))
        if self.min_logprob is not None and not -float("inf") < self.min_logprob < 0:
            raise ValueError(f"--min_logprob is {self.min_logprob:g}; expected less than 0, such as -1.")
        if self.ctc_weight is not None and not 0 <= self.ctc_weight < float("inf"):
            raise ValueError(f"--ctc_weight is {self.ctc_weight:g}; expected 0, which is off, or more, such as 1.5.")
        self.context_words = () if self.context is None else read_context(self.context)
        if self.voice_activity not in ("on", "off"):
            raise ValueError(f"--voice_activity is {self.voice_activity!r}; expected on or off.")
        if not 0 <= self.voice_threshold_db < float("inf"):
            raise ValueError(f"--voice_threshold_db is {self.voice_threshold_db:g}; expected 0 or more.")
        if self.voice_activity == "off" and self.voice_threshold_db != TranscribingSettings.voice_rise_db:
            raise ValueError("--voice_threshold_db does nothing with --voice_activity off; leave one out.")

    def settings(self, longest_window_s: float, stored: Mapping[str, Any]) -> TranscribingSettings:
        """
        Return the settings of transcription: options override those `stored` with the checkpoint.

        Raises:
            ValueError: the windows are shorter than a phrase, or longer than the encoder's.
        """
        given = {name: getattr(self, name) for name in ("prompt", "window_seconds", "max_new_tokens")}
        settings = TranscribingSettings(
            **{**stored, **{name: value for name, value in given.items() if value is not None}},
            voice_activity=self.voice_activity == "on",
            voice_rise_db=self.voice_threshold_db,
            batch_size=self.batch_size,
            min_logprob=self.min_logprob,
            ctc_weight=self.ctc_weight,
            timestamps=self.timestamps,
            context=self.context_words,
        )
        if settings.window_seconds is not None:
            check_window(settings.window_seconds, longest_window_s, "--window_seconds")
        return settings


def run(given: Sequence[str], arguments: TranscribeArguments) -> list[Failure]:
    """
    Transcribe recordings, to files or to standard output, in the order given; return those that could not be transcribed.

    Raises:
        CheckpointError: the model is not there, or cannot be used.
        ValueError: options or inputs contradict each other.
        OSError: transcripts cannot be written.
    """
    found = find_recordings(given)
    recordings = [one for one in found if isinstance(one, Source)]
    failures = [one for one in found if isinstance(one, Failure)]
    stems = output_stems(
        recordings, arguments.output_dir, arguments.output_format, PARTIAL_ENDING, arguments.overwrite
    )
    if not recordings:
        return failures
    checkpoint = find_checkpoint(arguments.model)
    check_device(arguments.device)
    processor = load_processor(checkpoint, arguments.revision)
    stored = stored_settings(load_generation_config(checkpoint, arguments.revision))
    settings = arguments.settings(processor.window_samples / processor.sampling_rate, stored)
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
        elif arguments.timestamps == WORD:
            print((f"{result.audio}\n" if len(found) > 1 else "") + as_word_lines(result), end="", flush=True)
        else:
            print(f"{result.audio}: {result.text}" if len(found) > 1 else result.text, flush=True)
    transcriber.remove_partial()
    return failures


def _warn(transcript: Transcript) -> None:
    cut_off = [passage for passage in transcript.passages if passage.is_cut_off]
    if cut_off:
        times = ", ".join(f"{passage.start_s:.1f}-{passage.end_s:.1f} s" for passage in cut_off)
        print(f"{transcript.audio}: stopped at the bound on new tokens: {times}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry of `audiollm transcribe`; exits with 1 if recordings failed, and with 2 if nothing was done."""
    run_over_recordings("transcribe", TranscribeArguments, __doc__, run, "transcribed", argv)


if __name__ == "__main__":
    main()

"""
`audiollm transcribe`: transcribe recordings of any length, to text, JSON and subtitles.

    audiollm transcribe *.wav
    audiollm transcribe interviews/ lecture.mp3 --output_dir transcripts --output_format txt srt json

After an interruption the same command with --output_dir goes on where it was. The exit status is 1 if a recording could not
be transcribed (the others are), and 2 if nothing was done.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from audiollm.command_line.option_parser import option

from .context_words import read_context
from .ctc_rescoring import DEFAULT_CTC_WEIGHT
from .options import LoadingArguments, OutputArguments, Source, check_positive, run_over_recordings, tell
from .transcribing import (
    SHORT_WINDOW_SECONDS,
    STORED_SETTINGS,
    TRANSCRIBE_PROMPT,
    WINDOW_SECONDS,
    Failure,
    Transcriber,
    TranscribingSettings,
)
from .transcripts import ALL_FORMATS, FORMATS, TIMESTAMPS, WORD, as_word_lines, with_ending, write_transcript

WINDOW_HELP = (
    "Longest window that the encoder hears at once, at most 30; windows are cut at pauses. By default that of the checkpoint "
    f"({STORED_SETTINGS} in generation_config.json), or {WINDOW_SECONDS:g} with CTC, which finds the phrases in it, and "
    f"{SHORT_WINDOW_SECONDS:g} without; best is then the length of the training data."
)


@dataclass
class TranscribeArguments(OutputArguments):
    """Options of `audiollm transcribe`."""

    GROUPS: ClassVar = {
        "output": ("output_dir", "output_format", "timestamps", "overwrite", "progress"),
        "transcription": (
            "language",
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
    PARTIAL_ENDING = "partial.jsonl"

    output_format: list[str] = option(
        ["txt"], f"Some of {', '.join(FORMATS)}, or {ALL_FORMATS}.", choices=[*FORMATS, ALL_FORMATS], metavar="FORMAT"
    )
    timestamps: str = option(
        TranscribingSettings.timestamps,
        "word gives each word's start, end and confidence, for models with --projector_readout pieces: in json, as "
        "short subtitles, and as lines where no file is written. Times of segments, the windows, are always there.",
        choices=TIMESTAMPS,
    )
    prompt: str | None = option(
        None, f"Question about each window, with <audio> in its place; by default {TRANSCRIBE_PROMPT!r}."
    )
    language: str | None = option(
        None, "Language of the speech, by name or code, such as de: the question says it, to multilingual encoders."
    )
    batch_size: int = option(TranscribingSettings.batch_size, "Windows at a time.")
    max_new_tokens: int | None = option(
        None,
        "Bound on the text of one window, in tokens; windows that reach it are listed. "
        f"By default {TranscribingSettings.max_new_tokens}.",
    )
    window_seconds: float | None = option(None, WINDOW_HELP)
    voice_activity: str = option(
        "on", "on skips stretches without a voice, off transcribes everything.", choices=("on", "off")
    )
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

    def __post_init__(self):
        super().__post_init__()
        self.output_format = list(FORMATS if ALL_FORMATS in self.output_format else dict.fromkeys(self.output_format))
        self.endings = self.output_format
        if self.output_dir is None and self.output_format != ["txt"]:
            raise ValueError("--output_format is about files; give --output_dir with it.")
        if self.prompt is not None and self.prompt.count("<audio>") > 1:
            raise ValueError(f"--prompt has {self.prompt.count('<audio>')} <audio>; expected one, or none.")
        check_positive(self, "batch_size", *(["max_new_tokens"] if self.max_new_tokens is not None else []))
        if self.min_logprob is not None and not -float("inf") < self.min_logprob < 0:
            raise ValueError(f"--min_logprob is {self.min_logprob:g}; expected less than 0, such as -1.")
        if self.ctc_weight is not None and not 0 <= self.ctc_weight < float("inf"):
            raise ValueError(f"--ctc_weight is {self.ctc_weight:g}; expected 0, which is off, or more, such as 1.5.")
        self.context_words = () if self.context is None else read_context(self.context)
        if not 0 <= self.voice_threshold_db < float("inf"):
            raise ValueError(f"--voice_threshold_db is {self.voice_threshold_db:g}; expected 0 or more.")
        if self.voice_activity == "off" and self.voice_threshold_db != TranscribingSettings.voice_rise_db:
            raise ValueError("--voice_threshold_db does nothing with --voice_activity off; leave one out.")


def run(sources: Sequence[Source], options: TranscribeArguments, several: bool) -> list[Failure]:
    """Transcribe recordings, to files or to standard output, and return those that could not be transcribed."""
    checkpoint, processor = options.find()
    settings = options.transcribing_settings(
        checkpoint,
        processor,
        {name: getattr(options, name) for name in ("prompt", "window_seconds", "max_new_tokens")},
        voice_activity=options.voice_activity == "on",
        voice_rise_db=options.voice_threshold_db,
        batch_size=options.batch_size,
        min_logprob=options.min_logprob,
        ctc_weight=options.ctc_weight,
        timestamps=options.timestamps,
        context=options.context_words,
        language=options.language,
    )
    model = options.load_model(checkpoint)
    transcriber = Transcriber(model, processor, settings, options.model or checkpoint, options.progress)
    partials = [None if one.stem is None else with_ending(one.stem, options.PARTIAL_ENDING) for one in sources]
    failures = []
    for source, result in zip(sources, transcriber.transcribe([one.location for one in sources], partials)):
        if isinstance(result, Failure):
            failures.append(result)
            continue
        cut_off = [f"{one.start_s:.1f}-{one.end_s:.1f} s" for one in result.passages if one.is_cut_off]
        if cut_off:
            tell(f"{result.audio}: stopped at the bound on new tokens: {', '.join(cut_off)}")
        if not result.text:
            tell(f"{result.audio}: no speech was found.")
        if source.stem is not None:
            write_transcript(result, source.stem, options.output_format)
        elif options.timestamps == WORD:
            print((f"{result.audio}\n" if several else "") + as_word_lines(result), end="", flush=True)
        else:
            print(f"{result.audio}: {result.text}" if several else result.text, flush=True)
    transcriber.remove_partial()
    return failures


def main(argv: Sequence[str] | None = None) -> None:
    """Entry of `audiollm transcribe`; exits with 1 if recordings failed, and with 2 if nothing was done."""
    run_over_recordings("transcribe", TranscribeArguments, __doc__, run, "transcribed", argv)


if __name__ == "__main__":
    main()

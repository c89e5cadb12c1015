"""Text and recordings in, model inputs out: expands each `<audio>` to exactly the slots the model will fill."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoFeatureExtractor, AutoTokenizer
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin

from .audio_io import load_waveform
from .audio_tokens import (
    AUDIO_BEGIN_TOKEN,
    AUDIO_END_TOKEN,
    AUDIO_SLOT_TOKEN,
    add_audio_tokens,
    check_template_names,
)
from .base_models import resolve_base
from .conversations import (
    AUDIO_PLACEHOLDER,
    IGNORED_LABEL,
    ConversationError,
    Segment,
    flatten_batch,
    flatten_conversation,
    render_segments,
)
from .distributing import as_recordings, distribute, is_list
from .encoder_windows import windows_for

#: What has an entry for each token id, and its value where there is padding.
BESIDE_IDS = {"labels": IGNORED_LABEL, "assistant_masks": 0}


class AudioLlmProcessor(ProcessorMixin):
    r"""
    A speech encoder's feature extractor and a language model's tokenizer as one processor.

    Args:
        feature_extractor: the encoder's: Whisper's [`WhisperFeatureExtractor`], or the [`SeamlessM4TFeatureExtractor`]
            of Wav2Vec2-BERT.
        tokenizer: the language model's tokenizer. The three audio tokens are added to a copy of it where it lacks
            them, with ids past the language model's vocabulary; the model's embedding matrix is never resized.
        stack_factor (`int`, defaults to 4): 20 ms encoder frames per audio token; the model's.
        text_vocab_size (`int`, *optional*):
            Rows of the language model's embedding matrix, which the audio ids must lie past. Defaults to the
            tokenizer's length.
        chat_template (`str`, *optional*): defaults to the tokenizer's own.

    Example:

    ```python
    inputs = processor(text="What is said? <audio>", audio="question.wav")
    ```
    """

    def __init__(
        self,
        feature_extractor,
        tokenizer,
        stack_factor: int = 4,
        text_vocab_size: int | None = None,
        chat_template: str | None = None,
    ):
        if stack_factor < 1:
            raise ValueError(f"stack_factor is {stack_factor}; expected an integer of at least 1.")
        check_template_names(chat_template or tokenizer.chat_template)
        tokenizer = add_audio_tokens(tokenizer, text_vocab_size)
        self.stack_factor = stack_factor
        self.text_vocab_size = text_vocab_size
        self.audio_begin_token_id, self.audio_token_id, self.audio_end_token_id = tokenizer.convert_tokens_to_ids(
            [AUDIO_BEGIN_TOKEN, AUDIO_SLOT_TOKEN, AUDIO_END_TOKEN]
        )
        super().__init__(feature_extractor, tokenizer, chat_template=chat_template or tokenizer.chat_template)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs) -> "AudioLlmProcessor":
        """transformers' own; code that lies beside the files runs only where `trust_remote_code=True` is passed."""
        kwargs["trust_remote_code"] = bool(kwargs.get("trust_remote_code"))
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def from_audio_text_pretrained(
        cls,
        audio_model_id: str,
        text_model_id: str,
        audio_model_revision: str | None = None,
        text_model_revision: str | None = None,
        stack_factor: int = 4,
        **hub_arguments,
    ) -> "AudioLlmProcessor":
        """
        Composes the processor of two bases, as the model's method of the same name does.

        Args:
            audio_model_id, text_model_id: Hub ids, folders, or `pypi:<name>` for the embedded bases.
            audio_model_revision, text_model_revision: git revisions on the Hub.
            stack_factor: must be the model's.
            hub_arguments: `token`, `cache_dir`, `local_files_only`, …
        """
        audio_revision, text_revision = audio_model_revision or "main", text_model_revision or "main"
        audio_model_id, text_model_id = resolve_base(audio_model_id, "audio"), resolve_base(text_model_id, "text")
        hub_arguments["trust_remote_code"] = False
        feature_extractor = AutoFeatureExtractor.from_pretrained(
            audio_model_id, revision=audio_revision, **hub_arguments
        )
        tokenizer = AutoTokenizer.from_pretrained(text_model_id, revision=text_revision, **hub_arguments)
        text_config = AutoConfig.from_pretrained(text_model_id, revision=text_revision, **hub_arguments)
        return cls(feature_extractor, tokenizer, stack_factor, text_config.get_text_config().vocab_size)

    @property
    def sampling_rate(self) -> int:
        """Rate in Hz that every recording is brought to."""
        return self.feature_extractor.sampling_rate

    @property
    def model_input_names(self) -> list[str]:
        """Names of what a call returns, for those who filter columns."""
        return [*self.tokenizer.model_input_names, "input_features", "input_features_mask"]

    # ---- audio ---------------------------------------------------------------------------------------------------

    @property
    def window_samples(self) -> int:
        """Samples in the longest window that the encoder is given (30 s)."""
        return windows_for(self.feature_extractor).max_samples

    def window_lengths(self, num_samples: int) -> list[int]:
        """Samples in each window that a recording of `num_samples` is cut into: full windows (30 s), then the rest."""
        full, rest = divmod(num_samples, self.window_samples)
        return [self.window_samples] * full + ([rest] if rest else [])

    def encoder_frames(self, num_samples: int) -> list[int]:
        """Frames of 20 ms that the encoder makes of each window of a recording of `num_samples` samples."""
        windows = windows_for(self.feature_extractor)
        return [windows.encoder_frames(length) for length in self.window_lengths(num_samples)]

    def num_audio_slots(self, num_samples: int) -> int:
        """How many audio tokens the model makes of a recording of `num_samples` samples at `sampling_rate`."""
        return sum(math.ceil(frames / self.stack_factor) for frames in self.encoder_frames(num_samples))

    def extract_features(self, waveform: np.ndarray) -> list[np.ndarray]:
        """Features of a waveform's windows, each as long as its audio: `(features, frames)`; see `encoder_windows`."""
        windows = windows_for(self.feature_extractor)
        starts = range(0, len(waveform), windows.max_samples)
        return [windows.features(waveform[start : start + windows.max_samples]) for start in starts]

    def batch_features(self, waveforms: list[np.ndarray]) -> dict[str, torch.Tensor]:
        """
        Windows of several waveforms in reading order, padded to the longest.

        Returns:
            `input_features` `(windows, features, max_frames)`, log-mel bins for Whisper, and `input_features_mask` `(windows, max_frames)`,
            1 for real frames.
        """
        windows = [window for waveform in waveforms for window in self.extract_features(waveform)]
        max_frames = max(window.shape[1] for window in windows)
        features = torch.zeros(len(windows), windows[0].shape[0], max_frames)
        mask = torch.zeros(len(windows), max_frames, dtype=torch.long)
        for index, window in enumerate(windows):
            features[index, :, : window.shape[1]] = torch.from_numpy(window)
            mask[index, : window.shape[1]] = 1
        return {"input_features": features, "input_features_mask": mask}

    def load_audio(self, audio: Any, sampling_rate: int | None = None, name: str | None = None) -> np.ndarray:
        """One recording of any kind as a float32 waveform `(samples,)` at `self.sampling_rate`; see `audio_io`."""
        return load_waveform(audio, sampling_rate, self.sampling_rate, name)

    # ---- text and audio ------------------------------------------------------------------------------------------

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        audio: Any = None,
        sampling_rate: int | None = None,
        padding: bool | str = True,
        padding_side: str = "left",
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        truncation: bool = False,
        add_special_tokens: bool = True,
        return_tensors: str | None = "pt",
        images: Any = None,
        videos: Any = None,
    ) -> BatchFeature:
        r"""
        Args:
            text: a string or a batch of them; each `<audio>` in them stands for one recording.
            audio: one recording, a list of all recordings in reading order, or a list per text. A recording is a
                waveform, a path, a URL, encoded bytes or a `datasets` audio dict.
            sampling_rate: rate in Hz of bare waveforms; 16 kHz where it is not given.
            padding, padding_side, max_length, pad_to_multiple_of: of the text, as the tokenizer's; on the left by
                default, as generation needs.
            truncation: refused: it could cut a recording's slots.
            add_special_tokens: lets the tokenizer add its own, such as a beginning-of-text token.
            return_tensors: `"pt"`, or None for lists of token ids.
            images, videos: refused; transformers' pipelines pass them as None.

        Returns:
            `input_ids`, `attention_mask` `(batch, length)`, and with audio `input_features`
            `(windows, mel_bins, frames)` and `input_features_mask` `(windows, frames)`.

        Raises:
            ValueError: the number of `<audio>` and of recordings differ; both are stated.
            AudioError: a recording cannot be used.
        """
        if images is not None or videos is not None:
            raise ValueError("AudioLLM listens and reads, it does not see: pass text and audio, not images or videos.")
        if text is None and audio is None:
            raise ValueError("Pass text, audio or both.")
        _refuse_truncation(truncation)
        if text is None:
            waveforms = self._load_all(as_recordings(audio), sampling_rate)
            return BatchFeature(self.batch_features(waveforms))
        texts = [text] if isinstance(text, str) else list(text)
        if not texts or not all(isinstance(one, str) for one in texts):
            raise ValueError("text must be a string or a non-empty list of strings.")
        recordings = distribute(audio, [one.count(AUDIO_PLACEHOLDER) for one in texts], isinstance(text, str))
        rows = [[Segment(one, False)] for one in texts]
        batch = self._encode(rows, recordings, sampling_rate, add_special_tokens)
        del batch["labels"]
        return self._pad(batch, padding, padding_side, return_tensors, max_length, pad_to_multiple_of)

    def apply_chat_template(  # type: ignore[override]  # audio and labels beside the usual
        self,
        conversation: list[dict[str, Any]] | list[list[dict[str, Any]]],
        chat_template: str | None = None,
        audio: Any = None,
        tokenize: bool = False,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        return_dict: bool = True,
        return_labels: bool = False,
        return_tensors: str | None = "pt",
        padding: bool | str = True,
        padding_side: str = "left",
        sampling_rate: int | None = None,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        truncation: bool = False,
        return_features: bool = True,
        return_assistant_tokens_mask: bool = False,
        processor_kwargs: dict[str, Any] | None = None,
        **template_kwargs,
    ) -> Any:
        r"""
        Renders conversations through the language model's own chat template, and encodes them.

        A message's content is a string, in which `<audio>` stands for the next recording of `audio`, or a list of
        typed parts: `{"type": "text", "text": ...}` and `{"type": "audio", "path" | "audio" | "url": ...}`. The
        template only ever sees strings, so any causal language model's own template will do.

        Args:
            conversation: a list of messages, or a batch of such lists.
            chat_template: a Jinja template other than the tokenizer's, or the name of one where it has several.
            audio: recordings for `<audio>` in string contents, in reading order, or a list per conversation.
            tokenize: False returns the rendered text, with one `<audio>` per recording.
            add_generation_prompt: ends with the opening of an assistant turn.
            continue_final_message: leaves the last turn open, for the model to go on with.
            return_dict: False returns `input_ids` alone.
            return_labels: adds `labels`, which are the ids in assistant turns (their end-of-turn token included) and
                -100 elsewhere.
            return_tensors, padding, padding_side, sampling_rate, max_length, pad_to_multiple_of, truncation: as in a call.
            return_assistant_tokens_mask: adds `assistant_masks`, 1 where `labels` would learn, whatever the template.
            return_features: False leaves out `input_features` and their mask, for one who has the encoder's output.
            processor_kwargs: any of those that are as in a call; transformers' pipelines pass them like this.
            template_kwargs: variables for the template.

        Raises:
            ConversationError: a message or part is malformed, or the template lost or doubled a recording.
            ValueError: `processor_kwargs` has other names, or options exclude each other.
        """
        settings: dict[str, Any] = {
            "return_tensors": return_tensors,
            "padding": padding,
            "padding_side": padding_side,
            "sampling_rate": sampling_rate,
            "max_length": max_length,
            "pad_to_multiple_of": pad_to_multiple_of,
            "truncation": truncation,
        }
        unknown = sorted(set(processor_kwargs or {}) - set(settings))
        if unknown:
            raise ValueError(f"processor_kwargs has {unknown}; expected some of {sorted(settings)}.")
        settings.update(processor_kwargs or {})
        sampling_rate = settings.pop("sampling_rate")
        _refuse_truncation(settings.pop("truncation"))
        if return_assistant_tokens_mask and not (tokenize and return_dict):
            raise ValueError("return_assistant_tokens_mask needs tokenize=True and return_dict=True.")
        batched = isinstance(conversation, (list, tuple)) and bool(conversation) and is_list(conversation[0])
        flat = flatten_batch(conversation) if batched else [flatten_conversation(conversation)]
        rows = [
            self.conversation_segments(
                messages, chat_template, add_generation_prompt, continue_final_message, **template_kwargs
            )
            for messages, _ in flat
        ]
        if not tokenize:
            texts = ["".join(segment.text for segment in row) for row in rows]
            return texts if batched else texts[0]
        recordings = self._conversation_recordings(flat, audio, batched)
        for index, (row, recordings_of_row) in enumerate(zip(rows, recordings)):
            found = sum(segment.text.count(AUDIO_PLACEHOLDER) for segment in row)
            if found != len(recordings_of_row):
                name = f"Conversation {index}" if batched else "The conversation"
                raise ConversationError(
                    f"{name} has {len(recordings_of_row)} recordings, but its rendered text has {found} "
                    f"{AUDIO_PLACEHOLDER}: a text part contains the placeholder, or the chat template dropped or "
                    "repeated a message."
                )
        batch = self._encode(rows, recordings, sampling_rate, False, return_features)
        if return_assistant_tokens_mask:
            batch["assistant_masks"] = [[int(label != IGNORED_LABEL) for label in row] for row in batch["labels"]]
        if not return_labels:
            del batch["labels"]
        encoded = self._pad(batch, **settings)
        return encoded if return_dict else encoded["input_ids"]

    def conversation_segments(
        self,
        messages: list[dict[str, Any]],
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        **template_kwargs,
    ) -> list[Segment]:
        """
        One conversation's text, through the chat template, in stretches marked as to be learned or not.

        Args:
            messages: with string contents, as `flatten_conversation` gives them.
            chat_template: a Jinja template, or the name of one where the tokenizer has several.
            add_generation_prompt, continue_final_message, template_kwargs: as in `apply_chat_template`.

        Raises:
            ConversationError: the template does not show an assistant turn.
        """
        named = self.chat_template if isinstance(self.chat_template, dict) else {"default": self.chat_template}
        template = named.get(chat_template or "default", chat_template)

        def render(part: list[dict[str, Any]], **ending: bool) -> str:
            return self.tokenizer.apply_chat_template(
                part, chat_template=template, tokenize=False, **ending, **template_kwargs
            )

        special_tokens = {*self.tokenizer.get_added_vocab(), *self.tokenizer.all_special_tokens}
        return render_segments(messages, render, add_generation_prompt, continue_final_message, special_tokens)

    def _conversation_recordings(
        self, flat: list[tuple[Any, list[Any]]], audio: Any, batched: bool
    ) -> list[list[Any]]:
        typed = [recordings for _, recordings in flat]
        if audio is None:
            return typed
        if any(typed):
            raise ConversationError("Pass recordings either as typed parts of the messages or as audio=, not both.")
        counts = [sum(m["content"].count(AUDIO_PLACEHOLDER) for m in messages) for messages, _ in flat]
        return distribute(audio, counts, not batched)

    def _load_all(self, recordings: list[Any], sampling_rate: int | None) -> list[np.ndarray]:
        return [
            self.load_audio(recording, sampling_rate, name=f"audio {index}")
            for index, recording in enumerate(recordings)
        ]

    def _encode(
        self,
        rows: list[list[Segment]],
        recordings: list[list[Any]],
        sampling_rate: int | None,
        add_special_tokens: bool,
        with_features: bool = True,
    ) -> dict[str, Any]:
        """Token ids and labels of every row as lists, and the features of all recordings in reading order."""
        waveforms = self._load_all([recording for row in recordings for recording in row], sampling_rate)
        slots = iter([self.num_audio_slots(len(waveform)) for waveform in waveforms])
        batch: dict[str, Any] = {"input_ids": [], "labels": []}
        for row, recordings_of_row in zip(rows, recordings):
            num_slots = [next(slots) for _ in recordings_of_row]
            input_ids, labels = self.encode_segments(row, num_slots, add_special_tokens)
            batch["input_ids"].append(input_ids)
            batch["labels"].append(labels)
        if waveforms and with_features:
            batch.update(self.batch_features(waveforms))
        return batch

    def encode_segments(
        self, segments: list[Segment], num_slots: list[int], add_special_tokens: bool = False
    ) -> tuple[list[int], list[int]]:
        """
        Token ids and labels of one row.

        Each segment is tokenized by itself, in training as in inference, so that a prompt's ids are the same whether
        or not an answer follows.

        Args:
            segments: the row's text in order, each marked as to be learned or not.
            num_slots: audio tokens of each recording, one per `<audio>`.
            add_special_tokens: let the tokenizer add its own, such as a beginning-of-text token.
        """
        input_ids: list[int] = []
        labels: list[int] = []
        counts = iter(num_slots)
        audio_ids = {self.audio_begin_token_id, self.audio_token_id, self.audio_end_token_id}
        for index, segment in enumerate(segments):
            if AUDIO_SLOT_TOKEN in segment.text:
                raise ValueError(f"The text contains {AUDIO_SLOT_TOKEN}, which stands for a stretch of a recording.")
            pieces = segment.text.split(AUDIO_PLACEHOLDER)
            expanded = pieces[0]
            for piece in pieces[1:]:
                expanded += AUDIO_BEGIN_TOKEN + AUDIO_SLOT_TOKEN * next(counts) + AUDIO_END_TOKEN + piece
            # After another segment the text is not at a beginning, where some tokenizers put a blank before it.
            ahead = AUDIO_END_TOKEN if index else ""
            adds_special = add_special_tokens and not ahead
            ids = self.tokenizer(ahead + expanded, add_special_tokens=adds_special)["input_ids"]
            ids = ids[1:] if ahead else ids
            input_ids.extend(ids)
            learned = segment.is_target
            labels.extend(id_ if learned and id_ not in audio_ids else IGNORED_LABEL for id_ in ids)
        return input_ids, labels

    def _pad(
        self,
        batch: dict[str, Any],
        padding: bool | str,
        padding_side: str,
        return_tensors: str | None,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
    ) -> BatchFeature:
        """Pads ids and what goes with them alike; features are padded already."""
        if return_tensors not in ("pt", None):
            raise ValueError(f"return_tensors is {return_tensors!r}; expected 'pt', or None for lists.")
        beside = {name: batch.pop(name) for name in BESIDE_IDS if name in batch}
        text = self.tokenizer.pad(
            {"input_ids": batch.pop("input_ids")},
            padding=padding,
            padding_side=padding_side,
            max_length=max_length,
            pad_to_multiple_of=pad_to_multiple_of,
            return_attention_mask=True,
        )
        columns = dict(text)
        for name, rows in beside.items():
            widths = map(len, text["input_ids"])
            columns[name] = [_pad_list(row, width, BESIDE_IDS[name], padding_side) for row, width in zip(rows, widths)]
        if return_tensors == "pt":
            columns = {name: _as_tensor(name, rows) for name, rows in columns.items()}
        return BatchFeature({**columns, **batch})

    def batch_decode(self, *args, **kwargs) -> list[str]:
        """The tokenizer's; audio tokens are special and go with `skip_special_tokens=True`."""
        return self.tokenizer.batch_decode(*args, **kwargs)

    def decode(self, *args, **kwargs) -> str:
        """The tokenizer's."""
        return self.tokenizer.decode(*args, **kwargs)


def _refuse_truncation(truncation: bool) -> None:
    if truncation:
        raise ValueError("truncation could cut the slots of a recording in two; shorten the text or audio instead.")


def _as_tensor(name: str, rows: list[list[int]]) -> torch.Tensor:
    if len(set(map(len, rows))) > 1:
        raise ValueError(f"The rows of {name} are of different lengths; pass padding=True, or return_tensors=None.")
    return torch.tensor(rows, dtype=torch.long)


def _pad_list(row: list[int], width: int, value: int, side: str) -> list[int]:
    padding = [value] * (width - len(row))
    return padding + row if side == "left" else row + padding


AudioLlmProcessor.register_for_auto_class("AutoProcessor")

__all__ = ["AudioLlmProcessor"]

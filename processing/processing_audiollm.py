"""Text and recordings in, model inputs out: expands each `<audio>` to exactly the slots the model will fill."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoFeatureExtractor, AutoTokenizer
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin
from transformers.utils import logging

from .audio_io import load_waveform
from .base_models import resolve_base
from .conversations import (
    AUDIO_PLACEHOLDER,
    IGNORED_LABEL,
    ConversationError,
    Segment,
    flatten_conversation,
    render_segments,
)

logger = logging.get_logger(__name__)

#: `<audio>` opens a recording in the text, and stands for it in what users write; `</audio>` closes it.
AUDIO_BEGIN_TOKEN = AUDIO_PLACEHOLDER
AUDIO_SLOT_TOKEN = "<|audio_slot|>"
AUDIO_END_TOKEN = "</audio>"
#: Whisper's second convolution halves the frame rate.
MEL_FRAMES_PER_ENCODER_FRAME = 2
DEFAULT_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


class AudioLlmProcessor(ProcessorMixin):
    r"""
    Whisper's feature extractor and a language model's tokenizer as one processor.

    Args:
        feature_extractor: the Whisper checkpoint's [`WhisperFeatureExtractor`].
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
        tokenizer = add_audio_tokens(tokenizer, text_vocab_size)
        self.stack_factor = stack_factor
        self.text_vocab_size = text_vocab_size
        self.audio_begin_token_id, self.audio_token_id, self.audio_end_token_id = tokenizer.convert_tokens_to_ids(
            [AUDIO_BEGIN_TOKEN, AUDIO_SLOT_TOKEN, AUDIO_END_TOKEN]
        )
        super().__init__(feature_extractor, tokenizer, chat_template=chat_template or tokenizer.chat_template)

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

    def window_lengths(self, num_samples: int) -> list[int]:
        """Samples in each window that a recording of `num_samples` is cut into: full windows (30 s), then the rest."""
        full, rest = divmod(num_samples, self.feature_extractor.n_samples)
        return [self.feature_extractor.n_samples] * full + ([rest] if rest else [])

    def num_audio_slots(self, num_samples: int) -> int:
        """How many audio tokens the model makes of a recording of `num_samples` samples at `sampling_rate`."""
        slots = 0
        for length in self.window_lengths(num_samples):
            mel_frames = math.ceil(length / self.feature_extractor.hop_length)
            encoder_frames = math.ceil(mel_frames / MEL_FRAMES_PER_ENCODER_FRAME)
            slots += math.ceil(encoder_frames / self.stack_factor)
        return slots

    def extract_features(self, waveform: np.ndarray) -> list[np.ndarray]:
        """
        Log-mel windows of one waveform, each as long as its audio: `(num_mel_bins, ceil(samples / hop))`.

        The frames are those that Whisper's own extractor computes of the audio padded to 30 s, bit for bit: as much
        silence is added as the last frame can see, and the frames of silence alone are cut off again.
        """
        extractor = self.feature_extractor
        windows, start = [], 0
        for length in self.window_lengths(len(waveform)):
            num_frames = math.ceil(length / extractor.hop_length)
            padded_length = min(num_frames * extractor.hop_length + extractor.n_fft, extractor.n_samples)
            padded = np.zeros(padded_length, dtype=np.float32)
            padded[:length] = waveform[start : start + length]
            features = extractor(
                padded, sampling_rate=extractor.sampling_rate, padding=False, truncation=False, return_tensors="np"
            )["input_features"][0]
            windows.append(features[:, :num_frames])
            start += length
        return windows

    def batch_features(self, waveforms: list[np.ndarray]) -> dict[str, torch.Tensor]:
        """
        Log-mel windows of several waveforms in reading order, padded to the longest.

        Returns:
            `input_features` `(windows, num_mel_bins, max_frames)` and `input_features_mask` `(windows, max_frames)`,
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
        return_tensors: str | None = "pt",
        **kwargs,
    ) -> BatchFeature:
        r"""
        Args:
            text: a string or a batch of them; each `<audio>` in them stands for one recording.
            audio: one recording, a list of all recordings in reading order, or a list per text. A recording is a
                waveform, a path, a URL, encoded bytes or a `datasets` audio dict.
            sampling_rate: rate in Hz of bare waveforms; 16 kHz where it is not given.
            padding, padding_side: of the text; on the left by default, as generation needs.
            return_tensors: `"pt"`, or None for lists of token ids.
            kwargs: the tokenizer's, such as `max_length` for padding. Truncation is refused: it could cut a
                recording's slots.

        Returns:
            `input_ids`, `attention_mask` `(batch, length)`, and with audio `input_features`
            `(windows, mel_bins, frames)` and `input_features_mask` `(windows, frames)`.

        Raises:
            ValueError: the number of `<audio>` and of recordings differ; both are stated.
            AudioError: a recording cannot be used.
        """
        if text is None and audio is None:
            raise ValueError("Pass text, audio or both.")
        if kwargs.pop("truncation", False):
            raise ValueError(
                "truncation could cut the slots of a recording in two; shorten the text or audio instead."
            )
        if text is None:
            waveforms = self._load_all(_as_recordings(audio), sampling_rate)
            return BatchFeature(self.batch_features(waveforms))
        texts = [text] if isinstance(text, str) else list(text)
        if not texts or not all(isinstance(one, str) for one in texts):
            raise ValueError("text must be a string or a non-empty list of strings.")
        recordings = _distribute(audio, [one.count(AUDIO_PLACEHOLDER) for one in texts], isinstance(text, str))
        segments = [[Segment(one, False)] for one in texts]
        batch = self._encode(segments, recordings, sampling_rate, kwargs.pop("add_special_tokens", True), **kwargs)
        return self._pad(batch, padding, padding_side, return_tensors, kwargs.get("max_length"))

    def apply_chat_template(
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
        **template_kwargs,
    ) -> Any:
        r"""
        Renders conversations through the language model's own chat template, and encodes them.

        A message's content is a string, in which `<audio>` stands for the next recording of `audio`, or a list of
        typed parts: `{"type": "text", "text": ...}` and `{"type": "audio", "path" | "audio" | "url": ...}`. The
        template only ever sees strings, so any causal language model's own template will do.

        Args:
            conversation: a list of messages, or a batch of such lists.
            chat_template: a Jinja template other than the tokenizer's.
            audio: recordings for `<audio>` in string contents, in reading order, or a list per conversation.
            tokenize: False returns the rendered text, with one `<audio>` per recording.
            add_generation_prompt: ends with the opening of an assistant turn.
            continue_final_message: leaves the last turn open, for the model to go on with.
            return_dict: False returns `input_ids` alone.
            return_labels: adds `labels`, which are the ids in assistant turns (their end-of-turn token included) and
                -100 elsewhere.
            return_tensors, padding, padding_side, sampling_rate: as in a call.
            template_kwargs: variables for the template.

        Raises:
            ConversationError: a message or part is malformed, or the template lost or doubled a recording.
        """
        batched = bool(conversation) and isinstance(conversation[0], (list, tuple))
        conversations = conversation if batched else [conversation]
        flat = [flatten_conversation(messages) for messages in conversations]
        template = chat_template or self.chat_template

        def render(messages: list[dict[str, Any]], **options: Any) -> str:
            return self.tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, **template_kwargs, **options
            )

        segments = [
            render_segments(messages, render, add_generation_prompt, continue_final_message) for messages, _ in flat
        ]
        if not tokenize:
            texts = ["".join(segment.text for segment in row) for row in segments]
            return texts if batched else texts[0]
        recordings = self._conversation_recordings(flat, audio, batched)
        for row, (segments_of_row, recordings_of_row) in enumerate(zip(segments, recordings)):
            found = sum(segment.text.count(AUDIO_PLACEHOLDER) for segment in segments_of_row)
            if found != len(recordings_of_row):
                raise ConversationError(
                    f"Conversation {row} has {len(recordings_of_row)} recordings, but its rendered text has {found} "
                    f"{AUDIO_PLACEHOLDER}: a text part contains the placeholder, or the chat template dropped or "
                    "repeated a message."
                )
        batch = self._encode(segments, recordings, sampling_rate, add_special_tokens=False)
        if not return_labels:
            batch.pop("labels")
        encoded = self._pad(batch, padding, padding_side, return_tensors, None, keep_labels=return_labels)
        return encoded if return_dict else encoded["input_ids"]

    def _conversation_recordings(
        self, flat: list[tuple[Any, list[Any]]], audio: Any, batched: bool
    ) -> list[list[Any]]:
        typed = [recordings for _, recordings in flat]
        if audio is None:
            return typed
        if any(typed):
            raise ConversationError("Pass recordings either as typed parts of the messages or as audio=, not both.")
        counts = [sum(m["content"].count(AUDIO_PLACEHOLDER) for m in messages) for messages, _ in flat]
        return _distribute(audio, counts, not batched)

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
        **kwargs,
    ) -> dict[str, Any]:
        """Token ids and labels of every row as lists, and the features of all recordings in reading order."""
        waveforms = self._load_all([recording for row in recordings for recording in row], sampling_rate)
        slots = [self.num_audio_slots(len(waveform)) for waveform in waveforms]
        batch: dict[str, Any] = {"input_ids": [], "labels": []}
        used = 0
        for row, recordings_of_row in zip(rows, recordings):
            slots_of_row = slots[used : used + len(recordings_of_row)]
            used += len(recordings_of_row)
            input_ids, labels = self.encode_segments(row, slots_of_row, add_special_tokens)
            batch["input_ids"].append(input_ids)
            batch["labels"].append(labels)
        if waveforms:
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
        for segment in segments:
            pieces = segment.text.split(AUDIO_PLACEHOLDER)
            expanded = pieces[0]
            for piece in pieces[1:]:
                expanded += AUDIO_BEGIN_TOKEN + AUDIO_SLOT_TOKEN * next(counts) + AUDIO_END_TOKEN + piece
            ids = self.tokenizer(expanded, add_special_tokens=add_special_tokens)["input_ids"]
            input_ids.extend(ids)
            labels.extend(ids if segment.is_target else [IGNORED_LABEL] * len(ids))
        return input_ids, labels

    def _pad(
        self,
        batch: dict[str, Any],
        padding: bool | str,
        padding_side: str,
        return_tensors: str | None,
        max_length: int | None,
        keep_labels: bool = False,
    ) -> BatchFeature:
        """Pads ids, mask and labels alike; features are padded already."""
        labels = batch.pop("labels", None)
        text = self.tokenizer.pad(
            {"input_ids": batch.pop("input_ids")},
            padding=padding,
            padding_side=padding_side,
            max_length=max_length,
            return_attention_mask=True,
            return_tensors=return_tensors,
        )
        data = dict(text)
        if keep_labels and labels is not None:
            width = len(data["input_ids"][0]) if padding else None
            padded = [_pad_list(row, width or len(row), IGNORED_LABEL, padding_side) for row in labels]
            data["labels"] = torch.tensor(padded) if return_tensors == "pt" else padded
        return BatchFeature({**data, **batch})

    def batch_decode(self, *args, **kwargs) -> list[str]:
        """The tokenizer's; audio tokens are special and go with `skip_special_tokens=True`."""
        return self.tokenizer.batch_decode(*args, **kwargs)

    def decode(self, *args, **kwargs) -> str:
        """The tokenizer's."""
        return self.tokenizer.decode(*args, **kwargs)


def add_audio_tokens(tokenizer, text_vocab_size: int | None = None):
    """
    A copy of `tokenizer` that knows the three audio tokens, with ids at and after `text_vocab_size`.

    Embedding matrices are often padded past the tokenizer's last id. The ids between are then taken by placeholders
    that no text contains, so that the audio ids lie past the matrix in tokenizer and model alike. A tokenizer without
    a padding token pads with its end-of-text token, under a mask; one without a chat template gets a plain one.
    """
    if AUDIO_SLOT_TOKEN in tokenizer.get_vocab():
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    unused = range(len(tokenizer), text_vocab_size or 0)
    tokenizer.add_tokens([f"<|unused_{index}|>" for index in unused], special_tokens=True)
    tokenizer.add_tokens([AUDIO_BEGIN_TOKEN, AUDIO_SLOT_TOKEN, AUDIO_END_TOKEN], special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.chat_template is None:
        logger.warning(
            "The tokenizer has no chat template (a base model rather than a chat model); using a plain one."
        )
        tokenizer.chat_template = DEFAULT_CHAT_TEMPLATE
    return tokenizer


def _pad_list(row: list[int], width: int, value: int, side: str) -> list[int]:
    padding = [value] * (width - len(row))
    return padding + row if side == "left" else row + padding


def _is_recording(item: Any) -> bool:
    """Whether `item` is one recording rather than a list of them: a list of numbers is one."""
    if isinstance(item, (list, tuple)):
        return not item or isinstance(item[0], (int, float, np.integer, np.floating))
    return True


def _as_recordings(audio: Any) -> list[Any]:
    if audio is None:
        return []
    return [audio] if _is_recording(audio) and not (isinstance(audio, (list, tuple)) and not audio) else list(audio)


def _distribute(audio: Any, counts: list[int], single_text: bool) -> list[list[Any]]:
    """
    Hands recordings to texts: `counts[i]` of them to text `i`.

    Raises:
        ValueError: they do not match; both counts are stated.
    """
    items = _as_recordings(audio)
    if items and all(isinstance(item, (list, tuple)) and not (_is_recording(item) and item) for item in items):
        if len(items) != len(counts) and not (single_text and len(items) == 1):
            raise ValueError(f"audio has lists for {len(items)} texts, but there are {len(counts)}.")
        for index, (row, count) in enumerate(zip(items, counts)):
            if len(row) != count:
                raise ValueError(
                    f"Text {index} has {count} {AUDIO_PLACEHOLDER} but is given {len(row)} recordings; expected one each."
                )
        return [list(row) for row in items]
    if len(items) != sum(counts):
        raise ValueError(
            f"The texts have {sum(counts)} {AUDIO_PLACEHOLDER} in all ({counts} each) but {len(items)} recordings are "
            "given; expected one recording per placeholder."
        )
    rows, used = [], 0
    for count in counts:
        rows.append(items[used : used + count])
        used += count
    return rows


AudioLlmProcessor.register_for_auto_class("AutoProcessor")

__all__ = ["AudioLlmProcessor"]

"""Encoding of text and recordings as model inputs, each `<audio>` as the slots that the model fills."""

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoTokenizer,
    SeamlessM4TFeatureExtractor,
    WhisperFeatureExtractor,
)
from transformers.feature_extraction_utils import BatchFeature
from transformers.models.whisper.tokenization_whisper import LANGUAGES
from transformers.processing_utils import MultiModalData, ProcessorMixin
from transformers.utils.chat_template_utils import render_jinja_template

from .audio import load_waveform
from .base_models import load_base
from .conversations import (
    AUDIO_BEGIN_TOKEN,
    AUDIO_END_TOKEN,
    AUDIO_PLACEHOLDER,
    AUDIO_SLOT_TOKEN,
    GENERATION_TAG,
    IGNORED_LABEL,
    ConversationError,
    Segment,
    add_audio_tokens,
    as_recordings,
    check_template_names,
    distribute,
    flatten_batch,
    flatten_conversation,
    is_list,
    render_segments,
    split_at_spans,
    takes_parts,
)

#: Columns with an entry for each token id, and their value where there is padding.
BESIDE_IDS = {"labels": IGNORED_LABEL, "assistant_masks": 0, "mm_token_type_ids": 0}
#: Options of a call and their defaults.
OPTIONS: dict[str, Any] = {
    "add_special_tokens": True,
    "padding": True,
    "padding_side": "left",
    "max_length": None,
    "pad_to_multiple_of": None,
    "truncation": False,
    "return_tensors": "pt",
    "return_mm_token_type_ids": False,
    "sampling_rate": None,
}
#: Groups that options may be given in, and those of each.
OPTION_GROUPS = {
    "text_kwargs": OPTIONS.keys() - {"sampling_rate"},
    "audio_kwargs": {"sampling_rate", "return_tensors"},
    "common_kwargs": OPTIONS.keys(),
}
#: Options that a tokenizer may carry from its own files.
TOKENIZER_OPTIONS = ("padding", "max_length", "pad_to_multiple_of")
TENSOR_TYPES = ("pt", "np", None)
#: Variables that transformers gives every chat template; None is none.
NO_VARIABLES = ("tools", "documents")
#: The default of `apply_transcription_request`.
TRANSCRIPTION_PROMPT = "Transcribe the speech."


class AudioLlmProcessor(ProcessorMixin):
    r"""
    A speech encoder's feature extractor and a language model's tokenizer as one processor.

    Args:
        feature_extractor: Whisper's [`WhisperFeatureExtractor`], or Wav2Vec2-BERT's [`SeamlessM4TFeatureExtractor`].
        tokenizer: the language model's. The three audio tokens are added to a copy of it where it lacks them, with ids
            past the vocabulary.
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
        """Load as transformers does; code beside the files runs only with `trust_remote_code=True`."""
        kwargs["trust_remote_code"] = bool(kwargs.get("trust_remote_code"))
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Return transformers' own, without the code entry that saving leaves in the feature extractor."""
        found = super().to_dict()
        found["feature_extractor"].pop("auto_map", None)
        return found

    def save_pretrained(self, *args, **kwargs) -> list[str]:
        """Save as transformers does; the code entries that it adds stay in the files alone."""
        saved = super().save_pretrained(*args, **kwargs)
        for part in (self, self.feature_extractor):
            vars(part).pop("auto_map", None)
        return saved

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
        Compose the processor of two bases, as the model's method of the same name does.

        Args:
            audio_model_id, text_model_id: Hub ids, folders, or `pypi:<name>` for the embedded bases.
            audio_model_revision, text_model_revision: git revisions on the Hub.
            stack_factor: must be the model's.
            hub_arguments: `token`, `cache_dir`, `local_files_only`, …
        """
        audio, text = (audio_model_id, "audio", audio_model_revision), (text_model_id, "text", text_model_revision)
        hub_arguments["trust_remote_code"] = False
        feature_extractor = load_base(AutoFeatureExtractor, *audio, **hub_arguments)
        tokenizer, text_config = (load_base(each, *text, **hub_arguments) for each in (AutoTokenizer, AutoConfig))
        return cls(feature_extractor, tokenizer, stack_factor, text_config.get_text_config().vocab_size)

    @property
    def audio_token(self) -> str:
        """The text that stands for one recording; `audio_token_id` is one of the tokens that it becomes."""
        return AUDIO_PLACEHOLDER

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
        """Return the samples in each window of a recording of `num_samples`: full windows (30 s), then the rest."""
        full, rest = divmod(num_samples, self.window_samples)
        return [self.window_samples] * full + ([rest] if rest else [])

    def encoder_frames(self, num_samples: int) -> list[int]:
        """Return the 20 ms frames that the encoder makes of each window of a recording of `num_samples` samples."""
        windows = windows_for(self.feature_extractor)
        return [windows.encoder_frames(length) for length in self.window_lengths(num_samples)]

    def num_audio_slots(self, num_samples: int) -> int:
        """Return the number of audio tokens of a recording of `num_samples` samples at `sampling_rate`."""
        return sum(math.ceil(frames / self.stack_factor) for frames in self.encoder_frames(num_samples))

    def _get_num_multimodal_tokens(self, audio_lengths: Sequence[int] | None = None, **others) -> MultiModalData:
        """Return the audio tokens of recordings of so many samples each; the name is vLLM's and transformers'."""
        if audio_lengths is None:
            return MultiModalData()
        return MultiModalData(num_audio_tokens=[self.num_audio_slots(length) for length in audio_lengths])

    def extract_features(self, waveform: np.ndarray) -> list[np.ndarray]:
        """Return the features of a waveform's windows, each as long as its audio: `(features, frames)`."""
        windows = windows_for(self.feature_extractor)
        starts = range(0, len(waveform), windows.max_samples)
        return [windows.features(waveform[start : start + windows.max_samples]) for start in starts]

    def batch_features(self, waveforms: list[np.ndarray]) -> dict[str, torch.Tensor]:
        """
        Return the windows of several waveforms in reading order, padded to the longest.

        They are `input_features` `(windows, features, max_frames)` and `input_features_mask` `(windows, max_frames)`.
        """
        windows = [torch.from_numpy(each.T) for waveform in waveforms for each in self.extract_features(waveform)]
        features = pad_sequence(windows, batch_first=True).transpose(1, 2).contiguous()
        lengths = torch.tensor([len(window) for window in windows])
        mask = (torch.arange(features.shape[2]) < lengths[:, None]).long()
        return {"input_features": features, "input_features_mask": mask}

    def load_audio(self, audio: Any, sampling_rate: int | None = None, name: str | None = None) -> np.ndarray:
        """Return a recording of any kind as a float32 waveform `(samples,)` at `self.sampling_rate`."""
        return load_waveform(audio, sampling_rate, self.sampling_rate, name)

    # ---- text and audio ------------------------------------------------------------------------------------------

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        audio: Any = None,
        **options,
    ) -> BatchFeature:
        r"""
        Encode text, recordings, or both. Options may also be given in `text_kwargs`, `audio_kwargs` and `common_kwargs`.

        Args:
            text: a string or a batch of them; each `<audio>` in them stands for one recording.
            audio: one recording, a list of all recordings in reading order, or a list per text. A recording is a
                waveform, a path, a URL, encoded bytes or a `datasets` audio dict.
            sampling_rate: rate in Hz of bare waveforms; 16 kHz where it is not given.
            padding, padding_side, max_length, pad_to_multiple_of: of the text, as the tokenizer's; by default to the
                longest row and on the left.
            truncation: refused where it would cut anything.
            add_special_tokens: lets the tokenizer add its own, such as a beginning-of-text token.
            return_tensors: `"pt"` (the default), `"np"`, or None for lists of token ids.
            return_mm_token_type_ids: adds `mm_token_type_ids`, 3 for each audio token and 0 elsewhere.
            images, videos: None, as transformers' pipelines pass them.

        Returns:
            `input_ids`, `attention_mask` `(batch, length)`, and with audio `input_features`
            `(windows, mel_bins, frames)` and `input_features_mask` `(windows, frames)`.

        Raises:
            TypeError: an option is unknown.
            ValueError: the number of `<audio>` and of recordings differ; both are stated.
            AudioError: a recording cannot be used.
        """
        if options.pop("images", None) is not None or options.pop("videos", None) is not None:
            raise ValueError("AudioLLM listens and reads, it does not see: pass text and audio, not images or videos.")
        settings = self._settings(options)
        if text is None and audio is None:
            raise ValueError("Pass text, audio or both.")
        if text is None:
            waveforms = self._load_all(as_recordings(audio), settings["sampling_rate"])
            return BatchFeature(self.batch_features(waveforms), settings["return_tensors"])
        texts = [text] if isinstance(text, str) else list(text)
        if not texts or not all(isinstance(one, str) for one in texts):
            raise ValueError("text must be a string or a non-empty list of strings.")
        recordings = distribute(audio, [one.count(AUDIO_PLACEHOLDER) for one in texts], isinstance(text, str))
        rows = [[Segment(one, False)] for one in texts]
        batch = self._encode(rows, recordings, settings)
        del batch["labels"]
        return self._pad(batch, settings)

    def _settings(self, options: dict[str, Any], **defaults: Any) -> dict[str, Any]:
        """Return every option of a call, from those given flat and in groups."""
        given = {name: value for name, value in options.items() if name not in OPTION_GROUPS}
        unknown = [name for name in given if name not in OPTIONS]
        for group, names in OPTION_GROUPS.items():
            for name, value in (options.get(group) or {}).items():
                if name not in names:
                    unknown.append(f"{name} in {group}")
                elif given.setdefault(name, value) != value:
                    raise ValueError(f"{name} is {given[name]!r}, but {value!r} in {group}. Pass it once.")
        if unknown:
            raise TypeError(f"{type(self).__name__} does not know {', '.join(unknown)}; it takes {sorted(OPTIONS)}.")
        kept = {name: value for name, value in self.tokenizer.init_kwargs.items() if name in TOKENIZER_OPTIONS}
        settings = {**OPTIONS, **defaults, **kept, **given}
        if settings["return_tensors"] not in TENSOR_TYPES:
            raise ValueError(
                f"return_tensors is {settings['return_tensors']!r}; expected 'pt', 'np', or None for lists."
            )
        return settings

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
        output_labels: bool = False,
        return_features: bool = True,
        return_assistant_tokens_mask: bool = False,
        processor_kwargs: dict[str, Any] | None = None,
        **kwargs,
    ) -> Any:
        r"""
        Render conversations through the language model's own chat template, and encode them.

        A message's content is a string, in which `<audio>` stands for the next recording of `audio`, or a list of
        typed parts: `{"type": "text", "text": ...}` and `{"type": "audio", "path" | "audio" | "url" | "audio_url": ...}`. A part
        `{"type": "audio"}` stands for the next recording of `audio` too.

        Args:
            conversation: a list of messages, or a batch of such lists.
            chat_template: a Jinja template other than the tokenizer's, or the name of one where it has several.
            audio: recordings for `<audio>` and for audio parts without one, in reading order, or a list per
                conversation.
            tokenize: False returns the rendered text, with one `<audio>` per recording.
            add_generation_prompt: ends with the opening of an assistant turn.
            continue_final_message: leaves the last turn open, for the model to go on with.
            return_dict: False returns `input_ids` alone.
            return_labels, output_labels: either adds `labels`, which are the ids in assistant turns (their end-of-turn
                token included) and -100 elsewhere.
            return_assistant_tokens_mask: adds `assistant_masks`, 1 where `labels` would learn.
            return_features: False leaves out `input_features` and their mask.
            processor_kwargs: options of a call, and `output_labels`, as transformers' pipelines pass them.
            kwargs: options of a call, and variables of the template.

        Raises:
            ConversationError: a message or part is malformed, or the template lost or doubled a recording.
            TypeError: a name is neither an option nor a variable of the template.
            ValueError: options exclude each other.
        """
        given = {**kwargs, **(processor_kwargs or {})}
        for name in NO_VARIABLES:
            if given.get(name, ...) is None:
                del given[name]
        labelled = return_labels or output_labels or bool(given.pop("output_labels", False))
        template = self._template(chat_template)
        variables = {
            name: given.pop(name)
            for name in kwargs.keys() & given
            if re.search(rf"\b{re.escape(name)}\b", str(template))
        }
        settings = self._settings(given, add_special_tokens=False)
        if return_assistant_tokens_mask and not (tokenize and return_dict):
            raise ValueError("return_assistant_tokens_mask needs tokenize=True and return_dict=True.")
        batched = isinstance(conversation, (list, tuple)) and bool(conversation) and is_list(conversation[0])
        beside = audio is not None or not tokenize
        flat = flatten_batch(conversation, beside) if batched else [flatten_conversation(conversation, beside)]
        rows = [
            self.conversation_segments(messages, template, add_generation_prompt, continue_final_message, **variables)
            for messages, _ in flat
        ]
        if not tokenize:
            texts = ["".join(segment.text for segment in row) for row in rows]
            return texts if batched else texts[0]
        recordings = [typed for _, typed in flat]
        if audio is not None:
            if any(recordings):
                raise ConversationError(
                    "Pass recordings either as typed parts of the messages or as audio=, not both."
                )
            counts = [sum(m["content"].count(AUDIO_PLACEHOLDER) for m in messages) for messages, _ in flat]
            recordings = distribute(audio, counts, not batched)
        for index, (row, recordings_of_row) in enumerate(zip(rows, recordings)):
            found = sum(segment.text.count(AUDIO_PLACEHOLDER) for segment in row)
            if found != len(recordings_of_row):
                name = f"Conversation {index}" if batched else "The conversation"
                raise ConversationError(
                    f"{name} has {len(recordings_of_row)} recordings, but its rendered text has {found} "
                    f"{AUDIO_PLACEHOLDER}: a text part contains the placeholder, or the chat template dropped or "
                    "repeated a message."
                )
        batch = self._encode(rows, recordings, settings, return_features)
        if return_assistant_tokens_mask:
            batch["assistant_masks"] = [[int(label != IGNORED_LABEL) for label in row] for row in batch["labels"]]
        if not labelled:
            del batch["labels"]
        encoded = self._pad(batch, settings)
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
        Return one conversation's text, through the chat template, in segments that are to be learned or not.

        Args:
            messages: with string contents, as `flatten_conversation` gives them.
            chat_template, add_generation_prompt, continue_final_message, template_kwargs: as in `apply_chat_template`.
        """
        template = self._template(chat_template)
        in_parts = takes_parts(template)

        def for_template(part: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in part] if in_parts else part

        if GENERATION_TAG.search(template or ""):
            rendered: Any = render_jinja_template(
                [for_template(messages)],
                chat_template=template,
                return_assistant_tokens_mask=True,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                **{**self.tokenizer.special_tokens_map, **template_kwargs},
            )
            (text,), (spans,) = rendered
            return split_at_spans(text, spans)

        def render(part: list[dict[str, Any]], **ending: bool) -> str:
            return self.tokenizer.apply_chat_template(
                for_template(part), chat_template=template, tokenize=False, **ending, **template_kwargs
            )

        special_tokens = {*self.tokenizer.get_added_vocab(), *self.tokenizer.all_special_tokens}
        return render_segments(messages, render, add_generation_prompt, continue_final_message, special_tokens)

    def _template(self, name: str | None) -> str | None:
        """Return the template of this name, the default one, or `name` itself where it is a template."""
        named = self.chat_template if isinstance(self.chat_template, dict) else {"default": self.chat_template}
        return named.get(name or "default", name)

    def apply_transcription_request(
        self,
        audio: Any,
        language: str | Sequence[str | None] | None = None,
        prompt: str | Sequence[str | None] | None = None,
        tokenize: bool = True,
        **kwargs,
    ) -> BatchFeature | list[str]:
        """
        Encode a request for the transcript of each recording, ready for `generate`.

        Args:
            audio: a recording or a list of them, as in a call.
            language: a name or a code such as `"en"`, for all recordings or for each. It is said in the prompt.
            prompt: what to ask, for all recordings or for each; "Transcribe the speech." where there is none.
            tokenize: False returns the prompts as text.
            kwargs: as in [`~AudioLlmProcessor.apply_chat_template`].
        """
        recordings = as_recordings(audio)
        if not recordings:
            raise ValueError("audio is empty; expected at least one recording.")
        prompts, languages = (
            _one_each(name, value, len(recordings)) for name, value in (("prompt", prompt), ("language", language))
        )
        requests = []
        for asked, spoken in zip(prompts, languages):
            text = TRANSCRIPTION_PROMPT if asked is None else asked
            if spoken is not None:
                text += f" The language is {LANGUAGES.get(spoken.lower(), spoken).title()}."
            requests.append([{"role": "user", "content": f"{AUDIO_PLACEHOLDER}\n{text}"}])
        return self.apply_chat_template(
            requests, audio=[[one] for one in recordings], tokenize=tokenize, add_generation_prompt=True, **kwargs
        )

    def _load_all(self, recordings: list[Any], sampling_rate: int | None) -> list[np.ndarray]:
        return [self.load_audio(each, sampling_rate, name=f"audio {n}") for n, each in enumerate(recordings)]

    def _encode(
        self,
        rows: list[list[Segment]],
        recordings: list[list[Any]],
        settings: dict[str, Any],
        with_features: bool = True,
    ) -> dict[str, Any]:
        """Return token ids and labels of every row as lists, and the features of all recordings in reading order."""
        waveforms = self._load_all([recording for row in recordings for recording in row], settings["sampling_rate"])
        slots = iter([self.num_audio_slots(len(waveform)) for waveform in waveforms])
        batch: dict[str, Any] = {"input_ids": [], "labels": []}
        for row, recordings_of_row in zip(rows, recordings):
            num_slots = [next(slots) for _ in recordings_of_row]
            input_ids, labels = self.encode_segments(row, num_slots, settings["add_special_tokens"])
            batch["input_ids"].append(input_ids)
            batch["labels"].append(labels)
        if settings["return_mm_token_type_ids"]:
            batch["mm_token_type_ids"] = self.create_mm_token_type_ids(batch["input_ids"])
        if waveforms and with_features:
            batch.update(self.batch_features(waveforms))
        return batch

    def encode_segments(
        self, segments: list[Segment], num_slots: list[int], add_special_tokens: bool = False
    ) -> tuple[list[int], list[int]]:
        """
        Return token ids and labels of one row, whose `<audio>` become so many slots each.

        Each segment is tokenized by itself: a prompt's ids are the same whether or not an answer follows.
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

    def _pad(self, batch: dict[str, Any], settings: dict[str, Any]) -> BatchFeature:
        """Pad ids and what goes with them alike."""
        longest = max(map(len, batch["input_ids"]))
        limit = settings["max_length"] or self.tokenizer.model_max_length
        if settings["truncation"] and settings["truncation"] != "do_not_truncate" and longest > limit:
            raise ValueError(
                f"The text has {longest} tokens, and truncation to {limit} could cut a recording in two. Shorten it instead."
            )
        beside = {name: batch.pop(name) for name in BESIDE_IDS if name in batch}
        names = ("padding", "padding_side", "max_length", "pad_to_multiple_of")
        columns = dict(
            self.tokenizer.pad(
                {"input_ids": batch.pop("input_ids")},
                return_attention_mask=True,
                **{name: settings[name] for name in names},
            )
        )
        for name, rows in beside.items():
            values = [iter(row) for row in rows]
            columns[name] = [
                [next(row) if real else BESIDE_IDS[name] for real in mask]
                for row, mask in zip(values, columns["attention_mask"])
            ]
        for name, rows in columns.items() if settings["return_tensors"] is not None else ():
            if len(set(map(len, rows))) > 1:
                raise ValueError(
                    f"The rows of {name} are of different lengths; pass padding=True, or return_tensors=None."
                )
            columns[name] = torch.tensor(rows, dtype=torch.long)
        return BatchFeature({**columns, **batch}, settings["return_tensors"])


def _one_each(name: str, value: Any, count: int) -> list[str | None]:
    """Return `value` for each of `count` recordings; a list has one for each already."""
    values = [value] * count if value is None or isinstance(value, str) else list(value)
    if len(values) != count or not all(each is None or isinstance(each, str) for each in values):
        raise ValueError(f"{name} is {value!r} for {count} recordings; expected a string, or one for each of them.")
    return values


# ---- windows for the encoder -------------------------------------------------------------------------------------------


class WhisperWindows:
    """Windows for Whisper's encoder: log-mel frames of 10 ms, of which its second convolution makes frames of 20 ms."""

    INPUT_FRAMES_PER_ENCODER_FRAME = 2

    def __init__(self, extractor: WhisperFeatureExtractor):
        self.extractor = extractor
        #: Samples in a full window.
        self.max_samples: int = extractor.n_samples

    def input_frames(self, num_samples: int) -> int:
        """Return the number of log-mel frames (10 ms) of so many samples."""
        return math.ceil(num_samples / self.extractor.hop_length)

    def encoder_frames(self, num_samples: int) -> int:
        """Return the number of 20 ms frames that the encoder makes of a window of so many samples."""
        return math.ceil(self.input_frames(num_samples) / self.INPUT_FRAMES_PER_ENCODER_FRAME)

    def features(self, window: np.ndarray) -> np.ndarray:
        """
        Return a window's log-mel frames, as long as its audio: `(num_mel_bins, ceil(samples / hop))`.

        They are those of Whisper's own extractor for the audio padded to 30 s, up to rounding in windows below 0.1 s: only
        the silence that the last frame can see is added.
        """
        extractor = self.extractor
        num_frames = self.input_frames(len(window))
        padded_length = min(num_frames * extractor.hop_length + extractor.n_fft, extractor.n_samples)
        features = extractor(
            np.pad(window, (0, padded_length - len(window))),
            sampling_rate=extractor.sampling_rate,
            padding="do_not_pad",
            truncation=False,
            return_tensors="np",
        )["input_features"][0]
        return features[:, :num_frames]


class ConformerWindows:
    """
    Windows for Wav2Vec2-BERT's conformer: Kaldi's log-mel frames of 10 ms, stacked by twos, each an encoder frame.

    The end of a window that fills no pair of frames (less than 35 ms) is left out, as by its own models.
    """

    FRAME_SAMPLES, HOP_SAMPLES = 400, 160
    #: As Whisper's, so that memory does not grow with length.
    WINDOW_SECONDS = 30

    def __init__(self, extractor: SeamlessM4TFeatureExtractor):
        self.extractor = extractor
        self.max_samples: int = self.WINDOW_SECONDS * extractor.sampling_rate
        #: Samples of one encoder frame; shorter windows are filled up with silence.
        self.min_samples = self.FRAME_SAMPLES + (extractor.stride - 1) * self.HOP_SAMPLES

    def input_frames(self, num_samples: int) -> int:
        """Return the number of stacked log-mel frames (20 ms) of so many samples, which are the encoder's as well."""
        whole = 1 + (max(num_samples, self.min_samples) - self.FRAME_SAMPLES) // self.HOP_SAMPLES
        return whole // self.extractor.stride

    encoder_frames = input_frames

    def features(self, window: np.ndarray) -> np.ndarray:
        """Return a window's stacked log-mel frames: `(stride * num_mel_bins, encoder frames)`."""
        features = self.extractor(
            np.pad(window, (0, max(self.min_samples - len(window), 0))),
            sampling_rate=self.extractor.sampling_rate,
            pad_to_multiple_of=None,
            return_tensors="np",
        )["input_features"][0]
        return np.ascontiguousarray(features.T)


WINDOWS_BY_EXTRACTOR = {
    "WhisperFeatureExtractor": WhisperWindows,
    "SeamlessM4TFeatureExtractor": ConformerWindows,
}


def windows_for(extractor) -> WhisperWindows | ConformerWindows:
    """Return the windows of the encoder that a feature extractor belongs to."""
    for base in type(extractor).__mro__:
        if base.__name__ in WINDOWS_BY_EXTRACTOR:
            return WINDOWS_BY_EXTRACTOR[base.__name__](extractor)
    raise ValueError(
        f"The feature extractor is a {type(extractor).__name__}; expected one of {sorted(WINDOWS_BY_EXTRACTOR)}."
    )


AudioLlmProcessor.register_for_auto_class("AutoProcessor")

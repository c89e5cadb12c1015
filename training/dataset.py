"""Examples → token ids and labels, with the audio left on disk until its batch comes up."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import torch
from tqdm.auto import tqdm

from audiollm.corpora.examples import Example
from audiollm.processing import AudioLlmProcessor
from audiollm.processing.conversations import IGNORED_LABEL, flatten_conversation, render_segments

from .feature_cache import FeatureCache


def example_messages(example: Example) -> list[dict[str, str]]:
    """The conversation that an instruction example stands for: one question, one answer."""
    return [{"role": "user", "content": example.text}, {"role": "assistant", "content": example.response}]


def encode_messages(
    processor: AudioLlmProcessor, messages: list[dict[str, Any]], num_slots: list[int]
) -> tuple[list[int], list[int]]:
    """
    Token ids and labels of a conversation whose recordings take `num_slots` audio tokens each.

    Raises:
        ConversationError: a message is malformed, or the template does not show an answer.
    """
    flat, _ = flatten_conversation(messages)

    def render(part: list[dict[str, Any]], **options: Any) -> str:
        return processor.tokenizer.apply_chat_template(
            part, chat_template=processor.chat_template, tokenize=False, **options
        )

    return processor.encode_segments(render_segments(flat, render), num_slots)


def build_dataset(
    examples: Sequence[Example],
    processor: AudioLlmProcessor,
    cache: FeatureCache | None,
    progress: bool = True,
) -> datasets.Dataset:
    """
    Token ids, labels and lengths of all examples, and where to find their audio.

    Args:
        examples: checked ones, as `read_examples` gives them.
        processor: expands the placeholders and marks the labels.
        cache: holds, or is given, the encoder's output; None to encode in every batch anew.
        progress: shows bars.

    Returns:
        A dataset with `input_ids`, `labels`, `length` (tokens), and `audio`: cache keys, or paths without a cache.

    Raises:
        AudioError: a recording cannot be used.
    """
    paths = list(dict.fromkeys(path for example in examples for path in example.audio_paths))
    audio: dict[str, tuple[str, int]] = {}
    if cache is not None:
        for path, key in zip(paths, cache.add(paths, progress)):
            _, lengths = cache.load(key)
            stack = processor.stack_factor
            audio[path] = key, int(((lengths + stack - 1) // stack).sum())
    else:
        for path in tqdm(paths, desc="Measuring audio", unit="clip", disable=not progress or not paths):
            audio[path] = path, processor.num_audio_slots(len(processor.load_audio(path)))
    rows: dict[str, list[Any]] = {"input_ids": [], "labels": [], "length": [], "audio": []}
    for example in examples:
        slots = [audio[path][1] for path in example.audio_paths]
        input_ids, labels = encode_messages(processor, example_messages(example), slots)
        rows["input_ids"].append(input_ids)
        rows["labels"].append(labels)
        rows["length"].append(len(input_ids))
        rows["audio"].append([audio[path][0] for path in example.audio_paths])
    features = datasets.Features(
        input_ids=datasets.List(datasets.Value("int32")),
        labels=datasets.List(datasets.Value("int32")),
        length=datasets.Value("int32"),
        audio=datasets.List(datasets.Value("string")),
    )
    return datasets.Dataset.from_dict(rows, features=features)


@dataclass
class AudioLlmCollator:
    """
    Pads rows of [`build_dataset`] on the right and brings in their audio.

    Attributes:
        processor: gives the padding token, and features where there is no cache.
        cache: the one the dataset was built with, or None.
        pad_to_multiple_of: rounds the length up, for hardware that likes it.
    """

    processor: AudioLlmProcessor
    cache: FeatureCache | None = None
    pad_to_multiple_of: int = 1

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Returns:
            `input_ids`, `attention_mask`, `labels` `(batch, length)`; and for rows with audio `encoded_audio`
            `(windows, max_frames, d_model)` with `encoded_audio_lengths` `(windows,)`, or `input_features` and
            `input_features_mask`.
        """
        longest = max(len(row["input_ids"]) for row in rows)
        length = -(-longest // self.pad_to_multiple_of) * self.pad_to_multiple_of
        pad_id = self.processor.tokenizer.pad_token_id
        input_ids = torch.full((len(rows), length), pad_id)
        labels = torch.full((len(rows), length), IGNORED_LABEL)
        attention_mask = torch.zeros(len(rows), length, dtype=torch.long)
        for index, row in enumerate(rows):
            end = len(row["input_ids"])
            input_ids[index, :end] = torch.tensor(row["input_ids"])
            labels[index, :end] = torch.tensor(row["labels"])
            attention_mask[index, :end] = 1
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
        recordings = [recording for row in rows for recording in row["audio"]]
        if not recordings:
            return batch
        if self.cache is None:
            waveforms = [self.processor.load_audio(recording) for recording in recordings]
            return {**batch, **self.processor.batch_features(waveforms)}
        return {**batch, **load_encoded_audio(self.cache, recordings)}


def load_encoded_audio(cache: FeatureCache, keys: Sequence[str]) -> dict[str, torch.Tensor]:
    """
    Encoder frames of several recordings from the cache, as the model takes them.

    Returns:
        `encoded_audio` `(windows, max_frames, d_model)`, zeros past a window's end, and `encoded_audio_lengths`
        `(windows,)`.
    """
    windows, lengths = [], []
    for key in keys:
        frames, frames_per_window = cache.load(key)
        windows.extend(frames.split(frames_per_window.tolist()))
        lengths.append(frames_per_window)
    encoded = torch.nn.utils.rnn.pad_sequence(windows, batch_first=True)
    return {"encoded_audio": encoded, "encoded_audio_lengths": torch.cat(lengths)}

"""
`pipeline("audio-text-to-text")`: recordings, questions about them and conversations in, text out.

Rows may own any number of recordings, which transformers' own pipelines cannot batch.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from audiollm.processing.conversations import as_recordings
from torch.utils.data import Dataset, IterableDataset
from transformers import AutoModelForMultimodalLM, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from .answering import TRANSCRIBE_PROMPT, ask, continues, generate_answers, naming
from .recording_encoder import RecordingEncoder

#: The Hub's name of the task.
TASK = "audio-text-to-text"
DEFAULT_MAX_NEW_TOKENS = 256
AUDIO_DICT_KEYS = ("array", "bytes", "path")
QUESTION_KEYS = {"audio", "text"}
EXPECTED = (
    "expected a recording (path, URL, bytes, waveform or a datasets audio dict), a dict with 'audio', 'text' or both, or "
    "a conversation (a list of messages with 'role' and 'content')"
)


@dataclass
class Question:
    """One row of input: its conversation, the text of its question if it was one, its name in errors, and its answers."""

    messages: list[dict[str, Any]]
    prompt: str | None
    name: str = ""
    texts: list[str] = field(default_factory=list)


class AudioLlmPipeline(Pipeline):
    r"""
    Answers about recordings.

    A call takes one row, a list of rows, or a generator or dataset of them (which is read as it is answered). A row is

    - a recording: a path, a URL, encoded bytes, a waveform, or a `datasets` audio dict. It is transcribed.
    - a dict with `text` and `audio` (one recording or several; each `<audio>` in the text is one, or they come first).
    - a conversation: a list of messages. One that ends with the assistant's words is continued.

    Args of a call, or of `pipeline(...)` for all calls:
        prompt (`str`): what recordings without a question are asked; a transcription by default.
        batch_size (`int`, defaults to 1): rows per `generate` call. Of a list, those of like length go together, and
            results come back in the given order.
        return_full_text (`bool`, defaults to `False`): put the prompt, or the conversation, before the answer.
        generate_kwargs (`dict`): options of `generate`, which may be given directly as well: `max_new_tokens` (256 by
            default), `do_sample`, `num_beams`, `streamer`, … Answers are greedy by default.

    Returns:
        For each row a list of `{"generated_text": ...}`, one for each of `num_return_sequences`. With
        `return_full_text` that of a conversation is a list of messages.

    Raises:
        ValueError, FileNotFoundError: a row cannot be used; the message says which and why.

    Example:

    ```python
    listen = pipeline("audio-text-to-text", model="runs/demo/adapter", trust_remote_code=True)
    listen("recording.wav")
    listen({"audio": "recording.wav", "text": "Who is speaking?"}, max_new_tokens=32)
    ```
    """

    processor: Any
    _load_processor: Any = True
    _load_tokenizer: Any = False
    _load_feature_extractor: Any = False
    _load_image_processor: Any = False
    _load_video_processor: Any = False

    def __call__(  # type: ignore[override]  # the others are in options
        self, inputs: Any = None, *, audio: Any = None, text: str | None = None, **options: Any
    ) -> Any:
        """See the class; `audio=` and `text=` are one row of these."""
        if audio is not None or text is not None:
            if inputs is not None:
                raise ValueError("Pass rows, or one row as audio= and text=, not both.")
            inputs = {name: value for name, value in (("audio", audio), ("text", text)) if value is not None}
        if inputs is None:
            raise ValueError(f"Nothing was given; {EXPECTED}, or a list, generator or dataset of these.")
        if isinstance(inputs, tuple):
            inputs = list(inputs)
        if isinstance(inputs, (list, Dataset)) and not isinstance(inputs, IterableDataset) and not len(inputs):  # type: ignore[arg-type]  # one with __getitem__
            return []
        if isinstance(inputs, Iterator):
            inputs = (row for row in inputs)  # a generator is the only iterator that transformers reads
        return super().__call__(inputs, **options)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save the model with its code, and the processor."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)

    def _sanitize_parameters(
        self,
        prompt: str | None = None,
        return_full_text: bool | None = None,
        generate_kwargs: dict[str, Any] | None = None,
        local_files_only: bool | None = None,  # of `pipeline`, which passes it on
        **generation_options: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        twice = sorted(set(generate_kwargs or {}) & set(generation_options))
        if twice:
            raise ValueError(f"{twice} are given both directly and in generate_kwargs; give each once.")
        return (
            {} if prompt is None else {"prompt": prompt},
            {**(generate_kwargs or {}), **generation_options},
            {} if return_full_text is None else {"return_full_text": return_full_text},
        )

    def preprocess(  # type: ignore[override]  # a Question instead of tensors
        self, input_: Any, prompt: str = TRANSCRIBE_PROMPT, name: str = ""
    ) -> Question:
        """Return the conversation that a row of input stands for; `name` is what errors call it."""
        with naming(name):
            question = _understand(input_, prompt)
        question.name = name
        return question

    def _forward(  # type: ignore[override]  # questions instead of tensors
        self,
        input_tensors: Question | list[Question],
        batch_size: int = 1,
        encoder: RecordingEncoder | None = None,
        **generate_options: Any,
    ) -> Any:
        """Answer one question or several, and return them with their texts."""
        questions = [input_tensors] if isinstance(input_tensors, Question) else input_tensors
        if "stop_strings" in generate_options:  # which `generate` finds with the tokenizer
            generate_options.setdefault("tokenizer", self.processor.tokenizer)
        bound = generate_options.pop("max_new_tokens", None)
        is_set = {"max_length", "generation_config"} & set(generate_options)
        if bound is None and not is_set and not self.model.generation_config.max_new_tokens:
            bound = DEFAULT_MAX_NEW_TOKENS
        answers = generate_answers(
            self.model,
            self.processor,
            [question.messages for question in questions],
            batch_size,
            bound,
            encoder=encoder,
            names=[question.name for question in questions],
            **generate_options,
        )
        for question, texts in zip(questions, answers):
            question.texts = texts
        return input_tensors

    def postprocess(  # type: ignore[override]  # questions instead of tensors
        self, model_outputs: Question, return_full_text: bool = False
    ) -> list[dict[str, Any]]:
        """Return a row's answers as the caller gets them."""
        return [
            {"generated_text": _full_text(model_outputs, text) if return_full_text else text}
            for text in model_outputs.texts
        ]

    def get_iterator(
        self, inputs, num_workers: int, batch_size: int, preprocess_params, forward_params, postprocess_params
    ) -> Iterator[list[dict[str, Any]]]:
        """
        Yield the answers to many rows, in their order.

        All of a list is looked at before anything is computed, and its rows of like length share a batch. Anything else is
        read one batch ahead at most.
        """
        encoder = RecordingEncoder(self.model, self.processor)
        forward_params = {**forward_params, "batch_size": batch_size, "encoder": encoder}
        has_places = hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__")
        rows = enumerate(inputs[index] for index in range(len(inputs))) if has_places else enumerate(inputs)
        questions = (self.preprocess(row, name=f"Row {index}", **preprocess_params) for index, row in rows)
        while batch := list(questions if isinstance(inputs, list) else islice(questions, batch_size)):
            for question in self.forward(batch, **forward_params):
                yield self.postprocess(question, **postprocess_params)


def _understand(row: Any, prompt: str) -> Question:
    """
    Return the conversation that a row of any kind stands for.

    Raises:
        ValueError: it is of none of the kinds; the message says what is expected.
    """
    messages = getattr(row, "messages", row)  # transformers wraps the conversations that it recognises
    if isinstance(messages, (list, tuple)) and messages and isinstance(messages[0], dict):
        return Question(list(messages), None)
    if isinstance(row, dict) and (QUESTION_KEYS & set(row) or not set(AUDIO_DICT_KEYS) & set(row)):
        if not row or set(row) - QUESTION_KEYS:
            raise ValueError(f"The row is a dict with {sorted(row, key=str)}; {EXPECTED}.")
        audio = row.get("audio")
        text = prompt if row.get("text") is None and audio is not None else row.get("text")
        if not isinstance(text, str):
            raise ValueError(f"The row's text is {text!r} and its audio {type(audio).__name__}; {EXPECTED}.")
        return Question(ask(text, *as_recordings(audio)), text)
    is_audio = isinstance(row, (str, os.PathLike, bytes, bytearray, np.ndarray, torch.Tensor, dict))
    if is_audio or hasattr(row, "get_all_samples"):  # the last: what newer datasets decode to
        return Question(ask(prompt, row), prompt)
    hint = ""
    if hasattr(row, "column_names") or hasattr(row, "features"):
        hint = " Of a dataset, pass one column: KeyDataset(dataset, 'audio'), or a generator of rows."
    raise ValueError(f"The row is of type {type(row).__name__}; {EXPECTED}.{hint}")


def _full_text(question: Question, answer: str) -> Any:
    """Return the question with its answer: text after text, or a message after the others."""
    if question.prompt is not None:
        return question.prompt + answer
    if not continues(question.messages):
        return [*question.messages, {"role": "assistant", "content": answer}]
    *others, last = question.messages
    content = last["content"]
    content = content + answer if isinstance(content, str) else [*content, {"type": "text", "text": answer}]
    return [*others, {**last, "content": content}]


PIPELINE_REGISTRY.register_pipeline(TASK, pipeline_class=AudioLlmPipeline, pt_model=AutoModelForMultimodalLM)

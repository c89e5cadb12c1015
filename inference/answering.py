"""Answers in batches: conversations in, text out. What evaluation, the pipeline and inference share."""

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from audiollm.processing.conversations import flatten_conversation
from tqdm.auto import tqdm

from .answer_ends import generate_to_ends
from .ctc_rescoring import CtcRescorer, check_ctc_options, check_ctc_weight
from .recording_encoder import RecordingEncoder
from .recordings import header_seconds

TRANSCRIBE_PROMPT = "<audio>\nTranscribe the speech."
#: Audio that one batch may hold, rows padded to the longest: eight rows of up to 75 s, or one of any length.
MAX_BATCH_SECONDS = 600.0
#: Of a file that does not say how long it is: compressed speech at 128 kbit/s.
ASSUMED_BYTES_PER_SECOND = 16_000
#: Stands for no bound on new tokens.
UNBOUNDED = 1 << 30


@torch.inference_mode()
def answer(
    model,
    processor,
    conversations: Sequence[list[dict[str, Any]]],
    batch_size: int = 8,
    max_new_tokens: int | Sequence[int] = 128,
    progress: bool = False,
    max_batch_seconds: float = MAX_BATCH_SECONDS,
    ctc_weight: float = 0.0,
    **generate_options: Any,
) -> list[str]:
    """
    Return the model's answers, greedy unless `generate_options` say otherwise.

    Conversations of like length share a batch, and a recording that several are about goes through the encoder once. A
    conversation that ends with the assistant's words is continued.

    Args:
        model, processor: a pair that belongs together.
        conversations: lists of messages, with typed audio parts.
        batch_size: conversations per `generate` call.
        max_new_tokens: bound on each answer, in tokens; or one for each.
        progress: shows a bar with rate and time left.
        max_batch_seconds: bound on a batch's audio in seconds, counted as padded; a longer conversation is alone.
        ctc_weight: of CTC in n-best rescoring, for transcripts by a model with the readout of pieces; see
            `ctc_rescoring`. 0 is `generate` alone.
        generate_options: passed on to `generate`. `adapter_names` has one for each conversation; with a `streamer`,
            conversations are answered one by one in the given order.

    Returns:
        One text per conversation, in the given order, without special tokens or surrounding space.

    Raises:
        ValueError: a conversation or recording cannot be used; of several, the message says which.
        FileNotFoundError: a file is not there; raised before anything is computed.
    """
    if (count := generate_options.get("num_return_sequences", 1)) != 1:
        raise ValueError(f"num_return_sequences is {count}; expected 1. generate_answers gives several answers.")
    given = (batch_size, max_new_tokens, progress, max_batch_seconds)
    answers = generate_answers(model, processor, conversations, *given, ctc_weight=ctc_weight, **generate_options)
    return [texts[0].strip() for texts in answers]


@torch.inference_mode()
def generate_answers(
    model,
    processor,
    conversations: Sequence[list[dict[str, Any]]],
    batch_size: int = 8,
    max_new_tokens: int | Sequence[int] | None = None,
    progress: bool = False,
    max_batch_seconds: float = MAX_BATCH_SECONDS,
    encoder: RecordingEncoder | None = None,
    names: Sequence[str] | None = None,
    ctc_weight: float = 0.0,
    **generate_options: Any,
) -> list[list[str]]:
    """
    Return answers as [`answer`], with every sequence that `num_return_sequences` asks for, as they were generated.

    Args:
        max_new_tokens: None leaves it to the other options and the model's own generation configuration.
        encoder: keeps the encoder's output beyond this call; one of this call's own by default.
        names: of the conversations in errors; `Conversation 3` by default, and nothing where there is one.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected an integer of at least 1.")
    count = len(conversations)
    bounds = [max_new_tokens] * count if max_new_tokens is None or isinstance(max_new_tokens, int) else max_new_tokens
    adapters = generate_options.pop("adapter_names", None)
    for what, values in (("max_new_tokens", bounds), ("adapter_names", adapters)):
        if values is not None and len(values) != count:
            raise ValueError(f"There are {len(values)} {what} for {count} conversations; expected one each, or one.")
    if names is None:
        names = [f"Conversation {index}" if count > 1 else "" for index in range(count)]
    encoder = encoder or RecordingEncoder(model, processor)
    check_ctc_weight(model.config, ctc_weight)
    if ctc_weight:
        check_ctc_options(generate_options)
        _check_transcribing(conversations, names, bounds)
    options = generate_options if "generation_config" in generate_options else {"do_sample": False, **generate_options}

    was_training = model.training
    model.eval()
    try:
        answers: list[list[str]] = [[]] * count
        loaded: dict[Any, np.ndarray] = {}
        batches = _plan(processor, conversations, names, batch_size, max_batch_seconds, "streamer" in options)
        rescorer = CtcRescorer(model, processor.tokenizer, ctc_weight) if ctc_weight else None
        with tqdm(total=count, desc="Answering", unit="answer", disable=not progress) as bar:
            for chosen in batches:
                recordings = [one for index in chosen for one in recordings_of(conversations[index])]
                loaded = {key: loaded[key] for key in map(_identity, recordings) if key in loaded}
                rows, waveforms, with_audio = [], [], []
                for index in chosen:
                    with naming(names[index]):
                        ids, heard = _encode_row(processor, conversations[index], loaded)
                    rows.append(ids)
                    waveforms.extend(heard)
                    with_audio.append(bool(heard))
                inputs = processor.tokenizer.pad(
                    {"input_ids": rows}, padding=True, padding_side="left", return_tensors="pt"
                )
                if waveforms:
                    inputs.update(encoder(waveforms))
                if adapters is not None:
                    options["adapter_names"] = [adapters[index] for index in chosen]
                inputs, own_bounds = inputs.to(model.device), [bounds[index] for index in chosen]
                if rescorer is not None:
                    best = rescorer.choose(**inputs, bounds=own_bounds, adapter_names=options.get("adapter_names"))
                    texts = [one.text for one in best]
                else:
                    texts = _generate(model, processor, inputs, own_bounds, with_audio, options)
                each = len(texts) // len(chosen)
                for place, index in enumerate(chosen):
                    answers[index] = texts[place * each : (place + 1) * each]
                bar.update(len(chosen))
        return answers
    finally:
        model.train(was_training)


def _generate(
    model, processor, inputs, bounds: list[int | None], with_audio: list[bool], options: dict[str, Any]
) -> list[str]:
    """Return what `generate` writes; without beams, rows end at their own bounds, and those with audio in a loop."""
    limits = [bound for bound in bounds if bound is not None]
    if limits:
        options = {**options, "max_new_tokens": max(limits)}
    said: Any
    if (getattr(options.get("generation_config"), "num_beams", None) or options.get("num_beams", 1)) == 1:
        own = [UNBOUNDED if bound is None else bound for bound in bounds]
        said = generate_to_ends(model, inputs, own, [not heard for heard in with_audio], **options)
    else:
        output = model.generate(**inputs, **options)
        said = getattr(output, "sequences", output)[:, inputs["input_ids"].shape[1] :]
    return processor.batch_decode(said, skip_special_tokens=True)


def ask(prompt: str | None, *recordings: Any, system: str | None = None) -> list[dict[str, Any]]:
    """
    Return a conversation of one question about recordings: each `<audio>` in the prompt is one, or they come first.

    Without a prompt the recordings are speech to be answered.

    Raises:
        ValueError: the prompt has placeholders, but not one for each recording.
    """
    pieces = [""] * (len(recordings) + 1) if prompt is None else prompt.split("<audio>")
    if len(pieces) == 1 and recordings:
        pieces = [""] * len(recordings) + [f"\n{prompt}"]
    if len(pieces) != len(recordings) + 1:
        raise ValueError(
            f"The prompt has {len(pieces) - 1} <audio> for {len(recordings)} recordings; expected one each, or none."
        )
    parts: list[dict[str, Any]] = []
    for index, piece in enumerate(pieces):
        if piece:
            parts.append({"type": "text", "text": piece})
        if index < len(recordings):
            parts.append({"type": "audio", "audio": recordings[index]})
    messages: list[dict[str, Any]] = [{"role": "user", "content": parts}]
    return [{"role": "system", "content": system}, *messages] if system else messages


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Put `name` before the message of an error about what was given, which keeps its kind."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        if not name:
            raise
        kind = type(error) if error.args == (str(error),) else ValueError
        raise kind(f"{name}: {error}") from error


def continues(conversation: list[dict[str, Any]]) -> bool:
    """Return whether a conversation ends with words of the assistant, which an answer goes on with."""
    return conversation[-1]["role"] == "assistant"


def _check_transcribing(conversations, names, bounds) -> None:
    """Raise ValueError where a conversation does not ask for a transcript."""
    for conversation, name, bound in zip(conversations, names, bounds):
        with naming(name):
            if bound is None:
                raise ValueError("ctc_weight needs max_new_tokens, the bound on a transcript.")
            if not recordings_of(conversation):
                raise ValueError("ctc_weight is for transcripts, but there is no audio.")
            if continues(conversation):
                raise ValueError("ctc_weight is for whole transcripts, but the conversation has the beginning of one.")


def _plan(processor, conversations, names, batch_size: int, max_batch_seconds: float, one_by_one: bool) -> list:
    """
    Return the indices of the conversations that share a batch, after a look at all that needs no decoding.

    Short ones come first, and those about the same recordings beside each other.
    """
    sizes = []
    for index, conversation in enumerate(conversations):
        with naming(names[index]):
            num_characters = len(processor.apply_chat_template(conversation))
            recordings = recordings_of(conversation)
            seconds = sum(recording_seconds(processor, recording) for recording in recordings)
        sizes.append((seconds, tuple(str(_identity(recording)) for recording in recordings), num_characters))
    if one_by_one:
        return [[index] for index in range(len(sizes))]
    batches: list[list[int]] = []
    for index in sorted(range(len(sizes)), key=lambda index: sizes[index]):
        longest = sizes[index][0]  # so far
        if not batches or len(batches[-1]) == batch_size or (len(batches[-1]) + 1) * longest > max_batch_seconds:
            batches.append([])
        batches[-1].append(index)
    return batches


def _encode_row(
    processor, conversation: list[dict[str, Any]], loaded: dict[Any, np.ndarray]
) -> tuple[list[int], list[np.ndarray]]:
    """Return a conversation's ids, and its waveforms in reading order; `loaded` has those decoded before."""
    messages, recordings = flatten_conversation(conversation)
    for recording in recordings:
        if _identity(recording) not in loaded:
            loaded[_identity(recording)] = processor.load_audio(recording)
    waveforms = [loaded[_identity(recording)] for recording in recordings]
    open_end = continues(conversation)
    inputs = processor.apply_chat_template(
        messages,
        audio=waveforms or None,
        tokenize=True,
        add_generation_prompt=not open_end,
        continue_final_message=open_end,
        return_tensors=None,
        return_features=False,
    )
    return inputs["input_ids"][0], waveforms


def recordings_of(conversation: list[dict[str, Any]]) -> list[Any]:
    """Return the recordings of a conversation, in order."""
    return flatten_conversation(conversation)[1]


def _identity(recording: Any) -> Any:
    """Return what tells recordings apart before they are decoded: a path or URL, or which object it is."""
    return os.fspath(recording) if isinstance(recording, (str, os.PathLike)) else id(recording)


def recording_seconds(processor, recording: Any) -> float:
    """Return the length of a recording without decoding it: exact where it or its header says so, 0 for a URL."""
    rate = processor.sampling_rate
    if isinstance(recording, dict):
        rate = recording.get("sampling_rate") or rate
        recording = next((recording[key] for key in ("array", "bytes", "path") if recording.get(key) is not None), b"")
    if isinstance(recording, (bytes, bytearray)):
        return _file_seconds(io.BytesIO(recording), len(recording))
    if isinstance(recording, (str, os.PathLike)):
        path = os.path.expanduser(recording)
        if "://" in os.fspath(recording) or os.fspath(recording).startswith("data:"):
            return 0.0
        if not os.path.isfile(path):
            processor.load_audio(recording)  # which says what is wrong
        return _file_seconds(path, os.path.getsize(path))
    if not isinstance(rate, (int, float)) or rate <= 0:
        return 0.0  # decoding it says what is wrong
    shape = getattr(recording, "shape", [len(recording)] if hasattr(recording, "__len__") else [0])
    return max(shape, default=0) / rate


def _file_seconds(file: Any, num_bytes: int) -> float:
    seconds = header_seconds(file)
    # A stream that does not know its length may claim far more than it can hold.
    return seconds if seconds is not None and seconds < num_bytes else num_bytes / ASSUMED_BYTES_PER_SECOND

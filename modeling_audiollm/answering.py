"""Answers in batches: conversations in, text out. What evaluation and inference share."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tqdm.auto import tqdm


@torch.inference_mode()
def answer(
    model,
    processor,
    conversations: Sequence[list[dict[str, Any]]],
    batch_size: int = 8,
    max_new_tokens: int | Sequence[int] = 128,
    encoded_audio: Callable[[list[Any]], dict[str, torch.Tensor]] | None = None,
    progress: bool = False,
    **generate_options: Any,
) -> list[str]:
    """
    The model's answers, greedy unless `generate_options` say otherwise.

    Conversations of like length share a batch, so that little is padded; answers come back in the given order.

    Args:
        model, processor: a pair that belongs together.
        conversations: lists of messages, with typed audio parts.
        batch_size: conversations per `generate` call.
        max_new_tokens: bound on each answer, in tokens; or one for each, of which a batch takes the largest.
        encoded_audio: given the batch's recordings in reading order, their encoder output from a cache, as
            `encoded_audio` and `encoded_audio_lengths`.
        progress: shows a bar with rate and time left.
        generate_options: passed on to `generate`.

    Returns:
        One text per conversation, without special tokens or surrounding space.
    """
    was_training = model.training
    model.eval()
    try:
        return _answer(
            model, processor, conversations, batch_size, max_new_tokens, encoded_audio, progress, generate_options
        )
    finally:
        model.train(was_training)


def _answer(
    model, processor, conversations, batch_size, max_new_tokens, encoded_audio, progress, generate_options
) -> list[str]:
    sizes = [_size(conversation) for conversation in conversations]
    order = sorted(range(len(conversations)), key=lambda index: sizes[index])
    answers = [""] * len(conversations)
    bounds = [max_new_tokens] * len(order) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    if len(bounds) != len(conversations):
        raise ValueError(
            f"There are {len(bounds)} max_new_tokens for {len(conversations)} conversations; expected one each, or one."
        )
    options = {"do_sample": False, **generate_options}
    with tqdm(total=len(order), desc="Answering", unit="answer", disable=not progress) as bar:
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = [conversations[index] for index in chosen]
            inputs = processor.apply_chat_template(
                batch, tokenize=True, add_generation_prompt=True, padding_side="left"
            )
            if encoded_audio is not None and "input_features" in inputs:
                recordings = [part for conversation in batch for part in _recordings(conversation)]
                inputs.pop("input_features")
                inputs.pop("input_features_mask")
                inputs.update(encoded_audio(recordings))
            inputs = inputs.to(model.device)
            output = model.generate(**inputs, max_new_tokens=max(bounds[index] for index in chosen), **options)
            texts = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            for index, text in zip(chosen, texts):
                answers[index] = text.strip()
            bar.update(len(chosen))
    return answers


def ask(prompt: str, *recordings: Any, system: str | None = None) -> list[dict[str, Any]]:
    """
    A conversation of one question about recordings: each `<audio>` in the prompt is one, or they come first.

    Raises:
        ValueError: the prompt has placeholders, but not one for each recording.
    """
    pieces = prompt.split("<audio>")
    if len(pieces) == 1:
        pieces = [""] * len(recordings) + [("\n" if recordings else "") + prompt]
    if len(pieces) != len(recordings) + 1:
        raise ValueError(
            f"The prompt has {len(pieces) - 1} <audio> for {len(recordings)} recordings; expected one each, or none."
        )
    parts: list[dict[str, Any]] = []
    for index, piece in enumerate(pieces):
        if piece:
            parts.append({"type": "text", "text": piece})
        if index < len(recordings):
            parts.append(audio_part(recordings[index]))
    messages: list[dict[str, Any]] = [{"role": "user", "content": parts}]
    return [{"role": "system", "content": system}, *messages] if system else messages


def audio_part(recording: Any) -> dict[str, Any]:
    """A recording of any kind as a typed part of a message."""
    return {"type": "audio", "audio": recording}


def _recordings(conversation: list[dict[str, Any]]) -> list[Any]:
    found = []
    for message in conversation:
        if not isinstance(message["content"], str):
            for part in message["content"]:
                if part.get("type") == "audio":
                    found.append(next(part[name] for name in ("audio", "path", "url") if part.get(name) is not None))
    return found


def _size(conversation: list[dict[str, Any]]) -> int:
    """A rough measure of a conversation's length: characters of text, bytes or samples of audio."""
    size = 0
    for message in conversation:
        if isinstance(message["content"], str):
            size += len(message["content"])
            continue
        size += sum(len(part.get("text", "")) for part in message["content"])
    for recording in _recordings(conversation):
        if isinstance(recording, dict):
            recording = next(
                (recording[name] for name in ("array", "bytes", "path") if recording.get(name) is not None), b""
            )
        if isinstance(recording, (str, os.PathLike)):
            size += os.path.getsize(recording) if os.path.isfile(recording) else 0
        elif hasattr(recording, "__len__"):
            size += len(recording)
    return size

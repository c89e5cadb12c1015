"""Rows of random ids and random log-mel windows, alone or as a padded batch, without a processor."""

from dataclasses import dataclass

import torch
from audiollm import AudioLlmForConditionalGeneration
from tiny_models import NUM_MEL_BINS, randomise_trainables

FIRST_TEXT_ID = 5  # the tiny tokenizer's special tokens lie below
MEL_FRAMES_PER_ENCODER_FRAME = 2
IGNORED_LABEL = -100
TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}


@dataclass(frozen=True)
class Row:
    """One row: its ids `(length,)`, and its windows in reading order, each `(mel_bins, frames)`."""

    ids: torch.Tensor
    windows: tuple[torch.Tensor, ...] = ()


def num_slots(mel_frames: int, stack_factor: int) -> int:
    """Audio tokens of one window, counted the long way."""
    encoder_frames = -(-mel_frames // MEL_FRAMES_PER_ENCODER_FRAME)
    return -(-encoder_frames // stack_factor)


def make_row(config, *parts: int | tuple[int, ...], seed: int = 0) -> Row:
    """
    A row of `parts`: an integer is so many random text ids, a tuple is one recording of windows of so many mel frames.
    """
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = []
    windows: list[torch.Tensor] = []
    for part in parts:
        if isinstance(part, int):
            top = min(config.text_config.vocab_size, 100)
            ids += torch.randint(FIRST_TEXT_ID, top, (part,), generator=generator).tolist()
            continue
        slots = sum(num_slots(frames, config.stack_factor) for frames in part)
        ids += [config.audio_begin_token_id, *[config.audio_token_id] * slots, config.audio_end_token_id]
        windows += [torch.randn(NUM_MEL_BINS, frames, generator=generator) for frames in part]
    return Row(torch.tensor(ids), tuple(windows))


def collate(config, rows: list[Row], padding_side: str = "left") -> dict[str, torch.Tensor]:
    """Model inputs of several rows."""
    length = max(len(row.ids) for row in rows)
    input_ids = torch.full((len(rows), length), config.pad_token_id)
    attention_mask = torch.zeros(len(rows), length, dtype=torch.long)
    for index, row in enumerate(rows):
        where = slice(length - len(row.ids), None) if padding_side == "left" else slice(0, len(row.ids))
        input_ids[index, where] = row.ids
        attention_mask[index, where] = 1
    batch = {"input_ids": input_ids, "attention_mask": attention_mask}
    windows = [window for row in rows for window in row.windows]
    if windows:
        frames = max(window.shape[1] for window in windows)
        batch["input_features"] = torch.zeros(len(windows), NUM_MEL_BINS, frames)
        batch["input_features_mask"] = torch.zeros(len(windows), frames, dtype=torch.long)
        for index, window in enumerate(windows):
            batch["input_features"][index, :, : window.shape[1]] = window
            batch["input_features_mask"][index, : window.shape[1]] = 1
    return batch


def mixed_rows(config) -> list[Row]:
    """Text-only rows between rows with one recording, several recordings, and one of two windows."""
    return [
        make_row(config, 4, (150,), 3, seed=1),
        make_row(config, 9, seed=2),
        make_row(config, 2, (40,), 3, (95,), 2, seed=3),
        make_row(config, 5, seed=4),
        make_row(config, 3, (300, 61), 4, seed=5),
    ]


MIXED_TEXT_ROWS = (1, 3)


def labelled(config, rows: list[Row], padding_side: str = "right") -> dict[str, torch.Tensor]:
    """Model inputs of several rows with labels on all of their text."""
    batch = collate(config, rows, padding_side)
    ignored = (batch["input_ids"] >= config.vocab_size) | ~batch["attention_mask"].bool()
    return {**batch, "labels": batch["input_ids"].masked_fill(ignored, IGNORED_LABEL)}


# ---- models ----------------------------------------------------------------------------------------------------------


def composed(bases: tuple[str, str], seed: int = 2, std: float = 0.2, **fields) -> AudioLlmForConditionalGeneration:
    """A model of two bases whose projector and adapters are as after training."""
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(*bases, **{"lora_rank": 4, **fields})
    return randomise_trainables(model, seed, std)


@torch.no_grad()
def logits_of(model) -> torch.Tensor:
    """Logits of [`mixed_rows`]."""
    return model(**collate(model.config, mixed_rows(model.config))).logits


def new_tokens(model, rows: list[Row], padding_side: str = "left", **options) -> list[list[int]]:
    """Return the ten tokens, or as many as `options` say, that a model writes after each row."""
    batch = collate(model.config, rows, padding_side)
    options = {"max_new_tokens": 10, "min_new_tokens": 10, "do_sample": False, **options}
    return model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :].tolist()


def loss_and_gradients(model, batch, between=None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return those of one step; `between` runs after the forward pass and before the backward pass."""
    model.zero_grad()
    loss = model(**batch).loss
    if between is not None:
        between()
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_step(found, expected, atol: float = 1e-4, rtol: float = 1e-3) -> None:
    """Compare two results of [`loss_and_gradients`]."""
    torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=1e-5)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, atol=atol, rtol=rtol, msg=name)

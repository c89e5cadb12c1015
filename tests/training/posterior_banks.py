"""Tiny aligned checkpoints and posteriors as of speech that was heard, without any recording."""

from collections.abc import Sequence
from pathlib import Path

import torch
from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor
from audiollm.inference.spoken_pieces import spoken_form
from audiollm.training.posteriors import BANK_FILE, PosteriorBank, PosteriorCollector, SpokenText
from tiny_models import randomise_trainables

LEXICON = " abcdefghijklmnopqrstuvwxyz'"
SENTENCES = [
    "The cat sat on the mat.",
    "A dog ran off, too!",
    "Seven of us went home.",
    "It's a jazz quiz.",
    "We fly by night.",
    "Pack my box with five dozen jugs.",
]


def lexicon_ids(tokenizer, texts: Sequence[str] = ()) -> list[int]:
    """Ids of the letters, and of the pieces of texts."""
    said = [*LEXICON, *(f" {word}" for text in texts for word in spoken_form(text).split())]
    return sorted({id_ for one in said for id_ in tokenizer(one, add_special_tokens=False)["input_ids"]})


def heard(classes: list[int], num_pieces: int, generator: torch.Generator) -> torch.Tensor:
    """Log-probabilities of a clip that says these classes, a fifth of which is heard as something else."""
    slots: list[int] = [0]
    for index, one in enumerate(classes):
        said = one
        if torch.rand((), generator=generator) < 0.2:
            said = int(torch.randint(1, num_pieces + 1, (), generator=generator))
        apart = index and classes[index - 1] == one
        slots += [0] * max(int(apart), int(torch.randint(0, 3, (), generator=generator)))
        slots += [said] * int(torch.randint(1, 4, (), generator=generator))
    scores = torch.randn(len(slots) + 1, num_pieces + 1, generator=generator)
    scores[torch.arange(len(scores)), torch.tensor([*slots, 0])] += 9
    return scores.log_softmax(dim=-1)


def make_bank(tokenizer, texts: Sequence[str] = ()) -> tuple[PosteriorBank, SpokenText]:
    """A bank of `SENTENCES`, each heard eight times; `texts` add their pieces to the letters."""
    token_ids = lexicon_ids(tokenizer, texts)
    text = SpokenText(tokenizer, token_ids)
    generator = torch.Generator().manual_seed(0)
    collector = PosteriorCollector(len(token_ids))
    for _ in range(8):
        for sentence in SENTENCES:
            classes, begins = text.encode(sentence)
            assert collector.add(heard(classes, len(token_ids), generator), classes, begins)
    return collector.bank(token_ids, {"clips": collector.clips, "stack_factor": 4}), text


def save_aligned(
    folder: Path, bases: tuple[str, str], with_bank=True, texts: Sequence[str] = (), aligned=True, **shape
) -> Path:
    """Saves a tiny checkpoint whose readout knows the letters, and a bank beside it."""
    torch.manual_seed(0)
    shape = {"lora_rank": 4, "projector_readout": "pieces", **shape}
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(*bases, **shape)
    processor = AudioLlmProcessor.from_audio_text_pretrained(
        bases[0], bases[1], stack_factor=model.config.stack_factor
    )
    randomise_trainables(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.zero_()
        readout = model.model.multi_modal_projector.readout
        if readout is not None and aligned:
            readout.residual_gain.zero_()
            readout.blank.copy_(model.get_input_embeddings().weight[processor.tokenizer.convert_tokens_to_ids("_")])
            readout.lexicon.fill_(False)
            readout.lexicon[lexicon_ids(processor.tokenizer, texts)] = True
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    if with_bank:
        make_bank(processor.tokenizer, texts=texts)[0].save(folder / BANK_FILE)
    return folder

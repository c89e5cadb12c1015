"""
CTC warm start: teaches the projector to speak the language model's embeddings before the language model is ever run.

The projector's tokens are scored against the frozen embeddings of the word pieces that occur in the transcripts, plus
a learned blank, under connectionist temporal classification (Graves et al. 2006). There is no language model forward,
and the encoder's output comes from the cache, so that an epoch over minutes of speech takes seconds. Started cold, the
same projector and LoRA do not listen at all after as many minutes of ordinary training.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import datasets
import torch
from audiollm.inference.spoken_pieces import BLANK, piece_ids, spoken_form
from audiollm.piece_readout import PieceReadout
from audiollm.projector import slot_counts
from torch import nn
from transformers import TrainerCallback, TrainingArguments

from .arguments import TrainingError
from .augment import FeatureAugmentation
from .checkpointing import last_complete_checkpoint
from .ctc_loss import PieceCtcLoss
from .dataset import cached_windows, pad_windows
from .feature_cache import FeatureCache, FeatureStore
from .trainer import ResumableTrainer
from .variants import WaveformVariants

#: What text fills gaps with, and so what a slot without a word looks like: the first that is one piece by itself.
#: Measured zero-shot on SmolLM2, words with such gaps cost 1.1 nats a token, with gaps of the mean embedding 2.9.
GAP_PIECES = ("_", " ", "-")
#: How far a channel's gain may be raised when the projector's first norm is fitted to the features.
MAX_INPUT_GAIN = 5.0
#: Clips that the projector's input gain and the hand-over are fitted on.
CLIPS_TO_FIT = 300
#: Share of the mean variance added when the constant combination of the last layer's inputs is fitted.
CONSTANT_FIT_RIDGE = 1e-3


class CtcAligner(nn.Module):
    """
    A model's projector with the scoring that trains it: that of [`audiollm.piece_readout.PieceReadout`].

    Where the projector reads out pieces itself, it is its own readout that is trained. The blank looks like a token
    that text fills gaps with, so that the language model takes it for nothing said.

    Args:
        model: the [`AudioLlmForConditionalGeneration`] whose projector is trained, in place.
        token_ids: ids of the word pieces that can be said.
        blank_id: id of the piece that a blank looks like.
    """

    offset: torch.Tensor

    def __init__(self, model, token_ids: Sequence[int], blank_id: int):
        super().__init__()
        self.projector = model.model.multi_modal_projector
        # Not a member: the language model is not part of what is trained and saved here.
        self._input_embeddings = model.get_input_embeddings
        embeddings = self.embeddings
        if self.projector.readout is None:
            self.own_readout = PieceReadout(*embeddings.shape).to(embeddings.device)
        #: What tokens hold besides the part that is scored; nothing until [`hand_over`] adds it.
        self.register_buffer("offset", torch.zeros(embeddings.shape[1], device=embeddings.device), persistent=False)
        with torch.no_grad():
            self.readout.lexicon.fill_(False)
            self.readout.lexicon[torch.tensor(list(token_ids), device=embeddings.device)] = True
            self.readout.blank.copy_(embeddings[blank_id])
        # Neither belongs to what CTC can tell.
        self.readout.blank.requires_grad_(False)
        self.readout.residual_gain.requires_grad_(False)

    @property
    def embeddings(self) -> torch.Tensor:
        """The language model's input embeddings, `(vocab_size, hidden_size)`."""
        return self._input_embeddings().weight.detach()

    @property
    def readout(self) -> PieceReadout:
        """The readout that scores: the projector's own, or one for this stage only."""
        return self.own_readout if self.projector.readout is None else self.projector.readout

    @property
    def device(self) -> torch.device:
        return self.offset.device

    def scores(self, encoded_audio: torch.Tensor, encoded_audio_lengths: torch.Tensor):
        """
        Log-probabilities `(windows, slots, 1 + pieces)`, blank first, and slots per window `(windows,)`.

        Args:
            encoded_audio: encoder frames, `(windows, max_frames, d_model)`.
            encoded_audio_lengths: `(windows,)`.
        """
        stacked, mask = self.projector.stack(encoded_audio.float(), encoded_audio_lengths)
        projected = self.projector.project(stacked, mask) - self.offset
        real = self.readout.log_probabilities(projected, self.embeddings)
        uniform = real.new_full((*mask.shape, real.shape[-1]), -math.log(real.shape[-1]))  # past a window's end
        scores = uniform.masked_scatter(mask[:, :, None], real)
        return scores, slot_counts(encoded_audio_lengths, self.projector.stack_factor)

    def forward(self, encoded_audio, encoded_audio_lengths, targets, target_lengths, **kwargs) -> dict[str, Any]:
        """
        CTC loss per word piece.

        Args:
            targets: classes `(clips, max_pieces)`, padded with the blank, 0.
            target_lengths: `(clips,)`; a clip is one window here.
        """
        common, _, directions = self.readout.table(self.embeddings)
        stacked, mask = self.projector.stack(encoded_audio.float(), encoded_audio_lengths)
        projected = stacked.new_zeros(*mask.shape, len(common))
        projected[mask] = (self.projector.project(stacked, mask) - self.offset).float()
        queries, blank_logits = self.readout.queries(projected, common)
        if torch.is_autocast_enabled(queries.device.type):
            directions = directions.to(torch.get_autocast_dtype(queries.device.type))
        loss = PieceCtcLoss.apply(
            queries,
            blank_logits,
            directions,
            slot_counts(encoded_audio_lengths, self.projector.stack_factor),
            targets,
            target_lengths,
        )
        return {"loss": loss / target_lengths.sum().clamp(min=1)}

    @torch.no_grad()
    def fit_input_norm(self, frames: Iterable[torch.Tensor]) -> None:
        """
        Sets the gain of the projector's first norm so that every channel of the encoder varies alike.

        Whisper's channels differ in spread by orders of magnitude; without this the loudest few drown the rest at
        first. `frames` are clips of shape `(frames, d_model)`.
        """
        if not isinstance(self.projector.norm_pre, nn.RMSNorm):
            return
        sample = torch.cat([clip.to(self.offset) for clip in frames])
        gain = (1 / sample.std(dim=0)).clamp(max=MAX_INPUT_GAIN) * sample.square().mean().sqrt()
        self.projector.norm_pre.weight.copy_(gain.repeat(self.projector.stack_factor))

    @torch.no_grad()
    def hand_over(self, frames: Iterable[torch.Tensor]) -> None:
        """
        Turns what the cosines left free into what the language model expects: tokens that lie among its embeddings.

        A readout of pieces does so by itself. For direct tokens, cosines fix neither length nor offset: the last layer
        is scaled until tokens are as far from the common part of the embeddings as the pieces are, and then made to add
        that part. It has no bias, but a combination of its inputs that is nearly constant does the same (found by least
        squares).

        Args:
            frames: clips of shape `(frames, d_model)` to fit on.
        """
        self.readout.blank.requires_grad_(True)
        self.readout.residual_gain.requires_grad_(True)
        if self.projector.readout is not None:
            return
        last = self.projector.linear_3 if self.projector.context else self.projector.linear_2
        inputs: list[torch.Tensor] = []
        hook = last.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
        tokens = []
        for clip in frames:
            clip = clip.to(self.offset)
            stacked, mask = self.projector.stack(clip[None], torch.tensor([len(clip)], device=clip.device))
            tokens.append(self.projector.project(stacked, mask))
        hook.remove()
        common, pieces, _ = self.readout.table(self.embeddings)
        last.weight.mul_((pieces - common).square().mean().sqrt() / torch.cat(tokens).square().mean().sqrt())
        hidden = torch.cat(inputs)
        gram = hidden.T @ hidden / len(hidden)
        ridge = CONSTANT_FIT_RIDGE * gram.trace() / len(gram) * torch.eye(len(gram), device=gram.device)
        constant = torch.linalg.solve(gram + ridge, hidden.mean(dim=0))
        last.weight.add_(torch.outer(common, constant))
        self.offset.copy_(common)


class PieceVocabulary:
    """
    Transcripts as classes: the language model's own word pieces of lower-case words, without punctuation.

    Args:
        tokenizer: the language model's.
        transcripts: texts as [`spoken_form`] gives them, whose pieces make up the vocabulary.
        more_ids: pieces that belong to it besides.
    """

    def __init__(self, tokenizer, transcripts: Sequence[str], more_ids: Iterable[int] = ()):
        self.tokenizer = tokenizer
        self.token_ids = sorted({piece for text in transcripts for piece in self._pieces(text)} | set(more_ids))
        self._class = {piece: index + 1 for index, piece in enumerate(self.token_ids)}

    def _pieces(self, text: str) -> list[int]:
        return piece_ids(self.tokenizer, text)

    @property
    def blank_id(self) -> int:
        """Id of the piece that a blank should look like to the language model."""
        alone = (self.tokenizer(piece, add_special_tokens=False)["input_ids"] for piece in GAP_PIECES)
        special = set(self.tokenizer.all_special_ids)
        fitting = [ids[0] for ids in alone if len(ids) == 1 and ids[0] not in self._class and ids[0] not in special]
        unused = (index for index in range(len(self.tokenizer)) if index not in self._class and index not in special)
        return fitting[0] if fitting else next(unused)

    def encode(self, text: str) -> list[int]:
        """Return the classes of a text in its spoken form. Raises KeyError for a piece that no transcript had."""
        return [self._class[piece] for piece in self._pieces(text)]

    def decode(self, classes: Sequence[int]) -> str:
        """Text of classes without blanks."""
        return self.tokenizer.decode([self.token_ids[index - 1] for index in classes]).strip()


def build_alignment_dataset(
    keys: Sequence[str], transcripts: Sequence[str | None], cache: FeatureCache, vocabulary: PieceVocabulary
) -> tuple[datasets.Dataset, list[str]]:
    """
    Clips with their transcript's classes; none for a clip without speech, whose transcript is None.

    Clips that CTC cannot align are left out: more pieces than slots, several windows, or a transcript without words.

    Returns:
        A dataset with `audio` (cache key), `targets` and `length` (frames), and the keys that were left out.
    """
    rows: dict[str, list[Any]] = {"audio": [], "targets": [], "length": []}
    left_out = []
    for key, transcript in zip(keys, transcripts):
        lengths = cache.lengths(key)
        targets = [] if transcript is None else vocabulary.encode(transcript)
        repeats = sum(first == second for first, second in pairwise(targets))
        slots = sum(-(-length // cache.processor.stack_factor) for length in lengths)
        if len(lengths) != 1 or (transcript is not None and not targets) or len(targets) + repeats > slots:
            left_out.append(key)
            continue
        rows["audio"].append(key)
        rows["targets"].append(targets)
        rows["length"].append(lengths[0])
    return datasets.Dataset.from_dict(rows), left_out


@dataclass(frozen=True)
class Alignment:
    """
    Result of [`align`]: the aligner and vocabulary that [`greedy_transcripts`] needs, and the course of the loss.

    Attributes:
        losses: pairs of step and loss per word piece.
    """

    aligner: CtcAligner
    vocabulary: PieceVocabulary
    losses: list[tuple[int, float]]


@dataclass
class AlignmentCollator:
    """Brings in the clips' frames."""

    cache: FeatureStore

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Inputs of [`CtcAligner.forward`]."""
        return {
            **pad_windows([self.cache.load(row["audio"])[0].float() for row in rows]),
            "targets": nn.utils.rnn.pad_sequence(
                [torch.tensor(row["targets"], dtype=torch.long) for row in rows], batch_first=True
            ),
            "target_lengths": torch.tensor([len(row["targets"]) for row in rows]),
        }


def vary_clips(batch: dict[str, torch.Tensor], augmentation: FeatureAugmentation) -> dict[str, torch.Tensor]:
    """A batch of [`AlignmentCollator`] with every clip varied, also in length."""
    frames, lengths = batch["encoded_audio"], batch["encoded_audio_lengths"]
    clips = [augmentation(clip[:length], True) for clip, length in zip(frames, lengths.tolist())]
    return {**batch, **{name: value.to(frames.device) for name, value in pad_windows(clips).items()}}


@torch.no_grad()
def greedy_transcripts(
    alignment: Alignment, cache: FeatureCache, keys: Sequence[str], batch_size: int = 32
) -> list[str]:
    """Return the transcripts by the projector alone: the best class of every slot, without repeats and blanks."""
    texts = []
    for start in range(0, len(keys), batch_size):
        clips = [cached_windows(cache, key) for key in keys[start : start + batch_size]]
        batch = pad_windows([window for clip in clips for window in clip])
        device = alignment.aligner.device
        scores, slots = alignment.aligner.scores(**{name: value.to(device) for name, value in batch.items()})
        heard = [
            alignment.vocabulary.decode(_collapse(row[:count]))
            for row, count in zip(scores.argmax(dim=-1), slots.tolist())
        ]
        for clip in clips:
            texts.append(" ".join(heard[: len(clip)]).strip())
            heard = heard[len(clip) :]
    return texts


def _collapse(classes: torch.Tensor) -> list[int]:
    """The classes of a slot sequence `(slots,)` with repeats taken together and blanks taken out."""
    return [index for index in torch.unique_consecutive(classes).tolist() if index != BLANK]


def align(
    model,
    cache: FeatureCache,
    keys: Sequence[str],
    transcripts: Sequence[str | None],
    arguments: TrainingArguments,
    augmentation: FeatureAugmentation | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    variants: WaveformVariants | None = None,
) -> Alignment:
    """
    Trains a model's projector by CTC, in place, resuming where an earlier run into the same folder was cut off.

    Args:
        model: the [`AudioLlmForConditionalGeneration`]; only its projector changes.
        cache: holds the encoder output of `keys`.
        keys, transcripts: the clips and what is said in them; None where nobody speaks.
        arguments: rates, epochs and output folder of the stage.
        augmentation: how to vary the clips.
        callbacks: the Trainer's.
        variants: of the clips, to train on as well.

    Returns:
        The aligner, its vocabulary, and the losses on the way.

    Raises:
        TrainingError: no clip can be aligned.
    """
    transcripts = [None if text is None else spoken_form(text) for text in transcripts]
    readout = model.model.multi_modal_projector.readout
    # A model that was aligned before keeps the pieces that it knows.
    known = [] if readout is None or bool(readout.lexicon.all()) else readout.lexicon.nonzero().flatten().tolist()
    vocabulary = PieceVocabulary(cache.processor.tokenizer, [text for text in transcripts if text is not None], known)
    dataset, left_out = build_alignment_dataset(keys, transcripts, cache, vocabulary)
    if left_out:
        print(f"{len(left_out)} of {len(keys)} clips are left out of the warm start: too long, or too much said.")
    if not any(dataset["targets"]):
        raise TrainingError("No clip can be aligned: each has several windows, or more word pieces than audio tokens.")
    aligner = CtcAligner(model, vocabulary.token_ids, vocabulary.blank_id)
    frames = [cache.load(key)[0] for key in dataset["audio"][:CLIPS_TO_FIT]]
    if not known:
        aligner.fit_input_norm(frames)
    trainer = ResumableTrainer(
        model=aligner,
        args=arguments,
        train_dataset=dataset,
        data_collator=AlignmentCollator(cache.store),
        augmentation=None if augmentation is None else partial(vary_clips, augmentation=augmentation),
        callbacks=list(callbacks),
    )
    if variants is not None:
        trainer.train_dataset, choice = variants.dataset(dataset, arguments.seed)
        trainer.add_callback(choice)
    trainer.train(
        resume_from_checkpoint=arguments.resume_from_checkpoint or last_complete_checkpoint(str(arguments.output_dir))
    )
    aligner.eval()
    aligner.hand_over(frames)
    losses = [(int(entry["step"]), entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    return Alignment(aligner, vocabulary, losses)

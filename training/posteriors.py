"""
Posterior bank: the CTC posteriors of every word piece in real speech, kept to simulate speech from text.

With the readout "pieces", an audio token is a mixture of the language model's embeddings by CTC posteriors, so that a
sequence of posteriors stands for a recording. Clips are aligned to their transcripts by CTC Viterbi, and the slots of
each word piece are kept as they are: their number, their doubts and confusions, and the blanks between them. Drawing
from them for the pieces of a text gives posteriors like those of speech that was never recorded (TASU,
arXiv:2511.03310 and arXiv:2604.08384, fit models to do this; here nothing is fitted).
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from audiollm.inference.ctc_alignment import slot_log_probabilities, viterbi_states
from audiollm.inference.spoken_pieces import BLANK, SpokenLexicon, spoken_form
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from tqdm.auto import tqdm

from .arguments import TrainingError
from .collator import pad_windows
from .feature_cache import FeatureCache

#: Beside the checkpoint that it was collected with.
BANK_FILE = "posterior_bank.safetensors"
FORMAT_VERSION = 1
#: Classes kept of each slot; what they leave of its probability counts as spread over the whole lexicon.
TOP_CLASSES = 8
#: Slots that go through the readout at once, and slots that a bank holds at most (13 hours at 80 ms, 20 MB).
SLOTS_PER_BATCH, MAX_SLOTS = 2048, 600_000
#: A clip of which CTC hears less than this share of the pieces does not say its transcript.
LEAST_HEARD = 0.2
#: A class seen n times is drawn from other classes' runs as often as if those had been so many of its own.
BORROWED_RUNS = 1.0
#: Kinds of gaps between pieces, numbered on from the classes: before the first, within a word, between words, at the
#: end; and one slot of certain silence, which keeps two equal pieces apart.
LEADING, WITHIN, BETWEEN, TRAILING, PAUSE = range(1, 6)
NUM_GAP_KINDS = PAUSE
#: Codes of classes that depend on where a run is put, numbered on from the classes: the run's own piece, and the
#: pieces before and after it.
OWN, PREVIOUS, NEXT = range(1, 4)


class SpokenText:
    """
    Texts as CTC classes with word boundaries.

    Args:
        tokenizer: the language model's.
        token_ids: ids of the pieces that can be said, ascending.
    """

    def __init__(self, tokenizer, token_ids: Sequence[int]):
        self.lexicon = SpokenLexicon(tokenizer, token_ids)
        self._words: dict[str, tuple[list[int], bool]] = {}

    def encode(self, text: str) -> tuple[list[int], list[bool]]:
        """Return the classes of a text in its spoken form, and which of them begin a word."""
        classes: list[int] = []
        begins: list[bool] = []
        for word in spoken_form(text).split():
            pieces, _ = self._word(word)
            classes += pieces
            begins += [index == 0 for index in range(len(pieces))]
        return classes, begins

    def unspeakable(self, text: str) -> list[str]:
        """Return words that the lexicon has no letter of, or not all: of a word with figures, whose reading is not known."""
        return [word for word in spoken_form(text).split() if not self._word(word)[1]]

    def _word(self, word: str) -> tuple[list[int], bool]:
        """Return a word's classes, and whether they say it."""
        if word not in self._words:
            classes = self.lexicon.encode(word)
            said = self.lexicon.decode(classes)
            self._words[word] = classes, said == word if any(map(str.isdigit, word)) else bool(said)
        return self._words[word]


@dataclass
class PosteriorBank:
    """
    Runs of slots by kind: of every class, and of every kind of gap.

    Runs of one kind lie together, correctly heard ones first.
    """

    token_ids: np.ndarray  # class n is the piece token_ids[n - 1]
    ids: np.ndarray  # (slots, TOP_CLASSES), classes or codes of neighbours, likeliest first
    weights: np.ndarray  # their posteriors, (slots, TOP_CLASSES), float16
    lengths: np.ndarray  # slots of each run, (runs,); those of gaps may be empty
    counts: np.ndarray  # runs of each kind, (1 + pieces + NUM_GAP_KINDS,)
    correct: np.ndarray  # how many of them are heard correctly
    facts: dict[str, Any]  # of where it came from

    def __post_init__(self):
        self.num_pieces = len(self.token_ids)
        self._first_run = np.concatenate([[0], np.cumsum(self.counts)])
        self._first_slot = np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])
        of_pieces = np.arange(len(self.counts)) <= self.num_pieces
        lendable = self.correct * of_pieces
        if not lendable.any():
            raise TrainingError("No word piece is heard correctly in any recording: align the projector first.")
        self._lenders = np.repeat(np.arange(len(self.counts)), lendable)
        totals = np.diff(self._first_slot[self._first_run])
        known = self.counts > 0
        mean_of_pieces = (totals * (known & of_pieces)).sum() / max(1, (self.counts * of_pieces).sum())
        #: Slots that a run of each kind has on average.
        self.mean_lengths = np.where(known, totals / np.maximum(self.counts, 1), mean_of_pieces * of_pieces)

    @property
    def misheard(self) -> float:
        """Return the share of the pieces' runs that are not heard correctly."""
        pieces = slice(1, self.num_pieces + 1)
        return 1 - self.correct[pieces].sum() / self.counts[pieces].sum()

    def gap_kind(self, gap: int) -> int:
        """Return the kind of runs that a gap is drawn from."""
        return self.num_pieces + gap

    def expected_slots(self, classes: Sequence[int], begins: Sequence[bool]) -> float:
        """Return the audio tokens that a text takes on average."""
        gaps = [self.gap_kind(BETWEEN if first else WITHIN) for first in begins[1:]]
        ends = [self.gap_kind(LEADING), self.gap_kind(TRAILING)]
        return float(self.mean_lengths[[*classes, *gaps, *ends]].sum())

    def simulate(
        self, texts: Sequence[tuple[Sequence[int], Sequence[bool]]], errors: float, random: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """
        Draw posteriors of texts that nobody said.

        Args:
            texts: classes, and which begin a word, as [`SpokenText.encode`] gives them; none is empty.
            errors: misheard runs in proportion to those of the bank: 0 for none, 1 for as many.

        Returns:
            Classes `(slots, TOP_CLASSES)` and their posteriors, float32, of all texts one after the other; and how many
            slots each text has.
        """
        rows = [self._elements(classes, begins) for classes, begins in texts]
        kind, previous, self_class, following = np.concatenate(rows, axis=1)
        runs = self._draw(kind, self_class, errors, random)
        lengths = self.lengths[runs].astype(np.int64)
        apart = (self_class == 0) & (previous == following) & (previous != BLANK) & (lengths == 0)
        runs[apart] = self._first_run[self.gap_kind(PAUSE)]
        lengths[apart] = 1

        element = np.repeat(np.arange(len(runs)), lengths)
        starts = self._first_slot[runs] - (np.cumsum(lengths) - lengths)
        slots = np.arange(len(element)) + starts[element]
        ids = self.ids[slots].astype(np.int64)
        for code, values in ((OWN, self_class), (PREVIOUS, previous), (NEXT, following)):
            ids = np.where(ids == self.num_pieces + code, values[element][:, None], ids)
        sizes = np.array([row.shape[1] for row in rows])
        slots_of_text = np.add.reduceat(lengths, np.cumsum(sizes) - sizes)
        return ids, self.weights[slots].astype(np.float32), slots_of_text

    def _elements(self, classes: Sequence[int], begins: Sequence[bool]) -> np.ndarray:
        """Return gaps and pieces in turn: kind, class before, own class, class after `(4, 2 * pieces + 1)`; 0 is none."""
        gaps = [LEADING, *(BETWEEN if first else WITHIN for first in begins[1:]), TRAILING]
        padded = np.pad(np.asarray(classes, dtype=np.int64), 1)
        elements = np.zeros((4, 2 * len(classes) + 1), dtype=np.int64)
        kind, previous, own, following = elements
        kind[0::2], kind[1::2], own[1::2] = np.add(gaps, self.num_pieces), classes, classes
        previous[0::2], following[0::2] = padded[:-1], padded[1:]
        previous[1::2], following[1::2] = padded[:-2], padded[2:]
        return elements

    def _draw(self, kind: np.ndarray, own: np.ndarray, errors: float, random: np.random.Generator) -> np.ndarray:
        """Return a run for each element; rare pieces, and those never heard correctly, borrow runs of other pieces."""
        count, correct = self.counts[kind], self.correct[kind]
        borrows = random.random(len(kind)) * (count + BORROWED_RUNS) < BORROWED_RUNS
        borrows = (own != BLANK) & (borrows | (correct == 0))
        kind = np.where(borrows, self._lenders[random.integers(len(self._lenders), size=len(kind))], kind)
        count, correct = self.counts[kind], self.correct[kind]
        wrong = count - correct
        is_wrong = random.random(len(kind)) * np.maximum(count, 1) < errors * wrong
        pool = np.where(is_wrong, wrong, correct)
        chosen = np.floor(random.random(len(kind)) * pool).astype(np.int64)
        runs = self._first_run[kind] + chosen + np.where(is_wrong, correct, 0)
        # A gap of a kind that no clip has, or none without an error.
        return np.where(pool > 0, runs, self._first_run[self.gap_kind(PAUSE)])

    def save(self, file: str | Path) -> None:
        """Write the arrays as safetensors, and what is known of them as JSON beside it."""
        file = Path(file)
        names = ("token_ids", "ids", "weights", "lengths", "counts", "correct")
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: np.ascontiguousarray(getattr(self, name)) for name in names}, file)
        facts = {**self.facts, "format_version": FORMAT_VERSION}
        file.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n")

    @classmethod
    def load(cls, file: str | Path) -> "PosteriorBank":
        """Read what [`save`] wrote. Raises TrainingError where it is not there, or no such file."""
        file = Path(file)
        try:
            arrays = load_file(file)
            facts = json.loads(file.with_suffix(".json").read_text())
            if facts.pop("format_version") != FORMAT_VERSION:
                raise ValueError("another version of AudioLLM wrote it")
            return cls(**arrays, facts=facts)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, IndexError) as error:
            raise TrainingError(
                f"The posterior bank {file} cannot be read: {error}. Expected {BANK_FILE} and its .json, as "
                "--stage align and --stage read write them."
            ) from error

    def check_fits(self, model) -> None:
        """Raise TrainingError if it was collected with another lexicon or token rate than the model's."""
        lexicon = model.model.multi_modal_projector.readout.lexicon.bool().nonzero().flatten().tolist()
        if self.token_ids.tolist() != lexicon:
            raise TrainingError(
                f"The posterior bank knows {self.num_pieces} word pieces, but the checkpoint's readout has other "
                f"{len(lexicon)}: it was collected with another checkpoint. Collect it anew from recordings."
            )
        if self.facts.get("stack_factor") != model.config.stack_factor:
            raise TrainingError(
                f"The posterior bank was collected at a stack factor of {self.facts.get('stack_factor')}; the "
                f"checkpoint's is {model.config.stack_factor}. Collect it anew from recordings."
            )

    def describe(self) -> str:
        """Return a line that says what it holds."""
        seen = int((self.counts[1 : self.num_pieces + 1] > 0).sum())
        return (
            f"Posterior bank: {len(self.ids):,} audio tokens of {self.facts.get('clips', 0):,} clips, {seen:,} of "
            f"{self.num_pieces:,} word pieces, {self.misheard:.1%} of them misheard."
        )


# ----------------------------------------------------------------------------------------------------------- collecting


def _batches(clips: Iterable[tuple[torch.Tensor, str]], stack_factor: int) -> Iterator[list[tuple[torch.Tensor, str]]]:
    batch: list[tuple[torch.Tensor, str]] = []
    longest = 0
    for frames, text in clips:
        longest = max(longest, len(frames))
        if batch and (len(batch) + 1) * longest > SLOTS_PER_BATCH * stack_factor:
            yield batch
            batch, longest = [], len(frames)
        batch.append((frames, text))
    if batch:
        yield batch


class PosteriorCollector:
    """Collects runs of clips, in the order in which they are met."""

    def __init__(self, num_pieces: int):
        self.num_pieces = num_pieces
        self.ids: list[np.ndarray] = []
        self.weights: list[np.ndarray] = []
        self.kinds: list[int] = []
        self.lengths: list[int] = []
        self.correct: list[bool] = []
        self.clips = self.slots = 0

    def add(self, log_probabilities: torch.Tensor, classes: Sequence[int], begins: Sequence[bool]) -> bool:
        """Add the runs of one clip; return False where it does not say these classes."""
        states = viterbi_states(log_probabilities, classes)
        if states is None:
            return False
        top = log_probabilities.exp().topk(min(TOP_CLASSES, log_probabilities.shape[1]), dim=1)
        weights, ids = top.values.cpu().numpy(), top.indices.cpu().numpy()
        padded = np.pad(np.asarray(classes), 1)
        target = states // 2
        is_piece = states % 2 == 1
        own = np.where(is_piece, padded[target + 1], -1)
        # Of a piece and of a gap alike, `target` pieces come before.
        previous = padded[target]
        following = padded[target + 1 + is_piece]
        coded = ids.copy()
        for code, values in ((NEXT, following), (PREVIOUS, previous), (OWN, own)):
            coded = np.where((ids == values[:, None]) & (ids != BLANK), self.num_pieces + code, coded)
        lengths = np.bincount(states, minlength=2 * len(classes) + 1)
        ends = np.cumsum(lengths)
        correct = [
            self._is_correct(coded[start:end], weights[start:end], state % 2 == 1)
            for state, (start, end) in enumerate(pairwise([0, *ends.tolist()]))
        ]
        if sum(correct[1::2]) < LEAST_HEARD * len(classes):
            return False
        gaps = [LEADING, *(BETWEEN if first else WITHIN for first in begins[1:]), TRAILING]
        for state, length in enumerate(lengths.tolist()):
            self.kinds.append(classes[state // 2] if state % 2 else self.num_pieces + gaps[state // 2])
            self.lengths.append(length)
        self.correct += correct
        self.ids.append(coded)
        self.weights.append(weights.astype(np.float16))
        self.clips += 1
        self.slots += len(states)
        return True

    def _is_correct(self, coded: np.ndarray, weights: np.ndarray, is_piece: bool) -> bool:
        """Return whether a run is heard as its piece, or its gap as nothing, wherever it is put."""
        if not len(coded):
            return not is_piece
        # Where neighbours, or a confusion that is one, come together, they must not outweigh the first.
        relative = coded > self.num_pieces
        rivals = np.where(relative, weights, 0)[:, 1:].sum(axis=1)
        rivals += np.where(relative, 0, weights)[:, 1:].max(axis=1, initial=0)
        if not (weights[:, 0] > rivals + np.finfo(np.float16).eps).all():
            return False
        said = coded[:, 0]
        if not is_piece:
            return bool((said == BLANK).all())
        is_own = said == self.num_pieces + OWN
        stretches = np.diff(np.pad(is_own.astype(np.int8), 1)) == 1
        return bool((is_own | (said == BLANK)).all()) and int(stretches.sum()) == 1

    def bank(self, token_ids: Sequence[int], facts: dict[str, Any]) -> PosteriorBank:
        """Return all runs in order of kind, correct ones first, and a pause."""
        num_kinds = 1 + self.num_pieces + NUM_GAP_KINDS
        pause_ids, pause_weights = np.zeros((2, 1, TOP_CLASSES))
        pause_weights[0, 0] = 1
        width = TOP_CLASSES
        ids = [np.pad(one, ((0, 0), (0, width - one.shape[1]))) for one in [*self.ids, pause_ids]]
        weights = [np.pad(one, ((0, 0), (0, width - one.shape[1]))) for one in [*self.weights, pause_weights]]
        kinds = np.array([*self.kinds, self.num_pieces + PAUSE])
        lengths = np.array([*self.lengths, 1])
        correct = np.array([*self.correct, True])
        order = np.lexsort((~correct, kinds))
        first = np.cumsum(lengths) - lengths
        sorted_lengths = lengths[order]
        starts = first[order] - (np.cumsum(sorted_lengths) - sorted_lengths)
        slots = np.arange(lengths.sum()) + np.repeat(starts, sorted_lengths)
        top = self.num_pieces + NEXT
        return PosteriorBank(
            token_ids=np.asarray(token_ids, dtype=np.int32),
            ids=np.concatenate(ids)[slots].astype(np.uint16 if top <= np.iinfo(np.uint16).max else np.int32),
            weights=np.concatenate(weights)[slots].astype(np.float16),
            lengths=sorted_lengths.astype(np.uint16),
            counts=np.bincount(kinds, minlength=num_kinds),
            correct=np.bincount(kinds, weights=correct, minlength=num_kinds).astype(np.int64),
            facts=facts,
        )


@torch.no_grad()
def collect_posteriors(model, tokenizer, clips: Iterable[tuple[torch.Tensor, str]]) -> PosteriorBank:
    """
    Collect a bank from recordings whose transcripts are known, until `MAX_SLOTS` audio tokens are read.

    Args:
        model: an [`AudioLlmForConditionalGeneration`] whose projector has an aligned readout of pieces.
        tokenizer: the language model's.
        clips: encoder frames `(frames, d_model)` of one window each, and what is said in it.

    Raises:
        TrainingError: no clip can be aligned.
    """
    token_ids = model.model.multi_modal_projector.readout.lexicon.bool().nonzero().flatten().tolist()
    text = SpokenText(tokenizer, token_ids)
    collected = PosteriorCollector(len(token_ids))
    left_out = 0
    stack_factor = model.config.stack_factor
    for batch in _batches(clips, stack_factor):
        padded = {name: value.to(model.device) for name, value in pad_windows([frames for frames, _ in batch]).items()}
        counts = [-(-len(frames) // stack_factor) for frames, _ in batch]
        for scores, (_, transcript) in zip(slot_log_probabilities(model, **padded, counts=counts), batch):
            classes, begins = text.encode(transcript)
            left_out += not (classes and collected.add(scores, classes, begins))
        if collected.slots >= MAX_SLOTS:
            break
    if not collected.clips:
        raise TrainingError(
            f"No posteriors can be collected: CTC hears the transcript in none of {left_out} recordings. Align the "
            "projector first, and give transcripts of what is said."
        )
    facts = {"clips": collected.clips, "clips_left_out": left_out, "stack_factor": stack_factor}
    return collected.bank(token_ids, facts)


def collect_from_cache(
    model, cache: FeatureCache, clips: Sequence[tuple[str, str]], progress: bool = True
) -> PosteriorBank:
    """Collect a bank as [`collect_posteriors`] does, from (cache key, transcript) of clips, in an order that is drawn."""

    def of_one_window() -> Iterator[tuple[torch.Tensor, str]]:
        order = np.random.default_rng(0).permutation(len(clips)).tolist()
        for index in tqdm(order, desc="Collecting posteriors", unit="clip", disable=not progress):
            key, transcript = clips[index]
            frames, lengths = cache.load(key)
            if len(lengths) == 1:
                yield frames.float(), transcript

    return collect_posteriors(model, cache.processor.tokenizer, of_one_window())


# --------------------------------------------------------------------------------------------------------- as embeddings


@torch.no_grad()
def mix_embeddings(readout, embeddings: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """
    Audio tokens `(slots, hidden_size)` of sparse posteriors, as the readout makes them of whole ones.

    Args:
        readout: the projector's [`PieceReadout`].
        embeddings: the language model's, `(vocab_size, hidden_size)`.
        ids, weights: classes and posteriors, `(slots, classes)`; what they lack of 1 is spread over the lexicon.
    """
    _, pieces, _ = readout.table(embeddings)
    weights = weights.to(pieces)
    is_blank = ids == BLANK
    blank = weights.masked_fill(~is_blank, 0.0).sum(dim=1, keepdim=True)
    said = torch.nn.functional.embedding_bag(
        (ids - 1).clamp(min=0), pieces, mode="sum", per_sample_weights=weights.masked_fill(is_blank, 0.0)
    )
    rest = (1 - weights.sum(dim=1, keepdim=True)).clamp(min=0)
    return blank * readout.blank + said + rest * pieces.mean(dim=0)

"""
Posterior bank: the CTC posteriors of every word piece in real speech, kept to simulate speech from text.

With the readout "pieces", an audio token is a mixture of the language model's embeddings by CTC posteriors. Clips are
aligned to their transcripts by CTC Viterbi, and the slots of each word piece are kept: their number, doubts and confusions,
and the blanks between them. Drawing from them for the pieces of a text gives posteriors like those of speech that was never
recorded (TASU, arXiv:2511.03310 and arXiv:2604.08384, fit models to do this).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
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
from .feature_cache import FeatureCache

#: Beside the checkpoint that it was collected with.
BANK_FILE = "posterior_bank.safetensors"
FORMAT_VERSION = 1
#: Classes kept of each slot; what they leave of its probability counts as spread over the whole lexicon.
TOP_CLASSES = 8
#: Slots that a bank holds at most: 13 hours at 80 ms, 20 MB.
MAX_SLOTS = 600_000
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
    """Texts as CTC classes with word boundaries; `token_ids` are the pieces that can be said, ascending."""

    def __init__(self, tokenizer, token_ids: Sequence[int]):
        self.lexicon = SpokenLexicon(tokenizer, token_ids)
        self._classes = lru_cache(maxsize=None)(self.lexicon.encode)  # of a word

    def encode(self, text: str) -> tuple[list[int], list[bool]]:
        """Return the classes of a text in its spoken form, and which of them begin a word."""
        words = [self._classes(word) for word in spoken_form(text).split()]
        return [one for word in words for one in word], [index == 0 for word in words for index in range(len(word))]

    def unspeakable(self, text: str) -> list[str]:
        """Return words that the lexicon has no letter of, or not all: of a word with figures, whose reading is not known."""
        return [word for word in spoken_form(text).split() if not self._is_said(word)]

    def _is_said(self, word: str) -> bool:
        said = self.lexicon.decode(self._classes(word))
        return said == word if any(map(str.isdigit, word)) else bool(said)


def known_pieces(model) -> list[int]:
    """Return the ids of the word pieces in the lexicon of a model's readout, ascending."""
    return model.model.multi_modal_projector.readout.lexicon.bool().nonzero().flatten().tolist()


def elements(classes: Sequence[int], begins: Sequence[bool], num_pieces: int) -> np.ndarray:
    """
    Return the gaps and pieces of a text in turn, which are the states of its CTC alignment, `(4, 2 * pieces + 1)`.

    Rows are the kind of run, the class before, the own class and the class after; 0 is none.
    """
    gaps = [LEADING, *(BETWEEN if first else WITHIN for first in begins[1:]), TRAILING]
    padded = np.pad(np.asarray(classes, dtype=np.int64), 1)
    found = np.zeros((4, 2 * len(classes) + 1), dtype=np.int64)
    kind, previous, own, following = found
    kind[0::2], kind[1::2], own[1::2] = np.add(gaps, num_pieces), classes, classes
    previous[0::2], following[0::2] = padded[:-1], padded[1:]
    previous[1::2], following[1::2] = padded[:-2], padded[2:]
    return found


@dataclass
class PosteriorBank:
    """Runs of slots of every class and kind of gap; those of one kind lie together, correctly heard ones first."""

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
        self._pause = self._first_run[self.num_pieces + PAUSE]
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

    def expected_slots(self, classes: Sequence[int], begins: Sequence[bool]) -> float:
        """Return the audio tokens that a text takes on average."""
        return float(self.mean_lengths[elements(classes, begins, self.num_pieces)[0]].sum())

    def simulate(
        self, texts: Sequence[tuple[Sequence[int], Sequence[bool]]], errors: float, random: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """
        Draw posteriors of texts, which are as [`SpokenText.encode`] gives them.

        `errors` are misheard runs in proportion to those of the bank. Returns classes and posteriors `(slots, TOP_CLASSES)`
        of all texts one after the other, and the slots of each.
        """
        rows = [elements(classes, begins, self.num_pieces) for classes, begins in texts]
        kind, previous, self_class, following = np.concatenate(rows, axis=1)
        runs = self._draw(kind, self_class, errors, random)
        lengths = self.lengths[runs].astype(np.int64)
        apart = (self_class == 0) & (previous == following) & (previous != BLANK) & (lengths == 0)
        runs[apart] = self._pause
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
        return np.where(pool > 0, runs, self._pause)

    def save(self, file: str | Path) -> None:
        """Write the arrays as safetensors, and what is known of them as JSON beside it."""
        file = Path(file)
        file.parent.mkdir(parents=True, exist_ok=True)
        names = [each.name for each in fields(self) if each.name != "facts"]
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
            advice = f"expected {BANK_FILE} and its .json, as --stage align writes them"
            raise TrainingError(f"The posterior bank {file} cannot be read: {error}; {advice}.") from error

    def check_fits(self, model) -> None:
        """Raise TrainingError if it was collected with another lexicon or token rate than the model's."""
        lexicon, theirs, ours = known_pieces(model), self.facts.get("stack_factor"), model.config.stack_factor
        if self.token_ids.tolist() != lexicon or theirs != ours:
            found, expected = (
                f"{self.num_pieces} word pieces at a stack factor of {theirs}",
                f"its own {len(lexicon)} at {ours}",
            )
            raise TrainingError(f"The posterior bank knows {found}, this checkpoint {expected}. Collect it anew.")

    def describe(self) -> str:
        """Return a line that says what it holds."""
        seen, clips = int((self.counts[1 : self.num_pieces + 1] > 0).sum()), self.facts.get("clips", 0)
        pieces = f"{seen:,} of {self.num_pieces:,} word pieces, {self.misheard:.1%} of them misheard"
        return f"Posterior bank: {len(self.ids):,} audio tokens of {clips:,} clips, {pieces}."


class PosteriorCollector:
    """Collects runs of clips, in the order in which they are met."""

    def __init__(self, num_pieces: int):
        self.num_pieces = num_pieces
        #: Kind, whether it is heard correctly, classes and posteriors of each run.
        self.runs: list[tuple[int, bool, np.ndarray, np.ndarray]] = []
        self.clips = self.slots = 0

    def add(self, log_probabilities: torch.Tensor, classes: Sequence[int], begins: Sequence[bool]) -> bool:
        """Add the runs of one clip; return False where it does not say these classes."""
        states = viterbi_states(log_probabilities, classes)
        if states is None:
            return False
        top = log_probabilities.exp().topk(min(TOP_CLASSES, log_probabilities.shape[1]), dim=1)
        width = (0, 0), (0, TOP_CLASSES - top.indices.shape[1])
        weights, ids = (np.pad(each.cpu().numpy(), width) for each in (top.values, top.indices))
        kinds, previous, own, following = elements(classes, begins, self.num_pieces)
        coded = ids.astype(np.int32)
        for code, values in ((NEXT, following), (PREVIOUS, previous), (OWN, own)):
            coded[(ids == values[states, None]) & (ids != BLANK)] = self.num_pieces + code
        correct = self._are_correct(coded, weights, states, len(kinds))
        if correct[1::2].sum() < LEAST_HEARD * len(classes):
            return False
        ends = np.bincount(states, minlength=len(kinds)).cumsum()[:-1]
        parts = np.split(coded, ends), np.split(weights.astype(np.float16), ends)
        self.runs += zip(kinds.tolist(), correct.tolist(), *parts)
        self.clips += 1
        self.slots += len(states)
        return True

    def _are_correct(self, coded: np.ndarray, weights: np.ndarray, states: np.ndarray, num_runs: int) -> np.ndarray:
        """Return which runs are heard as their piece, once, or as nothing in a gap, wherever they are put."""
        # Where neighbours, or a confusion that is one, come together, they must not outweigh the first.
        relative = coded > self.num_pieces
        rivals = np.where(relative, weights, 0)[:, 1:].sum(axis=1)
        rivals += np.where(relative, 0, weights)[:, 1:].max(axis=1, initial=0)
        is_own, is_piece = coded[:, 0] == self.num_pieces + OWN, states % 2 == 1
        fits = (weights[:, 0] > rivals + np.finfo(np.float16).eps) & (is_own & is_piece | (coded[:, 0] == BLANK))
        begun = is_own & (~np.roll(is_own, 1) | (np.diff(states, prepend=-1) > 0))
        wrong, times_said = (np.bincount(states, weights=each, minlength=num_runs) for each in (~fits, begun))
        return (wrong == 0) & (times_said == np.arange(num_runs) % 2)

    def bank(self, token_ids: Sequence[int], facts: dict[str, Any]) -> PosteriorBank:
        """Return all runs in order of kind, correct ones first, and a pause."""
        num_kinds = 1 + self.num_pieces + NUM_GAP_KINDS
        pause = self.num_pieces + PAUSE, True, np.zeros((1, TOP_CLASSES), np.int32), np.eye(1, TOP_CLASSES)
        kinds, correct, ids, weights = zip(*sorted([*self.runs, pause], key=lambda run: (run[0], not run[1])))
        top = self.num_pieces + NEXT
        return PosteriorBank(
            token_ids=np.asarray(token_ids, dtype=np.int32),
            ids=np.concatenate(ids).astype(np.uint16 if top <= np.iinfo(np.uint16).max else np.int32),
            weights=np.concatenate(weights).astype(np.float16),
            lengths=np.array([len(each) for each in ids], dtype=np.uint16),
            counts=np.bincount(kinds, minlength=num_kinds),
            correct=np.bincount(kinds, weights=correct, minlength=num_kinds).astype(np.int64),
            facts=facts,
        )


@torch.no_grad()
def collect_posteriors(
    model, cache: FeatureCache, clips: Sequence[tuple[str, str]], progress: bool = True
) -> PosteriorBank:
    """Collect a bank from clips (cache key, transcript) of one window, until `MAX_SLOTS` audio tokens are read."""
    token_ids = known_pieces(model)
    text = SpokenText(cache.processor.tokenizer, token_ids)
    collected = PosteriorCollector(len(token_ids))
    left_out, stack_factor = 0, model.config.stack_factor
    order = np.random.default_rng(0).permutation(len(clips)).tolist()
    for index in tqdm(order, desc="Collecting posteriors", unit="clip", disable=not progress):
        key, transcript = clips[index]
        frames, lengths = (each.to(model.device) for each in cache.load(key))
        if len(lengths) > 1:
            continue
        classes, begins = text.encode(transcript)
        counts = [-(-len(frames) // stack_factor)]
        (scores,) = slot_log_probabilities(model, frames[None].float(), lengths, counts)
        left_out += not (classes and collected.add(scores, classes, begins))
        if collected.slots >= MAX_SLOTS:
            break
    if not collected.clips:
        raise TrainingError(f"No posteriors: CTC hears the transcript in none of {left_out} recordings. Align first.")
    facts = {"clips": collected.clips, "clips_left_out": left_out, "stack_factor": stack_factor}
    return collected.bank(token_ids, facts)


@torch.no_grad()
def mix_embeddings(readout, embeddings: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """
    Return the audio tokens `(slots, hidden_size)` of classes `ids` and their posteriors `weights`, `(slots, classes)`.

    Posteriors that lack something of 1 have it spread over the lexicon. `embeddings` are the language model's.
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

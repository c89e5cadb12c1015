"""Word by word, or character by character: what was said beside what was written, and which words are mistaken for which."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import jiwer

EQUAL, SUBSTITUTION, DELETION, INSERTION, GAP = "equal", "substitution", "deletion", "insertion", "gap"
#: Of right words in a row, so many are shown before and after what is left out; fewer than twice that are shown whole.
CONTEXT_WORDS = 5
#: Words of one alignment that are shown, without those left out as right.
MAX_WORDS_SHOWN = 400


@dataclass(frozen=True)
class Pair:
    """
    A word beside what became of it.

    Attributes:
        kind: of the five above.
        said: of the reference; empty for an insertion. Of a gap: how many right words are left out, in words.
        written: of the output; empty for a deletion and a gap.
    """

    kind: str
    said: str
    written: str


def aligned(reference: str, output: str, by_character: bool = False) -> list[Pair]:
    """
    jiwer's alignment of two normalised texts, one pair for each word, or for each run of like characters.

    Args:
        by_character: compare characters instead of words.
    """
    if not reference.strip():
        return [Pair(INSERTION, "", word) for word in output.split()]
    process = jiwer.process_characters if by_character else jiwer.process_words
    result: Any = process([reference], [output])
    said, written = result.references[0], result.hypotheses[0]
    pairs: list[Pair] = []
    for chunk in result.alignments[0]:
        own = said[chunk.ref_start_idx : chunk.ref_end_idx]
        other = written[chunk.hyp_start_idx : chunk.hyp_end_idx]
        kind = {"substitute": SUBSTITUTION, "delete": DELETION, "insert": INSERTION}.get(chunk.type, EQUAL)
        if by_character:
            pairs.append(Pair(kind, "".join(own), "".join(other)))
        else:
            pairs += [Pair(kind, one, two) for one, two in zip_longest(own, other, fillvalue="")]
    return pairs


def shortened(pairs: Sequence[Pair], limit: int = MAX_WORDS_SHOWN) -> list[Pair]:
    """An alignment without the middle of long stretches of right words, and no longer than `limit`; gaps say how much is gone."""
    shown: list[Pair] = []
    start = 0
    while start < len(pairs):
        end = start
        while end < len(pairs) and (pairs[end].kind == EQUAL) == (pairs[start].kind == EQUAL):
            end += 1
        run = list(pairs[start:end])
        if run[0].kind == EQUAL and len(run) > 2 * CONTEXT_WORDS + 1:
            left_out = len(run) - 2 * CONTEXT_WORDS
            gap = Pair(GAP, f"{left_out} right words", "")
            run = [*run[:CONTEXT_WORDS], gap, *run[-CONTEXT_WORDS:]]
        shown += run
        start = end
    if len(shown) > limit:
        shown = [*shown[:limit], Pair(GAP, f"{len(shown) - limit} more words", "")]
    return shown


def confusions(texts: Iterable[tuple[str, str]]) -> dict[str, Counter[tuple[str, str]]]:
    """
    How often which word became which: `(said, written)` by kind of mistake.

    Args:
        texts: reference and output of each item, normalised.
    """
    found: dict[str, Counter[tuple[str, str]]] = {kind: Counter() for kind in (SUBSTITUTION, DELETION, INSERTION)}
    for reference, output in texts:
        for pair in aligned(reference, output):
            if pair.kind in found:
                found[pair.kind][pair.said, pair.written] += 1
    return found


def as_json(pairs: Sequence[Pair]) -> list[Mapping[str, str]]:
    """Pairs for JSON and templates."""
    return [{"kind": pair.kind, "said": pair.said, "written": pair.written} for pair in pairs]


__all__ = [
    "DELETION",
    "EQUAL",
    "GAP",
    "INSERTION",
    "SUBSTITUTION",
    "Pair",
    "aligned",
    "as_json",
    "confusions",
    "shortened",
]

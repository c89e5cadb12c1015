"""Single mistakes of a system: its worst items aligned word by word, and which words it takes for which."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby, zip_longest
from typing import Any

import jiwer

Row = Mapping[str, Any]
#: Measures of substitutions, deletions and insertions: what those fields begin with, and the field of the length.
SPELLED = {"word_error": ("", "words"), "character_error": ("character_", "characters")}
#: Measures whose items are worse the lower their `score` is.
SCORED_LOWER_IS_WORSE = ("bleu", "rouge1", "judge_score")
EQUAL, SUBSTITUTION, DELETION, INSERTION, GAP = "equal", "substitution", "deletion", "insertion", "gap"
#: Of right words in a row, so many are shown before and after what is left out.
CONTEXT_WORDS = 5
MAX_WORDS_SHOWN, MAX_CHARACTERS_SHOWN = 400, 600
#: Mistakes of each kind that are shown, the most frequent ones.
CONFUSIONS_SHOWN = 10
#: A word beside what became of it: `kind`; `said`, of the reference, empty for an insertion, and of a gap how much is
#: left out; `written`, of the output, empty for a deletion and a gap.
Pair = dict[str, str]


def _pair(kind: str, said: str = "", written: str = "") -> Pair:
    return {"kind": kind, "said": said, "written": written}


def aligned(reference: str, output: str, by_character: bool = False) -> list[Pair]:
    """Return jiwer's alignment of two normalised texts, a pair for each word, or for each run of like characters."""
    process = jiwer.process_characters if by_character else jiwer.process_words
    result: Any = process([reference], [output])
    pairs: list[Pair] = []
    for chunk in result.alignments[0]:
        said = result.references[0][chunk.ref_start_idx : chunk.ref_end_idx]
        written = result.hypotheses[0][chunk.hyp_start_idx : chunk.hyp_end_idx]
        kind = {"substitute": SUBSTITUTION, "delete": DELETION, "insert": INSERTION}.get(chunk.type, EQUAL)
        if by_character:
            pairs.append(_pair(kind, "".join(said), "".join(written)))
        else:
            pairs += [_pair(kind, one, two) for one, two in zip_longest(said, written, fillvalue="")]
    return pairs


def shortened(pairs: Sequence[Pair], limit: int = MAX_WORDS_SHOWN) -> list[Pair]:
    """Return an alignment without the middle of long stretches of right words, and no longer than `limit`."""
    shown: list[Pair] = []
    for is_right, stretch in groupby(pairs, key=lambda pair: pair["kind"] == EQUAL):
        words = list(stretch)
        left_out = len(words) - 2 * CONTEXT_WORDS
        if is_right and left_out > 1:
            words = [*words[:CONTEXT_WORDS], _pair(GAP, f"{left_out} right words"), *words[-CONTEXT_WORDS:]]
        shown += words
    if len(shown) > limit:
        shown = [*shown[:limit], _pair(GAP, f"{len(shown) - limit} more words")]
    return shown


def confusions(rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    """Return counts of the words that became others, by kind of mistake, the most frequent first."""
    wrong = [row for row in rows if row.get("errors")]
    pairs = [pair for row in wrong for pair in aligned(row["normalised_reference"], row["normalised_output"])]
    found = {}
    for kind in (SUBSTITUTION, DELETION, INSERTION):
        counts = Counter((pair["said"], pair["written"]) for pair in pairs if pair["kind"] == kind)
        frequent = sorted(counts.items(), key=lambda each: (-each[1], each[0]))[:CONFUSIONS_SHOWN]
        found[kind] = [{"said": said, "written": written, "count": count} for (said, written), count in frequent]
    return found


def worst_rows(rows: Sequence[Row], metric: str, count: int) -> tuple[str, list[Row]]:
    """Return the items that cost a figure most, worst first, none that are right; and by what they are chosen."""
    told, wrong = "", []
    if metric in SPELLED:
        prefix, length = SPELLED[metric]
        told, errors = f"most wrong {length} first", prefix + "errors"
        wrong = [row for row in rows if row.get(errors)]
        wrong.sort(key=lambda row: (-row[errors], -row[errors] / row[length]))
    elif metric == "choice_accuracy":
        told = "wrong or unreadable choices, in the order of the questions"
        wrong = [row for row in rows if row.get("right") is False]
    elif metric == "no_speech_rate":
        told = "longest answers to recordings without speech first"
        wrong = sorted((row for row in rows if row.get("heard_speech")), key=lambda row: -len(row["output"]))
    elif metric in SCORED_LOWER_IS_WORSE:
        told = "lowest scores first"
        wrong = sorted((row for row in rows if row.get("score") is not None), key=lambda row: row["score"])
    return told, wrong[:count]


def example(row: Row, metric: str, others: Mapping[str, Row], question: str | None) -> dict[str, Any]:
    """Return one item for a report, beside the rows of the other systems, with its question in words, if any."""
    shown: dict[str, Any] = {
        "id": row["id"],
        "duration_s": row.get("duration_s") or None,
        "question": question and cut(question),
        "reference": cut(row.get("reference")),
        "output": cut(row.get("output")),
        "finish": row.get("finish"),
        "others": {system: cut(other.get("output")) for system, other in others.items()},
        "score": row.get("score") if metric in SCORED_LOWER_IS_WORSE else None,
        "chosen": row.get("chosen"),
    }
    if metric in SPELLED:
        prefix, length = SPELLED[metric]
        shown["errors"] = {"count": row[prefix + "errors"], "of": row[length], "unit": length}
        pairs = aligned(row["normalised_reference"], row["normalised_output"], metric == "character_error")
        shown["alignment"] = shortened(pairs)
    return shown


def cut(text: str | None) -> str:
    """Return a text, or its beginning and how much more there is."""
    more = len(text or "") - MAX_CHARACTERS_SHOWN
    return f"{str(text)[:MAX_CHARACTERS_SHOWN]} … ({more:,} more characters)" if more > 0 else text or ""

"""
Measure what context words do: names found, names that were not said, and word error, without a list, with the right one
(the names of all clips), and with one of names that nobody says.

    python shipped_adapter/recipe/amazon_queen.py flight-of-the-amazon-queen_1.0.0-9_all.deb --output_dir data/amazon_queen
    python benchmarks/context_words.py data/amazon_queen/new_roles.json
"""

import random
import re
from pathlib import Path
from typing import Any

import audiollm
from audiollm.corpora.normalisers import normalize_english
from audiollm.evaluation.word_error import score_word_error
from common import Clip, parser_of, read_clips, write_result

SEED = 5
SENTENCE_ENDS, WORD = re.compile(r'[.!?:;"]+|--'), re.compile(r"[A-Za-z][A-Za-z'-]*")
NO_NAMES = {"i", "i'm", "i'll", "i've", "i'd"}
#: Names that no clip says.
WRONG = (
    "Kowalski, Zanzibar, Philharmonic, Beatrix, Copenhagen, Mercutio, Tupperware, Ottawa, Guinevere, Bratislava, Cadillac, "
    "Sokolov, Yokohama, Penelope, Barbarossa, Lufthansa, Hawthorne, Querétaro, Montgomery, Wolfgang"
)


def names_of(text: str) -> list[str]:
    """Return the words that are capitalised within a sentence."""
    words = [word for sentence in SENTENCE_ENDS.split(text) for word in WORD.findall(sentence)[1:]]
    return [word for word in words if word[0].isupper() and word.lower() not in NO_NAMES and not word.isupper()]


def has(text: str, name: str) -> bool:
    """Return True if a text has all words of a name, both normalised."""
    return set(normalize_english(name).split()) <= set(normalize_english(text).split())


def measure(model: Any, clips: list[Clip], context: list[str] | str, listed: list[str]) -> dict[str, Any]:
    """Return the metrics of one list."""
    options: dict[str, Any] = {"context": context} if context else {}
    texts = [one.text for one in model.transcribe([clip.audio for clip in clips], progress=True, **options)]
    found = [has(text, name) for clip, text in zip(clips, texts) for name in names_of(clip.text)]
    wrong = [has(text, name) and not has(clip.text, name) for clip, text in zip(clips, texts) for name in listed]
    return {
        "word_error": score_word_error([clip.text for clip in clips], texts).word_error,
        "names_said": len(found),
        "names_found": sum(found),
        "names_not_said": sum(wrong),
    }


def main() -> None:
    """Measure, print and write the result."""
    parser = parser_of("context_words", __doc__)
    parser.add_argument("data", type=Path, help="rows of audio_paths and response, as the recipe writes them")
    parser.add_argument("--clips", type=int, default=100, help="with names, drawn once; default: %(default)s")
    options = parser.parse_args()
    clips = [clip for clip in read_clips(options.data) if names_of(clip.text)]
    random.Random(SEED).shuffle(clips)
    clips = clips[: options.clips]
    right = sorted({name for clip in clips for name in names_of(clip.text)})
    wrong = WRONG.split(", ")
    model = audiollm.load(options.model)
    result: dict[str, Any] = {"clips": len(clips), "right_list": right, "wrong_list": wrong}
    for name, context, listed in (("no list", "", right), ("right list", right, right), ("wrong list", wrong, wrong)):
        result[name] = measure(model, clips, context, listed)
        print(name, result[name], flush=True)
    write_result(options.output, result)


if __name__ == "__main__":
    main()

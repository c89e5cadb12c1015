"""
Write the example sentences of WordNet, one a line, as texts to synthesise and to read, or its definitions: 3 to 16 words.

    apt-get install wordnet-base
    python shipped_adapter/recipe/sentences.py data/sentences.txt
    python shipped_adapter/recipe/sentences.py data/definitions.txt --definitions

WordNet 3.0 may be used, copied and distributed for any purpose without fee (https://wordnet.princeton.edu/license).
"""

import argparse
import random
import re
from pathlib import Path

INSTALLED = Path("/usr/share/wordnet")
FILES = ("data.noun", "data.verb", "data.adj", "data.adv")
#: Lines of the licence, at the top of each file, begin so.
COMMENT = "  "
QUOTED = re.compile(r'"([^"]+)"')
#: A word's definition, which comes before its examples.
DEFINED = re.compile(r"^\s*(?:\([^)]*\))?\s*([^\";(]+)")
READABLE = re.compile(r"[A-Za-z ,.'!?;:-]+")
WORDS = (3, 16)


def sentences(folder: Path, pattern: re.Pattern = QUOTED) -> list[str]:
    """
    Return the distinct texts of a WordNet that match a pattern, in alphabetical order, with a capital and a mark at the end.

    Raises:
        FileNotFoundError: a file of it is missing.
    """
    found = set()
    for name in FILES:
        for line in (folder / name).read_text(encoding="latin-1").splitlines():
            if line.startswith(COMMENT):
                continue
            for quoted in pattern.findall(line.partition("|")[2]):
                text = quoted.strip(" ;,")
                if WORDS[0] <= len(text.split()) <= WORDS[1] and READABLE.fullmatch(text):
                    found.add(text[0].upper() + text[1:] + ("" if text[-1] in ".!?" else "."))
    return sorted(found)


def main() -> None:
    """Write the texts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="text file, one sentence a line, in an order drawn once")
    parser.add_argument("--wordnet", type=Path, default=INSTALLED, help="default: %(default)s")
    parser.add_argument("--definitions", action="store_true", help="of words, instead of sentences")
    options = parser.parse_args()
    if not (options.wordnet / FILES[0]).is_file():
        parser.error(f"There is no {options.wordnet / FILES[0]}. Install it with: apt-get install wordnet-base")
    texts = sentences(options.wordnet, DEFINED if options.definitions else QUOTED)
    random.Random(0).shuffle(texts)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text("\n".join(texts) + "\n", encoding="utf-8")
    print(f"{len(texts)} texts in {options.output}")


if __name__ == "__main__":
    main()

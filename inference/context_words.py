"""
Context words: names and terms that may be said, which CTC's search and n-best rescoring favour where they are heard.

Shallow fusion with a trie of their word pieces (Zhao et al. 2019, Interspeech): each piece on the way through a word raises a
text's score, and a word that is not completed loses what it was given.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .spoken_pieces import SpokenLexicon, spoken_form

#: Larger lists favour everything.
MAX_CONTEXT_BYTES = 1_000_000
#: Bonus of each piece of a context word to a text's score, in nats: in CTC's search, and in rescoring, where the language model
#: finds names unlikely. Chosen on clips of speakers whom the shipped adapter had never heard.
SEARCH_BONUS, RESCORING_BONUS = 3.0, 6.0
SEPARATORS = re.compile(r"[,;\n]")
TEXT_SUFFIX = ".txt"
#: Marks by which tokenizers begin a word.
WORD_MARKS = ("\u0120", "\u2581", " ")

#: Node of the trie that a text has come to, and pieces of the context words that it has completed.
State = tuple[int, int]
START: State = (0, 0)


def read_context(given: str | Sequence[str]) -> tuple[str, ...]:
    """
    Return the words and phrases of a list, of a text, or of a text file: between commas, semicolons or lines.

    Raises:
        ValueError: there is no word, or too much text; or the file is not there, or cannot be read.
    """
    if isinstance(given, str):
        path = os.path.expanduser(given)
        is_file = os.path.isfile(path)  # False for what cannot be a path, such as a long list
        if not is_file and given.endswith(TEXT_SUFFIX) and not SEPARATORS.search(given):
            raise ValueError(f"The context {given} is not there. Give a text file, or words between commas.")
        text = _file_text(Path(path)) if is_file else given
    else:
        text = "\n".join(given)
    if len(text.encode()) > MAX_CONTEXT_BYTES:
        raise ValueError(f"The context has {len(text.encode()):,} bytes; expected at most {MAX_CONTEXT_BYTES:,}.")
    words = [" ".join(word.split()) for word in SEPARATORS.split(text)]
    words = list(dict.fromkeys(word for word in words if spoken_form(word)))
    if not words:
        raise ValueError("The context has no word; give words and phrases between commas, or a text file of them.")
    return tuple(words)


def _file_text(path: Path) -> str:
    try:
        size = path.stat().st_size
        if size > MAX_CONTEXT_BYTES:
            raise ValueError(f"The context {path} has {size:,} bytes; expected at most {MAX_CONTEXT_BYTES:,}.")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"The context {path} cannot be read as text in UTF-8: {error}.") from error


class ContextTrie:
    """
    Context words as a trie of classes.

    Args:
        lexicon: of the model's readout.
        words: words and phrases, as they should be written.
    """

    def __init__(self, lexicon: SpokenLexicon, words: Sequence[str]):
        pieces = lexicon.tokenizer.convert_ids_to_tokens(lexicon.token_ids)
        self._begins = np.array([False, *(piece.startswith(WORD_MARKS) for piece in pieces)])
        #: Of each class, whether a context word has it.
        self.has_class = np.zeros(len(self._begins), dtype=bool)
        self._children: dict[tuple[int, int], int] = {}
        self._depths = [0]
        self._ends: set[int] = set()
        self._written = {spoken_form(word): word for word in words}
        longest_first = sorted(self._written, key=len, reverse=True)
        self._pattern = re.compile(rf"\b(?:{'|'.join(map(re.escape, longest_first))})\b")
        for word in words:
            node = 0
            for piece in lexicon.encode(word):
                if (node, piece) not in self._children:
                    self._children[node, piece] = len(self._depths)
                    self._depths.append(self._depths[node] + 1)
                node = self._children[node, piece]
                self.has_class[piece] = True
            self._ends.add(node)
        self._ends.discard(0)

    def step(self, state: State, piece: int) -> State:
        """Return the state of a text with one piece more."""
        node, completed = state
        following = self._children.get((node, piece), 0)
        if not following and self._begins[piece]:
            completed += self._completed(node)
            following = self._children.get((0, piece), 0)
        return following, completed

    def followed(self, state: State) -> int:
        """Return the pieces that count for a text that goes on: completed words, and the beginning of another."""
        return state[1] + self._depths[state[0]]

    def counted(self, classes: Sequence[int]) -> int:
        """Return the pieces that count for a whole text: those of completed words."""
        state = START
        for piece in classes:
            state = self.step(state, piece)
        return self.at_end(state)

    def at_end(self, state: State) -> int:
        """Return the pieces that count for a text that ends here."""
        return state[1] + self._completed(state[0])

    def spelled(self, text: str) -> str:
        """Return a text in lower case with the context words as they are written."""
        return self._pattern.sub(lambda found: self._written[found[0]], text)

    def _completed(self, node: int) -> int:
        return self._depths[node] if node in self._ends else 0

"""Transcripts as what CTC hears: the language model's own word pieces of lower-case words, without punctuation."""

import unicodedata
from collections.abc import Iterable, Sequence

#: CTC's class of a slot that says nothing; a lexicon's pieces follow it by id.
BLANK = 0
DIGIT_WORDS = dict(zip("0123456789", ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]))


def spoken_form(text: str) -> str:
    """
    Return a transcript as CTC should hear it: lower case, no punctuation, single digits as English words.

    Numbers of more digits stay as they are: how they are read is not to be seen from them. Vowel signs and other marks of a
    letter belong to it, in any script.
    """
    composed = unicodedata.normalize("NFC", text.lower()).replace("\u2019", "'")
    kept = "".join(one if _is_of_a_word(one) else " " for one in composed)
    return " ".join(DIGIT_WORDS.get(word, word) for word in kept.split())


def _is_of_a_word(character: str) -> bool:
    return character.isalnum() or character == "'" or unicodedata.category(character).startswith("M")


def piece_ids(tokenizer, text: str) -> list[int]:
    """Ids of a text's pieces: every word with its leading space, also the first, so that it is one thing anywhere."""
    return tokenizer("".join(f" {word}" for word in text.split()), add_special_tokens=False)["input_ids"]


class SpokenLetters:
    """
    Texts as classes of a readout of letters.

    Args:
        letters: of the readout, `projector_letters`: classes 2, 3, ... after the space.

    Attributes:
        by_class: the letter of each class; that of the blank is empty.
    """

    def __init__(self, letters: str):
        self.by_class = ("", " ", *letters)
        self._class = {letter: index for index, letter in enumerate(self.by_class) if index != BLANK}

    def encode(self, text: str) -> list[int]:
        """Return the classes of a text in its spoken form; letters that the readout does not have are left out."""
        return [self._class[letter] for letter in spoken_form(text) if letter in self._class]

    def covers(self, text: str) -> bool:
        """Return whether the readout has all letters of a text in its spoken form."""
        return set(spoken_form(text)) <= self._class.keys()


class SpokenLexicon:
    """
    Texts as classes of a readout of pieces, and back.

    Args:
        tokenizer: the language model's.
        token_ids: ids of the pieces that can be said, ascending: classes 1, 2, ...
    """

    def __init__(self, tokenizer, token_ids: Iterable[int]):
        self.tokenizer = tokenizer
        self.token_ids = list(token_ids)
        self._class = {token_id: index + 1 for index, token_id in enumerate(self.token_ids)}
        pieces = tokenizer.convert_ids_to_tokens([one for one in self.token_ids if one < len(tokenizer)])
        self._class_of_piece = {piece: index + 1 for index, piece in enumerate(pieces) if piece}
        self._longest = max(map(len, self._class_of_piece), default=0)

    def encode(self, text: str) -> list[int]:
        """
        Classes of a text in its spoken form.

        A word with a piece that cannot be said is spelled in other pieces, the fewest; letters that none has are left
        out, as if they were not said.
        """
        classes: list[int] = []
        for word in spoken_form(text).split():
            ids = piece_ids(self.tokenizer, word)
            known = [self._class[one] for one in ids if one in self._class]
            classes += known if len(known) == len(ids) else self._spell(ids)
        return classes

    def decode(self, classes: Sequence[int]) -> str:
        """Text of classes without blanks."""
        return self.tokenizer.decode([self.token_ids[index - 1] for index in classes]).strip()

    def _spell(self, ids: Sequence[int]) -> list[int]:
        """A word's letters, as the tokenizer writes them, in pieces of the lexicon: fewest letters left out, then fewest pieces."""
        letters = "".join(self.tokenizer.convert_ids_to_tokens(ids))
        best: list[tuple[int, int, list[int]]] = [(0, 0, [])]  # of the first n letters: left out, pieces, classes
        for end in range(1, len(letters) + 1):
            left_out, count, classes = best[end - 1]
            ways = [(left_out + 1, count, classes)]
            for start in range(max(0, end - self._longest), end):
                known = self._class_of_piece.get(letters[start:end])
                if known is not None:
                    left_out, count, classes = best[start]
                    ways.append((left_out, count + 1, [*classes, known]))
            best.append(min(ways, key=lambda way: way[:2]))
        return best[-1][2]

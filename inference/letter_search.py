"""Search for known words in CTC's letters: texts that the readout of pieces may have missed."""

import math
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

import torch

from .spoken_pieces import BLANK, SpokenLetters, spoken_form

#: Texts that are followed at once, and the least log-probability of a letter that one may go on with.
NUM_FOLLOWED, LEAST_LOGPROB = 64, -9.0
#: Weight of a word's frequency beside the letters, and what each word adds, without which few and long ones would win.
WORD_WEIGHT, WORD_BONUS = 1.0, 2.0
#: A word's probability falls with its rank (Zipf and Mandelbrot), less so at the top; expected words count as this one.
RANK_OFFSET, EXPECTED_RANK = 50, 1000
NEVER = -math.inf


class WordTrie:
    """
    Words by their letters.

    Args:
        letters: the classes of the readout of letters.
        words: the most frequent first. Those with other letters are left out.
        expected: words that count as frequent ones, known or not.
    """

    def __init__(self, letters: SpokenLetters, words: Iterable[str], expected: Iterable[str] = ()):
        self.letters = letters
        #: Node behind a node (0 is the root) and a letter.
        self.children: dict[tuple[int, str], int] = {}
        #: Bonus of the word that ends at a node to a text; minus infinity where none does.
        self.word = [NEVER]
        #: The most that any word through a node adds.
        self.begun = [0.0]
        for rank, word in enumerate(words):
            self._add(word, rank)
        for word in expected:
            self._add(word, EXPECTED_RANK)

    def _add(self, word: str, rank: int) -> None:
        if not self.letters.covers(word):
            return
        worth, node = WORD_BONUS - WORD_WEIGHT * math.log(RANK_OFFSET + rank), 0
        for letter in word:
            following = self.children.setdefault((node, letter), len(self.word))
            if following == len(self.word):
                self.word.append(NEVER)
                self.begun.append(NEVER)
            node = following
            self.begun[node] = max(self.begun[node], worth)
        self.word[node] = max(self.word[node], worth)

    def search(
        self, log_probabilities: torch.Tensor, num_best: int, num_followed: int = NUM_FOLLOWED, beginning: str = ""
    ) -> list[str]:
        """
        Return the likeliest texts of the words, by a prefix beam search (Hannun et al. 2014, arXiv:1408.2873).

        Args:
            log_probabilities: of the letters, `(slots, 2 + letters)`, the blank and the space first.
            num_best: how many to return at most.
            num_followed: texts that are followed at once.
            beginning: words that every text begins with, known or not.
        """
        begins = f"{beginning} " if beginning else ""
        # Of each text: its log-probability with a blank at the end and without one, its node, and what its words add.
        followed: list[tuple[str, tuple[float, float, int, float]]] = [("", (0.0, NEVER, 0, 0.0))]
        for slot in log_probabilities.detach().cpu().double().tolist():
            heard = [each for each in zip(self.letters.by_class, slot) if each[0] and each[1] > LEAST_LOGPROB]
            grown: dict[str, tuple[float, float, int, float]] = {}
            for text, (ends_blank, ends_letter, node, words) in followed:
                total = _log_add(ends_blank, ends_letter)
                _grow(grown, text, total + slot[BLANK], NEVER, node, words)
                for letter, logprob in heard:
                    before = total
                    if text.endswith(letter):  # it is another one only after a blank
                        _grow(grown, text, NEVER, ends_letter + logprob, node, words)
                        before = ends_blank
                    if len(text) < len(begins):
                        following, worth = (0, 0.0) if begins.startswith(text + letter) else (-1, 0.0)
                    elif letter == " ":
                        following, worth = 0, self.word[node]
                    else:
                        following, worth = self.children.get((node, letter), -1), 0.0
                    if before > NEVER and worth > NEVER and following >= 0:
                        _grow(grown, text + letter, NEVER, before + logprob, following, words + worth)
            followed = sorted(grown.items(), key=self._rank, reverse=True)[:num_followed]
        found: dict[str, float] = {}
        for text, (ends_blank, ends_letter, node, words) in followed:
            score = _log_add(ends_blank, ends_letter) + words + (self.word[node] if node else 0.0)
            found[text.strip()] = max(score, found.get(text.strip(), NEVER))
        best = sorted(found, key=found.__getitem__, reverse=True)
        return [text for text in best if found[text] > NEVER and f"{text} ".startswith(begins)][:num_best]

    def _rank(self, item: tuple[str, tuple[float, float, int, float]]) -> float:
        """Return what a text is followed for: its letters, its words, and the likeliest word that it may be in the midst of."""
        _, (ends_blank, ends_letter, node, words) = item
        return _log_add(ends_blank, ends_letter) + words + self.begun[node]


def add_words(model, texts: Iterable[str]) -> None:
    """
    Let a model's letters be searched for the words of texts, after those that it knows, the most frequent first.

    Words with letters that it does not read are left out; a model without a readout of letters stays as it is.
    """
    readout = model.model.multi_modal_projector.letters
    if readout is None:
        return
    letters = SpokenLetters(model.config.projector_letters)
    counts = Counter(word for text in texts for word in spoken_form(text).split())
    known = readout.known_words()
    new = [word for word, _ in counts.most_common() if letters.covers(word)]
    readout.set_words(dict.fromkeys([*known, *new]), model.config)


@lru_cache(maxsize=4)
def word_trie(letters: str, words: tuple[str, ...], expected: tuple[str, ...] = ()) -> WordTrie:
    """Return the trie of some words, made once."""
    return WordTrie(SpokenLetters(letters), words, expected)


def _grow(grown, text: str, ends_blank: float, ends_letter: float, node: int, words: float) -> None:
    """Add two probabilities to a text's."""
    blank, letter, _, _ = grown.get(text, (NEVER, NEVER, node, words))
    grown[text] = (_log_add(blank, ends_blank), _log_add(letter, ends_letter), node, words)


def _log_add(first: float, second: float) -> float:
    """Return the logarithm of the sum of two numbers' exponentials."""
    if first < second:
        first, second = second, first
    return first if second == NEVER else first + math.log1p(math.exp(second - first))

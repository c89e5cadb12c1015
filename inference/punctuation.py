"""
Punctuation and capitals of transcripts that CTC heard, which have none: those that the language model finds likeliest.

The language model writes the transcript once more, by beam search, and may choose nothing but marks and capitals. It hears no
audio then.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

#: Marks that may follow a word, and those that end a sentence.
MARKS, END_MARKS = (",", ".", "?", "!"), (".", "?", "!")
#: Ways of writing that are followed at a time.
NUM_BEAMS = 2
#: Nats by which a mark must be likelier than none: without, one behind every word makes any odd text likelier.
MARK_COST = 6.0
#: The same where a phrase ends: in a pause.
PAUSE_COST = 2.0
#: Nats by which a capital must be likelier than none, but at a beginning.
CAPITAL_COST = 1.0
#: Words between two marks.
LEAST_WORDS = 2


class _Place(NamedTuple):
    """
    A place in a text that is being written.

    Attributes:
        word: the word that is written next, or now.
        tokens: those of it that have been written.
        forms: the ways in which it may still be written.
        mark: that stands before it.
        since: words since the last mark, as far as it matters.
        written: the way in which the word before was written, right behind it.
    """

    word: int
    tokens: tuple[int, ...] = ()
    forms: tuple[str, ...] = ()
    mark: str = ""
    since: int = LEAST_WORDS
    written: str = ""


class _Text:
    """
    The ways of writing the phrases of a window: those that have marks as they are, and others with any.

    Args:
        marks: by token.
        end_id: token that ends an answer.
        names: words that keep their capitals.
    """

    def __init__(self, tokenizer, phrases: Sequence[str], marks: dict[int, str], end_id: int, names: Collection[str]):
        self._tokenizer, self._marks, self._end_id = tokenizer, marks, end_id
        self._pauses: set[int] = set()
        self._forms: list[tuple[str, ...]] = []
        self._is_free: list[bool] = []
        for phrase in phrases:
            is_free = _lacks_marks(phrase)
            for number, word in enumerate(phrase.split()):
                self._forms.append(_forms(word, number == 0) if is_free and word not in names else (word,))
                self._is_free.append(is_free)
            self._pauses.add(len(self._forms))
        self._known: dict[_Place, dict[int, _Place]] = {}

    @property
    def most_tokens(self) -> int:
        """Tokens that the text may take."""
        return sum(2 + max(len(self._ids(form, True)) for form in forms) for forms in self._forms)

    def ways(self, place: _Place) -> dict[int, _Place]:
        """Return the tokens that may come next, and where each leads."""
        if place not in self._known:
            self._known[place] = self._ways(place)
        return self._known[place]

    def read(self, token_ids: Sequence[int]) -> list[str] | None:
        """Return the words of a text that is written; None where it is not whole."""
        place, words = _Place(0), []
        for token_id in token_ids:
            if token_id not in self.ways(place):
                break
            place = self.ways(place)[token_id]
            if place.written:
                words.append(place.written)
            elif place.mark:
                words[-1] += place.mark
        return words if len(words) == len(self._forms) else None

    def costs(self, place: _Place) -> dict[int, float]:
        """Return the tokens that may come next, and the nats by which each must be likelier than others."""
        ways = self.ways(place)
        costs = dict.fromkeys(ways, 0.0)
        for token_id, after in ways.items():
            if after.mark and not place.tokens:
                costs[token_id] = PAUSE_COST if place.word in self._pauses else MARK_COST
            elif len(ways) > 1 and "".join((after.written, *after.forms))[:1].isupper():
                costs[token_id] = CAPITAL_COST
        return costs

    def _ways(self, place: _Place) -> dict[int, _Place]:
        number, forms = place.word, place.forms
        if number > len(self._forms):
            return {}
        is_end = number == len(self._forms)
        ways: dict[int, _Place] = {}
        if not place.tokens:
            if number and self._is_free[number - 1] and not place.mark and (is_end or place.since >= LEAST_WORDS):
                fitting = ((one, mark) for one, mark in self._marks.items() if mark in END_MARKS or not is_end)
                ways = {one: _Place(number, mark=mark, since=0) for one, mark in fitting}
            if is_end:
                return ways | {self._end_id: _Place(number + 1)}
            forms = self._forms[number]
            if self._is_free[number] and self._begins_sentence(place):
                forms = forms[-1:]
        for form in forms:
            ids = self._ids(form, number > 0)
            tokens = tuple(ids[: len(place.tokens) + 1])
            before = ways.get(tokens[-1])
            if len(tokens) == len(ids):
                ways[tokens[-1]] = _Place(number + 1, since=min(place.since + 1, LEAST_WORDS), written=form)
            elif tokens[:-1] == place.tokens:
                known = before.forms if before else ()
                ways[tokens[-1]] = _Place(number, tokens, (*known, form), since=place.since)
        return ways

    def _begins_sentence(self, place: _Place) -> bool:
        if not place.word or place.mark in END_MARKS:
            return True
        return not self._is_free[place.word - 1] and self._forms[place.word - 1][0][-1] in END_MARKS

    def _ids(self, form: str, has_space: bool) -> list[int]:
        return self._tokenizer(f" {form}" if has_space else form, add_special_tokens=False)["input_ids"]


class _OnlyMarks(LogitsProcessor):
    """Lets each beam go on with what its text allows alone."""

    def __init__(self, texts: Sequence[_Text], num_read: int):
        self._texts, self._num_read = texts, num_read
        self._places: list[dict[tuple[int, ...], _Place]] = [{(): _Place(0)} for _ in texts]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores `(rows * beams, vocab_size)` with all others at minus infinity."""
        written = [tuple(ids[self._num_read :]) for ids in input_ids.tolist()]
        beams = len(written) // len(self._texts)
        allowed: list[tuple[int, int, float]] = []
        for number, ids in enumerate(written):
            text, places = self._texts[number // beams], self._places[number // beams]
            if ids not in places:
                before = places.get(ids[:-1])
                ways = {} if before is None else text.ways(before)
                if ids[-1] not in ways:  # a beam that has ended, or holds nothing yet
                    continue
                places[ids] = ways[ids[-1]]
            allowed += [(number, token_id, cost) for token_id, cost in text.costs(places[ids]).items()]
        masked = torch.full_like(scores, -torch.inf)
        if allowed:
            rows, tokens, costs = (torch.tensor(column, device=scores.device) for column in zip(*allowed))
            masked[rows, tokens] = scores[rows, tokens] - costs.to(scores.dtype)
        return masked


@torch.inference_mode()
def punctuated(
    model,
    tokenizer,
    beginning: Sequence[int],
    windows: Sequence[Sequence[str]],
    end_id: int,
    names: Collection[str] = (),
    stop: StoppingCriteria | None = None,
) -> list[list[str]]:
    """
    Return the phrases of windows with punctuation and capitals; those that end with a mark stay as they are.

    Args:
        beginning: tokens that the language model reads first, at least one.
        windows: phrases of each, in order.
        end_id: token that ends an answer.
        names: words that keep their capitals.
        stop: ends the writing early, from outside; phrases of unfinished windows stay as they are.
    """
    rows = [number for number, phrases in enumerate(windows) if any(map(_lacks_marks, phrases))]
    phrases = [list(each) for each in windows]
    if not rows:
        return phrases
    encoded = ((mark, tokenizer(mark, add_special_tokens=False)["input_ids"]) for mark in MARKS)
    marks = {ids[0]: mark for mark, ids in encoded if len(ids) == 1}
    texts = [_Text(tokenizer, windows[row], marks, end_id, names) for row in rows]
    asked = torch.tensor([list(beginning)] * len(rows), device=model.device)
    written = model.generate(
        input_ids=asked,
        attention_mask=torch.ones_like(asked),
        max_new_tokens=max(text.most_tokens for text in texts) + 1,
        do_sample=False,
        num_beams=NUM_BEAMS,
        length_penalty=0.0,
        logits_processor=LogitsProcessorList([_OnlyMarks(texts, len(beginning))]),
        stopping_criteria=StoppingCriteriaList([] if stop is None else [stop]),
        eos_token_id=end_id,
        pad_token_id=end_id,
    )
    for row, text, ids in zip(rows, texts, written[:, len(beginning) :].tolist()):
        words = text.read(ids)
        if words is not None:
            left = iter(words)
            phrases[row] = [" ".join(next(left) for _ in phrase.split()) for phrase in windows[row]]
    return phrases


def _lacks_marks(phrase: str) -> bool:
    return bool(phrase) and (phrase[-1].isalnum() or phrase[-1] == "'")


def _forms(word: str, is_first: bool) -> tuple[str, ...]:
    """Return how a word may be written, with a capital last. The first one of a phrase has a capital that says nothing."""
    if is_first:
        word = word[:1].lower() + word[1:]
    return tuple(dict.fromkeys([word, word[:1].upper() + word[1:]]))

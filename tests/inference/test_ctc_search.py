"""CTC's prefix beam search and likelihoods against every alignment there is; texts as classes and back."""

import itertools
import math

import pytest
import torch
from audiollm.inference.ctc_search import ctc_log_likelihoods, prefix_beam_search
from audiollm.inference.spoken_pieces import SpokenLexicon
from tiny_models import character_tokenizer

SLOTS, CLASSES = 5, 4
EVERYTHING = {"num_prefixes": 10_000, "num_pieces": CLASSES}


def posteriors(seed: int, slots: int = SLOTS, classes: int = CLASSES, sharpness: float = 1.5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(slots, classes, generator=generator, dtype=torch.float64)).log_softmax(dim=-1)


def over_all_alignments(log_probabilities: torch.Tensor) -> dict[tuple[int, ...], float]:
    """The log-likelihood of every sequence that some alignment gives."""
    slots, classes = log_probabilities.shape
    found: dict[tuple[int, ...], float] = {}
    for alignment in itertools.product(range(classes), repeat=slots):
        said = tuple(one for one, _ in itertools.groupby(alignment) if one)
        logprob = sum(float(log_probabilities[slot, one]) for slot, one in enumerate(alignment))
        found[said] = float(torch.logaddexp(*torch.tensor([found.get(said, -math.inf), logprob], dtype=torch.float64)))
    return found


@pytest.mark.parametrize("seed", range(2))
def test_a_search_that_leaves_nothing_out_is_exact_and_a_narrow_one_finds_no_more_than_there_is(seed: int) -> None:
    scores = posteriors(seed)
    expected = over_all_alignments(scores)
    found = prefix_beam_search(scores, num_best=len(expected) + 1, **EVERYTHING)
    assert len(found) == len(expected) and dict(found) == pytest.approx(expected)
    assert [logprob for _, logprob in found] == sorted(dict(found).values(), reverse=True)
    assert prefix_beam_search(scores, num_best=3, **EVERYTHING) == found[:3]
    scores = posteriors(seed, sharpness=4.0)
    expected = over_all_alignments(scores)
    found = prefix_beam_search(scores, num_best=3, num_prefixes=12, num_pieces=3)
    assert found[0][0] == max(expected, key=expected.get)
    assert all(logprob <= expected[said] + 1e-9 for said, logprob in found)
    # A prefix that was let go of and is found again is the same one.
    everyone = prefix_beam_search(posteriors(seed, 30, 6), num_best=4, num_prefixes=4, num_pieces=2)
    assert len(dict(everyone)) == 4


def test_likelihoods_are_those_of_all_alignments() -> None:
    scores = posteriors(7)
    expected = over_all_alignments(scores)
    targets = [(), (1,), (1, 1), (3, 2, 3), (2, 2, 1, 1), (1, 2, 3, 1, 2)]  # of the fifth, repeats need blanks
    found = ctc_log_likelihoods(scores, targets)
    assert found == pytest.approx([expected.get(target, -math.inf) for target in targets], abs=1e-4)
    assert found[4] == -math.inf and ctc_log_likelihoods(scores, []) == []


@pytest.mark.parametrize("beginning", [(1,), (3, 3), (2, 1, 2)])
def test_texts_that_must_begin_so_are_the_likeliest_of_those(beginning: tuple[int, ...]) -> None:
    scores = posteriors(3)
    expected = {said: one for said, one in over_all_alignments(scores).items() if said[: len(beginning)] == beginning}
    found = prefix_beam_search(scores, 1000, num_prefixes=10_000, num_pieces=CLASSES - 1, beginning=beginning)
    assert dict(found) == pytest.approx(expected)
    narrow = prefix_beam_search(scores, 1, num_prefixes=4, num_pieces=1, beginning=beginning)
    assert [said[: len(beginning)] for said, _ in narrow] == [beginning]


@pytest.fixture(scope="module")
def lexicon() -> SpokenLexicon:
    tokenizer = character_tokenizer()
    letters = tokenizer(" abcdeghinorstw'", add_special_tokens=False)["input_ids"]
    return SpokenLexicon(tokenizer, sorted(letters))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Don't go, it\u2019s 1!", "don't go it's one"),
        ("...", ""),
        ("The fox", "the o"),
        ("42 stars", "stars"),  # its leading space is one with the next word's
        ("zzz", ""),
    ],
)
def test_texts_are_classes_of_their_spoken_form_as_far_as_it_can_be_said(lexicon, text: str, said: str) -> None:
    assert lexicon.decode(lexicon.encode(text)) == said and 0 not in lexicon.encode(text)


def test_words_are_spelled_in_the_fewest_pieces(real_processor) -> None:
    tokenizer = real_processor.tokenizer
    whole = tokenizer(" something", add_special_tokens=False)["input_ids"]
    pieces = [" s", " some", "some", "th", "t", "h", "ing", "i", "n", "g", " so", "me"]
    ids = sorted(one for piece in pieces for one in tokenizer(piece, add_special_tokens=False)["input_ids"])
    lexicon = SpokenLexicon(tokenizer, ids)
    said = lexicon.encode("Something")
    assert len(whole) == 1 and len(said) == 3
    assert lexicon.decode(said) == "something"
    assert SpokenLexicon(tokenizer, sorted([*ids, *whole])).encode("something") != said

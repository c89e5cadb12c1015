"""Search for known words in letters: the likeliest texts of them all, by letters and frequency."""

import math
from itertools import product

import pytest
import torch
from audiollm import AudioLlmForConditionalGeneration
from audiollm.inference import letter_search
from audiollm.inference.ctc_search import ctc_log_likelihoods
from audiollm.inference.letter_search import WORD_BONUS, WORD_WEIGHT, WordTrie, add_words, word_trie
from audiollm.inference.spoken_pieces import SpokenLetters

LETTERS = SpokenLetters("abc")
WORDS = ("ab", "a", "abba", "cab", "d")


def worth(rank: int) -> float:
    return WORD_BONUS - WORD_WEIGHT * math.log(letter_search.RANK_OFFSET + rank)


@pytest.mark.parametrize("seed", range(3))
def test_the_likeliest_texts_of_the_words_are_found(seed, monkeypatch) -> None:
    monkeypatch.setattr(letter_search, "LEAST_LOGPROB", -math.inf)
    scores = (2 * torch.randn(7, 5, generator=torch.Generator().manual_seed(seed))).log_softmax(dim=-1)
    ranks = {word: rank for rank, word in enumerate(WORDS) if LETTERS.covers(word)}
    texts = [" ".join(words) for count in range(5) for words in product(ranks, repeat=count)]
    texts = [text for text in texts if len(text) <= len(scores)]
    # A space at the end is no other text: the likeliest of both.
    classes = [LETTERS.encode(text) for text in texts]
    whole = ctc_log_likelihoods(scores, classes)
    spaced = ctc_log_likelihoods(scores, [[*one, 1] for one in classes])
    added = [sum(worth(ranks[word]) for word in text.split()) for text in texts]
    expected = {
        text: more + (max(first, second) if text else first)
        for text, first, second, more in zip(texts, whole, spaced, added)
    }
    best = sorted((text for text in expected if expected[text] > -math.inf), key=expected.get, reverse=True)
    for num_texts, num_prefixes in ((6, 100_000), (2, 100_000), (6, 2)):
        found = WordTrie(LETTERS, WORDS).search(scores, num_texts, num_prefixes)
        assert (found == best[:num_texts]) == (num_prefixes > 2)
    begun = [text for text in best if f"{text} ".startswith("a ")]
    assert WordTrie(LETTERS, WORDS).search(scores, 6, 100_000, "a") != best[:6]
    assert WordTrie(LETTERS, WORDS).search(scores, 100, 100_000, "a")[:1] == begun[:1]
    assert set(WordTrie(LETTERS, WORDS).search(scores, 1000, 100_000, "a")) == set(begun)


def spelled(text: str) -> torch.Tensor:
    """Scores of slots that spell a text, a blank between letters."""
    classes = [one for letter in LETTERS.encode(text) for one in (letter, 0)]
    return torch.nn.functional.one_hot(torch.tensor(classes), 5).float().mul(8).log_softmax(dim=-1)


def test_only_known_and_expected_words_are_found() -> None:
    assert word_trie("abc", WORDS).search(spelled("abba cab"), 1) == ["abba cab"]
    assert word_trie("abc", WORDS).search(spelled("bb"), 1) != ["bb"]
    assert word_trie("abc", WORDS, ("bb",)).search(spelled("bb"), 1) == ["bb"]
    assert word_trie("abc", ()).search(spelled("a"), 3) == [""]
    # What a text must begin with need not be known.
    assert word_trie("abc", WORDS).search(spelled("bb abba"), 1, beginning="bb") == ["bb abba"]


def test_a_model_learns_words_of_texts_and_keeps_them(tiny_bases, tmp_path) -> None:
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(
        *tiny_bases, lora_rank=2, projector_readout="pieces", projector_letters="abcdé"
    )
    assert model.model.multi_modal_projector.letters.known_words() == []
    add_words(model, ["Bad bébé", "bad cab; x-ray 7"])
    add_words(model, ["dab", "cab dab"])
    words = ["bad", "bébé", "cab", "dab"]  # those with other letters are left out
    assert model.model.multi_modal_projector.letters.known_words() == words
    for folder in (tmp_path / "once", tmp_path / "twice"):
        model.save_pretrained(folder)
        model = AudioLlmForConditionalGeneration.from_pretrained(folder)
        assert model.model.multi_modal_projector.letters.known_words() == words
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(*tiny_bases, projector_readout="pieces")
    add_words(model, ["some text"])
    assert model.config.projector_letter_words == 0, "without letters it learns none"

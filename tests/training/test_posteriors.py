"""Posterior banks: alignments are the likeliest, simulated speech says its text, and errors come as asked."""

import itertools
import re
from dataclasses import fields

import numpy as np
import pytest
import torch
from audiollm.projector import PieceReadout
from audiollm.training.arguments import TrainingError
from audiollm.training.posteriors import BANK_FILE, TOP_CLASSES, PosteriorBank, mix_embeddings
from posterior_banks import SENTENCES, make_bank

TEXTS = [*SENTENCES, "aa zz aa", "Voilà: a xylophone.", "q", "o o o", "Mississippi"]


@pytest.fixture(scope="module")
def bank_and_text(tiny_bases):
    from transformers import AutoTokenizer

    return make_bank(AutoTokenizer.from_pretrained(tiny_bases[1]))


def collapsed(classes: np.ndarray, weights: np.ndarray, counts: np.ndarray) -> list[list[int]]:
    """Greedy CTC of sparse posteriors, a list of classes for each text."""
    whole = np.zeros((len(classes), int(classes.max()) + 1))
    np.add.at(whole, (np.arange(len(classes))[:, None], classes), weights)
    texts = np.split(whole.argmax(axis=1), np.cumsum(counts)[:-1])
    return [[key for key, _ in itertools.groupby(text.tolist()) if key] for text in texts]


def test_without_errors_greedy_ctc_reads_the_text_and_errors_grow_with_their_share(bank_and_text) -> None:
    bank, text = bank_and_text
    random = np.random.default_rng(0)
    letters = ["".join(random.choice(list("abcdefgh xyz"), size=30)) for _ in range(40)]
    encoded = [text.encode(one) for one in [*TEXTS, *letters, *SENTENCES * 20]]
    shares = []
    for errors in (0.0, 0.1, 0.4, 1.0):
        classes, weights, counts = bank.simulate(encoded, errors, random)
        assert counts.sum() == len(classes) == len(weights) and (counts > 0).all()
        said = collapsed(classes, weights, counts)
        shares.append(float(np.mean([one != list(own) for one, (own, _) in zip(said, encoded)])))
    assert shares[0] == 0 and shares == sorted(shares) and shares[1] < 0.8 < shares[3]
    assert 0.1 < bank.misheard < 0.3  # of which each letter has a fifth


def test_a_bank_is_saved_and_loaded_whole_and_one_that_cannot_be_read_is_named(bank_and_text, tmp_path) -> None:
    bank, _ = bank_and_text
    file = tmp_path / BANK_FILE
    facts = file.with_suffix(".json")
    bank.save(file)
    again = PosteriorBank.load(file)
    for field in fields(bank):
        one, two = getattr(bank, field.name), getattr(again, field.name)
        assert np.array_equal(one, two) and getattr(one, "dtype", None) == getattr(two, "dtype", None), field.name
    assert bank.ids.dtype == np.uint16 and bank.weights.dtype == np.float16
    assert file.stat().st_size < len(bank.ids) * TOP_CLASSES * 4 + 10_000
    whole, told = file.read_bytes(), facts.read_text()
    for content, beside in (
        (whole[:1000], told),
        (b"not a bank", told),
        (whole, '{"format_version": 99}'),
        (whole, ""),
    ):
        file.write_bytes(content)
        facts.write_text(beside)
        with pytest.raises(TrainingError, match=re.escape(str(file))):
            PosteriorBank.load(file)
    file.unlink()
    with pytest.raises(TrainingError, match=re.escape(str(file))):
        PosteriorBank.load(file)


def test_sparse_posteriors_are_mixed_as_the_readout_mixes_whole_ones() -> None:
    torch.manual_seed(0)
    embeddings, projected = torch.randn(40, 16), torch.randn(9, 16)
    readout = PieceReadout(40, 16)
    with torch.no_grad():
        readout.blank.normal_()
        readout.lexicon.fill_(False)
        readout.lexicon[3:9] = True
        expected = readout(projected, embeddings)
        weights, classes = readout.log_probabilities(projected, embeddings).exp().sort(dim=-1, descending=True)
    torch.testing.assert_close(mix_embeddings(readout, embeddings, classes, weights), expected)
    # What is left out is spread over all pieces.
    nothing = mix_embeddings(readout, embeddings, classes[:, :1], torch.zeros(9, 1))
    torch.testing.assert_close(nothing, embeddings[3:9].mean(dim=0).expand(9, -1))

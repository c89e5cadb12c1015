"""Context words: favoured where they are heard, taken back where they are not completed, and refused where they are none."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from audiollm import AudioLlmForConditionalGeneration
from audiollm.inference.context_words import MAX_CONTEXT_BYTES, SEARCH_BONUS, ContextTrie, read_context
from audiollm.inference.ctc_search import ctc_log_likelihoods, prefix_beam_search
from audiollm.inference.loaded import AudioLlm
from audiollm.inference.spoken_pieces import SpokenLexicon
from audiollm.inference.transcribe import main
from tiny_models import character_tokenizer, hearing_model

LETTERS = " abn"
RATE_HZ = 16_000


@pytest.fixture(scope="module")
def lexicon() -> SpokenLexicon:
    """Pieces are letters, and the space before a word."""
    tokenizer = character_tokenizer()
    return SpokenLexicon(tokenizer, sorted(tokenizer(LETTERS, add_special_tokens=False)["input_ids"]))


def test_only_completed_words_count(lexicon) -> None:
    trie = ContextTrie(lexicon, ["Ann", "Bab na", "an"])
    for text, expected in (
        ("ann", 4),
        ("bab na", 7),
        ("bab", 0),
        ("banana", 0),
        ("annan", 0),
        ("b ann bab na an", 4 + 7 + 3),
        ("an ann", 3 + 4),
        ("", 0),
    ):
        assert trie.counted(lexicon.encode(text)) == expected, text
    assert trie.spelled("b ann bannan bab na") == "b Ann bannan Bab na"
    longer = ContextTrie(lexicon, ["Ann", "Bab Ann", "bAn", "baN Na"])
    assert longer.spelled("bab ann ann ban na ban") == "Bab Ann Ann baN Na bAn"


def test_a_wide_search_finds_the_likeliest_with_their_context(lexicon) -> None:
    torch.manual_seed(0)
    scores = (3 * torch.randn(4, 1 + len(lexicon.token_ids))).log_softmax(dim=-1)
    trie = ContextTrie(lexicon, ["a", "n", "an"])
    texts = [text for length in range(5) for text in itertools.product(range(1, scores.shape[1]), repeat=length)]
    likelihoods = ctc_log_likelihoods(scores, texts)
    ranks = {text: one + SEARCH_BONUS * trie.counted(text) for text, one in zip(texts, likelihoods)}
    expected = sorted(ranks, key=ranks.get, reverse=True)[:5]
    found = prefix_beam_search(scores, 5, num_prefixes=10_000, num_pieces=scores.shape[1], context=trie)
    assert [text for text, _ in found] == expected
    plain = prefix_beam_search(scores, 5, num_prefixes=10_000, num_pieces=scores.shape[1])
    assert [text for text, _ in plain] != expected


@pytest.mark.parametrize("given", ["Anderson, Amazon Queen\nAnderson;", ["Anderson", "Amazon  Queen"]])
def test_lists_texts_and_files_are_read(given, tmp_path) -> None:
    assert read_context(given) == ("Anderson", "Amazon Queen")
    if isinstance(given, str):
        (tmp_path / "names.txt").write_text(given)
        assert read_context(str(tmp_path / "names.txt")) == ("Anderson", "Amazon Queen")
    names = [f"name{number}" for number in range(60)]  # on one line longer than a file's name may be
    assert read_context(", ".join(names)) == tuple(names)


def test_what_is_no_context_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"nmaes\.txt is not there"):
        read_context("nmaes.txt")
    for empty in ("", " , \u2026", []):
        with pytest.raises(ValueError, match="no word"):
            read_context(empty)
    (tmp_path / "large.txt").write_text("a," * MAX_CONTEXT_BYTES)
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\xff")
    for name, message in (("large.txt", "expected at most 1,000,000"), ("bytes.txt", "UTF-8")):
        with pytest.raises(ValueError, match=message):
            read_context(str(tmp_path / name))
    with pytest.raises(ValueError, match="expected at most"):
        read_context("word " * MAX_CONTEXT_BYTES)


# ------------------------------------------------------------------------------------------ through what people use


@pytest.fixture(scope="module")
def model(tiny_bases, tiny_processor) -> AudioLlmForConditionalGeneration:
    return hearing_model(tiny_bases, tiny_processor)


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("sounds") / "noise.wav"
    noise = 0.1 * np.random.default_rng(0).standard_normal(RATE_HZ)
    soundfile.write(path, noise.astype(np.float32), RATE_HZ, subtype="FLOAT")
    return path


def test_command_and_python_favour_them(model, tiny_processor, recording, tmp_path, capsys) -> None:
    options = {"max_new_tokens": 6, "voice_activity": False}
    loaded = AudioLlm(model, tiny_processor)
    plain = loaded.transcribe(recording, **options).text
    favoured = loaded.transcribe(recording, **options, context="Ok, Xy").text
    assert {"Ok", "Xy"} & set(favoured.split()) and not {"Ok", "Xy"} & set(plain.split())
    assert loaded.transcribe(recording, **options, context=["Ok", "Xy"]).text == favoured
    with pytest.raises(ValueError, match="no word"):
        loaded.transcribe(recording, context=[])
    with pytest.raises(ValueError, match="ctc_weight above 0"):
        loaded.transcribe(recording, context="Ok", ctc_weight=0.0)
    for part in (model, tiny_processor):
        part.save_pretrained(tmp_path / "pieces")
    call = [str(recording), "--model", str(tmp_path / "pieces"), "--max_new_tokens", "6", "--no_progress"]
    main([*call, "--voice_activity", "off", "--context", "Ok, Xy"])
    assert capsys.readouterr().out == f"{favoured}\n"
    for bad, message in ((" , ", "no word"), ("nmaes.txt", "nmaes.txt is not there")):
        with pytest.raises(SystemExit):
            main([*call, "--context", bad])
        assert message in capsys.readouterr().err

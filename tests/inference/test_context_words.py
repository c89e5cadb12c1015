"""Context words: favoured where they are heard, taken back where they are not completed, and refused where they are none."""

import itertools

import pytest
import soundfile
import torch
from audiollm.inference.context_words import MAX_CONTEXT_BYTES, SEARCH_BONUS, ContextTrie, read_context
from audiollm.inference.ctc_search import ctc_log_likelihoods, prefix_beam_search
from audiollm.inference.loaded import AudioLlm
from audiollm.inference.spoken_pieces import SpokenLexicon
from audiollm.inference.transcribe import main
from long_recordings import RATE, noise
from tiny_models import character_tokenizer, hearing_model

LETTERS = " abn"


@pytest.fixture(scope="module")
def lexicon() -> SpokenLexicon:
    """Pieces are letters, and the space before a word."""
    tokenizer = character_tokenizer()
    return SpokenLexicon(tokenizer, sorted(tokenizer(LETTERS, add_special_tokens=False)["input_ids"]))


def test_only_completed_words_count(lexicon) -> None:
    trie = ContextTrie(lexicon, ["Ann", "Bab na", "an"])
    expected = {
        "ann": 4,
        "bab na": 7,
        "bab": 0,
        "banana": 0,
        "annan": 0,
        "b ann bab na an": 4 + 7 + 3,
        "an ann": 3 + 4,
    }
    assert {text: trie.counted(lexicon.encode(text)) for text in expected} == expected
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


def test_lists_texts_and_files_are_read(tmp_path) -> None:
    (tmp_path / "names.txt").write_text("Anderson, Amazon Queen\nAnderson;")
    for given in ("Anderson, Amazon Queen\nAnderson;", ["Anderson", "Amazon  Queen"], str(tmp_path / "names.txt")):
        assert read_context(given) == ("Anderson", "Amazon Queen")
    names = [f"name{number}" for number in range(60)]  # on one line longer than a file's name may be
    assert read_context(", ".join(names)) == tuple(names)
    (tmp_path / "large.txt").write_text("a," * MAX_CONTEXT_BYTES)
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\xff")
    for given, message in (
        ("nmaes.txt", r"nmaes\.txt is not there"),
        (" , \u2026", "no word"),
        ([], "no word"),
        (str(tmp_path / "large.txt"), "expected at most 1,000,000"),
        (str(tmp_path / "bytes.txt"), "UTF-8"),
        ("word " * MAX_CONTEXT_BYTES, "expected at most"),
    ):
        with pytest.raises(ValueError, match=message):
            read_context(given)


# ------------------------------------------------------------------------------------------ through what people use


def test_command_and_python_favour_them(tiny_bases, tiny_processor, tmp_path, run) -> None:
    recording = tmp_path / "noise.wav"
    soundfile.write(recording, noise(1), RATE, subtype="FLOAT")
    model = hearing_model(tiny_bases, tiny_processor)
    options = {"max_new_tokens": 6, "voice_activity": False}
    loaded = AudioLlm(model, tiny_processor)
    plain = loaded.transcribe(recording, **options).text
    favoured = loaded.transcribe(recording, **options, context="Ok, Xy").text
    assert {"Ok", "Xy"} & set(favoured.split()) and not {"Ok", "Xy"} & set(plain.split())
    assert loaded.transcribe(recording, **options, context=["Ok", "Xy"]).text == favoured
    for wrong, message in (({"context": []}, "no word"), ({"context": "Ok", "ctc_weight": 0.0}, "ctc_weight above 0")):
        with pytest.raises(ValueError, match=message):
            loaded.transcribe(recording, **wrong)
    for part in (model, tiny_processor):
        part.save_pretrained(tmp_path / "pieces")
    call = [recording, "--model", tmp_path / "pieces", "--max_new_tokens", "6", "--no_progress"]
    assert run(main, *call, "--voice_activity", "off", "--context", "Ok, Xy").out == f"{favoured}\n"
    assert "nmaes.txt is not there" in run(main, *call, "--context", "nmaes.txt", code=2).err

"""Metrics for `evaluate.load` by path: offline, each with a published worked example; every option does something."""

import doctest
import math
import socket
import sys
from pathlib import Path

import audiollm.evaluation
import evaluate
import pytest

FOLDER = Path(audiollm.evaluation.__file__).parent / "metrics"
NAMES = sorted(path.name for path in FOLDER.iterdir() if (path / f"{path.name}.py").is_file())


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_all_are_there() -> None:
    expected = "bleu cer choice_accuracy cider judge_score no_speech_rate perplexity rouge wer"
    assert expected.split() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_worked_example_in_its_description(name) -> None:
    """Examples are those of jiwer's and evaluate's, sacreBLEU's, rouge_score's and aac-metrics' documentation."""
    metric = evaluate.load(str(FOLDER / name))
    example = doctest.DocTestParser().get_doctest(metric.inputs_description, {"evaluate": evaluate}, name, None, None)
    examples = [line for line in example.examples if "evaluate.load" not in line.source]
    assert examples
    example.examples = examples
    example.globs |= {name: metric, "metric": metric, "math": math}
    failures: list[str] = []
    result = doctest.DocTestRunner(verbose=False).run(example, out=failures.append)
    assert not result.failed, "".join(failures)


def test_word_error_takes_conventions() -> None:
    wer = evaluate.load(str(FOLDER / "wer"))
    pair = {"predictions": ["the whitepaper of Catherine"], "references": ["The white paper, of Katherine."]}
    assert wer.compute(**pair)["word_error"] == 3 / 5
    assert wer.compute(**pair, normaliser="none")["word_error"] == 4 / 5
    assert wer.compute(**pair, normaliser="leaderboard")["word_error"] == 2 / 5
    by_leaderboard = {**pair, "normaliser": "leaderboard", "aligner": "kaldialign"}
    assert wer.compute(**by_leaderboard)["word_error"] == 0
    assert wer.compute(**by_leaderboard, merge_compounds=False)["word_error"] == 2 / 5
    with pytest.raises(ValueError, match=r"no normaliser 'whisper'; expected one of .*leaderboard"):
        wer.compute(**pair, normaliser="whisper")
    with pytest.raises(ValueError, match="no aligner 'sclite'; expected one of jiwer, kaldialign"):
        wer.compute(**pair, aligner="sclite")


def test_character_error_counts_no_spaces_where_there_are_none() -> None:
    cer = evaluate.load(str(FOLDER / "cer"))
    pair = {"predictions": ["今天 天气很好。"], "references": ["今天天气好"]}
    assert cer.compute(**pair, normaliser="characters")["character_error"] == 1 / 5
    assert cer.compute(**pair)["character_error"] == 2 / 5
    assert cer.compute(predictions=[""], references=["abc"])["deletions"] == 3
    with pytest.raises(ValueError, match="No reference has a character left"):
        cer.compute(predictions=["a"], references=["..."])


def test_bleu_takes_languages_and_single_references() -> None:
    bleu = evaluate.load(str(FOLDER / "bleu"))
    pair = {"predictions": ["今日は天気がとても良いです。"], "references": ["今日は天気がとても良いですね。"]}
    found = {language: bleu.compute(**pair, language=language) for language in ("ja", "zh", "de", None)}
    tokenizers = {language: each["signature"].split("tok:")[1].split("|")[0] for language, each in found.items()}
    assert {name: tok.split("-0.")[0].split("-1.")[0] for name, tok in tokenizers.items()} == {
        "ja": "ja-mecab",
        "zh": "zh",
        "de": "13a",
        None: "13a",
    }
    assert found["ja"]["bleu_points"] > 0 == found["de"]["bleu_points"]
    assert bleu.compute(**pair, tokenizer="char")["bleu_points"] > 0
    with pytest.raises(ValueError, match=r"no tokenizer 'latin'; expected one of .*13a"):
        bleu.compute(**pair, tokenizer="latin")


def test_rouge_takes_types_stemming_and_several_references() -> None:
    rouge = evaluate.load(str(FOLDER / "rouge"))
    pair = {"predictions": ["dogs jumped"], "references": [["the dog jumps", "dog jump"]]}
    assert rouge.compute(**pair, rouge_types=["rouge1"]) == {"rouge1": 1.0, "use_stemmer": True}
    assert rouge.compute(**pair, rouge_types=["rouge1"], use_stemmer=False)["rouge1"] == 0


def test_choices_take_a_rule() -> None:
    metric = evaluate.load(str(FOLDER / "choice_accuracy"))
    with pytest.raises(ValueError, match="no rule 'guess'"):
        metric.compute(predictions=["A"], references=["A"], parsing="guess")


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kaldialign", None)
    wer = evaluate.load(str(FOLDER / "wer"))
    with pytest.raises(ImportError, match=r'pip install "audiollm\[evaluation\]"'):
        wer.compute(predictions=["a"], references=["a"], aligner="kaldialign")

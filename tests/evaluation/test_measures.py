"""Measures against the libraries themselves, published examples and the benchmarks' own rules."""

import sys

import evaluate
import numpy as np
import pytest
import sacrebleu
from audiollm.evaluation import METRIC
from audiollm.evaluation.measures import MEASURES, Answer, Convention, Measured, air_bench_letter, measure

ENGLISH = (
    ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him.", ""],
    ["The dog had bit the man.", "No one was surprised.", "The man had bitten the dog.", "Yes, indeed."],
)
CHINESE = (
    ["今天天气很好，我们去公园散步吧。", "他昨天买了3本书"],
    ["今天天气很好，我们一起去公园散步。", "他昨天买了三本书。"],
)
JAPANESE = (
    ["今日は天気が良いので公園を散歩しましょう。", "彼は昨日本を買った"],
    ["今日は天気が良いから公園を散歩しよう。", "彼は昨日本を三冊買った。"],
)


def measured(name: str, *answers: Answer) -> Measured:
    return MEASURES[name](answers, Convention())


@pytest.mark.parametrize(
    ("language", "tokenizer", "texts"), [("en", "13a", ENGLISH), ("zh", "zh", CHINESE), ("ja", "ja-mecab", JAPANESE)]
)
def test_bleu_is_sacrebleus(language, tokenizer, texts) -> None:
    said, right = texts
    metric = sacrebleu.BLEU(tokenize=tokenizer)
    expected = metric.corpus_score(said, [right]).score
    found = measure("bleu", said, right, Convention(language=language))
    assert found.value == pytest.approx(expected, abs=1e-11) and found.value > 0
    assert found.signature == str(metric.get_signature()) and f"tok:{tokenizer}" in found.signature


def test_several_references_and_sentences_with_fewer() -> None:
    """Sums of sentences' counts make the corpus' figure; an answer without a reference does not count."""
    references = [["The dog bit the man.", "The dog had bit the man."], ["It was not unexpected."]]
    references += [["The man bit him first.", "", "The man had bitten the dog."], ["Yes."], [""]]
    found = measure("bleu", [*ENGLISH[0], "left out"], references)
    streams = [[each[0] for each in references[:4]], [references[0][1], None, references[2][2], None]]
    assert found.value == pytest.approx(sacrebleu.corpus_bleu(ENGLISH[0], streams).score)
    assert (found.ids, found.dropped) == (["0", "1", "2", "3"], {"skipped_empty_reference": 1})


def test_rouge_is_that_of_its_readme() -> None:
    pair = ["The quick brown dog jumps on the log."], ["The quick brown fox jumps over the lazy dog"]
    assert measure("rouge1", *pair).value == pytest.approx(2 * (6 / 8) * (6 / 9) / (6 / 8 + 6 / 9))
    assert measure("rougeL", *pair).value == pytest.approx(2 * (5 / 8) * (5 / 9) / (5 / 8 + 5 / 9))
    closest = measure("rouge1", ["a b", "c"], [["", "x", "a b"], [" "]])
    assert (closest.value, closest.ids, closest.dropped) == (1.0, ["0"], {"skipped_empty_reference": 1})


def test_choices_are_read_as_in_air_bench() -> None:
    """Unreadable ones leave the denominator and are counted."""
    letters = {"A": "A", "B. a dog": "B", "\nC\n": "C", "The answer is D.": "D", "The answer is (D).": None, "a": None}
    letters |= {"E": None, "": None, "None": None, "Definitely not": "D", "Is it\nB.": "B"}
    assert {text: air_bench_letter(text) for text in letters} == letters
    pairs = ["A", "B.", "who knows", "C"], ["A", "(a)", "A", ""]
    found, strict = measure("choice_accuracy", *pairs), measure("strict_choice_accuracy", *pairs)
    assert (found.value, strict.value) == (1 / 2, 1 / 3)
    assert found.dropped == {"skipped_empty_reference": 1, "unparsable": 1}
    assert found.items["1"] == {"chosen": "B", "right": False}


def test_marks_are_averaged_over_orders_and_failures_counted() -> None:
    def judged(*marks: float | None) -> Answer:
        verdicts = [{"order": "x", "scores": mark and {"reference": 9, "answer": mark}} for mark in marks]
        return Answer(str(marks), "x", verdicts=verdicts)

    found = measured("judge_score", judged(4, 8), judged(None, 3), judged(None), judged())
    assert (found.value, found.unit) == (4.5, "points")
    assert found.dropped == {"unjudged": 2, "judge_failures": 2}


def test_speech_heard_in_silence() -> None:
    found = measure("no_speech_rate", ["", " ... ", "[music]", "Thank you.", "謝謝"], [[]] * 5)
    assert found.value == 2 / 5 and found.items["3"]["heard_speech"]


def test_retention_is_equality_and_perplexity() -> None:
    extras = [
        {"tokens": 3, "negative_log_likelihood": 3 * np.log(4), "same_logits_as_base": True},
        {"tokens": 1, "negative_log_likelihood": np.log(64), "same_logits_as_base": False},
        {},
    ]
    answers = [Answer(str(place), "", extra=extra) for place, extra in enumerate(extras)]
    assert measured("perplexity", *answers).value == pytest.approx((4**3 * 64) ** (1 / 4))
    found = measured("bitwise_equal", *answers)
    assert (found.value, found.dropped) == (0.5, {"not_compared": 1})


def test_texts_are_measured_without_a_run(monkeypatch) -> None:
    said = ["this is the prediction", "there is an other sample"]
    right = ["this is the reference", "there is another one"]
    assert measure("wer", said, right).value == 0.5
    whitepaper = ["the whitepaper of Catherine"], ["The white paper, of Katherine."]
    chinese = ["今天 天气很好。"], ["今天天气好"]
    for metric, pair, normaliser, value in (
        ("cer", (said, right), "basic", 0.34146341463414637),
        ("wer", whitepaper, "none", 4 / 5),
        ("wer", whitepaper, "leaderboard", 0),
        ("cer", chinese, "characters", 1 / 5),
        ("cer", chinese, "basic", 2 / 5),
    ):
        assert measure(metric, *pair, Convention(normaliser)).value == value
    with pytest.raises(ValueError, match="1 references for 2 predictions"):
        measure("wer", said, right[:1])
    with pytest.raises(ValueError, match="whisper"):
        measure("wer", said, right, Convention("whisper"))
    monkeypatch.setitem(sys.modules, "kaldialign", None)
    with pytest.raises(ImportError, match=r'pip install "audiollm\[evaluation\]"'):
        measure("wer", ["a"], ["a"], Convention("leaderboard"))


@pytest.mark.parametrize("references", [["Der Hund sah die Katze."], [["Der Hund sah die Katze.", "Ein Hund"]]])
def test_the_library_evaluate_takes_any_of_them(references) -> None:
    said = ["Der Hund sieht die Katze."]
    found = evaluate.load(METRIC, "bleu").compute(predictions=said, references=references, language="de")
    assert found["bleu"] == measure("bleu", said, references, Convention(language="de")).value > 0
    assert "tok:13a" in found["signature"]

"""The recipe's texts: WordNet's sentences to synthesise and to read, and questions to distil from."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from audiollm.corpora.examples import Example, write_examples
from audiollm.training.distill import read_distill_examples

sys.path.insert(0, str(Path(__file__).parents[2] / "shipped_adapter" / "recipe"))

import questions
import sentences


@pytest.fixture
def wordnet(tmp_path: Path) -> Path:
    line = '00001740 03 n 01 entity 0 000 @ | that which exists; "the {} lay on the table; "; "too short"; "costs $5 at least today"\n'
    for number, name in enumerate(sentences.FILES):
        (tmp_path / name).write_text('  1 This software "is provided as is here" | "by the university of"\n')
        with open(tmp_path / name, "a") as file:
            file.write(line.format("book" if number < 2 else "pen"))
    return tmp_path


def test_sentences_of_wordnet(wordnet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sentences.sentences(wordnet) == ["The book lay on the table.", "The pen lay on the table."]
    written = wordnet / "made" / "sentences.txt"
    monkeypatch.setattr(sys, "argv", ["sentences.py", str(written), "--wordnet", str(wordnet)])
    sentences.main()
    assert sorted(written.read_text().splitlines()) == sentences.sentences(wordnet)


def test_questions_of_recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = [
        "Where are you going tonight?",
        "Hello.",
        "I have seen nothing of that.",
        *[f"This is line {n}." for n in range(9)],
    ]
    examples = []
    for number, text in enumerate(said):
        soundfile.write(tmp_path / f"{number}.wav", np.zeros(160), 16_000)
        examples.append(Example("Transcribe: <audio>", (str(tmp_path / f"{number}.wav"),), text))
    write_examples(tmp_path / "train.json", examples)
    arguments = ["questions.py", str(tmp_path / "train.json"), str(tmp_path / "questions.json")]
    monkeypatch.setattr(sys, "argv", arguments)
    questions.main()
    rows = read_distill_examples(tmp_path / "questions.json")
    assert [row.transcripts for row in rows] == [(text,) for text in said if text != "Hello."]
    assert rows[0].text in questions.OF_QUESTIONS and all(row.text in questions.OF_ALL for row in rows[1:])
    assert not any(row.response for row in rows), "the base writes them"
    monkeypatch.setattr(sys, "argv", [*arguments, "--rows", "5"])
    questions.main()
    few = json.loads((tmp_path / "questions.json").read_text())
    questions.main()
    assert len(few) == 5 and few == json.loads((tmp_path / "questions.json").read_text())

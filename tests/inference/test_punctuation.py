"""Punctuation and capitals: nothing else changes, what has marks stays as it is, and a checkpoint can leave out its own transcript."""

import itertools
import random
import re
import threading

import pytest
import soundfile
from audiollm.inference import phrases
from audiollm.inference.answering import ask
from audiollm.inference.ctc_rescoring import CtcRescorer
from audiollm.inference.punctuation import END_MARKS, LEAST_WORDS, MARKS, _Place, _Text, punctuated
from audiollm.inference.recording_encoder import RecordingEncoder
from audiollm.inference.streaming import StopWhenSet
from audiollm.inference.transcribing import Transcriber, TranscribingSettings
from long_recordings import RATE, in_a_row, prompts
from tiny_models import character_tokenizer, hearing_model

HEARD = ["We're looking for naomi", "Oh, no.", "she is in the New york of a friend", "", "right"]
END_ID = 2


def bare(text: str) -> str:
    return re.sub(r"[,.?!]", "", text).lower()


@pytest.fixture(scope="module")
def model(tiny_bases, tiny_processor):
    return hearing_model(tiny_bases, tiny_processor)


def text_of(heard: list[str], name: str) -> tuple[_Text, dict[int, str]]:
    """Return the ways to write what was heard, with one known name, and the tokens of marks."""
    tokenizer = character_tokenizer()
    marks = {tokenizer.convert_tokens_to_ids(mark): mark for mark in MARKS}
    return _Text(tokenizer, heard, marks, END_ID, names={name}), marks


@pytest.mark.parametrize("seed", range(10))
def test_every_way_of_writing_changes_marks_and_capitals_alone(seed: int) -> None:
    text, _ = text_of(HEARD, "York")
    rng, ids, place = random.Random(seed), [], _Place(0)
    while ways := text.ways(place):
        assert text.costs(place).keys() == ways.keys() and len(ids) <= text.most_tokens
        token_id = rng.choice(sorted(ways))
        ids.append(token_id)
        place = ways[token_id]
    assert ids[-1] == END_ID
    words = text.read(ids)
    assert [bare(word) for word in words] == bare(" ".join(HEARD)).split()
    assert " ".join(words) == character_tokenizer().decode(ids[:-1])
    assert "Oh, no. She" in " ".join(words) and words[0][0] == "W"
    free = [number for number, word in enumerate(words) if word[-1] in MARKS and word not in ("Oh,", "no.")]
    assert all(after - before >= LEAST_WORDS for before, after in itertools.pairwise(free) if after < len(words) - 1)
    assert all(word[-1] not in END_MARKS or after[0].isupper() for word, after in itertools.pairwise(words))
    assert text.read(ids[: len(ids) // 2]) is None


def test_names_that_are_known_keep_their_capitals() -> None:
    text, marks = text_of(["So is Naomi"], "Naomi")
    (way,) = [after for token_id, after in text.ways(_Place(2)).items() if token_id not in marks]
    assert way.forms == ("Naomi",)


def test_the_language_model_chooses_the_marks(model, tiny_processor) -> None:
    windows = [["Hello there how are you", "fine"], ["All of it."], ["ab cd"], []]

    def written(windows: list[list[str]], stop: StopWhenSet | None = None) -> list[list[str]]:
        return punctuated(model, tiny_processor.tokenizer, [1, 4], windows, END_ID, stop=stop)

    found = written(windows)
    assert [[bare(one) for one in each] for each in found] == [[bare(one) for one in each] for each in windows]
    assert found[1] == windows[1] and found[3] == [] and found != windows
    assert [written([window])[0] for window in windows] == found
    stop = threading.Event()
    stop.set()
    assert written(windows, StopWhenSet(stop)) == windows


def test_phrases_are_punctuated_across_their_window_and_so_are_the_timed_words(
    model, tiny_processor, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(phrases, "PHRASE_SECONDS", 2.0)
    path = tmp_path / "row.wav"
    soundfile.write(path, in_a_row(prompts(3), [0.3] * 4), RATE, subtype="FLOAT")
    before: list[str] = []
    original = CtcRescorer.punctuated

    def punctuating(self, windows, stop):
        before.extend(text for window in windows for text in window)
        return original(self, windows, stop)

    monkeypatch.setattr(CtcRescorer, "punctuated", punctuating)
    monkeypatch.setattr(model.generation_config, "audiollm_transcribe", {"written_candidate": False}, raising=False)
    settings = TranscribingSettings(max_new_tokens=8, timestamps="word", window_seconds=6.0)
    (result,) = Transcriber(model, tiny_processor, settings, progress=False).transcribe([str(path)])
    after = [one.text for one in result.passages]
    assert sorted(map(bare, after)) == sorted(map(bare, before)) and sorted(after) != sorted(before)
    assert [word.text for word in result.words] == " ".join(after).split()
    assert result.made_with["written_candidate"] is False


def test_a_checkpoint_can_leave_out_what_it_writes_itself(model, tiny_processor, monkeypatch) -> None:
    clip = prompts(1)[0][:RATE]
    asked = tiny_processor.apply_chat_template(ask("<audio>", clip), tokenize=True, add_generation_prompt=True)
    inputs = {name: asked[name] for name in ("input_ids", "attention_mask")}
    inputs |= RecordingEncoder(model, tiny_processor)([clip])
    found = []
    for settings in ({}, {"written_candidate": False}):
        monkeypatch.setattr(model.generation_config, "audiollm_transcribe", settings, raising=False)
        found += CtcRescorer(model, tiny_processor.tokenizer, 1.0).candidates(**inputs, bounds=[6])
    every, of_ctc = ({one.text for one in candidates} for candidates in found)
    assert of_ctc < every and all(one.is_finished for one in found[1])

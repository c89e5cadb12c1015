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


@pytest.mark.parametrize("seed", range(20))
def test_every_way_of_writing_changes_marks_and_capitals_alone(seed: int) -> None:
    tokenizer = character_tokenizer()
    marks = {tokenizer.convert_tokens_to_ids(mark): mark for mark in MARKS}
    text = _Text(tokenizer, HEARD, marks, END_ID, names={"York"})
    rng, ids, place = random.Random(seed), [], _Place(0)
    while ways := text.ways(place):
        assert text.costs(place).keys() == ways.keys() and len(ids) <= text.most_tokens
        token_id = rng.choice(sorted(ways))
        ids.append(token_id)
        place = ways[token_id]
    assert ids[-1] == END_ID
    words = text.read(ids)
    assert [bare(word) for word in words] == bare(" ".join(HEARD)).split()
    assert " ".join(words) == tokenizer.decode(ids[:-1])
    assert "Oh, no. She" in " ".join(words) and words[0][0] == "W"
    free = [number for number, word in enumerate(words) if word[-1] in MARKS and word not in ("Oh,", "no.")]
    assert all(after - before >= LEAST_WORDS for before, after in itertools.pairwise(free) if after < len(words) - 1)
    for word, after in itertools.pairwise(words):
        assert word[-1] not in END_MARKS or after[0].isupper()
    assert text.read(ids[: len(ids) // 2]) is None


def test_names_that_are_known_keep_their_capitals() -> None:
    tokenizer = character_tokenizer()
    marks = {tokenizer.convert_tokens_to_ids(mark): mark for mark in MARKS}
    text = _Text(tokenizer, ["So is Naomi"], marks, END_ID, names={"Naomi"})
    place = _Place(2)
    (way,) = [after for token_id, after in text.ways(place).items() if token_id not in marks]
    assert way.forms == ("Naomi",)


def test_the_language_model_chooses_the_marks(model, tiny_processor) -> None:
    windows = [["Hello there how are you", "fine"], ["All of it."], ["ab cd"], []]
    beginning = [1, 4]
    written = punctuated(model, tiny_processor.tokenizer, beginning, windows, END_ID)
    assert [[bare(one) for one in each] for each in written] == [[bare(one) for one in each] for each in windows]
    assert written[1] == windows[1] and written[3] == []
    assert written != windows
    for window, alone in zip(windows, written):
        assert punctuated(model, tiny_processor.tokenizer, beginning, [window], END_ID) == [alone]
    stop = threading.Event()
    stop.set()
    assert punctuated(model, tiny_processor.tokenizer, beginning, windows, END_ID, stop=StopWhenSet(stop)) == windows


def test_phrases_are_punctuated_across_their_window_and_so_are_the_timed_words(
    model, tiny_processor, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(phrases, "PHRASE_SECONDS", 2.0)
    path = tmp_path / "row.wav"
    soundfile.write(path, in_a_row(prompts(3), [0.3] * 4), RATE, subtype="FLOAT")
    given = []
    original = CtcRescorer.punctuated

    def punctuating(self, windows, stop):
        given.extend(windows)
        return original(self, windows, stop)

    monkeypatch.setattr(CtcRescorer, "punctuated", punctuating)
    settings = TranscribingSettings(max_new_tokens=8, timestamps="word", window_seconds=6.0)
    monkeypatch.setattr(model.generation_config, "audiollm_transcribe", {"written_candidate": False}, raising=False)
    (result,) = Transcriber(model, tiny_processor, settings, progress=False).transcribe([str(path)])
    before = [text for window in given for text in window]
    after = [one.text for one in result.passages]
    assert sorted(map(bare, after)) == sorted(map(bare, before)) and sorted(after) != sorted(before)
    assert [word.text for word in result.words] == " ".join(after).split()
    assert result.made_with["written_candidate"] is False


def test_a_checkpoint_can_leave_out_what_it_writes_itself(model, tiny_processor, monkeypatch) -> None:
    asked = tiny_processor.apply_chat_template(
        ask("<audio>", prompts(1)[0][:RATE]), tokenize=True, add_generation_prompt=True, padding_side="left"
    )
    inputs = {name: asked[name] for name in ("input_ids", "attention_mask")}
    inputs |= RecordingEncoder(model, tiny_processor)([prompts(1)[0][:RATE]])
    (all_of_them,) = CtcRescorer(model, tiny_processor.tokenizer, 1.0).candidates(**inputs, bounds=[6])
    monkeypatch.setattr(model.generation_config, "audiollm_transcribe", {"written_candidate": False}, raising=False)
    rescorer = CtcRescorer(model, tiny_processor.tokenizer, 1.0)
    (of_ctc,) = rescorer.candidates(**inputs, bounds=[6])
    assert {one.text for one in of_ctc} < {one.text for one in all_of_them}
    assert all(one.is_finished for one in of_ctc)

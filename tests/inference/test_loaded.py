"""`audiollm.load`: transcripts, answers and conversations of a checkpoint in Python."""

import base64
from pathlib import Path

import audiollm
import numpy as np
import pytest
import soundfile
from audiollm.inference.answering import answer, ask
from audiollm.inference.loaded import AudioLlm
from audiollm.inference.loading import CheckpointError
from audiollm.inference.transcribing import Failure, Transcriber, TranscribingSettings
from audiollm.inference.transcripts import Transcript
from audiollm.processing import AudioError
from long_recordings import RATE, prompts

FEW = {"max_new_tokens": 6}


@pytest.fixture(scope="module")
def model(checkpoint) -> AudioLlm:
    return audiollm.load(checkpoint)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[str]:
    path = tmp_path_factory.mktemp("sounds")
    for number, clip in enumerate(prompts(3)):
        soundfile.write(path / f"{number}.wav", clip, RATE, subtype="FLOAT")
    return [str(path / f"{number}.wav") for number in range(3)]


def test_transcripts_are_those_of_the_transcriber(model, files) -> None:
    transcriber = Transcriber(model.model, model.processor, TranscribingSettings(**FEW), progress=False)
    expected = list(transcriber.transcribe(files))
    found = model.transcribe(files, **FEW)
    assert [one.text for one in found] == [one.text for one in expected] and all(one.text for one in found)
    one = model.transcribe(Path(files[0]), **FEW)
    assert isinstance(one, Transcript) and (one.text, one.audio) == (expected[0].text, files[0])
    assert model.transcribe(files[0], max_new_tokens=3).text != one.text
    waveform = soundfile.read(files[0], dtype="float32")[0]
    data = Path(files[0]).read_bytes()
    url = f"data:audio/wav;base64,{base64.b64encode(data).decode()}"
    kinds = [waveform, data, url, {"array": waveform, "sampling_rate": RATE}]
    for found in (*model.transcribe(kinds, **FEW), model.transcribe(waveform, **FEW)):
        assert (found.text, found.seconds, found.audio) == (one.text, one.seconds, "waveform")
    assert model.transcribe(waveform, sampling_rate=2 * RATE, **FEW).seconds == pytest.approx(one.seconds / 2)
    given, named = ({"array": waveform, "sampling_rate": 2 * RATE}, {"sampling_rate": 2 * RATE})
    assert model.ask(waveform, "What is it?", **FEW, **named) == model.ask(given, "What is it?", **FEW)


def test_what_cannot_be_used_is_named(model, files, tmp_path) -> None:
    missing = str(tmp_path / "missing.wav")
    first, second = model.transcribe([missing, files[0]], **FEW)
    assert isinstance(first, Failure) and "missing.wav" in first.reason and isinstance(second, Transcript)
    for file, options, kind, message in (
        (missing, {}, AudioError, "missing"),
        (files[0], {"window": 3}, TypeError, "window"),
        (files[0], {"window_seconds": 31}, ValueError, r"^window_seconds is 31; expected"),
        (files[0], {"batch_size": 0}, ValueError, "batch_size is 0"),
        (files[0], {"timestamps": "letter"}, ValueError, "'letter'"),
        (files[0], {"timestamps": "word"}, ValueError, "--projector_readout pieces"),
    ):
        with pytest.raises(kind, match=message):
            model.transcribe(file, **options)
    with pytest.raises(ValueError, match="timestamps='word'"):
        _ = second.words
    with pytest.raises(CheckpointError):
        audiollm.load(tmp_path / "nothing")


def test_questions_and_conversations(model, files) -> None:
    question = "What is said?"
    expected = answer(model.model, model.processor, [ask(question, file) for file in files], max_new_tokens=6)
    assert model.ask(files, question, **FEW) == expected
    assert model.ask(files[1], question, **FEW) == expected[1]
    session = model.chat("Be terse.", max_new_tokens=4)
    session.ask("Hello?", np.zeros(RATE, dtype=np.float32))
    assert session.messages[0]["content"] == "Be terse." and len(session.messages) == 3

"""Synthetic voices: what is asked for is heard, texts are nothing but text, and every failure is named."""

import shlex
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from audiollm.corpora import voices as engines
from audiollm.corpora.clips import CorpusError
from audiollm.corpora.voices import Voice, command_voices, default_voices, known_engines, plain, voice_named
from audiollm.processing import AudioError

SENTENCE = "The old harbour pilot brought the ship in."
#: A program that notes its text, and makes a tone of 0.1 s for each letter over its speed; without arguments it reads
#: standard input and writes to standard output.
TOOL = """
import array, io, math, sys, wave
voice, speed, output, text_file, noted = sys.argv[1:] or ("low", 1, None, None, None)
text = open(text_file, encoding="utf-8").read() if text_file else sys.stdin.read()
if noted:
    open(noted, "w", encoding="utf-8").write(text)
pitch, count = 200 if voice == "low" else 400, int(1600 * len(text) / float(speed))
samples = array.array("h", (int(9000 * math.sin(i * pitch * 6.2832 / 16000)) for i in range(count)))
sound = io.BytesIO()
with wave.open(sound, "wb") as file:
    file.setparams((1, 2, 16000, count, "NONE", "")); file.writeframes(samples.tobytes())
(open(output, "wb") if output else sys.stdout.buffer).write(sound.getvalue())
"""


def ready(name: str) -> Voice:
    try:
        return voice_named(name)
    except CorpusError as error:
        pytest.skip(str(error))


def program(folder: Path, code: str, *arguments: str) -> str:
    """The command line of a Python program."""
    script = folder / "my program.py"
    script.write_text(code)
    return shlex.join([sys.executable, str(script), *arguments])


def refusal(voice: Voice, text: str) -> str:
    return voice.engine.unreadable(text, voice.name) or ""


def fundamental(waveform: np.ndarray) -> float:
    """The median fundamental frequency of the louder half of a waveform, in Hz."""
    frames = waveform[: len(waveform) // 800 * 800].reshape(-1, 800)
    loud = frames[np.square(frames).sum(axis=1) >= np.median(np.square(frames).sum(axis=1))]
    lags = np.arange(16_000 // 400, 16_000 // 60)
    return float(np.median([16_000 / lags[np.argmax([frame[:-lag] @ frame[lag:] for lag in lags])] for frame in loud]))


@pytest.mark.parametrize("name", ["espeak-ng:en-us", "flite:kal16", "hibari:heart"])
def test_texts_are_spoken_as_text_at_the_speed_and_pitch_that_are_asked_for(name: str, tmp_path, monkeypatch) -> None:
    voice = ready(name)
    monkeypatch.chdir(tmp_path)
    usual = voice.speak(SENTENCE, seed=3)
    assert usual.dtype == np.float32 and usual.ndim == 1 and 1.5 < len(usual) / 16_000 < 5
    assert np.array_equal(usual, voice.speak(SENTENCE, seed=3)), "the same text gives the same samples"
    assert len(voice.speak(SENTENCE, speed=1.25)) == pytest.approx(len(usual) / 1.25, rel=0.1)
    high = voice.speak(SENTENCE, pitch=1.25)
    assert len(high) == pytest.approx(len(usual), rel=0.1)
    assert fundamental(high) == pytest.approx(1.25 * fundamental(usual), rel=0.12)
    for text in ("-w stolen.wav --help", "; $(touch made) `touch made` | 'x' \"y\"", "two\nlines\x00 and\ttab"):
        assert len(voice.speak(plain(text))) > 4_000
    assert not list(tmp_path.iterdir())
    assert "'П'" in refusal(voice, "Say Привет") and "'中'" in refusal(voice, "中")
    assert not refusal(voice, "Crème brûlée, 3 × naïve") or voice.engine.name == "flite"


def test_flite_reads_accents_and_typographic_marks_plainly_and_nothing_else() -> None:
    voice = ready("flite:kal16")
    assert np.array_equal(voice.speak("The naïve café isn’t “open”"), voice.speak('The naive cafe isn\'t "open"'))
    assert "'£'" in refusal(voice, "It costs £5") and refusal(voice, "😀") and not refusal(voice, "Well 😀")
    with pytest.raises(AudioError, match="stays silent at '…'"):
        voice.speak("…")


def test_texts_that_cannot_be_spoken_are_refused() -> None:
    for text, reason in ((" \n\x01", "empty"), ("...", "nothing to say"), ("\ud800 a", "not Unicode")):
        with pytest.raises(ValueError, match=reason):
            plain(text)


def test_any_command_speaks_and_its_text_arrives_as_it_is(tmp_path: Path) -> None:
    noted = tmp_path / "noted.txt"
    tool = program(tmp_path, TOOL, "{voice}", "{speed}", "{output}", "{text_file}", str(noted))
    low, high = command_voices(tool, ["low", "high"])
    assert (str(low), str(high)) == ("command:low", "command:high")
    text = "--help; $(touch made) 'it''s' \"{voice}\" %s 😀 [[x]]"
    waveform = low.speak(text)
    assert noted.read_text(encoding="utf-8") == text + "\n"
    assert len(waveform) == pytest.approx(1600 * (len(text) + 1), abs=2)
    assert (fundamental(waveform), fundamental(high.speak(text))) == pytest.approx((200, 400), rel=0.02)
    assert len(low.speak(text, speed=2.0)) == pytest.approx(len(waveform) / 2, abs=2)
    (piped,) = command_voices(program(tmp_path, TOOL))  # by standard input and output
    assert not piped.engine.paced and np.array_equal(piped.speak(text), waveform)


def test_a_command_that_fails_is_named_with_what_it_said(tmp_path: Path) -> None:
    started = time.monotonic()
    for code, reason in (
        ("import sys; sys.exit('no model called x')", "status 1: no model called x"),
        ("print('done')", "no audio file"),
        ("pass", "wrote no audio"),
        ("import time; time.sleep(60)", "longer than 1 s"),
        (TOOL.replace("len(text)", "1"), r"11 letters in 0\.1 s: some of .* is left out"),
    ):
        with pytest.raises(CorpusError, match=reason):
            command_voices(program(tmp_path, code), timeout_seconds=1)
    assert time.monotonic() - started < 20


def test_a_command_that_cannot_be_is_refused() -> None:
    for command, names, reason in (
        ("say {text}", [], r"has \{text\}; expected only .*\{text_file\}"),
        ("say {voice}", [], r"has \{voice\}: name some with --voices"),
        ("say {text_file}", ["anna"], r"has no \{voice\}"),
        ("say '", [], "No closing quotation"),
        ("no-such-program {text_file}", [], "'no-such-program' is not on this machine"),
    ):
        with pytest.raises(ValueError, match=reason):
            command_voices(command, names)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("flite:nobody", "does not list 'nobody', but kal"),
        ("espeak-ng:en-us+nobody", "does not list 'nobody', but"),
        ("espeak-ng:nowhere", "voice does not exist"),
        ("espeak-ng:../en-us", "expected a name such as en-us"),
        ("hibari:nobody", "unknown voice 'nobody'"),
        ("sapi:anna", r"no text-to-speech engine 'sapi'.* espeak-ng, flite, hibari"),
    ],
)
def test_voices_that_are_not_there_are_named(name: str, reason: str) -> None:
    if not name.startswith("sapi"):
        ready(name.partition(":")[0])
    with pytest.raises(CorpusError, match=reason):
        voice_named(name)


def test_default_voices_are_those_of_the_table_that_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message about missing ones says how to install them."""
    try:
        voices = [str(voice) for voice in default_voices()]
        table = [f"{name}:{voice}" for name, engine in known_engines().items() for voice in engine.voices]
        assert voices == [name for name in table if name in voices] and len(set(voices)) == len(voices)
    except CorpusError:
        pass
    monkeypatch.setenv("PATH", "/nowhere")
    engines._hibari.cache_clear()
    monkeypatch.setitem(sys.modules, "hibari", None)
    reasons = r"is not on this machine\. Install it .apt install espeak-ng, brew install.*flite.*audiollm\[voice\]"
    with pytest.raises(CorpusError, match=rf"No text-to-speech engine is installed\. .*{reasons}"):
        default_voices()

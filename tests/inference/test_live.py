"""Live transcripts: words that stay once they are final, bounded memory, and `audiollm listen`."""

import io
import json
import re
import sys
import time

import audiollm
import numpy as np
import pytest
import soundfile
from audiollm import AudioLlmForConditionalGeneration
from audiollm.corpora.prompts import load_studio_prompts
from audiollm.evaluation.word_error import score_word_error
from audiollm.inference import listen
from audiollm.inference.live import (
    BEFORE_SECONDS,
    MAX_NEW_SECONDS,
    MAX_TAKEN_SECONDS,
    PAUSE_SECONDS,
    STEP_SECONDS,
    LiveTranscriber,
    LiveUpdate,
)
from audiollm.inference.text_likelihood import rounded_up
from audiollm.inference.transcripts import Word
from long_recordings import RATE, in_a_row, prompts
from tiny_models import hearing_model

BLOCK = RATE // 10


@pytest.fixture(scope="module")
def model(tiny_bases, tiny_processor) -> AudioLlmForConditionalGeneration:
    return hearing_model(tiny_bases, tiny_processor)


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """Some phrases, between pauses."""
    return in_a_row(prompts(4), [0.5, 1.5, 0.8, 1.2, 1.5])


@pytest.fixture(scope="module")
def checkpoint(model, tiny_processor, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("live") / "model"
    model.save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    return str(folder)


def blocks_of(waveform: np.ndarray, size: int = BLOCK) -> list[np.ndarray]:
    return [waveform[start : start + size] for start in range(0, len(waveform), size)]


def listened(model, processor, blocks, **options) -> list[LiveUpdate]:
    return list(LiveTranscriber(model, processor, **options).transcribe(blocks))


def text_of(updates) -> list[str]:
    return [word.text for update in updates for word in update.final]


def test_words_become_final_in_order_and_all_at_a_pause(model, tiny_processor, speech) -> None:
    updates = listened(model, tiny_processor, blocks_of(speech))
    words = [word for update in updates for word in update.final]
    assert len(words) > 3 and updates[-1].is_pause
    assert [word.start_s for word in words] == sorted(word.start_s for word in words)
    for update in updates:
        assert all(word.end_s <= update.seconds + 0.01 for word in update.final)
        assert not (update.is_pause and update.pending)
    assert any(update.pending for update in updates)
    assert updates[-1].seconds == pytest.approx(len(speech) / RATE)


def test_blocks_within_a_step_make_no_difference(model, tiny_processor, speech) -> None:
    some = listened(model, tiny_processor, blocks_of(speech, RATE // 25), step_seconds=0.8)
    others = listened(model, tiny_processor, blocks_of(speech, RATE // 5), step_seconds=0.8)
    assert some == others


def test_memory_does_not_grow_and_long_blocks_are_caught_up_with(model, tiny_processor) -> None:
    live = LiveTranscriber(model, tiny_processor, step_seconds=2.0)
    phrase = np.concatenate(prompts(3))  # without a pause
    seconds = 0.0
    for _ in range(4):
        for update in live.feed(phrase):
            seconds = update.seconds
            assert len(live._kept) <= (BEFORE_SECONDS + MAX_NEW_SECONDS + MAX_TAKEN_SECONDS + STEP_SECONDS) * RATE
    assert live.seconds == pytest.approx(4 * len(phrase) / RATE) and live.seconds - seconds < 2.0


def test_few_shapes_are_run(model, tiny_processor, speech) -> None:
    """torch's libraries keep what they have prepared for each shape: of many shapes, megabytes each, for ever."""
    frames, positions = [], []
    handles = [
        model.model.audio_tower.conv1.register_forward_pre_hook(lambda _, given: frames.append(given[0].shape[-1])),
        model.get_decoder()
        .layers[0]
        .mlp.register_forward_pre_hook(lambda _, given: positions.append(given[0].shape[1])),
    ]
    live = LiveTranscriber(model, tiny_processor)
    for size in (RATE // 13, RATE // 7, RATE * 3):  # that no step is a multiple of
        for block in blocks_of(speech, size):
            list(live.feed(block))
        live.finish()
    for handle in handles:
        handle.remove()
    step = round(STEP_SECONDS * 100)
    assert len(frames) > 20 and all(count % step == 0 for count in frames)
    assert max(frames) <= (BEFORE_SECONDS + MAX_NEW_SECONDS + MAX_TAKEN_SECONDS + STEP_SECONDS) * 100
    assert len(positions) > 20 and all(count == rounded_up(count) for count in positions)


def test_silence_and_noise_have_no_words(model, tiny_processor) -> None:
    noise = 0.01 * np.random.default_rng(0).standard_normal(6 * RATE).astype(np.float32)
    for sound in (np.zeros(6 * RATE, dtype=np.float32), noise, np.zeros(0, dtype=np.float32)):
        updates = listened(model, tiny_processor, blocks_of(sound))
        assert not text_of(updates) and not any(update.pending for update in updates)


def test_context_words_are_favoured(model, tiny_processor, speech) -> None:
    plain = text_of(listened(model, tiny_processor, blocks_of(speech)))
    name = "Zyx"
    favoured = text_of(listened(model, tiny_processor, blocks_of(speech), context=[name]))
    assert favoured.count(name) > plain.count(name)


def test_what_cannot_be_heard_live_is_refused(model, tiny_processor, tiny_model) -> None:
    with pytest.raises(ValueError, match="projector_readout"):
        LiveTranscriber(tiny_model, tiny_processor)
    for seconds in (0.01, 2 * MAX_TAKEN_SECONDS):
        with pytest.raises(ValueError, match=f"step_seconds is {seconds:g}"):
            LiveTranscriber(model, tiny_processor, step_seconds=seconds)


def test_it_hears_about_what_a_transcript_holds(real_bases) -> None:
    model = audiollm.load()
    rows = [row for row in load_studio_prompts("test") if 2.0 <= row["duration_s"] <= 4.0][:3]
    pause = PAUSE_SECONDS + STEP_SECONDS + 0.1  # so that a look falls into its end, wherever it begins
    sound = in_a_row([model.processor.load_audio(row["audio"]) for row in rows], [0.5, pause, pause, 0.5])
    updates = list(model.listen(blocks_of(sound)))
    assert score_word_error([" ".join(row["text"] for row in rows)], [" ".join(text_of(updates))]).word_error <= 0.3
    assert sum(word[0].isupper() for word in text_of(updates)) >= len(rows)  # each begins an utterance


# --------------------------------------------------------------------------------------------------------- the command


def test_a_file_and_standard_input_are_heard_alike(checkpoint, speech, tmp_path, capsys, monkeypatch) -> None:
    path = tmp_path / "speech.wav"
    soundfile.write(path, speech, RATE, subtype="PCM_16")
    listen.main([str(path), "--model", checkpoint, "--fast", "--output_format", "json"])
    of_file = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    samples = soundfile.read(path, dtype="int16")[0].tobytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(samples)))
    listen.main(["-", "--model", checkpoint, "--output_format", "json"])
    of_pipe = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert of_file == of_pipe and any(one["final"] for one in of_file)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(samples)))
    listen.main(["-", "--model", checkpoint, "--output_format", "json", "--rate", str(2 * RATE)])
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["seconds"] == pytest.approx(of_file[-1]["seconds"] / 2, abs=0.01)
    listen.main([str(path), "--model", checkpoint, "--fast", "--context", "Zyx", "--step_seconds", "1.6"])
    printed = capsys.readouterr().out
    assert "Zyx" in printed and printed.count("\n") < len(of_file)


def test_a_terminal_shows_each_final_word_once(capsys) -> None:
    words = [str(number) * 7 for number in range(10)] * 3
    looks = [
        LiveUpdate(tuple(Word(one, 0, 0, None) for one in words[n : n + 2]), " ".join(words), 0, False)
        for n in range(0, 30, 2)
    ]
    column = 0
    for look in [*looks, LiveUpdate((), "", 0, True)]:
        column = listen.show(look, column, 40)
    rows: list[str] = [""]
    for part in re.split(r"(\x1b\[\d*[CK]|\r|\n)", re.sub(r"\x1b\[[02]m", "", capsys.readouterr().out)):
        if part == "\n":
            rows.append("")
        elif part == "\r":
            place = 0
        elif part.endswith("C") and part.startswith("\x1b"):
            place = int(part[2:-1])
        elif part.startswith("\x1b"):
            rows[-1] = rows[-1][:place]
        else:
            rows[-1] += part
            assert len(rows[-1]) < 40
    assert " ".join(rows).split() == words


def test_a_file_is_paced_as_if_it_were_spoken_now(tmp_path, monkeypatch) -> None:
    path = tmp_path / "half.wav"
    soundfile.write(path, np.zeros(RATE // 2), RATE)
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    assert sum(map(len, listen.file_blocks(str(path), RATE, fast=True))) == RATE // 2 and not waits
    assert sum(map(len, listen.file_blocks(str(path), RATE, fast=False))) == RATE // 2
    assert max(waits) == pytest.approx(0.5, abs=0.2)  # as nothing is really waited for


def test_samples_of_another_rate_are_resampled() -> None:
    tone = (8000 * np.sin(2 * np.pi * 440 * np.arange(24_000) / 24_000)).astype("<i2").tobytes()
    heard = np.concatenate(list(listen.pipe_blocks(io.BufferedReader(io.BytesIO(tone)), 24_000, RATE)))
    assert abs(len(heard) - RATE) <= 1
    assert np.abs(np.fft.rfft(heard)).argmax() == pytest.approx(440, abs=1)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(["nowhere.wav"], "nowhere.wav"), (["-", "--rate", "0"], "--rate is 0"), (["-", "--context", ","], "no word")],
)
def test_bad_input_is_named(arguments, named, checkpoint, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        listen.main([*arguments, "--model", checkpoint])
    assert end.value.code == 2 and named in capsys.readouterr().err


@pytest.mark.parametrize("sound", [np.zeros((100, 2), np.float32), np.zeros(100, np.int16)])
def test_sound_with_channels_or_integers_is_refused(sound, model, tiny_processor) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{sound.dtype} {sound.shape}")):
        list(LiveTranscriber(model, tiny_processor).feed(sound))


def test_half_a_sample_and_a_missing_microphone_are_named(monkeypatch) -> None:
    with pytest.raises(ValueError, match="within a sample"):
        list(listen.pipe_blocks(io.BufferedReader(io.BytesIO(b"123")), RATE, RATE))
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(ValueError, match=r"audiollm\[live\]"):
        next(listen.microphone_blocks(RATE))

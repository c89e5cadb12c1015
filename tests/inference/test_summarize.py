"""Recordings longer than the context: nothing left out, answers joined until they are one, and runs that go on."""

import json
from itertools import pairwise

import numpy as np
import pytest
import soundfile
from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor
from audiollm.inference import generate
from audiollm.inference.answering import answer, ask
from audiollm.inference.in_parts import InParts, seconds_of_slots
from audiollm.inference.session import ContextLengthError, Session
from audiollm.inference.summarize import PARTIAL_ENDING, main
from long_recordings import RATE, prompts, silence
from tiny_models import llama_config, randomise_trainables, save_text_base

#: Tokens of the tiny context, which is about 15 s of audio with question and answer.
CONTEXT = 256
SECONDS = 35
JOIN, QUESTION = "Join: {answers}", "What?"


@pytest.fixture(scope="module")
def pair(tiny_bases, tmp_path_factory) -> tuple:
    """A tiny model with a short context, and its processor."""
    text = save_text_base(tmp_path_factory.mktemp("text"), llama_config(max_position_embeddings=CONTEXT))
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(tiny_bases[0], text, lora_rank=4)
    return randomise_trainables(model).eval(), AudioLlmProcessor.from_audio_text_pretrained(tiny_bases[0], text)


@pytest.fixture
def summarize(run, pair, tmp_path):
    """Return what runs the command, which has to end with the status `code`, and gives what it has printed."""
    for part in pair:
        part.save_pretrained(tmp_path / "pair")
    options = ["--model", tmp_path / "pair", "--prompt", QUESTION, "--join_prompt", JOIN, "--max_new_tokens", "8"]
    return lambda *words, code=0: run(main, *options, "--no_progress", *words, code=code)


@pytest.fixture(scope="module")
def long_recording(tmp_path_factory) -> str:
    """Real prompts in a row."""
    path = tmp_path_factory.mktemp("sounds") / "long.wav"
    soundfile.write(path, np.resize(np.concatenate(prompts(20)), SECONDS * RATE), RATE)
    return str(path)


def test_every_part_is_asked_every_answer_joined_and_a_broken_run_goes_on(
    pair, summarize, long_recording, tmp_path, monkeypatch
) -> None:
    model, processor = pair
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    summarize(long_recording, "--output_dir", whole)
    kept = json.loads((whole / "long.json").read_text())
    parts, *joined = kept["rounds"]
    assert len(parts) >= 3 and parts[0]["start_s"] == 0 and parts[-1]["end_s"] == SECONDS
    assert all(one["end_s"] == following["start_s"] for one, following in pairwise(parts))
    waveform = processor.load_audio(long_recording)
    for one in parts:
        clip = waveform[round(one["start_s"] * RATE) : round(one["end_s"] * RATE)]
        assert one["text"] == answer(model, processor, [ask(QUESTION, clip)], max_new_tokens=8)[0]
    assert len(joined[-1]) == 1 and (joined[-1][0]["start_s"], joined[-1][0]["end_s"]) == (0, SECONDS)
    assert (whole / "long.txt").read_text() == f"{joined[-1][0]['text']}\n" == f"{kept['answer']}\n"
    assert sorted(path.name for path in whole.iterdir()) == ["long.json", "long.txt"]

    asked: list[int] = []
    stream = Session.stream

    def broken_off(session, text, *recordings, **options):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(len(recordings))
        return stream(session, text, *recordings, **options)

    monkeypatch.setattr(Session, "stream", broken_off)
    summarize(long_recording, "--output_dir", broken, code=130)
    assert len((broken / f"long.{PARTIAL_ENDING}").read_text().splitlines()) == 3
    asked[:] = [0] * 3  # goes on to the end
    summarize(long_recording, "--output_dir", broken)
    assert sum(asked) == len(parts) - 2 and len(asked) - 3 == len(parts) - 2 + sum(map(len, joined))
    for name in ("long.json", "long.txt"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()
    summarize(long_recording, "--output_dir", broken, code=2)
    summarize(long_recording, "--output_dir", broken, "--overwrite")


def test_answers_are_joined_in_text_by_the_base(pair, long_recording) -> None:
    in_parts = InParts(*pair, QUESTION, "Join: {question} {answers}", max_new_tokens=8)
    waveform = pair[1].load_audio(long_recording)[: 20 * RATE]
    whole = in_parts.answer([waveform])
    first, second = whole.rounds[0]
    text = f"Join: {QUESTION} 0:00:00 to 0:00:{int(second.start / RATE):02d}: {' '.join(first.text.split())}\n"
    text += f"0:00:{int(second.start / RATE):02d} to 0:00:20: {' '.join(second.text.split())}"
    untouched, adapted = (
        answer(*pair, [ask(text)], max_new_tokens=8, adapter_names=[name])[0]
        for name in (None, *pair[0].config.lora_adapters)
    )
    assert whole.text == untouched != adapted
    waveform = waveform[: 5 * RATE]  # what fits is asked once
    whole = InParts(*pair, QUESTION, JOIN, max_new_tokens=8).answer([waveform])
    assert [len(answers) for answers in whole.rounds] == [1]
    assert whole.text == Session(*pair, max_new_tokens=8).ask(QUESTION, waveform)


def test_rounds_go_on_until_it_fits(pair, long_recording) -> None:
    """Many short parts, of whose answers the context holds a few at a time."""
    in_parts = InParts(*pair, QUESTION, "{answers}", part_seconds=4, max_new_tokens=30)
    whole = in_parts.answer([pair[1].load_audio(long_recording)])
    assert len(whole.rounds) >= 3
    for answers, joined in pairwise(whole.rounds):
        assert len(joined) < len(answers)
        assert (joined[0].start, joined[-1].end) == (0, SECONDS * RATE)
        assert {one.start for one in joined} <= {one.start for one in answers}
    assert whole.text == whole.rounds[-1][0].text


def test_silence_is_told_and_not_asked_about(summarize, tmp_path) -> None:
    clip = prompts(1)[0][:RATE]
    soundfile.write(tmp_path / "gap.wav", np.concatenate([clip, silence(9 - len(clip) / RATE)]), RATE)
    soundfile.write(tmp_path / "quiet.wav", silence(2), RATE)
    printed = summarize(tmp_path / "gap.wav", "--part_seconds", "2")
    assert printed.out.strip() and "silent, and not asked about: " in printed.err
    assert summarize(tmp_path / "quiet.wav").out == "\n"


def test_what_does_not_fit_is_said(pair, run, checkpoint, summarize, long_recording, tmp_path) -> None:
    for options, message in (
        ({"max_new_tokens": 400}, r"smaller bound on new tokens: at most \d\d"),
        ({"part_seconds": 60, "max_new_tokens": 8}, r"A part of 60 s .* leaves room for \d\d\.\d s"),
    ):
        with pytest.raises(ContextLengthError, match=message):
            InParts(*pair, "What?", JOIN, **options)
    words = ["--model", checkpoint, "--audio", long_recording, "--prompt", "<audio>" + "x" * 800]
    message = run(generate.main, *words, code=2).err
    assert "the language model can hold 1024" in message and f"are {SECONDS}.0 s of recordings" in message
    assert "audiollm summarize" in message
    for option, message in (
        ("--join_prompt=x", "has no {answers} in it"),
        ("--prompt=<audio><audio>", "has 2 <audio>"),
        ("--part_seconds=0.5", "Parts of 0.5 s are too short"),
        ("--overwrite", "give --output_dir"),
    ):
        assert message in summarize(long_recording, option, code=2).err
    (tmp_path / "no.wav").write_bytes(b"no sound")
    assert "no.wav" in summarize(tmp_path / "no.wav", code=1).err


def test_the_longest_recording_that_fits(tiny_processor) -> None:
    for slots in (15, 375, 1000):
        seconds = seconds_of_slots(tiny_processor, slots)
        assert tiny_processor.num_audio_slots(int(seconds * RATE)) <= slots
        assert tiny_processor.num_audio_slots(int((seconds + 0.2) * RATE)) > slots

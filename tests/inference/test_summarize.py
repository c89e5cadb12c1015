"""Recordings longer than the context: nothing left out, answers joined until they are one, and runs that go on."""

import json
from itertools import pairwise
from pathlib import Path

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
from tiny_models import llama_config, randomise_trainables, save_audio_base, save_text_base

#: Tokens of the tiny context, which is about 15 s of audio with question and answer.
CONTEXT = 256
SECONDS = 45
JOIN, QUESTION = "Join: {answers}", "What?"
OPTIONS = ["--prompt", QUESTION, "--join_prompt", JOIN, "--max_new_tokens", "8", "--no_progress"]


@pytest.fixture(scope="module")
def short_context(tmp_path_factory) -> tuple:
    """A tiny pair with a short context, and the folder it is in."""
    folder = tmp_path_factory.mktemp("model")
    bases = (
        save_audio_base(folder / "audio"),
        save_text_base(folder / "text", llama_config(max_position_embeddings=CONTEXT)),
    )
    model = randomise_trainables(AudioLlmForConditionalGeneration.from_audio_text_pretrained(*bases, lora_rank=4))
    processor = AudioLlmProcessor.from_audio_text_pretrained(*bases)
    model.save_pretrained(folder / "pair")
    processor.save_pretrained(folder / "pair")
    return model.eval(), processor, str(folder / "pair")


@pytest.fixture(scope="module")
def long_recording(tmp_path_factory) -> str:
    """Real prompts in a row."""
    path = tmp_path_factory.mktemp("sounds") / "long.wav"
    soundfile.write(path, np.resize(np.concatenate(prompts(30)), SECONDS * RATE), RATE)
    return str(path)


def summarize(*arguments: str, code: int = 0) -> None:
    """Run the command, which has to end with the status `code`."""
    status = 0
    try:
        main([*OPTIONS, *arguments])
    except SystemExit as ended:
        status = ended.code
    assert status == code


def test_every_part_is_asked_and_every_answer_joined(short_context, long_recording, tmp_path) -> None:
    model, processor, pair = short_context
    summarize(long_recording, "--model", pair, "--output_dir", str(tmp_path))
    kept = json.loads((tmp_path / "long.json").read_text())
    parts, *joined = kept["rounds"]
    assert len(parts) >= 3 and parts[0]["start_s"] == 0 and parts[-1]["end_s"] == SECONDS
    assert all(one["end_s"] == following["start_s"] for one, following in pairwise(parts))
    waveform = processor.load_audio(long_recording)
    for one in parts:
        clip = waveform[round(one["start_s"] * RATE) : round(one["end_s"] * RATE)]
        assert one["text"] == answer(model, processor, [ask(QUESTION, clip)], max_new_tokens=8)[0]
    assert len(joined[-1]) == 1 and (joined[-1][0]["start_s"], joined[-1][0]["end_s"]) == (0, SECONDS)
    assert (tmp_path / "long.txt").read_text() == f"{joined[-1][0]['text']}\n" == f"{kept['answer']}\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["long.json", "long.txt"]


def test_answers_are_joined_in_text_by_the_base(short_context, long_recording) -> None:
    model, processor, _ = short_context
    in_parts = InParts(model, processor, QUESTION, "Join: {question} {answers}", max_new_tokens=8)
    waveform = processor.load_audio(long_recording)[: 20 * RATE]
    whole = in_parts.answer([waveform])
    first, second = whole.rounds[0]
    text = f"Join: {QUESTION} 0:00:00 to 0:00:{int(second.start / RATE):02d}: {' '.join(first.text.split())}\n"
    text += f"0:00:{int(second.start / RATE):02d} to 0:00:20: {' '.join(second.text.split())}"
    untouched, adapted = (
        answer(model, processor, [ask(text)], max_new_tokens=8, adapter_names=[name])[0]
        for name in (None, *model.config.lora_adapters)
    )
    assert whole.text == untouched != adapted
    waveform = waveform[: 5 * RATE]  # what fits is asked once
    whole = InParts(model, processor, QUESTION, JOIN, max_new_tokens=8).answer([waveform])
    assert [len(answers) for answers in whole.rounds] == [1]
    assert whole.text == Session(model, processor, max_new_tokens=8).ask(QUESTION, waveform)


def test_rounds_go_on_until_it_fits(short_context, long_recording) -> None:
    """Many short parts, of whose answers the context holds a few at a time."""
    model, processor, _ = short_context
    in_parts = InParts(model, processor, QUESTION, "{answers}", part_seconds=5, max_new_tokens=30)
    whole = in_parts.answer([processor.load_audio(long_recording)])
    assert len(whole.rounds) >= 3
    for answers, joined in pairwise(whole.rounds):
        assert len(joined) < len(answers)
        assert (joined[0].start, joined[-1].end) == (0, SECONDS * RATE)
        assert {one.start for one in joined} <= {one.start for one in answers}
    assert whole.text == whole.rounds[-1][0].text


def test_silence_is_told_and_not_asked_about(short_context, tmp_path, capsys) -> None:
    _, _, pair = short_context
    clip = prompts(1)[0][:RATE]
    soundfile.write(tmp_path / "gap.wav", np.concatenate([clip, silence(9 - len(clip) / RATE)]), RATE)
    soundfile.write(tmp_path / "quiet.wav", silence(2), RATE)
    summarize(str(tmp_path / "gap.wav"), "--model", pair, "--part_seconds", "2")
    printed = capsys.readouterr()
    assert printed.out.strip() and "silent, and not asked about: " in printed.err
    summarize(str(tmp_path / "quiet.wav"), "--model", pair)
    assert capsys.readouterr().out == "\n"


def test_a_run_that_was_broken_off_goes_on(short_context, long_recording, tmp_path, monkeypatch) -> None:
    _, _, pair = short_context
    command = [long_recording, "--model", pair, "--output_dir"]
    summarize(*command, str(tmp_path / "whole"))
    asked: list[int] = []
    stream = Session.stream

    def broken_off(session, text, *recordings, **options):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(len(recordings))
        return stream(session, text, *recordings, **options)

    monkeypatch.setattr(Session, "stream", broken_off)
    summarize(*command, str(tmp_path / "broken"), code=130)
    assert len((tmp_path / "broken" / f"long.{PARTIAL_ENDING}").read_text().splitlines()) == 3
    asked[:] = [0] * 3  # goes on to the end
    summarize(*command, str(tmp_path / "broken"))
    parts, *joined = json.loads((tmp_path / "broken/long.json").read_text())["rounds"]
    assert sum(asked) == len(parts) - 2 and len(asked) - 3 == len(parts) - 2 + sum(map(len, joined))
    for name in ("long.json", "long.txt"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    summarize(*command, str(tmp_path / "broken"), code=2)
    summarize(*command, str(tmp_path / "broken"), "--overwrite")


def test_what_does_not_fit_is_said(short_context, long_recording, tmp_path, capsys) -> None:
    model, processor, pair = short_context
    with pytest.raises(SystemExit):
        generate.main(["--model", pair, "--audio", long_recording])
    message = capsys.readouterr().err
    assert f"the language model can hold {CONTEXT}" in message and f"are {SECONDS}.0 s of recordings" in message
    assert "audiollm summarize" in message
    with pytest.raises(ContextLengthError, match=r"smaller bound on new tokens: at most \d\d"):
        InParts(model, processor, "What?", JOIN, max_new_tokens=400)
    with pytest.raises(ContextLengthError, match=r"A part of 60 s .* leaves room for \d\d\.\d s"):
        InParts(model, processor, "What?", JOIN, part_seconds=60, max_new_tokens=8)
    for options, words in (
        (["--join_prompt", "x"], "has no {answers} in it"),
        (["--prompt", "<audio><audio>"], "has 2 <audio>"),
        (["--part_seconds", "0.5"], "Parts of 0.5 s are too short"),
        (["--overwrite"], "give --output_dir"),
    ):
        summarize(long_recording, "--model", pair, *options, code=2)
        assert words in capsys.readouterr().err
    Path(tmp_path / "no.wav").write_bytes(b"no sound")
    summarize(str(tmp_path / "no.wav"), "--model", pair, code=1)
    assert "no.wav" in capsys.readouterr().err


def test_the_longest_recording_that_fits(tiny_processor) -> None:
    for slots in (15, 375, 1000):
        seconds = seconds_of_slots(tiny_processor, slots)
        assert tiny_processor.num_audio_slots(int(seconds * RATE)) <= slots
        assert tiny_processor.num_audio_slots(int((seconds + 0.2) * RATE)) > slots

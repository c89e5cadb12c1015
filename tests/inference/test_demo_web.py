"""What a visitor of `audiollm demo-web` can do, without the page: answers, refusals, files, transcripts, options."""

import itertools
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from audiollm.inference import demo_web
from audiollm.inference.demo_web import DemoWebArguments
from audiollm.inference.session import Session
from audiollm.inference.transcribing import Transcriber
from audiollm.inference.transcripts import Transcript
from audiollm.inference.web.sound import log_mel, picture
from audiollm.inference.web.transcribing import Desk, Progress
from audiollm.inference.web.visitor import House, Limits, VisitError, Visitor
from audiollm.processing import AudioError, load_waveform
from web_server import MAX_AUDIO_SECONDS, MAX_NEW_TOKENS, Slowed, bad_uploads, tiny_pair, wait_for, write_noise

TOKENS = 12
MANY_TOKENS, SECONDS_PER_TOKEN = 200, 0.02


@pytest.fixture(scope="module")
def pair(tiny_bases) -> tuple[Any, Any]:
    return tiny_pair(tiny_bases)


@pytest.fixture
def house(pair) -> House:
    return House(*pair, Limits(MAX_AUDIO_SECONDS, MAX_NEW_TOKENS))


@pytest.fixture
def visitor(house) -> Visitor:
    return Visitor(house)


@pytest.fixture
def clips(tmp_path) -> list[str]:
    return [write_noise(tmp_path / f"clip{index}.wav", 0.8 + index, index) for index in range(2)]


def answered(visitor: Visitor, tokens: int = TOKENS, temperature: float = 0.0) -> str:
    """The answer to what was asked, which is also what the page shows."""
    text = "".join(visitor.answer(tokens, temperature))
    assert visitor.chat[-1] == {"role": "assistant", "content": text}
    return text


def expected(house: House, text: str | None, *recordings: str, **options: Any) -> str:
    """What the model answers when it is asked without a page."""
    return Session(house.model, house.processor).ask(text, *recordings, **{"max_new_tokens": TOKENS, **options})


def test_the_streamed_answer_grows_to_that_without_a_page(visitor, house, clips) -> None:
    visitor.ask("What is said?", clips[0], True)
    shown = [visitor.chat[-1]["content"] for _ in visitor.answer(TOKENS, 0)]
    assert shown[-1] == expected(house, "What is said?", clips[0]) != ""
    assert len(shown) > 3 and all(later.startswith(earlier) for earlier, later in itertools.pairwise(shown))
    assert visitor.note.startswith(f"Cut at {TOKENS} tokens.")


def test_a_follow_up_goes_on_with_the_conversation(visitor, house, clips) -> None:
    session = Session(house.model, house.processor, max_new_tokens=TOKENS)
    for text, path, is_new in (("What?", clips[0], True), ("By whom?", clips[0], False), ("", clips[1], True)):
        visitor.ask(text, path, True)
        assert answered(visitor) == session.ask(text or None, *([path] if is_new else []))  # each is sent once
    assert "were remembered" in visitor.note


def test_the_adapter_can_be_left_out_of_one_answer(visitor, house, clips) -> None:
    on, off = (expected(house, "What?", clips[0], **names) for names in ({}, {"adapter_names": [None]}))
    assert on != off
    visitor.ask("What?", clips[0], True)
    assert answered(visitor) == on
    for adapter, text in ((False, off), (True, on)):
        visitor.ask_again(adapter)
        assert ("[adapter off]" in visitor.chat[-1]["content"]) == (not adapter)
        assert answered(visitor) == text
    assert [message["role"] for message in visitor.chat] == ["user", "assistant"] * 3  # all answers can be read
    visitor.ask("Why?", clips[0], True)
    session = Session(house.model, house.processor, max_new_tokens=TOKENS)
    session.ask("What?", clips[0])
    assert answered(visitor) == session.ask("Why?")  # as if it had been asked once


def test_settings_matter_and_have_bounds(visitor, clips) -> None:
    visitor.ask("What?", clips[0], True)
    assert len(answered(visitor, tokens=3)) <= 3
    drawn = set()
    for _ in range(3):
        visitor.ask_again(True)
        drawn.add(answered(visitor, temperature=2.0))
    assert len(drawn) > 1
    for tokens, temperature in ((0, 0), (MAX_NEW_TOKENS + 1, 0), (5, -0.1), (5, 2.1), (float("nan"), 0)):
        visitor.ask("Why?", clips[0], True)
        with pytest.raises(VisitError, match="this page takes"):
            next(visitor.answer(tokens, temperature))
    assert len(visitor.chat) == 2 * 4  # what was refused is not there


def test_what_cannot_be_asked_is_refused(visitor, clips) -> None:
    with pytest.raises(VisitError, match="Write a question"):
        visitor.ask("  ", None, True)
    with pytest.raises(VisitError, match="no question yet"):
        visitor.ask_again(True)
    with pytest.raises(VisitError, match="1 <audio> for 0 recordings"):
        visitor.ask("<audio>?", None, True)
    visitor.ask("word " * 300, None, True)
    with pytest.raises(ValueError, match="the language model can hold 1024"):
        next(visitor.answer(TOKENS, 0))
    assert visitor.chat == []
    visitor.ask("What?", clips[0], True)
    assert answered(visitor)


def test_a_question_that_waits_can_be_replaced(visitor, house, clips) -> None:
    visitor.ask("What is said?", clips[0], True)
    visitor.ask("What?", clips[0], True)
    assert answered(visitor) == expected(house, "What?", clips[0])
    assert len(visitor.chat) == 2
    assert [*visitor.answer(TOKENS, 0)] == []  # the first one's turn


def test_while_an_answer_is_written_nothing_else_is_done(visitor, clips) -> None:
    visitor.ask("What?", clips[0], True)
    answer = visitor.answer(MANY_TOKENS, 0)
    next(answer)
    for deed in (visitor.clear, lambda: visitor.ask("Why?", None, True), lambda: visitor.ask_again(True)):
        with pytest.raises(VisitError, match="still being written"):
            deed()
    answer.close()  # as when the page is gone
    assert visitor.note.startswith("Stopped.")
    visitor.ask("Why?", clips[0], True)
    assert answered(visitor)


def test_stop_ends_an_answer_within_a_token_and_it_goes_on_from_there(visitor, house, clips) -> None:
    visitor.ask("What?", clips[0], True)
    with Slowed(house.model, SECONDS_PER_TOKEN) as steps:
        for count, _ in enumerate(visitor.answer(MANY_TOKENS, 0)):
            if count == 3:
                visitor.stop()
                before = steps.count
        assert steps.count - before <= 1
    assert visitor.note.startswith("Stopped.") and 0 < len(visitor.chat[-1]["content"]) < MANY_TOKENS
    so_far = visitor.chat[-1]["content"]
    visitor.ask("Why?", clips[0], True)
    messages = [
        {"role": "user", "content": [{"type": "audio", "path": clips[0]}, {"type": "text", "text": "\nWhat?"}]},
        {"role": "assistant", "content": so_far},
    ]
    session = Session(house.model, house.processor, messages=messages, max_new_tokens=TOKENS)
    assert answered(visitor) == session.ask("Why?")


def test_a_question_stopped_before_its_answer_was_not_asked(visitor, house, clips) -> None:
    visitor.ask("What?", clips[0], True)
    visitor.stop()
    assert [*visitor.answer(TOKENS, 0)] == [] and visitor.chat == [] and "Stopped" in visitor.note
    visitor.ask("And?", clips[0], True)
    assert answered(visitor) == expected(house, "And?", clips[0])


def test_clear_forgets_the_conversation_but_not_the_recording_at_hand(visitor, clips) -> None:
    visitor.ask("What?", clips[0], True)
    first = answered(visitor)
    visitor.clear()
    assert visitor.chat == []
    visitor.ask("What?", clips[0], True)
    assert answered(visitor) == first


def test_a_system_message_begins_every_conversation(pair) -> None:
    visitor = Visitor(House(*pair, Limits(MAX_AUDIO_SECONDS, MAX_NEW_TOKENS), "Be brief."))
    answers = set()
    for _ in range(2):
        visitor.ask("Hello?", None, True)
        answers.add(answered(visitor))
        visitor.clear()
    assert answers == {Session(*pair, system="Be brief.", max_new_tokens=TOKENS).ask("Hello?")}


# ---- recordings ----------------------------------------------------------------------------------------------------


def test_bad_recordings_are_refused_by_name_and_reason(visitor, tmp_path) -> None:
    for path, reason in bad_uploads(tmp_path / "sent"):
        with pytest.raises(AudioError, match=re.escape(reason)) as refused:
            visitor.take(path)
        assert str(tmp_path) not in str(refused.value)  # where the server keeps files is its own affair
        assert visitor.sound is None and not Path(path).exists()


def test_a_container_that_does_not_say_its_length_is_read_no_further_than_the_bound(visitor, tmp_path) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / "long.aac"
    with av.open(str(path), "w", format="adts") as container:
        stream = container.add_stream("aac", rate=16_000)
        stream.layout = "mono"
        samples = np.zeros((1, int(16_000 * (MAX_AUDIO_SECONDS + 5))), dtype=np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate = 16_000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    with pytest.raises(AudioError, match=r"more than 20.0 s long; this page takes at most 20.0 s"):
        visitor.take(str(path))


def test_a_wrong_ending_does_not_matter(visitor, house, clips, tmp_path) -> None:
    path = Path(clips[0]).rename(tmp_path / "clip.mp3")
    assert visitor.take(str(path)).describe() == "clip.mp3: 0.8 s, 10 audio tokens."


def test_files_go_when_nobody_has_them_any_more(house, clips) -> None:
    one, other = Visitor(house), Visitor(house)
    house.uploads.keep([clips[1]])
    for visitor in (one, other):
        visitor.take(clips[0])
        visitor.take(clips[0])
    one.leave()
    assert Path(clips[0]).exists()
    other.take(clips[1])
    assert not Path(clips[0]).exists()
    other.leave()
    assert Path(clips[1]).exists()  # an example of the page


def test_the_picture_is_what_the_processor_computes(house, clips) -> None:
    waveform = load_waveform(clips[1])
    (features,) = house.processor.extract_features(waveform)
    np.testing.assert_array_equal(log_mel(waveform, house.processor), features)
    pooled = log_mel(waveform, house.processor, max_columns=40)
    assert pooled.shape[1] <= 40 and pooled.max() == features.max()
    long = np.tile(waveform, 20)
    assert log_mel(long, house.processor, max_columns=10_000).shape[1] == len(long) // 160
    for tiny in (waveform[:1], np.zeros(16_000, dtype=np.float32)):
        assert picture(tiny, house.processor).startswith('<figure class="sound"><img alt="Waveform')


# ---- transcribing --------------------------------------------------------------------------------------------------


def test_transcribing_tells_how_far_it_is(house, tmp_path) -> None:
    path = write_noise(tmp_path / "meeting.wav", 6)
    *progress, transcript = Desk(house).transcribe(path, threading.Event())
    (wanted,) = Transcriber(house.model, house.processor, progress=False).transcribe([path])
    assert isinstance(transcript, Transcript) and transcript.text == wanted.text != ""
    assert transcript.audio == "meeting.wav"
    assert progress and all(isinstance(each, Progress) and each.total_s == 6 for each in progress)
    assert progress[-1].done_s == pytest.approx(6)


def test_transcribing_stops_within_a_token(house, tmp_path) -> None:
    path = write_noise(tmp_path / "meeting.wav", 6)
    desk, stop = Desk(house), threading.Event()
    results: list[Any] = []
    with Slowed(house.model, SECONDS_PER_TOKEN) as steps:
        reader = threading.Thread(target=lambda: results.extend(desk.transcribe(path, stop)))
        reader.start()
        wait_for(lambda: steps.count > 3)
        stop.set()
        before = steps.count
        reader.join()
        assert steps.count - before <= 1 and not results
    assert [*desk.transcribe(path, threading.Event())]  # the next one's turn
    for bad, reason in bad_uploads(tmp_path / "sent"):
        with pytest.raises(ValueError, match=re.escape(reason)):
            [*desk.transcribe(bad, threading.Event())]


# ---- options -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"port": 0}, "--port is 0"),
        ({"auth": "guest"}, "USER:PASSWORD"),
        ({"max_upload_mb": 0.0}, "--max_upload_mb is 0"),
        ({"max_audio_seconds": -1.0}, "--max_audio_seconds is -1"),
        ({"max_new_tokens": 0}, "--max_new_tokens is 0"),
    ],
)
def test_options_that_cannot_be_are_refused(options, reason) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        DemoWebArguments(**options)


def test_by_default_nobody_else_gets_in() -> None:
    options = DemoWebArguments()
    assert options.host == "127.0.0.1" and not options.share and not options.is_open
    assert DemoWebArguments(host="0.0.0.0").is_open and DemoWebArguments(share=True).is_open
    assert not DemoWebArguments(host="0.0.0.0", auth="a:b").is_open and not DemoWebArguments(host="localhost").is_open


def test_the_command_says_what_is_wrong(tmp_path, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        demo_web.main(["--model", str(tmp_path)])
    assert "no config.json" in str(ended.value.code)
    with pytest.raises(SystemExit):
        demo_web.main(["--port", "99999"])
    assert "--port is 99999" in capsys.readouterr().err


def test_the_model_is_loaded_as_asked_for(pair, tmp_path, monkeypatch) -> None:
    for part in pair:
        part.save_pretrained(tmp_path)
    loaded = []

    def no_page(model: Any, *_: Any) -> None:
        loaded.append(model)
        raise OSError("no page here")

    monkeypatch.setattr(demo_web, "served", no_page)
    for options in ([], ["--merge_adapters", "--dtype", "bfloat16", "--attn_implementation", "eager"]):
        with pytest.raises(SystemExit, match="no page here"):
            demo_web.main(["--model", str(tmp_path), *options])
    plain, other = loaded
    assert plain.config.lora_adapters and not other.config.lora_adapters
    assert (plain.dtype, other.dtype) == (torch.float32, torch.bfloat16)
    names = [model.get_decoder().config._attn_implementation for model in loaded]
    assert names == ["sdpa", "eager"]
    for option, reason in (("--device", "no_such cannot be used"), ("--model", "no such folder, and it is no Hub id")):
        with pytest.raises(SystemExit, match=reason):
            demo_web.main(["--model", str(tmp_path), option, "no_such" if option == "--device" else "no such"])

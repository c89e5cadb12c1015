"""The page of `audiollm demo-web` without a browser or server: answers, refusals, files, pictures, options."""

import re
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from audiollm.inference import demo_web
from audiollm.inference.demo_web import DemoWebArguments
from audiollm.inference.session import Session
from audiollm.processing import load_waveform
from web_server import MAX_AUDIO_SECONDS, MAX_NEW_TOKENS, Slowed, bad_uploads, wait_for, write_noise

pytest.importorskip("gradio", reason='the page needs Gradio: pip install "audiollm[web]"')
import gradio
from audiollm.inference.web.page import REFUSED, Page, Uploads, Visitor
from audiollm.inference.web.sound import log_mel, picture

TOKENS = 12
MANY_TOKENS, SECONDS_PER_TOKEN = 200, 0.02


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("uploads")


@pytest.fixture(scope="module")
def page(endless_pair, folder) -> Page:
    options = DemoWebArguments(max_audio_seconds=MAX_AUDIO_SECONDS, max_new_tokens=MAX_NEW_TOKENS)
    return Page(*endless_pair, options, str(folder))


@pytest.fixture
def uploads(folder, request) -> list[str]:
    """Two recordings of this test's own."""
    return [write_noise(folder / f"{request.node.name[:20]}{index}.wav", 0.8 + index, index) for index in range(2)]


class Tab:
    """One visitor, with conversation and files in the form in which Gradio gives them when a question is asked again."""

    def __init__(self, page: Page):
        self.page = page
        self.chatbot = next(block for block in page.blocks.blocks.values() if isinstance(block, gradio.Chatbot))
        self.visitor = Visitor(Session(page.model, page.processor))
        self.request = SimpleNamespace(session_hash=str(id(self)))
        self.history: list[dict[str, Any]] = []
        self.note = self.sound = ""

    def ask(self, text: str, *paths: str, adapter: bool = True, tokens: float = TOKENS, temperature: float = 0) -> Any:
        """Ask, and return the answers as they grow."""
        asked, shown = {"text": text, "files": [{"path": path} for path in paths]}, []
        request: Any = self.request
        known: Any = self.chatbot.preprocess(self.chatbot.postprocess(self.history))  # type: ignore[arg-type]
        outputs = self.page.answer(asked, known, adapter, tokens, temperature, self.visitor, request)
        for answer, self.sound, self.note in outputs:
            shown.append(answer)
            yield answer
        content = [*({"path": path} for path in paths), *([text] if text else [])]
        self.history.append({"role": "user", "content": content})
        last = shown[-1]
        self.history.append(last if isinstance(last, dict) else {"role": "assistant", "content": last})

    def answer(self, *asked: Any, **options: Any) -> str:
        """Ask, and return the whole answer."""
        *_, last = self.ask(*asked, **options)
        assert isinstance(last, str), last
        return last

    def refusal(self, *asked: Any, **options: Any) -> str:
        """Ask, and return the reason why there is no answer."""
        *_, last = self.ask(*asked, **options)
        assert last["metadata"]["title"] == REFUSED
        return last["content"]


@pytest.fixture
def tab(page) -> Tab:
    return Tab(page)


def expected(page: Page, text: str | None, *recordings: str, **options: Any) -> str:
    """The answer of the model when it is asked without a page."""
    return Session(page.model, page.processor).ask(text, *recordings, **{"max_new_tokens": TOKENS, **options})


def test_a_follow_up_goes_on_with_the_conversation(page, tab, uploads) -> None:
    session = Session(page.model, page.processor, max_new_tokens=TOKENS)
    for text, *paths in (("What?", uploads[0]), ("By whom?",), ("", uploads[1]), ("Both?", *uploads)):
        assert tab.answer(text, *paths) == session.ask(text or None, *paths)
    assert "were in the cache" in tab.note and f"Cut at {TOKENS} tokens." in tab.note


def test_the_adapter_can_be_left_out_of_one_answer(tab, page, uploads) -> None:
    on, off = (expected(page, "What?", uploads[0], **names) for names in ({}, {"adapter_names": [None]}))
    assert on != off
    for adapter, answer in ((True, on), (False, off), (True, on)):
        assert tab.answer("What?", uploads[0], adapter=adapter) == answer
        assert tab.note.endswith("Adapter off.") == (not adapter)
        tab.history.clear()  # as by the button that asks again


def test_settings_matter_and_what_cannot_be_asked_is_no_part_of_the_conversation(tab, page, uploads, tmp_path) -> None:
    path = Path(uploads[0]).rename(Path(uploads[0]).with_suffix(".mp3"))  # a wrong ending does not matter
    assert len(tab.answer("What?", str(path), tokens=3)) <= 3
    assert f"{path.name}: 0.8 s, 10 audio tokens." in tab.sound
    assert len({tab.answer("What?", str(path), temperature=2.0) for _ in range(3)}) > 1
    tab.history.clear()
    for tokens, temperature in ((0, 0), (MAX_NEW_TOKENS + 1, 0), (5, -0.1), (5, 2.1), (float("nan"), 0)):
        assert "This page takes" in tab.refusal("Why?", str(path), tokens=tokens, temperature=temperature)
    assert "Write a question" in tab.refusal("  ")
    assert "1 <audio> for 0 recordings" in tab.refusal("<audio>?")
    assert "the language model can hold 1024" in tab.refusal("word " * 300)
    own = write_noise(tmp_path / "own.wav", 0.5)
    assert "own.wav was not uploaded" in tab.refusal("What?", own) and Path(own).exists()
    assert tab.answer("What?", uploads[1]) == expected(page, "What?", uploads[1])


def test_stop_ends_an_answer_within_a_token_and_it_goes_on_from_there(tab, page, uploads) -> None:
    answers = tab.ask("What?", uploads[1])
    next(answers)
    tab.visitor.stop.set()
    assert [*answers] == [""]  # stopped before its answer, it was not asked
    with Slowed(page.model, SECONDS_PER_TOKEN) as steps:
        for count, _ in enumerate(tab.ask("What?", uploads[0], tokens=MANY_TOKENS)):
            if count == 4:
                tab.visitor.stop.set()
                before = steps.count
        assert steps.count - before <= 1
    so_far = tab.history[-1]["content"]
    assert tab.note.startswith("Stopped.") and 0 < len(so_far) < MANY_TOKENS
    messages = [
        {"role": "user", "content": [{"type": "audio", "path": uploads[0]}, {"type": "text", "text": "\nWhat?"}]},
        {"role": "assistant", "content": so_far},
    ]
    session = Session(page.model, page.processor, messages=messages, max_new_tokens=TOKENS)
    assert tab.answer("Why?") == session.ask("Why?")


# ---- recordings ----------------------------------------------------------------------------------------------------


def test_refused_recordings_stay_until_their_visitor_leaves(page, tab, folder) -> None:
    for path, reason in bad_uploads(folder / "sent"):
        said = tab.refusal("What?", path)
        assert reason in said and str(folder) not in said  # the place of files is the server's own affair
        assert Path(path).exists()  # the conversation plays it
    page.leave(tab.request)
    assert not any((folder / "sent").glob("*"))


def test_a_container_that_does_not_say_its_length_is_read_no_further_than_the_bound(tab, folder) -> None:
    av = pytest.importorskip("av")
    path = folder / "long.aac"
    with av.open(str(path), "w", format="adts") as container:
        stream = container.add_stream("aac", rate=16_000)
        stream.layout = "mono"
        samples = np.zeros((1, int(16_000 * (MAX_AUDIO_SECONDS + 5))), dtype=np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate = 16_000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    assert "long.aac is longer than 20.0 s, the most that this page takes" in tab.refusal("What?", str(path))


def test_files_go_when_nobody_uses_them_any_more(page, uploads) -> None:
    one, other = Tab(page), Tab(page)
    for tab in (one, other):
        tab.answer("What?", uploads[0])
        tab.answer("And now?", uploads[0])
    page.leave(one.request)
    assert Path(uploads[0]).exists()
    page.forget(other.visitor)
    assert not Path(uploads[0]).exists()
    held = Uploads()
    held.hold([uploads[1]])  # an example of the page
    for deed in (held.hold, held.release):
        deed([uploads[1]])
    assert Path(uploads[1]).exists()


def test_the_picture_is_what_the_processor_computes(page, uploads) -> None:
    waveform = load_waveform(uploads[1])
    (features,) = page.processor.extract_features(waveform)
    np.testing.assert_array_equal(log_mel(waveform, page.processor), features)
    pooled = log_mel(waveform, page.processor, max_columns=40)
    assert pooled.shape[1] <= 40 and pooled.max() == features.max()
    long = np.tile(waveform, 20)
    assert log_mel(long, page.processor, max_columns=10_000).shape[1] == len(long) // 160
    assert picture(waveform[:1], page.processor).startswith('<figure class="sound"><img alt="Waveform')


def test_transcribing_stops_within_a_token(page, folder) -> None:
    tab, path = Tab(page), write_noise(folder / "meeting.wav", 6)
    outputs: list[Any] = []

    def transcribe(recording: str | None) -> None:
        request: Any = tab.request
        outputs.extend(page.transcribe(recording, tab.visitor, request))

    with Slowed(page.model, SECONDS_PER_TOKEN) as steps:
        reader = threading.Thread(target=transcribe, args=(path,))
        reader.start()
        wait_for(lambda: steps.count > 3)
        tab.visitor.stop_transcribing.set()
        before = steps.count
        reader.join()
        assert steps.count - before <= 1 and outputs[-1][0] == "Stopped." and not Path(path).exists()
    transcribe(None)
    assert "Choose a recording" in outputs[-1][0]


# ---- options -------------------------------------------------------------------------------------------------------


def test_options_that_cannot_be_are_refused_and_by_default_nobody_else_gets_in() -> None:
    for options, reason in (
        ({"port": 0}, "--port is 0"),
        ({"auth": "guest"}, "USER:PASSWORD"),
        ({"max_audio_seconds": -1.0}, "--max_audio_seconds is -1"),
    ):
        with pytest.raises(ValueError, match=re.escape(reason)):
            DemoWebArguments(**options)
    options = DemoWebArguments()
    assert options.host == "127.0.0.1" and not options.share and not options.is_open
    assert DemoWebArguments(host="0.0.0.0").is_open and DemoWebArguments(share=True).is_open
    assert not DemoWebArguments(host="0.0.0.0", auth="a:b").is_open and not DemoWebArguments(host="localhost").is_open


def test_the_command_says_what_hinders_it(checkpoint, monkeypatch, tmp_path, capsys) -> None:
    served: list[Any] = []

    def no_page(model: Any, *_: Any) -> None:
        served.append(model)
        raise OSError("no page here")

    monkeypatch.setattr(demo_web, "served", no_page)
    for options, said in (
        (["--merge_adapters"], "no page here"),
        (["--device", "no_such"], "no_such cannot be used"),
        (["--model", str(tmp_path)], "no config.json"),
        (["--port", "99999"], "--port is 99999"),
    ):
        with pytest.raises(SystemExit):
            demo_web.main(["--model", str(checkpoint), *options])
        assert said in capsys.readouterr().err
    (model,) = served
    assert not model.config.lora_adapters

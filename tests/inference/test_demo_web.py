"""The page of `audiollm demo-web` without a browser: answers, refusals, files, pictures, transcripts, options."""

import itertools
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from audiollm.inference import demo_web
from audiollm.inference.demo_web import DemoWebArguments
from audiollm.inference.session import Session
from audiollm.inference.transcribing import Transcriber
from audiollm.processing import load_waveform
from web_server import MAX_AUDIO_SECONDS, MAX_NEW_TOKENS, Slowed, bad_uploads, tiny_pair, wait_for, write_noise

pytest.importorskip("gradio", reason='the page needs Gradio: pip install "audiollm[web]"')
import gradio
from audiollm.inference.web.page import REFUSED, Limits, Page, Uploads, Visitor
from audiollm.inference.web.sound import log_mel, picture

TOKENS = 12
MANY_TOKENS, SECONDS_PER_TOKEN = 200, 0.02


@pytest.fixture(scope="module")
def pair(tiny_bases) -> tuple[Any, Any]:
    return tiny_pair(tiny_bases)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("uploads")


@pytest.fixture(scope="module")
def page(pair, folder) -> Page:
    return Page(*pair, Limits(MAX_AUDIO_SECONDS, MAX_NEW_TOKENS), str(folder), max_upload_mb=1)


@pytest.fixture
def clips(folder, request) -> Iterator[list[str]]:
    yield [write_noise(folder / f"{request.node.name[:20]}{index}.wav", 0.8 + index, index) for index in range(2)]


class Tab:
    """One visitor, with the conversation as Gradio's chat keeps it."""

    def __init__(self, page: Page, as_shown: bool = False):
        self.page, self.as_shown = page, as_shown
        self.visitor = Visitor(Session(page.model, page.processor))
        self.request = SimpleNamespace(session_hash=str(id(self)))
        self.history: list[dict[str, Any]] = []
        self.note = self.sound = ""

    def ask(self, text: str, *paths: str, adapter: bool = True, tokens: float = TOKENS, temperature: float = 0) -> Any:
        """Ask, and return the answers as they grow."""
        # When a question is asked again, Gradio gives files as the conversation keeps them.
        asked = {"text": text, "files": [{"path": path} for path in paths] if self.as_shown else list(paths)}
        shown: list[Any] = []
        outputs = self.page.answer(
            asked,
            self.known(),
            adapter,
            tokens,
            temperature,
            self.visitor,
            self.request,  # type: ignore[arg-type]
        )
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

    def known(self) -> list[dict[str, Any]]:
        """The conversation in one of the two forms in which Gradio gives it."""
        if not self.as_shown:
            return self.history
        chat = self.page.blocks.blocks
        chatbot = next(block for block in chat.values() if isinstance(block, gradio.Chatbot))
        return chatbot.preprocess(chatbot.postprocess(self.history))  # type: ignore[arg-type]


@pytest.fixture(params=[False, True], ids=["called", "shown"])
def tab(page, request) -> Tab:
    return Tab(page, request.param)


def expected(page: Page, text: str | None, *recordings: str, **options: Any) -> str:
    """The answer of the model when it is asked without a page."""
    return Session(page.model, page.processor).ask(text, *recordings, **{"max_new_tokens": TOKENS, **options})


def test_the_streamed_answer_grows_to_that_without_a_page(tab, page, clips) -> None:
    shown = [*tab.ask("What is said?", clips[0])]
    assert shown[-1] == expected(page, "What is said?", clips[0]) != ""
    assert len(shown) > 4 and all(later.startswith(earlier) for earlier, later in itertools.pairwise(shown))
    assert tab.note.startswith(f"Cut at {TOKENS} tokens.")
    assert tab.sound.startswith("<figure") and f"{Path(clips[0]).name}: 0.8 s, 10 audio tokens." in tab.sound


def test_a_follow_up_goes_on_with_the_conversation(tab, page, clips) -> None:
    session = Session(page.model, page.processor, max_new_tokens=TOKENS)
    for text, *paths in (("What?", clips[0]), ("By whom?",), ("", clips[1]), ("Both?", *clips)):
        assert tab.answer(text, *paths) == session.ask(text or None, *paths)
    assert "were in the cache" in tab.note


def test_the_adapter_can_be_left_out_of_one_answer(tab, page, clips) -> None:
    on, off = (expected(page, "What?", clips[0], **names) for names in ({}, {"adapter_names": [None]}))
    assert on != off
    for adapter, answer in ((True, on), (False, off), (True, on)):
        assert tab.answer("What?", clips[0], adapter=adapter) == answer
        assert tab.note.endswith("Adapter off.") == (not adapter)
        tab.history.clear()  # as by the button that asks again


def test_settings_matter_and_have_bounds(tab, clips) -> None:
    assert len(tab.answer("What?", clips[0], tokens=3)) <= 3
    assert len({tab.answer("What?", clips[0], temperature=2.0) for _ in range(3)}) > 1
    question = {"role": "user", "content": "?"}
    before = len(tab.page._turns([*tab.history, question], tab.visitor))
    for tokens, temperature in ((0, 0), (MAX_NEW_TOKENS + 1, 0), (5, -0.1), (5, 2.1), (float("nan"), 0)):
        assert "this page takes" in tab.refusal("Why?", clips[0], tokens=tokens, temperature=temperature)
    assert len(tab.page._turns([*tab.history, question], tab.visitor)) == before


def test_what_cannot_be_asked_is_refused_and_no_part_of_the_conversation(tab, page, clips) -> None:
    assert "Write a question" in tab.refusal("  ")
    assert "1 <audio> for 0 recordings" in tab.refusal("<audio>?")
    assert "the language model can hold 1024" in tab.refusal("word " * 300)
    assert tab.answer("What?", clips[0]) == expected(page, "What?", clips[0])


def test_stop_ends_an_answer_within_a_token_and_it_goes_on_from_there(tab, page, clips) -> None:
    with Slowed(page.model, SECONDS_PER_TOKEN) as steps:
        for count, _ in enumerate(tab.ask("What?", clips[0], tokens=MANY_TOKENS)):
            if count == 4:
                tab.visitor.stop.set()
                before = steps.count
        assert steps.count - before <= 1
    so_far = tab.history[-1]["content"]
    assert tab.note.startswith("Stopped.") and 0 < len(so_far) < MANY_TOKENS
    tab.as_shown = False  # which tidies up blanks
    messages = [
        {"role": "user", "content": [{"type": "audio", "path": clips[0]}, {"type": "text", "text": "\nWhat?"}]},
        {"role": "assistant", "content": so_far},
    ]
    session = Session(page.model, page.processor, messages=messages, max_new_tokens=TOKENS)
    assert tab.answer("Why?") == session.ask("Why?")


def test_a_question_stopped_before_its_answer_was_not_asked(tab, page, clips) -> None:
    answers = tab.ask("What?", clips[0])
    next(answers)
    tab.visitor.stop.set()
    assert [*answers] == [""]
    assert tab.answer("And?", clips[1]) == expected(page, "And?", clips[1])


def test_a_system_message_begins_every_conversation(pair, folder) -> None:
    page = Page(*pair, Limits(MAX_AUDIO_SECONDS, MAX_NEW_TOKENS), str(folder), 1, "Be brief.")
    right = Session(*pair, system="Be brief.", max_new_tokens=TOKENS).ask("Hello?")
    assert [Tab(page).answer("Hello?") for _ in range(2)] == [right] * 2


# ---- recordings ----------------------------------------------------------------------------------------------------


def test_bad_recordings_are_refused_by_name_and_reason(page, tab, folder) -> None:
    for path, reason in bad_uploads(folder / "sent"):
        for _ in range(2):
            said = tab.refusal("What?", path)
            assert reason in said and str(folder) not in said  # the place of files is the server's own affair
        assert Path(path).exists()  # the conversation plays it
    page.leave(tab.request)
    assert not any((folder / "sent").glob("*"))


def test_files_of_the_server_are_not_read(tab, tmp_path) -> None:
    own = write_noise(tmp_path / "own.wav", 0.5)
    assert "own.wav was not uploaded" in tab.refusal("What?", own) and Path(own).exists()


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


def test_a_wrong_ending_does_not_matter(tab, clips) -> None:
    path = Path(clips[0]).rename(Path(clips[0]).with_suffix(".mp3"))
    tab.answer("What?", str(path))
    assert f"{path.name}: 0.8 s, 10 audio tokens." in tab.sound


def test_files_go_when_nobody_uses_them_any_more(page, clips) -> None:
    one, other = Tab(page), Tab(page)
    for tab in (one, other):
        tab.answer("What?", clips[0])
        tab.answer("And now?", clips[0])
    page.leave(one.request)
    assert Path(clips[0]).exists()
    page.clear(other.visitor)
    assert not Path(clips[0]).exists()
    uploads = Uploads()
    uploads.hold([clips[1]])  # an example of the page
    for deed in (uploads.hold, uploads.release):
        deed([clips[1]])
    assert Path(clips[1]).exists()


def test_the_picture_is_what_the_processor_computes(page, clips) -> None:
    waveform = load_waveform(clips[1])
    (features,) = page.processor.extract_features(waveform)
    np.testing.assert_array_equal(log_mel(waveform, page.processor), features)
    pooled = log_mel(waveform, page.processor, max_columns=40)
    assert pooled.shape[1] <= 40 and pooled.max() == features.max()
    long = np.tile(waveform, 20)
    assert log_mel(long, page.processor, max_columns=10_000).shape[1] == len(long) // 160
    for tiny in (waveform[:1], np.zeros(16_000, dtype=np.float32)):
        assert picture(tiny, page.processor).startswith('<figure class="sound"><img alt="Waveform')


# ---- transcribing --------------------------------------------------------------------------------------------------


def transcribed(tab: Tab, path: str | None) -> list[tuple[str, str, str]]:
    return [*tab.page.transcribe(path, tab.visitor, tab.request)]  # type: ignore[arg-type]


def test_transcribing_shows_progress_and_ends_with_files(page, folder) -> None:
    path = write_noise(folder / "meeting.wav", 6)
    (wanted,) = Transcriber(page.model, page.processor, progress=False).transcribe([path])
    outputs = transcribed(Tab(page), path)
    said, text, files = outputs[-1]
    assert "6.0 s transcribed" in said and text == wanted.text != ""
    assert all(f'download="meeting.{ending}"' in files for ending in ("txt", "srt", "vtt", "json"))
    assert any("<progress" in shown for shown, *_ in outputs) and not Path(path).exists()
    assert "Choose a recording" in transcribed(Tab(page), None)[-1][0]


def test_transcribing_stops_within_a_token(page, folder) -> None:
    tab, outputs = Tab(page), []
    path = write_noise(folder / "meeting.wav", 6)
    with Slowed(page.model, SECONDS_PER_TOKEN) as steps:
        reader = threading.Thread(target=lambda: outputs.extend(transcribed(tab, path)))
        reader.start()
        wait_for(lambda: steps.count > 3)
        tab.visitor.stop_transcribing.set()
        before = steps.count
        reader.join()
        assert steps.count - before <= 1 and outputs[-1][0] == "Stopped."
    for bad, reason in bad_uploads(folder / "sent"):
        said = transcribed(tab, bad)[-1][0]
        assert 'role="alert"' in said and reason in said and not Path(bad).exists()


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

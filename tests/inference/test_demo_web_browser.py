"""`audiollm demo-web` as it is used: in Chromium, with a microphone, two visitors, and tabs that are closed in mid-answer."""

import itertools
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest
from audiollm.inference.options import is_loopback
from web_server import Served, Slowed, serve, tiny_pair, wait_for, write_noise

pytest.importorskip("gradio", reason='the page needs Gradio: pip install "audiollm[web]"')
playwright = pytest.importorskip("playwright.sync_api", reason="browser tests need Playwright: pip install playwright")
#: A browser, Gradio's page and the model share two cores: what a person does in seconds may take a minute.
pytestmark = pytest.mark.slow

#: Debian's; elsewhere Playwright's own.
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]
TIMEOUT_MS = 30_000
SECONDS_PER_TOKEN = 0.02
TOKENS, PHONE = 30, {"width": 390, "height": 844}
#: Keeps every text that an answer has while it is written.
NOTE_ANSWERS = """() => {
    window.seen = [];
    new MutationObserver(() => {
        const text = document.querySelector("#chat [data-testid=bot]")?.innerText ?? "";
        if (text && text !== window.seen.at(-1)) window.seen.push(text);
    }).observe(document.body, {subtree: true, childList: true, characterData: true});
}"""
DESKTOP = {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def page(tiny_bases) -> Iterator[Served]:
    with serve(*tiny_pair(tiny_bases), max_new_tokens=TOKENS) as page:
        yield page


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("clips")
    return [write_noise(folder / f"clip{index}.wav", 0.8 + index, index) for index in range(3)]


@pytest.fixture(scope="module")
def chromium(clips) -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        microphone = f"--use-file-for-fake-audio-capture={clips[2]}"
        try:
            browser = driver.chromium.launch(executable_path=CHROMIUM, args=[*ARGUMENTS, microphone])
        except playwright.Error as error:
            pytest.skip(
                f"Chromium cannot be started ({str(error).splitlines()[0]}): `apt install chromium`, or `playwright "
                "install chromium`."
            )
        yield browser
        browser.close()


class Tab:
    """A visitor's tab, in a browser context of its own."""

    def __init__(self, chromium: Any, page: Served, size: dict[str, int] = DESKTOP):
        self.context = chromium.new_context(viewport=size, accept_downloads=True)
        self.tab = self.context.new_page()
        self.tab.set_default_timeout(TIMEOUT_MS)
        self.hosts: set[str] = set()
        self.tab.on("request", lambda request: self.hosts.add(request.url))
        self.errors: list[str] = []
        self.tab.on("pageerror", lambda error: self.errors.append(str(error)))
        self.tab.goto(page.url)
        self.tab.wait_for_selector("#question textarea")

    def upload(self, path: str) -> None:
        """Attach a file."""
        self.tab.locator("#question input[type=file]").first.set_input_files(path)
        self.tab.wait_for_selector("#question .thumbnail-item")

    def ask(self, text: str) -> None:
        self.tab.locator("#question textarea").fill(text)
        self.tab.get_by_test_id("submit-button").click()

    def wait_for_picture(self, name: str) -> None:
        self.tab.wait_for_function(
            f"(s => s?.querySelector('img')?.naturalWidth > 100 && s.innerText.includes({name!r}))"
            "(document.querySelector('#sound'))"
        )

    def wait_for_note(self, text: str) -> None:
        self.tab.wait_for_function(f"document.querySelector('#note').innerText.includes({text!r})")

    def answered(self, count: int = 1) -> str:
        """Return the last answer, once there are so many and it is complete."""
        self.tab.wait_for_function(
            f"document.querySelectorAll('#chat [data-testid=bot]').length >= {count} && "
            "/tokens in/.test(document.querySelector('#note').innerText)"
        )
        return self.tab.locator("#chat [data-testid=bot]").last.inner_text()

    def __enter__(self) -> "Tab":
        return self

    def __exit__(self, *_: Any) -> None:
        self.context.close()
        elsewhere = [url for url in self.hosts if url.startswith(("http", "ws")) and not is_loopback(host_of(url))]
        assert not elsewhere and not self.errors


@pytest.fixture
def visitor(chromium, page) -> Iterator[Tab]:
    with Tab(chromium, page) as tab:
        yield tab


def host_of(url: str) -> str:
    return urlparse(url).hostname or ""


def shown(text: str) -> str:
    """A text as a page shows it: runs of blanks are one."""
    return re.sub(r"\s+", " ", text).strip()


def test_record_ask_and_ask_again_without_the_adapter(visitor, page) -> None:
    question = visitor.tab.locator("#question")
    question.get_by_label("Record audio").click()
    question.get_by_label("Start recording").click()
    question.get_by_text("0:01").wait_for()
    question.get_by_label("Stop recording").click()
    question.get_by_label("Attach audio").click()
    question.locator(".thumbnail-item").wait_for()
    (recorded,) = Path(os.environ["GRADIO_TEMP_DIR"]).rglob("audio.wav")
    on = page.answer("What is said?", str(recorded), max_new_tokens=TOKENS)
    off = page.answer("What is said?", str(recorded), max_new_tokens=TOKENS, adapter_names=[None])
    visitor.tab.evaluate(NOTE_ANSWERS)
    with Slowed(page.model, 3 * SECONDS_PER_TOKEN):
        visitor.ask("What is said?")
        assert shown(visitor.answered()) == shown(on)
    seen = [shown(text) for text in visitor.tab.evaluate("window.seen")]
    assert len(seen) > 1 and all(later.startswith(earlier) for earlier, later in itertools.pairwise(seen))
    visitor.tab.locator("#adapter input").uncheck()
    visitor.tab.locator("#chat").get_by_label("Retry").click()
    visitor.wait_for_note("Adapter off")
    assert shown(visitor.answered()) == shown(off) != shown(on)
    assert visitor.tab.locator("#chat [data-testid=bot]").count() == 1


def test_transcribe_and_download(visitor, tmp_path) -> None:
    path = write_noise(tmp_path / "meeting.wav", 4)
    visitor.tab.get_by_role("tab", name="Transcribe").click()
    visitor.tab.locator("#long_recording input[type=file]").set_input_files(path)
    visitor.tab.locator("#long_recording").get_by_text("meeting").first.wait_for()
    visitor.tab.locator("#transcribe").click()
    link = visitor.tab.locator("#downloads a[download='meeting.srt']")
    link.wait_for()
    with visitor.tab.expect_download() as download:
        link.click()
    assert " --> " in Path(download.value.path()).read_text()
    assert visitor.tab.locator("#transcript textarea").input_value().strip()


def test_two_visitors_at_once(visitor, chromium, page, clips) -> None:
    with Tab(chromium, page, PHONE) as other:
        for each, clip in ((visitor, clips[0]), (other, clips[1])):
            each.upload(clip)
        with Slowed(page.model, SECONDS_PER_TOKEN):
            for each in (visitor, other):
                each.ask("What?")
            for each, clip in ((visitor, clips[0]), (other, clips[1])):
                assert shown(each.answered()) == shown(page.answer("What?", clip, max_new_tokens=TOKENS))
                each.wait_for_picture(Path(clip).name)
        assert "clip1" not in visitor.tab.content() and "clip0" not in other.tab.content()
        width = other.tab.evaluate("document.documentElement.scrollWidth")
        assert width <= PHONE["width"]  # nothing to scroll sideways for


def test_stop_and_a_tab_closed_in_mid_answer(chromium, page, clips) -> None:
    with Slowed(page.model, 10 * SECONDS_PER_TOKEN) as steps:
        with Tab(chromium, page) as visitor:
            visitor.upload(clips[2])
            visitor.ask("Hello?")
            visitor.tab.wait_for_function("document.querySelector('#chat [data-testid=bot]')?.innerText.trim()")
            (sent,) = Path(os.environ["GRADIO_TEMP_DIR"]).rglob("clip2.wav")
            before = steps.count
            visitor.tab.locator("#question button.stop-button").click()
            wait_for(lambda: not page.is_busy)
            assert steps.count - before <= 4
            before, steps.seconds = steps.count, 1.0  # half a minute, of which only the beginning is waited for
            visitor.ask("Hello again?")
            wait_for(lambda: page.is_busy and steps.count > before)
            before = steps.count
        wait_for(lambda: not page.is_busy)
        assert steps.count - before < TOKENS / 2
        wait_for(lambda: not sent.exists())

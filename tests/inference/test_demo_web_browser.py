"""`audiollm demo-web` as it is used: in Chromium, with a microphone, and a tab that is closed in mid-answer."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest
from audiollm.inference.options import is_loopback
from audiollm.inference.session import Session, model_lock
from web_server import Slowed, serve, wait_for, write_noise

pytest.importorskip("gradio", reason='the page needs Gradio: pip install "audiollm[web]"')
playwright = pytest.importorskip("playwright.sync_api", reason="browser tests need Playwright: pip install playwright")
#: A browser, Gradio's page and the model share two cores: what a person does in seconds may take a minute.
pytestmark = pytest.mark.slow

#: Debian's; elsewhere Playwright's own.
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
TIMEOUT_MS = 30_000
TOKENS, PHONE = 30, {"width": 390, "height": 844}


@pytest.fixture
def tab(endless_pair, tmp_path) -> Iterator[Any]:
    """A visitor's tab, in which nothing fails and nothing comes from elsewhere."""
    microphone = f"--use-file-for-fake-audio-capture={write_noise(tmp_path / 'spoken.wav', 3)}"
    with serve(*endless_pair, max_new_tokens=TOKENS) as url, playwright.sync_playwright() as driver:
        try:
            browser = driver.chromium.launch(executable_path=CHROMIUM, args=[*ARGUMENTS, microphone])
        except playwright.Error as error:
            pytest.skip(
                f"Chromium cannot be started ({error}): `apt install chromium`, or `playwright install chromium`."
            )
        tab = browser.new_page(viewport=PHONE)
        asked_for: list[str] = []
        errors: list[str] = []
        tab.on("request", lambda request: asked_for.append(request.url))
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.set_default_timeout(TIMEOUT_MS)
        tab.goto(url)
        yield tab
        browser.close()
        elsewhere = [one for one in asked_for if one.startswith(("http", "ws")) and not is_loopback(host_of(one))]
        assert not elsewhere and not errors


def host_of(url: str) -> str:
    return urlparse(url).hostname or ""


def answered(tab: Any, note: str) -> str:
    """Return the only answer, once the line about it says so."""
    tab.wait_for_function(f"/{note}/.test(document.querySelector('#note').innerText)")
    (answer,) = tab.locator("#chat [data-testid=bot]").all_inner_texts()
    return shown(answer)


def shown(text: str) -> str:
    """Return a text as a page shows it: runs of blanks are one."""
    return re.sub(r"\s+", " ", text).strip()


def test_record_ask_again_without_the_adapter_transcribe_stop_and_leave(tab, endless_pair, tmp_path) -> None:
    question, chat = tab.locator("#question"), tab.locator("#chat")
    question.get_by_label("Record audio").click()
    question.get_by_label("Start recording").click()
    question.get_by_text("0:01").wait_for()
    question.get_by_label("Stop recording").click()
    question.get_by_label("Attach audio").click()
    question.locator(".thumbnail-item").wait_for()
    (recorded,) = Path(os.environ["GRADIO_TEMP_DIR"]).rglob("audio.wav")

    def expected(**options: Any) -> str:
        return shown(Session(*endless_pair).ask("What is said?", str(recorded), max_new_tokens=TOKENS, **options))

    on, off = expected(), expected(adapter_names=[None])
    question.locator("textarea").fill("What is said?")
    tab.get_by_test_id("submit-button").click()
    assert answered(tab, "tokens in") == on
    tab.wait_for_function("document.querySelector('#sound img').naturalWidth > 100")
    tab.locator("#adapter input").uncheck()
    chat.get_by_label("Retry").click()
    assert answered(tab, "Adapter off") == off != on
    assert tab.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]  # nothing to scroll sideways for

    tab.get_by_role("tab", name="Transcribe").click()
    tab.locator("#long_recording input[type=file]").set_input_files(write_noise(tmp_path / "meeting.wav", 4))
    tab.locator("#long_recording").get_by_text("meeting").first.wait_for()
    tab.locator("#transcribe").click()
    link = tab.locator("#downloads a[download='meeting.srt']")
    with tab.expect_download() as download:
        link.click()
    assert " --> " in Path(download.value.path()).read_text()
    assert tab.locator("#transcript textarea").input_value().strip()

    tab.get_by_role("tab", name="Ask").click()
    lock = model_lock(endless_pair[0])
    with Slowed(endless_pair[0], 0.3) as steps:
        for again in range(2):
            before = steps.count
            question.locator("textarea").fill("Hello?")
            tab.get_by_test_id("submit-button").click()
            wait_for(lambda before=before: steps.count > before + 2)
            if again:
                tab.close()
            else:
                question.locator("button.stop-button").click()
            before = steps.count
            wait_for(lambda: not lock.locked())
            assert steps.count - before < 10
    wait_for(lambda: not recorded.exists())

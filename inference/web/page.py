"""The page in Gradio: what stands where, and which of a visitor's deeds each control does. Nothing of it comes from elsewhere."""

import base64
import html
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import gradio as gr
import torch

from ..long_audio import LONG_PAUSE_SECONDS
from ..transcripts import FORMATS, Transcript
from .sound import clock, picture
from .transcribing import Desk, Progress
from .visitor import MAX_TEMPERATURE, House, Visitor

TITLE = "AudioLLM"
STYLE_FILE = Path(__file__).with_name("page.css")
#: The system's own fonts: a page that fetches some works only with a network, and tells others who opens it.
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
MONOSPACED_FONTS = ("ui-monospace", "Menlo", "Consolas", "monospace")
#: Where the plain theme's are too pale to be read.
COLOURS = {
    "block_info_text_color": "*neutral_600",
    "block_info_text_color_dark": "*neutral_300",
    "input_placeholder_color": "*neutral_500",
    "input_placeholder_color_dark": "*neutral_400",
    "checkbox_border_color": "*neutral_500",
    "checkbox_border_color_dark": "*neutral_400",
    "button_primary_background_fill": "*primary_700",
    "button_primary_background_fill_hover": "*primary_800",
    "button_primary_background_fill_dark": "*primary_700",
}
#: Seconds between looks for forgotten files, and the age from which they are removed. Files at hand go at once.
CACHE_LOOK_SECONDS, CACHE_AGE_SECONDS = 600, 6 * 3600
#: What is wrong with what was asked for: told on the page, and no matter for the server's log.
REFUSALS = (ValueError, OSError)
NO_MEMORY = "There is not enough memory to answer that. Ask about a shorter recording, or start over."
#: Answers wait for each other in one queue, in which visitors see their place; so do transcriptions.
ANSWERS, TRANSCRIPTIONS = "answers", "transcriptions"
#: Recordings that are decoded and drawn at a time.
LOOKS = 4
HINT = "Record or upload something, then ask about it; a recording without a question is answered as speech."
ADAPTER_INFO = (
    "On: the trained LoRA acts on conversations with audio. Off: the bare language model gets the same audio."
)
NO_ADAPTER_INFO = "This checkpoint has no adapter that could be left out."
TRANSCRIBE_HINT = (
    "What is said in a long recording, window by window, as text and subtitles. Pauses of more than "
    f"{LONG_PAUSE_SECONDS:g} s are passed over."
)


class Page:
    """
    The page of one house.

    Args:
        house: the model, and what visitors may ask of it.
        max_upload_mb: to be told; Gradio refuses what is larger.
        examples: audio files to try.
    """

    def __init__(self, house: House, max_upload_mb: float, examples: Sequence[str] = ()):
        self.house, self.desk = house, Desk(house)
        self._bounds = f"At most {max_upload_mb:g} MB and {clock(house.limits.max_audio_seconds)}."
        self._visitors: WeakValueDictionary[str, Visitor] = WeakValueDictionary()
        with gr.Blocks(
            title=TITLE,
            analytics_enabled=False,
            fill_width=True,  # up to the bound of the style sheet
            delete_cache=(CACHE_LOOK_SECONDS, CACHE_AGE_SECONDS),
        ) as self.blocks:
            visitor = gr.State(Visitor(house), delete_callback=Visitor.leave)
            gr.Markdown(f"# {TITLE}\n{HINT} {self._bounds}", elem_id="top")
            with gr.Tab("Ask"):
                self._build_asking(visitor, examples)
            with gr.Tab("Transcribe"):
                self._build_transcribing(visitor)
            self.blocks.unload(self._leave)

    # ---- asking --------------------------------------------------------------------------------------------------

    def _build_asking(self, visitor: gr.State, examples: Sequence[str]) -> None:
        house = self.house
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                recording = gr.Audio(
                    label="Recording",
                    sources=["microphone", "upload"],
                    type="filepath",
                    editable=False,
                    buttons=[],
                    waveform_options=gr.WaveformOptions(show_recording_waveform=False),  # it is drawn below
                    elem_id="recording",
                )
                if examples:
                    gr.Examples([[path] for path in examples], recording, label="Recordings to try")
                sound = gr.HTML(elem_id="sound")
                adapter = gr.Checkbox(
                    house.has_adapter,
                    label="Adapter",
                    info=ADAPTER_INFO if house.has_adapter else NO_ADAPTER_INFO,
                    interactive=house.has_adapter,
                    elem_id="adapter",
                )
                with gr.Accordion("Settings", open=False):
                    bound = house.limits.max_new_tokens
                    max_new_tokens = gr.Slider(1, bound, bound, step=1, label="Longest answer, in tokens")
                    temperature = gr.Slider(
                        0, MAX_TEMPERATURE, 0, step=0.1, label="Temperature", info="0 takes the likeliest words."
                    )
            with gr.Column(scale=3, min_width=300):
                chat = gr.Chatbot(
                    label="Conversation",
                    render_markdown=False,  # an answer is shown as it is, ...
                    latex_delimiters=[],  # ... dollars included
                    buttons=["copy"],
                    feedback_options=None,
                    placeholder="Nothing has been asked yet.",
                    height="min(56vh, 520px)",
                    elem_id="chat",
                )
                question = gr.Textbox(
                    label="Question",
                    placeholder="What is said?",
                    lines=1,
                    max_lines=6,
                    elem_id="question",
                )
                with gr.Row(elem_classes="buttons"):
                    send = gr.Button("Ask", variant="primary", min_width=90, elem_id="send")
                    stop = gr.Button("Stop", min_width=90, elem_id="stop")
                    again = gr.Button("Ask again", min_width=90, elem_id="again")
                    clear = gr.Button("Clear", min_width=90, elem_id="clear")
                note = gr.HTML(elem_id="note")
        recording.change(
            self._look,
            [visitor, recording],
            [recording, sound],
            api_name="look",
            show_progress="hidden",
            concurrency_limit=LOOKS,
        )
        queued: dict[str, Any] = {
            "concurrency_id": ANSWERS,
            "concurrency_limit": 1,
            "show_progress": "minimal",
            "show_progress_on": note,
        }
        for trigger, put, inputs, name in (
            ([send.click, question.submit], self._ask, [visitor, question, recording, adapter], "ask"),
            ([again.click], self._ask_again, [visitor, adapter], "ask_again"),
        ):
            outputs = [chat, question, note] if name == "ask" else [chat, note]
            at_once: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None}
            asked = gr.on(trigger, put, inputs, outputs, api_name=name, **at_once)
            asked.then(
                self._answer, [visitor, max_new_tokens, temperature], [chat, note], api_name=f"answer_{name}", **queued
            )
        stop.click(self._stop, visitor, None, api_name="stop", concurrency_limit=None)
        for cleared, name in ((clear.click, "clear"), (chat.clear, "clear_chat")):
            cleared(self._clear, visitor, [chat, question, note], api_name=name, **at_once)

    def _look(self, visitor: Visitor, path: str | None, request: gr.Request) -> tuple[Any, str]:
        """Draws the recording that was given; one that cannot be used is taken out of the page again."""
        self._know(visitor, request)
        try:
            sound = visitor.take(path)
        except REFUSALS as error:
            return None, _alert(error)
        if sound is None:
            return gr.skip() if path is None else None, gr.skip() if path is None else ""
        waveform = sound.recording.waveform
        if waveform is None:
            return gr.skip(), gr.skip()
        return gr.skip(), picture(waveform, self.house.processor) + f"<p>{html.escape(sound.describe())}</p>"

    def _ask(self, visitor: Visitor, text: str, path: str | None, adapter: bool, request: gr.Request) -> tuple:
        self._know(visitor, request)
        try:
            visitor.ask(text or "", path, adapter)
        except REFUSALS as error:
            return gr.skip(), gr.skip(), _alert(error)
        return visitor.chat, "", html.escape(visitor.note)

    def _ask_again(self, visitor: Visitor, adapter: bool, request: gr.Request) -> tuple:
        self._know(visitor, request)
        try:
            visitor.ask_again(adapter)
        except REFUSALS as error:
            return gr.skip(), _alert(error)
        return visitor.chat, html.escape(visitor.note)

    def _answer(self, visitor: Visitor, max_new_tokens: float, temperature: float) -> Iterator[tuple]:
        if not visitor.is_waiting:  # what was asked was refused, or withdrawn
            yield gr.skip(), gr.skip()
            return
        try:
            for _ in visitor.answer(max_new_tokens, temperature):
                yield visitor.chat, html.escape(visitor.note)
        except REFUSALS as error:
            yield visitor.chat, _alert(error)
            return
        except torch.OutOfMemoryError as error:
            print(f"audiollm demo-web: {error}", file=sys.stderr, flush=True)
            yield visitor.chat, _alert(NO_MEMORY)
            return
        yield visitor.chat, html.escape(visitor.note)

    @staticmethod
    def _stop(visitor: Visitor) -> None:
        visitor.stop()

    @staticmethod
    def _clear(visitor: Visitor) -> tuple:
        try:
            visitor.clear()
        except REFUSALS as error:
            return visitor.chat, gr.skip(), _alert(error)
        return visitor.chat, "", ""

    # ---- transcribing --------------------------------------------------------------------------------------------

    def _build_transcribing(self, visitor: gr.State) -> None:
        gr.Markdown(TRANSCRIBE_HINT)
        file = gr.File(label="Recording", type="filepath", height=140, elem_id="long_recording")
        with gr.Row(elem_classes="buttons"):
            begin = gr.Button("Transcribe", variant="primary", min_width=120, elem_id="transcribe")
            stop = gr.Button("Stop", min_width=120, elem_id="stop_transcribing")
        progress = gr.HTML(elem_id="progress")
        text = gr.Textbox(label="Transcript", lines=8, max_lines=20, buttons=["copy"], elem_id="transcript")
        downloads = gr.HTML(elem_id="downloads")
        begin.click(
            self._transcribe,
            [visitor, file],
            [progress, text, downloads],
            api_name="transcribe",
            concurrency_id=TRANSCRIPTIONS,
            concurrency_limit=1,
            show_progress="minimal",
            show_progress_on=progress,
        )
        stop.click(self._stop_transcribing, visitor, None, api_name="stop_transcribing", concurrency_limit=None)

    def _transcribe(self, visitor: Visitor, path: str | None, request: gr.Request) -> Iterator[tuple]:
        self._know(visitor, request)
        if path is None:
            yield _alert("Choose a recording first."), "", ""
            return
        stop = visitor.begin_transcribing()
        self.house.uploads.hold(path)
        yield "Reading …", "", ""
        try:
            for result in self.desk.transcribe(path, stop):
                if isinstance(result, Transcript):
                    summary = f"{clock(result.seconds)} transcribed, in {len(result.passages)} windows."
                    yield html.escape(summary), result.text, _downloads(result)
                    return
                yield _bar(result), "", ""
            yield "Stopped.", "", ""
        except REFUSALS as error:
            yield _alert(error), "", ""
        finally:
            self.house.uploads.release(path)

    @staticmethod
    def _stop_transcribing(visitor: Visitor) -> None:
        visitor.stop_transcribing()

    # ---- visitors ------------------------------------------------------------------------------------------------

    def _know(self, visitor: Visitor, request: gr.Request) -> None:
        """So that who closes the page is known by the session's name, which is all that Gradio gives then."""
        if request.session_hash:
            self._visitors[request.session_hash] = visitor

    def _leave(self, request: gr.Request) -> None:
        visitor = self._visitors.pop(request.session_hash or "", None)
        if visitor is not None:
            visitor.leave()


def _alert(error: Exception | str) -> str:
    return f'<p role="alert" class="refusal">{html.escape(str(error))}</p>'


def _bar(progress: Progress) -> str:
    if progress.total_s is None:
        return html.escape(f"{clock(progress.done_s)} are done.")
    words = html.escape(f"{clock(progress.done_s)} of {clock(progress.total_s)} are done.")
    return f'{words}<progress max="{progress.total_s:.3f}" value="{progress.done_s:.3f}"></progress>'


def _downloads(transcript: Transcript) -> str:
    """Links to the transcript's files, which are in the links themselves: nothing of them is on the server's disk."""
    stem = html.escape(Path(transcript.audio).stem, quote=True)
    links = []
    for ending, write in FORMATS.items():
        data = base64.b64encode(write(transcript).encode()).decode()
        links.append(f'<a download="{stem}.{ending}" href="data:text/plain;base64,{data}">{stem}.{ending}</a>')
    return f"<p>Download: {' '.join(links)}</p>"


def theme() -> gr.themes.Base:
    """Gradio's plain theme in the system's fonts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = gr.themes.Default(
            primary_hue="orange", neutral_hue="slate", font=list(FONTS), font_mono=list(MONOSPACED_FONTS)
        )
        return plain.set(**COLOURS)


__all__ = ["STYLE_FILE", "TITLE", "Page", "theme"]

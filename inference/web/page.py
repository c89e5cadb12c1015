"""The page in Gradio: its own chat component with recordings, pictures of them, an adapter switch, and transcription."""

import base64
import html
import threading
import time
import warnings
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np
from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor
from audiollm.command_line.files import AUDIO_SUFFIXES, is_inside

from ..answering import ask
from ..options import tell
from ..recordings import clock, read_bounded
from ..session import AnswerMemoryError, Recording, Session, sampling_options
from ..transcribing import Failure, Progress, Transcriber, TranscribingStopped
from ..transcripts import FORMATS, Transcript
from ..windows import LONG_PAUSE_SECONDS
from .sound import picture

if TYPE_CHECKING:
    from ..demo_web import DemoWebArguments

TITLE = "AudioLLM"
STYLE_FILE = Path(__file__).with_name("page.css")
#: The system's own fonts; others would be fetched, which needs a network and tells others who opens the page.
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
MONOSPACED_FONTS = ("ui-monospace", "Menlo", "Consolas", "monospace")
#: Colours of the default theme that are too pale to be read.
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
#: Seconds between looks for forgotten files, and the age at which they are removed.
CACHE_LOOK_SECONDS, CACHE_AGE_SECONDS = 600, 6 * 3600
#: Faults of a request: shown on the page, and not logged.
REFUSALS = (ValueError, OSError)
NO_MEMORY = "There is not enough memory to answer that. Ask about a shorter recording, or clear the conversation."
MAX_TEMPERATURE = 2.0
#: Title of a message that says why a question was refused. Neither is part of the conversation.
REFUSED = "Not answered"
LIMIT = "the most that this page takes"
HINT = "Record or upload something and ask about it. A recording without a question is answered as speech."
ADAPTER_INFO = (
    "On: the trained LoRA acts on conversations with audio. Off: the bare language model gets the same audio."
)
NO_ADAPTER_INFO = "This checkpoint has no adapter to switch off."
TRANSCRIBE_HINT = (
    "Transcribes a long recording window by window, as text and subtitles. Pauses of more than "
    f"{LONG_PAUSE_SECONDS:g} s are skipped."
)


class Uploads:
    """Files of visitors, removed when the last visitor who uses them has left. Equal files are one file on the disk."""

    def __init__(self) -> None:
        self._users: Counter[str] = Counter()
        self._lock = threading.Lock()

    def hold(self, paths: Iterable[str]) -> None:
        """Count one more user of files."""
        with self._lock:
            self._users.update(paths)

    def release(self, paths: Iterable[str]) -> None:
        """Count one user less of files, and remove those without any."""
        with self._lock:
            for path in paths:
                self._users[path] -= 1
                if self._users[path] <= 0:
                    del self._users[path]
                    with suppress(OSError):
                        Path(path).unlink()
                        Path(path).parent.rmdir()


class Visitor:
    """
    State of one browser tab. Not a dataclass: Gradio would copy the fields of one, with the model.

    Attributes:
        uploads: paths of files that the visitor asked about. Refused ones are among them: the chat plays those too.
        recordings, pictures: decoded recordings and their pictures, by path.
    """

    def __init__(self, session: Session):
        self.session = session
        self.uploads: set[str] = set()
        self.recordings: dict[str, Recording] = {}
        self.pictures: dict[str, str] = {}
        self.stop, self.stop_transcribing = threading.Event(), threading.Event()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Visitor":
        """Return a new visitor: Gradio copies the first one for each tab."""
        return Visitor(Session(self.session.model, self.session.processor))


class Page:
    """
    The page of one model.

    Args:
        options: limits and contents. The examples stay when visitors leave.
        folder: holds uploads; nothing else is read for a visitor.
    """

    def __init__(
        self,
        model: AudioLlmForConditionalGeneration,
        processor: AudioLlmProcessor,
        options: "DemoWebArguments",
        folder: str,
    ):
        self.model, self.processor, self.options = model, processor, options
        self.has_adapter = bool(model.config.lora_adapters)
        self.uploads = Uploads()
        self._folder = folder
        self._system = [] if options.system is None else [{"role": "system", "content": options.system}]
        self._visitors: dict[str, Visitor] = {}
        bounds = f"At most {options.max_upload_mb:g} MB and {clock(options.max_audio_seconds)}."
        with gr.Blocks(
            title=TITLE, analytics_enabled=False, delete_cache=(CACHE_LOOK_SECONDS, CACHE_AGE_SECONDS)
        ) as self.blocks:
            visitor = gr.State(Visitor(Session(model, processor)))
            gr.Markdown(f"# {TITLE}\n{HINT} {bounds}", elem_id="top")
            with gr.Tab("Ask"):
                self._build_chat(visitor)
            with gr.Tab("Transcribe"):
                self._build_transcribing(visitor)
            self.blocks.unload(self.leave)
        self.uploads.hold(str(path) for path in Path(folder).rglob("*"))  # the examples, which stay

    # ---- chat ----------------------------------------------------------------------------------------------------

    def _build_chat(self, visitor: gr.State) -> None:
        bound, examples = self.options.max_new_tokens, self.options.examples
        info = ADAPTER_INFO if self.has_adapter else NO_ADAPTER_INFO
        with gr.Row():
            is_on = self.has_adapter
            adapter = gr.Checkbox(is_on, label="Adapter", info=info, interactive=is_on, elem_id="adapter")
            max_new_tokens = gr.Slider(1, bound, bound, step=1, label="Longest answer, in tokens")
            temperature = gr.Slider(0, MAX_TEMPERATURE, 0, step=0.1, label="Temperature", info="0 is greedy.")
        sound, note = gr.HTML(elem_id="sound", render=False), gr.HTML(elem_id="note", render=False)
        chat = gr.ChatInterface(
            self.answer,
            multimodal=True,
            chatbot=gr.Chatbot(
                label="Conversation",
                render_markdown=False,  # answers are shown as they are, dollars included
                latex_delimiters=[],
                placeholder="Nothing has been asked yet.",
                height="min(56vh, 520px)",
                elem_id="chat",
            ),
            textbox=gr.MultimodalTextbox(
                sources=["microphone", "upload"],
                file_types=list(AUDIO_SUFFIXES),
                file_count="multiple",
                placeholder="What is said?",
                stop_btn=True,
                elem_id="question",
            ),
            additional_inputs=[adapter, max_new_tokens, temperature, visitor],
            additional_outputs=[sound, note],
            examples=[[{"text": "What is said?", "files": [path]}] for path in examples] or None,
            run_examples_on_click=False,
            cache_examples=False,
            concurrency_limit=1,  # visitors wait for each other in a queue
            api_name="chat",
            autofocus=False,
        )
        note.render()
        sound.render()
        chat.textbox.stop(lambda visitor: visitor.stop.set(), visitor, None, api_name="stop", concurrency_limit=None)
        chat.chatbot.clear(self.forget, visitor, [sound, note], api_visibility="private")

    def answer(
        self,
        message: dict[str, Any],
        history: list[dict[str, Any]],
        adapter: bool,
        max_new_tokens: float,
        temperature: float,
        visitor: Visitor,
        request: gr.Request,
    ) -> Iterator[tuple[Any, str, str]]:
        """Yield the answer as far as it is written, pictures of the recordings, and a line about it."""
        self._know(visitor, request)
        visitor.stop = threading.Event()
        pictures, began, first_s, text = "", time.monotonic(), None, ""
        try:
            options = self._options(max_new_tokens, temperature, adapter)
            # Paths, or as Gradio keeps files in a conversation when a question is asked again.
            files = [{"path": file} if isinstance(file, str) else file for file in message["files"]]
            turns = self._turns([*history, {"role": "user", "content": [*files, message["text"]]}], visitor)
            pictures = "".join(visitor.pictures[path] for path in _contents(files)[1])
            yield "", pictures, "Waiting for the model …"
            session = visitor.session
            session.go_on_from([*self._system, *turns])
            with session.stream(stop=visitor.stop, **options) as stream:
                for piece in stream:
                    first_s = first_s or time.monotonic() - began
                    text += piece
                    yield text, pictures, "Answering …"
            yield text, pictures, self._note(session, first_s, time.monotonic() - began, adapter)
        except (*REFUSALS, AnswerMemoryError) as error:
            said = str(error)
            if isinstance(error, AnswerMemoryError):
                tell(f"audiollm demo-web: {error}")
                said = NO_MEMORY
            yield {"role": "assistant", "content": said, "metadata": {"title": REFUSED}}, pictures, ""

    def _turns(self, history: Sequence[dict[str, Any]], visitor: Visitor) -> list[dict[str, Any]]:
        """
        Return the messages of a conversation as sessions take them, without questions that were not answered.

        Raises:
            AudioError, FileNotFoundError: a recording cannot be used.
            ValueError: the last question is empty, or its `<audio>` and recordings differ in number.
        """
        turns: list[dict[str, Any]] = []
        for message, following in zip(history, [*history[1:], None]):
            text, paths = _contents(message["content"])
            if message["role"] != "user":
                if not _is_no_answer(message):
                    turns.append({"role": "assistant", "content": text})
            elif following is None or not (following["role"] == "user" or _is_no_answer(following)):
                if not text.strip() and not paths:
                    raise ValueError("Write a question, or give a recording to be answered.")
                turns += ask(text if text.strip() else None, *(self.load(path, visitor) for path in paths))
        return turns

    def load(self, path: str, visitor: Visitor) -> Recording:
        """Decode a visitor's file within the bound, or return it as it was decoded before."""
        if not is_inside(path, self._folder):
            raise ValueError(f"{Path(path).name} was not uploaded to this page.")
        if path not in visitor.recordings:
            if path not in visitor.uploads:
                visitor.uploads.add(path)
                self.uploads.hold([path])
            name, rate = Path(path).name, self.processor.sampling_rate
            blocks = read_bounded(Path(path), rate, name, self.options.max_audio_seconds, LIMIT)
            waveform = np.concatenate(list(blocks))
            recording = Recording.load(waveform, self.processor)
            recording.source = name
            line = html.escape(f"{name}: {clock(recording.seconds)}, {recording.num_slots} audio tokens.")
            visitor.pictures[path] = f"{picture(waveform, self.processor)}<p>{line}</p>"
            visitor.recordings[path] = recording
        return visitor.recordings[path]

    def _options(self, max_new_tokens: float, temperature: float, adapter: bool) -> dict[str, Any]:
        bound = self.options.max_new_tokens
        if not (1 <= max_new_tokens <= bound and 0 <= temperature <= MAX_TEMPERATURE):
            raise ValueError(f"This page takes 1 to {bound} tokens, and a temperature of 0 to {MAX_TEMPERATURE:g}.")
        options = {"max_new_tokens": int(max_new_tokens), **sampling_options(float(temperature))}
        if self.has_adapter and not adapter:
            options["adapter_names"] = [None]  # for this call alone: other visitors' answers keep theirs
        return options

    def _note(self, session: Session, first_s: float | None, seconds: float, adapter: bool) -> str:
        report = session.report
        assert report is not None  # there is an answer
        reason = {"length": f"Cut at {report.new_tokens} tokens. ", "interrupted": "Stopped. "}
        first = "" if first_s is None else f", the first after {first_s:.1f} s"
        note = f"{reason.get(report.finish_reason, '')}{report.new_tokens} tokens in {seconds:.1f} s{first}."
        if report.reused_tokens:
            note += f" Of {report.prompt_tokens} tokens before it, {report.reused_tokens} were in the cache."
        return note if adapter or not self.has_adapter else f"{note} Adapter off."

    # ---- transcription -------------------------------------------------------------------------------------------

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
            self.transcribe,
            [file, visitor],
            [progress, text, downloads],
            api_name="transcribe",
            concurrency_limit=1,
            show_progress="minimal",
            show_progress_on=progress,
        )
        end: dict[str, Any] = {"api_name": "stop_transcribing", "concurrency_limit": None}
        stop.click(lambda visitor: visitor.stop_transcribing.set(), visitor, None, **end)

    def transcribe(self, path: str | None, visitor: Visitor, request: gr.Request) -> Iterator[tuple[str, str, str]]:
        """Yield the progress, the transcript as far as it is written, and at the end links to its files."""
        self._know(visitor, request)
        if path is None:
            yield _alert("Choose a recording first."), "", ""
            return
        visitor.stop_transcribing = threading.Event()
        name = Path(path).name
        self.uploads.hold([path])
        yield "Reading …", "", ""
        try:
            rate, most = self.processor.sampling_rate, self.options.max_audio_seconds
            deque(read_bounded(Path(path), rate, name, most, LIMIT, visitor.stop_transcribing), maxlen=0)
            said = ""
            transcriber = Transcriber(self.model, self.processor, progress=False)
            for event in transcriber.events([path], stop=visitor.stop_transcribing):
                if isinstance(event, Failure):
                    yield _alert(event.reason.replace(path, name)), "", ""
                elif isinstance(event, Progress):
                    yield _bar(event), said, ""
                elif isinstance(event, Transcript):
                    event.audio = name
                    summary = f"{clock(event.seconds)} transcribed, in {len(event.passages)} windows."
                    yield html.escape(summary), event.text, _downloads(event)
                else:
                    said = f"{said} {event.text}".strip()
        except TranscribingStopped:
            yield "Stopped.", "", ""
        except REFUSALS as error:
            yield _alert(str(error)), "", ""
        finally:
            self.uploads.release([path])

    # ---- visitors ------------------------------------------------------------------------------------------------

    def _know(self, visitor: Visitor, request: gr.Request) -> None:
        """Remember a visitor by the session's name, which is all that Gradio gives when a page is closed."""
        if request.session_hash:
            self._visitors[request.session_hash] = visitor

    def leave(self, request: gr.Request) -> None:
        """Stop the work for a visitor who has closed the page, and forget everything of theirs."""
        visitor = self._visitors.pop(request.session_hash or "", None)
        if visitor is not None:
            self.forget(visitor)

    def forget(self, visitor: Visitor) -> tuple[str, str]:
        """Forget a visitor's conversation and recordings, and return an empty picture and line."""
        visitor.stop.set()
        visitor.stop_transcribing.set()
        self.uploads.release(visitor.uploads)
        visitor.uploads, visitor.recordings, visitor.pictures = set(), {}, {}
        return "", ""


def _contents(content: Any) -> tuple[str, list[str]]:
    """Return text and paths of a message's content, in either form in which Gradio keeps it."""
    texts, paths = [], []
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, str):
            texts.append(part)
        elif part.get("type") == "text":
            texts.append(part["text"])
        elif path := (part.get("file") or part).get("path"):
            paths.append(path)
    return "\n".join(filter(None, texts)), paths


def _is_no_answer(message: dict[str, Any]) -> bool:
    """Return whether a message of the page says why there is no answer, or is one that was stopped before it began."""
    is_refusal = (message.get("metadata") or {}).get("title") == REFUSED
    return message["role"] == "assistant" and (is_refusal or not _contents(message["content"])[0].strip())


def _alert(error: str) -> str:
    return f'<p role="alert" class="refusal">{html.escape(error)}</p>'


def _bar(progress: Progress) -> str:
    if progress.total_s is None:
        return html.escape(f"{clock(progress.done_s)} are done.")
    words = html.escape(f"{clock(progress.done_s)} of {clock(progress.total_s)} are done.")
    return f'{words}<progress max="{progress.total_s:.3f}" value="{progress.done_s:.3f}"></progress>'


def _downloads(transcript: Transcript) -> str:
    """Return links to the transcript's files, with the contents in the links: nothing is on the server's disk."""
    stem = html.escape(Path(transcript.audio).stem, quote=True)
    links = []
    for ending, write in FORMATS.items():
        data = base64.b64encode(write(transcript).encode()).decode()
        links.append(f'<a download="{stem}.{ending}" href="data:text/plain;base64,{data}">{stem}.{ending}</a>')
    return f"<p>Download: {' '.join(links)}</p>"


def theme() -> gr.themes.Base:
    """Return Gradio's plain theme in the system's fonts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = gr.themes.Default(
            primary_hue="orange", neutral_hue="slate", font=list(FONTS), font_mono=list(MONOSPACED_FONTS)
        )
        return plain.set(**COLOURS)

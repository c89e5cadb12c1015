"""The page in Gradio: its own chat component with recordings, pictures of them, an adapter switch, and transcription."""

import base64
import html
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
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
from ..transcribing import Failure, Progress, Transcriber
from ..transcripts import FORMATS, Transcript
from ..windows import LONG_PAUSE_SECONDS
from .sound import picture

if TYPE_CHECKING:
    from ..demo_web import DemoWebArguments

TITLE = "AudioLLM"
#: Visitors whose conversations are kept; the longest idle ones are forgotten first.
MAX_VISITORS = 32
#: The system's fonts: a page without network has no others. And colours of Gradio's theme that are too pale to be read.
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
READABLE = {
    "block_info_text_color": "*neutral_600",
    "block_info_text_color_dark": "*neutral_300",
    "input_placeholder_color": "*neutral_500",
    "input_placeholder_color_dark": "*neutral_400",
}
#: Seconds between looks for forgotten files, and the age at which they are removed.
CACHE_LOOK_SECONDS, CACHE_AGE_SECONDS = 600, 6 * 3600
#: Faults of a request: shown on the page, and not logged.
REFUSALS = (ValueError, OSError)
NO_MEMORY = "There is not enough memory to answer that. Ask about a shorter recording, or clear the conversation."
MAX_TEMPERATURE = 2.0
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


@dataclass(eq=False)
class Visitor:
    """
    State of one browser tab.

    Attributes:
        recordings: decoded recordings with their pictures, by path.
        uploads: paths of all files that were asked about. Refused ones are among them: the chat plays those too.
    """

    session: Session
    recordings: dict[str, tuple[Recording, str]] = field(default_factory=dict)
    uploads: set[str] = field(default_factory=set)


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
        self._folder = folder
        self._system = [] if options.system is None else [{"role": "system", "content": options.system}]
        self._visitors: dict[str, Visitor] = {}
        bounds = f"At most {options.max_upload_mb:g} MB and {clock(options.max_audio_seconds)}."
        cache = (CACHE_LOOK_SECONDS, CACHE_AGE_SECONDS)
        with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=cache) as self.blocks:
            gr.Markdown(f"# {TITLE}\n{HINT} {bounds}")
            with gr.Tab("Ask"):
                self._build_chat()
            with gr.Tab("Transcribe"):
                self._build_transcribing()
            self.blocks.unload(self.leave)
        self._examples = set(map(str, Path(folder).rglob("*")))

    # ---- chat ----------------------------------------------------------------------------------------------------

    def _build_chat(self) -> None:
        bound, examples, is_on = self.options.max_new_tokens, self.options.examples, self.has_adapter
        with gr.Row():
            info = ADAPTER_INFO if is_on else NO_ADAPTER_INFO
            adapter = gr.Checkbox(is_on, label="Adapter", info=info, interactive=is_on, elem_id="adapter")
            max_new_tokens = gr.Slider(1, bound, bound, step=1, label="Longest answer, in tokens")
            temperature = gr.Slider(0, MAX_TEMPERATURE, 0, step=0.1, label="Temperature", info="0 is greedy.")
        sound, note = gr.HTML(elem_id="sound", render=False), gr.HTML(elem_id="note", render=False)
        chat = gr.ChatInterface(
            self.answer,
            multimodal=True,
            chatbot=gr.Chatbot(
                label="Conversation",
                render_markdown=False,  # answers are shown as they are
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
            additional_inputs=[adapter, max_new_tokens, temperature],
            additional_outputs=[sound, note],
            examples=[[{"text": "What is said?", "files": [path]}] for path in examples] or None,
            run_examples_on_click=False,
            concurrency_limit=1,  # visitors wait for each other in a queue
            api_name="chat",
        )
        note.render()
        sound.render()
        chat.chatbot.clear(self.leave, api_visibility="private")
        chat.chatbot.clear(lambda: ("", ""), None, [sound, note], api_visibility="private")

    def answer(
        self,
        message: dict[str, Any],
        history: list[dict[str, Any]],
        adapter: bool,
        max_new_tokens: float,
        temperature: float,
        request: gr.Request,
    ) -> Iterator[tuple[Any, str, str]]:
        """Yield the answer as far as it is written, pictures of the recordings, and a line about it."""
        visitor, began, text = self._visitor(request), time.monotonic(), ""
        session = visitor.session
        # Paths, or as Gradio keeps files in a conversation when a question is asked again.
        files = [{"path": file} if isinstance(file, str) else file for file in message["files"]]
        try:
            turns = self._turns([*history, {"role": "user", "content": [*files, message["text"]]}], visitor)
            pictures = "".join(visitor.recordings[path][1] for path in _contents(files)[1])
            yield [], pictures, "Waiting for the model …"
            options = {"max_new_tokens": int(max_new_tokens), **sampling_options(float(temperature))}
            if self.has_adapter and not adapter:
                options["adapter_names"] = [None]  # for this call alone: other visitors' answers keep theirs
            session.go_on_from([*self._system, *turns])
            with session.stream(**options) as stream:
                for piece in stream:
                    text += piece
                    yield text, pictures, "Answering …"
        except AnswerMemoryError as error:
            tell(f"audiollm demo-web: {error}")
            raise _refusal(NO_MEMORY) from error
        except REFUSALS as error:
            raise _refusal(str(error)) from error
        report = session.report
        assert report is not None  # there is an answer
        cut = f"Cut at {report.new_tokens} tokens. " if report.finish_reason == "length" else ""
        note = f"{cut}{report.new_tokens} tokens in {time.monotonic() - began:.1f} s."
        yield text, pictures, note if adapter or not self.has_adapter else f"{note} Adapter off."

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
                turns.append({"role": "assistant", "content": text})
            elif following is None or following["role"] != "user":
                if not text.strip() and not paths:
                    raise ValueError("Write a question, or give a recording to be answered.")
                turns += ask(text if text.strip() else None, *(self.load(path, visitor) for path in paths))
        return turns

    def load(self, path: str, visitor: Visitor) -> Recording:
        """Decode a visitor's file within the bound, or return it as it was decoded before."""
        if not is_inside(path, self._folder):
            raise ValueError(f"{Path(path).name} was not uploaded to this page.")
        visitor.uploads.add(path)
        if path not in visitor.recordings:
            name = Path(path).name
            blocks = read_bounded(
                Path(path), self.processor.sampling_rate, name, self.options.max_audio_seconds, LIMIT
            )
            waveform = np.concatenate(list(blocks))
            recording = Recording.load(waveform, self.processor)
            recording.source = name
            line = html.escape(f"{name}: {clock(recording.seconds)}, {recording.num_slots} audio tokens.")
            visitor.recordings[path] = recording, f"{picture(waveform, self.processor)}<p>{line}</p>"
        return visitor.recordings[path][0]

    # ---- transcription -------------------------------------------------------------------------------------------

    def _build_transcribing(self) -> None:
        gr.Markdown(TRANSCRIBE_HINT)
        file = gr.File(label="Recording", type="filepath", height=140, elem_id="long_recording")
        with gr.Row():
            begin = gr.Button("Transcribe", variant="primary", elem_id="transcribe")
            stop = gr.Button("Stop")
        progress = gr.HTML()
        text = gr.Textbox(label="Transcript", lines=8, max_lines=20, buttons=["copy"], elem_id="transcript")
        downloads = gr.HTML(elem_id="downloads")
        outputs = [progress, text, downloads]
        run = begin.click(self.transcribe, file, outputs, concurrency_limit=1, show_progress="hidden")
        stop.click(None, cancels=run)

    def transcribe(self, path: str | None) -> Iterator[tuple[str, str, str]]:
        """Yield the progress, the transcript as far as it is written, and at the end links to its files."""
        if path is None:
            raise _refusal("Choose a recording first.")
        name, said = Path(path).name, ""
        yield "Reading …", "", ""
        try:
            rate, most = self.processor.sampling_rate, self.options.max_audio_seconds
            deque(read_bounded(Path(path), rate, name, most, LIMIT), maxlen=0)
            for event in Transcriber(self.model, self.processor, progress=False).events([path]):
                if isinstance(event, Failure):
                    raise _refusal(event.reason.replace(path, name))
                if isinstance(event, Progress):
                    total = "" if event.total_s is None else f" of {clock(event.total_s)}"
                    yield f"{clock(event.done_s)}{total} are done.", said, ""
                elif isinstance(event, Transcript):
                    event.audio = name
                    summary = f"{clock(event.seconds)} transcribed, in {len(event.passages)} windows."
                    yield summary, event.text, _downloads(event)
                else:
                    said = f"{said} {event.text}".strip()
        except REFUSALS as error:
            raise _refusal(str(error)) from error
        finally:
            self._remove([path])

    # ---- visitors ------------------------------------------------------------------------------------------------

    def _visitor(self, request: gr.Request) -> Visitor:
        """Return the visitor of a request, who is now the last to be forgotten."""
        key = request.session_hash or ""
        visitor = self._visitors.pop(key, None) or Visitor(Session(self.model, self.processor))
        self._visitors[key] = visitor
        while len(self._visitors) > MAX_VISITORS:
            self._remove(self._visitors.pop(next(iter(self._visitors))).uploads)
        return visitor

    def leave(self, request: gr.Request) -> None:
        """Forget a visitor who has closed the page or cleared the conversation."""
        visitor = self._visitors.pop(request.session_hash or "", None)
        if visitor is not None:
            self._remove(visitor.uploads)

    def _remove(self, paths: Iterable[str]) -> None:
        """Remove files that nobody uses any more. Equal uploads are one file on the disk."""
        used = self._examples.union(*(visitor.uploads for visitor in list(self._visitors.values())))
        for path in set(paths) - used:
            with suppress(OSError):
                Path(path).unlink()
                Path(path).parent.rmdir()


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


def _refusal(reason: str) -> gr.Error:
    """Return the error that is shown as a message over the page, and not logged."""
    return gr.Error(html.escape(reason), duration=None, print_exception=False)


def _downloads(transcript: Transcript) -> str:
    """Return links to the transcript's files, with the contents in the links: nothing is on the server's disk."""
    stem = html.escape(Path(transcript.audio).stem, quote=True)
    links = []
    for ending, write in FORMATS.items():
        data = base64.b64encode(write(transcript).encode()).decode()
        links.append(f'<a download="{stem}.{ending}" href="data:text/plain;base64,{data}">{stem}.{ending}</a>')
    return f"<p>Download: {' '.join(links)}</p>"

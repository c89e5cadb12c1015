"""
`audiollm demo-web`: serve a page to record, ask and transcribe, for yourself or a few colleagues.

    audiollm demo-web --model you/your-model
    audiollm demo-web --host 0.0.0.0 --auth guest:secret

Without --host only this machine reaches it. Nothing is fetched from elsewhere. Recordings that a visitor has asked about
are removed when the visitor closes the page; other uploads after six hours, and all of them at the end.
"""

import os
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from audiollm.command_line.option_parser import option

from .options import (
    LoadingArguments,
    MissingLibraryError,
    check_port,
    check_positive,
    ending,
    is_loopback,
    parse,
    tell,
)
from .recordings import read_bounded
from .session import DEFAULT_MAX_NEW_TOKENS

BYTES_PER_MB = 1 << 20  # in Gradio's messages about the size of files
#: The only way to tell Gradio where to put files.
FILES_VARIABLE = "GRADIO_TEMP_DIR"
NEEDS_GRADIO = 'The page needs Gradio, which cannot be imported ({error}): pip install "audiollm[web]".'


@dataclass
class DemoWebArguments(LoadingArguments):
    """Options of `audiollm demo-web`."""

    GROUPS: ClassVar = {
        "address and access": ("host", "port", "auth", "share"),
        "limits": ("max_upload_mb", "max_audio_seconds", "max_new_tokens"),
        "contents": ("system", "examples"),
        **LoadingArguments.MODEL_GROUP,
    }

    system: str | None = option(None, "System message of every conversation.")
    host: str = option("127.0.0.1", "Address to listen at; 0.0.0.0 lets the whole network in.")
    port: int = option(7860, "Port to listen at.")
    auth: str | None = option(None, "USER:PASSWORD that visitors must give.")
    share: bool = option(
        False, "Also make a public link through gradio.live, whose machines relay what visitors send."
    )
    max_upload_mb: float = option(200.0, "Largest file, in MB.")
    max_audio_seconds: float = option(3600.0, "Longest recording, in seconds.")
    max_new_tokens: int = option(DEFAULT_MAX_NEW_TOKENS, "Longest answer that visitors may ask for, in tokens.")
    examples: list[str] = option([], "Audio files that visitors may try.")

    def __post_init__(self):
        super().__post_init__()
        check_port(self.port, least=1)
        if self.auth is not None and not all(self.auth.partition(":")):
            raise ValueError("--auth is not of the form USER:PASSWORD.")
        check_positive(self, "max_upload_mb", "max_audio_seconds", "max_new_tokens")

    @property
    def is_open(self) -> bool:
        """Others than users of this machine get in without a password."""
        return self.auth is None and (self.share or not is_loopback(self.host))


@contextmanager
def served(model, processor, options: DemoWebArguments) -> Iterator[str]:
    """
    Serve the page from threads of its own until the block ends, and give its URL.

    Uploads lie in a folder that only this process's user can read, and that is removed at the end.

    Raises:
        MissingLibraryError: Gradio is not installed.
        OSError: the address cannot be used.
        AudioError, FileNotFoundError: an example cannot be used.
    """
    try:
        import gradio
    except ImportError as error:
        raise MissingLibraryError(NEEDS_GRADIO.format(error=error)) from error
    from starlette.middleware import Middleware

    from .web.own_files import OwnFiles
    from .web.page import FONTS, LIMIT, MAX_VISITORS, READABLE, Page

    for path in options.examples:
        rate, seconds = processor.sampling_rate, options.max_audio_seconds
        deque(read_bounded(Path(path), rate, Path(path).name, seconds, LIMIT), maxlen=0)
    with tempfile.TemporaryDirectory(prefix="audiollm-web-") as folder:
        os.environ[FILES_VARIABLE] = folder
        page = Page(model, processor, options, folder)
        user, _, password = (options.auth or "").partition(":")
        try:
            _, url, _ = page.blocks.queue(status_update_rate=1).launch(
                theme=gradio.themes.Default(font=list(FONTS)).set(**READABLE),
                server_name=options.host,
                server_port=options.port,
                auth=(user, password) if options.auth else None,
                share=options.share,
                app_kwargs={"middleware": [Middleware(OwnFiles)]},
                max_file_size=int(options.max_upload_mb * BYTES_PER_MB),
                state_session_capacity=MAX_VISITORS,
                footer_links=[],
                run_history=False,
                enable_monitoring=False,
                mcp_server=False,
                ssr_mode=False,
                prevent_thread_lock=True,
                quiet=True,
            )
            yield url
        finally:
            page.blocks.close(verbose=False)
            os.environ.pop(FILES_VARIABLE, None)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of `audiollm demo-web` and `python -m audiollm.inference.demo_web`."""
    options = parse(DemoWebArguments, "demo-web", __doc__, arguments)
    with ending("demo-web"):
        checkpoint, processor = options.find()
        model = options.load_model(checkpoint)
        stopped = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: stopped.set())
        with served(model, processor, options) as url:
            tell(f"The page is at {url} (Ctrl-C ends it).")
            if options.is_open:
                tell("Everybody who reaches this address may use it; --auth USER:PASSWORD asks for a password.")
            stopped.wait()


if __name__ == "__main__":
    main()

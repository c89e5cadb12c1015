"""
`audiollm demo-web`: a page to record, ask and transcribe, for yourself or a few colleagues.

    audiollm demo-web --model you/your-model
    audiollm demo-web --host 0.0.0.0 --auth guest:secret

Without --host only this machine reaches it. Nothing is fetched from anywhere, and what a visitor sends is removed when the
page is closed.
"""

import ipaddress
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from audiollm.option_parser import parser_of
from audiollm.processing import AudioError

from .loading import CheckpointError, find_checkpoint, load_processor
from .loading_options import LoadingArguments
from .options import INTERRUPTED_EXIT, tell
from .session import DEFAULT_MAX_NEW_TOKENS

BYTES_PER_MB = 1 << 20  # as the page counts when it says what is too large
#: Visitors whose conversations are kept; of more, those who were idle longest are forgotten.
MAX_VISITORS = 32
MAX_PORT = 65_535
NEEDS_GRADIO = 'The page needs Gradio, which cannot be imported ({error}): pip install "audiollm[web]".'


@dataclass
class DemoWebArguments(LoadingArguments):
    """Which model answers, where its page is, and what visitors may send."""

    system: str | None = field(default=None, metadata={"help": "System message of every conversation."})
    host: str = field(
        default="127.0.0.1", metadata={"help": "Address to listen at; 0.0.0.0 lets the whole network in."}
    )
    port: int = field(default=7860, metadata={"help": "Port to listen at."})
    auth: str | None = field(default=None, metadata={"help": "USER:PASSWORD that visitors must give."})
    share: bool = field(
        default=False,
        metadata={"help": "Also make a public link through gradio.live: what visitors send passes over its machines."},
    )
    max_upload_mb: float = field(default=200.0, metadata={"help": "Largest file that is taken, in MB."})
    max_audio_seconds: float = field(default=3600.0, metadata={"help": "Longest recording that is taken."})
    max_new_tokens: int = field(
        default=DEFAULT_MAX_NEW_TOKENS, metadata={"help": "Longest answer that visitors may ask for, in tokens."}
    )
    examples: list[str] = field(default_factory=list, metadata={"help": "Audio files that visitors may try."})

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.port <= MAX_PORT:
            raise ValueError(f"--port is {self.port}; expected 1 to {MAX_PORT}.")
        if self.auth is not None and not all(self.auth.partition(":")):
            raise ValueError("--auth is not of the form USER:PASSWORD.")
        for name in ("max_upload_mb", "max_audio_seconds"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"--{name} is {getattr(self, name):g}; expected more than 0.")
        if self.max_new_tokens < 1:
            raise ValueError(f"--max_new_tokens is {self.max_new_tokens}; expected at least 1.")

    @property
    def is_open(self) -> bool:
        """Whether others than this machine's users get in without a password."""
        return self.auth is None and (self.share or not _is_loopback(self.host))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextmanager
def served(model, processor, options: DemoWebArguments) -> Iterator[str]:
    """
    The page, served from threads of its own until the block ends; gives its URL.

    What visitors send lies in a folder that only this process's user can read, and that is removed at the end.

    Raises:
        ImportError: Gradio is not installed.
        OSError: there is no listening at this address.
        AudioError, FileNotFoundError: an example cannot be used.
    """
    try:
        import gradio  # noqa: F401  # whether it is there
    except ImportError as error:
        raise ImportError(NEEDS_GRADIO.format(error=error)) from error
    from starlette.middleware import Middleware

    from .web.own_files import OwnFiles
    from .web.page import STYLE_FILE, Page, theme
    from .web.sound import check_length
    from .web.visitor import House, Limits

    for path in options.examples:
        check_length(path, processor.sampling_rate, options.max_audio_seconds)
    with tempfile.TemporaryDirectory(prefix="audiollm-web-") as folder, _environment(GRADIO_TEMP_DIR=folder):
        house = House(model, processor, Limits(options.max_audio_seconds, options.max_new_tokens), options.system)
        page = Page(house, options.max_upload_mb, options.examples)
        house.uploads.keep(str(path) for path in Path(folder).rglob("*"))  # the examples
        user, _, password = (options.auth or "").partition(":")
        _, url, _ = page.blocks.queue(status_update_rate=1).launch(
            server_name=options.host,
            server_port=options.port,
            auth=(user, password) if options.auth else None,
            share=options.share,
            app_kwargs={"middleware": [Middleware(OwnFiles)]},
            max_file_size=int(options.max_upload_mb * BYTES_PER_MB),
            state_session_capacity=MAX_VISITORS,
            theme=theme(),
            css_paths=STYLE_FILE,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            mcp_server=False,
            ssr_mode=False,
            pwa=False,
            inbrowser=False,
            prevent_thread_lock=True,
            quiet=True,
        )
        try:
            yield url
        finally:
            page.blocks.close(verbose=False)


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Environment variables for a while: by them alone Gradio is told where its files go."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of `audiollm demo-web` and `python -m audiollm.inference.demo_web`."""
    parser = parser_of(DemoWebArguments, "demo-web", "[options]", __doc__)
    try:
        (options,) = parser.parse_args_into_dataclasses(arguments, look_for_args_file=False)
    except ValueError as error:
        parser.error(str(error))
    try:
        checkpoint = find_checkpoint(options.model)
        processor = load_processor(checkpoint, options.revision)
        model = options.load_model(checkpoint)
        stopped = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: stopped.set())
        with served(model, processor, options) as url:
            tell(f"The page is at {url} (Ctrl-C ends it).")
            if options.is_open:
                tell("Everybody who reaches this address may use it; --auth USER:PASSWORD asks for a password.")
            stopped.wait()
    except (CheckpointError, AudioError, ImportError, OSError) as error:
        sys.exit(f"audiollm demo-web: {error}")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED_EXIT)


if __name__ == "__main__":
    main()

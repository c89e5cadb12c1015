"""
`audiollm serve`: serve a model to OpenAI's clients: chat with recordings, transcriptions of any length.

    audiollm serve --model you/your-model
    audiollm serve --model runs/demo/adapter --port 9000

It serves one model to programs on this machine. --host opens it to others, who may all use it unless there is an --api_key.
Answers are greedy unless a request gives a temperature. Ctrl-C stops it.
"""

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from audiollm.command_line.option_parser import option

from .loading import CheckpointError
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
from .session import DEFAULT_MAX_NEW_TOKENS
from .transcribe import WINDOW_HELP
from .transcribing import TranscribingSettings

if TYPE_CHECKING:
    from .serving.service import ServingSettings

NEEDS_LIBRARIES = 'serving needs libraries that are not installed ({error}): pip install "audiollm[serving]"'
API_KEY_VARIABLE = "AUDIOLLM_API_KEY"
LOG_LEVELS = ("critical", "error", "warning", "info", "debug")
DEFAULT_PORT = 8000
#: Time for requests under way to end when the server is stopped.
GRACE_SECONDS = 5
EXAMPLES = """Serving {name} at {url}/v1, to {whom}.
  curl {url}/v1/audio/transcriptions{header} -F file=@recording.wav -F model={name}
  client = openai.OpenAI(base_url="{url}/v1", api_key={key})
  client.audio.transcriptions.create(model="{name}", file=open("recording.wav", "rb"))
  client.chat.completions.create(model="{name}", messages=[{{"role": "user", "content": "Hello"}}])
Ctrl-C stops it."""


@dataclass
class ServeArguments(LoadingArguments):
    """Options of `audiollm serve`."""

    GROUPS: ClassVar = {
        "address": ("host", "port", "served_name"),
        "access": ("api_key", "allow_origins", "log_level"),
        "limits": ("max_upload_mb", "max_audio_seconds", "max_new_tokens", "max_requests", "kept_conversations"),
        "transcription": ("window_seconds", "voice_activity"),
        **LoadingArguments.MODEL_GROUP,
    }

    served_name: str | None = option(
        None, "Name of the model in requests; its Hub id or its folder's name by default."
    )
    host: str = option("127.0.0.1", "Address to listen at; 0.0.0.0 opens it to the whole network.")
    port: int = option(DEFAULT_PORT, "Port to listen at; 0 takes a free one.")
    api_key: str | None = option(
        None, f"Key that clients must send; or set {API_KEY_VARIABLE}, which `ps` does not show."
    )
    allow_origins: list[str] = option(
        [], "Web pages of other sites that may use it (CORS), such as https://example.org."
    )
    max_upload_mb: float = option(64.0, "Largest request, in millions of bytes.")
    max_audio_seconds: float = option(
        7_200.0, "Longest audio of a request; in a chat, the model's context may hold less."
    )
    max_new_tokens: int = option(
        DEFAULT_MAX_NEW_TOKENS, "Bound on an answer in a chat, in tokens; a request that asks for more gets this."
    )
    max_requests: int = option(32, "Requests at once, one being answered; others are refused.")
    kept_conversations: int = option(
        4, "Conversations whose keys and values are kept in memory, for quick follow-ups."
    )
    window_seconds: float | None = option(None, WINDOW_HELP)
    voice_activity: str = option("on", "on skips stretches without a voice.", choices=("on", "off"))
    log_level: str = option("info", "Level of the log of requests.", choices=LOG_LEVELS)

    def __post_init__(self):
        super().__post_init__()
        check_port(self.port)
        check_positive(self, "max_new_tokens", "max_requests", "max_upload_mb", "max_audio_seconds")
        if self.kept_conversations < 0:
            raise ValueError(f"--kept_conversations is {self.kept_conversations}; expected 0 or more.")
        self.api_key = self.api_key if self.api_key is not None else os.environ.get(API_KEY_VARIABLE) or None
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.strip() == self.api_key != ""):
            raise ValueError("--api_key is empty, or has blanks around it or letters beyond ASCII; headers hold none.")

    def name(self, checkpoint: str) -> str:
        """Return the name of the model in requests, which never holds a path of this machine."""
        is_folder = Path(checkpoint).exists()
        return self.served_name or (Path(checkpoint).resolve().name if is_folder else checkpoint)

    def settings(self, name: str, transcribing: TranscribingSettings) -> "ServingSettings":
        """Return the server's settings, with those of transcription."""
        from .serving.service import ServingSettings

        same = ("api_key", "max_upload_mb", "max_audio_seconds", "max_new_tokens", "max_requests")
        given = {each: getattr(self, each) for each in same}
        given |= {"kept_sessions": self.kept_conversations, "is_local": is_loopback(self.host)}
        return ServingSettings(name, allow_origins=tuple(self.allow_origins), transcribing=transcribing, **given)


def bind(host: str, port: int) -> socket.socket:
    """
    Return a socket that is bound to an address.

    Raises:
        CheckpointError: the address is in use, or none of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        taken = socket.socket(family, kind, protocol)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
    except OSError as error:
        raise CheckpointError(
            f"cannot listen at {host}, port {port}: {error}. Give another --port or --host."
        ) from error
    return taken


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of `audiollm serve`."""
    options = parse(ServeArguments, "serve", __doc__, arguments)
    with ending("serve"):
        try:
            import python_multipart  # noqa: F401  # which Starlette imports when a form comes
            import uvicorn

            from .serving.app import create_app
        except ImportError as error:
            raise MissingLibraryError(NEEDS_LIBRARIES.format(error=error)) from error
        checkpoint, processor = options.find()
        transcribing = options.transcribing_settings(
            checkpoint,
            processor,
            {"window_seconds": options.window_seconds},
            voice_activity=options.voice_activity == "on",
        )
        settings = options.settings(options.name(checkpoint), transcribing)
        listening = bind(options.host, options.port)  # before a model is loaded for minutes
        tell(f"Loading {checkpoint} …")
        model = options.load_model(checkpoint)
        _announce(settings, options.host, listening)
        config = uvicorn.Config(
            create_app(model, processor, settings),
            log_level=options.log_level,
            timeout_graceful_shutdown=GRACE_SECONDS,
            server_header=False,
        )
        uvicorn.Server(config).run(sockets=[listening])


def _announce(settings: "ServingSettings", host: str, listening: socket.socket) -> None:
    """Print name and address of the server, and examples of requests."""
    url = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
    whom = "programs on this machine" if settings.is_local else "everybody who reaches this machine"
    has_key = settings.api_key is not None
    header, key = (' -H "Authorization: Bearer $KEY"', "KEY") if has_key else ("", '"none"')
    tell(EXAMPLES.format(name=settings.name, url=url, whom=whom, header=header, key=key))
    if not settings.is_local:
        lock = "with an API key that travels unencrypted" if has_key else "without an API key"
        tell(f"Warning: {host} is reached from other machines, {lock}. Put a proxy with TLS before it.")


if __name__ == "__main__":
    main()

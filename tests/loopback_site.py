"""A web site on the loopback interface that breaks off, stalls or forgets about Range, and remembers what it was asked."""

import contextlib
import functools
import http.server
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field


@dataclass
class Site:
    """Files of a loopback server, its failures, and the requests it got."""

    files: dict[str, bytes] = field(default_factory=dict)
    honour_range: bool = True
    wrong_range: bool = False  # answers 206 with bytes from the start, whatever was asked
    announce_length: bool = True
    break_after: list[int] = field(default_factory=list)  # bytes of the body before each next answer breaks off
    stall: bool = False  # a broken answer hangs instead of closing
    statuses: list[int] = field(default_factory=list)  # each next answer is this error
    requests: list[tuple[str, str | None]] = field(default_factory=list)  # path, Range header
    url: str = ""

    def ranges(self, path: str) -> list[str | None]:
        return [asked for at, asked in self.requests if at == path]


class Handler(http.server.BaseHTTPRequestHandler):
    """Files with HTTP Range, as package indexes and corpora's mirrors serve them."""

    def __init__(self, site: Site, *arguments):
        self.site = site
        super().__init__(*arguments)

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.site.requests.append((self.path, asked))
        if self.site.statuses:
            self.send_error(self.site.statuses.pop(0))
            return
        body = self.site.files.get(self.path)
        if body is None:
            self.send_error(404)
            return
        offset = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.site.honour_range else 0
        if offset and offset >= len(body):
            self.send_error(416)
            return
        self.send_response(206 if offset else 200)
        if self.site.wrong_range:
            offset = 0
        if asked and self.site.honour_range:
            self.send_header("Content-Range", f"bytes {offset}-{len(body) - 1}/{len(body)}")
        if self.path.endswith("/"):
            self.send_header("Content-Type", "text/html")
        if self.site.announce_length:
            self.send_header("Content-Length", str(len(body) - offset))
        self.end_headers()
        breaks = self.site.break_after.pop(0) if self.site.break_after and not self.path.endswith("/") else None
        self.wfile.write(body[offset:] if breaks is None else body[offset : offset + breaks])
        if breaks is not None and self.site.stall:
            self.wfile.flush()
            time.sleep(60)

    def log_message(self, *arguments) -> None:
        pass


@contextlib.contextmanager
def running(handler: Callable[..., http.server.BaseHTTPRequestHandler]) -> Iterator[http.server.ThreadingHTTPServer]:
    """A server of the loopback interface while it is up."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.block_on_close = False
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def serving() -> Iterator[Site]:
    """A site while it is up."""
    served = Site()
    with running(functools.partial(Handler, served)) as server:
        served.url = f"http://127.0.0.1:{server.server_port}"
        yield served

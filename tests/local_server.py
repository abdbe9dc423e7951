"""An HTTP server on this machine that misbehaves as told, one behaviour per request, and its file."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import itertools
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

CONTENT = random.Random(0).randbytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()

Behaviour = Callable[["Handler"], None]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append((self.path, self.headers.get("Range")))
        next(self.server.script)(self)

    def send(self, content: bytes, start: int | None = None, keep: int | None = None) -> None:
        """The rest of `content` from `start` (a partial reply if given), cut to `keep` bytes."""
        body = content[start or 0 :]
        self.send_response(200 if start is None else 206)
        if start is not None:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:keep])

    def asked(self) -> int | None:
        value = self.headers.get("Range")
        return None if value is None else int(value.removeprefix("bytes=").removesuffix("-"))

    def log_message(self, *_: Any) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, str | None]] = []
        self.script: Iterator[Behaviour] = iter(())
        self.scheme = "http"

    def play(self, *behaviours: Behaviour) -> None:
        """Behave so in this order, the last one for ever."""
        self.script = itertools.chain(behaviours, itertools.repeat(behaviours[-1]))

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_port}/file.bin"

    @property
    def ranges(self) -> list[str | None]:
        return [asked for _, asked in self.requests]

    def handle_error(self, *_: Any) -> None:
        pass  # a client that hangs up is what several tests are about


def proper(handler: Handler) -> None:
    handler.send(CONTENT, handler.asked())


def without_ranges(handler: Handler) -> None:
    handler.send(CONTENT)


def cut_after(count: int) -> Behaviour:
    return lambda handler: handler.send(CONTENT, handler.asked(), keep=count)


def status(code: int) -> Behaviour:
    return lambda handler: handler.send_error(code)


def redirect(url: str) -> Behaviour:
    def behave(handler: Handler) -> None:
        handler.send_response(302)
        handler.send_header("Location", url)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return behave


@contextlib.contextmanager
def running(server: Server) -> Iterator[Server]:
    """Serve in a thread until the block ends; behave properly until told otherwise."""
    server.play(proper)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

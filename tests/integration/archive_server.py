"""A loopback server that looks like the bulk archive and misbehaves on demand."""

import hashlib
import io
import threading
import time
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote


def zip_of(name: str, text: str) -> bytes:
    """A daily or monthly file as the archive makes them."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as file:
        info = zipfile.ZipInfo(name.replace(".zip", ".csv"))
        info.compress_type = zipfile.ZIP_DEFLATED
        file.writestr(info, text)
    return sink.getvalue()


class ArchiveServer(ThreadingHTTPServer):
    """Serves ``files`` with their checksums; ``faults[path]`` is used up one per request.

    A fault is a status code, or one of ``truncate``, ``corrupt``, ``slow``, ``ignore-range``,
    ``wrong-range``, ``bad-checksum``, ``long-checksum``, ``hang``.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[Any]] = defaultdict(list)
        self.requests: list[tuple[str, str | None]] = []
        self.open_now = 0
        self.open_most = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, path: str, text: str) -> bytes:
        content = zip_of(path.rsplit("/", 1)[-1], text)
        self.files[path] = content
        return content

    def asked(self, path: str) -> list[str | None]:
        """``Range`` header of every request for a path."""
        return [header for asked, header in self.requests if asked == path]

    def handle_error(self, *_: Any) -> None:
        """A client that went away is part of the tests."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ArchiveServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        path = unquote(self.path).removeprefix("/")
        with server.lock:
            server.requests.append((path, self.headers.get("Range")))
            server.open_now += 1
            server.open_most = max(server.open_most, server.open_now)
            fault = server.faults[path].pop(0) if server.faults[path] else None
        try:
            self.answer(path, fault)
        finally:
            with server.lock:
                server.open_now -= 1

    def answer(self, path: str, fault: Any) -> None:
        files = self.server.files
        checksum = path.endswith(".CHECKSUM")
        content = files.get(path.removesuffix(".CHECKSUM"))
        if isinstance(fault, int):
            self.reply(fault, b"", {"Retry-After": "0"} if fault == 429 else {})
        elif fault == "hang":
            time.sleep(10.0)  # longer than clients wait
            self.close_connection = True
        elif content is None:
            self.reply(404, b"<Error/>")
        elif checksum:
            digest = hashlib.sha256(content).hexdigest()
            name = path.rsplit("/", 1)[-1].removesuffix(".CHECKSUM")
            line = {"bad-checksum": f"{digest}  other.zip\n", "long-checksum": "x" * 5000}
            self.reply(200, line.get(fault, f"{digest}  {name}\n").encode())
        else:
            self.send(content, fault)

    def send(self, content: bytes, fault: Any) -> None:
        tag = f'"{hashlib.sha256(content).hexdigest()[:8]}"'
        start, status, headers = 0, 200, {"ETag": tag}
        asked = self.headers.get("Range")
        if self.headers.get("If-Range", tag) != tag:
            asked = None
        if asked and fault != "ignore-range":
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.reply(416, b"", {"Content-Range": f"bytes */{len(content)}"})
                return
            status = 206
            told = 0 if fault == "wrong-range" else start
            headers["Content-Range"] = f"bytes {told}-{len(content) - 1}/{len(content)}"
        body = content[start:]
        if fault == "corrupt":
            body = body[:-1] + bytes([body[-1] ^ 1])
        if fault == "truncate":
            self.reply(status, body[: len(body) // 2], headers, length=len(body))
            self.close_connection = True
        elif fault == "slow":
            self.reply(status, b"", headers, length=len(body))
            for at in range(0, len(body), max(1, len(body) // 5)):
                self.wfile.write(body[at : at + max(1, len(body) // 5)])
                self.wfile.flush()
                time.sleep(0.02)
        else:
            self.reply(status, body, headers)

    def reply(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        *,
        length: int | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body)
        self.wfile.flush()


@contextmanager
def serve() -> Iterator[ArchiveServer]:
    """Run a server for the length of a test."""
    server = ArchiveServer()
    with running(server):
        yield server


@contextmanager
def running(server: ThreadingHTTPServer) -> Iterator[None]:
    """Answer requests meanwhile."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

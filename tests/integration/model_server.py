"""A loopback server that looks like Hugging Face: it states a SHA-256 and redirects to a store."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote

from archive_server import ArchiveServer, Handler, running


class ModelServer(ArchiveServer):
    """``files`` by ``owner/repo/FILE``; ``stated`` turns the statement of the SHA-256 off."""

    def __init__(self) -> None:
        super().__init__()
        self.RequestHandlerClass = _Handler
        self.stated = True
        self.heads: list[str] = []


class _Handler(Handler):
    server: ModelServer

    def do_HEAD(self) -> None:
        path = unquote(self.path).removeprefix("/")
        self.server.heads.append(path)
        fault = self.server.faults[f"HEAD {path}"]
        if fault:
            self.reply(fault.pop(0), b"")
        else:
            self.answer(path, None)

    def answer(self, path: str, fault: Any) -> None:
        name = path.replace("/resolve/main/", "/")
        content = self.server.files.get(name.removeprefix("store/"))
        if isinstance(fault, str) and fault.startswith("to "):
            self.reply(302, b"", {"Location": fault.removeprefix("to ")})
        elif isinstance(fault, int):
            self.reply(fault, b"")
        elif content is None:
            self.reply(404, b"")
        elif path.startswith("store/"):
            self.send(content, fault)
        else:
            headers = {"Location": f"/store/{name}"}
            if self.server.stated:
                headers["X-Linked-ETag"] = f'"{hashlib.sha256(content).hexdigest()}"'
                headers["X-Linked-Size"] = str(len(content))
            self.reply(302, b"", headers)


@contextmanager
def serve_models() -> Iterator[ModelServer]:
    """Run a server for the length of a test."""
    server = ModelServer()
    with running(server):
        yield server

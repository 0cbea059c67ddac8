"""A real server on loopback with a small application behind the gate."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
from starlette.types import Receive, Scope, Send
from uvicorn import Server

from qbtc_gateway.metrics import Metrics
from qbtc_gateway.security.gate import Gate
from qbtc_gateway.security.keys import KeyFile, KeyRing, new_key
from qbtc_gateway.security.scopes import SCOPES
from qbtc_gateway.security.scopes import Scope as KeyScope
from qbtc_gateway.server import listen, make_server
from qbtc_gateway.settings import Limits, Settings

PIECE = b"x" * 8_192


class Application:
    """Echoes bodies; ``/v1/hold`` waits, ``/v1/flood`` streams until nobody listens."""

    def __init__(self) -> None:
        self.flooding = 0
        self.cancelled = 0
        self.release = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        match scope["path"]:
            case "/v1/flood":
                await self._flood(receive, send)
            case "/v1/hold":
                await self.release.wait()
                await _respond(send, b"held")
            case "/v1/fail":
                raise RuntimeError("a secret of the inside")
            case _:
                body = (await receive())["body"] if scope["method"] == "POST" else b""
                await _respond(send, b"%d" % len(body))

    async def _flood(self, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        self.flooding += 1

        async def listen_for_end() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        end = asyncio.ensure_future(listen_for_end())
        try:
            while not end.done():
                await send({"type": "http.response.body", "body": PIECE, "more_body": True})
                await asyncio.sleep(0)
            self.cancelled += 1
        finally:
            end.cancel()
            self.flooding -= 1


async def _respond(send: Send, body: bytes) -> None:
    head = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": body})


class Running(msgspec.Struct, frozen=True):
    """Where it is and what is inside."""

    port: int
    application: Application
    gate: Gate
    metrics: Metrics
    server: Server

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        """Do what a signal does."""
        self.server.should_exit = True


@contextlib.asynccontextmanager
async def running(
    folder: Path, *, limits: Limits | None = None, keys: bool = False, **settings: object
) -> AsyncIterator[tuple[Running, str]]:
    """Serve for the length of a block; with ``keys`` also return a key of all scopes."""
    file = KeyFile(folder / "keys.json")
    text = add_key(file) if keys else ""
    values = msgspec.structs.replace(
        Settings(access_log=False, limits=limits or Limits()), **settings
    )
    metrics = Metrics(lambda: None)
    application = Application()
    gate = Gate(application, settings=values, keys=KeyRing(file), metrics=metrics)
    sock = listen("127.0.0.1", 0)
    server = make_server(values, gate)
    task = asyncio.ensure_future(server.serve(sockets=[sock]))
    try:
        await eventually(lambda: server.started)
        yield Running(sock.getsockname()[1], application, gate, metrics, server), text
    finally:
        application.release.set()
        server.should_exit = True
        await asyncio.wait_for(task, 30)


def add_key(file: KeyFile, *scopes: KeyScope) -> str:
    text, key = new_key("test", scopes or SCOPES)
    file.add(key)
    return text


async def eventually(check: Callable[[], bool], *, within_s: float = 30.0) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(within_s):
        while not check():  # noqa: ASYNC110 - what is waited for happens in another's code
            await asyncio.sleep(0.01)


async def within_a_minute() -> None:
    """Wait for the next minute of the clock where this one is nearly over: rates slide over it."""
    left_s = 60 - time.time() % 60
    if left_s < 10:
        await asyncio.sleep(left_s)


async def raw(port: int, *parts: bytes, pause_s: float = 0.0) -> bytes:
    """Write bytes to the port, then read until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        with contextlib.suppress(ConnectionError):
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(pause_s)
        with contextlib.suppress(ConnectionError):
            return await asyncio.wait_for(reader.read(), 60)
        return b""
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def small_window(port: int) -> socket.socket:
    """Return a connection whose reader takes little in advance."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", port))
    return sock

"""A TCP proxy on loopback that can be told to misbehave, for tests of what hangs and what does not.

It runs on a thread of its own, so that plain and asyncio tests can both use it.
"""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

PIECE_BYTES = 65_536
STOP_S_MAX = 10.0
RESET = struct.pack("ii", 1, 0)  # linger for no time: a close is then a reset


class Proxy:
    """Carries bytes to and from the server of a URL, as it is told.

    ``url`` is the same URL through the proxy. What is told holds for connections that are there
    and for later ones, but for ``half_open`` (later ones only) and ``cut`` (those that are there).
    """

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        self._upstream = upstream
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._answering = True
        self._delay_s = 0.0
        self._bytes_s: float | None = None
        self._links: set[asyncio.Task[None]] = set()
        self.accepted = 0
        """Connections so far."""

    @property
    def port(self) -> int:
        """Port on 127.0.0.1."""
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        """The server's URL, through the proxy."""
        return self._upstream.replace(f"{self._host}:{self._port}", f"127.0.0.1:{self.port}", 1)

    @property
    def open(self) -> int:
        """Connections that are there now."""
        return len(self._links)

    def resume(self) -> None:
        """Carry everything at once again; what was held back goes on its way."""

        async def go() -> None:
            self._delay_s, self._bytes_s, self._answering = 0.0, None, True
            self._flowing.set()

        self._do(go())

    def stall(self) -> None:
        """Carry nothing in either direction, and keep the connections."""

        async def go() -> None:
            self._flowing.clear()

        self._do(go())

    def half_open(self) -> None:
        """Accept new connections and never answer them."""

        async def go() -> None:
            self._answering = False

        self._do(go())

    def delay(self, seconds: float) -> None:
        """Hold back each piece for a time."""

        async def go() -> None:
            self._delay_s = seconds

        self._do(go())

    def slow(self, *, bytes_s: float) -> None:
        """Carry so many bytes a second, of each connection and direction."""

        async def go() -> None:
            self._bytes_s = bytes_s

        self._do(go())

    def cut(self) -> None:
        """Reset every connection that is there."""

        async def go() -> None:
            for link in self._links:
                link.cancel()
            await asyncio.gather(*self._links, return_exceptions=True)

        self._do(go())

    def __enter__(self) -> Self:
        self._thread.start()

        async def go() -> asyncio.Server:
            return await asyncio.start_server(self._accept, "127.0.0.1", 0)

        self._server = self._do(go())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._server.close)
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(STOP_S_MAX)
        self._loop.close()

    def _do[T](self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(STOP_S_MAX)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        link = asyncio.ensure_future(self._carry(reader, writer))
        self._links.add(link)
        link.add_done_callback(self._links.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = [writer]
        try:
            if not self._answering:
                await asyncio.Event().wait()
            there, back = await asyncio.open_connection(self._host, self._port)
            ends.append(back)
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(reader, back))
                pumps.create_task(self._pump(there, writer))
        except* OSError:
            pass  # one side is gone; the other learns it below
        except* asyncio.CancelledError:
            for end in ends:
                end.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                end.transport.abort()
            raise
        finally:
            for end in ends:
                end.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            size = PIECE_BYTES if self._bytes_s is None else max(1, int(self._bytes_s / 20))
            piece = await reader.read(size)
            if self._delay_s:
                await asyncio.sleep(self._delay_s)
            if self._bytes_s is not None:
                await asyncio.sleep(len(piece) / self._bytes_s)
            await self._flowing.wait()
            if not piece:
                with contextlib.suppress(OSError):
                    writer.write_eof()
                return
            writer.write(piece)
            await writer.drain()

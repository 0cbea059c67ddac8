"""Server-sent events: frames, and a response that ends when its client does.

A response is an async iterator of frames. While nothing is sent for ``keep_alive_s`` a comment goes
out, so that proxies and clients with read timeouts stay; the comment says how far the prompt is
read. When the client leaves, the iterator is closed at once, whatever it waits for, and with it the
engine's work.
"""

import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import anyio
import msgspec
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

__all__ = ["DONE", "EventStream", "Progress", "encode", "frame", "named_frame", "until_disconnect"]

DONE = b"data: [DONE]\n\n"
encode = msgspec.json.Encoder().encode
"""JSON bytes of a value."""


def frame(data: object) -> bytes:
    """Return one event."""
    return b"data: %b\n\n" % encode(data)


def named_frame(name: str, data: object) -> bytes:
    """Return one event with a name, as the Responses API has them."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), encode(data))


class Progress:
    """How far the prompt is read, for keep-alive comments."""

    def __init__(self) -> None:
        self.done = 0
        self.total = 0

    def comment(self) -> bytes:
        """Return the comment to send now."""
        if 0 <= self.done < self.total:
            return b": prefill %d%%\n\n" % (100 * self.done // self.total)
        return b": keep-alive\n\n"


class EventStream(Response):
    """Send frames as they come."""

    media_type = "text/event-stream"

    def __init__(
        self,
        frames: AsyncGenerator[bytes],
        *,
        progress: Progress,
        keep_alive_s: float,
        on_disconnect: Callable[[], None],
        on_close: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__(None, headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._frames = frames
        self._progress = progress
        self._keep_alive_s = keep_alive_s
        self._on_disconnect = on_disconnect
        self._on_close = on_close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run to the end of the frames or of the client."""
        sent_at = time.monotonic()

        async def write(data: bytes) -> None:
            nonlocal sent_at
            sent_at = time.monotonic()
            await send({"type": "http.response.body", "body": data, "more_body": True})

        async def keep_alive() -> None:
            while True:
                wait = sent_at + self._keep_alive_s - time.monotonic()
                if wait > 0:
                    await anyio.sleep(wait)
                else:
                    await write(self._progress.comment())

        async def body() -> None:
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(keep_alive)
                async for data in self._frames:
                    await write(data)
                tasks.cancel_scope.cancel()
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        try:
            if not await _race(body, receive):
                self._on_disconnect()
        except OSError:
            # The server says so when it writes to a connection that is gone.
            self._on_disconnect()
        finally:
            with anyio.CancelScope(shield=True):
                await self._frames.aclose()
                # A generator that never started has run no `finally` of its own.
                await self._on_close()


async def until_disconnect[T](receive: Receive, work: Callable[[], Awaitable[T]]) -> T | None:
    """Return what ``work`` returns, or None as soon as the client is gone and it is cancelled."""
    result: list[T] = []

    async def run() -> None:
        result.append(await work())

    return result[0] if await _race(run, receive) else None


async def _race(run: Callable[[], Awaitable[None]], receive: Receive) -> bool:
    """Run until the client disconnects; return whether the work came to its end."""
    finished = False

    async def listen(scope: anyio.CancelScope) -> None:
        message: Message | dict[str, Any] = {}
        while message.get("type") != "http.disconnect":
            message = await receive()
        scope.cancel()

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen, tasks.cancel_scope)
            await run()
            finished = True
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        # One thing went wrong in one place; the group around it is of no interest.
        raise _single(group) from None
    return finished


def _single(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error

"""What has been answered to one request and not been taken yet; bounded."""

import asyncio
from collections import deque

from qbtc.bus.limits import BusLimits
from qbtc.errors import BusError

__all__ = ["Replies"]


class Replies:
    """Replies on their way from whoever answers to the one who asked.

    Parameters
    ----------
    limits
        How many may wait.
    every
        Whether those before the last are wanted too.
    """

    def __init__(self, limits: BusLimits, *, every: bool) -> None:
        self._limits = limits
        self._every = every
        self._waiting: deque[tuple[bytes, bool]] = deque()
        self._bytes = 0
        self._complete = False
        self._error: BusError | None = None
        self._changed: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None

    @property
    def full(self) -> bool:
        """Whether the next reply but the last would be one too many."""
        return (
            len(self._waiting) >= self._limits.stream_pending_max
            or self._bytes >= self._limits.stream_pending_bytes_max
        )

    @property
    def over(self) -> bool:
        """Whether nothing more is taken in."""
        return self._complete or self._error is not None

    def put(self, body: bytes, *, last: bool) -> None:
        """Take a reply in; fail where the asker has left too many of them lying."""
        if self.over or not (last or self._every):
            return
        if self.full and not last:
            self.fail(
                BusError(
                    f"{len(self._waiting)} replies were not taken in time; read the stream faster"
                )
            )
            return
        self._waiting.append((body, last))
        self._bytes += len(body)
        self._complete = last
        self._wake()

    def fail(self, error: BusError) -> None:
        """End with an error, which is raised after what has come before it."""
        if not self.over:
            self._error = error
            self._wake()

    async def take(self) -> tuple[bytes, bool]:
        """Return the next reply, and whether it is the last."""
        while not self._waiting:
            if self._error is not None:
                raise self._error
            self._changed = asyncio.get_running_loop().create_future()
            await self._changed
        body, last = self._waiting.popleft()
        self._bytes -= len(body)
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        return body, last

    async def room(self) -> None:
        """Wait until there is room; fail when there is none for too long."""
        try:
            async with asyncio.timeout(self._limits.reply_wait_s_max):
                while self.full and not self.over:
                    if self._room is None or self._room.done():
                        self._room = asyncio.get_running_loop().create_future()
                    await asyncio.shield(self._room)
        except TimeoutError:
            return

    def _wake(self) -> None:
        for future in (self._changed, self._room if self.over else None):
            if future is not None and not future.done():
                future.set_result(None)

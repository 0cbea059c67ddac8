"""What the buses have in common: asking, counting, and hearing that an asker has left."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import msgspec

from qbtc.bus.consumer import Consumer
from qbtc.bus.limits import BusLimits
from qbtc.bus.replies import Replies
from qbtc.errors import BusError, MessageError, RequestTimeout
from qbtc.messages.codec import decode, encode
from qbtc.messages.envelope import Message, rfc3339

__all__ = ["TOTALS", "BaseBus"]

TOTALS = (
    "published", "confirmed", "retried", "returned", "received",
    "done", "again", "dead", "expired", "cancelled",
)  # fmt: skip


class BaseBus(ABC):
    """A bus without its carrier."""

    def __init__(self, *, source: str, limits: BusLimits) -> None:
        self._source = source
        self._limits = limits
        self._counts: Counter[str] = Counter()
        self._asked: dict[str, Replies] = {}
        self._consumers: set[Consumer] = set()
        self._left: OrderedDict[str, int] = OrderedDict()
        self._closed = False
        self._stamped = 0

    @abstractmethod
    def _send_request(self, message: Message, body: bytes, replies: Replies) -> None:
        """Send a request whose replies go into ``replies``; later failures too."""

    @abstractmethod
    def _send_cancel(self, message: Message, reason: str) -> None:
        """Tell whoever works on a request that nobody waits."""

    @abstractmethod
    def _end_request(self, message: Message) -> None:
        """Let go of a request that was answered or left."""

    async def request(self, message: Message, *, timeout_s: float) -> Message:
        """See :class:`~qbtc.bus.protocol.Bus`."""
        with self._ask(message, timeout_s, every=False) as ask:
            return (await ask.next())[0]

    async def stream(self, message: Message, *, timeout_s: float) -> AsyncGenerator[Message]:
        """See :class:`~qbtc.bus.protocol.Bus`."""
        with self._ask(message, timeout_s, every=True) as ask:
            last = False
            while not last:
                reply, last = await ask.next()
                yield reply

    def counters(self) -> dict[str, int]:
        """See :class:`~qbtc.bus.protocol.Bus`."""
        totals = {name: self._counts[name] for name in TOTALS}
        return totals | {"outbox": self._waiting(), "pending": len(self._asked)}

    def _waiting(self) -> int:
        return 0

    @contextmanager
    def _ask(self, message: Message, timeout_s: float, *, every: bool) -> "Iterator[_Ask]":
        self._check_open()
        if message.id in self._asked:
            raise ValueError(f"request {message.id} is under way already")
        message = _expiring(message, timeout_s)
        body = encode(message)
        replies = Replies(self._limits, every=every)
        ask = _Ask(message, replies)
        self._asked[message.id] = replies
        try:
            self._send_request(message, body, replies)
            yield ask
        finally:
            del self._asked[message.id]
            replies.fail(BusError("nobody waits any more"))
            if not ask.complete:
                self._send_cancel(message, ask.reason)
            self._end_request(message)

    def _check_open(self) -> None:
        if self._closed:
            raise BusError("the bus is closed")

    def _stamp(self) -> int:
        """Return the time, ns; later than at the last call."""
        self._stamped = max(self._stamped + 1, time.time_ns())
        return self._stamped

    def _hear_cancel(self, request: str, before: int) -> None:
        """Stop the work on copies of a request sent before a time, also on ones yet to arrive."""
        self._left[request] = max(before, self._left.pop(request, 0))
        while len(self._left) > self._limits.cancels_max:
            self._left.popitem(last=False)
        for consumer in self._consumers:
            consumer.withdraw(request, before)

    def _withdrawn(self, message: Message, sent: int) -> bool:
        return any(sent < self._left.get(key, 0) for key in (message.id, message.correlationid))

    def _fail_asked(self, error: BusError) -> None:
        for replies in self._asked.values():
            replies.fail(error)


class _Ask:
    """A request under way, as the asker sees it."""

    def __init__(self, message: Message, replies: Replies) -> None:
        self._message = message
        self._replies = replies
        left_s = message.left_s()
        assert left_s is not None
        self._end = asyncio.get_running_loop().time() + left_s
        self.complete = False
        self.reason = "the asker left"

    async def next(self) -> tuple[Message, bool]:
        """Return the next reply, and whether it is the last."""
        try:
            async with asyncio.timeout_at(self._end):
                body, last = await self._replies.take()
        except TimeoutError:
            self.reason = "expired"
            raise RequestTimeout(
                f"no answer to {self._message.type} about {self._message.subject} in time;"
                " is a worker running?"
            ) from None
        except BusError:
            self.reason = "failed"
            raise
        try:
            reply = decode(body)
        except MessageError as error:
            self.reason = "bad answer"
            raise BusError(f"the answer to {self._message.type} is bad: {error}") from error
        self.complete = last
        return reply, last


def _expiring(message: Message, timeout_s: float) -> Message:
    """Return a message that expires with a timeout, if it does not sooner."""
    left_s = message.left_s()
    if left_s is not None and left_s <= timeout_s:
        return message
    end = datetime.now(UTC) + timedelta(seconds=timeout_s)
    return msgspec.structs.replace(message, expiresat=rfc3339(end))

"""What is on its way to the broker: bounded, in order, sent again with its id until confirmed.

A confirm says that the broker has a message on disk. A message whose confirm did not come may be
there or not, so it is sent again with the id it has, and consumers know a copy by its id.
"""

import asyncio
import heapq
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from itertools import count

from aio_pika.exceptions import DeliveryError, PublishError
from aiormq import spec

from qbtc.bus.limits import BusLimits
from qbtc.bus.session import LOST, REPLY_TO, Session, cancelled
from qbtc.errors import BusError, OutboxFull, Unroutable

__all__ = ["CONTENT_TYPE", "SENT", "Letter", "Outbox"]

CONTENT_TYPE = "application/cloudevents+json"
PERSISTENT = 2
SENT = "qbtc-sent"
"""Header: when this copy was sent, ns; copies of a message differ in it."""

DROPPED_KEPT_MAX = 64
"""Letters that were dropped and may still be in the queue, beside as many as wait."""

REFUSED_PAUSE_S = 0.25
"""Before a message that a full queue refused is sent again."""


class Letter:
    """A message on its way to the broker."""

    def __init__(
        self,
        body: bytes,
        *,
        exchange: str,
        key: str,
        id: str,
        type: str,
        correlationid: str = "",
        mandatory: bool = False,
        asks: bool = False,
        headers: dict[str, str | int] | None = None,
        on_end: Callable[[BusError | None], None],
    ) -> None:
        self.body = body
        self.exchange = exchange
        self.key = key
        self.id = id
        self.type = type
        self.correlationid = correlationid
        self.mandatory = mandatory
        self.asks = asks
        """Whether replies are wanted, on the connection it went out on last."""
        self.headers = headers or {}
        self.on_end = on_end
        """Called once, with None when it is confirmed."""
        self.number = -1
        self.sends = 0
        self.dropped = False
        self.confirmed = False

    def __lt__(self, other: "Letter") -> bool:
        return self.number < other.number

    def properties(self, sent: int) -> spec.Basic.Properties:
        """Return what RabbitMQ is told of it."""
        return spec.Basic.Properties(
            content_type=CONTENT_TYPE,
            delivery_mode=PERSISTENT,
            message_id=self.id or None,
            correlation_id=self.correlationid or None,
            message_type=self.type or None,
            timestamp=datetime.now(UTC),
            reply_to=REPLY_TO if self.asks else None,
            headers={**self.headers, SENT: sent},
        )


class Outbox:
    """Sends letters over whatever session there is.

    Parameters
    ----------
    limits, counts
        Of the bus.
    stamp
        The time, ns, always later.
    """

    def __init__(
        self, *, limits: BusLimits, counts: Counter[str], stamp: Callable[[], int]
    ) -> None:
        self._limits = limits
        self._counts = counts
        self._stamp = stamp
        self._session: Session | None = None
        self._waiting: list[Letter] = []
        self._flying: dict[int, tuple[Letter, float]] = {}
        self._pausing: set[Letter] = set()
        self._asking: dict[int, Letter] = {}
        self._closed: BusError | None = None
        self._moved = 0.0
        """When something was confirmed or failed last."""
        self._count = 0
        self._bytes = 0
        self._numbers = count()
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        return self._count

    def put(self, letter: Letter) -> None:
        """Take a letter.

        Raises
        ------
        OutboxFull
            Too much waits already.
        BusError
            It was closed.
        """
        if self._closed is not None:
            raise self._closed
        if (
            self._count >= self._limits.outbox_messages_max
            or self._bytes + len(letter.body) > self._limits.outbox_bytes_max
        ):
            raise OutboxFull(
                f"{self._count} messages ({self._bytes} bytes) wait for RabbitMQ already;"
                f" {letter.type} not taken"
            )
        letter.number = next(self._numbers)
        self._counts["published"] += 1
        if letter.asks:
            self._asking[letter.number] = letter
        self._enter(letter)
        self._push()

    def drop(self, letter: Letter) -> None:
        """Do not send a letter any more; also not again, for one that asked."""
        self._asking.pop(letter.number, None)
        if letter.confirmed or letter.dropped:
            return
        letter.dropped = True
        if letter.number in self._flying:
            # It ends when its confirm comes.
            return
        self._pausing.discard(letter)
        self._forget(letter)
        letter.body = b""
        if len(self._waiting) > 2 * self._count + DROPPED_KEPT_MAX:
            self._waiting = [each for each in self._waiting if not each.dropped]
            heapq.heapify(self._waiting)

    def up(self, session: Session) -> None:
        """Send over this session; those that ask and are not answered, again."""
        self._session = session
        there = {*(letter.number for letter in self._waiting), *self._flying}
        for letter in self._asking.values():
            if letter.confirmed and letter.number not in there:
                letter.confirmed = False
                self._enter(letter)
        self._push()

    def down(self) -> None:
        """Wait for the next session."""
        self._session = None
        # The confirm of a connection that broke may never end by itself.
        for task in tuple(self._tasks):
            task.cancel()

    def overdue_s(self) -> float:
        """Seconds since the last confirm, while one is waited for."""
        if not self._flying:
            return 0.0
        now = asyncio.get_running_loop().time()
        return now - max(self._moved, min(since for _, since in self._flying.values()))

    async def flush(self, timeout_s: float) -> None:
        """Wait until nothing waits, or the time is over."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return

    async def close(self, error: BusError) -> None:
        """End what is left with an error."""
        self._session = None
        self._closed = error
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._limits.stop_s_max)
        for letter in (*self._waiting, *self._pausing):
            if not letter.dropped:
                letter.on_end(error)
        self._waiting.clear()
        self._pausing.clear()
        self._asking.clear()

    def _push(self) -> None:
        """Send what may fly. Tasks start in the order they are made, and so the messages go out."""
        session = self._session
        loop = asyncio.get_running_loop()
        while session is not None and self._waiting and not session.lost.is_set():
            if len(self._flying) >= self._limits.in_flight_max:
                return
            letter = heapq.heappop(self._waiting)
            if letter.dropped:
                continue
            self._flying[letter.number] = (letter, loop.time())
            task = loop.create_task(self._send(session, letter))
            self._tasks.add(task)
            task.add_done_callback(partial(self._landed, letter))

    def _landed(self, letter: Letter, task: asyncio.Task[None]) -> None:
        """Take a letter back whose sending was cancelled, also before it began."""
        self._tasks.discard(task)
        if task.cancelled():
            self._flying.pop(letter.number)
            if letter.dropped:
                self._end(letter, None)
            else:
                heapq.heappush(self._waiting, letter)

    async def _send(self, session: Session, letter: Letter) -> None:
        if letter.dropped:
            self._flying.pop(letter.number)
            self._end(letter, None)
            self._push()
            return
        letter.sends += 1
        if letter.sends > 1:
            self._counts["retried"] += 1
        error: BusError | None = None
        again, pause_s = False, 0.0
        try:
            await session.publish(
                letter.body,
                letter.properties(self._stamp()),
                exchange=letter.exchange,
                key=letter.key,
                mandatory=letter.mandatory,
            )
        except PublishError:
            self._counts["returned"] += 1
            error = Unroutable(f"RabbitMQ has no queue for {letter.type}; `qbtc bus init` makes it")
        except DeliveryError:
            again, pause_s = True, REFUSED_PAUSE_S
        except LOST as lost:
            session.lose(f"{type(lost).__name__} on publish")
            again = True
        except asyncio.CancelledError as ended:
            if cancelled(ended):
                raise
            session.lose("closed during publish")
            again = True
        except Exception as refused:
            # The library cannot put it on the wire, as with a routing key of over 255 bytes.
            error = BusError(f"{letter.type} cannot be sent: {refused}")
        self._moved = asyncio.get_running_loop().time()
        self._flying.pop(letter.number)
        if again and not letter.dropped:
            self._again(letter, pause_s)
        elif self._answer_is_lost(session, letter) and error is None:
            self._again(letter, 0.0)
        else:
            self._end(letter, error)
        self._push()

    def _answer_is_lost(self, session: Session, letter: Letter) -> bool:
        """Whether a letter was confirmed, but its replies would go to a session that is gone."""
        return letter.asks and not letter.dropped and self._session not in (None, session)

    def _again(self, letter: Letter, pause_s: float) -> None:
        if not pause_s:
            heapq.heappush(self._waiting, letter)
            return
        self._pausing.add(letter)

        def back() -> None:
            if letter in self._pausing:
                self._pausing.remove(letter)
                heapq.heappush(self._waiting, letter)
                self._push()

        asyncio.get_running_loop().call_later(pause_s, back)

    def _end(self, letter: Letter, error: BusError | None) -> None:
        self._forget(letter)
        if letter.dropped:
            return
        letter.confirmed = True
        if error is None:
            self._counts["confirmed"] += 1
        else:
            self._asking.pop(letter.number, None)
        letter.on_end(error)

    def _enter(self, letter: Letter) -> None:
        self._count += 1
        self._bytes += len(letter.body)
        self._idle.clear()
        heapq.heappush(self._waiting, letter)

    def _forget(self, letter: Letter) -> None:
        self._count -= 1
        self._bytes -= len(letter.body)
        if not self._count:
            self._idle.set()

"""From a message that arrived to what becomes of it; the same on every bus.

A body is checked before a handler sees it. A message runs until its handler ends, its sender leaves
or it expires. Of two copies of a message one runs at a time: the second waits and is done when the
first is done. A copy that its sender sent again because it has a new address makes the first stop,
as nobody hears its replies any more, and runs.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from enum import Enum, auto
from typing import Protocol

from qbtc.bus.limits import BusLimits
from qbtc.bus.protocol import Handler
from qbtc.errors import MessageError
from qbtc.messages.codec import decode, encode
from qbtc.messages.envelope import Message, new_id

__all__ = ["Consumer", "Parcel"]

_LOG = logging.getLogger(__name__)


class Parcel(Protocol):
    """A message as a bus hands it in. Settling it never raises: an unsettled one comes again."""

    @property
    def body(self) -> bytes:
        """What was sent."""
        ...

    @property
    def redelivered(self) -> bool:
        """Whether it may have been delivered before."""
        ...

    @property
    def returns(self) -> int:
        """How often it was given back."""
        ...

    @property
    def sent(self) -> int:
        """When its sender sent this copy, on the sender's clock, ns."""
        ...

    @property
    def address(self) -> str:
        """Where its replies go; empty: nowhere."""
        ...

    async def done(self) -> None:
        """Say that it needs nothing more."""
        ...

    async def again(self) -> None:
        """Give it back, to be delivered again."""
        ...

    async def dead(self, reason: str) -> None:
        """Put it to the dead letters."""
        ...

    async def reply(self, message: Message, body: bytes, *, last: bool) -> None:
        """Answer its sender."""
        ...


class _Stop(Enum):
    """Why a handler was cancelled."""

    EXPIRED = auto()
    LEFT = auto()
    """The sender does not wait any more."""
    NEWER = auto()
    """A copy with a newer address is here."""
    STOPPED = auto()
    """The subscription ends."""
    LOST = auto()
    """The connection that carried its replies is gone; it comes again."""


class _Work:
    """A message in its handler; what the handler sees of it."""

    def __init__(self, message: Message, parcel: Parcel, task: "asyncio.Task[None]") -> None:
        self.message = message
        self.attempt = new_id()
        self.parcel = parcel
        self.why: _Stop | None = None
        self.replied = False
        self.finished: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        """Whether a copy of the message needs nothing more."""
        self._task = task
        self._answered = False

    @property
    def redelivered(self) -> bool:
        return self.parcel.redelivered

    @property
    def returns(self) -> int:
        return self.parcel.returns

    async def reply(self, message: Message, *, last: bool = True) -> None:
        if message.correlationid != self.message.correlationid:
            raise ValueError("a reply has the correlationid of its request")
        if self._answered:
            raise ValueError("nothing follows the last reply")
        body = encode(message)
        self._answered = last
        if self.parcel.address and self.why is None:
            self.replied = True
            await self.parcel.reply(message, body, last=last)

    def stop(self, why: _Stop) -> None:
        if self.why is None and not self.finished.done():
            self.why = why
            self._task.cancel()


class Consumer:
    """Runs a handler on what arrives.

    Parameters
    ----------
    handler
        Does the work.
    limits, counts
        Of the bus.
    withdrawn
        Says of a message and when it was sent whether its sender has left already.
    """

    def __init__(
        self,
        handler: Handler,
        *,
        limits: BusLimits,
        counts: Counter[str],
        withdrawn: Callable[[Message, int], bool],
    ) -> None:
        self._handler = handler
        self._limits = limits
        self._counts = counts
        self._withdrawn = withdrawn
        self._running: dict[str, _Work] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()

    @property
    def active(self) -> int:
        """Messages in the handler now."""
        return len(self._running)

    def take(self, parcel: Parcel) -> None:
        """Start with a message."""
        task = asyncio.get_running_loop().create_task(self._carry(parcel))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def withdraw(self, request: str, before: int) -> None:
        """Stop the work for who has left: by id or correlation id, of copies sent before a time.

        Only work that answers somebody. A message that others published while they worked on the
        request has its correlation id too, and is wanted all the same.
        """
        for work in self._running.values():
            named = request in (work.message.id, work.message.correlationid)
            if named and work.parcel.address and work.parcel.sent < before:
                work.stop(_Stop.LEFT)

    def lose(self, lost: Callable[[Parcel], bool]) -> None:
        """Stop the work whose replies may have been lost with a connection."""
        for work in self._running.values():
            if work.replied and lost(work.parcel):
                work.stop(_Stop.LOST)

    async def stop(self, *, finish_s: float) -> None:
        """Give the running messages time, then give them back."""
        if self._tasks and finish_s > 0:
            await asyncio.wait(self._tasks, timeout=finish_s)
        self._stopping.set()
        for work in self._running.values():
            work.stop(_Stop.STOPPED)
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=self._limits.stop_s_max)
            if late:
                _LOG.warning("%d handlers did not end when they were cancelled", len(late))

    async def _carry(self, parcel: Parcel) -> None:
        self._counts["received"] += 1
        try:
            message = decode(parcel.body)
        except MessageError as error:
            await self._bury(parcel, error)
            return
        except Exception as error:
            # A body that our reader itself stumbles over must not stop the consumer.
            _LOG.exception("a message could not be read")
            await self._bury(parcel, MessageError(f"{type(error).__name__} while reading it"))
            return
        while (first := self._running.get(message.id)) is not None:
            if parcel.address != first.parcel.address and parcel.sent > first.parcel.sent:
                first.stop(_Stop.NEWER)
            if await asyncio.shield(first.finished):
                self._counts["done"] += 1
                await parcel.done()
                return
        left_s = message.left_s()
        if left_s is not None and left_s <= 0:
            self._counts["expired"] += 1
            await parcel.done()
        elif parcel.address and self._withdrawn(message, parcel.sent):
            self._counts["cancelled"] += 1
            await parcel.done()
        elif self._stopping.is_set():
            await parcel.again()
        else:
            await self._work(message, parcel, left_s)

    async def _work(self, message: Message, parcel: Parcel, left_s: float | None) -> None:
        task = asyncio.current_task()
        assert task is not None
        work = _Work(message, parcel, task)
        self._running[message.id] = work
        timer = None
        if left_s is not None:
            loop = asyncio.get_running_loop()
            timer = loop.call_later(left_s, work.stop, _Stop.EXPIRED)
        failure: BaseException | None = None
        try:
            await self._handler(work)
        except (Exception, asyncio.CancelledError) as error:
            failure = error
        if timer is not None:
            timer.cancel()
        if work.why is not None:
            task.uncancel()
        again = failure is not None and (
            work.why in (_Stop.STOPPED, _Stop.LOST)
            or (work.why is None and not isinstance(failure, MessageError))
        )
        del self._running[message.id]
        # Work that was stopped says nothing of a copy: the asker may have left and asked again.
        work.finished.set_result(not again and work.why is None)
        if isinstance(failure, asyncio.CancelledError) and work.why is None:
            await parcel.again()
            raise failure
        await self._settle(parcel, work, failure, again=again)

    async def _settle(
        self, parcel: Parcel, work: _Work, failure: BaseException | None, *, again: bool
    ) -> None:
        message = work.message
        if failure is None:
            self._counts["done"] += 1
            await parcel.done()
        elif work.why in (_Stop.EXPIRED, _Stop.LEFT, _Stop.NEWER):
            self._counts["expired" if work.why is _Stop.EXPIRED else "cancelled"] += 1
            await parcel.done()
        elif isinstance(failure, MessageError) and work.why is None:
            await self._bury(parcel, failure)
        else:
            assert again
            self._counts["again"] += 1
            if work.why is None:
                # The type only: a handler's words may quote the message.
                _LOG.warning(
                    "%s %s failed with %s and is given back",
                    message.type,
                    message.id,
                    type(failure).__name__,
                )
                await self._pause(parcel.returns)
            await parcel.again()

    async def _bury(self, parcel: Parcel, error: MessageError) -> None:
        self._counts["dead"] += 1
        await parcel.dead(f"bad message: {error}")

    async def _pause(self, returns: int) -> None:
        """Wait before a message is given back, so that what it needs has time to come back."""
        pause = min(
            self._limits.again_delay_s * 2.0 ** min(returns, 30), self._limits.again_delay_s_max
        )
        try:
            async with asyncio.timeout(pause):
                await self._stopping.wait()
        except TimeoutError:
            return

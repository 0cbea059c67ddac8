"""A run's connection to the bus, on a thread and an event loop of its own.

The node's thread starts it before the replay and stops it after; in between the two meet only in
bounded queues (``relay``, ``bus_signal``). A broker that goes away during the run costs copies.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from qbtc.bus import Topic, open_bus
from qbtc.bus.protocol import Bus
from qbtc.bus.topology import RESPONSES
from qbtc.config import BusSignalConfig
from qbtc.errors import BusUnavailable
from qbtc.trading.bus_signal import BusSignalInbox, Marks
from qbtc.trading.relay import Relay

__all__ = ["BusLink", "BusPlace"]

START_S_MAX = 15.0
PREFETCH = 64


class MarkStore(Marks, Protocol):
    """A database of marks (a ``Store``)."""

    async def close(self) -> None:
        """Let go of it."""
        ...


class BusPlace(msgspec.Struct, frozen=True, kw_only=True):
    """Which bus, and who speaks."""

    url: str
    prefix: str
    source: str


class BusLink:
    """Runs a relay and receives signals.

    Parameters
    ----------
    place
        Which bus.
    relay
        Sends the run's copies.
    inbox, topics
        Receives signals of these topics, if any.
    marks
        Opens the database that remembers which signals were received; None: memory alone.
    """

    def __init__(
        self,
        place: BusPlace,
        *,
        relay: Relay,
        inbox: BusSignalInbox | None = None,
        topics: tuple[BusSignalConfig, ...] = (),
        marks: Callable[[], Awaitable[MarkStore]] | None = None,
    ) -> None:
        self._place = place
        self._relay = relay
        self._inbox = inbox
        self._topics = topics
        self._open_marks = marks
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped: asyncio.Event | None = None
        self._flush_s = 0.0
        self._thread = threading.Thread(target=self._main, name="qbtc-bus", daemon=True)

    def start(self) -> None:
        """Connect. Who wants signals needs the broker now; copies can wait for it.

        Raises
        ------
        BusUnavailable
            The broker is away.
        QbtcError
            It refuses us, or the database of marks is away.
        """
        self._thread.start()
        ready = self._ready.wait(START_S_MAX)
        if self._error is not None:
            self._thread.join()
            raise self._error
        if not ready:
            raise BusUnavailable(f"the bus did not answer within {START_S_MAX:g} s; try again")

    def stop(self, *, flush_s: float) -> None:
        """Send what waits, for so long at most, and let go."""
        self._flush_s = flush_s
        if self._loop is not None and self._stopped is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(flush_s + START_S_MAX)

    def problem(self) -> str | None:
        """Why the link ended before it was told to; None: it did not."""
        return None if self._error is None else str(self._error)

    def _main(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # for the node's thread
            self._error = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop, self._stopped = asyncio.get_running_loop(), asyncio.Event()
        place = self._place
        bus = await open_bus(
            place.url,
            prefix=place.prefix,
            source=place.source,
            must_connect=bool(self._topics),
        )
        marks: MarkStore | None = None
        marking: asyncio.Task[None] | None = None
        try:
            if self._inbox is not None and self._open_marks is not None:
                marks = await self._open_marks()
                marking = asyncio.create_task(self._inbox.mark(marks))
                await asyncio.sleep(0)  # from its first step on, signals wait for their marks
            await self._receive(bus)
            await self._send(bus, self._stopped)
        finally:
            if marking is not None:
                marking.cancel()
                await asyncio.wait({marking})
            await bus.close()
            if marks is not None:
                await marks.close()
        if marking is not None and not marking.cancelled():
            marking.result()

    async def _receive(self, bus: Bus) -> None:
        if self._inbox is None:
            return
        for entry in self._topics:
            topic = Topic(
                exchange=RESPONSES,
                pattern=entry.topic or f"trading.signal.{entry.instrument}",
                durable_name=entry.durable_name,
            )
            await bus.subscribe(topic, self._inbox.receive, prefetch=PREFETCH)

    async def _send(self, bus: Bus, stopped: asyncio.Event) -> None:
        sending = asyncio.create_task(self._relay.run(bus, stopped))
        self._ready.set()
        stopping = asyncio.create_task(stopped.wait())
        await asyncio.wait({sending, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        await asyncio.wait({sending}, timeout=self._flush_s)
        if not sending.done():
            sending.cancel()
            await asyncio.wait({sending})
        if not sending.cancelled():
            sending.result()

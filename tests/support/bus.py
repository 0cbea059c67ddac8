"""Both buses for tests: the one of this process, and RabbitMQ under a prefix of the test's own."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Literal

from qbtc.bus import Bus, BusLimits, open_bus
from qbtc.bus.admin import remove_topology

type Kind = Literal["in process", "rabbitmq"]

KINDS: Sequence[Kind] = ("in process", "rabbitmq")


class Buses:
    """Opens buses that reach each other: in one process they are one."""

    def __init__(self, stack: AsyncExitStack, url: str | None, prefix: str) -> None:
        self.url = url
        self.prefix = prefix
        self.durable: list[str] = []
        """Names of durable topic subscriptions; they are removed at the end."""
        self._stack = stack
        self._only: Bus | None = None

    async def open(self, source: str = "qbtc/test/1", *, limits: BusLimits | None = None) -> Bus:
        """Open a bus, closed at the end; in process it is the first one again."""
        if self.url is None and self._only is not None:
            return self._only
        bus = await open_bus(self.url, prefix=self.prefix, source=source, limits=limits)
        self._stack.push_async_callback(bus.close)
        self._only = bus
        return bus


@asynccontextmanager
async def buses(url: str | None, prefix: str = "") -> AsyncIterator[Buses]:
    """Open buses on a RabbitMQ under a prefix, or in this process (no URL); then clean up."""
    async with AsyncExitStack() as stack:
        made = Buses(stack, url, prefix)
        if url is not None:

            async def clean() -> None:
                await remove_topology(url, prefix, queues=made.durable)

            stack.push_async_callback(clean)
        yield made

"""Publishes what was written to the outbox: at least once, in the order it was written."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from qbtc.errors import MessageError, QbtcError
from qbtc.messages.envelope import Message
from qbtc.store.protocol import Store

__all__ = ["Publisher", "relay", "relay_once"]

POLL_S = 1.0
"""Another process may have written to the outbox."""
RETRY_S_MIN = 0.2
RETRY_S_MAX = 5.0
IN_FLIGHT = 64

_log = logging.getLogger(__name__)


class Publisher(Protocol):
    """The half of a bus that an outbox needs."""

    async def publish(self, message: Message, *, timeout_s: float = 30.0) -> None:
        """Hand a message over; on return the bus has it safe."""
        ...

    async def close(self) -> None:
        """Let go."""
        ...


async def relay(
    store: Callable[[], Awaitable[Store]],
    publisher: Callable[[], Awaitable[Publisher]],
    more: asyncio.Event,
) -> None:
    """Publish the outbox for ever; ``more`` says that something was written to it."""
    retry_s = RETRY_S_MIN
    bus: Publisher | None = None
    try:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(more.wait(), POLL_S)
            more.clear()
            try:
                bus = bus or await publisher()
                while await relay_once(await store(), bus):
                    pass
                retry_s = RETRY_S_MIN
            except Exception as error:
                # Whatever it is, the messages are in the database; all there is is to try again.
                unexpected = not isinstance(error, (QbtcError, OSError))
                _log.warning("the outbox waits: %s", error, exc_info=unexpected)
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, RETRY_S_MAX)
    finally:
        if bus is not None:
            await bus.close()


async def relay_once(store: Store, bus: Publisher) -> int:
    """Publish some of what waits; return how many were sent.

    A crash after a message was published and before that is noted sends it again with the same id.
    A message that can never be published is noted and waits no more; one whose queue is missing
    waits until the bus has made it again.
    """
    messages = await store.outbox(limit=IN_FLIGHT)
    # All at once, handed over in their order: the bus confirms many in the time of one.
    results = await asyncio.gather(*map(bus.publish, messages), return_exceptions=True)
    sent = []
    failed: BaseException | None = None
    for message, result in zip(messages, results, strict=True):
        match result:
            case None:
                sent.append(message.id)
            case MessageError() | ValueError():
                _log.error("message %s can never be published: %s", message.id, result)
                await store.outbox_refused(message.id, reason=str(result))
            case _:
                failed = failed or result
    if sent:
        await store.outbox_sent(sent)
    if failed is not None:
        raise failed
    return len(sent)

"""Make, look at and remove the topology on a broker, without carrying messages."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Final, Literal

import msgspec
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import ChannelNotFoundEntity

from qbtc.bus.limits import BusLimits
from qbtc.bus.session import LOST, close_connection, connect, declare, explain
from qbtc.bus.topology import EXCHANGES, QUEUES, check_prefix
from qbtc.errors import BusError, InputError

__all__ = ["Made", "QueueStatus", "init_topology", "link", "queue_status", "remove_topology"]

ADMIN_S_MAX: Final = 60.0
"""The longest a command on a broker takes."""


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """An exchange or a queue, and whether it had to be made."""

    kind: Literal["exchange", "queue"]
    name: str
    created: bool


class QueueStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What waits in a queue, and who takes it."""

    name: str
    there: bool
    messages: int = 0
    """That wait; what consumers hold is not counted."""
    consumers: int = 0


@asynccontextmanager
async def link(url: str) -> AsyncIterator[AbstractConnection]:
    """Have a connection for a while; its loss is a BusUnavailable."""
    connection = await connect(url, timeout_s=BusLimits().connect_s_max)
    try:
        async with asyncio.timeout(ADMIN_S_MAX):
            yield connection
    except LOST as error:
        raise explain(error, url) from error
    finally:
        await close_connection(connection)


async def init_topology(url: str, *, prefix: str = "") -> Sequence[Made]:
    """Make what is not there; say what was made.

    Raises
    ------
    BusError
        Something is there and differs; what to do is in the notes.
    """
    check_prefix(prefix)
    async with link(url) as connection:
        there = {
            ("exchange", name): await _has_exchange(connection, prefix + name) for name in EXCHANGES
        } | {("queue", name): (await _look(connection, prefix + name)).there for name in QUEUES}
        try:
            await declare(connection, prefix=prefix)
        except BusError as error:
            error.add_note(
                "It was made by another version or by hand, and RabbitMQ changes no queue in place."
                " Let the workers empty it (`qbtc bus status` shows how much waits), delete it"
                " (`rabbitmqctl delete_queue NAME`), and run `qbtc bus init` again; or use another"
                " prefix (QBTC_BUS_PREFIX)."
            )
            raise
    return [
        Made(
            kind="exchange" if kind == "exchange" else "queue", name=prefix + name, created=not was
        )
        for (kind, name), was in there.items()
    ]


async def queue_status(
    url: str, *, prefix: str = "", queues: Iterable[str] = ()
) -> Sequence[QueueStatus]:
    """Look at the queues, and at others by name."""
    check_prefix(prefix)
    async with link(url) as connection:
        return [await _look(connection, prefix + name) for name in (*QUEUES, *queues)]


async def remove_topology(url: str, prefix: str, *, queues: Iterable[str] = ()) -> None:
    """Delete the exchanges and queues of a prefix with all that waits in them; for tests.

    Parameters
    ----------
    url, prefix
        Which; an empty prefix is refused.
    queues
        Names of durable topic subscriptions, which are not part of the topology.
    """
    if not prefix:
        raise InputError("the topology without a prefix is not removed; name a prefix")
    async with link(url) as connection:
        channel = await connection.channel()
        for name in (*QUEUES, *queues):
            await channel.queue_delete(prefix + name)
        for name in EXCHANGES:
            await channel.exchange_delete(prefix + name)
        await channel.close()


async def _look(connection: AbstractConnection, name: str) -> QueueStatus:
    # A question about what is not there closes the channel, so each has its own.
    channel = await connection.channel()
    try:
        result = (await channel.declare_queue(name, passive=True)).declaration_result
    except ChannelNotFoundEntity:
        return QueueStatus(name=name, there=False)
    await channel.close()
    return QueueStatus(
        name=name,
        there=True,
        messages=result.message_count or 0,
        consumers=result.consumer_count or 0,
    )


async def _has_exchange(connection: AbstractConnection, name: str) -> bool:
    channel: AbstractChannel = await connection.channel()
    try:
        await channel.declare_exchange(name, passive=True)
    except ChannelNotFoundEntity:
        return False
    await channel.close()
    return True

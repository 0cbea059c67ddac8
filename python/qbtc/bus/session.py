"""One connection to RabbitMQ with its channels, until any of them is gone; and what went wrong.

aio-pika's own defaults lose messages: it sends them transient, takes unroutable ones silently, and
has replies to askers that are gone returned with their bodies in the log. Here every message is
persistent and confirmed, requests are mandatory, replies are not. The connection is not aio-pika's
robust one: what is sent again, and which replies were lost, is decided in one place,
``qbtc.bus.rabbit``. Messages pass through the channels under aio-pika's own (aiormq's), which
saves a task, a message object and a wait for each.
"""

import asyncio
import logging
import traceback
from collections.abc import Callable, Coroutine
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import aio_pika
import aiormq
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import (
    AMQPError,
    AuthenticationError,
    ChannelPreconditionFailed,
    IncompatibleProtocolError,
    InvalidFrameError,
    ProbableAuthenticationError,
)
from aiormq import spec
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import ChannelAccessRefused

from qbtc.bus.limits import BusLimits
from qbtc.bus.topology import EXCHANGES, QUEUES, queue_arguments
from qbtc.errors import BusError, BusUnavailable, InputError

__all__ = [
    "CLOSE_S_MAX",
    "LOST",
    "REPLY_TO",
    "Incoming",
    "Session",
    "cancelled",
    "check_url",
    "close_connection",
    "connect",
    "declare",
    "explain",
    "under",
]

for _name in ("aio_pika", "aiormq"):
    # They log message bodies and tracebacks; what matters is said by the bus, once.
    logging.getLogger(_name).setLevel(logging.CRITICAL)

LOST: Final = (AMQPError, ConnectionError, OSError, RuntimeError, TimeoutError)
"""What aio-pika raises when the connection or the channel is gone."""

HEARTBEAT_S: Final = 10
CLOSE_S_MAX: Final = 5.0
REPLIES_UNDRAINED_MAX: Final = 16
"""Replies handed to the connection without a wait; so a slow broker slows its answerers."""
REPLY_TO: Final = "amq.rabbitmq.reply-to"

type Incoming = DeliveredMessage
type OnMessage = Callable[[Incoming], Coroutine[Any, Any, None]]


class Session:
    """One connection, one channel for what is confirmed and one for replies."""

    def __init__(
        self,
        connection: AbstractConnection,
        out: aiormq.Channel,
        back: aiormq.Channel,
    ) -> None:
        self.connection = connection
        self.hears_control = False
        self.lost = asyncio.Event()
        self.reason = ""
        self._out = out
        self._back = back
        self._replies = 0

    @classmethod
    async def open(
        cls, url: str, *, prefix: str, limits: BusLimits, on_reply: OnMessage
    ) -> "Session":
        """Connect, make the topology where it is not there, listen for replies.

        Raises
        ------
        BusUnavailable
            The broker cannot be reached or refuses us.
        BusError
            Its queues differ from ours.
        """
        connection = await connect(url, timeout_s=limits.connect_s_max)
        try:
            async with asyncio.timeout(limits.connect_s_max):
                await declare(connection, prefix=prefix)
                out = await connection.channel(on_return_raises=True)
                back = await connection.channel(publisher_confirms=False)
                session = cls(connection, await under(out), await under(back))
                # Replies come back on the channel that a request went out on, without a queue.
                await session._out.basic_consume(REPLY_TO, on_reply, no_ack=True)
                for each in (out, back, connection):
                    session.watch(each)
        except BaseException as error:
            await close_connection(connection)
            if isinstance(error, LOST):
                raise explain(error, url) from error
            raise
        return session

    def watch(self, part: AbstractChannel | AbstractConnection) -> None:
        """Give the session up when a part of it closes."""
        part.close_callbacks.add(self._closed)

    def unwatch(self, part: AbstractChannel) -> None:
        """Let a part of it close."""
        part.close_callbacks.discard(self._closed)

    def lose(self, reason: str) -> None:
        """Give the session up."""
        if not self.lost.is_set():
            self.reason = reason
            self.lost.set()

    async def publish(
        self,
        body: bytes,
        properties: spec.Basic.Properties,
        *,
        exchange: str,
        key: str,
        mandatory: bool,
    ) -> None:
        """Send a message and wait until it is confirmed."""
        await self._out.basic_publish(
            body,
            exchange=exchange,
            routing_key=key,
            properties=properties,
            mandatory=mandatory,
            wait=False,
        )

    async def reply(
        self, body: bytes, properties: spec.Basic.Properties, *, address: str, last: bool
    ) -> None:
        """Answer an asker; wait now and then until the connection has taken what was sent."""
        self._replies += 1
        await self._back.basic_publish(
            body,
            routing_key=address,
            properties=properties,
            wait=not last and self._replies % REPLIES_UNDRAINED_MAX == 0,
        )

    async def close(self) -> None:
        """Close the connection, for a bounded time."""
        self.lose("closed")
        await close_connection(self.connection)

    def _closed(self, _: Any, error: BaseException | None) -> None:
        self.lose(type(error).__name__ if error is not None else "closed")


async def under(channel: AbstractChannel) -> aiormq.Channel:
    """Return the channel that a channel of aio-pika's stands on."""
    found = await channel.get_underlay_channel()
    assert isinstance(found, aiormq.Channel)
    return found


async def connect(url: str, *, timeout_s: float) -> AbstractConnection:
    """Connect to a broker.

    Raises
    ------
    InputError
        The URL is not one.
    BusUnavailable
        It cannot be reached, or refuses us; the text has no password in it.
    """
    check_url(url)
    if "heartbeat=" not in url:
        url += f"{'&' if urlsplit(url).query else '?'}heartbeat={HEARTBEAT_S}"
    try:
        return await aio_pika.connect(url, timeout=timeout_s)
    except LOST as error:
        # aio-pika's half-made connection is in these frames and closes itself when it is dropped:
        # let that be now, in this loop, not when some thread without one collects garbage.
        traceback.clear_frames(error.__traceback__)
        raise explain(error, url) from error


def check_url(url: str) -> None:
    """Refuse a malformed URL.

    Raises
    ------
    InputError
        It is; the text does not quote it, as it may hold a password.
    """
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - it is read when it is asked for
        aio_pika.connection.make_url(url)
        if parts.scheme not in ("amqp", "amqps") or not parts.hostname:
            raise ValueError("no broker's address")
    except ValueError:
        raise InputError(
            "the bus URL is malformed; it should be amqp://user:password@host:port/vhost,"
            " with %-escapes in user, password and vhost"
        ) from None


def explain(error: BaseException, url: str) -> BusUnavailable:
    """Say what went wrong and what to do, without the password."""
    parts = urlsplit(url)
    port = parts.port or (5671 if parts.scheme == "amqps" else 5672)
    place = f"RabbitMQ at {parts.hostname or 'localhost'}:{port}"
    user, vhost = unquote(parts.username or "guest"), unquote(parts.path[1:]) or "/"
    match error:
        case ProbableAuthenticationError() | AuthenticationError():
            return BusUnavailable(
                f"{place} refused user {user}; check user and password of the bus URL"
            )
        case InvalidFrameError() if "Connection.OpenOk" in str(error):
            return BusUnavailable(
                f"{place} has no virtual host {vhost} that user {user} may use;"
                " check the end of the bus URL"
            )
        case ChannelAccessRefused():
            return BusUnavailable(
                f"{place} lets user {user} not do what the bus needs ({error});"
                " it has to configure, write and read what begins with the prefix"
            )
        case IncompatibleProtocolError():
            return BusUnavailable(f"what listens at {place[12:]} is not RabbitMQ's AMQP port")
        case TimeoutError():
            return BusUnavailable(f"{place} does not answer; is it running?")
        case _:
            cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
            detail = getattr(cause, "strerror", None) or str(error) or type(error).__name__
            return BusUnavailable(f"cannot reach {place} ({detail}); is it running?")


async def declare(connection: AbstractConnection, *, prefix: str) -> None:
    """Make exchanges, queues and bindings where they are not there.

    Raises
    ------
    BusError
        One is there and differs.
    """
    channel = await connection.channel()
    name = ""
    try:
        for name, kind in EXCHANGES.items():
            await channel.declare_exchange(prefix + name, kind, durable=True)
        for name, (exchange, key) in QUEUES.items():
            queue = await channel.declare_queue(
                prefix + name, durable=True, arguments=dict(queue_arguments(name, prefix=prefix))
            )
            await queue.bind(prefix + exchange, key)
    except ChannelPreconditionFailed as error:
        raise BusError(
            f"{prefix}{name} is there but differs from this version's: {_differs(error)};"
            " `qbtc bus init` says what to do"
        ) from error
    await channel.close()


def _differs(error: ChannelPreconditionFailed) -> str:
    text = str(error.args[-1]) if error.args else ""
    return text.removeprefix("PRECONDITION_FAILED - ")


async def close_connection(connection: AbstractConnection) -> None:
    """Close a connection, for a bounded time."""
    try:
        async with asyncio.timeout(CLOSE_S_MAX):
            await connection.close()
    except (*LOST, asyncio.CancelledError) as error:
        if cancelled(error):
            raise


def cancelled(error: BaseException) -> bool:
    """Whether this task is cancelled; aio-pika ends calls like that too on a closing channel."""
    task = asyncio.current_task()
    ours = task is None or task.cancelling() > 0
    return isinstance(error, asyncio.CancelledError) and ours

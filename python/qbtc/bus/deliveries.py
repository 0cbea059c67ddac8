"""A queue of RabbitMQ on its way into a handler, and each message until it is settled."""

import asyncio
from collections.abc import Awaitable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from aio_pika.abc import AbstractChannel, AbstractQueue
from aio_pika.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed
from aiormq import spec

from qbtc.bus.consumer import Consumer
from qbtc.bus.dead import DIED_AT, FROM_EXCHANGE, FROM_QUEUE, REASON, REASON_CHARS_MAX
from qbtc.bus.outbox import CONTENT_TYPE, SENT
from qbtc.bus.protocol import Topic, WorkQueue
from qbtc.bus.session import (
    CLOSE_S_MAX,
    LOST,
    REPLY_TO,
    Incoming,
    Session,
    cancelled,
    under,
)
from qbtc.bus.topology import DELIVERY_LIMIT, TOPIC_MESSAGES_MAX, queue_arguments
from qbtc.errors import BusError, BusUnavailable, Unroutable
from qbtc.messages.envelope import Message, rfc3339

if TYPE_CHECKING:
    from qbtc.bus.rabbit import RabbitBus

__all__ = ["LAST", "REQUEST", "RabbitSubscription"]

REQUEST = "qbtc-request"
"""Header of a reply and of a cancellation: the id of the request."""
LAST = "qbtc-last"
"""Header of a reply: 1 on the last."""


class RabbitSubscription:
    """A handler at work on a queue; a new session starts it again."""

    def __init__(
        self, bus: "RabbitBus", source: WorkQueue | Topic, consumer: Consumer, *, prefetch: int
    ) -> None:
        self.consumer = consumer
        self._bus = bus
        self._source = source
        self._prefetch = prefetch
        self._session: Session | None = None
        self._channel: AbstractChannel | None = None
        self._queue: AbstractQueue | None = None
        self._tag = ""
        self._stopped = False
        self._returns: dict[str, int] = {}
        """How often a message was given back to a queue that does not count it itself."""

    @property
    def active(self) -> int:
        """See :class:`~qbtc.bus.protocol.Subscription`."""
        return self.consumer.active

    @property
    def counts_itself(self) -> bool:
        """Whether the queue counts how often a message is given back: a quorum queue does."""
        return isinstance(self._source, WorkQueue) or bool(self._source.durable_name)

    async def start(self, session: Session) -> None:
        """Take messages over a session.

        Raises
        ------
        Unroutable
            The queue or the exchange is not there.
        BusError
            The queue is there and differs.
        """
        if self._stopped:
            return
        channel = await session.connection.channel(publisher_confirms=False)
        try:
            queue = await self._start(session, channel)
        except BaseException:
            # What is half open must not take messages that nobody handles.
            await quietly(asyncio.wait_for(channel.close(), CLOSE_S_MAX))
            raise
        if self._stopped:
            # Meanwhile. What has arrived goes back to the queue with the channel, once: a handler
            # that gave it back would get it again, until it were a dead letter.
            await quietly(asyncio.wait_for(channel.close(), CLOSE_S_MAX))
            return
        session.watch(channel)
        self._session, self._channel, self._queue = session, channel, queue

    async def _start(self, session: Session, channel: AbstractChannel) -> AbstractQueue:
        await channel.set_qos(prefetch_count=self._prefetch)
        try:
            queue = await self._open_queue(channel)

            underlay = await under(channel)

            async def take(incoming: Incoming) -> None:
                if self._stopped and self._session is not session:
                    return
                self.consumer.take(_Parcel(self._bus, self, session, queue.name, incoming))

            self._tag = (await underlay.basic_consume(queue.name, take)).consumer_tag or ""
        except ChannelNotFoundEntity as error:
            raise Unroutable(
                f"RabbitMQ has no {self._name}; `qbtc bus init` makes the queues"
            ) from error
        except ChannelPreconditionFailed as error:
            raise BusError(
                f"{self._name} is there but differs from this version's: {error}"
            ) from error
        underlay.on_consumer_cancel_callbacks.add(
            lambda _: session.lose(f"{self._name} was deleted")
        )
        return queue

    async def stop(self, *, finish_s: float = 0.0) -> None:
        """See :class:`~qbtc.bus.protocol.Subscription`."""
        self._stopped = True
        self._bus.forget(self)
        session, channel, queue = self._session, self._channel, self._queue
        here = session is not None and not session.lost.is_set()
        if here and queue is not None:
            await quietly(queue.cancel(self._tag))
        await self.consumer.stop(finish_s=finish_s)
        if session is not None and channel is not None and not session.lost.is_set():
            session.unwatch(channel)
            await quietly(channel.close())

    async def _open_queue(self, channel: AbstractChannel) -> AbstractQueue:
        prefix, source = self._bus.prefix, self._source
        if isinstance(source, WorkQueue):
            return await channel.get_queue(prefix + source.name, ensure=False)
        if source.durable_name:
            queue = await channel.declare_queue(
                prefix + source.durable_name,
                durable=True,
                arguments=dict(queue_arguments(source.durable_name, prefix=prefix)),
            )
        else:
            queue = await channel.declare_queue(
                "",
                exclusive=True,
                auto_delete=True,
                arguments={"x-max-length": TOPIC_MESSAGES_MAX, "x-overflow": "drop-head"},
            )
        await queue.bind(prefix + source.exchange, source.pattern)
        return queue

    @property
    def _name(self) -> str:
        source = self._source
        if isinstance(source, WorkQueue):
            return f"queue {self._bus.prefix}{source.name}"
        if source.durable_name:
            return f"queue {self._bus.prefix}{source.durable_name}"
        return f"exchange {self._bus.prefix}{source.exchange}"

    def returned(self, id: str) -> int:
        """Return how often a message was given back to a queue that does not count."""
        return self._returns.get(id, 0)

    def note_return(self, id: str) -> None:
        """Count that a message is given back."""
        self._returns[id] = self._returns.get(id, 0) + 1

    def note_end(self, id: str) -> None:
        """Forget a message."""
        self._returns.pop(id, None)


class _Parcel:
    """A delivery that is not settled yet."""

    def __init__(
        self,
        bus: "RabbitBus",
        subscription: RabbitSubscription,
        session: Session,
        queue: str,
        incoming: Incoming,
    ) -> None:
        self.body = incoming.body
        self.redelivered = bool(incoming.redelivered)
        properties = incoming.header.properties
        headers = properties.headers or {}
        self.sent = _number(headers.get(SENT))
        self.id = properties.message_id or ""
        self.returns = (
            _number(headers.get("x-delivery-count"))
            if subscription.counts_itself
            else subscription.returned(self.id)
        )
        # Nobody but an asker is answered: else a message could name any queue as its address.
        address = properties.reply_to or ""
        self.address = address if address.startswith(REPLY_TO + ".") else ""
        self.replied_on: Session | None = None
        self._bus = bus
        self._subscription = subscription
        self._session = session
        self._queue = queue
        self._incoming = incoming
        self._tag = incoming.delivery_tag or 0

    async def done(self) -> None:
        self._subscription.note_end(self.id)
        await self._ack()

    async def again(self) -> None:
        if self.returns >= DELIVERY_LIMIT:
            self._bus.count("dead")
            if not self._subscription.counts_itself:
                await self.dead("delivery_limit")
                return
        if not self._subscription.counts_itself:
            self._subscription.note_return(self.id)
        await self._nack()

    async def dead(self, reason: str) -> None:
        self._subscription.note_end(self.id)
        headers = {
            REASON: reason[:REASON_CHARS_MAX],
            FROM_QUEUE: self._queue,
            FROM_EXCHANGE: self._incoming.exchange or "",
            DIED_AT: rfc3339(datetime.now(UTC)),
        }
        try:
            await self._bus.bury(self._incoming, headers)
        except BusError:
            await self._nack()
        else:
            await self._ack()

    async def reply(self, message: Message, body: bytes, *, last: bool) -> None:
        """Answer the asker; all replies of one delivery go over one session, or it runs again."""
        if self.replied_on is None:
            self.replied_on = await self._bus.ready()
        session = self.replied_on
        if session.lost.is_set():
            raise BusUnavailable("the connection was lost during the answer")
        try:
            await session.reply(
                body,
                spec.Basic.Properties(
                    content_type=CONTENT_TYPE,
                    message_id=message.id,
                    correlation_id=message.correlationid,
                    message_type=message.type,
                    headers={REQUEST: self.id, LAST: int(last)},
                ),
                address=self.address,
                last=last,
            )
        except (*LOST, asyncio.CancelledError) as error:
            if cancelled(error):
                raise
            session.lose(f"{type(error).__name__} on reply")
            raise BusUnavailable("the connection was lost during the answer") from error

    async def _ack(self) -> None:
        await quietly(self._incoming.channel.basic_ack(self._tag, wait=False))

    async def _nack(self) -> None:
        await quietly(self._incoming.channel.basic_nack(self._tag, requeue=True, wait=False))


async def quietly(doing: Awaitable[Any]) -> None:
    """Do something that is needless when the connection is gone: the broker does it then."""
    try:
        await doing
    except (*LOST, asyncio.CancelledError) as error:
        if cancelled(error):
            raise


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0

"""The bus on RabbitMQ: what is accepted outlives the broker, the sender and the consumer.

One connection carries all. When it is lost, it is made again and: what was not confirmed is sent
again with the same id; a request that was not answered is sent again, as its replies had the lost
connection as their address; work that had begun to answer over it stops, as replies may have been
lost, and comes again from the queue.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping

from qbtc.bus.admin import remove_topology
from qbtc.bus.base import BaseBus
from qbtc.bus.consumer import Consumer, Parcel
from qbtc.bus.deliveries import LAST, REQUEST, RabbitSubscription
from qbtc.bus.limits import BusLimits
from qbtc.bus.outbox import Letter, Outbox
from qbtc.bus.protocol import Handler, Topic, WorkQueue
from qbtc.bus.replies import Replies
from qbtc.bus.session import LOST, Incoming, Session, cancelled, check_url, explain, under
from qbtc.bus.topology import CONTROL, CONTROL_MESSAGES_MAX, DEAD_EXCHANGE, route
from qbtc.errors import BusError, BusUnavailable, MessageError
from qbtc.messages.codec import decode, encode
from qbtc.messages.envelope import Message, message, new_id
from qbtc.messages.events import Cancel

__all__ = ["RabbitBus", "remove_topology"]

_LOG = logging.getLogger(__name__)

CANCEL_S_MAX = 30.0
"""A cancellation that could not be sent in this time is dropped: the request expires as well."""
DEAD_S_MAX = 30.0
"""A dead letter that could not be written in this time goes back to its queue."""
WATCH_S = 1.0

_BEFORE = "qbtc-before"
"""Header of a cancellation: it is meant for copies sent before this time."""


class RabbitBus(BaseBus):
    """A bus on a RabbitMQ broker; open it with :func:`qbtc.bus.open_bus`."""

    def __init__(self, url: str, *, prefix: str, source: str, limits: BusLimits) -> None:
        super().__init__(source=source, limits=limits)
        self.prefix = prefix
        self._url = url
        self._outbox = Outbox(limits=limits, counts=self._counts, stamp=self._stamp)
        self._letters: dict[str, Letter] = {}
        """Of the requests under way."""
        self._session: Session | None = None
        self._up = asyncio.Event()
        self._setting_up = asyncio.Lock()
        self._problem: str | None = "not connected to RabbitMQ yet"
        self._subscriptions: set[RabbitSubscription] = set()
        self._link: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        prefix: str = "",
        source: str,
        limits: BusLimits | None = None,
        must_connect: bool = True,
    ) -> "RabbitBus":
        """See :func:`qbtc.bus.open_bus`."""
        check_url(url)
        bus = cls(url, prefix=prefix, source=source, limits=limits or BusLimits())
        session = await bus._connect() if must_connect else None
        if session is not None:
            bus._begin(session)
        bus._link = asyncio.create_task(bus._keep_connected(session))
        return bus

    async def publish(self, message: Message, *, timeout_s: float = 30.0) -> None:
        """See :class:`~qbtc.bus.protocol.Bus`."""
        self._check_open()
        way = route(message)
        body = encode(message)
        await self._confirmed(
            lambda end: Letter(
                body,
                exchange=self.prefix + way.exchange,
                key=way.key,
                id=message.id,
                type=message.type,
                correlationid=message.correlationid,
                mandatory=way.must_arrive,
                on_end=end,
            ),
            timeout_s,
        )

    async def subscribe(
        self, source: WorkQueue | Topic, handler: Handler, *, prefetch: int = 16
    ) -> RabbitSubscription:
        """See :class:`~qbtc.bus.protocol.Bus`."""
        self._check_open()
        consumer = Consumer(
            handler, limits=self._limits, counts=self._counts, withdrawn=self._withdrawn
        )
        subscription = RabbitSubscription(self, source, consumer, prefetch=prefetch)
        async with self._setting_up:
            self._consumers.add(consumer)
            self._subscriptions.add(subscription)
            session = self._session
            try:
                if session is not None:
                    await self._hear_control(session)
                    await subscription.start(session)
            except LOST as error:
                # It starts with the next session.
                assert session is not None
                session.lose(f"{type(error).__name__} on subscribe")
            except asyncio.CancelledError as error:
                if cancelled(error):
                    self.forget(subscription)
                    raise
                assert session is not None
                session.lose("closed on subscribe")
            except BaseException:
                self.forget(subscription)
                raise
        return subscription

    def problem(self) -> str | None:
        """See :class:`~qbtc.bus.protocol.Bus`."""
        return "the bus is closed" if self._closed else self._problem

    async def close(self) -> None:
        """See :class:`~qbtc.bus.protocol.Bus`."""
        if self._closed:
            return
        self._closed = True
        self._fail_asked(BusError("the bus was closed"))
        await asyncio.gather(*(each.stop() for each in tuple(self._subscriptions)))
        if self._session is not None:
            await self._outbox.flush(self._limits.close_s_max)
        await self._outbox.close(BusUnavailable("the bus was closed before RabbitMQ confirmed"))
        if self._link is not None:
            self._link.cancel()
            await asyncio.wait([self._link])
        if self._session is not None:
            await self._session.close()
        if self._closing:
            await asyncio.wait(self._closing)
        self._up.set()

    async def ready(self) -> Session:
        """Wait for a connection."""
        while self._session is None:
            self._check_open()
            await self._up.wait()
        return self._session

    def forget(self, subscription: RabbitSubscription) -> None:
        """Start a subscription no more."""
        self._subscriptions.discard(subscription)
        self._consumers.discard(subscription.consumer)

    def count(self, name: str) -> None:
        """Count one more."""
        self._counts[name] += 1

    async def bury(self, incoming: Incoming, headers: Mapping[str, str]) -> None:
        """Write a dead letter; on return the broker has it safe."""
        properties = incoming.header.properties
        await self._confirmed(
            lambda end: Letter(
                incoming.body,
                exchange=self.prefix + DEAD_EXCHANGE,
                key=incoming.routing_key or "",
                id=properties.message_id or new_id(),
                type=properties.message_type or "",
                correlationid=properties.correlation_id or "",
                mandatory=True,
                headers=dict(headers),
                on_end=end,
            ),
            DEAD_S_MAX,
        )

    def _waiting(self) -> int:
        return len(self._outbox)

    async def _confirmed(
        self, write: Callable[[Callable[[BusError | None], None]], Letter], timeout_s: float
    ) -> None:
        """Send a letter and wait for its confirm."""
        ended: asyncio.Future[BusError | None] = asyncio.get_running_loop().create_future()

        def end(error: BusError | None) -> None:
            if not ended.done():
                ended.set_result(error)

        letter = write(end)
        self._outbox.put(letter)
        try:
            async with asyncio.timeout(timeout_s):
                error = await ended
        except TimeoutError:
            self._outbox.drop(letter)
            why = self._problem or "a full queue refuses it, or the broker is overloaded"
            raise BusUnavailable(
                f"RabbitMQ did not confirm {letter.type} in {timeout_s:g} s: {why}"
            ) from None
        except asyncio.CancelledError:
            self._outbox.drop(letter)
            raise
        if error is not None:
            raise error

    def _send_request(self, message: Message, body: bytes, replies: Replies) -> None:
        way = route(message)

        def end(error: BusError | None) -> None:
            if error is not None:
                replies.fail(error)

        letter = Letter(
            body,
            exchange=self.prefix + way.exchange,
            key=way.key,
            id=message.id,
            type=message.type,
            correlationid=message.correlationid,
            mandatory=way.must_arrive,
            asks=True,
            on_end=end,
        )
        self._outbox.put(letter)
        self._letters[message.id] = letter

    def _end_request(self, message: Message) -> None:
        letter = self._letters.pop(message.id, None)
        if letter is not None:
            self._outbox.drop(letter)

    def _send_cancel(self, message: Message, reason: str) -> None:
        letter = self._letters.get(message.id)
        if letter is not None and letter.sends:
            self._post_cancel(message.id, message.correlationid, reason)

    def _post_cancel(self, id: str, correlationid: str, reason: str) -> None:
        """Tell every worker to stop on the copies of a request sent until now."""
        cancel = message(
            Cancel(request_id=correlationid, reason=reason),
            source=self._source,
            subject=id,
            correlationid=correlationid,
            expires_s=CANCEL_S_MAX,
        )
        letter = Letter(
            encode(cancel),
            exchange=self.prefix + CONTROL,
            key="",
            id=cancel.id,
            type=cancel.type,
            correlationid=correlationid,
            headers={REQUEST: id, _BEFORE: self._stamp()},
            on_end=lambda _: None,
        )
        try:
            self._outbox.put(letter)
        except BusError:
            # Too much waits, or the bus is closed: the request ends when it expires.
            return
        asyncio.get_running_loop().call_later(CANCEL_S_MAX, self._outbox.drop, letter)

    async def _keep_connected(self, session: Session | None) -> None:
        """Have a session, always; the first may be there already."""
        pause_s = self._limits.reconnect_s_min
        while True:
            if session is None:
                try:
                    session = await self._connect()
                    self._begin(session)
                except Exception as error:
                    # Whatever it is, the bus has to come back when the broker does.
                    if not isinstance(error, BusError):
                        _LOG.exception("connecting to RabbitMQ failed unexpectedly")
                    self._note(str(error) or type(error).__name__)
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, self._limits.reconnect_s_max)
                    continue
            pause_s = self._limits.reconnect_s_min
            await self._watch(session)
            self._end(session)
            task = asyncio.create_task(session.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
            session = None

    async def _connect(self) -> Session:
        """Connect and start what was started before."""
        session = await Session.open(
            self._url, prefix=self.prefix, limits=self._limits, on_reply=self._on_reply
        )
        try:
            async with self._setting_up, asyncio.timeout(self._limits.connect_s_max):
                if self._subscriptions:
                    await self._hear_control(session)
                for subscription in tuple(self._subscriptions):
                    await subscription.start(session)
        except BaseException as error:
            await session.close()
            if isinstance(error, LOST):
                raise explain(error, self._url) from error
            raise
        return session

    def _begin(self, session: Session) -> None:
        self._note(None)
        self._session = session
        self._up.set()
        for letter in self._letters.values():
            if letter.sends:
                self._post_cancel(letter.id, letter.correlationid, "sent again")
        self._outbox.up(session)

    async def _watch(self, session: Session) -> None:
        """Wait until a session is lost, or has stopped to confirm."""
        while not session.lost.is_set():
            try:
                async with asyncio.timeout(WATCH_S):
                    await session.lost.wait()
            except TimeoutError:
                if self._outbox.overdue_s() > self._limits.confirm_s_max:
                    session.lose(f"no confirm for {self._limits.confirm_s_max:g} s")

    def _end(self, session: Session) -> None:
        self._session = None
        self._up.clear()
        self._outbox.down()
        self._note(f"the connection to RabbitMQ was lost ({session.reason})")

        def lost(parcel: Parcel) -> bool:
            return getattr(parcel, "replied_on", None) is session

        for consumer in self._consumers:
            consumer.lose(lost)

    def _note(self, problem: str | None) -> None:
        if problem != self._problem and not self._closed:
            if problem is not None:
                _LOG.warning("%s; trying again", problem)
            elif self._link is not None:
                _LOG.info("connected to RabbitMQ again")
        self._problem = problem

    async def _hear_control(self, session: Session) -> None:
        """Listen for cancellations, once a session."""
        if session.hears_control:
            return
        channel = await session.connection.channel(publisher_confirms=False)
        queue = await channel.declare_queue(
            "",
            exclusive=True,
            auto_delete=True,
            arguments={"x-max-length": CONTROL_MESSAGES_MAX, "x-overflow": "drop-head"},
        )
        await queue.bind(self.prefix + CONTROL, "")
        underlay = await under(channel)
        await underlay.basic_consume(queue.name, self._on_control, no_ack=True)
        session.watch(channel)
        session.hears_control = True

    async def _on_control(self, incoming: Incoming) -> None:
        try:
            cancel = decode(incoming.body)
        except MessageError as error:
            _LOG.warning("a control message was dropped: %s", error)
            return
        if isinstance(cancel.data, Cancel) and not cancel.expired():
            headers = incoming.header.properties.headers or {}
            request, before = headers.get(REQUEST), headers.get(_BEFORE)
            self._hear_cancel(
                request if isinstance(request, str) else cancel.data.request_id,
                before if isinstance(before, int) else self._stamp(),
            )

    async def _on_reply(self, incoming: Incoming) -> None:
        headers = incoming.header.properties.headers or {}
        replies = self._asked.get(str(headers.get(REQUEST)))
        if replies is not None:
            replies.put(incoming.body, last=headers.get(LAST) == 1)

"""A bus inside this process, the default: nothing to install, nothing that outlives the process.

It is not durable. What waits in its queues is lost when the process ends; while it lives it keeps
the promises of ``protocol``. Messages travel as bytes through the same checks as on RabbitMQ, so
that what works here works there.
"""

import asyncio
from collections import deque
from datetime import UTC, datetime

from qbtc.bus.base import BaseBus
from qbtc.bus.consumer import Consumer
from qbtc.bus.dead import REASON_CHARS_MAX, DeadLetter
from qbtc.bus.limits import BusLimits
from qbtc.bus.protocol import Handler, Topic, WorkQueue
from qbtc.bus.replies import Replies
from qbtc.bus.topology import DEAD, DELIVERY_LIMIT, QUEUES, route, topic_matches
from qbtc.errors import BusError, OutboxFull, Unroutable
from qbtc.messages.codec import encode
from qbtc.messages.envelope import Message, rfc3339

__all__ = ["InProcessBus"]


class InProcessBus(BaseBus):
    """Queues of this process; everything happens on the event loop that uses it."""

    def __init__(self, *, source: str = "qbtc/bus/local", limits: BusLimits | None = None) -> None:
        super().__init__(source=source, limits=limits or BusLimits())
        self._queues = {name: _Queue(self, name) for name in QUEUES if name != DEAD}
        self._bound: list[_Binding] = [
            _Binding(exchange, key, self._queues[name])
            for name, (exchange, key) in QUEUES.items()
            if name != DEAD
        ]
        self._dead: deque[DeadLetter] = deque(maxlen=self._limits.dead_max)
        self._subscriptions: set[_Subscription] = set()

    async def publish(self, message: Message, *, timeout_s: float = 30.0) -> None:
        """See :class:`~qbtc.bus.protocol.Bus`."""
        self._check_open()
        self._deliver(message, encode(message), None)

    async def subscribe(
        self, source: WorkQueue | Topic, handler: Handler, *, prefetch: int = 16
    ) -> "_Subscription":
        """See :class:`~qbtc.bus.protocol.Bus`."""
        self._check_open()
        consumer = Consumer(
            handler, limits=self._limits, counts=self._counts, withdrawn=self._withdrawn
        )
        subscription = _Subscription(self, self._queue_of(source), consumer, prefetch)
        self._consumers.add(consumer)
        self._subscriptions.add(subscription)
        subscription.queue.add(subscription)
        return subscription

    def problem(self) -> str | None:
        """See :class:`~qbtc.bus.protocol.Bus`."""
        return "the bus is closed" if self._closed else None

    def dead_letters(self) -> list[DeadLetter]:
        """Return the dead letters, the oldest first; only so many are kept."""
        return list(self._dead)

    async def close(self) -> None:
        """See :class:`~qbtc.bus.protocol.Bus`."""
        if self._closed:
            return
        self._closed = True
        self._fail_asked(BusError("the bus was closed"))
        await asyncio.gather(*(each.stop() for each in tuple(self._subscriptions)))

    def _waiting(self) -> int:
        return sum(len(binding.queue) for binding in self._bound)

    def _send_request(self, message: Message, body: bytes, replies: Replies) -> None:
        self._deliver(message, body, replies)

    def _send_cancel(self, message: Message, reason: str) -> None:
        self._hear_cancel(message.id, self._stamp())

    def _end_request(self, message: Message) -> None:
        return

    def _deliver(self, message: Message, body: bytes, replies: Replies | None) -> None:
        way = route(message)
        queues = {
            binding.queue: None
            for binding in self._bound
            if binding.exchange == way.exchange and topic_matches(binding.pattern, way.key)
        }
        if way.must_arrive and not queues:
            raise Unroutable(f"nobody takes {message.type}")
        if any(queue.keeps_all and queue.full for queue in queues):
            raise OutboxFull(f"too much waits for a consumer already; {message.type} not taken")
        self._counts["published"] += 1
        self._counts["confirmed"] += 1
        for queue in queues:
            queue.put(_Parcel(self, queue, message, body, replies))

    def _queue_of(self, source: WorkQueue | Topic) -> "_Queue":
        if isinstance(source, WorkQueue):
            if source.name not in self._queues:
                raise Unroutable(f"there is no queue {source.name}")
            return self._queues[source.name]
        name = source.durable_name
        queue = self._queues.get(name) if name else None
        if queue is None:
            queue = _Queue(self, name or source.pattern, keeps_all=bool(name))
        if name:
            self._queues[name] = queue
        binding = _Binding(source.exchange, source.pattern, queue)
        if binding not in self._bound:
            self._bound.append(binding)
        return queue

    def _forget(self, subscription: "_Subscription") -> None:
        self._consumers.discard(subscription.consumer)
        self._subscriptions.discard(subscription)
        if not subscription.queue.keeps_all:
            self._bound = [each for each in self._bound if each.queue is not subscription.queue]

    def _bury(self, parcel: "_Parcel", reason: str) -> None:
        self._dead.append(
            DeadLetter(
                id=parcel.message.id,
                type=parcel.message.type,
                queue=parcel.queue.name,
                reason=reason[:REASON_CHARS_MAX],
                time=rfc3339(datetime.now(UTC)),
                size=len(parcel.body),
                body=parcel.body,
            )
        )


class _Binding:
    def __init__(self, exchange: str, pattern: str, queue: "_Queue") -> None:
        self.exchange = exchange
        self.pattern = pattern
        self.queue = queue

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Binding) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]


class _Queue:
    """Messages for whichever of its consumers has room."""

    def __init__(self, bus: InProcessBus, name: str, *, keeps_all: bool = True) -> None:
        self.name = name
        self.keeps_all = keeps_all
        """Whether a message too many is refused; else the oldest is dropped."""
        self._bus = bus
        self._parcels: deque[_Parcel] = deque()
        self._bytes = 0
        self._subscriptions: deque[_Subscription] = deque()

    def __len__(self) -> int:
        return len(self._parcels)

    @property
    def full(self) -> bool:
        limits = self._bus._limits
        return (
            len(self._parcels) >= limits.outbox_messages_max
            or self._bytes >= limits.outbox_bytes_max
        )

    def add(self, subscription: "_Subscription") -> None:
        self._subscriptions.append(subscription)
        self.give()

    def remove(self, subscription: "_Subscription") -> None:
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)

    def put(self, parcel: "_Parcel", *, first: bool = False) -> None:
        if self.full and not self.keeps_all:
            self._bytes -= len(self._parcels.popleft().body)
        (self._parcels.appendleft if first else self._parcels.append)(parcel)
        self._bytes += len(parcel.body)
        self.give()

    def give(self) -> None:
        """Hand out what waits, one consumer after the other."""
        while self._parcels:
            for _ in range(len(self._subscriptions)):
                self._subscriptions.rotate(-1)
                if self._subscriptions[-1].free > 0:
                    break
            else:
                return
            parcel = self._parcels.popleft()
            self._bytes -= len(parcel.body)
            self._subscriptions[-1].take(parcel)


class _Subscription:
    def __init__(self, bus: InProcessBus, queue: _Queue, consumer: Consumer, prefetch: int) -> None:
        self.queue = queue
        self.consumer = consumer
        self.free = prefetch
        self._bus = bus

    @property
    def active(self) -> int:
        return self.consumer.active

    def take(self, parcel: "_Parcel") -> None:
        self.free -= 1
        parcel.holder = self
        self.consumer.take(parcel)

    async def stop(self, *, finish_s: float = 0.0) -> None:
        self.queue.remove(self)
        await self.consumer.stop(finish_s=finish_s)
        self._bus._forget(self)


class _Parcel:
    """A message in a queue of this process, or with a consumer."""

    def __init__(
        self,
        bus: InProcessBus,
        queue: _Queue,
        message: Message,
        body: bytes,
        replies: Replies | None,
    ) -> None:
        self.message = message
        self.body = body
        self.queue = queue
        self.sent = bus._stamp()
        self.returns = 0
        self.holder: _Subscription | None = None
        self._bus = bus
        self._replies = replies

    @property
    def redelivered(self) -> bool:
        return self.returns > 0

    @property
    def address(self) -> str:
        return "" if self._replies is None else f"{self.message.id}/{self.sent}"

    async def done(self) -> None:
        self._release()

    async def again(self) -> None:
        self.returns += 1
        if self.returns > DELIVERY_LIMIT:
            self._bus._counts["dead"] += 1
            await self.dead("delivery_limit")
            return
        holder, self.holder = self.holder, None
        if holder is not None:
            holder.free += 1
        self.queue.put(self, first=True)

    async def dead(self, reason: str) -> None:
        self._bus._bury(self, reason)
        self._release()

    async def reply(self, message: Message, body: bytes, *, last: bool) -> None:
        if self._replies is None or self._replies.over:
            return
        if self._replies.full and not last:
            await self._replies.room()
        self._replies.put(body, last=last)

    def _release(self) -> None:
        holder, self.holder = self.holder, None
        if holder is not None:
            holder.free += 1
            self.queue.give()

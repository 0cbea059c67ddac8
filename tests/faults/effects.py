"""Signals over the bus whose effects are rows of a database: the load of the broker's rows."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

import aio_pika
import asyncpg
import msgspec
from tests.faults.harness import PROBE_S_MAX, Outcome, depth, until

from qbtc.bus import Bus, BusLimits, Delivery, Topic, open_bus
from qbtc.bus.topology import DEAD, RESPONSES
from qbtc.errors import BusError
from qbtc.messages.envelope import Message, message, new_id
from qbtc.messages.events import TradingSignal
from qbtc.store import open_store
from qbtc.store.protocol import Store
from qbtc.store.records import SignalRecord

PREFIX = "faults."
QUEUE = "effects"
TOPIC = Topic(exchange=RESPONSES, pattern="trading.signal.#", durable_name=QUEUE)
SOURCE = "qbtc/faults/1"
INSTRUMENT = "BTCUSDT.BINANCE"
PUBLISH_S_MAX = 90.0
STALL_S_MAX = 60.0
"""Effects that make no progress for so long will make none."""


def signal(*, id: str | None = None, instrument: str = INSTRUMENT) -> Message:
    """Make a signal."""
    identity, now = id or new_id(), time.time_ns()
    data = TradingSignal(
        signal_id=identity,
        instrument=instrument,
        action="HOLD",
        confidence=0.5,
        ts_event=now,
        ts_init=now,
    )
    return message(data, source=SOURCE, subject=instrument, id=identity)


class Effects:
    """A consumer whose effect is a row of its own for every delivery that it lets through.

    The row's key holds the delivery, so that a second effect of one message would be a second row:
    the database does not hide it.
    """

    def __init__(self, store: Store, url: str) -> None:
        self._store = store
        self._url = url
        self.calls = 0
        self.repeated = 0
        """Deliveries whose mark was there."""

    async def __call__(self, delivery: Delivery) -> None:
        """Write the effect once."""
        self.calls += 1
        data = delivery.message.data
        assert isinstance(data, TradingSignal)
        row = SignalRecord(
            signal_id=delivery.message.id,
            run_id=delivery.attempt,
            ts_event=data.ts_event,
            ts_init=data.ts_init,
            instrument=data.instrument,
            action=data.action,
            confidence=data.confidence,
            source=SOURCE,
        )
        new = await self._store.write_once(delivery.message.id, consumer="faults", records=[row])
        self.repeated += not new

    async def count(self) -> dict[str, int]:
        """Return the number of effects by message, read by a connection of its own."""
        link = await asyncpg.connect(self._url, timeout=20)
        try:
            rows = await link.fetch("SELECT signal_id, count(*) AS n FROM qbtc.signals GROUP BY 1")
        finally:
            await link.close()
        return {row["signal_id"]: row["n"] for row in rows}


@contextlib.asynccontextmanager
async def effects_in(url: str) -> AsyncIterator[Effects]:
    """Open a database, with its tables, for effects."""
    store = await open_store(url, ready=False)
    try:
        await store.migrate()
        yield Effects(store, url)
    finally:
        await store.close()


@contextlib.asynccontextmanager
async def buses(url: str, *, limits: BusLimits | None = None) -> AsyncIterator[tuple[Bus, Bus]]:
    """Open a bus to send with and one to receive with."""
    sender = await open_bus(url, prefix=PREFIX, source=SOURCE, limits=limits)
    try:
        receiver = await open_bus(url, prefix=PREFIX, source=f"{SOURCE}/receiver", limits=limits)
        try:
            yield sender, receiver
        finally:
            await receiver.close()
    finally:
        await sender.close()


class Load:
    """Publishes signals at a rate; knows which were accepted."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.attempted = 0
        self.refused = 0
        self.accepted: set[str] = set()

    async def run(self, count: int, *, rate: float) -> None:
        """Publish some, without waiting for one before the next."""
        start = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for number in range(count):
                tasks.create_task(self.one(signal()))
                ahead_s = start + number / rate - time.monotonic()
                await asyncio.sleep(max(0.0, ahead_s))

    async def one(self, item: Message) -> None:
        """Publish one; it is accepted when that returns."""
        self.attempted += 1
        try:
            await self._bus.publish(item, timeout_s=PUBLISH_S_MAX)
        except BusError:
            self.refused += 1
        else:
            self.accepted.add(item.id)


async def settled(effects: Effects, accepted: set[str], say: Callable[[str], None]) -> None:
    """Wait until every accepted message has its effect, or nothing moves any more."""
    best, moved = -1, time.monotonic()
    while time.monotonic() - moved < STALL_S_MAX:
        found = len(accepted & (await effects.count()).keys())
        say(f"{found:,} of {len(accepted):,} effects")
        if found == len(accepted):
            return
        if found > best:
            best, moved = found, time.monotonic()
        await asyncio.sleep(0.5)


async def probe(outcome: Outcome, url: str, bus: Bus, effects: Effects, *, dead: int = 0) -> None:
    """Check the end independently: the queues by a new connection, the consumer by a message."""
    item = signal()
    await bus.publish(item)

    async def done() -> bool:
        return item.id in await effects.count()

    outcome.expect(await until(done, within_s=PROBE_S_MAX), "the consumer is dead: no probe came")

    async def empty() -> bool:
        return await depth(url, PREFIX + QUEUE) == 0

    if not await until(empty, within_s=PROBE_S_MAX):
        left = await depth(url, PREFIX + QUEUE)
        outcome.wrong.append(f"{left} messages are left in the queue")

    async def buried() -> bool:
        return await depth(url, PREFIX + DEAD) == dead

    if not await until(buried, within_s=PROBE_S_MAX):
        letters = await depth(url, PREFIX + DEAD)
        outcome.wrong.append(f"{letters} dead letters where {dead} are right")


async def send_raw(url: str, bodies: list[bytes]) -> None:
    """Put bodies in the way of the signals, as somebody without our code might."""
    async with await aio_pika.connect(url, timeout=20) as link:
        channel = await link.channel()
        exchange = await channel.get_exchange(PREFIX + RESPONSES)
        for body in bodies:
            sent = aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
            await exchange.publish(sent, routing_key=f"trading.signal.{INSTRUMENT}")


def plain(item: Message) -> dict[str, object]:
    """Return a message as JSON has it."""
    tree: dict[str, object] = msgspec.json.decode(msgspec.json.encode(item))
    return tree

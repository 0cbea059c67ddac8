"""Rows about connections that are there and carry nothing, and about those who read too slowly."""

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable

from tests.faults.effects import (
    INSTRUMENT,
    PREFIX,
    SOURCE,
    TOPIC,
    Load,
    effects_in,
    probe,
    settled,
    signal,
)
from tests.faults.harness import Outcome, Setting, percentile, rss_mib, until
from tests.support.proxy import Proxy

from qbtc.bus import Bus, BusLimits, Delivery, Topic, WorkQueue, open_bus
from qbtc.bus.topology import RESPONSES, TRADING_REQUESTS
from qbtc.errors import BusError
from qbtc.messages.envelope import Message, message, new_id
from qbtc.messages.events import TradingRequest
from qbtc.stack.servers import PostgresServer, RabbitServer

DEADLINE_S = 3.0
SLACK_S = 1.0
"""Beyond its deadline nothing may wait longer than this."""
CALLS = 20
LIMITS = BusLimits(connect_s_max=3.0, confirm_s_max=3.0, reconnect_s_max=0.5)
MEMORY_MIB_MAX = 64.0
SLOW_MESSAGES = 3_000
SLOW_RATE_S = 300.0
TURNS = 5


def request() -> Message:
    """Ask for a signal."""
    data = TradingRequest(
        request_id=new_id(), instrument=INSTRUMENT, ts_event=time.time_ns(), features={}
    )
    return message(data, source=SOURCE, subject=INSTRUMENT)


async def answer(delivery: Delivery) -> None:
    """Answer with a signal."""
    reply = message(
        signal().data,
        source=SOURCE,
        subject=INSTRUMENT,
        correlationid=delivery.message.correlationid,
    )
    await delivery.reply(reply)


async def stalled(setting: Setting) -> Outcome:
    """Keep the connection to the broker and carry nothing."""
    return await _silent(setting, "connection to the broker stalled", lambda proxy: proxy.stall())


async def half_open(setting: Setting) -> Outcome:
    """Cut the connection; new ones are accepted and never answered."""

    def break_it(proxy: Proxy) -> None:
        proxy.half_open()
        proxy.cut()

    return await _silent(setting, "broker accepts and never answers", break_it)


async def _silent(setting: Setting, fault: str, break_it: Callable[[Proxy], None]) -> Outcome:
    outcome = Outcome(fault=fault)
    with (
        RabbitServer(setting.folder / "rabbit") as broker,
        PostgresServer(setting.folder / "postgres") as database,
        Proxy(broker.url) as proxy,
    ):
        sender = await open_bus(proxy.url, prefix=PREFIX, source=SOURCE, limits=LIMITS)
        receiver = await open_bus(broker.url, prefix=PREFIX, source=f"{SOURCE}/receiver")
        try:
            async with effects_in(database.url) as effects:
                await receiver.subscribe(TOPIC, effects, prefetch=16)
                await receiver.subscribe(WorkQueue(TRADING_REQUESTS), answer)
                await sender.request(request(), timeout_s=20)
                load = Load(sender)
                flow = asyncio.create_task(load.run(400, rate=100))
                await asyncio.sleep(1)
                break_it(proxy)
                setting.say("nothing is carried")
                waited = await asyncio.gather(*_calls(sender))
                problem = await until(_troubled(sender), within_s=30)
                proxy.resume()
                setting.say("all is carried again")
                await flow
                await settled(effects, load.accepted, setting.say)
                await sender.request(request(), timeout_s=60)
                await probe(outcome, broker.url, sender, effects)
                found = await effects.count()
        finally:
            await sender.close()
            await receiver.close()
    outcome.count(load.accepted, {k: n for k, n in found.items() if k in load.accepted})
    longest = max(waited)
    outcome.expect(problem, "the bus did not say that it is cut off")
    outcome.expect(
        longest < DEADLINE_S + SLACK_S, f"a call waited {longest:.1f} s beyond its {DEADLINE_S:g} s"
    )
    outcome.expect(
        len(load.accepted) == load.attempted, f"{load.refused} publishes were refused in the end"
    )
    outcome.notes = (
        f"{len(waited)} calls with a deadline of {DEADLINE_S:g} s ended within {longest:.2f} s;"
        f" {load.attempted:,} publishes under way all confirmed after"
    )
    return outcome


def _calls(bus: Bus) -> list[Awaitable[float]]:
    """Call what has a deadline; each tells how long it took."""

    async def timed(call: Awaitable[object]) -> float:
        start = time.monotonic()
        with contextlib.suppress(BusError):  # that is how it should end; when is what counts
            await call
        return time.monotonic() - start

    async def streamed() -> None:
        async for _ in bus.stream(request(), timeout_s=DEADLINE_S):
            pass

    calls: list[Awaitable[object]] = []
    for _ in range(CALLS):
        calls += [
            bus.publish(signal(), timeout_s=DEADLINE_S),
            bus.request(request(), timeout_s=DEADLINE_S),
            streamed(),
        ]
    return [timed(call) for call in calls]


def _troubled(bus: Bus) -> Callable[[], Awaitable[bool]]:
    async def troubled() -> bool:
        return bus.problem() is not None

    return troubled


async def slow_consumer(setting: Setting) -> Outcome:
    """Let one subscriber stand still while another, of the same signals, works."""
    outcome = Outcome(fault="a subscriber that stands still")
    count = SLOW_MESSAGES // (5 if setting.short else 1)
    with RabbitServer(setting.folder / "rabbit") as broker:
        sender = await open_bus(broker.url, prefix=PREFIX, source=SOURCE)
        receiver = await open_bus(broker.url, prefix=PREFIX, source=f"{SOURCE}/receiver")
        sluggard = await open_bus(broker.url, prefix=PREFIX, source=f"{SOURCE}/slow")
        try:
            late: list[float] = []
            effects: dict[str, int] = {}
            release = asyncio.Event()

            async def work(delivery: Delivery) -> None:
                sent = delivery.message.data.ts_init  # type: ignore[union-attr]
                late.append((time.time_ns() - sent) / 1e9)
                identity = delivery.message.id
                effects[identity] = effects.get(identity, 0) + 1

            async def stand(delivery: Delivery) -> None:
                await release.wait()

            topic = Topic(exchange=RESPONSES, pattern="trading.signal.#")
            await receiver.subscribe(topic, work)
            load = Load(sender)
            took: dict[bool, list[float]] = {False: [], True: []}
            held, grown, done = 0, 0.0, True
            # In turns, so that both meet the same moods of a shared machine.
            for turn in range(2 * TURNS):
                beside = turn % 2 == 1
                setting.say(f"turn {turn + 1} of {2 * TURNS}")
                release = asyncio.Event()
                slow = await sluggard.subscribe(topic, stand, prefetch=4) if beside else None
                late, before = [], rss_mib(os.getpid())
                await load.run(count // TURNS, rate=SLOW_RATE_S)
                done = await until(_all(load, effects), within_s=30) and done
                took[beside] += late
                if slow is not None:
                    held, grown = max(held, slow.active), grown + rss_mib(os.getpid()) - before
                    release.set()
                    await slow.stop()
        finally:
            for bus in (sender, receiver, sluggard):
                await bus.close()
    outcome.count(load.accepted, effects)
    outcome.expect(done, "the subscriber that works did not get everything")
    outcome.expect(held == 4, f"the slow one held {held} messages; it asked for 4 at a time")
    outcome.expect(grown < MEMORY_MIB_MAX, f"memory grew by {grown:.0f} MiB")
    alone, beside_it = (percentile(took[which], 0.99) for which in (False, True))
    outcome.notes = (
        f"the other's p99 from sender to handler: {1e3 * alone:.1f} ms alone, {1e3 * beside_it:.1f}"
        f" ms beside it ({beside_it / alone:.1f}x), in {TURNS} turns each; memory {grown:+.0f} MiB"
    )
    return outcome


def _all(load: Load, effects: dict[str, int]) -> Callable[[], Awaitable[bool]]:
    async def all_here() -> bool:
        return load.accepted <= effects.keys()

    return all_here

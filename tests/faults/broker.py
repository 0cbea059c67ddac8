"""Rows about the broker and what comes from it: killed, poisoned, fed with rubbish, repeating."""

import asyncio
import copy
import json
from collections import Counter
from typing import Any

from tests.faults.effects import (
    INSTRUMENT,
    PREFIX,
    QUEUE,
    TOPIC,
    Load,
    buses,
    effects_in,
    plain,
    probe,
    send_raw,
    settled,
    signal,
)
from tests.faults.harness import Outcome, Setting, depth, until

from qbtc.bus import BusLimits, Delivery
from qbtc.bus.topology import DELIVERY_LIMIT
from qbtc.messages.codec import MESSAGE_BYTES_MAX
from qbtc.messages.contracts import load
from qbtc.stack.servers import PostgresServer, RabbitServer

RATE_S = 1_200.0
"""Messages a second that are attempted around each kill."""
BURST = 1_500
SETTLE_S = 4.0
"""Under load before the first kill. A quorum queue of RabbitMQ 3.10 whose broker is killed in the
moment after the queue's declaration never has a leader again: see docs/faults.md."""


async def broker_killed(setting: Setting) -> Outcome:
    """SIGKILL the broker again and again while messages are published and consumed."""
    outcome = Outcome(fault=f"broker SIGKILLed {setting.kills} times under load")
    chance = setting.random("broker")
    burst = BURST // (3 if setting.short else 1)
    outboxes: list[int] = []
    depths: list[int] = []
    with (
        RabbitServer(setting.folder / "rabbit") as broker,
        PostgresServer(setting.folder / "postgres") as database,
    ):
        async with effects_in(database.url) as effects, buses(broker.url) as (sender, receiver):
            await receiver.subscribe(TOPIC, effects, prefetch=64)
            load = Load(sender)
            await load.run(int(SETTLE_S * 50), rate=50)
            for kill in range(setting.kills):
                setting.say(f"kill {kill + 1} of {setting.kills}")
                before = effects.calls
                flow = asyncio.create_task(load.run(burst, rate=RATE_S))
                await asyncio.sleep(chance.uniform(0.2, 0.9) * burst / RATE_S)
                await asyncio.to_thread(broker.kill)
                outboxes.append(sender.counters()["outbox"])
                await asyncio.to_thread(broker.start)
                depths.append(await depth(broker.url, PREFIX + QUEUE) or 0)
                await flow

                async def moving(before: int = before) -> bool:
                    return effects.calls > before

                if not await until(moving, within_s=60):
                    outcome.wrong.append(f"the consumer did not come back after kill {kill + 1}")
                    break
            await settled(effects, load.accepted, setting.say)
            await probe(outcome, broker.url, sender, effects)
            found = await effects.count()
            counters = sender.counters()
            outcome.count(load.accepted, {k: n for k, n in found.items() if k in load.accepted})
    hit = sum(waiting > 0 for waiting in outboxes)
    outcome.expect(hit > 0, "no kill hit a message on its way: the load was too small")
    outcome.notes = (
        f"{load.attempted:,} attempted at {RATE_S:,.0f}/s around each kill, {load.refused} refused;"
        f" {hit} kills hit unconfirmed messages (up to {max(outboxes):,}), queues came back with up"
        f" to {max(depths):,}; {counters['retried']:,} sent again, {effects.repeated:,} deliveries"
        " known as done"
    )
    return outcome


async def duplicates(setting: Setting) -> Outcome:
    """Publish each message ten times."""
    outcome = Outcome(fault="every message published 10 times")
    items = [signal() for _ in range(50 if setting.short else 500)]
    with (
        RabbitServer(setting.folder / "rabbit") as broker,
        PostgresServer(setting.folder / "postgres") as database,
    ):
        async with effects_in(database.url) as effects, buses(broker.url) as (sender, receiver):
            await receiver.subscribe(TOPIC, effects, prefetch=64)
            load = Load(sender)
            chance = setting.random("duplicates")
            sends = items * 10
            chance.shuffle(sends)
            await asyncio.gather(*(load.one(item) for item in sends))
            await settled(effects, load.accepted, setting.say)
            await probe(outcome, broker.url, sender, effects)
            found = await effects.count()
    outcome.count(load.accepted, {k: n for k, n in found.items() if k in load.accepted})
    outcome.notes = f"{load.attempted:,} publishes, {effects.repeated:,} copies known as done"
    return outcome


async def poison(setting: Setting) -> Outcome:
    """Send messages whose handler always fails, between good ones."""
    outcome = Outcome(fault=f"poison: a handler that fails {DELIVERY_LIMIT + 1} times")
    bad = {signal(instrument="POISON.BINANCE").id: 0 for _ in range(5)}
    limits = BusLimits(again_delay_s=0.01, again_delay_s_max=0.1)
    with (
        RabbitServer(setting.folder / "rabbit") as broker,
        PostgresServer(setting.folder / "postgres") as database,
    ):
        async with (
            effects_in(database.url) as effects,
            buses(broker.url, limits=limits) as (sender, receiver),
        ):
            tries: Counter[str] = Counter()

            async def handle(delivery: Delivery) -> None:
                if delivery.message.id in bad:
                    tries[delivery.message.id] += 1
                    raise RuntimeError("this message cannot be processed")
                await effects(delivery)

            await receiver.subscribe(TOPIC, handle, prefetch=16)
            load = Load(sender)
            for identity in bad:
                await sender.publish(signal(id=identity, instrument="POISON.BINANCE"))
                await load.run(20, rate=RATE_S)
            await settled(effects, load.accepted, setting.say)
            await probe(outcome, broker.url, sender, effects, dead=len(bad))
            found = await effects.count()
    outcome.count(load.accepted, {k: n for k, n in found.items() if k in load.accepted})
    outcome.expect(
        set(tries) == set(bad) and all(count == DELIVERY_LIMIT + 1 for count in tries.values()),
        f"poison was tried {sorted(tries.values())} times, not {DELIVERY_LIMIT + 1} each",
    )
    outcome.notes = (
        f"{len(bad)} bad ones between the good, each a dead letter after {DELIVERY_LIMIT + 1} tries"
    )
    return outcome


async def malformed(setting: Setting) -> Outcome:
    """Send bodies that the schemas refuse, and bodies that are no JSON or too large."""
    outcome = Outcome(fault="malformed and oversized bodies")
    bodies = rubbish()
    with (
        RabbitServer(setting.folder / "rabbit") as broker,
        PostgresServer(setting.folder / "postgres") as database,
    ):
        async with effects_in(database.url) as effects, buses(broker.url) as (sender, receiver):
            await receiver.subscribe(TOPIC, effects, prefetch=16)
            load = Load(sender)
            await load.run(50, rate=RATE_S)
            await send_raw(broker.url, bodies)
            await load.run(50, rate=RATE_S)
            await settled(effects, load.accepted, setting.say)
            await probe(outcome, broker.url, sender, effects, dead=len(bodies))
            found = await effects.count()
    outcome.count(load.accepted, {k: n for k, n in found.items() if k in load.accepted})
    outcome.expect(
        len(found) == len(load.accepted) + 1, "a body that the schema refuses reached the handler"
    )
    outcome.notes = f"{len(bodies)} bodies made from the schemas, each a dead letter at once"
    return outcome


def rubbish() -> list[bytes]:
    """Return bodies that no consumer may accept, most of them made from the schemas."""
    good = plain(signal())
    trees: list[Any] = [None, 7, "text", [], {}, [good], {**good, "data": [good["data"]]}]
    for schema, path in ((load("envelope"), ()), (load("trading_signal"), ("data",))):
        required = schema["required"]
        for name in schema["properties"]:
            for wrong in ([], {"x": {}}, "\n" * 2_000, -1.5, True):
                if path == () and name == "data" and isinstance(wrong, dict):
                    continue
                if name == "metadata" and isinstance(wrong, dict):
                    continue  # anything may be in there
                trees.append(_with(good, (*path, name), wrong))
            if name in required:
                trees.append(_without(good, (*path, name)))
        trees.append(_with(good, (*path, "unknown_field"), 1))
    bodies = [json.dumps(tree).encode() for tree in trees]
    text = json.dumps(good).encode()
    half = len(text) // 2
    return [
        *bodies,
        b"",
        b"\x00",
        b"\xff\xfe" + text,
        text[:half],
        text + b"}",
        text.replace(b"0.5", b"NaN"),
        text.replace(b"0.5", b"1e999"),
        text.replace(INSTRUMENT.encode(), b"\xff\xff"),
        b"[" * 50_000 + b"]" * 50_000,
        text + b" " * MESSAGE_BYTES_MAX,
    ]


def _with(tree: dict[str, object], path: tuple[str, ...], value: object) -> dict[str, object]:
    changed = copy.deepcopy(tree)
    _inner(changed, path)[path[-1]] = value
    return changed


def _without(tree: dict[str, object], path: tuple[str, ...]) -> dict[str, object]:
    changed = copy.deepcopy(tree)
    del _inner(changed, path)[path[-1]]
    return changed


def _inner(tree: Any, path: tuple[str, ...]) -> Any:
    for name in path[:-1]:
        tree = tree[name]
    return tree

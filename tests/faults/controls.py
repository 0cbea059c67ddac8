"""Rows that do without a protection and must show the damage.

They speak to RabbitMQ with bare aio-pika, as its defaults invite to.
"""

import asyncio
import contextlib
import time
from collections import Counter

import aio_pika
from aio_pika.abc import AbstractIncomingMessage
from tests.faults.harness import Outcome, Setting, depth, until

from qbtc.stack.servers import RabbitServer

KILLS_MAX = 3
LOAD = 1_000
RATE_S = 1_000
QUEUE = "control"
WORK_S = 0.004
AGE_S = 4.0
"""Of the queue at the first kill: a younger one may not survive it, see docs/faults.md."""


async def loss_is_seen(setting: Setting) -> Outcome:
    """Lose messages: transient ones, and nobody waits for a confirm."""
    outcome = Outcome(fault="control: transient, confirms off", control=True)
    accepted, effects = await _run(setting, safe=False)
    outcome.count(accepted, effects)
    outcome.notes = "bare aio-pika must lose messages here; a run in which it does not has failed"
    outcome.duplicated = 0
    outcome.expect(outcome.lost > 0, "a loss that must be there was not seen")
    return outcome


async def repetition_is_seen(setting: Setting) -> Outcome:
    """Do things twice: nothing remembers which messages were done."""
    outcome = Outcome(fault="control: no mark of what is done", control=True)
    accepted, effects = await _run(setting, safe=True)
    outcome.count(accepted, effects)
    outcome.notes = "persistent and confirmed, effects without a mark: some come twice"
    outcome.expect(outcome.duplicated > 0, "a repetition that must be there was not seen")
    return outcome


async def _run(setting: Setting, *, safe: bool) -> tuple[set[str], Counter[str]]:
    """Kill the broker under load some times; return ids accepted and effects by id."""
    accepted: set[str] = set()
    effects: Counter[str] = Counter()
    chance = setting.random(f"control {safe}")
    with RabbitServer(setting.folder / "rabbit") as server:
        kills = min(setting.kills, KILLS_MAX)
        async with await aio_pika.connect(server.url, timeout=20) as link:
            await _declare(await link.channel())
        await asyncio.sleep(AGE_S)
        for kill in range(kills):
            setting.say(f"kill {kill + 1} of {kills}")
            consumer = asyncio.create_task(_consume(server.url, effects))
            publisher = asyncio.create_task(_publish(server.url, kill, accepted, safe=safe))
            sent = len(accepted) + int(LOAD * chance.uniform(0.6, 0.9))
            done = effects.total()

            async def busy(sent: int = sent, done: int = done) -> bool:
                return len(accepted) >= sent and effects.total() > done

            # A kill before either of them has connected would show nothing.
            assert await until(busy, within_s=60, every_s=0.01), "the control's load did not flow"
            await asyncio.to_thread(server.kill)
            for task in (publisher, consumer):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            await asyncio.to_thread(server.start)
        consumer = asyncio.create_task(_consume(server.url, effects))

        async def drained() -> bool:
            return await depth(server.url, QUEUE) == 0

        await until(drained, within_s=60)
        # A probe shows that the consumer lives: what is missing now is not only late.
        await _say(server.url, "probe")

        async def probed() -> bool:
            return effects["probe"] > 0

        assert await until(probed, within_s=60), "the control's own consumer is dead"
        consumer.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await consumer
    del effects["probe"]
    return accepted, effects


async def _declare(channel: aio_pika.abc.AbstractChannel) -> aio_pika.abc.AbstractQueue:
    return await channel.declare_queue(QUEUE, durable=True)


async def _publish(url: str, kill: int, accepted: set[str], *, safe: bool) -> None:
    mode = aio_pika.DeliveryMode.PERSISTENT if safe else aio_pika.DeliveryMode.NOT_PERSISTENT
    link = await aio_pika.connect(url, timeout=20)
    channel = await link.channel(publisher_confirms=safe)
    await _declare(channel)
    start = time.monotonic()

    async def one(number: int) -> None:
        identity = f"{kill}.{number}"
        message = aio_pika.Message(b"x" * 500, message_id=identity, delivery_mode=mode)
        with contextlib.suppress(Exception):  # what failed is not accepted, and that is all
            await channel.default_exchange.publish(message, routing_key=QUEUE)
            accepted.add(identity)

    try:
        async with asyncio.TaskGroup() as tasks:
            for number in range(LOAD):
                tasks.create_task(one(number))
                await asyncio.sleep(max(0.0, start + number / RATE_S - time.monotonic()))
    finally:
        with contextlib.suppress(Exception):
            await link.close()


async def _consume(url: str, effects: Counter[str]) -> None:
    link = await aio_pika.connect(url, timeout=20)
    channel = await link.channel()
    await channel.set_qos(16)
    queue = await _declare(channel)

    async def work(message: AbstractIncomingMessage) -> None:
        effects[message.message_id or ""] += 1
        await asyncio.sleep(WORK_S * 16)
        with contextlib.suppress(Exception):  # the broker may be gone: it comes again
            await message.ack()

    await queue.consume(work)
    try:
        await asyncio.Event().wait()
    finally:
        with contextlib.suppress(Exception):
            await link.close()


async def _say(url: str, identity: str) -> None:
    async with await aio_pika.connect(url, timeout=20) as link:
        channel = await link.channel()
        message = aio_pika.Message(b"?", message_id=identity)
        await channel.default_exchange.publish(message, routing_key=QUEUE)

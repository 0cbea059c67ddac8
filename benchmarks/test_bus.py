"""What the bus costs: beside bare aio-pika on the same broker, and inside a process.

Sketch: a quorum queue writes and syncs each request before it confirms, some ms on this disk; the
checks of a message are a few us, its envelope is about 500 bytes, and a hop through the broker is
0.3 ms. So a request should cost what a bare one costs, and a message inside the process some tens
of us, nearly all of it the two schema checks and two tasks.

The peer does what each measures with nothing else around it: same client library, same kind of
queue, persistent, confirms, direct reply-to, one connection each for asker and answerer, and the
same bytes. It checks nothing, keeps no outbox, and loses what is under way with its connection.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import aio_pika
import numpy as np
import pytest
from aio_pika.abc import AbstractIncomingMessage
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture
from tests.support import services

from benchmarks.reporting import Report, Target
from benchmarks.timing import Burst, interleave, whole
from qbtc.bus import Bus, Delivery, WorkQueue, open_bus
from qbtc.bus.admin import remove_topology
from qbtc.bus.topology import REQUESTS, TRADING_REQUESTS, queue_arguments
from qbtc.messages.codec import encode
from qbtc.messages.envelope import Message, message, new_id
from qbtc.messages.events import TradingRequest, TradingSignal

pytestmark = pytest.mark.benchmark

RPC_CALLS = 60
CHUNKS = 200
STREAMS = 3
PUBLISHED = 300
ROUNDS = 12
PEER = "bare aio-pika"
REPLY_TO = "amq.rabbitmq.reply-to"
QUEUE = "q_bare"


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as made:
        yield made


@pytest.fixture
def prefix() -> Iterator[str]:
    services.need(services.AMQP_URL, "RabbitMQ")
    name = f"{services.RUN_ID}.bench."
    yield name
    asyncio.run(remove_topology(services.AMQP_URL, name, queues=[QUEUE]))


def a_request() -> Message:
    features = {f"feature_{index}": index / 7 for index in range(26)}
    data = TradingRequest(
        request_id="r", instrument="BTCUSDT.BINANCE", ts_event=1, features=dict(features)
    )
    return message(data, source="qbtc/bench/1", subject=data.instrument)


def a_signal(correlationid: str | None = None) -> Message:
    data = TradingSignal(
        signal_id="s",
        instrument="BTCUSDT.BINANCE",
        action="HOLD",
        confidence=0.5,
        ts_event=1,
        ts_init=1,
    )
    return message(
        data, source="qbtc/bench/2", subject=data.instrument, correlationid=correlationid
    )


async def answer(delivery: Delivery) -> None:
    await delivery.reply(a_signal(delivery.message.correlationid))


async def answer_in_chunks(delivery: Delivery) -> None:
    for _ in range(CHUNKS - 1):
        await delivery.reply(a_signal(delivery.message.correlationid), last=False)
    await delivery.reply(a_signal(delivery.message.correlationid))


class Bare:
    """An asker and an answerer on aio-pika with nothing around them."""

    def __init__(self, chunks: int = 1) -> None:
        self._chunks = chunks
        self._waiting: dict[str, tuple[int, asyncio.Future[None]]] = {}
        self._request, self._reply = encode(a_request()), encode(a_signal())

    @asynccontextmanager
    async def running(self, prefix: str) -> AsyncIterator["Bare"]:
        self._queue = prefix + QUEUE
        there = await aio_pika.connect(services.AMQP_URL)
        here = await aio_pika.connect(services.AMQP_URL)
        try:
            self._back = await there.channel(publisher_confirms=False)
            consuming = await there.channel(publisher_confirms=False)
            await consuming.set_qos(16)
            arguments = dict(queue_arguments(QUEUE, prefix=prefix))
            queue = await consuming.declare_queue(self._queue, durable=True, arguments=arguments)
            await queue.consume(self._answer)
            self._out = await here.channel()
            replies = await self._out.get_queue(REPLY_TO, ensure=False)
            await replies.consume(self._take, no_ack=True)
            yield self
        finally:
            await here.close()
            await there.close()

    async def ask(self) -> None:
        name = new_id()
        done = asyncio.get_running_loop().create_future()
        self._waiting[name] = (self._chunks, done)
        await self._out.default_exchange.publish(
            aio_pika.Message(
                self._request,
                delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
                message_id=name,
                correlation_id=name,
                reply_to=REPLY_TO,
            ),
            self._queue,
        )
        await done

    async def _answer(self, incoming: AbstractIncomingMessage) -> None:
        for _ in range(self._chunks):
            await self._back.default_exchange.publish(
                aio_pika.Message(self._reply, correlation_id=incoming.correlation_id),
                incoming.reply_to or "",
                mandatory=False,
            )
        await incoming.ack()

    async def _take(self, incoming: AbstractIncomingMessage) -> None:
        name = incoming.correlation_id or ""
        left, done = self._waiting[name]
        self._waiting[name] = (left - 1, done)
        if left == 1:
            del self._waiting[name]
            done.set_result(None)


@asynccontextmanager
async def answering(url: str | None, prefix: str, handler: Any) -> AsyncIterator[Bus]:
    """Our asker, with an answerer on a bus of its own (in process: on the same)."""
    worker = await open_bus(url, prefix=prefix)
    bus = worker if url is None else await open_bus(url, prefix=prefix)
    try:
        await worker.subscribe(WorkQueue(TRADING_REQUESTS), handler)
        yield bus
    finally:
        await bus.close()
        await worker.close()


def calls(runner: asyncio.Runner, call: Callable[[], Coroutine[Any, Any, None]], n: int) -> Burst:
    """Return a burst of calls one after the other, each timed."""

    async def go() -> NDArray[np.float64]:
        out = np.empty(n)
        for index in range(n):
            start = time.perf_counter_ns()
            await call()
            out[index] = time.perf_counter_ns() - start
        return out

    return lambda: runner.run(go())


def enter(runner: asyncio.Runner, stack: list[Any], manager: Any) -> Any:
    stack.append(manager)
    return runner.run(manager.__aenter__())


def leave(runner: asyncio.Runner, stack: list[Any]) -> None:
    while stack:
        runner.run(stack.pop().__aexit__(None, None, None))


def test_a_request_over_rabbitmq(
    benchmark: BenchmarkFixture, report: Report, runner: asyncio.Runner, prefix: str
) -> None:
    stack: list[Any] = []
    try:
        bus = enter(runner, stack, answering(services.AMQP_URL, prefix, answer))
        local = enter(runner, stack, answering(None, "", answer))
        bare = enter(runner, stack, Bare().running(prefix))

        async def ask() -> None:
            await bus.request(a_request(), timeout_s=30)

        async def ask_here() -> None:
            await local.request(a_request(), timeout_s=30)

        async def ask_sixteen() -> None:
            await asyncio.gather(*(ask() for _ in range(16)))

        async def bare_sixteen() -> None:
            await asyncio.gather(*(bare.ask() for _ in range(16)))

        taken = interleave(
            benchmark,
            {
                "ours": calls(runner, ask, RPC_CALLS),
                "bare": calls(runner, bare.ask, RPC_CALLS),
                "here": calls(runner, ask_here, RPC_CALLS),
                "ours16": calls(runner, ask_sixteen, 10),
                "bare16": calls(runner, bare_sixteen, 10),
            },
            rounds=ROUNDS,
        )
    finally:
        leave(runner, stack)
    report.add(
        "bus",
        "request and answer over RabbitMQ",
        taken["ours"],
        (PEER, taken["bare"]),
        unit="ms",
        target=Target("ratio", 1 / 1.3),
        note="One at a time, quorum queue, 26 features; target: at most 1.3 times the bare echo.",
    )
    report.add(
        "bus",
        "16 requests at once over RabbitMQ",
        taken["ours16"],
        (PEER, taken["bare16"]),
        unit="ms",
        note="All 16 together.",
    )
    report.add(
        "bus",
        "request and answer in process",
        taken["here"],
        ("over RabbitMQ", taken["ours"]),
        unit="us",
        note="The same messages and checks, without a broker.",
    )


def test_a_stream_over_rabbitmq(
    benchmark: BenchmarkFixture, report: Report, runner: asyncio.Runner, prefix: str
) -> None:
    stack: list[Any] = []
    try:
        bus = enter(runner, stack, answering(services.AMQP_URL, prefix, answer_in_chunks))
        local = enter(runner, stack, answering(None, "", answer_in_chunks))
        bare = enter(runner, stack, Bare(CHUNKS).running(prefix))

        async def read(from_: Bus) -> None:
            count = 0
            async for _ in from_.stream(a_request(), timeout_s=30):
                count += 1
            assert count == CHUNKS

        taken = interleave(
            benchmark,
            {
                "ours": calls(runner, lambda: read(bus), STREAMS),
                "bare": calls(runner, bare.ask, STREAMS),
                "here": calls(runner, lambda: read(local), STREAMS),
            },
            rounds=ROUNDS,
        )
    finally:
        leave(runner, stack)
    report.add(
        "bus",
        f"stream of {CHUNKS} replies over RabbitMQ",
        taken["ours"],
        (PEER, taken["bare"]),
        unit="ms",
        note="The whole stream; each of our replies is made, checked twice and read.",
    )
    report.add(
        "bus",
        f"stream of {CHUNKS} replies in process",
        taken["here"],
        ("over RabbitMQ", taken["ours"]),
        unit="ms",
    )


def test_publishing_with_confirms(
    benchmark: BenchmarkFixture, report: Report, runner: asyncio.Runner, prefix: str
) -> None:
    stack: list[Any] = []
    try:
        bus = enter(runner, stack, answering(services.AMQP_URL, prefix, _nothing))
        bare = enter(runner, stack, Bare().running(prefix))

        async def together() -> None:
            await asyncio.gather(*(bus.publish(a_request()) for _ in range(PUBLISHED)))

        async def one_by_one() -> None:
            for _ in range(PUBLISHED // 10):
                await bus.publish(a_request())

        async def bare_together() -> None:
            exchange = await bare._out.get_exchange(prefix + REQUESTS, ensure=False)
            body = encode(a_request())

            async def one() -> None:
                await exchange.publish(
                    aio_pika.Message(
                        body,
                        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
                        message_id=new_id(),
                    ),
                    "trading.request",
                )

            await asyncio.gather(*(one() for _ in range(PUBLISHED)))

        taken = interleave(
            benchmark,
            {
                "together": whole(lambda: runner.run(together()), PUBLISHED),
                "bare": whole(lambda: runner.run(bare_together()), PUBLISHED),
                "one": whole(lambda: runner.run(one_by_one()), PUBLISHED // 10),
            },
            rounds=ROUNDS,
        )
    finally:
        leave(runner, stack)
    report.add(
        "bus",
        "publish, confirmed, many at once",
        taken["together"],
        (PEER, taken["bare"]),
        unit="us",
        note=f"{PUBLISHED} at once, up to 256 in flight; a consumer takes them.",
    )
    report.add(
        "bus",
        "publish, confirmed, many at once: against one by one",
        taken["together"],
        ("one by one", taken["one"]),
        unit="us",
    )


async def _nothing(delivery: Delivery) -> None:
    return

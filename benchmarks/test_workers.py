"""What two workers give more than one, and what it costs to reach an engine through RabbitMQ.

Sketch: a worker on one thread decodes 8 answers in one step, so 16 chats at once are two rounds of
one worker and one round of two. On two cores that is a little under twice as fast, as the client
and the broker need a share of them. The way there and back is two writes of the broker (ms, mostly
the sync of the request) and one hop a chunk, which a stream does not wait for.

Each worker is a process of its own with one thread; all answers are computed, greedy, of a fixed
length. The client is one asyncio process, as a gateway is.
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture
from tests.support import services
from tests.support.worker_process import REAL, worker

from benchmarks.reporting import Report, Target
from benchmarks.timing import Burst, interleave
from qbtc.bus import Bus, open_bus
from qbtc.bus.admin import remove_topology
from qbtc.llm.engine import Engine
from qbtc.llm.local import LocalEngine
from qbtc.llm.models import DEFAULT_CHAT_MODEL, find_model
from qbtc.llm.remote import BusEngine
from qbtc.messages.language import ChatMessage, ChatRequest, Sampling, TextDelta

pytestmark = pytest.mark.benchmark

CHATS = 16
TOKENS = 32
STREAM_TOKENS = 64
ROUNDS = 9
END_OF_TURN = 2
"""Token that would end an answer early."""
OPTIONS = ("--embedding-model", "", "--threads", "1", "--concurrency", "8")
GROUP = "workers on RabbitMQ, smollm2-135m, 1 thread each"

_number = itertools.count()


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as made:
        yield made


@pytest.fixture
def prefixes() -> Iterator[tuple[str, str]]:
    services.need(services.AMQP_URL, "RabbitMQ")
    names = (f"{services.RUN_ID}.one.", f"{services.RUN_ID}.two.")
    yield names
    for name in names:
        asyncio.run(remove_topology(services.AMQP_URL, name))


def a_chat(tokens: int) -> ChatRequest:
    """Ask something new, so that no answer is in a cache, and little of a prompt."""
    return ChatRequest(
        model=DEFAULT_CHAT_MODEL,
        messages=(ChatMessage(role="user", content=f"Count upwards from {next(_number)}."),),
        sampling=Sampling(temperature=0, logit_bias={END_OF_TURN: -100.0}),
        max_tokens=tokens,
    )


async def _connect(prefix: str) -> tuple[Bus, BusEngine]:
    bus = await open_bus(services.AMQP_URL, prefix=prefix, source="qbtc/gateway/bench")
    return bus, BusEngine(bus, source="qbtc/gateway/bench")


async def _disconnect(bus: Bus, engine: BusEngine) -> None:
    await engine.close()
    await bus.close()


async def _stream(engine: Engine, tokens: int) -> tuple[int, int]:
    """Return the time to the first text and to the end, ns."""
    first, start = 0, time.perf_counter_ns()
    async for event in engine.chat(a_chat(tokens)):
        if not first and isinstance(event, TextDelta):
            first = time.perf_counter_ns() - start
    return first, time.perf_counter_ns() - start


def test_two_workers_against_one(
    benchmark: BenchmarkFixture, report: Report, runner: asyncio.Runner, prefixes: tuple[str, str]
) -> None:
    one, two = prefixes

    async def all_at_once(engine: BusEngine) -> float:
        start = time.perf_counter_ns()
        await asyncio.gather(*(_stream(engine, TOKENS) for _ in range(CHATS)))
        return (time.perf_counter_ns() - start) / CHATS

    def burst(engine: BusEngine) -> Burst:
        return lambda: runner.run(all_at_once(engine))

    url = services.AMQP_URL
    with (
        worker(url, one, *OPTIONS, command=REAL),
        worker(url, two, *OPTIONS, command=REAL),
        worker(url, two, *OPTIONS, command=REAL),
    ):
        places = [runner.run(_connect(prefix)) for prefix in (one, two)]
        try:
            bursts = dict(zip(("one", "two"), (burst(engine) for _, engine in places), strict=True))
            found = interleave(benchmark, bursts, rounds=ROUNDS)
        finally:
            for place in places:
                runner.run(_disconnect(*place))
    report.add(
        GROUP,
        f"{CHATS} chats of {TOKENS} tokens at once, two workers",
        found["two"],
        ("one worker", found["one"]),
        unit="requests/s",
        target=Target("ratio", 1.2),
        note=f"times {TOKENS} are tokens/s; workers, client and broker share the machine's cores.",
    )


def test_through_rabbitmq_against_in_process(
    benchmark: BenchmarkFixture, report: Report, runner: asyncio.Runner, prefixes: tuple[str, str]
) -> None:
    prefix, _ = prefixes

    def bursts(engine: Engine) -> tuple[Burst, Burst]:
        """Time to first text, and time a token of a stream."""

        def run(work: Callable[[], Coroutine[Any, Any, float]]) -> Burst:
            return lambda: runner.run(work())

        async def first() -> NDArray[np.float64]:
            return np.array([(await _stream(engine, 1))[0] for _ in range(20)], np.float64)

        async def token() -> float:
            return (await _stream(engine, STREAM_TOKENS))[1] / STREAM_TOKENS

        return (lambda: runner.run(first())), run(token)

    local = runner.run(LocalEngine.load(find_model(), threads=1))
    with worker(services.AMQP_URL, prefix, *OPTIONS, command=REAL):
        place = runner.run(_connect(prefix))
        try:
            remote_first, remote_token = bursts(place[1])
            local_first, local_token = bursts(local)
            found = interleave(
                benchmark,
                {
                    "remote first": remote_first,
                    "local first": local_first,
                    "remote token": remote_token,
                    "local token": local_token,
                },
                rounds=ROUNDS,
            )
        finally:
            runner.run(_disconnect(*place))
            runner.run(local.close())
    report.add(
        GROUP,
        "time to the first text of one chat",
        found["remote first"],
        ("engine in the process", found["local first"]),
        unit="ms",
        note="20 chats one after another in a round; the start of their prompts is cached.",
    )
    report.add(
        GROUP,
        f"one stream of {STREAM_TOKENS} tokens, to its end",
        found["remote token"],
        ("engine in the process", found["local token"]),
        unit="tokens/s",
        target=Target("ratio", 0.8),
    )

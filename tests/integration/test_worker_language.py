"""Language workers on both buses: they share the work, lose none of it, and stop when told."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.support.bus import KINDS, Buses, buses
from tests.support.scripted_engine import (
    EMBEDDING_MODEL,
    FOREVER,
    MODEL,
    ScriptedEngine,
    call,
    end,
    text,
)

from qbtc.bus import Subscription, Topic
from qbtc.bus.inprocess import InProcessBus
from qbtc.bus.topology import EVENTS
from qbtc.errors import EngineFailed, RequestTimeout
from qbtc.llm.engine import Stats
from qbtc.llm.errors import RequestError
from qbtc.llm.remote import BusEngine
from qbtc.messages.codec import MESSAGE_BYTES_MAX
from qbtc.messages.envelope import message, new_id
from qbtc.messages.events import Health, LlmRequest, LlmResponse
from qbtc.messages.language import (
    ChatMessage,
    ChatRequest,
    EmbeddingRequest,
    Event,
    Finished,
    Prefill,
    Sampling,
    TextDelta,
)
from qbtc.worker.guard import ATTEMPTS_MAX
from qbtc.worker.heartbeat import Heartbeat
from qbtc.worker.language import serve_language

WAIT_S = 60.0
HELLO = ChatRequest(model=MODEL, messages=(ChatMessage(role="user", content="Hi"),))


@pytest.fixture(params=KINDS)
def bus_url(request: pytest.FixtureRequest) -> str | None:
    return None if request.param == "in process" else str(request.getfixturevalue("amqp_url"))


class Floor:
    """A gateway's engine, and workers with scripted ones."""

    def __init__(self, opened: Buses, remote: BusEngine) -> None:
        self.opened = opened
        self.remote = remote

    async def hire(self, engine: ScriptedEngine, *, concurrency: int = 8) -> Subscription:
        source = f"qbtc/worker/{new_id()}"
        bus = await self.opened.open(source)
        return await serve_language(bus, engine, source=source, concurrency=concurrency)


@asynccontextmanager
async def floor(url: str | None, prefix: str = "", **options: Any) -> AsyncIterator[Floor]:
    async with asyncio.timeout(WAIT_S), buses(url, prefix) as opened:
        bus = await opened.open("qbtc/gateway/test")
        remote = BusEngine(bus, source="qbtc/gateway/test", **options)
        yield Floor(opened, remote)
        await remote.close()


def run[T](work: Callable[[], Awaitable[T]]) -> T:
    async def go() -> T:
        return await work()

    return asyncio.run(go())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - nothing to wait for but the condition
            await asyncio.sleep(0.005)


async def answer(engine: BusEngine, request: ChatRequest = HELLO) -> list[Event]:
    return [event async for event in engine.chat(request)]


def said(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def test_workers_share_what_waits(bus_url: str | None, queue_prefix: str) -> None:
    turns = [threading.Event() for _ in range(3)]
    scripts = [[turn, *text("Hello"), end()] for turn in turns]
    engines = [ScriptedEngine(*scripts) for _ in range(2)]

    async def go() -> list[str]:
        async with floor(bus_url, queue_prefix) as made:
            for engine in engines:
                await made.hire(engine, concurrency=1)
            asking = [asyncio.ensure_future(answer(made.remote)) for _ in range(6)]
            for number, turn in enumerate(turns, 1):
                # Neither ends an answer before the other has one as well.
                await until(lambda n=number: all(len(each.asked) >= n for each in engines))
                turn.set()
            return [said(events) for events in await asyncio.gather(*asking)]

    assert run(go) == ["Hello"] * 6
    assert [len(engine.asked) for engine in engines] == [3, 3]


def test_the_answer_begins_with_a_prefill_and_has_the_seed_it_was_asked_with(
    bus_url: str | None, queue_prefix: str
) -> None:
    engine = ScriptedEngine()

    async def go() -> list[Event]:
        async with floor(bus_url, queue_prefix) as made:
            await made.hire(engine)
            return await answer(made.remote)

    events = run(go)
    assert isinstance(events[0], Prefill)
    asked = engine.asked[0]
    assert isinstance(asked, ChatRequest)
    assert asked.sampling.seed is not None
    assert asked == ChatRequest(
        model=MODEL, messages=HELLO.messages, sampling=Sampling(seed=asked.sampling.seed)
    )


def test_an_engine_that_breaks_once_costs_nothing_but_time(
    bus_url: str | None, queue_prefix: str
) -> None:
    engine = ScriptedEngine(
        [*text("Hel"), RuntimeError("once")],
        [*text("He", "llo"), *call("look", '{"a":', "1}", id="call_2"), end("tool_calls")],
    )

    async def go() -> list[Event]:
        async with floor(bus_url, queue_prefix) as made:
            await made.hire(engine)
            return await answer(made.remote)

    events = run(go)
    assert said(events) == "Hello"
    assert events[-4:] == [
        *call("look", '{"a":', "1}", id="call_2"),
        end("tool_calls"),
    ]
    seeds = {asked.sampling.seed for asked in engine.asked if isinstance(asked, ChatRequest)}
    assert len(engine.asked) == 2
    assert len(seeds) == 1


def test_an_engine_that_keeps_breaking_is_told_of_and_the_request_kept() -> None:
    engine = ScriptedEngine([*text("Hel"), RuntimeError("secret")])

    async def go() -> tuple[str, list[bytes]]:
        async with floor(None) as made:
            await made.hire(engine)
            with pytest.raises(EngineFailed) as failed:
                await answer(made.remote)
            bus = await made.opened.open()
            assert isinstance(bus, InProcessBus)
            await until(lambda: bool(bus.dead_letters()))
            return str(failed.value), [letter.body for letter in bus.dead_letters()]

    words, dead = run(go)
    assert words == "The worker failed: RuntimeError."
    assert len(engine.asked) == ATTEMPTS_MAX
    assert len(dead) == 1


def test_attempts_that_differ_end_the_answer() -> None:
    engine = ScriptedEngine([*text("Hel"), RuntimeError("once")], [*text("Halt"), end()])

    async def go() -> None:
        async with floor(None) as made:
            await made.hire(engine)
            with pytest.raises(EngineFailed, match="differ"):
                await answer(made.remote)

    run(go)


def test_leaving_an_answer_stops_the_engine(bus_url: str | None, queue_prefix: str) -> None:
    engine = ScriptedEngine([*text("a"), FOREVER])

    async def go() -> None:
        async with floor(bus_url, queue_prefix) as made:
            worker = await made.hire(engine)
            events = made.remote.chat(HELLO)
            async for event in events:
                if isinstance(event, TextDelta):
                    break
            await events.aclose()
            await until(lambda: worker.active == 0)

    run(go)
    assert (engine.cancelled, engine.finished) == (1, 0)


def test_an_answer_that_takes_too_long_is_stopped(bus_url: str | None, queue_prefix: str) -> None:
    engine = ScriptedEngine([*text("a"), FOREVER])

    async def go() -> None:
        async with floor(bus_url, queue_prefix, timeout_s=3.0) as made:
            worker = await made.hire(engine)
            with pytest.raises(RequestTimeout):
                await answer(made.remote)
            await until(lambda: worker.active == 0)

    run(go)
    assert engine.cancelled == 1


def test_a_request_that_expired_in_the_queue_reaches_no_engine(
    bus_url: str | None, queue_prefix: str
) -> None:
    engine = ScriptedEngine()

    async def go() -> None:
        async with floor(bus_url, queue_prefix, timeout_s=0.05) as made:
            with pytest.raises(RequestTimeout):
                await answer(made.remote)
            await made.hire(engine)
            later = BusEngine(await made.opened.open(), source="qbtc/gateway/test")
            assert said(await answer(later)) == "Hello"
            await later.close()

    run(go)
    assert len(engine.asked) == 1


def test_a_worker_that_stops_lets_its_answer_end(bus_url: str | None, queue_prefix: str) -> None:
    stopping = threading.Event()
    engine = ScriptedEngine([*text("Hel"), stopping, *text("lo"), end()])

    async def go() -> str:
        async with floor(bus_url, queue_prefix) as made:
            worker = await made.hire(engine)
            asking = asyncio.ensure_future(answer(made.remote))
            await until(lambda: worker.active == 1)
            ended = asyncio.ensure_future(worker.stop(finish_s=WAIT_S))
            await asyncio.sleep(0)
            stopping.set()
            await ended
            return said(await asking)

    assert run(go) == "Hello"
    assert (engine.finished, len(engine.asked)) == (1, 1)


def test_a_worker_that_cannot_finish_gives_its_answer_to_another(
    bus_url: str | None, queue_prefix: str
) -> None:
    first = ScriptedEngine([*text("Hel"), FOREVER])
    second = ScriptedEngine([*text("H", "ell", "o"), end()])

    async def go() -> str:
        async with floor(bus_url, queue_prefix) as made:
            worker = await made.hire(first)
            events = made.remote.chat(HELLO)
            found = [await anext(events), await anext(events)]
            await made.hire(second)
            await worker.stop(finish_s=0.0)
            found += [event async for event in events]
            return said(found)

    assert run(go) == "Hello"
    assert (first.cancelled, second.finished) == (1, 1)


def test_an_answer_in_one_piece_comes_with_its_calls() -> None:
    engine = ScriptedEngine([*text("Let me", " look."), *call("look", "{}"), end("tool_calls")])
    identity = new_id()
    asked = LlmRequest(request_id=identity, operation="chat", chat=HELLO)

    async def go() -> Any:
        async with floor(None) as made:
            await made.hire(engine)
            bus = await made.opened.open()
            asking = message(asked, id=identity, source="qbtc/test/1", subject=MODEL)
            return (await bus.request(asking, timeout_s=WAIT_S)).data

    response = run(go)
    assert isinstance(response, LlmResponse)
    assert (response.status, response.request_id, response.chunks) == ("success", identity, 0)
    (choice,) = response.choices
    assert (choice.text, choice.finish_reason) == ("Let me look.", "tool_calls")
    assert [each.name for each in choice.tool_calls] == ["look"]


def test_a_request_that_is_too_large_is_refused_here() -> None:
    engine = ScriptedEngine()
    long = "x" * (MESSAGE_BYTES_MAX // 2_000)

    async def go() -> None:
        async with floor(None) as made:
            await made.hire(engine)
            turns = (ChatMessage(role="user", content=long),) * 2_100
            with pytest.raises(RequestError, match="cannot be sent to a worker"):
                await answer(made.remote, ChatRequest(model=MODEL, messages=turns))
            inputs = (long,) * 2_048
            with pytest.raises(RequestError, match="cannot be sent to a worker"):
                await made.remote.embed(
                    EmbeddingRequest(model=EMBEDDING_MODEL, inputs=(*inputs, long * 60))
                )

    run(go)
    assert engine.asked == []


def test_heartbeats_tell_how_workers_are_and_add_up_to_statistics(
    bus_url: str | None, queue_prefix: str
) -> None:
    heard: list[Health] = []

    async def hear(delivery: Any) -> None:
        heard.append(delivery.message.data)

    def heartbeat(bus: Any, instance: str, problems: list[str | None]) -> Heartbeat:
        return Heartbeat(
            bus,
            service="worker",
            instance=instance,
            counters=lambda: {"engine_active": 2.0, "engine_steps": 5.0, "other": 1.0},
            problem=lambda: problems[-1],
            interval_s=1.0,
        )

    async def go() -> None:
        async with floor(bus_url, queue_prefix) as made:
            await made.hire(ScriptedEngine())
            assert made.remote.stats() == Stats()
            await answer(made.remote)
            bus = await made.opened.open("qbtc/worker/1")
            await bus.subscribe(Topic(exchange=EVENTS, pattern="health.#"), hear)
            problems: list[str | None] = [None]
            first, second = heartbeat(bus, "1", problems), heartbeat(bus, "2", [None])
            first.start()
            await until(lambda: bool(heard))
            assert (heard[0].status, heard[0].instance) == ("starting", "1")
            first.ready()
            await until(lambda: heard[-1].status == "ok")
            problems.append("x" * 100_000)
            await until(lambda: heard[-1].status == "degraded")
            problems.append(None)
            await until(lambda: heard[-1].status == "ok")
            problems.append("the engine is gone")
            await until(lambda: heard[-1].status == "degraded")
            assert heard[-1].detail == "the engine is gone"
            second.start()
            await until(lambda: made.remote.stats() == Stats(active=4, steps=10))
            await first.stop()
            assert first.missed == 0
            await until(lambda: any(health.status == "stopping" for health in heard))
            await until(lambda: made.remote.stats() == Stats(active=2, steps=5))
            await second.stop()
            await until(lambda: made.remote.stats() == Stats())

    run(go)


def test_the_list_of_models_is_kept_for_a_moment() -> None:
    async def go() -> None:
        async with floor(None, timeout_s=1.0) as made:
            worker = await made.hire(ScriptedEngine())
            models = await made.remote.models()
            assert [model.id for model in models] == [MODEL, EMBEDDING_MODEL]
            await worker.stop()
            assert await made.remote.models() == models
            with pytest.raises(RequestTimeout):
                await answer(made.remote)

    run(go)


def test_one_finish_comes_for_each_answer() -> None:
    script = [*text("a"), *text("b", choice=1), end(choice=1), end()]

    async def go() -> list[Event]:
        async with floor(None) as made:
            await made.hire(ScriptedEngine(script))
            return await answer(made.remote, ChatRequest(model=MODEL, messages=HELLO.messages, n=2))

    assert [event for event in run(go) if isinstance(event, Finished)] == [end(choice=1), end()]

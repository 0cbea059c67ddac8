"""What a worker is made of: batches of events, whole answers, failures as messages."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.scripted_engine import call, end, text

from qbtc.errors import EngineBusy, EngineFailed, QbtcError, RequestTimeout
from qbtc.llm.errors import ContextLengthExceeded, ModelNotFound, RequestError
from qbtc.llm.failures import error_of, failure_of
from qbtc.messages.events import Choice, Failure
from qbtc.messages.language import TextDelta, TokenLogprob, ToolCall
from qbtc.worker.batches import batches
from qbtc.worker.collect import collect

WAIT_S = 60.0


async def counted(n: int) -> AsyncGenerator[int]:
    for number in range(n):
        yield number


async def taken[T](items: AsyncIterator[T], **limits: Any) -> list[tuple[T, ...]]:
    async with asyncio.timeout(WAIT_S), aclosing(batches(items, **limits)) as cut:
        return [batch async for batch in cut]


@settings(deadline=None)
@given(st.integers(0, 50), st.integers(1, 7))
def test_batches_hold_every_item_in_order(n: int, items_max: int) -> None:
    found = asyncio.run(taken(counted(n), interval_s=0.0, items_max=items_max))
    assert [item for batch in found for item in batch] == list(range(n))
    assert all(0 < len(batch) <= items_max for batch in found)


def test_what_comes_within_the_interval_travels_together() -> None:
    async def go() -> list[tuple[str, ...]]:
        more = asyncio.Event()

        async def items() -> AsyncGenerator[str]:
            yield "first"
            await more.wait()
            for item in "abc":
                yield item
                await asyncio.sleep(0)

        found = []
        async with aclosing(batches(items(), interval_s=WAIT_S, items_max=10)) as cut:
            async for batch in cut:
                found.append(batch)
                more.set()
        return found

    assert asyncio.run(go()) == [("first",), ("a", "b", "c")]


def test_nothing_waits_after_what_is_not_patient() -> None:
    async def go() -> list[tuple[int, ...]]:
        more = asyncio.Event()

        async def items() -> AsyncGenerator[int]:
            for item in (0, 0, 1):
                yield item
                await more.wait()
                more.clear()

        found = []
        cut = batches(items(), interval_s=WAIT_S * 2, items_max=9, patient=bool)
        async with asyncio.timeout(WAIT_S), aclosing(cut):
            async for batch in cut:
                found.append(batch)
                more.set()
        return found

    assert asyncio.run(go()) == [(0,), (0,), (1,)]


def test_a_source_waits_while_nothing_is_taken() -> None:
    made = 0

    async def go() -> None:
        async def items() -> AsyncGenerator[int]:
            nonlocal made
            while True:
                made += 1
                yield made

        async with aclosing(batches(items(), interval_s=0.0, items_max=3)) as cut:
            assert await anext(cut) == (1, 2, 3)
            for _ in range(20):
                await asyncio.sleep(0)

    asyncio.run(go())
    assert made <= 6


def test_an_error_comes_after_what_came_before_it() -> None:
    async def items() -> AsyncGenerator[int]:
        yield 1
        yield 2
        raise RuntimeError("broken")

    found: list[int] = []

    async def go() -> None:
        async with aclosing(batches(items(), interval_s=0.0, items_max=5)) as cut:
            async for batch in cut:
                found.extend(batch)

    with pytest.raises(RuntimeError, match="broken"):
        asyncio.run(go())
    assert found == [1, 2]


@pytest.mark.parametrize("how", ["close", "cancel"])
def test_leaving_closes_the_source(how: str) -> None:
    closed = 0

    async def items() -> AsyncGenerator[int]:
        nonlocal closed
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            closed += 1

    async def go() -> None:
        got = asyncio.Event()

        async def read() -> None:
            async with aclosing(batches(items(), interval_s=0.0, items_max=5)) as cut:
                async for _ in cut:
                    got.set()
                    if how == "close":
                        break

        task = asyncio.ensure_future(read())
        await got.wait()
        if how == "cancel":
            task.cancel()
        await asyncio.wait([task], timeout=WAIT_S)
        assert task.done()

    asyncio.run(go())
    assert closed == 1


def test_events_become_whole_answers_by_number() -> None:
    token = TokenLogprob(token="b", bytes=(98,), logprob=-1.0)
    last = end("tool_calls", choice=1)

    async def events() -> Any:
        for event in (
            *text("a", choice=1),
            TextDelta(choice=0, text="b", logprobs=(token,)),
            *call("look", '{"a"', ":1}", choice=1),
            *call("see", "{}", choice=1, number=1, id="call_2"),
            last,
            end(),
        ):
            yield event

    first, second = asyncio.run(collect(events()))
    assert (first.index, first.text, first.logprobs) == (0, "b", (token,))
    assert second == Choice(
        index=1,
        text="a",
        tool_calls=(
            ToolCall(id="call_1", name="look", arguments='{"a":1}'),
            ToolCall(id="call_2", name="see", arguments="{}"),
        ),
        finish_reason="tool_calls",
        usage=last.usage,
        seed=1,
    )


@pytest.mark.parametrize(
    "error",
    [
        EngineBusy("full", retry_after_s=1.25),
        ModelNotFound("The model 'x' does not exist."),
        ContextLengthExceeded("too long", param="prompt"),
        RequestError("Invalid 'suffix'.", param="suffix", code="unsupported_parameter"),
        RequestError("odd"),
    ],
)
def test_a_refusal_is_the_same_on_the_other_side(error: QbtcError) -> None:
    failure = failure_of(error)
    assert failure is not None
    found = error_of(failure)
    assert (type(found), str(found), vars(found)) == (type(error), str(error), vars(error))


def test_what_is_not_the_request_s_fault_is_no_refusal() -> None:
    assert failure_of(RuntimeError("x")) is None
    assert isinstance(error_of(Failure(kind="internal", message="x")), EngineFailed)
    assert isinstance(error_of(Failure(kind="expired", message="x")), RequestTimeout)

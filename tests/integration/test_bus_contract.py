"""What every bus does, shown on the one in this process and on RabbitMQ."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from tests.support.bus import KINDS, Buses, Kind, buses

from qbtc.bus import Bus, BusLimits, Delivery, Topic, WorkQueue
from qbtc.bus.admin import queue_status
from qbtc.bus.dead import DeadLetter
from qbtc.bus.dead_letters import read_dead
from qbtc.bus.inprocess import InProcessBus
from qbtc.bus.topology import DELIVERY_LIMIT, EVENTS, RESPONSES, TRADING_REQUESTS
from qbtc.errors import (
    BusError,
    MessageError,
    OutboxFull,
    RequestTimeout,
    Unroutable,
)
from qbtc.messages import codec
from qbtc.messages.envelope import Message, message
from qbtc.messages.events import Health, TradingRequest, TradingSignal

WAIT_S = 60.0
REQUESTS = WorkQueue(TRADING_REQUESTS)
HASTY = BusLimits(again_delay_s=0.001, again_delay_s_max=0.002)

type Open = Callable[[], "contextlib.AbstractAsyncContextManager[Buses]"]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.replace(" ", "-"))
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.fixture
def opened(kind: Kind, request: pytest.FixtureRequest) -> Open:
    """Both kinds of bus, one after the other."""

    @asynccontextmanager
    async def open_() -> AsyncIterator[Buses]:
        async with asyncio.timeout(120), buses(url, prefix) as made:
            yield made

    url = request.getfixturevalue("amqp_url") if kind == "rabbitmq" else None
    prefix = request.getfixturevalue("queue_prefix") if kind == "rabbitmq" else ""
    return open_


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


def a_request(**envelope: Any) -> Message:
    data = TradingRequest(
        request_id="r", instrument="BTCUSDT.BINANCE", ts_event=1, features={"spread": 1.0}
    )
    return message(data, source="qbtc/test/asker", subject=data.instrument, **envelope)


def a_signal(answers: Message | None = None, *, number: int = 0) -> Message:
    data = TradingSignal(
        signal_id=f"s{number}",
        instrument="BTCUSDT.BINANCE",
        action="HOLD",
        confidence=0.5,
        ts_event=number,
        ts_init=number,
    )
    return message(
        data,
        source="qbtc/test/answerer",
        subject=data.instrument,
        correlationid=answers.correlationid if answers else None,
    )


def a_heartbeat(service: str = "worker") -> Message:
    data = Health(
        service=service,  # type: ignore[arg-type]
        instance="1",
        status="ok",
        version="0",
        started_at="2026-01-01T00:00:00Z",
        interval_s=5.0,
    )
    return message(data, source="qbtc/test/1", subject=service)


class Heard:
    """Collects what a handler gets."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self._more = asyncio.Event()

    async def __call__(self, delivery: Delivery) -> None:
        self.ids.append(delivery.message.id)
        self._more.set()

    async def until(self, enough: int) -> list[str]:
        async with asyncio.timeout(WAIT_S):
            while len(self.ids) < enough:
                self._more.clear()
                await self._more.wait()
        return self.ids


async def echo(delivery: Delivery) -> None:
    await delivery.reply(a_signal(delivery.message))


async def until(true: Callable[[], bool]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(WAIT_S):
        while not true():  # noqa: ASYNC110 - counters have no event
            await asyncio.sleep(0.01)


async def dead_letters(bus: Bus, made: Buses, *, enough: int = 1) -> list[DeadLetter]:
    """Wait for dead letters; return them."""
    async with asyncio.timeout(WAIT_S):
        while True:
            if isinstance(bus, InProcessBus):
                found = bus.dead_letters()
            else:
                assert made.url is not None
                found = list(await read_dead(made.url, prefix=made.prefix))
            if len(found) >= enough:
                return found
            await asyncio.sleep(0.05)


def test_a_published_message_reaches_a_subscriber_whole(opened: Open) -> None:
    async def test() -> None:
        async with opened() as made:
            bus = await made.open()
            got: asyncio.Queue[Message] = asyncio.Queue()

            async def keep(delivery: Delivery) -> None:
                got.put_nowait(delivery.message)

            await bus.subscribe(Topic(exchange=RESPONSES, pattern="trading.signal.#"), keep)
            sent = a_signal()
            await bus.publish(sent)
            assert await asyncio.wait_for(got.get(), WAIT_S) == sent

    run(test())


def test_messages_of_one_sender_arrive_in_order(opened: Open) -> None:
    async def test() -> None:
        async with opened() as made:
            bus, heard = await made.open(), Heard()
            await bus.subscribe(Topic(exchange=RESPONSES, pattern="#"), heard, prefetch=500)
            sent = [a_signal(number=number) for number in range(300)]
            await asyncio.gather(*(bus.publish(each) for each in sent))
            assert await heard.until(300) == [each.id for each in sent]

    run(test())


def test_each_message_of_a_work_queue_goes_to_one_consumer(opened: Open) -> None:
    async def test() -> None:
        async with opened() as made:
            first, second = Heard(), Heard()
            await (await made.open()).subscribe(REQUESTS, first, prefetch=1)
            await (await made.open()).subscribe(REQUESTS, second, prefetch=1)
            bus = await made.open()
            sent = [a_request() for _ in range(40)]
            await asyncio.gather(*(bus.publish(each) for each in sent))
            await until(lambda: len(first.ids) + len(second.ids) >= 40)
            assert sorted(first.ids + second.ids) == sorted(each.id for each in sent)
            assert first.ids
            assert second.ids

    run(test())


@pytest.mark.parametrize(
    ("pattern", "services"),
    [
        ("health.*", {"worker", "node"}),
        ("health.worker", {"worker"}),
        ("#", {"worker", "node"}),
        ("health.#", {"worker", "node"}),
        ("*.node", {"node"}),
        ("health.*.more", set()),
    ],
)
def test_a_topic_pattern_takes_words_and_wildcards(
    opened: Open, pattern: str, services: set[str]
) -> None:
    async def test() -> None:
        async with opened() as made:
            bus, heard, all_of_them = await made.open(), Heard(), Heard()
            await bus.subscribe(Topic(exchange=EVENTS, pattern=pattern), heard)
            await bus.subscribe(Topic(exchange=EVENTS, pattern="#"), all_of_them)
            sent = {service: a_heartbeat(service) for service in ("worker", "node")}
            for each in sent.values():
                await bus.publish(each)
            await all_of_them.until(2)
            await heard.until(len(services))
            assert set(heard.ids) == {sent[service].id for service in services}

    run(test())


def test_a_durable_subscription_keeps_what_comes_while_nobody_listens(opened: Open) -> None:
    async def test() -> None:
        async with opened() as made:
            made.durable.append("q_test_kept")
            bus, heard = await made.open(), Heard()
            kept = Topic(exchange=RESPONSES, pattern="trading.#", durable_name="q_test_kept")
            await (await bus.subscribe(kept, heard)).stop()
            sent = a_signal()
            await bus.publish(sent)
            await bus.subscribe(kept, heard)
            assert await heard.until(1) == [sent.id]

    run(test())


def test_a_subscription_that_is_not_durable_gets_only_what_comes_from_now_on(
    opened: Open,
) -> None:
    async def test() -> None:
        async with opened() as made:
            bus, heard = await made.open(), Heard()
            await bus.publish(a_signal())
            subscription = await bus.subscribe(Topic(exchange=RESPONSES, pattern="#"), heard)
            second = a_signal()
            await bus.publish(second)
            assert await heard.until(1) == [second.id]
            await subscription.stop()
            await bus.publish(a_signal())
            assert heard.ids == [second.id]

    run(test())


def test_a_request_is_answered_and_a_late_reply_is_left_out(opened: Open) -> None:
    async def test() -> None:
        async with opened() as made:
            worker, bus = await made.open("qbtc/worker/1"), await made.open()

            async def handle(delivery: Delivery) -> None:
                await delivery.reply(a_signal(delivery.message, number=1), last=False)
                await delivery.reply(a_signal(delivery.message, number=2))

            await worker.subscribe(REQUESTS, handle)
            asked = a_request()
            answer = await bus.request(asked, timeout_s=WAIT_S)
            assert answer.correlationid == asked.correlationid
            assert isinstance(answer.data, TradingSignal)
            assert answer.data.ts_event == 2
            await until(lambda: worker.counters()["done"] == 1)
            assert bus.counters()["pending"] == 0

    run(test())


def test_a_stream_yields_every_reply_in_order_up_to_the_last(opened: Open) -> None:
    async def test() -> None:
        async with opened() as made:
            worker, bus = await made.open("qbtc/worker/1"), await made.open()

            async def handle(delivery: Delivery) -> None:
                for number in range(200):
                    await delivery.reply(a_signal(delivery.message, number=number), last=False)
                await delivery.reply(a_signal(delivery.message, number=200))

            await worker.subscribe(REQUESTS, handle)
            answers = bus.stream(a_request(), timeout_s=WAIT_S)
            numbers = [each.data.ts_event async for each in answers]  # type: ignore[union-attr]
            assert numbers == list(range(201))

    run(test())


def test_two_askers_get_their_own_answers(opened: Open) -> None:
    async def test() -> None:
        async with opened() as made:
            worker = await made.open("qbtc/worker/1")
            await worker.subscribe(REQUESTS, echo)
            askers = [await made.open(f"qbtc/test/{number}") for number in range(2)]
            asked = [a_request() for _ in range(20)]
            answers = await asyncio.gather(
                *(askers[i % 2].request(each, timeout_s=WAIT_S) for i, each in enumerate(asked))
            )
            assert [each.correlationid for each in answers] == [
                each.correlationid for each in asked
            ]

    run(test())


def test_a_request_nobody_answers_times_out(opened: Open) -> None:
    async def test() -> None:
        async with opened() as made:
            bus = await made.open()
            with pytest.raises(RequestTimeout, match="is a worker running"):
                await bus.request(a_request(), timeout_s=0.2)
            with pytest.raises(RequestTimeout):
                async for _ in bus.stream(a_request(), timeout_s=0.2):
                    pass

    run(test())


class Stuck:
    """A handler that never ends by itself, after one reply; it says how it was ended."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def __call__(self, delivery: Delivery) -> None:
        self.started.set()
        try:
            await delivery.reply(a_signal(delivery.message), last=False)
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


def test_leaving_a_request_cancels_its_work(opened: Open) -> None:
    async def test() -> None:
        async with opened() as made:
            worker, bus, stuck = await made.open("qbtc/worker/1"), await made.open(), Stuck()
            await worker.subscribe(REQUESTS, stuck)
            asking = asyncio.create_task(bus.request(a_request(), timeout_s=WAIT_S))
            await asyncio.wait_for(stuck.started.wait(), WAIT_S)
            asking.cancel()
            await asyncio.wait_for(stuck.cancelled.wait(), WAIT_S)
            await until(lambda: worker.counters()["cancelled"] == 1)
            with pytest.raises(asyncio.CancelledError):
                await asking
            assert worker.counters()["again"] == 0

    run(test())


def test_leaving_a_request_takes_nothing_from_others_that_was_published_meanwhile(
    opened: Open,
) -> None:
    async def test() -> None:
        async with opened() as made:
            worker, bus, published = await made.open("qbtc/worker/1"), await made.open(), []
            heard, first, go_on = Heard(), asyncio.Event(), asyncio.Event()
            confirmed = asyncio.Event()

            async def listen_slowly(delivery: Delivery) -> None:
                first.set()
                await go_on.wait()
                await heard(delivery)

            async def publish_and_stay(delivery: Delivery) -> None:
                for number in range(2):
                    published.append(a_signal(delivery.message, number=number))
                    await worker.publish(published[-1])
                confirmed.set()
                await asyncio.Event().wait()

            made.durable.append("q_slow")
            topic = Topic(exchange=RESPONSES, pattern="trading.signal.#", durable_name="q_slow")
            # One signal is in the handler, the other waits, when the asker leaves.
            await worker.subscribe(topic, listen_slowly, prefetch=1)
            await worker.subscribe(REQUESTS, publish_and_stay)
            asking = asyncio.create_task(bus.request(a_request(), timeout_s=WAIT_S))
            await asyncio.wait_for(asyncio.gather(first.wait(), confirmed.wait()), WAIT_S)
            asking.cancel()
            await until(lambda: worker.counters()["cancelled"] == 1)
            go_on.set()
            assert await heard.until(2) == [each.id for each in published]
            assert worker.counters()["cancelled"] == 1

    run(test())


def test_closing_a_stream_cancels_its_work(opened: Open) -> None:
    async def test() -> None:
        async with opened() as made:
            worker, bus, stuck = await made.open("qbtc/worker/1"), await made.open(), Stuck()
            await worker.subscribe(REQUESTS, stuck)
            answers = bus.stream(a_request(), timeout_s=WAIT_S)
            await anext(answers)
            await answers.aclose()
            await asyncio.wait_for(stuck.cancelled.wait(), WAIT_S)
            await until(lambda: worker.counters()["cancelled"] == 1)

    run(test())


def test_work_on_an_expired_message_is_cancelled_and_not_done_again(opened: Open) -> None:
    async def test() -> None:
        async with opened() as made:
            bus, stuck = await made.open(), Stuck()
            await bus.subscribe(REQUESTS, stuck)
            await bus.publish(a_request(expires_s=3.0))
            await asyncio.wait_for(stuck.cancelled.wait(), WAIT_S)
            await until(lambda: bus.counters()["expired"] == 1)
            assert bus.counters()["again"] == 0

    run(test())


def test_a_message_that_expired_on_its_way_is_dropped_and_counted(opened: Open) -> None:
    async def test() -> None:
        async with opened() as made:
            bus, heard = await made.open(), Heard()
            await bus.publish(a_request(expires_s=-1.0))
            await bus.subscribe(REQUESTS, heard)
            await until(lambda: bus.counters()["expired"] == 1)
            last = a_request()
            await bus.publish(last)
            assert await heard.until(1) == [last.id]

    run(test())


def test_a_request_left_before_a_worker_took_it_is_not_worked_on(opened: Open) -> None:
    async def test() -> None:
        async with opened() as made:
            worker, bus, heard = await made.open("qbtc/worker/1"), await made.open(), Heard()
            # A subscriber hears cancellations from its first subscription on.
            await worker.subscribe(Topic(exchange=EVENTS, pattern="#"), heard)
            left = a_request()
            asking = asyncio.create_task(bus.request(left, timeout_s=WAIT_S))
            await until(lambda: bus.counters()["confirmed"] == 1)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            await until(lambda: left.id in worker._left)  # type: ignore[attr-defined]
            beat = a_heartbeat()
            await bus.publish(beat)
            await heard.until(1)
            await worker.subscribe(REQUESTS, heard)
            last = a_request()
            await bus.publish(last)
            assert await heard.until(2) == [beat.id, last.id]
            assert worker.counters()["cancelled"] == 1

    run(test())


def test_a_message_whose_handler_fails_comes_again_until_it_is_a_dead_letter(
    opened: Open,
) -> None:
    async def test() -> None:
        async with opened() as made:
            bus = await made.open(limits=HASTY)
            returns: list[int] = []
            attempts: set[str] = set()

            async def fail(delivery: Delivery) -> None:
                returns.append(delivery.returns)
                attempts.add(delivery.attempt)
                raise ZeroDivisionError("always")

            await bus.subscribe(REQUESTS, fail)
            sent = a_request()
            await bus.publish(sent)
            (dead,) = await dead_letters(bus, made)
            assert (dead.id, dead.type, dead.reason) == (sent.id, sent.type, "delivery_limit")
            assert dead.queue == made.prefix + TRADING_REQUESTS
            assert codec.decode(dead.body) == sent
            assert returns == list(range(DELIVERY_LIMIT + 1))
            assert len(attempts) == DELIVERY_LIMIT + 1
            assert bus.counters()["dead"] == 1

    run(test())


def test_a_message_its_handler_calls_bad_is_a_dead_letter_at_once(opened: Open) -> None:
    async def test() -> None:
        async with opened() as made:
            bus, calls = await made.open(), list[str]()

            async def refuse(delivery: Delivery) -> None:
                calls.append(delivery.message.id)
                raise MessageError("the instrument is unknown")

            await bus.subscribe(REQUESTS, refuse)
            sent = a_request()
            await bus.publish(sent)
            (dead,) = await dead_letters(bus, made)
            assert dead.id == sent.id
            assert dead.reason == "bad message: the instrument is unknown"
            assert dead.time
            assert calls == [sent.id]

    run(test())


def test_a_message_that_fails_once_is_handled_the_second_time(opened: Open) -> None:
    async def test() -> None:
        async with opened() as made:
            bus, seen = await made.open(limits=HASTY), list[bool]()

            async def fail_once(delivery: Delivery) -> None:
                seen.append(delivery.redelivered)
                if len(seen) == 1:
                    raise ZeroDivisionError("once")
                await delivery.reply(a_signal(delivery.message))

            await bus.subscribe(REQUESTS, fail_once)
            await bus.request(a_request(), timeout_s=WAIT_S)
            assert seen == [False, True]

    run(test())


def test_a_failing_handler_of_a_passing_topic_ends_in_the_dead_letters_too(opened: Open) -> None:
    async def test() -> None:
        async with opened() as made:
            bus, calls = await made.open(limits=HASTY), list[str]()

            async def fail(delivery: Delivery) -> None:
                calls.append(delivery.message.id)
                raise ZeroDivisionError("always")

            await bus.subscribe(Topic(exchange=RESPONSES, pattern="#"), fail)
            await bus.publish(a_signal())
            (dead,) = await dead_letters(bus, made)
            assert dead.reason == "delivery_limit"
            assert len(calls) == DELIVERY_LIMIT + 1

    run(test())


def test_stopping_gives_back_what_does_not_finish_in_time(opened: Open) -> None:
    async def test() -> None:
        async with opened() as made:
            bus, stuck, heard = await made.open(), Stuck(), Heard()
            subscription = await bus.subscribe(REQUESTS, stuck)
            sent = a_request()
            await bus.publish(sent)
            await asyncio.wait_for(stuck.started.wait(), WAIT_S)
            assert subscription.active == 1
            await subscription.stop()
            assert stuck.cancelled.is_set()
            assert subscription.active == 0
            await bus.subscribe(REQUESTS, heard)
            assert await heard.until(1) == [sent.id]

    run(test())


def test_stopping_lets_running_work_finish(opened: Open) -> None:
    async def test() -> None:
        async with opened() as made:
            bus, started, go_on = await made.open(), asyncio.Event(), asyncio.Event()

            async def slow(delivery: Delivery) -> None:
                started.set()
                await go_on.wait()

            subscription = await bus.subscribe(REQUESTS, slow)
            await bus.publish(a_request())
            await asyncio.wait_for(started.wait(), WAIT_S)
            stopping = asyncio.create_task(subscription.stop(finish_s=WAIT_S))
            await asyncio.sleep(0)
            go_on.set()
            await stopping
            assert bus.counters()["done"] == 1
            assert bus.counters()["again"] == 0

    run(test())


def test_no_more_than_the_prefetch_runs_at_a_time(opened: Open) -> None:
    async def test() -> None:
        async with opened() as made:
            bus, running, most, done = await made.open(), 0, 0, 0
            full = asyncio.Event()

            async def count(delivery: Delivery) -> None:
                nonlocal running, most, done
                running += 1
                most = max(most, running)
                if running == 3:
                    full.set()
                await full.wait()
                await asyncio.sleep(0.01)
                running -= 1
                done += 1

            await bus.subscribe(REQUESTS, count, prefetch=3)
            await asyncio.gather(*(bus.publish(a_request()) for _ in range(30)))
            await until(lambda: done == 30)
            assert most == 3

    run(test())


def test_a_copy_of_a_message_in_work_waits_and_is_not_worked_on_twice(opened: Open) -> None:
    async def test() -> None:
        async with opened() as made:
            bus, go_on, calls = await made.open(), asyncio.Event(), list[str]()

            async def slow(delivery: Delivery) -> None:
                calls.append(delivery.message.id)
                await go_on.wait()

            await bus.subscribe(REQUESTS, slow)
            sent = a_request()
            await asyncio.gather(*(bus.publish(sent) for _ in range(10)))
            await until(lambda: bus.counters()["received"] == 10)
            go_on.set()
            await until(lambda: bus.counters()["done"] == 10)
            assert calls == [sent.id]

    run(test())


def test_a_request_asked_again_after_its_asker_left_is_answered(opened: Open) -> None:
    async def test() -> None:
        async with opened() as made:
            worker, bus, stuck = await made.open("qbtc/worker/1"), await made.open(), Stuck()
            subscription = await worker.subscribe(REQUESTS, stuck)
            asked = a_request()
            with pytest.raises(RequestTimeout):
                await bus.request(asked, timeout_s=0.5)
            await subscription.stop()
            await worker.subscribe(REQUESTS, echo)
            answer = await bus.request(asked, timeout_s=WAIT_S)
            assert answer.correlationid == asked.correlationid

    run(test())


def test_a_request_asked_again_while_the_first_is_still_ending_is_answered(opened: Open) -> None:
    async def test() -> None:
        async with opened() as made:
            worker, bus = await made.open("qbtc/worker/1"), await made.open()
            ending, let_go = asyncio.Event(), asyncio.Event()
            attempts: set[str] = set()

            async def handle(delivery: Delivery) -> None:
                attempts.add(delivery.attempt)
                if len(attempts) == 1:
                    try:
                        await asyncio.Event().wait()
                    finally:
                        ending.set()
                        await let_go.wait()
                await echo(delivery)

            await worker.subscribe(REQUESTS, handle)
            asked = a_request()
            first = asyncio.create_task(bus.request(asked, timeout_s=WAIT_S))
            await until(lambda: len(attempts) == 1)
            first.cancel()
            await asyncio.wait_for(ending.wait(), WAIT_S)
            second = asyncio.create_task(bus.request(asked, timeout_s=WAIT_S))
            await until(lambda: worker.counters()["received"] == 2)
            let_go.set()
            assert (await second).correlationid == asked.correlationid
            assert len(attempts) == 2
            with pytest.raises(asyncio.CancelledError):
                await first

    run(test())


def test_a_message_that_its_schema_refuses_is_not_sent(opened: Open) -> None:
    async def test() -> None:
        async with opened() as made:
            bus = await made.open()
            bad = msgspec.structs.replace(a_signal(), id="")
            with pytest.raises(MessageError):
                await bus.publish(bad)
            with pytest.raises(MessageError):
                await bus.request(msgspec.structs.replace(a_request(), id=""), timeout_s=1.0)
            assert bus.counters()["published"] == 0

    run(test())


def test_an_oversized_message_is_not_sent(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with opened() as made:
            bus = await made.open()
            monkeypatch.setattr(codec, "MESSAGE_BYTES_MAX", 100)
            with pytest.raises(MessageError, match="100"):
                await bus.publish(a_signal())

    run(test())


def test_a_reply_to_something_else_is_refused(opened: Open) -> None:
    async def test() -> None:
        async with opened() as made:
            bus, errors = await made.open(limits=HASTY), list[Exception]()

            async def confuse(delivery: Delivery) -> None:
                try:
                    await delivery.reply(a_signal())
                except ValueError as error:
                    errors.append(error)
                await delivery.reply(a_signal(delivery.message))

            await bus.subscribe(REQUESTS, confuse)
            await bus.request(a_request(), timeout_s=WAIT_S)
            assert len(errors) == 1

    run(test())


def test_there_is_an_error_at_once_when_too_much_waits(opened: Open, kind: Kind) -> None:
    async def test() -> None:
        limits = BusLimits(outbox_messages_max=3, in_flight_max=1)
        async with opened() as made:
            bus = await made.open(limits=limits)
            results = await asyncio.gather(
                *(bus.publish(a_request()) for _ in range(5)), return_exceptions=True
            )
            assert [type(each) for each in results] == [type(None)] * 3 + [OutboxFull] * 2

    run(test())


def test_subscribing_to_a_queue_that_is_not_there_is_an_error(opened: Open) -> None:
    async def test() -> None:
        async with opened() as made:
            bus = await made.open()
            with pytest.raises(Unroutable):
                await bus.subscribe(WorkQueue("q_nothing"), echo)
            # And the bus still works.
            await bus.subscribe(REQUESTS, echo)
            await bus.request(a_request(), timeout_s=WAIT_S)

    run(test())


def test_a_message_that_is_only_a_reply_has_no_route(opened: Open) -> None:
    from qbtc.messages.events import Cancel

    async def test() -> None:
        async with opened() as made:
            bus = await made.open()
            cancel = message(Cancel(request_id="r"), source="qbtc/test/1", subject="r")
            with pytest.raises(ValueError, match="reply only"):
                await bus.publish(cancel)

    run(test())


def test_closing_ends_what_is_under_way(opened: Open) -> None:
    async def test() -> None:
        async with opened() as made:
            bus, stuck = await made.open(), Stuck()
            await bus.subscribe(REQUESTS, stuck)
            asking = asyncio.create_task(bus.request(a_request(), timeout_s=WAIT_S))
            await asyncio.wait_for(stuck.started.wait(), WAIT_S)
            publishing = asyncio.create_task(bus.publish(a_signal()))
            await asyncio.sleep(0)
            await bus.close()
            with pytest.raises(BusError, match="closed"):
                await asking
            await publishing
            assert stuck.cancelled.is_set()
            assert bus.problem() == "the bus is closed"
            with pytest.raises(BusError, match="closed"):
                await bus.publish(a_signal())
            await bus.close()

    run(test())


def test_a_thousand_requests_leave_nothing_behind(opened: Open) -> None:
    async def test() -> None:
        async with opened() as made:
            worker, bus = await made.open("qbtc/worker/1"), await made.open()
            await worker.subscribe(REQUESTS, echo, prefetch=64)
            for _ in range(10):
                asked = [a_request() for _ in range(100)]
                answers = await asyncio.gather(
                    *(bus.request(each, timeout_s=WAIT_S) for each in asked)
                )
                assert [each.correlationid for each in answers] == [
                    each.correlationid for each in asked
                ]
            counters = bus.counters()
            assert (counters["outbox"], counters["pending"]) == (0, 0)
            if made.url is not None:
                found = await queue_status(made.url, prefix=made.prefix)
                assert [each.messages for each in found] == [0, 0, 0]

    run(test())

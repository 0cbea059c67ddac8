"""What only a bus with a broker meets: lost connections, lost confirms, refusals, other clients."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import aio_pika
import pytest
from tests.integration.test_bus_contract import (
    HASTY,
    REQUESTS,
    WAIT_S,
    Heard,
    Stuck,
    a_heartbeat,
    a_request,
    a_signal,
    echo,
    until,
)
from tests.support.bus import Buses, buses
from tests.support.proxy import Proxy

from qbtc.bus import BusLimits, Delivery, Topic, dead_letters, open_bus, rabbit
from qbtc.bus.admin import queue_status, remove_topology
from qbtc.bus.dead import FROM_QUEUE
from qbtc.bus.dead_letters import drop_dead, read_dead, replay_dead
from qbtc.bus.deliveries import RabbitSubscription
from qbtc.bus.topology import (
    DEAD,
    DEAD_EXCHANGE,
    EVENTS,
    LLM_REQUESTS,
    RESPONSES,
    TRADING_REQUESTS,
    Route,
)
from qbtc.errors import BusError, BusUnavailable, InputError, Unroutable
from qbtc.messages import codec
from qbtc.messages.envelope import Message

QUICK = BusLimits(reconnect_s_min=0.01, reconnect_s_max=0.05, again_delay_s=0.001)


@pytest.fixture
def proxy(amqp_url: str) -> Iterator[Proxy]:
    with Proxy(amqp_url) as made:
        yield made


@pytest.fixture
def opened(amqp_url: str, queue_prefix: str) -> "Open":
    @asynccontextmanager
    async def open_() -> AsyncIterator[Buses]:
        async with asyncio.timeout(120), buses(amqp_url, queue_prefix) as made:
            yield made

    return open_


type Open = Callable[[], "Any"]


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


@asynccontextmanager
async def channel_of(url: str) -> AsyncIterator[aio_pika.abc.AbstractChannel]:
    """Another client's channel."""
    connection = await aio_pika.connect(url)
    try:
        yield await connection.channel(on_return_raises=True)
    finally:
        await connection.close()


def numbers(answers: list[Message]) -> list[int]:
    return [each.data.ts_event for each in answers]  # type: ignore[union-attr]


async def one_and_no_more(delivery: Delivery) -> None:
    await delivery.reply(a_signal(delivery.message), last=False)
    await asyncio.Event().wait()


async def count_to_five(delivery: Delivery) -> None:
    for number in range(5):
        await delivery.reply(a_signal(delivery.message, number=number), last=number == 4)


def test_what_is_published_while_the_connection_is_cut_arrives_once_it_is_back(
    opened: Open, proxy: Proxy
) -> None:
    async def test() -> None:
        async with opened() as made:
            receiver, heard = await made.open(), Heard()
            await receiver.subscribe(REQUESTS, heard)
            made.url = proxy.url
            bus = await made.open(limits=QUICK)
            sent = [a_request() for _ in range(500)]
            publishing = [asyncio.create_task(bus.publish(each)) for each in sent]
            await until(lambda: len(heard.ids) > 20)
            await asyncio.to_thread(proxy.cut)
            await asyncio.gather(*publishing)
            await until(lambda: {each.id for each in sent} <= set(heard.ids))
            await until(lambda: bus.problem() is None)

    run(test())


def test_a_confirm_that_is_lost_without_a_word_holds_nothing_up(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        async with opened() as made:
            bus, heard = await made.open(limits=QUICK), Heard()
            await bus.subscribe(REQUESTS, heard)
            session = bus._session  # type: ignore[attr-defined]
            going = asyncio.Event()

            async def never(*_: object, **__: object) -> None:
                going.set()
                await asyncio.Event().wait()

            monkeypatch.setattr(session, "publish", never)
            sent = a_request()
            publishing = asyncio.create_task(bus.publish(sent))
            await asyncio.wait_for(going.wait(), WAIT_S)
            session.lose("the test")
            await asyncio.wait_for(publishing, WAIT_S)
            assert await heard.until(1) == [sent.id]
            assert bus.counters()["outbox"] == 0

    run(test())


def test_a_subscription_that_nobody_got_takes_nothing_and_holds_nothing_up(
    opened: Open, proxy: Proxy
) -> None:
    async def test() -> None:
        async with opened() as made:
            bus = await open_bus(proxy.url, prefix=made.prefix, limits=QUICK)
            unwanted, heard = Heard(), Heard()
            try:
                # RabbitMQ has no such long keys: asking for it again would fail for ever.
                with pytest.raises(ValueError, match="too long"):
                    await bus.subscribe(Topic(exchange=EVENTS, pattern="x" * 300), unwanted)
                for step in range(20):
                    leaving = asyncio.create_task(bus.subscribe(REQUESTS, unwanted))
                    await asyncio.sleep(0.0005 * step)
                    leaving.cancel()
                    (left,) = await asyncio.gather(leaving, return_exceptions=True)
                    if not isinstance(left, BaseException):
                        await left.stop()
                before = proxy.accepted
                await asyncio.to_thread(proxy.cut)
                await until(lambda: proxy.accepted > before and bus.problem() is None)
                await bus.subscribe(REQUESTS, heard)
                # Each consumer of a queue has its turn.
                sent = [a_request() for _ in range(10)]
                await asyncio.gather(*map(bus.publish, sent))
                assert set(await heard.until(len(sent))) == {each.id for each in sent}
                assert not unwanted.ids
            finally:
                await bus.close()

    run(test())


def test_a_subscription_stopped_while_the_bus_reconnects_takes_nothing_any_more(
    opened: Open, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        async with opened() as made:
            bus, heard = await open_bus(proxy.url, prefix=made.prefix, limits=QUICK), Heard()
            try:
                subscription = await bus.subscribe(REQUESTS, heard)
                starting, go_on = asyncio.Event(), asyncio.Event()
                open_queue = RabbitSubscription._open_queue

                async def open_later(this: Any, channel: Any) -> Any:
                    starting.set()
                    await go_on.wait()
                    return await open_queue(this, channel)

                monkeypatch.setattr(RabbitSubscription, "_open_queue", open_later)
                await asyncio.to_thread(proxy.cut)
                await asyncio.wait_for(starting.wait(), WAIT_S)
                other = await made.open()
                await asyncio.gather(*(other.publish(a_request()) for _ in range(5)))
                await subscription.stop()
                go_on.set()
                await until(lambda: bus.problem() is None)
                waiting = 0
                async with asyncio.timeout(WAIT_S):
                    while waiting < 5:
                        states = await queue_status(made.url, prefix=made.prefix)
                        found = {each.name: each for each in states}
                        assert found[made.prefix + TRADING_REQUESTS].consumers == 0
                        waiting = found[made.prefix + TRADING_REQUESTS].messages
                assert bus.counters()["received"] == 0
            finally:
                await bus.close()

    run(test())


def test_a_message_that_fails_again_and_again_leaves_nothing_in_its_consumer(
    opened: Open,
) -> None:
    async def test() -> None:
        async with opened() as made:
            bus = await made.open(limits=QUICK)

            async def fail(_: Delivery) -> None:
                raise RuntimeError("never")

            subscription = await bus.subscribe(REQUESTS, fail)
            await bus.publish(a_request())
            await until(lambda: bus.counters()["dead"] == 1)
            assert subscription._returns == {}  # type: ignore[attr-defined]

    run(test())


def test_a_stream_can_be_left_after_its_bus_was_closed(opened: Open) -> None:
    async def test() -> None:
        async with opened() as made:
            worker = await made.open("qbtc/test/worker")
            await worker.subscribe(REQUESTS, one_and_no_more)
            asker = await made.open("qbtc/test/asker")
            stream = asker.stream(a_request(), timeout_s=WAIT_S)
            await anext(stream)
            await asker.close()
            await stream.aclose()
            assert asker.counters()["pending"] == 0

    run(test())


def test_a_subscription_goes_on_after_its_connection_was_cut(opened: Open, proxy: Proxy) -> None:
    async def test() -> None:
        async with opened() as made:
            sender, heard = await made.open(), Heard()
            made.url = proxy.url
            bus = await made.open(limits=QUICK)
            await bus.subscribe(REQUESTS, heard)
            await asyncio.to_thread(proxy.cut)
            sent = a_request()
            await sender.publish(sent)
            assert await heard.until(1) == [sent.id]

    run(test())


@pytest.mark.parametrize("prefetch", [1, 8])
def test_an_asker_whose_connection_was_cut_asks_again_and_gets_its_answer(
    opened: Open, proxy: Proxy, prefetch: int
) -> None:
    async def test() -> None:
        async with opened() as made:
            worker, stuck, attempts = await made.open(limits=HASTY), Stuck(), list[str]()

            async def handle(delivery: Delivery) -> None:
                attempts.append(delivery.attempt)
                if len(attempts) == 1:
                    await stuck(delivery)
                await count_to_five(delivery)

            await worker.subscribe(REQUESTS, handle, prefetch=prefetch)
            made.url = proxy.url
            bus = await made.open(limits=QUICK)
            asked = a_request()

            async def ask() -> list[Message]:
                return [each async for each in bus.stream(asked, timeout_s=WAIT_S)]

            asking = asyncio.create_task(ask())
            await asyncio.wait_for(stuck.started.wait(), WAIT_S)
            await asyncio.to_thread(proxy.cut)
            answers = await asking
            # The first attempt was stopped, as nobody heard it; the second is whole.
            assert numbers(answers)[-5:] == [0, 1, 2, 3, 4]
            assert stuck.cancelled.is_set()
            assert len(attempts) == 2

    run(test())


def test_a_worker_whose_connection_was_cut_mid_stream_starts_a_new_attempt(
    opened: Open, proxy: Proxy
) -> None:
    async def test() -> None:
        async with opened() as made:
            asker = await made.open()
            made.url = proxy.url
            worker, attempts, cut = await made.open(limits=QUICK), list[str](), list[int]()

            async def handle(delivery: Delivery) -> None:
                attempts.append(delivery.attempt)
                for number in range(100):
                    await delivery.reply(
                        a_signal(delivery.message, number=number), last=number == 99
                    )
                    if number == 50 and not cut:
                        cut.append(number)
                        await asyncio.to_thread(proxy.cut)

            await worker.subscribe(REQUESTS, handle)
            answers = [each async for each in asker.stream(a_request(), timeout_s=WAIT_S)]
            got = numbers(answers)
            # What came of the first attempt is a beginning without gaps; then the second, whole.
            assert got == [*range(len(got) - 100), *range(100)]
            assert len(attempts) == 2

    run(test())


def test_a_message_whose_confirm_was_lost_is_sent_again_with_its_id(
    opened: Open, proxy: Proxy
) -> None:
    async def test() -> None:
        async with opened() as made:
            receiver, heard = await made.open(), Heard()
            await receiver.subscribe(Topic(exchange=RESPONSES, pattern="#"), heard)
            made.url = proxy.url
            bus = await made.open(limits=QUICK)
            await asyncio.to_thread(proxy.delay, 2.0)
            sent = a_signal()
            publishing = asyncio.create_task(bus.publish(sent))
            # It has arrived, and its confirm is still on its way back.
            await heard.until(1)
            await asyncio.to_thread(proxy.cut)
            await asyncio.to_thread(proxy.resume)
            await publishing
            assert set(await heard.until(2)) == {sent.id}
            assert bus.counters()["retried"] == 1
            assert bus.counters()["confirmed"] == 1

    run(test())


def test_a_connection_that_confirms_nothing_is_given_up(opened: Open, proxy: Proxy) -> None:
    async def test() -> None:
        async with opened() as made:
            receiver, heard = await made.open(), Heard()
            await receiver.subscribe(REQUESTS, heard)
            made.url = proxy.url
            limits = BusLimits(confirm_s_max=1.0, reconnect_s_min=0.01, reconnect_s_max=0.05)
            bus = await made.open(limits=limits)
            await asyncio.to_thread(proxy.stall)
            sent = a_request()
            publishing = asyncio.create_task(bus.publish(sent))
            await until(lambda: bus.problem() is not None)
            assert "no confirm" in (bus.problem() or "")
            await asyncio.to_thread(proxy.resume)
            await publishing
            assert set(await heard.until(1)) == {sent.id}

    run(test())


def test_a_publish_that_is_not_confirmed_in_time_says_so(opened: Open, proxy: Proxy) -> None:
    async def test() -> None:
        async with opened() as made:
            await made.open()
            made.url = proxy.url
            bus = await made.open(limits=QUICK)
            await asyncio.to_thread(proxy.half_open)
            await asyncio.to_thread(proxy.cut)
            with pytest.raises(BusUnavailable, match="did not confirm"):
                await bus.publish(a_request(), timeout_s=0.3)
            assert bus.problem() is not None
            assert bus.counters()["outbox"] == 0
            await asyncio.to_thread(proxy.resume)
            await asyncio.to_thread(proxy.cut)
            await bus.publish(a_request())
            assert bus.problem() is None

    run(test())


def test_a_bus_may_be_opened_while_the_broker_is_away(
    amqp_url: str, queue_prefix: str, proxy: Proxy
) -> None:
    async def test() -> None:
        await asyncio.to_thread(proxy.half_open)
        limits = BusLimits(connect_s_max=2.0, reconnect_s_min=0.01, reconnect_s_max=0.05)
        with pytest.raises(BusUnavailable, match="does not answer"):
            await open_bus(proxy.url, prefix=queue_prefix, limits=limits)
        bus = await open_bus(proxy.url, prefix=queue_prefix, limits=limits, must_connect=False)
        try:
            heard = Heard()
            await bus.subscribe(REQUESTS, heard)
            assert bus.problem() is not None
            await asyncio.to_thread(proxy.resume)
            sent = a_request()
            await bus.publish(sent)
            assert await heard.until(1) == [sent.id]
            assert bus.problem() is None
        finally:
            await bus.close()
            await remove_topology(amqp_url, queue_prefix)

    run(test())


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("amqp://guest:secret-word@{place}/", "refused user guest; check user and password"),
        ("amqp://guest:guest@{place}/no-such-host", "no virtual host no-such-host that user guest"),
        ("amqp://guest:secret-word@127.0.0.1:1/", "cannot reach RabbitMQ at 127.0.0.1:1"),
        ("amqp://guest:secret-word@no-such-host.invalid:5672/", "RabbitMQ at no-such"),
    ],
)
def test_a_wrong_url_gives_one_clear_error_without_the_password(
    amqp_url: str, url: str, error: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        place = amqp_url.rpartition("@")[2].rstrip("/")
        with caplog.at_level(logging.DEBUG), pytest.raises(BusUnavailable, match=error) as raised:
            await open_bus(url.format(place=place), limits=BusLimits(connect_s_max=20.0))
        assert "secret-word" not in str(raised.value)
        assert "secret-word" not in caplog.text

    run(test())


@pytest.mark.parametrize(
    "url", ["amqp://u:secret-word@host:port/", "amqp://[secret-word/", "amqp://"]
)
def test_a_malformed_url_is_not_quoted(url: str) -> None:
    with pytest.raises(InputError) as raised:
        run(_open_only(url))
    assert "secret-word" not in str(raised.value)


def test_another_scheme_is_refused() -> None:
    with pytest.raises(InputError, match="amqp://"):
        run(_open_only("redis://localhost/"))


async def _open_only(url: str) -> None:
    await open_bus(url)


def test_messages_say_on_the_wire_what_they_are(opened: Open) -> None:
    async def test() -> None:
        async with opened() as made:
            bus = await made.open()
            sent = a_request(expires_s=60.0)
            await bus.publish(sent)
            async with channel_of(made.url) as channel:
                queue = await channel.get_queue(made.prefix + TRADING_REQUESTS)
                raw = await queue.get()
                await raw.ack()
            assert raw.delivery_mode == aio_pika.DeliveryMode.PERSISTENT
            assert raw.content_type == "application/cloudevents+json"
            assert (raw.message_id, raw.correlation_id) == (sent.id, sent.correlationid)
            assert raw.type == sent.type
            assert raw.timestamp is not None
            assert codec.decode(raw.body) == sent

    run(test())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\x00 not json",
        b'{"type": "qbtc.unknown.v9"}',
        codec.encode(a_request()).replace(b'"spread"', b'"spread":null,"spread"'),
        codec.encode(a_request()).replace(b'"ts_event":1', b'"ts_event":"1"'),
        b"[" * 100_000,
    ],
    ids=["empty", "no json", "unknown type", "key twice", "wrong type", "deep"],
)
def test_a_body_that_is_no_message_is_a_dead_letter_with_a_reason(
    opened: Open, body: bytes
) -> None:
    async def test() -> None:
        async with opened() as made:
            bus, heard = await made.open(), Heard()
            await bus.subscribe(REQUESTS, heard)
            async with channel_of(made.url) as channel:
                await channel.default_exchange.publish(
                    aio_pika.Message(body, message_id="bad"), made.prefix + TRADING_REQUESTS
                )
            await until(lambda: bus.counters()["dead"] == 1)
            sent = a_request()
            await bus.publish(sent)
            assert await heard.until(1) == [sent.id]
            (dead,) = await _dead(made)
            assert (dead.id, dead.body) == ("bad", body)
            assert dead.reason.startswith("bad message: ")

    run(test())


def test_an_oversized_body_is_a_dead_letter(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with opened() as made:
            bus = await made.open()
            await bus.publish(a_request())
            monkeypatch.setattr(codec, "MESSAGE_BYTES_MAX", 100)
            await bus.subscribe(REQUESTS, echo)
            (dead,) = await _dead(made)
            assert "at most 100" in dead.reason

    run(test())


def test_nobody_is_answered_who_names_a_queue_as_address(opened: Open) -> None:
    async def test() -> None:
        async with opened() as made:
            bus = await made.open()
            await bus.subscribe(REQUESTS, echo)
            async with channel_of(made.url) as channel:
                await channel.default_exchange.publish(
                    aio_pika.Message(
                        codec.encode(a_request()), reply_to=made.prefix + LLM_REQUESTS
                    ),
                    made.prefix + TRADING_REQUESTS,
                )
            await until(lambda: bus.counters()["done"] == 1)
            found = {
                each.name: each.messages
                for each in await queue_status(made.url, prefix=made.prefix)
            }
            assert found[made.prefix + LLM_REQUESTS] == 0

    run(test())


def test_a_request_for_which_there_is_no_queue_is_unroutable(opened: Open) -> None:
    async def test() -> None:
        async with opened() as made:
            bus = await made.open()
            async with channel_of(made.url) as channel:
                await channel.queue_delete(made.prefix + TRADING_REQUESTS)
            with pytest.raises(Unroutable, match="qbtc bus init"):
                await bus.publish(a_request())
            with pytest.raises(Unroutable):
                await bus.request(a_request(), timeout_s=WAIT_S)
            # An event nobody wants is none.
            await bus.publish(a_heartbeat())
            assert bus.counters()["returned"] == 2

    run(test())


def test_what_cannot_be_put_on_the_wire_is_an_error_and_holds_nothing_up(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        async with opened() as made:
            bus = await made.open(limits=BusLimits(in_flight_max=1))
            with monkeypatch.context() as patch:
                patch.setattr(rabbit, "route", lambda _: Route(EVENTS, "k" * 300, False))
                with pytest.raises(BusError, match="cannot be sent"):
                    await bus.publish(a_heartbeat())
            await bus.publish(a_heartbeat())
            assert bus.counters()["outbox"] == 0
            assert bus.problem() is None

    run(test())


def test_a_queue_that_is_deleted_under_its_consumer_is_made_again(opened: Open) -> None:
    async def test() -> None:
        async with opened() as made:
            bus, heard = await made.open(limits=QUICK), Heard()
            await bus.subscribe(REQUESTS, heard)
            async with channel_of(made.url) as channel:
                await channel.queue_delete(made.prefix + TRADING_REQUESTS)
            sent = a_request()
            async with asyncio.timeout(WAIT_S):
                while True:
                    try:
                        await bus.publish(sent)
                        break
                    except Unroutable:
                        await asyncio.sleep(0.01)
            assert await heard.until(1) == [sent.id]

    run(test())


def test_a_full_queue_refuses_and_its_publisher_is_told(opened: Open) -> None:
    async def test() -> None:
        async with opened() as made:
            made.durable.append("q_small")
            bus = await made.open()
            async with channel_of(made.url) as channel:
                small = await channel.declare_queue(
                    made.prefix + "q_small",
                    durable=True,
                    arguments={
                        "x-queue-type": "quorum",
                        "x-max-length": 1,
                        "x-overflow": "reject-publish",
                    },
                )
                await small.bind(made.prefix + EVENTS, "#")

                async def fill() -> None:
                    # The bound is soft: RabbitMQ takes a few more.
                    for _ in range(6):
                        await bus.publish(a_heartbeat(), timeout_s=1.0)

                with pytest.raises(BusUnavailable, match="a full queue refuses it"):
                    await fill()
                publishing = asyncio.create_task(bus.publish(a_heartbeat()))
                await small.purge()
                await publishing

    run(test())


def test_a_stream_that_is_not_read_fails_and_its_work_is_cancelled(opened: Open) -> None:
    async def test() -> None:
        async with opened() as made:
            worker, done = await made.open(), asyncio.Event()
            bus = await made.open(limits=BusLimits(stream_pending_max=10))

            async def handle(delivery: Delivery) -> None:
                try:
                    for number in range(100):
                        await delivery.reply(a_signal(delivery.message, number=number), last=False)
                    await asyncio.Event().wait()
                finally:
                    done.set()

            await worker.subscribe(REQUESTS, handle)
            answers = bus.stream(a_request(), timeout_s=WAIT_S)
            assert numbers([await anext(answers)]) == [0]
            got: list[Message] = []

            async def read_the_rest() -> None:
                # While nobody reads, replies pile up.
                (replies,) = bus._asked.values()  # type: ignore[attr-defined]
                await until(lambda: replies.over)
                async for each in answers:
                    got.append(each)  # noqa: PERF401 - it ends with an error

            with pytest.raises(BusError, match="read the stream faster"):
                await read_the_rest()
            assert numbers(got) == list(range(1, 1 + len(got)))
            await asyncio.wait_for(done.wait(), WAIT_S)
            await until(lambda: worker.counters()["cancelled"] == 1)

    run(test())


def test_dead_letters_are_listed_again_and_again_and_lost_by_dropping_only(opened: Open) -> None:
    async def test() -> None:
        async with opened() as made:
            sent = await _kill(made, 3)
            for _ in range(3):
                found = await read_dead(made.url, prefix=made.prefix)
                assert sorted(each.id for each in found) == sorted(sent)
                assert {each.queue for each in found} == {made.prefix + TRADING_REQUESTS}
            assert len(await read_dead(made.url, prefix=made.prefix, limit=2)) == 2
            dropped = await drop_dead(made.url, prefix=made.prefix, ids={sent[1]})
            assert [each.id for each in dropped] == [sent[1]]
            assert {each.id for each in await _dead(made, 2)} == {sent[0], sent[2]}

    run(test())


def test_dead_letters_are_read_up_to_a_number_of_bytes(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        async with opened() as made:
            sent = await _kill(made, 3)
            size = (await read_dead(made.url, prefix=made.prefix))[0].size
            monkeypatch.setattr(dead_letters, "DEAD_READ_BYTES_MAX", size + 1)
            found = await read_dead(made.url, prefix=made.prefix)
            assert [each.id for each in found] == sent[:2]

    run(test())


def test_a_replayed_dead_letter_is_handled_with_its_id(opened: Open) -> None:
    async def test() -> None:
        async with opened() as made:
            sent = await _kill(made, 2)
            replayed = await replay_dead(made.url, prefix=made.prefix, ids={sent[0]})
            assert [(each.letter.id, each.problem) for each in replayed] == [(sent[0], None)]
            heard = Heard()
            await (await made.open()).subscribe(REQUESTS, heard)
            assert await heard.until(1) == [sent[0]]
            assert [each.id for each in await _dead(made)] == [sent[1]]

    run(test())


def test_a_dead_letter_whose_queue_is_gone_stays(opened: Open) -> None:
    async def test() -> None:
        async with opened() as made:
            (sent,) = await _kill(made, 1)
            async with channel_of(made.url) as channel:
                await channel.queue_delete(made.prefix + TRADING_REQUESTS)
            (replayed,) = await replay_dead(made.url, prefix=made.prefix, ids=None)
            assert replayed.problem == f"queue {made.prefix}{TRADING_REQUESTS} is gone"
            assert [each.id for each in await _dead(made)] == [sent]

    run(test())


def test_a_dead_letter_that_has_expired_is_not_sent_to_be_dropped(opened: Open) -> None:
    async def test() -> None:
        async with opened() as made:
            await made.open()
            late = a_request(expires_s=-1.0)
            async with channel_of(made.url) as channel:
                exchange = await channel.get_exchange(made.prefix + DEAD_EXCHANGE)
                letter = aio_pika.Message(
                    codec.encode(late),
                    message_id=late.id,
                    headers={FROM_QUEUE: made.prefix + TRADING_REQUESTS},
                )
                await exchange.publish(letter, "trading.request")
            (replayed,) = await replay_dead(made.url, prefix=made.prefix, ids=None)
            assert replayed.problem == "it has expired: nobody waits for it"
            assert [each.id for each in await _dead(made)] == [late.id]

    run(test())


async def _kill(made: Buses, count: int) -> list[str]:
    """Make so many dead letters by a handler that always fails; return their ids."""
    bus = await made.open(limits=HASTY)

    async def fail(delivery: Delivery) -> None:
        raise ZeroDivisionError

    subscription = await bus.subscribe(REQUESTS, fail, prefetch=1)
    sent = [a_request() for _ in range(count)]
    for each in sent:
        await bus.publish(each)
        await until(lambda: bus.counters()["dead"] >= 1 + sent.index(each))  # noqa: B023
    await subscription.stop()
    await _dead(made, count)
    return [each.id for each in sent]


async def _dead(made: Buses, count: int = 1) -> list[Any]:
    async with asyncio.timeout(WAIT_S):
        while len(found := await read_dead(made.url or "", prefix=made.prefix)) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return list(found)


def test_only_a_prefixed_topology_is_removed(amqp_url: str) -> None:
    with pytest.raises(InputError, match="prefix"):
        run(remove_topology(amqp_url, ""))


def test_a_queue_that_differs_is_an_error_that_names_it(amqp_url: str, queue_prefix: str) -> None:
    async def test() -> None:
        async with channel_of(amqp_url) as channel:
            await channel.declare_queue(
                queue_prefix + DEAD, durable=True, arguments={"x-queue-type": "quorum"}
            )
        try:
            with pytest.raises(BusError, match=f"{DEAD} is there but differs.*qbtc bus init"):
                await open_bus(amqp_url, prefix=queue_prefix)
        finally:
            await remove_topology(amqp_url, queue_prefix)

    run(test())

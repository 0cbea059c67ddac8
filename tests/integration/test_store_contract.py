"""What every store does, on each database."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.support.records import (
    NOW,
    event_message,
    fill,
    interaction,
    order,
    order_event,
    signal,
    snapshot,
    tool_call,
)
from tests.support.stores import exported, opened, within

from qbtc.errors import InputError, RecordRefused, StoreError
from qbtc.messages.envelope import rfc3339
from qbtc.store import Store, open_store
from qbtc.store.protocol import DAY_NS
from qbtc.store.records import OutboxEntry
from qbtc.store.tables import TABLES
from qbtc.store.values import KEY_CHARS_MAX


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/records.db"
    url: str = request.getfixturevalue("postgres_url")
    return url


EVERYTHING = [
    interaction(request={"messages": [{"role": "user", "content": "hi"}]}, response={"n": 1}),
    tool_call(arguments='{"path": "a"}'),
    signal(),
    order(average_price="60000.10"),
    order_event(),
    fill(),
    snapshot(),
]


def test_every_record_comes_back_as_it_was_written(url: str) -> None:
    async def work(store: Store) -> None:
        await store.write([*EVERYTHING, OutboxEntry(message=event_message())])
        for record in EVERYTHING:
            (spec,) = [s for s in TABLES.values() if set(s.columns) == set(fields(record))]
            (row,) = await exported(store, spec.name)
            assert row == msgspec.structs.asdict(record)
        assert list(await store.outbox()) == [event_message()]

    within(url, work)


def fields(record: Any) -> tuple[str, ...]:
    return type(record).__struct_fields__


def test_a_batch_written_twice_leaves_one_row_each(url: str) -> None:
    async def work(store: Store) -> None:
        batch = [*EVERYTHING, OutboxEntry(message=event_message())]
        await store.write(batch * 2)
        await store.write(batch)
        for table in TABLES:
            if table != "processed_messages":
                assert len(await exported(store, table)) == 1, table

    within(url, work)


def test_ten_thousand_rows_come_back_in_the_order_of_their_time(url: str) -> None:
    async def work(store: Store) -> None:
        records = [interaction(number) for number in range(10_000)]
        await store.write(records[5_000:])
        await store.write(records[:5_000])
        rows = await exported(store, "interactions")
        assert [row["request_id"] for row in rows] == [f"req-{n}" for n in range(10_000)]

    within(url, work)


def test_an_export_is_from_one_time_to_before_another(url: str) -> None:
    async def work(store: Store) -> None:
        await store.write([fill(number) for number in range(10)])
        rows = await exported(store, "fills", start_ns=NOW + 3, end_ns=NOW + 6)
        assert [row["trade_id"] for row in rows] == ["trade-3", "trade-4", "trade-5"]

    within(url, work)


def test_an_order_moves_to_later_states_and_never_back(url: str) -> None:
    async def work(store: Store) -> None:
        later = order(sequence=3, status="FILLED", filled="0.50", signal_id=None, ts_last=NOW + 9)
        await store.write([order(), later, order(sequence=1, status="ACCEPTED")])
        await store.write([order(sequence=2, status="PARTIALLY_FILLED", filled="0.25")])
        (row,) = await exported(store, "orders")
        assert (row["status"], row["filled"], row["sequence"]) == ("FILLED", "0.50", 3)
        assert row["signal_id"] == "signal-0"

    within(url, work)


def test_a_published_signal_takes_the_outcome_that_follows(url: str) -> None:
    async def work(store: Store) -> None:
        await store.write([signal(1, outcome="acted"), signal(1), signal(0)])
        await store.write([signal(0, outcome="risk: too large"), signal(1, outcome="expired")])
        rows = await exported(store, "signals")
        assert [row["outcome"] for row in rows] == ["risk: too large", "acted"]

    within(url, work)


def test_ids_of_simulated_runs_do_not_meet(url: str) -> None:
    async def work(store: Store) -> None:
        for run in ("run-1", "run-2"):
            await store.write(
                [order(scope=run, run_id=run), order_event(scope=run), fill(scope=run, run_id=run)]
            )
        for table in ("orders", "order_events", "fills"):
            assert len(await exported(store, table)) == 2
        (row,) = await store.trail(run_id="run-2")
        assert (row["scope"], row["trade_id"]) == ("run-2", "trade-0")

    within(url, work)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("0", "0"),
        ("1.10", "1.10"),
        ("-12.50", "-12.50"),
        ("0.000000000000000001", "0.000000000000000001"),
        ("123456789012345678901234567890.123456789", "123456789012345678901234567890.123456789"),
        ("-0.00", "0.00"),
        ("007.5", "7.5"),
    ],
)
def test_decimals_keep_every_digit(url: str, written: str, read: str) -> None:
    async def work(store: Store) -> None:
        await store.write([order(), fill(price=written)])
        (row,) = await exported(store, "fills")
        assert row["price"] == read
        (row,) = await store.trail()
        assert row["fill_price"] == read

    within(url, work)


def test_text_of_any_language_is_kept_and_what_no_database_holds_is_replaced(url: str) -> None:
    async def work(store: Store) -> None:
        kept = "Grüße, 世界 🙂 \\u0000 'quoted' %s"
        odd = interaction(
            session="a\0b",
            model=kept,
            request={"te\0xt": ["\0", kept, "\ud800"], "n": 2**63},
        )
        await store.write([odd])
        (row,) = await exported(store, "interactions")
        assert row["session"] == "a\ufffdb"
        assert row["model"] == kept
        assert row["request"] == {"te\ufffdxt": ["\ufffd", kept, "\ufffd"], "n": 2**63}

    within(url, work)


def test_a_large_conversation_is_kept(url: str) -> None:
    async def work(store: Store) -> None:
        request = {"messages": [{"content": f"{n} " + "x" * 1000} for n in range(8_000)]}
        await store.write([interaction(request=request)])
        (row,) = await exported(store, "interactions")
        assert row["request"] == request

    within(url, work)


@pytest.mark.parametrize(
    ("record", "column"),
    [
        (fill(price="1e5"), "fills.price"),
        (fill(price=1.5), "fills.price"),
        (fill(price="NaN"), "fills.price"),
        (fill(ts_event=2**63), "fills.ts_event"),
        (fill(trade_id="t" * (KEY_CHARS_MAX + 1)), "fills.trade_id"),
        (signal(confidence=float("nan")), "signals.confidence"),
        (interaction(total_ms=float("inf")), "interactions.total_ms"),
        (interaction(endpoint=None), "interactions"),
        (snapshot(sha256="0" * 64), "snapshots.sha256"),
    ],
)
def test_a_row_that_cannot_be_kept_as_it_is_is_refused_by_its_column(
    url: str, record: Any, column: str
) -> None:
    async def work(store: Store) -> None:
        with pytest.raises(RecordRefused, match=column):
            await store.write([order(), record])
        # All of a batch or none of it.
        assert await exported(store, "orders") == []

    within(url, work)


def test_a_refused_row_is_not_quoted_in_the_error(url: str) -> None:
    async def work(store: Store) -> None:
        with pytest.raises(RecordRefused) as error:
            await store.write([interaction(endpoint=None, request={"text": "canary"})])
        assert "canary" not in str(error.value)

    within(url, work)


def test_the_effect_of_a_message_is_written_once(url: str) -> None:
    async def work(store: Store) -> None:
        assert not await store.processed("m-1", consumer="node")
        done = [
            await store.write_once("m-1", consumer="node", records=[fill(number)])
            for number in range(3)
        ]
        assert done == [True, False, False]
        assert await store.processed("m-1", consumer="node")
        assert not await store.processed("m-1", consumer="other")
        assert [row["trade_id"] for row in await exported(store, "fills")] == ["trade-0"]

    within(url, work)


def test_of_two_consumers_of_one_message_at_once_one_writes_its_effect(url: str) -> None:
    async def work(store: Store) -> None:
        async with opened(url) as other:
            done = await asyncio.gather(
                *(
                    (store, other)[number % 2].write_once(
                        "m-1", consumer="node", records=[fill(number)]
                    )
                    for number in range(10)
                )
            )
        assert sorted(done) == [False] * 9 + [True]
        assert len(await exported(store, "fills")) == 1

    within(url, work)


def test_an_effect_that_is_refused_leaves_no_mark(url: str) -> None:
    async def work(store: Store) -> None:
        with pytest.raises(RecordRefused):
            await store.write_once("m-1", consumer="node", records=[interaction(endpoint=None)])
        assert not await store.processed("m-1", consumer="node")

    within(url, work)


def test_writers_of_the_same_orders_at_once_leave_the_last_state(url: str) -> None:
    async def work(store: Store) -> None:
        async with opened(url) as other:
            await asyncio.gather(
                *(
                    (store, other)[sequence % 2].write(
                        [
                            order(number, sequence=sequence, filled=f"0.{sequence:02}")
                            for number in (range(50) if sequence % 3 else reversed(range(50)))
                        ]
                    )
                    for sequence in range(20)
                )
            )
        rows = await exported(store, "orders")
        assert [row["filled"] for row in rows] == ["0.19"] * 50

    within(url, work)


def test_the_outbox_gives_messages_in_their_order_until_they_are_sent(url: str) -> None:
    async def work(store: Store) -> None:
        await store.write(
            [OutboxEntry(message=event_message(number)) for number in range(9, 4, -1)]
        )
        waiting = [message.id for message in await store.outbox(limit=2)]
        assert waiting == ["message-9", "message-8"]
        await store.outbox_sent(waiting)
        await store.outbox_refused("message-7", reason="too large")
        assert [message.id for message in await store.outbox()] == ["message-6", "message-5"]

    within(url, work)


def test_signal_order_and_fill_are_joined_by_id(url: str) -> None:
    async def work(store: Store) -> None:
        await store.write(
            [
                signal(0),
                signal(0, run_id="run-2", action="SELL"),
                order(0, filled="0.50", status="FILLED"),
                fill(0, quantity="0.20"),
                fill(1, order_id="order-0", quantity="0.30"),
                order(1, signal_id=None, run_id="run-2"),
            ]
        )
        rows = await store.trail()
        assert [
            (row["signal_action"], row["signal_price"], row["order_id"], row["fill_quantity"])
            for row in rows
        ] == [
            ("BUY", "60000.10", "order-0", "0.20"),
            ("BUY", "60000.10", "order-0", "0.30"),
            (None, None, "order-1", None),
        ]
        assert len(await store.trail(order_id="order-0")) == 2
        assert len(await store.trail(run_id="run-2")) == 1
        assert await store.trail(run_id="run-3") == []

    within(url, work)


def test_the_newest_snapshot_or_a_version_is_loaded(url: str) -> None:
    async def work(store: Store) -> None:
        await store.write([snapshot(1, b"old"), snapshot(2, b"new")])
        name = snapshot().name
        newest = await store.snapshot(name)
        assert newest == snapshot(2, b"new")
        assert await store.snapshot(name, version=1) == snapshot(1, b"old")
        assert await store.snapshot(name, version=3) is None
        assert await store.snapshot("signal/other") is None

    within(url, work)


def test_retention_keeps_orders_and_what_is_young(url: str) -> None:
    import time

    def at(ns: int) -> str:
        return rfc3339(datetime.fromtimestamp(ns / 1e9, UTC))

    async def work(store: Store) -> None:
        now = time.time_ns()
        old = now - 200 * DAY_NS
        await store.write(
            [
                interaction(0, ts=old),
                interaction(1, ts=now),
                tool_call(0, ts=old),
                signal(0, ts_init=old),
                signal(1, ts_init=now),
                order(ts_init=old),
                order_event(ts_init=old),
                fill(ts_event=old),
                snapshot(ts=old),
                *(
                    OutboxEntry(message=msgspec.structs.replace(event_message(number), time=when))
                    for number, when in enumerate((at(old), at(old), at(now)))
                ),
            ]
        )
        await store.write_once("m-1", consumer="node")
        await store.outbox_refused("message-0", reason="too large")
        await store.outbox_refused("message-2", reason="too large")
        assert await store.retain(days=90) == 4
        left = {table: len(await exported(store, table)) for table in TABLES}
        assert left == {
            "interactions": 1,
            "tool_calls": 0,
            "signals": 1,
            "orders": 1,
            "order_events": 1,
            "fills": 1,
            "snapshots": 1,
            "outbox": 2,  # one waits, one is young
            "processed_messages": 1,
        }
        assert await store.retain(days=90) == 0

    within(url, work)


def test_migrations_are_applied_once_also_by_many_at_once(url: str) -> None:
    async def go() -> None:
        stores = await asyncio.gather(*(open_store(url, ready=False) for _ in range(6)))
        try:
            await asyncio.gather(*(store.migrate() for store in stores))
            for state in await stores[0].status():
                assert state.applied_at is not None
            assert await stores[0].migrate() == []
            await stores[5].write([fill()])
        finally:
            for store in stores:
                await store.close()

    asyncio.run(go())


def test_a_table_that_is_not_there_is_named(url: str) -> None:
    async def work(store: Store) -> None:
        with pytest.raises(InputError, match="there is no table 'users'"):
            await exported(store, "users")

    within(url, work)


def test_a_healthy_store_has_no_problem_and_a_closed_one_says_so(url: str) -> None:
    async def work(store: Store) -> None:
        assert await store.problem() is None
        await store.close()
        assert await store.problem() is not None
        with pytest.raises(StoreError):
            await store.write([fill()])

    within(url, work)

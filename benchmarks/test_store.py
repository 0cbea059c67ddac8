"""What keeping records costs: rows a second in each database, and a put on the caller's thread.

Sketch: a column of 500 values is checked at once, so a row of 14 columns takes about 1 us of Python
before it meets the database; a commit is one wait for the disk, about 3 ms, so 500 rows a commit
make it cheap. A put is a lock, an append and sometimes a wake-up: about 1 us.
"""

import asyncio
import collections
import itertools
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from tests.support import services
from tests.support.records import fill, interaction, signal

from benchmarks.reporting import Report, Target
from benchmarks.timing import Burst, interleave
from qbtc.store import Store, open_store
from qbtc.store.recorder import Recorder
from qbtc.store.records import Record
from qbtc.store.tables import TABLES
from qbtc.store.values import rows

pytestmark = pytest.mark.benchmark

GROUP = "records"
BATCH = 500
BATCHES = 4
SINGLES = 20
ROUNDS = 7
PUTS = 200

_numbers = itertools.count()


def fills(count: int) -> list[Record]:
    """Make fills that no database has seen."""
    return [fill(number) for number in itertools.islice(_numbers, count)]


def values(count: int) -> list[tuple[Any, ...]]:
    """Make the same as bare tuples, before the clock runs."""
    return rows(TABLES["fills"], fills(count))


def timed(runner: asyncio.Runner, work: Any, batches: list[Any]) -> float:
    """Time batches one after another; ns per row."""

    async def go() -> float:
        start = time.perf_counter_ns()
        for batch in batches:
            await work(batch)
        return time.perf_counter_ns() - start

    return runner.run(go()) / sum(map(len, batches))


def store_burst(runner: asyncio.Runner, store: Store, size: int, count: int) -> Burst:
    return lambda: timed(runner, store.write, [fills(size) for _ in range(count)])


def test_sqlite(benchmark: BenchmarkFixture, report: Report, tmp_path: Path) -> None:
    columns = ", ".join("?" * len(TABLES["fills"].columns))
    bare = sqlite3.connect(tmp_path / "bare.db", isolation_level=None)
    bare.execute("PRAGMA journal_mode = WAL")
    bare.execute("PRAGMA synchronous = FULL")
    names = ", ".join(TABLES["fills"].columns)
    bare.execute(f"CREATE TABLE fills ({names}, PRIMARY KEY (scope, venue, trade_id))")

    def plain(batches: list[Any]) -> float:
        start = time.perf_counter_ns()
        for batch in batches:
            bare.execute("BEGIN")
            bare.executemany(f"INSERT INTO fills VALUES ({columns})", batch)
            bare.execute("COMMIT")
        return (time.perf_counter_ns() - start) / sum(map(len, batches))

    with asyncio.Runner() as runner:
        store = runner.run(open_store(f"sqlite:///{tmp_path}/records.db"))
        samples = interleave(
            benchmark,
            {
                "ours": store_burst(runner, store, BATCH, BATCHES),
                "executemany": lambda: plain([values(BATCH) for _ in range(BATCHES)]),
                "ours single": store_burst(runner, store, 1, SINGLES),
                "single": lambda: plain([values(1) for _ in range(SINGLES)]),
            },
            rounds=ROUNDS,
        )
        runner.run(store.close())
    bare.close()
    report.add(
        GROUP,
        f"fills into SQLite, {BATCH} a commit",
        samples["ours"],
        ("sqlite3 executemany", samples["executemany"]),
        unit="rows/s",
        note="the peer gets tuples; ours checks records, skips copies and has two more indexes.",
    )
    report.add(
        GROUP,
        "fills into SQLite, one a commit",
        samples["ours single"],
        ("sqlite3 execute", samples["single"]),
        unit="rows/s",
        note="one wait for the disk each.",
    )


@pytest.fixture
def postgres_store() -> Iterator[tuple[asyncio.Runner, str, Store]]:
    services.need(services.POSTGRES_URL, "PostgreSQL")
    name = f"{services.RUN_ID}_bench"
    url = services.create_database(name)
    try:
        with asyncio.Runner() as runner:
            store = runner.run(open_store(url, ready=False))
            runner.run(store.migrate())
            yield runner, url, store
            runner.run(store.close())
    finally:
        services.drop_database(name)


def test_postgresql(
    benchmark: BenchmarkFixture, report: Report, postgres_store: tuple[asyncio.Runner, str, Store]
) -> None:
    runner, url, store = postgres_store
    connection = runner.run(asyncpg.connect(url))
    spec = TABLES["fills"]
    types = {"decimal": "numeric", "int": "bigint"}
    columns = [f"{name} {types.get(kind, 'text')}" for name, kind in spec.columns.items()]
    # A bare table: no key, no index, nothing checked.
    runner.run(connection.execute(f"CREATE TABLE bare ({', '.join(columns)})"))
    places = ", ".join(
        f"${n}::text::numeric" if kind == "decimal" else f"${n}"
        for n, kind in enumerate(spec.columns.values(), 1)
    )
    insert = f"INSERT INTO bare VALUES ({places})"

    async def copy(batch: list[tuple[Any, ...]]) -> None:
        await connection.copy_records_to_table("bare", records=batch)

    async def many(batch: list[tuple[Any, ...]]) -> None:
        await connection.executemany(insert, batch)

    async def single(batch: list[tuple[Any, ...]]) -> None:
        await connection.execute(insert, *batch[0])

    def decimals(batch: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        from decimal import Decimal

        kinds = list(spec.columns.values())
        return [
            tuple(Decimal(v) if k == "decimal" else v for k, v in zip(kinds, row, strict=True))
            for row in batch
        ]

    samples = interleave(
        benchmark,
        {
            "ours": store_burst(runner, store, BATCH, BATCHES),
            "copy": lambda: timed(runner, copy, [decimals(values(BATCH)) for _ in range(BATCHES)]),
            "many": lambda: timed(runner, many, [values(BATCH) for _ in range(BATCHES)]),
            "ours single": store_burst(runner, store, 1, SINGLES),
            "single": lambda: timed(runner, single, [values(1) for _ in range(SINGLES)]),
        },
        rounds=ROUNDS,
    )
    runner.run(connection.close())
    for peer, key, note in (
        (
            "COPY into a bare table",
            "copy",
            "the peer cannot skip copies, checks nothing and has no index.",
        ),
        ("executemany", "many", "into the same bare table."),
    ):
        report.add(
            GROUP,
            f"fills into PostgreSQL, {BATCH} a commit, against {peer}",
            samples["ours"],
            (peer, samples[key]),
            unit="rows/s",
            note=note,
        )
    report.add(
        GROUP,
        "fills into PostgreSQL, one a commit",
        samples["ours single"],
        ("one INSERT", samples["single"]),
        unit="rows/s",
        note="ours is begin, insert and commit, three round trips; the peer is one.",
    )


def test_put(benchmark: BenchmarkFixture, report: Report, tmp_path: Path) -> None:
    recorder = Recorder(f"sqlite:///{tmp_path}/records.db", spool=tmp_path / "spool")
    queue: collections.deque[Any] = collections.deque()
    lock = threading.Lock()

    def bare(record: Record) -> None:
        with lock:
            queue.append(record)

    def burst(put: Any, made: Any) -> Burst:
        def once() -> float:
            batch = [made(number) for number in itertools.islice(_numbers, PUTS)]
            assert recorder.flush(30)
            queue.clear()
            start = time.perf_counter_ns()
            for record in batch:
                put(record)
            return (time.perf_counter_ns() - start) / PUTS

        return once

    text = {"messages": [{"role": "user", "content": "word " * 800}]}
    samples = interleave(
        benchmark,
        {
            "signal": burst(recorder.put, signal),
            "fill": burst(recorder.put, fill),
            "contents": burst(recorder.put, lambda n: interaction(n, request=text)),
            "bare": burst(bare, signal),
        },
        rounds=41,
    )
    recorder.close()
    for name, key in (
        ("a signal", "signal"),
        ("a fill, on the disk first", "fill"),
        (f"an interaction with {len(msgspec.json.encode(text)):,} bytes", "contents"),
    ):
        report.add(
            GROUP,
            f"put of {name}",
            samples[key],
            ("append under a lock", samples["bare"]),
            unit="ns",
            target=Target("value", 20_000),
            note="the recorder's thread works beside it, on the same interpreter.",
        )

"""Rows about records: the database away, the recording process killed."""

import asyncio
import contextlib
import sys
import time
from collections import Counter
from pathlib import Path

import asyncpg
from tests.faults.harness import ROOT, Outcome, Setting, percentile

from qbtc.stack.servers import PostgresServer
from qbtc.store import open_store
from qbtc.store.recorder import Recorder
from qbtc.store.records import FillRecord, OrderEventRecord, OrderRecord, Record

AWAY_S = 10.0
RATE_S = 200
"""Orders a second; each is an order, two events and a fill."""
ROWS_MAX = 5_000
PUT_P99_S_MAX = 0.005
PUT_S_MAX = 0.5
"""The longest put of all; database and harness share the machine's cores with the recorder."""
FLUSH_S_MAX = 120.0
WRITER_KILLS_MAX = 5


def order(name: str) -> list[Record]:
    """Return the records of one order, filled at once."""
    now = time.time_ns()
    events = [
        OrderEventRecord(order_id=name, sequence=k, kind=kind, ts_event=now, ts_init=now)
        for k, kind in enumerate(("submitted", "filled"))
    ]
    return [
        OrderRecord(
            order_id=name,
            sequence=1,
            run_id="faults",
            strategy="faults",
            instrument="BTCUSDT.BINANCE",
            side="BUY",
            order_type="MARKET",
            quantity="1",
            filled="1",
            average_price="100000.1",
            status="FILLED",
            ts_init=now,
            ts_last=now,
        ),
        *events,
        FillRecord(
            venue="BINANCE",
            trade_id=name,
            order_id=name,
            run_id="faults",
            strategy="faults",
            instrument="BTCUSDT.BINANCE",
            side="BUY",
            price="100000.1",
            quantity="1",
            commission="0.1",
            commission_currency="USDT",
            liquidity="taker",
            ts_event=now,
        ),
    ]


def ids(name: str) -> set[str]:
    """Return what is counted of one order."""
    return {f"order {name}", f"event {name} 0", f"event {name} 1", f"fill {name}"}


async def migrated(url: str) -> None:
    """Make the tables."""
    store = await open_store(url, ready=False)
    try:
        await store.migrate()
    finally:
        await store.close()


async def rows(url: str) -> Counter[str]:
    """Return what is in the database, read by a connection of its own."""
    link = await asyncpg.connect(url, timeout=20)
    try:
        found = await link.fetch(
            "SELECT 'order ' || order_id FROM qbtc.orders"
            " UNION ALL SELECT 'event ' || order_id || ' ' || sequence FROM qbtc.order_events"
            " UNION ALL SELECT 'fill ' || trade_id FROM qbtc.fills"
        )
    finally:
        await link.close()
    return Counter(row[0] for row in found)


async def database_killed(setting: Setting) -> Outcome:
    """SIGKILL PostgreSQL and leave it away for a while, while orders are recorded."""
    outcome = Outcome(fault=f"PostgreSQL SIGKILLed and away for {AWAY_S:g} s")
    away_s = AWAY_S / (5 if setting.short else 1)
    with PostgresServer(setting.folder / "postgres") as database:
        await migrated(database.url)
        recorder = Recorder(database.url, spool=setting.folder / "spool", rows_max=ROWS_MAX)
        accepted: set[str] = set()
        took: list[float] = []
        most = 0
        stop = asyncio.Event()

        async def record() -> None:
            nonlocal most
            start, number = time.monotonic(), 0
            while not stop.is_set():
                name = f"O-{number}"
                for row in order(name):
                    before = time.perf_counter()
                    recorder.put(row)
                    took.append(time.perf_counter() - before)
                accepted.update(ids(name))
                most = max(most, recorder.counters()["queued"])
                number += 1
                await asyncio.sleep(max(0.0, start + number / RATE_S - time.monotonic()))

        try:
            load = asyncio.create_task(record())
            await asyncio.sleep(2)
            setting.say("the database is away")
            await asyncio.to_thread(database.kill)
            await asyncio.sleep(away_s)
            problem = recorder.problem()
            await asyncio.to_thread(database.start)
            setting.say("the database is back")
            await asyncio.sleep(2)
            stop.set()
            await load
            flushed = await asyncio.to_thread(recorder.flush, FLUSH_S_MAX)
            counters = recorder.counters()
        finally:
            await asyncio.to_thread(recorder.close)
        found = await rows(database.url)
    outcome.count(accepted, found)
    outcome.expect(flushed, f"what waits was not written in {FLUSH_S_MAX:g} s")
    outcome.expect(problem is not None, "the recorder did not say that the database is away")
    outcome.expect(most <= 2 * ROWS_MAX, f"{most} rows were in memory; at most {2 * ROWS_MAX} may")
    outcome.expect(counters["dropped"] == 0, f"{counters['dropped']} rows were dropped")
    p99 = percentile(took, 0.99)
    outcome.expect(p99 < PUT_P99_S_MAX, f"put() took {1e3 * p99:.1f} ms at p99")
    outcome.expect(max(took) < PUT_S_MAX, f"a put() took {1e3 * max(took):.0f} ms")
    outcome.notes = (
        f"put() p50 {1e6 * percentile(took, 0.5):.0f} us, p99 {1e6 * p99:.0f} us, longest"
        f" {1e3 * max(took):.1f} ms; at most {most:,} rows in memory,"
        f" {counters['spooled']:,} spooled, {counters['drained']:,} drained"
    )
    return outcome


async def writer_killed(setting: Setting) -> Outcome:
    """SIGKILL a recording process in the middle of writing, with the database there and away."""
    kills = 1 if setting.short else min(setting.kills, WRITER_KILLS_MAX)
    outcome = Outcome(fault=f"recording process SIGKILLed {2 * kills} times")
    chance = setting.random("writer")
    spool = setting.folder / "spool"
    accepted: set[str] = set()
    with PostgresServer(setting.folder / "postgres") as database:
        await migrated(database.url)
        for kill in range(2 * kills):
            away = kill % 2 == 1
            setting.say(f"kill {kill + 1} of {2 * kills}")
            if away:
                await asyncio.to_thread(database.kill)
            names = await _killed(database.url, spool, f"{kill}", chance.uniform(0.5, 2.5))
            for name in names:
                accepted |= ids(name)
            if away:
                await asyncio.to_thread(database.start)
        recorder = Recorder(database.url, spool=spool)
        left = recorder.counters()["waiting"]
        flushed = await asyncio.to_thread(recorder.flush, FLUSH_S_MAX)
        await asyncio.to_thread(recorder.close)
        counters = recorder.counters()
        found = await rows(database.url)
    outcome.count(accepted, found)
    outcome.expect(flushed, "the next process did not write what was left")
    outcome.expect(left > 0, "no kill left anything behind: the load was too small")
    outcome.expect(counters["damaged"] <= 2 * kills, f"{counters['damaged']} lines were damaged")
    outcome.notes = (
        f"accepted: put_durable() was done; {left:,} records were left on disk and written by the"
        f" next process; half of the kills while the database was away"
    )
    return outcome


async def _killed(url: str, spool: Path, name: str, after_s: float) -> list[str]:
    """Run a recording process, kill it after its first order; return what it said is safe."""
    writer = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.faults.recording", url, str(spool), name,
        cwd=ROOT, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert writer.stdout is not None
    told: list[str] = []

    async def listen(stream: asyncio.StreamReader) -> None:
        # A line that the kill cut short names no order.
        told.extend([line.decode().strip() async for line in stream if line.endswith(b"\n")])

    first = await asyncio.wait_for(writer.stdout.readline(), 60)
    told.append(first.decode().strip())
    listening = asyncio.create_task(listen(writer.stdout))
    await asyncio.sleep(after_s)
    with contextlib.suppress(ProcessLookupError):
        writer.kill()
    await writer.wait()
    await listening
    return told

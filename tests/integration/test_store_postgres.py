"""What only PostgreSQL does: roles, partitions, a pooler in between, and going away."""

import asyncio
import logging
import secrets
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from tests.support.pgbouncer import pooling
from tests.support.private_servers import running, server_folder
from tests.support.proxy import Proxy
from tests.support.records import fill, interaction, order, signal, tool_call
from tests.support.stores import exported, within

from qbtc.errors import InputError, StoreError, StoreUnavailable
from qbtc.stack.servers import PostgresServer
from qbtc.store import Store, open_store, postgres
from qbtc.store.postgres import through_pooler
from qbtc.store.recorder import Recorder
from qbtc.store.tables import TABLES

WAIT_S = 60.0
PASSWORD = "canary-7c1f"
SUPABASE = ("anon", "authenticated", "service_role")


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A server of this file's own, because roles belong to a whole server."""
    with server_folder() as folder, running(PostgresServer(folder / "pg", fsync=False)) as server:
        yield server


@pytest.fixture
def admin(server: PostgresServer) -> Iterator[str]:
    """An empty database; the URL's user may do everything."""
    if server.pid is None:
        server.start()
    name = f"db_{secrets.token_hex(4)}"
    sql(server.url, f"CREATE DATABASE {name}")
    yield server.url.removesuffix("/qbtc") + f"/{name}"
    sql(server.url, f"DROP DATABASE {name} WITH (FORCE)")


async def query(url: str, *statements: str) -> list[Any]:
    """Run statements; return the rows of the last."""
    connection = await asyncpg.connect(url)
    try:
        for statement in statements[:-1]:
            await connection.execute(statement)
        return [tuple(row) for row in await connection.fetch(statements[-1])]
    finally:
        await connection.close()


def sql(url: str, *statements: str) -> list[Any]:
    return asyncio.run(query(url, *statements))


def role(url: str, name: str, options: str = "LOGIN") -> str:
    """Make a role; return the database's URL as this role."""
    sql(
        url,
        f"DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{name}') THEN"
        f" CREATE ROLE {name} {options} PASSWORD '{PASSWORD}'; END IF; END $$",
    )
    parts = urlsplit(url)
    return f"postgresql://{name}:{PASSWORD}@{parts.hostname}:{parts.port}{parts.path}"


async def nothing(_: Store) -> None:
    pass


async def children(url: str, table: str) -> set[str]:
    rows = await query(
        url,
        "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
        f" WHERE i.inhparent = 'qbtc.{table}'::regclass",
    )
    return {name for (name,) in rows}


# Roles


def test_supabases_roles_see_nothing_but_for_the_service_role(admin: str) -> None:
    urls = {name: role(admin, name) for name in SUPABASE}

    async def write(store: Store) -> None:
        await store.write([signal(), order(), fill(), interaction()])

    within(admin, write)
    unguarded = (
        "SELECT relname FROM pg_class WHERE relnamespace = 'qbtc'::regnamespace"
        " AND relkind IN ('r', 'p') AND NOT (relrowsecurity AND relforcerowsecurity)"
    )
    assert sql(admin, unguarded) == []
    for name in ("anon", "authenticated"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            sql(urls[name], "SELECT * FROM qbtc.orders")
        # Also when somebody lets them in by mistake: row-level security still hides every row.
        sql(admin, f"GRANT USAGE ON SCHEMA qbtc TO {name}", "SELECT 1")
        for table in (*TABLES, "interactions_default", f"interactions_{month(0)}"):
            sql(admin, f"GRANT SELECT, INSERT ON qbtc.{table} TO {name}", "SELECT 1")
            assert sql(urls[name], f"SELECT * FROM qbtc.{table}") == []
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
            sql(urls[name], "INSERT INTO qbtc.processed_messages VALUES ('a', 'b', 1)")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            sql(urls[name], f"SELECT qbtc.allow('{name}')")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            sql(urls[name], "SELECT qbtc.make_partitions('signals', 0, 0)")

    async def serve() -> None:
        store = await open_store(urls["service_role"])
        try:
            # It needs no right to make a table for a month that is new.
            assert await store.write_once(
                "m", consumer="c", records=[signal(5, ts_init=past(2)), fill(5)]
            )
            await store.write([order(sequence=3, status="FILLED")])
            (row,) = await store.trail(order_id="order-0")
            assert (row["status"], row["trade_id"]) == ("FILLED", "trade-0")
            # Forgetting is the owner's.
            with pytest.raises(StoreError, match="owner"):
                await store.retain(days=1)
        finally:
            await store.close()

    asyncio.run(serve())
    assert f"signals_{month(2)}" in asyncio.run(children(admin, "signals"))


def past(months: int) -> int:
    """A time some months ago, in the middle of the month."""
    now = datetime.now(UTC)
    index = now.year * 12 + now.month - 1 - months
    middle = datetime(index // 12, index % 12 + 1, 15, tzinfo=UTC)
    return int(middle.timestamp()) * 10**9


def month(months: int) -> str:
    return datetime.fromtimestamp(past(months) // 10**9, UTC).strftime("%Y_%m")


def test_a_plain_user_that_owns_its_database_does_everything(admin: str) -> None:
    url = role(admin, "plain")
    sql(admin, f"ALTER DATABASE {urlsplit(admin).path[1:]} OWNER TO plain", "SELECT 1")

    async def work(store: Store) -> None:
        await store.write([interaction(0, ts=past(9)), interaction(1, ts=past(0)), order()])
        assert len(await exported(store, "interactions")) == 2
        assert await store.retain(days=90) == 1
        assert len(await exported(store, "orders")) == 1

    within(url, work)
    assert asyncio.run(children(admin, "interactions")) == {
        "interactions_default",
        f"interactions_{month(0)}",
        f"interactions_{month(-1)}",
    }


def test_a_schema_that_an_administrator_made_is_used(admin: str) -> None:
    url = role(admin, "guest")
    sql(admin, "CREATE SCHEMA qbtc AUTHORIZATION guest", "SELECT 1")
    within(url, nothing)
    assert sql(url, "SELECT count(*) FROM qbtc.orders") == [(0,)]


def test_who_may_not_use_the_tables_is_told_what_to_ask_for(admin: str) -> None:
    within(admin, nothing)
    url = role(admin, "stranger")
    with pytest.raises(StoreError, match=r"SELECT qbtc\.allow\('role'\)"):
        asyncio.run(open_store(url))
    sql(admin, "SELECT qbtc.allow('stranger')")

    async def work(store: Store) -> None:
        assert await exported(store, "fills") == []

    within(url, work)


# Migrations


def test_tables_that_are_missing_are_named_with_the_command_that_makes_them(admin: str) -> None:
    with pytest.raises(StoreError, match="has no tables of QBTC yet; run: qbtc db migrate"):
        asyncio.run(open_store(admin))
    within(admin, nothing)
    asyncio.run(close(admin))


async def close(url: str) -> None:
    await (await open_store(url)).close()


def test_a_commit_that_carries_orders_is_on_disk_whatever_the_servers_default(admin: str) -> None:
    sql(
        admin,
        f"ALTER DATABASE {urlsplit(admin).path[1:]} SET synchronous_commit = off",
        "SELECT 1",
    )
    within(admin, nothing)
    # The table says which setting its rows were written under.
    sql(
        admin,
        "ALTER TABLE qbtc.fills ADD setting text DEFAULT current_setting('synchronous_commit')",
        "ALTER TABLE qbtc.tool_calls ADD setting text"
        " DEFAULT current_setting('synchronous_commit')",
        "SELECT 1",
    )

    async def work(store: Store) -> None:
        await store.write([tool_call()])
        await store.write([fill()])

    within(admin, work)
    assert sql(admin, "SELECT setting FROM qbtc.fills") == [("on",)]
    assert sql(admin, "SELECT setting FROM qbtc.tool_calls") == [("off",)]


# Partitions


def test_a_month_gets_its_partition_when_it_is_met_and_loses_it_by_retention(admin: str) -> None:
    async def work(store: Store) -> None:
        await store.write([signal(n, ts_init=past(n)) for n in range(6)])
        for number in range(6):
            await store.write([signal(number, ts_init=past(number))])
        assert {f"signals_{month(0)}", f"signals_{month(5)}"} <= await children(admin, "signals")
        await store.write([signal(9, ts_init=1)])
        gone = await store.retain(days=95)
        # Whole months only, so it depends on today's; what no clock shows goes too.
        assert gone in (3, 4)
        assert len(await exported(store, "signals")) == 7 - gone
        assert f"signals_{month(5)}" not in await children(admin, "signals")
        await store.write([signal(5, ts_init=past(5))])
        assert f"signals_{month(5)}" in await children(admin, "signals")

    within(admin, work)


def test_rows_of_any_time_find_a_place(admin: str) -> None:
    async def work(store: Store) -> None:
        times = [-(2**63), -1, 0, 2**62, 2**63 - 1, past(-20), past(200), past(0)]
        await store.write([interaction(n, ts=ts) for n, ts in enumerate(times)])
        assert [row["ts"] for row in await exported(store, "interactions")] == sorted(times)
        assert len(await children(admin, "interactions")) < 10

    within(admin, work)


def test_a_month_whose_rows_came_to_the_default_partition_first_stays_there(admin: str) -> None:
    async def work(store: Store) -> None:
        connection = await asyncpg.connect(admin)
        await connection.execute(
            "INSERT INTO qbtc.tool_calls (call_id, request_id, ts, name)"
            f" VALUES ('a', 'b', {past(3)}, 'c')"
        )
        await connection.close()
        await store.write([tool_call(1, ts=past(3))])
        assert len(await exported(store, "tool_calls")) == 2
        assert f"tool_calls_{month(3)}" not in await children(admin, "tool_calls")

    within(admin, work)


def test_many_processes_that_meet_a_month_at_once_make_one_partition(admin: str) -> None:
    async def work(store: Store) -> None:
        others = [await open_store(admin) for _ in range(5)]
        try:
            await asyncio.gather(
                *(
                    one.write(
                        [
                            row
                            for months in range(4, 8)
                            for row in (
                                signal(n, ts_init=past(months)),
                                interaction(n, ts=past(months)),
                            )
                        ]
                    )
                    for n, one in enumerate([store, *others])
                )
            )
        finally:
            for one in others:
                await one.close()
        assert len(await exported(store, "signals")) == 6 * 4
        assert f"signals_{month(7)}" in await children(admin, "signals")

    within(admin, work)


# A pooler of transactions in between


@pytest.mark.parametrize(
    ("url", "plain", "pooled"),
    [
        ("postgresql://a@h:5432/d", "postgresql://a@h:5432/d", False),
        ("postgresql://a:p%40@h:6543/d", "postgresql://a:p%40@h:6543/d", True),
        ("postgresql://a@h/d?pgbouncer=true", "postgresql://a@h/d", True),
        ("postgresql://a@h/d?pool_mode=session", "postgresql://a@h/d", False),
        (
            "postgresql://a@h/d?sslmode=require&pool_mode=transaction",
            "postgresql://a@h/d?sslmode=require",
            True,
        ),
    ],
)
def test_a_pooler_is_known_by_its_url(url: str, plain: str, pooled: bool) -> None:
    assert through_pooler(url) == (plain, pooled)


def test_through_a_pooler_of_transactions_everything_works_as_without(admin: str) -> None:
    """More clients at once than it has connections to the server."""

    async def go(url: str) -> None:
        stores = await asyncio.gather(*(open_store(url, ready=False) for _ in range(6)))
        try:
            await asyncio.gather(*(store.migrate() for store in stores))
            await asyncio.gather(
                *(
                    stores[number % 6].write(
                        [
                            fill(number),
                            order(0, sequence=number),
                            signal(number),
                            interaction(number),
                        ]
                    )
                    for number in range(300)
                ),
                *(exported(stores[number % 6], "fills") for number in range(12)),
                *(stores[number % 6].trail(run_id="run-1") for number in range(12)),
            )
            done = await asyncio.gather(
                *(
                    stores[number % 6].write_once("m", consumer="c", records=[fill(1000 + number)])
                    for number in range(12)
                )
            )
            assert sum(done) == 1
            assert len(await exported(stores[0], "fills")) == 301
            (last,) = await exported(stores[1], "orders")
            assert last["sequence"] == 299
            assert await stores[2].retain(days=30) == 0
        finally:
            for store in stores:
                await store.close()

    with server_folder() as folder, pooling(admin, folder) as url:
        asyncio.run(go(url))


# Away


def until_away(recorder: Recorder) -> None:
    end = time.monotonic() + WAIT_S
    while recorder.problem() is None:
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_server_that_is_killed_is_away_and_is_there_again_by_itself(
    server: PostgresServer, admin: str
) -> None:
    async def work(store: Store) -> None:
        await store.write([fill(0)])
        await asyncio.to_thread(server.kill)
        try:
            with pytest.raises(StoreUnavailable):
                await store.write([fill(1)])
            assert "does not answer" in str(await store.problem())
            with pytest.raises(StoreUnavailable):
                await open_store(admin)
        finally:
            await asyncio.to_thread(server.start)
        await store.write([fill(1)])
        assert await store.problem() is None
        assert len(await exported(store, "fills")) == 2

    within(admin, work)


def test_records_wait_while_the_server_is_away_and_none_is_lost_or_doubled(
    server: PostgresServer, admin: str, tmp_path: Path
) -> None:
    within(admin, nothing)
    recorder = Recorder(admin, spool=tmp_path / "spool")
    futures = []
    for number in range(3000):
        if number == 1000:
            assert recorder.flush(WAIT_S)
            server.kill()
        if number == 2000:
            until_away(recorder)
            server.start()
        recorder.put(interaction(number))
        futures.append(recorder.put_durable(fill(number)))
        if number % 100 == 99:
            assert futures[-1].exception(WAIT_S) is None
    assert all(future.exception(WAIT_S) is None for future in futures)
    assert recorder.flush(WAIT_S)
    assert recorder.problem() is None
    assert recorder.counters()["dropped"] == 0
    recorder.close()

    async def work(store: Store) -> None:
        assert len(await exported(store, "fills")) == 3000
        assert len(await exported(store, "interactions")) == 3000

    within(admin, work)


def test_a_store_that_is_closed_in_the_middle_of_its_work_leaves_nothing_running(
    admin: str,
) -> None:
    async def write_and_leave() -> None:
        blocker = await asyncpg.connect(admin)
        try:
            await blocker.execute("BEGIN; LOCK TABLE qbtc.processed_messages")
            store = await open_store(admin)
            writing = asyncio.create_task(store.write_once("a", consumer="b"))
            async with asyncio.timeout(WAIT_S):
                waits = "SELECT count(*) FROM pg_locks WHERE NOT granted"
                while not await blocker.fetchval(waits):  # noqa: ASYNC110 - a server has no event
                    await asyncio.sleep(0.01)
            writing.cancel()
            await asyncio.wait({writing})
            await asyncio.sleep(0)
            await store.close()
            assert asyncio.all_tasks() == {asyncio.current_task()}
        finally:
            await blocker.close()

    within(admin, nothing)
    asyncio.run(write_and_leave())


@pytest.mark.parametrize("fault", ["stall", "half_open"])
def test_a_connection_that_falls_silent_is_given_up_and_nothing_is_lost(
    admin: str, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "STATEMENT_S", 2.0)
    monkeypatch.setattr(postgres, "CONNECT_S", 2.0)
    within(admin, nothing)
    with Proxy(admin) as proxy:
        recorder = Recorder(proxy.url, spool=tmp_path / "spool")
        recorder.put(fill(0))
        assert recorder.flush(WAIT_S)
        getattr(proxy, fault)()
        if fault == "half_open":
            proxy.cut()
        # Acknowledged, because it is on the disk here.
        assert recorder.put_durable(fill(1)).exception(WAIT_S) is None
        until_away(recorder)
        assert "does not answer" in str(recorder.problem())
        proxy.resume()
        assert recorder.flush(WAIT_S)
        recorder.close()

    async def work(store: Store) -> None:
        assert len(await exported(store, "fills")) == 2

    within(admin, work)


def test_no_password_is_shown_whatever_goes_wrong(
    admin: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    role(admin, "canary")
    parts = urlsplit(admin)
    host = f"{parts.hostname}:{parts.port}"
    shown = []
    for url in (
        f"postgresql://canary:{PASSWORD}@{host}{parts.path}",  # No tables.
        f"postgresql://canary:{PASSWORD}x@{host}{parts.path}",  # Not the password.
        f"postgresql://canary:{PASSWORD}@{host}/nonesuch",
        f"postgresql://canary:{PASSWORD}@127.0.0.1:1{parts.path}",
        f"postgresql://canary:{PASSWORD}@127.0.0.1:{PASSWORD}/",
        f"postgresql://canary:{PASSWORD}@{host}{parts.path}?sslmode={PASSWORD[:3]}",
        f"mysql://canary:{PASSWORD}@{host}",
        f"canary:{PASSWORD}@{host}",
    ):
        with pytest.raises((StoreError, InputError)) as error:
            asyncio.run(open_store(url))
        shown.append(str(error.value))
        recorder = Recorder(url, spool=tmp_path / "spool")
        recorder.put(fill())
        recorder.flush(0.3)
        shown.append(str(recorder.problem()))
        recorder.close(timeout_s=0.1)
    assert "password authentication failed" in "".join(shown)
    assert 'database "nonesuch" does not exist' in "".join(shown)
    assert PASSWORD not in "".join(shown)
    assert PASSWORD not in caplog.text

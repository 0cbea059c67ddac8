"""Records in PostgreSQL 15 or newer, also Supabase's, also through a transaction pooler.

Every statement is part of a transaction and every name has its schema, so nothing depends on the
state of a session. Behind a transaction pooler no statement is kept prepared.
"""

import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import asyncpg

from qbtc.errors import InputError, StoreError
from qbtc.messages.envelope import Message, rfc3339
from qbtc.store import reading
from qbtc.store.migrations import known, pending, refuse_unready, states
from qbtc.store.opening import shown
from qbtc.store.postgres_errors import Locked, refusal
from qbtc.store.protocol import DAY_NS, MARKS_DAYS_MIN, Migrated, Table
from qbtc.store.records import Record, Snapshot
from qbtc.store.tables import TABLES, Kind, Spec, by_table
from qbtc.store.values import clean, columns

__all__ = ["PostgresStore", "through_pooler"]

CONNECT_S = 10.0
STATEMENT_S = 30.0
"""After this a server that does not answer is taken to be away."""
MIGRATION_S = 600.0
CONNECTIONS_MAX = 4
POOLER_PORT = 6543
"""Supabase's port for transaction pooling."""
CONFLICTS_MAX = 5
"""Tries of a transaction that the server ended in favour of another."""
PAGE_ROWS = 1000
FIRST_DAY = 16_436
"""Days before it, 2015-01-01, have no partition of their own."""
LOCK_S = 5

type _Connection = Any
"""Of asyncpg, which has no types."""

_MIGRATION_LOCK = 0x71627463_0001
_MIGRATIONS_TABLE = """
CREATE TABLE qbtc.migrations (
    number integer PRIMARY KEY,
    name text NOT NULL,
    sha256 text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)
"""

_ARRAYS: dict[Kind, str] = {
    "key": "text[]",
    "text": "text[]",
    "int": "bigint[]",
    "real": "double precision[]",
    "bool": "boolean[]",
    "decimal": "text[]",
    "json": "text[]",
    "bytes": "bytea[]",
}
_CASTS: dict[Kind, str] = {"decimal": "::numeric", "json": "::json"}


def through_pooler(url: str) -> tuple[str, bool]:
    """Return a URL without what only poolers understand, and whether it leads to one.

    It does by its port, 6543, or where it says ``pgbouncer=true`` or ``pool_mode=transaction``.
    """
    parts = urlsplit(url)
    kept = []
    pooled = parts.port == POOLER_PORT
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name in ("pgbouncer", "pool_mode"):
            pooled = pooled or value.lower() in ("true", "1", "transaction")
        else:
            kept.append((name, value))
    return urlunsplit(parts._replace(query=urlencode(kept))), pooled


class PostgresStore:
    """Records in one database."""

    def __init__(self, pool: Any, where: str, *, pooled: bool) -> None:
        self._pool = pool
        self._where = where
        self._pooled = pooled
        self._begin_durable = "BEGIN"
        self._months: set[tuple[str, int]] = set()

    @classmethod
    async def open(cls, url: str, *, ready: bool) -> "PostgresStore":
        """Connect; see :func:`~qbtc.store.open_store`."""
        where = shown(url)
        try:
            plain, pooled = through_pooler(url)
            pool = asyncpg.create_pool(
                plain,
                # No floor: to keep one, the pool connects in a task of its own, also while the
                # store is being closed, and would leave that connection open.
                min_size=0,
                init_size=1,
                max_size=CONNECTIONS_MAX,
                timeout=CONNECT_S,
                command_timeout=STATEMENT_S,
                statement_cache_size=0 if pooled else 100,
                reset=_nothing,
                server_settings={"application_name": "qbtc"},
            )
        except ValueError:
            raise InputError("not a database URL; write postgresql://user@host/database") from None
        store = cls(pool, where, pooled=pooled)
        try:
            try:
                await pool
            except ValueError as error:
                raise InputError(f"{where}: {error}") from None
            except Exception as error:
                raise store._refusal(error) from error
            await store._look(ready)
        except BaseException:
            pool.terminate()
            raise
        return store

    async def _look(self, ready: bool) -> None:
        async def look(connection: _Connection) -> list[Migrated]:
            # A commit must be on the disk where it carries orders, whatever the server's default.
            if await connection.fetchval("SHOW synchronous_commit") == "off":
                self._begin_durable = "BEGIN; SET LOCAL synchronous_commit = on"
            return await _applied(connection)

        applied = await self._transaction(look, begin="BEGIN READ ONLY")
        if ready:
            refuse_unready(known("postgres"), applied, where=self._where)

    async def migrate(self) -> Sequence[Migrated]:
        """Bring the tables up to date, and make this month's partitions and the next."""
        done: list[Migrated] = []
        while (state := await self._transaction(self._migrate_one)) is not None:
            done.append(state)
        now = time.time_ns()
        for spec in TABLES.values():
            if spec.partitioned:
                await self._make_partitions(spec, now, now + 31 * DAY_NS)
        return done

    async def status(self) -> Sequence[Migrated]:
        """Every migration of this version and of the database."""
        applied = await self._transaction(_applied, begin="BEGIN READ ONLY")
        return states(known("postgres"), applied)

    async def write(self, records: Sequence[Record]) -> None:
        """Write rows in one transaction; see :class:`~qbtc.store.protocol.Store`."""
        tables = _columns(records)
        if not tables:
            return
        await self._partitions_for(tables)

        async def write(connection: _Connection) -> None:
            for spec, values in tables:
                await connection.execute(_INSERTS[spec.name], *values)

        begin = self._begin_durable if any(spec.durable for spec, _ in tables) else "BEGIN"
        if len(tables) == 1 and begin == "BEGIN" and not self._pooled:
            begin = ""  # A statement is a transaction of its own, in one round trip for three.
        await self._transaction(write, begin=begin)

    async def write_once(
        self, message_id: str, *, consumer: str, records: Sequence[Record] = ()
    ) -> bool:
        """Write the effect of a message with its mark, unless the mark is there."""
        tables = _columns(records)
        await self._partitions_for(tables)
        mark = ([clean(consumer)], [clean(message_id)], [time.time_ns()])

        async def write(connection: _Connection) -> bool:
            # Another transaction that writes the same mark is waited for here.
            if await connection.execute(_INSERTS["processed_messages"], *mark) == "INSERT 0 0":
                return False
            for spec, values in tables:
                await connection.execute(_INSERTS[spec.name], *values)
            return True

        return await self._transaction(write, begin=self._begin_durable)

    async def processed(self, message_id: str, *, consumer: str) -> bool:
        """Whether a message's mark is there."""
        found = await self._fetch(
            "SELECT 1 FROM qbtc.processed_messages WHERE consumer = $1 AND message_id = $2",
            clean(consumer),
            clean(message_id),
        )
        return bool(found)

    async def outbox(self, *, limit: int = 256) -> Sequence[Message]:
        """Messages that wait to be published, the oldest first."""
        waiting = await self._fetch(
            "SELECT id, message FROM qbtc.outbox WHERE sent_ts IS NULL AND refused IS NULL"
            " ORDER BY place LIMIT $1",
            limit,
        )
        return await reading.messages(self, [(row["id"], row["message"]) for row in waiting])

    async def outbox_sent(self, ids: Sequence[str]) -> None:
        """Note that messages were published."""
        await self._execute(
            "UPDATE qbtc.outbox SET sent_ts = $1 WHERE id = ANY ($2::text[])",
            time.time_ns(),
            list(ids),
        )

    async def outbox_refused(self, id: str, *, reason: str) -> None:
        """Note that a message can never be published."""
        await self._execute("UPDATE qbtc.outbox SET refused = $1 WHERE id = $2", clean(reason), id)

    async def snapshot(self, name: str, *, version: int | None = None) -> Snapshot | None:
        """Return a snapshot; without a version the newest."""
        found = await self._fetch(
            "SELECT name, version, ts, format, sha256, body FROM qbtc.snapshots"
            " WHERE name = $1 AND version = coalesce($2, version) ORDER BY version DESC LIMIT 1",
            clean(name),
            version,
        )
        return reading.snapshot(dict(found[0])) if found else None

    async def trail(
        self, *, order_id: str | None = None, run_id: str | None = None
    ) -> Sequence[dict[str, Any]]:
        """Return signal, order and fill side by side, one row for each fill or unfilled order."""
        found = await self._fetch(
            reading.trail_sql(
                schema="qbtc.",
                signal="LATERAL (SELECT * FROM qbtc.signals WHERE signal_id = o.signal_id"
                " ORDER BY run_id = o.run_id DESC LIMIT 1) s ON true",
                text="{}::text",
                order="$1::text",
                run="$2::text",
            ),
            order_id,
            run_id,
        )
        return [dict(row) for row in found]

    async def export(
        self, table: Table, *, start_ns: int | None = None, end_ns: int | None = None
    ) -> AsyncGenerator[dict[str, Any]]:
        """Yield the rows of a table, all of one moment, in the order of their time."""
        spec = reading.spec_named(table)
        where, arguments = reading.between(spec, start_ns, end_ns, place="${}")
        shape = ", ".join(
            f"{name}::text AS {name}" if kind == "decimal" else name
            for name, kind in spec.columns.items()
        )
        order = ", ".join((spec.time, *spec.key)) if table != "outbox" else "ts, place"
        query = f"SELECT {shape} FROM qbtc.{table}{where} ORDER BY {order}"
        # The driver remembers what a statement returns by its text: a name for each export.
        cursor = f"export_{time.monotonic_ns()}"
        async with self._connection() as connection:
            try:
                await connection.execute("BEGIN READ ONLY")
                await connection.execute(f"DECLARE {cursor} CURSOR FOR {query}", *arguments)
                while page := await connection.fetch(f"FETCH {PAGE_ROWS} FROM {cursor}"):
                    for row in page:
                        yield reading.exported(spec, dict(row))
                await connection.execute("COMMIT")
            except asyncpg.PostgresError as error:
                raise self._refusal(error) from error
            finally:
                if not connection.is_closed() and connection.is_in_transaction():
                    # The reader left early, or something failed.
                    connection.terminate()

    async def retain(self, *, days: int) -> int:
        """Drop whole months, and marks and sent messages, that are old; only the owner can."""
        now = time.time_ns()
        end = _month_start(now - days * DAY_NS)
        gone = 0
        for spec in TABLES.values():
            if spec.partitioned:
                gone += await self._transaction(lambda c, s=spec: _forget(c, s, end))  # type: ignore[misc]
        marks = now - max(days, MARKS_DAYS_MIN) * DAY_NS
        for statement in (
            "DELETE FROM qbtc.processed_messages WHERE ts < $1",
            "DELETE FROM qbtc.outbox WHERE sent_ts < $1 OR (refused IS NOT NULL AND ts < $1)",
        ):
            gone += int((await self._execute(statement, marks)).split()[-1])
        self._months.clear()
        return gone

    async def problem(self) -> str | None:
        """Why the database does not answer; None: all is well."""
        try:
            await self._fetch("SELECT 1 FROM qbtc.migrations LIMIT 1")
        except StoreError as error:
            return str(error)
        return None

    async def close(self) -> None:
        """Let go of the database."""
        # Not a polite close: that waits for a server that may be away.
        self._pool.terminate()

    async def _migrate_one(self, connection: _Connection) -> Migrated | None:
        await connection.execute("SELECT pg_advisory_xact_lock($1)", _MIGRATION_LOCK)
        files = known("postgres")
        todo = pending(files, await _applied(connection), where=self._where)
        if not todo:
            return None
        migration = todo[0]
        if not await connection.fetchval("SELECT to_regnamespace('qbtc') IS NOT NULL"):
            await connection.execute("CREATE SCHEMA qbtc")
        if not await connection.fetchval("SELECT to_regclass('qbtc.migrations') IS NOT NULL"):
            await connection.execute(_MIGRATIONS_TABLE)
        await connection.execute(migration.sql, timeout=MIGRATION_S)
        at = await connection.fetchval(
            "INSERT INTO qbtc.migrations (number, name, sha256) VALUES ($1, $2, $3)"
            " RETURNING applied_at",
            migration.number,
            migration.name,
            migration.sha256,
        )
        return Migrated(
            number=migration.number,
            name=migration.name,
            sha256=migration.sha256,
            applied_at=rfc3339(at),
        )

    async def _partitions_for(self, tables: list[tuple[Spec, list[Sequence[Any]]]]) -> None:
        """Make the partitions of months that this process meets for the first time."""
        for spec, values in tables:
            if spec.partitioned:
                times = values[list(spec.columns).index(spec.time)]
                days = {ts // DAY_NS for ts in times}
                for month in {_month_start(day * DAY_NS) for day in days if day >= FIRST_DAY}:
                    if (spec.name, month) not in self._months:
                        await self._make_partitions(spec, month, month)
                        self._months.add((spec.name, month))

    async def _make_partitions(self, spec: Spec, first_ns: int, last_ns: int) -> None:
        # Where somebody reads the table for long, the rows go to the default partition.
        with contextlib.suppress(Locked):
            # A transaction of its own: it must not hold rows while it waits for the table.
            await self._execute(
                "SELECT qbtc.make_partitions($1, $2, $3)",
                spec.name,
                first_ns,
                last_ns,
                begin=f"BEGIN; SET LOCAL lock_timeout = '{LOCK_S}s'",
            )

    async def _execute(self, statement: str, *arguments: Any, begin: str = "BEGIN") -> str:
        return await self._transaction(lambda c: c.execute(statement, *arguments), begin=begin)

    async def _fetch(self, query: str, *arguments: Any) -> list[Any]:
        return await self._transaction(
            lambda c: c.fetch(query, *arguments), begin="BEGIN READ ONLY"
        )

    async def _transaction[T](
        self, work: Callable[[_Connection], Awaitable[T]], *, begin: str = "BEGIN"
    ) -> T:
        for tries in range(1, CONFLICTS_MAX + 1):
            try:
                async with self._connection() as connection:
                    return await _within(connection, work, begin)
            except StoreError:
                raise
            except (asyncpg.DeadlockDetectedError, asyncpg.SerializationError) as error:
                if tries == CONFLICTS_MAX:
                    raise self._refusal(error) from error
            except Exception as error:
                raise self._refusal(error) from error
        raise AssertionError("unreachable")

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[_Connection]:
        try:
            connection = await self._pool.acquire(timeout=CONNECT_S)
        except Exception as error:
            raise self._refusal(error) from error
        try:
            yield connection
        finally:
            await self._pool.release(connection, timeout=CONNECT_S)

    def _refusal(self, error: Exception) -> StoreError:
        if isinstance(error, asyncpg.InterfaceError) and self._pool.is_closing():
            return StoreError(f"{self._where}: the store is closed")
        return refusal(error, self._where)


async def _nothing(_: Any) -> None:
    """Leave a connection as it is: no statement here changes its session."""


async def _within[T](
    connection: _Connection, work: Callable[[_Connection], Awaitable[T]], begin: str
) -> T:
    """Do work in a transaction; in none but the server's own where ``begin`` is empty."""
    try:
        if begin:
            await connection.execute(begin)
        result = await work(connection)
        if begin:
            await connection.execute("COMMIT")
    except (asyncpg.PostgresError, StoreError):
        if connection.is_in_transaction():
            await connection.execute("ROLLBACK", timeout=CONNECT_S)
        raise
    except BaseException:
        # No answer, or nobody waits for it any more: what the connection is at is not known.
        connection.terminate()
        raise
    return result


async def _applied(connection: _Connection) -> list[Migrated]:
    if not await connection.fetchval(
        "SELECT EXISTS (SELECT FROM pg_class WHERE relname = 'migrations'"
        " AND relnamespace = to_regnamespace('qbtc'))"
    ):
        return []
    found = await connection.fetch("SELECT number, name, sha256, applied_at FROM qbtc.migrations")
    return [
        Migrated(
            number=row["number"],
            name=row["name"],
            sha256=row["sha256"],
            applied_at=rfc3339(row["applied_at"]),
        )
        for row in found
    ]


async def _forget(connection: _Connection, spec: Spec, end_ns: int) -> int:
    """Drop the partitions of a table before a time, and what the default one has before it."""
    # Through the parent: its partitions let nobody read them directly.
    gone = await connection.fetchval(
        f"SELECT count(*) FROM qbtc.{spec.name} WHERE {spec.time} < $1", end_ns
    )
    children = await connection.fetch(
        "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
        " WHERE i.inhparent = to_regclass($1)",
        f"qbtc.{spec.name}",
    )
    await connection.execute(f"SET LOCAL lock_timeout = '{LOCK_S}s'")
    for name in sorted(child["relname"] for child in children):
        suffix = name.removeprefix(f"{spec.name}_")
        if suffix != "default" and _ns(datetime.strptime(suffix + "+0000", "%Y_%m%z")) < end_ns:
            await connection.execute(f'DROP TABLE qbtc."{name}"')
    await connection.execute(f"DELETE FROM qbtc.{spec.name} WHERE {spec.time} < $1", end_ns)
    return int(gone)


def _month_start(ts: int) -> int:
    moment = datetime.fromtimestamp(ts // 10**9, UTC)
    return _ns(moment.replace(day=1, hour=0, minute=0, second=0))


def _ns(moment: datetime) -> int:
    return int(moment.timestamp()) * 10**9


def _columns(records: Sequence[Record]) -> list[tuple[Spec, list[Sequence[Any]]]]:
    """Return each table's values by column."""
    return [(spec, columns(spec, group)) for spec, group in by_table(records)]


def _insert(spec: Spec) -> str:
    arrays = ", ".join(f"${n}::{_ARRAYS[kind]}" for n, kind in enumerate(spec.columns.values(), 1))
    names = ", ".join(spec.columns)
    values = ", ".join(f"row.{name}{_CASTS.get(kind, '')}" for name, kind in spec.columns.items())
    return (
        f"INSERT INTO qbtc.{spec.name} AS old ({names}) SELECT {values}"
        f" FROM unnest({arrays}) WITH ORDINALITY AS row ({names}, place_)"
        f" ORDER BY place_ ON CONFLICT ({', '.join(spec.key)}) {reading.on_conflict(spec)}"
    )


_INSERTS = {name: _insert(spec) for name, spec in TABLES.items()}

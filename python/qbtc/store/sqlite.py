"""Records in a SQLite file: the default, with no server.

One connection on one thread of its own. The log is written ahead (WAL), so readers of other
processes never wait; commits that carry orders, fills, outbox or marks reach the disk
(``synchronous=FULL``), the rest reach the operating system.
"""

import asyncio
import os
import sqlite3
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qbtc.errors import RecordRefused, StoreError, StoreUnavailable
from qbtc.messages.envelope import Message, rfc3339
from qbtc.store import reading
from qbtc.store.migrations import known, pending, states
from qbtc.store.protocol import DAY_NS, MARKS_DAYS_MIN, Migrated, Table
from qbtc.store.records import Record, Snapshot
from qbtc.store.tables import TABLES, Spec, by_table
from qbtc.store.values import clean, rows

__all__ = ["SqliteStore"]

BUSY_S = 10.0
"""For another process's write to end."""
BUSY_POLL_S = 0.01
PAGE_ROWS = 1000

_MIGRATIONS_TABLE = """
CREATE TABLE IF NOT EXISTS migrations (
    number INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    applied_at TEXT NOT NULL
) STRICT
"""


class SqliteStore:
    """Records in one file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="qbtc-sqlite")
        self._db: sqlite3.Connection | None = None
        self._full = False

    @classmethod
    async def open(cls, path: Path, *, migrate: bool = True) -> "SqliteStore":
        """Open or make a file and bring its tables up to date."""
        store = cls(path)
        try:
            await store._run(store._open)
            if migrate:
                await store.migrate()
        except BaseException:
            await store.close()
            raise
        return store

    async def migrate(self) -> Sequence[Migrated]:
        """Bring the tables up to date; return what was applied."""
        return await self._run(self._migrate)

    async def status(self) -> Sequence[Migrated]:
        """Every migration of this version and of the file."""
        return await self._run(lambda db: states(known("sqlite"), self._applied(db)))

    async def write(self, records: Sequence[Record]) -> None:
        """Write rows in one transaction; see :class:`~qbtc.store.protocol.Store`."""
        if records:
            await self._run(lambda db: self._write(db, records))

    async def write_once(
        self, message_id: str, *, consumer: str, records: Sequence[Record] = ()
    ) -> bool:
        """Write the effect of a message with its mark, unless the mark is there."""
        return await self._run(lambda db: self._write_once(db, message_id, consumer, records))

    async def processed(self, message_id: str, *, consumer: str) -> bool:
        """Whether a message's mark is there."""
        found = await self._fetch(
            "SELECT 1 FROM processed_messages WHERE consumer = ? AND message_id = ?",
            clean(consumer),
            clean(message_id),
        )
        return bool(found)

    async def outbox(self, *, limit: int = 256) -> Sequence[Message]:
        """Messages that wait to be published, the oldest first."""
        waiting = await self._fetch(
            "SELECT id, message FROM outbox WHERE sent_ts IS NULL AND refused IS NULL"
            " ORDER BY place LIMIT ?",
            limit,
        )
        return await reading.messages(self, [(row["id"], row["message"]) for row in waiting])

    async def outbox_sent(self, ids: Sequence[str]) -> None:
        """Note that messages were published."""
        now = time.time_ns()

        def go(db: sqlite3.Connection) -> None:
            with self._transaction(db):
                db.executemany(
                    "UPDATE outbox SET sent_ts = ? WHERE id = ?", [(now, id) for id in ids]
                )

        await self._run(go)

    async def outbox_refused(self, id: str, *, reason: str) -> None:
        """Note that a message can never be published."""

        def go(db: sqlite3.Connection) -> None:
            with self._transaction(db):
                db.execute("UPDATE outbox SET refused = ? WHERE id = ?", (clean(reason), id))

        await self._run(go)

    async def snapshot(self, name: str, *, version: int | None = None) -> Snapshot | None:
        """Return a snapshot; without a version the newest."""
        found = await self._fetch(
            "SELECT name, version, ts, format, sha256, body FROM snapshots"
            " WHERE name = ? AND version = coalesce(?, version) ORDER BY version DESC LIMIT 1",
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
                schema="",
                signal="signals s ON s.rowid = coalesce("
                "(SELECT rowid FROM signals WHERE signal_id = o.signal_id AND run_id = o.run_id"
                " LIMIT 1), (SELECT rowid FROM signals WHERE signal_id = o.signal_id LIMIT 1))",
                text="{}",
                order="?1",
                run="?2",
            ),
            order_id,
            run_id,
        )
        return [dict(row) for row in found]

    async def export(
        self, table: Table, *, start_ns: int | None = None, end_ns: int | None = None
    ) -> AsyncGenerator[dict[str, Any]]:
        """Yield the rows of a table in the order of their time."""
        spec = reading.spec_named(table)
        where, arguments = reading.between(spec, start_ns, end_ns, place="?")
        statement = (
            f"SELECT rowid AS place_, {', '.join(spec.columns)} FROM {table}{where}"
            f" {'AND' if where else 'WHERE'} ({spec.time}, rowid) > (?, ?)"
            f" ORDER BY {spec.time}, rowid LIMIT {PAGE_ROWS}"
        )
        # In pages, so that a long export holds up no write.
        last = (-(2**63), -(2**63))
        while page := await self._fetch(statement, *arguments, *last):
            last = (page[-1][spec.time], page[-1]["place_"])
            for row in page:
                values = dict(row)
                del values["place_"]
                yield reading.exported(spec, values)

    async def retain(self, *, days: int) -> int:
        """Delete what is older than some days; return how many rows went."""
        return await self._run(lambda db: self._retain(db, days))

    async def problem(self) -> str | None:
        """Why the file does not answer; None: all is well."""
        try:
            await self._fetch("SELECT number FROM migrations LIMIT 1")
        except StoreError as error:
            return str(error)
        return None

    async def close(self) -> None:
        """Let go of the file."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        def go() -> None:
            if self._db is not None:
                self._db.close()
                self._db = None

        try:
            self._thread.submit(go).result()
        except RuntimeError:
            return  # Closed before.
        self._thread.shutdown()

    # What follows runs on the store's own thread.

    def _open(self, _: Any) -> None:
        if not self._path.parent.is_dir():
            raise StoreError(
                f"{self._path}: its folder does not exist; make it, or write an absolute path as "
                "sqlite:////folder/file"
            )
        with self._errors():
            # Prompts and orders are the owner's alone; SQLite gives its log the same mode.
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._db = sqlite3.connect(self._path, timeout=BUSY_S, isolation_level=None)
            self._db.row_factory = sqlite3.Row
            _write_ahead(self._db)
            self._db.execute("PRAGMA synchronous = NORMAL")

    def _migrate(self, db: sqlite3.Connection) -> list[Migrated]:
        done: list[Migrated] = []
        files = known("sqlite")
        while todo := pending(files, self._applied(db), where=str(self._path)):
            with self._transaction(db, full=True):
                # Another process may have been first.
                todo = pending(files, self._applied(db), where=str(self._path))
                if not todo:
                    break
                migration = todo[0]
                db.execute(_MIGRATIONS_TABLE)
                for statement in _statements(migration.sql):
                    db.execute(statement)
                at = rfc3339(datetime.now(UTC))
                db.execute(
                    "INSERT INTO migrations VALUES (?, ?, ?, ?)",
                    (migration.number, migration.name, migration.sha256, at),
                )
            done.append(
                Migrated(
                    number=migration.number,
                    name=migration.name,
                    sha256=migration.sha256,
                    applied_at=at,
                )
            )
        return done

    def _applied(self, db: sqlite3.Connection) -> list[Migrated]:
        with self._errors():
            if not db.execute(
                "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'migrations'"
            ).fetchone():
                return []
            found = db.execute("SELECT number, name, sha256, applied_at FROM migrations")
            return [Migrated(**dict(row)) for row in found]

    def _write(self, db: sqlite3.Connection, records: Sequence[Record]) -> None:
        tables = [(spec, rows(spec, group)) for spec, group in by_table(records)]
        with self._transaction(db, full=any(spec.durable for spec, _ in tables)):
            for spec, group in tables:
                db.executemany(_insert(spec), group)

    def _write_once(
        self, db: sqlite3.Connection, message_id: str, consumer: str, records: Sequence[Record]
    ) -> bool:
        tables = [(spec, rows(spec, group)) for spec, group in by_table(records)]
        mark = (clean(consumer), clean(message_id), time.time_ns())
        with self._transaction(db, full=True):
            if not db.execute(_insert(TABLES["processed_messages"]), mark).rowcount:
                return False
            for spec, group in tables:
                db.executemany(_insert(spec), group)
        return True

    def _retain(self, db: sqlite3.Connection, days: int) -> int:
        now = time.time_ns()
        gone = 0
        with self._transaction(db):
            for spec in TABLES.values():
                if spec.partitioned:
                    statement = f"DELETE FROM {spec.name} WHERE {spec.time} < ?"
                    gone += db.execute(statement, (now - days * DAY_NS,)).rowcount
            marks = now - max(days, MARKS_DAYS_MIN) * DAY_NS
            gone += db.execute("DELETE FROM processed_messages WHERE ts < ?", (marks,)).rowcount
            gone += db.execute(
                "DELETE FROM outbox WHERE sent_ts < :end OR (refused IS NOT NULL AND ts < :end)",
                {"end": marks},
            ).rowcount
        return gone

    @contextmanager
    def _transaction(self, db: sqlite3.Connection, *, full: bool = False) -> Iterator[None]:
        with self._errors():
            if full != self._full:
                db.execute(f"PRAGMA synchronous = {'FULL' if full else 'NORMAL'}")
                self._full = full
            db.execute("BEGIN IMMEDIATE")
            try:
                yield
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.IntegrityError, sqlite3.DataError, OverflowError) as error:
            raise RecordRefused(f"{self._path}: {error}") from error
        except OSError as error:
            raise StoreError(f"{self._path}: {error.strerror or error}") from error
        except sqlite3.Error as error:
            code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
            text = f"{self._path}: {error}"
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise StoreUnavailable(f"{text}; another process is writing") from error
            if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
                raise StoreUnavailable(text) from error
            if code == sqlite3.SQLITE_NOTADB:
                raise StoreError(f"{self._path} is not a SQLite file; name another") from error
            if code == sqlite3.SQLITE_READONLY:
                raise StoreError(f"{self._path} cannot be written: {error}") from error
            raise StoreError(text) from error

    async def _fetch(self, statement: str, *arguments: Any) -> list[sqlite3.Row]:
        def go(db: sqlite3.Connection) -> list[sqlite3.Row]:
            with self._errors():
                return db.execute(statement, arguments).fetchall()

        return await self._run(go)

    async def _run[T](self, work: Callable[[sqlite3.Connection], T]) -> T:
        def go() -> T:
            # _open is the one call that comes before there is a connection.
            if self._db is None and work != self._open:
                raise StoreError(f"{self._path}: the store is closed")
            return work(self._db)  # type: ignore[arg-type]

        try:
            future = self._thread.submit(go)
        except RuntimeError:
            raise StoreError(f"{self._path}: the store is closed") from None
        return await asyncio.wrap_future(future)


def _write_ahead(db: sqlite3.Connection) -> None:
    """Switch to the log; SQLite itself does not wait where another process does so at once."""
    end = time.monotonic() + BUSY_S
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            busy = error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
            if not busy or time.monotonic() > end:
                raise
        time.sleep(BUSY_POLL_S)


def _insert(spec: Spec) -> str:
    columns = ", ".join(spec.columns)
    values = ", ".join("?" * len(spec.columns))
    return (
        f"INSERT INTO {spec.name} AS old ({columns}) VALUES ({values})"
        f" ON CONFLICT ({', '.join(spec.key)}) {reading.on_conflict(spec)}"
    )


def _statements(sql: str) -> Iterator[str]:
    """Cut a file into statements; ``executescript`` would end the transaction."""
    statement = ""
    for line in sql.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""

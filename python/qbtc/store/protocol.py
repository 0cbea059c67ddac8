"""What a store does."""

from collections.abc import AsyncGenerator, Sequence
from typing import Any, Protocol

import msgspec

from qbtc.messages.envelope import Message
from qbtc.store.records import Record, Snapshot

__all__ = ["DAY_NS", "MARKS_DAYS_MIN", "Migrated", "Store", "Table"]

DAY_NS = 86_400 * 10**9
MARKS_DAYS_MIN = 14
"""Marks and sent messages are kept this long at least, so that no copy comes after its mark."""

type Table = str
"""``interactions``, ``tool_calls``, ``signals``, ``orders``, ``order_events``, ``fills``,
``snapshots``, ``outbox``, ``processed_messages``."""


class Migrated(msgspec.Struct, frozen=True, kw_only=True):
    """One numbered migration, and whether this database has it."""

    number: int
    name: str
    sha256: str
    applied_at: str | None


class Store(Protocol):
    """Rows that last.

    Every method raises ``StoreUnavailable`` where the database is away, ``RecordRefused`` where it
    cannot hold a row, and ``StoreError`` where it refuses otherwise.
    """

    async def migrate(self) -> Sequence[Migrated]:
        """Bring the tables up to date; return what was applied. Two at a time do it once."""
        ...

    async def status(self) -> Sequence[Migrated]:
        """Every migration of this version, and of the database that this version does not know."""
        ...

    async def write(self, records: Sequence[Record]) -> None:
        """Write rows in one transaction; rows that are there stay.

        An order that is there moves on to a later ``sequence``, never back. On return orders, their
        events, fills, outbox and marks are on disk; the rest survives this process, and a loss of
        power only as far as the database says.
        """
        ...

    async def write_once(
        self, message_id: str, *, consumer: str, records: Sequence[Record] = ()
    ) -> bool:
        """Write the effect of a message in one transaction with a mark that it was done.

        False: a mark was there; nothing was written.
        """
        ...

    async def processed(self, message_id: str, *, consumer: str) -> bool:
        """Whether a message's mark is there."""
        ...

    async def outbox(self, *, limit: int = 256) -> Sequence[Message]:
        """Messages that wait to be published, the oldest first."""
        ...

    async def outbox_sent(self, ids: Sequence[str]) -> None:
        """Note that messages were published."""
        ...

    async def outbox_refused(self, id: str, *, reason: str) -> None:
        """Note that a message can never be published; it waits no more."""
        ...

    async def snapshot(self, name: str, *, version: int | None = None) -> Snapshot | None:
        """Return a snapshot; without a version the newest."""
        ...

    async def trail(
        self, *, order_id: str | None = None, run_id: str | None = None
    ) -> Sequence[dict[str, Any]]:
        """Return signal, order and fill side by side, one row for each fill or unfilled order."""
        ...

    def export(
        self, table: Table, *, start_ns: int | None = None, end_ns: int | None = None
    ) -> AsyncGenerator[dict[str, Any]]:
        """Yield the rows of a table in the order of their time."""
        ...

    async def retain(self, *, days: int) -> int:
        """Drop what is older than some days; return how many rows went.

        Of interactions, tool calls and signals, in whole months where the database has a partition
        for each, and of marks and sent messages after ``MARKS_DAYS_MIN``. Orders, their events,
        fills and snapshots are kept.
        """
        ...

    async def problem(self) -> str | None:
        """Why the database does not answer; None: all is well."""
        ...

    async def close(self) -> None:
        """Let go of the database."""
        ...

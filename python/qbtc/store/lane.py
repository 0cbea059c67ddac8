"""A recorder's lanes: records of one importance on their way to the database, in their order.

Each record is journaled to disk and kept in memory until it is written. When the database is away,
or memory is short, a lane *falls behind*: it forgets what is in memory and reads the journal until
that is empty again.
"""

import asyncio
import contextlib
import errno
import logging
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from pathlib import Path

from qbtc.errors import InputError, RecordRefused, StoreError
from qbtc.store.protocol import Store
from qbtc.store.records import (
    Interaction,
    OrderEventRecord,
    OutboxEntry,
    Record,
    Snapshot,
    ToolCallRecord,
)
from qbtc.store.spool import Journal, Place, write_line

__all__ = ["RETRY_S_MIN", "Item", "Lane", "Tally"]

BATCH_ROWS = 500
BATCH_BYTES = 4 * 1024 * 1024
BATCH_S = 0.1
"""Records that need not be in the database at once wait this long for company."""
RETRY_S_MIN = 0.2
RETRY_S_MAX = 5.0
REFUSED_BYTES_MAX = 16 * 1024 * 1024
ROW_BYTES = 512
"""What a record without contents is taken to weigh in memory."""
LOG_S = 10.0
"""Between two lines of the log about dropped records, or about a journal that cannot be written."""
DROPPED_S = 60.0
"""Dropped records are a problem for this long."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
"""What a disk says that would take a line if others were deleted."""

_log = logging.getLogger(__name__)


class Tally:
    """What a recorder counts, and what is wrong; for any thread."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(
            ("written", "spooled", "drained", "dropped", "refused", "damaged"), 0
        )
        self.away: str | None = None
        """Why the database does not take records."""
        self._dropped_at: float | None = None
        self._logged_at: dict[str, float] = {}
        self._lock = threading.Lock()

    def add(self, name: str, count: int) -> None:
        """Count."""
        with self._lock:
            self.counts[name] += count

    def dropped(self, count: int, why: str) -> None:
        """Count records that are lost, and say so now and then."""
        now = time.monotonic()
        with self._lock:
            self.counts["dropped"] += count
            self._dropped_at = now
            due = self._due("dropped", now)
        if due:
            _log.error("records are dropped: %s (%d so far)", why, self.counts["dropped"])

    def unwritable(self, error: OSError) -> None:
        """Say now and then that the disk does not take the journal."""
        with self._lock:
            due = self._due("unwritable", time.monotonic())
        if due:
            _log.error("the journal of records cannot be written: %s", error.strerror or error)

    def refused(self, error: Exception) -> None:
        """Count a record that can never be written."""
        self.add("refused", 1)
        _log.error("a record was refused for good: %s", error)

    def problem(self) -> str | None:
        """Why records do not reach the database; None: all is well."""
        if self.away is not None or self._dropped_at is None:
            return self.away
        lately = time.monotonic() - self._dropped_at < DROPPED_S
        return f"{self.counts['dropped']} records were dropped: no room" if lately else None

    def _due(self, line: str, now: float) -> bool:
        """Whether a line of the log is not too soon; it is then taken as written."""
        last = self._logged_at.get(line)
        if last is not None and now - last <= LOG_S:
            return False
        self._logged_at[line] = now
        return True


class Item:
    """A record on its way."""

    __slots__ = ("done", "line", "place", "record", "weight")

    def __init__(self, record: Record, done: Future[None] | None) -> None:
        self.record = record
        self.done = done
        self.line = write_line(record) if _has_contents(record) else None
        """For the journal; of small records it is made on the recorder's thread."""
        self.weight = ROW_BYTES + len(self.line or b"")
        self.place: Place | None = None
        """After its line in the journal; None: the journal did not take it."""

    def finish(self, error: Exception | None = None) -> None:
        """Tell who waits for it."""
        if self.done is None:
            return
        with contextlib.suppress(InvalidStateError):  # Whoever waited has left.
            if error is None:
                self.done.set_result(None)
            else:
                self.done.set_exception(error)
        self.done = None


class Lane:
    """Records of one importance, in the order they were put: journal, then database."""

    def __init__(
        self,
        journal: Journal,
        tally: Tally,
        *,
        durable: bool,
        rows_max: int,
        bytes_max: int,
        refused: Path,
        store: Callable[[], Awaitable[Store]],
        room: Callable[[int], bool],
        make_room: Callable[[], bool],
        outbox: Callable[[], None],
    ) -> None:
        """Begin with what an earlier process left in the journal.

        Parameters
        ----------
        durable
            Whether to write at once, not in company.
        rows_max, bytes_max
            What may wait in memory.
        refused
            File for records that the database refuses for good.
        store
            Gives the database; raises while it is away.
        room
            Says whether the journal may grow by some bytes.
        make_room
            Deletes something of less importance; says whether there was any.
        outbox
            Is called when messages were written to the outbox.
        """
        self.journal = journal
        self.pending: deque[Item] = deque()
        self.behind = not journal.empty
        """Whether what waits is in the journal only, not also in ``pending``."""
        self.accepted = journal.lines()
        self._tally = tally
        self._durable = durable
        self._rows_max = rows_max
        self._bytes_max = bytes_max
        self._refused = refused
        self._store = store
        self._room = room
        self._make_room = make_room
        self._outbox = outbox
        self._pending_bytes = 0
        self._settled = 0
        self._more = asyncio.Event()
        self._moved = asyncio.Event()
        tally.add("spooled", self.accepted)
        if self.behind:
            self._more.set()

    @property
    def waiting(self) -> int:
        """Records that are not in the database."""
        return self.accepted - self._settled

    def take_in(self, items: list[Item]) -> None:
        """Journal records; keep them in memory too unless the database is behind."""
        lines: list[bytes] = []
        good: list[Item] = []
        size = 0
        for item in items:
            try:
                line = item.line or write_line(item.record)
            except RecordRefused as error:
                self._tally.refused(error)
                item.finish(error)
                continue
            item.line = None
            lines.append(line)
            good.append(item)
            size += len(line)
            if size >= self.journal.segment_bytes:
                self._take_lines(good, lines)
                lines, good, size = [], [], 0
        if lines:
            self._take_lines(good, lines)
        self._more.set()

    def _take_lines(self, items: list[Item], lines: list[bytes]) -> None:
        journaled = self._append(items, lines)
        self.accepted += len(items)
        if not self.behind:
            self.pending.extend(items)
            self._pending_bytes += sum(item.weight for item in items)
            if len(self.pending) > self._rows_max or self._pending_bytes > self._bytes_max:
                self.fall_behind()
            return
        self._tally.add("spooled", journaled)
        if lost := items[journaled:]:
            self.settle(len(lost))
            self._drop(lost, "the journal is full")

    def _append(self, items: list[Item], lines: list[bytes]) -> int:
        """Journal records, the first of them where not all have room; return how many."""
        try:
            places = self._places(lines)
        except OSError as error:
            self._tally.unwritable(error)
            return 0
        if places is not None:
            for item, place in zip(items, places, strict=True):
                item.place = place
                item.finish()
            return len(items)
        half = len(items) // 2
        if not half:
            return 0
        first = self._append(items[:half], lines[:half])
        # What comes later must not overtake what found no room.
        return first if first < half else first + self._append(items[half:], lines[half:])

    def _places(self, lines: list[bytes]) -> list[Place] | None:
        """Journal lines and let others make room for them; None: there is not enough."""
        size = sum(map(len, lines))
        while True:
            full: OSError | None = None
            if self._room(size):
                try:
                    return self.journal.append(lines)
                except OSError as error:
                    if error.errno not in NO_ROOM:
                        raise
                    full = error
            if not self._make_room():
                if full is not None:
                    self._tally.unwritable(full)
                return None

    def fall_behind(self) -> None:
        """Leave what waits to the journal and forget it here."""
        if self.behind:
            return
        self.behind = True
        kept = [item for item in self.pending if item.place is not None]
        lost = [item for item in self.pending if item.place is None]
        self.pending.clear()
        self._pending_bytes = 0
        self._tally.add("spooled", len(kept))
        if lost:
            self.settle(len(lost))
            self._drop(lost, "the database is away and the journal is full")

    def settle(self, count: int) -> None:
        """Note that records need nothing more."""
        self._settled += count
        self._moved.set()

    async def settled_up_to(self, count: int) -> None:
        """Wait until so many records need nothing more."""
        while self._settled < count:
            self._moved.clear()
            await self._moved.wait()

    async def run(self) -> None:
        """Bring records to the database for ever."""
        retry_s = RETRY_S_MIN
        while True:
            await self._more.wait()
            if not self.behind and not self._durable and len(self.pending) < BATCH_ROWS:
                await asyncio.sleep(BATCH_S)
            try:
                more = await (self._drain() if self.behind else self._write_pending())
            except Exception as error:
                # Whatever it is, what waits is on disk, and trying again is all there is to do.
                if self._tally.away is None:
                    unexpected = not isinstance(error, (StoreError, InputError, OSError))
                    _log.warning("records wait on disk: %s", error, exc_info=unexpected)
                self._tally.away = str(error)
                self.fall_behind()
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, RETRY_S_MAX)
                continue
            if self._tally.away is not None:
                _log.warning("the database answers again")
                self._tally.away = None
            retry_s = RETRY_S_MIN
            if not more:
                self._more.clear()

    async def _write_pending(self) -> bool:
        batch: list[Item] = []
        weight = 0
        for item in self.pending:
            if len(batch) == BATCH_ROWS or weight > BATCH_BYTES:
                break
            batch.append(item)
            weight += item.weight
        if not batch:
            return False
        await self._write([item.record for item in batch])
        if self.behind:
            # It fell behind meanwhile, and these count as left to the journal, or as dropped.
            start = self.journal.place
            batch = [item for item in batch if item.place is not None and item.place > start]
            self._tally.add("drained", len(batch))
        else:
            for item in batch:
                self.pending.popleft()
                self._pending_bytes -= item.weight
                item.finish()
        self._take([item.place for item in batch if item.place is not None])
        self.settle(len(batch))
        return True

    async def _drain(self) -> bool:
        lines = self.journal.read(BATCH_ROWS, BATCH_BYTES)
        if not lines:
            self.behind = False
            return bool(self.pending)
        records = [record for record, _ in lines if record is not None]
        damaged = len(lines) - len(records)
        if damaged:
            self._tally.add("damaged", damaged)
            _log.error("%d lines of the journal were damaged and are left out", damaged)
        if records:
            await self._write(records)
        # What made room for orders meanwhile was counted as dropped.
        start = self.journal.place
        left = [record for record, place in lines if place > start]
        self._tally.add("drained", sum(record is not None for record in left))
        self._take([lines[-1][1]])
        self.settle(len(left))
        return True

    def give_way(self) -> bool:
        """Drop the oldest records on disk; whether there were any."""
        if self.journal.empty:
            return False
        self.fall_behind()
        gone = self.journal.drop_oldest()
        self.settle(gone)
        self._tally.dropped(gone, "orders need their room on disk")
        return True

    def _take(self, places: list[Place]) -> None:
        if places:
            self.journal.take(max(places))

    async def _write(self, records: list[Record]) -> None:
        self._tally.add("written", await self._write_parts(await self._store(), records))
        if self._durable and any(isinstance(record, OutboxEntry) for record in records):
            self._outbox()

    async def _write_parts(self, store: Store, records: list[Record]) -> int:
        """Write a batch; cut it in two where it is refused, until the row at fault is alone."""
        try:
            await store.write(records)
        except RecordRefused as error:
            if len(records) > 1:
                half = len(records) // 2
                first = await self._write_parts(store, records[:half])
                return first + await self._write_parts(store, records[half:])
            self._tally.refused(error)
            self._keep_refused(records[0])
            return 0
        return len(records)

    def _keep_refused(self, record: Record) -> None:
        try:
            with self._refused.open("ab") as file:
                if file.tell() < REFUSED_BYTES_MAX:
                    file.write(write_line(record))
        except (RecordRefused, OSError) as error:
            _log.error("nor can it be kept in %s: %s", self._refused, error)

    def close(self) -> None:
        """Let go of the journal; tell who still waits that their records are not safe."""
        lost = [item for item in self.pending if item.place is None]
        if lost:
            self.settle(len(lost))
            self._drop(lost, "closed, and the journal is full")
        self.journal.close()

    def _drop(self, items: Sequence[Item], why: str) -> None:
        self._tally.dropped(len(items), why)
        for item in items:
            item.finish(StoreError(f"the record was dropped: {why}"))


def _has_contents(record: Record) -> bool:
    """Whether a record can be large."""
    match record:
        case Interaction(request=None, response=None) | ToolCallRecord(arguments=None):
            return False
        case OrderEventRecord(data=data):
            return bool(data)
        case Interaction() | ToolCallRecord() | OutboxEntry() | Snapshot():
            return True
        case _:
            return False

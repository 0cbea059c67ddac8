"""Writes records from places that must never wait: a trading node, a gateway's request.

``put`` leaves a record in memory and returns. The recorder's own thread journals it to disk, where
it survives this process, and then writes it to the database in batches. While the database is away
records are left in the journal and read back, in order, when it answers, also by the next process.
What the database refuses for good is kept beside it in ``refused.spool``, not lost in silence.

Orders, their events, fills and messages of the outbox are one lane, the rest is another: each keeps
its own order, the first is on the disk (``fdatasync``) before it counts as taken, and when space is
short the second gives way.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from typing import Any

from qbtc.errors import InputError, StoreError
from qbtc.store.lane import RETRY_S_MIN, Item, Lane, Tally
from qbtc.store.opening import database_url, open_store
from qbtc.store.outbox import Publisher, relay
from qbtc.store.protocol import Store
from qbtc.store.records import Record
from qbtc.store.spool import SEGMENT_BYTES, Journal
from qbtc.store.tables import is_durable

__all__ = ["Recorder"]

JOURNAL_S = 0.01
"""Records that need not be on disk at once wait this long, so that the caller's thread is
interrupted less often."""
SLOTS_MAX = 64
"""Processes that can share one spool folder."""
LOST = ("dropped", "refused")
"""What counts records that were put and never reach the database."""

_log = logging.getLogger(__name__)


class Recorder:
    """Takes records from any thread and sees them into a database."""

    def __init__(
        self,
        url: str | None,
        *,
        spool: Path,
        rows_max: int = 50_000,
        bytes_max: int = 64 * 1024 * 1024,
        spool_bytes_max: int = 1024 * 1024 * 1024,
        publisher: Callable[[], Awaitable[Publisher]] | None = None,
    ) -> None:
        """Start the thread; the database need not be there.

        Parameters
        ----------
        url
            As for :func:`~qbtc.store.open_store`.
        spool
            Folder of the journal; several processes can name the same one.
        rows_max, bytes_max
            What may be in memory; more is left in the journal, or dropped where that is full.
        spool_bytes_max
            What the journal may take on disk.
        publisher
            Opens a bus (anything with its ``publish``), on the recorder's own event loop, to send
            the outbox to.

        Raises
        ------
        InputError
            Records are off, or the spool folder cannot be written or is full of other processes.
        """
        if database_url(url) is None:
            raise InputError("records are off; give a database, or have no recorder")
        self._url = url
        self._rows_max = rows_max
        self._bytes_max = bytes_max
        self._spool_bytes_max = spool_bytes_max
        self._publisher = publisher
        self._lock = threading.Lock()
        self._queue: deque[Item] = deque()
        self._queued_bytes = 0
        self._awake = False
        self._hurried = False
        self._closing = False
        self._tally = Tally()
        self._lost_told = 0
        self._store: Store | None = None
        self._open_lock: asyncio.Lock
        self._wake: asyncio.Event
        self._hurry: asyncio.Event
        self._stop: asyncio.Event
        self._outbox: asyncio.Event
        try:
            (folder, self._slot), others = _take_slot(spool)
            left = [other for other, _ in others]
            self._orders = self._lane("orders", folder, left, durable=True)
            self._others = self._lane("others", folder, left, durable=False)
            for _, lock in others:
                os.close(lock)
        except OSError as error:
            raise InputError(f"cannot keep records in {spool}: {error.strerror or error}") from None
        self._loop = asyncio.new_event_loop()
        started = threading.Event()
        self._thread = threading.Thread(
            target=self._serve, args=(started,), name="qbtc-recorder", daemon=True
        )
        self._thread.start()
        started.wait()

    def put(self, record: Record) -> None:
        """Take a record. Never waits, never raises; what cannot be taken is counted."""
        self._put(record, None)

    def put_durable(self, record: Record) -> Future[None]:
        """Take a record; the future is done when it outlives this process.

        An order, its event, a fill or a message of the outbox is then on the disk or in the
        database; others may still be lost with the machine's power. It fails with
        :class:`~qbtc.errors.StoreError` when the record was dropped or refused.
        """
        done: Future[None] = Future()
        self._put(record, done)
        return done

    def flush(self, timeout_s: float) -> bool:
        """Wait until all that was put before is in the database; whether it is.

        False also where a record was dropped or refused since the last flush that came to its end.
        """
        if not self._thread.is_alive():
            return self._nothing_lost() and not self._waiting()
        waiting = asyncio.run_coroutine_threadsafe(self._flush(), self._loop)
        try:
            waiting.result(timeout_s)
        except (FutureTimeout, asyncio.CancelledError):
            waiting.cancel()
            return False
        return self._nothing_lost()

    def close(self, *, timeout_s: float = 5.0) -> None:
        """Write what is here, for a bounded time, leave the rest in the journal, and stop."""
        with self._lock:
            if self._closing:
                return
        # A database that is away is not waited for.
        self.flush(timeout_s if self._tally.away is None else min(timeout_s, RETRY_S_MIN))
        with self._lock:
            self._closing = True
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def counters(self) -> dict[str, int]:
        """Count records since the start.

        ``queued`` are in memory now, ``waiting`` in memory or on disk and not in the database;
        totals: ``written`` to the database, ``spooled`` for later, ``drained`` of those,
        ``dropped``, ``refused`` by the database for good, ``damaged`` lines of the journal.
        """
        lanes = (self._orders, self._others)
        return {
            "queued": len(self._queue) + sum(len(lane.pending) for lane in lanes),
            "waiting": self._waiting(),
            **self._tally.counts,
            "spool_bytes": sum(lane.journal.size_bytes for lane in lanes),
        }

    def problem(self) -> str | None:
        """Why records do not reach the database; None: all is well."""
        if self._tally.away is not None:
            return f"{self._tally.away}; {self._waiting()} records wait, and are kept on disk"
        return self._tally.problem()

    def shortfall(self) -> str | None:
        """Say what of all since the start is not in the database, and why; None: nothing."""
        counts = self.counters()
        said = [] if self._tally.away is None else [self._tally.away]
        if counts["waiting"]:
            said.append(f"{counts['waiting']} records wait, and are kept on disk")
        never = [f"{counts[name]} {name}" for name in (*LOST, "damaged") if counts[name]]
        if never:
            said.append(f"records that are never written: {', '.join(never)}")
        return "; ".join(said) or None

    # Any thread.

    def _put(self, record: Record, done: Future[None] | None) -> None:
        try:
            item = Item(record, done)
            durable = is_durable(record)
            hurry = durable or done is not None
            with self._lock:
                # Orders may go beyond the limit that others keep to.
                share = 2 if durable else 1
                if self._closing:
                    room = False
                else:
                    room = (
                        len(self._queue) < share * self._rows_max
                        and self._queued_bytes + item.weight <= share * self._bytes_max
                    )
                if room:
                    self._queue.append(item)
                    self._queued_bytes += item.weight
                    wake = not self._awake or (hurry and not self._hurried)
                    self._awake, self._hurried = True, self._hurried or hurry
            if not room:
                why = "closed" if self._closing else "too many wait in memory"
                self._tally.dropped(1, why)
                item.finish(StoreError(f"the record was dropped: {why}"))
            elif wake:
                self._loop.call_soon_threadsafe(self._rouse, hurry)
        except Exception as error:
            # Nothing that is recorded may stop the one who records it.
            self._tally.refused(error)
            if done is not None and not done.done():
                done.set_exception(error)

    def _nothing_lost(self) -> bool:
        """Whether no record was lost that was not told of before."""
        with self._lock:
            told, self._lost_told = self._lost_told, sum(map(self._tally.counts.__getitem__, LOST))
            return told == self._lost_told

    def _waiting(self) -> int:
        return len(self._queue) + self._orders.waiting + self._others.waiting

    # The recorder's thread.

    def _serve(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._main(started))
        finally:
            self._loop.close()

    async def _main(self, started: threading.Event) -> None:
        self._open_lock = asyncio.Lock()
        self._wake, self._hurry = asyncio.Event(), asyncio.Event()
        self._stop, self._outbox = asyncio.Event(), asyncio.Event()
        started.set()
        lanes = (self._orders, self._others)
        work: list[Coroutine[Any, Any, None]] = [self._intake(), *(lane.run() for lane in lanes)]
        if self._publisher is not None:
            work.append(relay(self._opened, self._publisher, self._outbox))
        tasks = [asyncio.create_task(job) for job in work]
        for task in tasks:
            task.add_done_callback(_report)
        await self._stop.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._journal_queue()
        for lane in lanes:
            lane.close()
        if self._store is not None:
            await self._store.close()
        os.close(self._slot)

    async def _intake(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), JOURNAL_S)
            self._hurry.clear()
            with self._lock:
                self._awake = self._hurried = False
            self._journal_queue()
            # Lanes get their turn before the next records are taken.
            await asyncio.sleep(0)

    def _rouse(self, hurry: bool) -> None:
        self._wake.set()
        if hurry:
            self._hurry.set()

    def _journal_queue(self) -> None:
        with self._lock:
            items, self._queue = self._queue, deque()
            self._queued_bytes = 0
        orders = [item for item in items if is_durable(item.record)]
        others = [item for item in items if not is_durable(item.record)]
        if orders:
            self._orders.take_in(orders)
        if others:
            self._others.take_in(others)

    async def _flush(self) -> None:
        self._journal_queue()
        for lane in (self._orders, self._others):
            await lane.settled_up_to(lane.accepted)

    async def _opened(self) -> Store:
        async with self._open_lock:
            if self._store is None:
                self._store = await open_store(self._url)
            return self._store

    def _room_for(self, size: int) -> bool:
        """Whether the journals may grow by some bytes."""
        journals = (self._orders.journal, self._others.journal)
        return sum(journal.size_bytes for journal in journals) + size <= self._spool_bytes_max

    def _lane(self, name: str, folder: Path, left: list[Path], *, durable: bool) -> Lane:
        segment_bytes = min(SEGMENT_BYTES, self._spool_bytes_max // 16)
        journal = Journal(folder / name, sync=durable, segment_bytes=segment_bytes)
        for other in left:
            if (other / name).is_dir():
                journal.adopt(other / name)
        return Lane(
            journal,
            self._tally,
            durable=durable,
            rows_max=self._rows_max,
            bytes_max=self._bytes_max,
            refused=folder / "refused.spool",
            store=self._opened,
            room=self._room_for,
            # Nothing gives way to the others.
            make_room=(lambda: self._others.give_way()) if durable else (lambda: False),
            outbox=lambda: self._outbox.set(),
        )


def _take_slot(spool: Path) -> tuple[tuple[Path, int], list[tuple[Path, int]]]:
    """Lock a folder of this process's own, and those that processes which are gone have left."""
    spool.mkdir(parents=True, exist_ok=True, mode=0o700)
    taken: list[tuple[Path, int]] = []
    for number in range(SLOTS_MAX):
        folder = spool / f"{number:02d}"
        if taken and not folder.exists():
            continue
        folder.mkdir(exist_ok=True, mode=0o700)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken.append((folder, lock))
        except BlockingIOError:
            os.close(lock)
    if not taken:
        raise OSError(f"{SLOTS_MAX} processes use it already")
    return taken[0], taken[1:]


def _report(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.critical("a part of the recorder ended", exc_info=error)

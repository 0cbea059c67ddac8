"""Records on disk until the database has them: a journal of checksummed lines.

A line is ``crc32 table json``. Lines are only ever added to the newest segment file; a segment
whose lines are all in the database is deleted. After a crash the segments that are left are read
again from their start: rows have ids, so a row that was written already stays one. A line that was
cut off by a crash, or damaged, fails its checksum and is left out and counted.
"""

import os
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from qbtc.errors import MessageError, RecordRefused
from qbtc.messages.codec import decode, encode
from qbtc.store.records import (
    FillRecord,
    Interaction,
    OrderEventRecord,
    OrderRecord,
    OutboxEntry,
    Record,
    SignalRecord,
    Snapshot,
    ToolCallRecord,
)
from qbtc.store.tables import spec_of
from qbtc.store.values import clean_tree

__all__ = ["SEGMENT_BYTES", "Journal", "Place", "read_line", "write_line"]

SEGMENT_BYTES = 8 * 1024 * 1024

_SEGMENT = re.compile(r"([0-9]{8})\.spool")

_DECODERS: dict[str, msgspec.json.Decoder[Any]] = {
    "interactions": msgspec.json.Decoder(Interaction),
    "tool_calls": msgspec.json.Decoder(ToolCallRecord),
    "signals": msgspec.json.Decoder(SignalRecord),
    "orders": msgspec.json.Decoder(OrderRecord),
    "order_events": msgspec.json.Decoder(OrderEventRecord),
    "fills": msgspec.json.Decoder(FillRecord),
    "snapshots": msgspec.json.Decoder(Snapshot),
}
_ENCODER = msgspec.json.Encoder()

type Place = tuple[int, int]
"""A segment's number and an offset in it."""


def write_line(record: Record) -> bytes:
    """Write a record as a line.

    Raises
    ------
    RecordRefused
        It cannot be written as JSON.
    """
    name = spec_of(record).name
    try:
        body = encode(record.message) if isinstance(record, OutboxEntry) else _encode(record)
    except (MessageError, TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise RecordRefused(f"{name}: {error}") from None
    checked = b"%s %s" % (name.encode(), body)
    return b"%08x %s\n" % (zlib.crc32(checked), checked)


def _encode(record: Record) -> bytes:
    try:
        return _ENCODER.encode(record)
    except UnicodeEncodeError:
        return _ENCODER.encode(clean_tree(msgspec.to_builtins(record)))


def read_line(line: bytes) -> Record | None:
    """Read a line; None: it is damaged."""
    try:
        if not line.endswith(b"\n") or zlib.crc32(line[9:-1]) != int(line[:8], 16):
            return None
        name, _, body = line[9:-1].partition(b" ")
        if name == b"outbox":
            return OutboxEntry(message=decode(body))
        record: Record = _DECODERS[name.decode()].decode(body)
    except (ValueError, KeyError, MessageError, msgspec.MsgspecError):
        return None
    return record


class Journal:
    """Segments in one folder, of one process at a time.

    Not for several threads. Every method raises ``OSError`` where the disk refuses.
    """

    def __init__(self, folder: Path, *, sync: bool, segment_bytes: int = SEGMENT_BYTES) -> None:
        """Open a folder and what an earlier process left in it.

        Parameters
        ----------
        folder
            Made if it is not there.
        sync
            Whether lines are on the disk when ``append`` returns (``fdatasync``); else they are
            with the operating system, and a loss of power can take the last of them.
        segment_bytes
            Size at which a segment is followed by a new one.
        """
        self._folder = folder
        self._sync = sync
        self.segment_bytes = segment_bytes
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._sizes = {
            int(match[1]): file.stat().st_size
            for file in folder.iterdir()
            if (match := _SEGMENT.fullmatch(file.name))
        }
        self._number = max(self._sizes, default=0)
        """Of the newest segment; it is being written while ``_active`` is a file."""
        self._active = -1
        self._place: Place = (min(self._sizes, default=0), 0)

    @property
    def size_bytes(self) -> int:
        """What the segments take on disk."""
        return sum(self._sizes.values())

    @property
    def place(self) -> Place:
        """Before the first line that waits."""
        return self._place

    @property
    def empty(self) -> bool:
        """Whether every line was taken."""
        return self._place >= self._end()

    def lines(self) -> int:
        """Count the lines that wait, also of an earlier process; reads them all."""
        count = 0
        for number in sorted(self._sizes):
            last = b"\n"
            with self._path(number).open("rb") as file:
                while block := file.read(1 << 20):
                    count += block.count(b"\n")
                    last = block[-1:]
            count += last != b"\n"
        return count

    def append(self, lines: Sequence[bytes]) -> list[Place]:
        """Add lines; return the place after each. All of them are added, or none."""
        if self._active < 0 or self._sizes[self._number] >= self.segment_bytes:
            self._next_segment()
        start = size = self._sizes[self._number]
        body = memoryview(b"".join(lines))
        try:
            while body:
                written = os.pwrite(self._active, body, size)
                body = body[written:]
                size += written
            if self._sync:
                os.fdatasync(self._active)
        except OSError:
            os.ftruncate(self._active, start)
            raise
        self._sizes[self._number] = size
        places = []
        for line in lines:
            start += len(line)
            places.append((self._number, start))
        return places

    def read(self, rows_max: int, bytes_max: int) -> list[tuple[Record | None, Place]]:
        """Return the next lines that wait, each with the place after it; None: a damaged one."""
        found: list[tuple[Record | None, Place]] = []
        number, offset = self._place
        taken = 0
        while len(found) < rows_max and taken < bytes_max:
            size = self._sizes.get(number)
            if size is None or offset >= size:
                later = [other for other in self._sizes if other > number]
                if not later:
                    break
                number, offset = min(later), 0
                continue
            for line in self._lines_from(number, offset, size):
                offset += len(line)
                taken += len(line)
                found.append((read_line(line), (number, offset)))
                if len(found) >= rows_max or taken >= bytes_max:
                    break
        return found

    def take(self, place: Place) -> None:
        """Let go of all lines up to a place."""
        self._place = max(self._place, place)
        for number in [number for number in self._sizes if number < self._place[0]]:
            self._delete(number)
        if self._place < self._end():
            return
        for number in [number for number in self._sizes if number != self._number]:
            self._delete(number)
        if self._active >= 0 and self._sizes[self._number]:
            # All of it is in the database: begin again in the same file.
            os.ftruncate(self._active, 0)
            self._sizes[self._number] = 0
            self._place = (self._number, 0)
        elif self._active < 0 and self._number in self._sizes:
            self._delete(self._number)

    def drop_oldest(self) -> int:
        """Give up the oldest segment; return how many lines that wait it had."""
        oldest = min(self._sizes, default=None)
        if oldest is None:
            return 0
        if oldest == self._number and self._active >= 0:
            os.close(self._active)
            self._active = -1
        offset = self._place[1] if self._place[0] == oldest else 0
        count = sum(1 for _ in self._lines_from(oldest, offset, self._sizes[oldest]))
        self._delete(oldest)
        self._place = max(self._place, (oldest + 1, 0))
        return count

    def adopt(self, other: Path) -> None:
        """Take over the segments that a process which is gone left in another folder."""
        for file in sorted(other.iterdir()):
            if _SEGMENT.fullmatch(file.name) and self._active < 0:
                self._number += 1
                file.rename(self._path(self._number))
                self._sizes[self._number] = self._path(self._number).stat().st_size

    def close(self) -> None:
        """Let go of the files; delete an empty one."""
        if self._active >= 0:
            os.close(self._active)
            self._active = -1
            if not self._sizes[self._number]:
                self._delete(self._number)

    def _lines_from(self, number: int, offset: int, size: int) -> Iterator[bytes]:
        with self._path(number).open("rb") as file:
            file.seek(offset)
            while offset < size and (line := file.readline()):
                offset += len(line)
                yield line

    def _end(self) -> Place:
        number = max(self._sizes, default=0)
        return (number, self._sizes.get(number, 0))

    def _next_segment(self) -> None:
        if self._active >= 0:
            os.close(self._active)
            self._active = -1
        self._number += 1
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._active = os.open(self._path(self._number), flags, 0o600)
        self._sizes[self._number] = 0
        if self._sync:
            # The name must last as well as the lines.
            folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def _delete(self, number: int) -> None:
        self._path(number).unlink(missing_ok=True)
        del self._sizes[number]

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:08d}.spool"

"""Fetch files of the Binance bulk archive: checked, resumed, and put in place whole.

A file of day D appears on D + 1, a month's early in the next month; both are restated now and then.
So every file is compared by SHA-256 with its ``.CHECKSUM`` sidecar, also one that is here already.
Closed months inside the range are fetched as one file, and day by day where that is not there.
A 404 is no failure: it is reported as ``not yet`` (young) or ``never`` (not in the archive).
How a file is fetched: :mod:`qbtc.download`.
"""

import asyncio
import calendar
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date, timedelta
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Literal
from urllib.parse import quote

from qbtc.data.archive import Kind
from qbtc.data.rows import INTERVALS, sha256_of
from qbtc.download import Downloader, Limits, TryAgain
from qbtc.errors import DataError

__all__ = [
    "ARCHIVE_URL",
    "ArchiveFile",
    "Fetched",
    "Limits",
    "Market",
    "Period",
    "Status",
    "fetch_files",
    "plan_files",
]

type Market = Literal["spot", "um"]
type Period = Literal["auto", "daily", "monthly"]

ARCHIVE_URL = "https://data.binance.vision"

FIRST_DAY = date(2017, 8, 17)  # the exchange's first day of trading
FILES_MAX = 5_000
CHECKSUM_BYTES_MAX = 1024
MONTHLY_ONLY = ("3d", "1w", "1mo")
SPOT_ONLY = ("1s",)
DAILY_LATE_DAYS = 3
"""A daily file younger than this may still come."""
MONTHLY_LATE_DAYS = 10

_FOLDERS: dict[str, str] = {"spot": "spot", "um": "futures/um"}
_SYMBOL = re.compile(r"[^\s/\\.%?#&:-]{2,30}")
_CHECKSUM = re.compile(r"(?P<sha256>[0-9a-fA-F]{64}) [ *](?P<name>\S+)")


class Status(StrEnum):
    """What came of one file."""

    FETCHED = "fetched"
    KEPT = "kept"
    """It was here, and still is what the archive has."""
    RESTATED = "restated"
    """It was here, but the archive has another one now; fetched anew."""
    NOT_YET = "not yet"
    NEVER = "never"


@dataclass(frozen=True)
class ArchiveFile:
    """One file of the archive."""

    path: PurePosixPath
    """Below the base URL and below the local folder."""
    first: date
    last: date
    by_day: bool = False
    """Whether its days may be fetched one by one where it is missing."""

    @property
    def monthly(self) -> bool:
        """Whether it holds a month."""
        return self.first != self.last


@dataclass(frozen=True)
class Fetched:
    """What came of one file, and where it lies."""

    file: ArchiveFile
    status: Status
    path: Path | None = None
    sha256: str | None = None
    size: int = 0
    """Bytes, whole file."""


def plan_files(
    symbol: str,
    market: Market,
    kind: Kind,
    interval: str,
    first: date,
    last: date,
    *,
    today: date,
    period: Period = "auto",
) -> list[ArchiveFile]:
    """Name the files that hold a range of days, in order of time.

    Parameters
    ----------
    symbol
        The exchange's, e.g. ``BTCUSDT``; may hold letters of any script.
    market, kind, interval
        Which data; the interval matters to klines only.
    first, last
        Days, both included.
    today
        The current day in UTC: what is not over has no file.
    period
        ``auto``: closed whole months as one file, the rest by day.

    Raises
    ------
    DataError
        A name, an interval or a date that the archive cannot have, or more than ``FILES_MAX``.
    """
    _check_request(symbol, market, kind, interval, first, last, today)
    if kind == "klines" and interval in MONTHLY_ONLY:
        period = "monthly"
    files: list[ArchiveFile] = []
    day = first
    while day <= last:
        end = date(day.year, day.month, calendar.monthrange(day.year, day.month)[1])
        whole = day.day == 1 and end <= last and end < today
        if period == "monthly" or (period == "auto" and whole):
            if end >= today:
                raise DataError(f"month {day:%Y-%m} is not over; end the range before it")
            month = _file(symbol, market, kind, interval, day.replace(day=1), end)
            files.append(replace(month, by_day=period == "auto"))
        else:
            end = min(end, last)
            files += _days(symbol, market, kind, interval, day, end)
        day = end + timedelta(days=1)
        if len(files) > FILES_MAX:
            raise DataError(f"over {FILES_MAX} files; choose a shorter range or monthly files")
    return files


def _check_request(
    symbol: str, market: Market, kind: Kind, interval: str, first: date, last: date, today: date
) -> None:
    if not _SYMBOL.fullmatch(symbol):
        raise DataError(f"symbol {symbol!r} is not like BTCUSDT")
    if symbol != symbol.upper():
        raise DataError(f"symbol {symbol!r}: the archive writes {symbol.upper()!r}")
    if kind == "klines":
        if interval not in INTERVALS:
            hint = "; a month is 1mo" if interval == "1M" else ""
            raise DataError(f"interval {interval!r} is not one of {', '.join(INTERVALS)}{hint}")
        if interval in SPOT_ONLY and market != "spot":
            raise DataError(f"interval {interval} exists for spot only")
    if first > last:
        raise DataError(f"the range begins on {first} and ends on {last}; swap them")
    if first < FIRST_DAY:
        raise DataError(f"{first} is before the exchange's first day, {FIRST_DAY}")
    if last >= today:
        raise DataError(f"{last} is not over; the newest file is of {today - timedelta(days=1)}")


def _days(
    symbol: str, market: Market, kind: Kind, interval: str, first: date, last: date
) -> list[ArchiveFile]:
    days = [first + timedelta(days=i) for i in range((last - first).days + 1)]
    return [_file(symbol, market, kind, interval, day, day) for day in days]


def _file(
    symbol: str, market: Market, kind: Kind, interval: str, first: date, last: date
) -> ArchiveFile:
    monthly = first != last
    stamp = f"{first:%Y-%m}" if monthly else f"{first:%Y-%m-%d}"
    what = interval if kind == "klines" else kind
    folder = PurePosixPath(
        "data", _FOLDERS[market], "monthly" if monthly else "daily", kind, symbol
    )
    if kind == "klines":
        folder /= interval
    return ArchiveFile(folder / f"{symbol}-{what}-{stamp}.zip", first, last)


async def fetch_files(
    files: list[ArchiveFile],
    folder: Path,
    *,
    today: date,
    base_url: str = ARCHIVE_URL,
    limits: Limits | None = None,
    rng: random.Random | None = None,
    on_bytes: Callable[[int], None] = lambda _: None,
    on_done: Callable[[Fetched], None] = lambda _: None,
) -> list[Fetched]:
    """Fetch files into a folder, with the archive's own folders below it.

    Parameters
    ----------
    files
        From ``plan_files``.
    folder
        Where they go; what lies there already is checked and kept.
    today
        The current day in UTC, to tell ``not yet`` from ``never``.
    base_url
        The archive, or a server that looks like it.
    limits, rng
        How patient to be, and the source of random waits.
    on_bytes, on_done
        Called with every piece and every file, e.g. for a progress bar.

    Returns
    -------
    list
        One entry per file in the order given; a month that was fetched by day gives its days.

    Raises
    ------
    DataError
        A file differs from its checksum after every attempt, is too large, or cannot be written.
    RunFailed
        The archive cannot be reached or refuses; parts are kept, so run it again.
    """
    if not base_url.startswith(("http://", "https://")):
        raise DataError(f"base URL {base_url!r} does not begin with http:// or https://")
    limits = limits or Limits()
    async with Downloader.open(
        limits, rng=rng, on_bytes=on_bytes, server="the archive", checksum="that of its .CHECKSUM"
    ) as downloader:
        archive = _Archive(downloader, base_url.rstrip("/"), folder)
        gate = asyncio.Semaphore(limits.connections_max)

        async def one(file: ArchiveFile) -> list[Fetched]:
            async with gate:
                result = await archive.fetch(file, today)
            if result.path is None and file.by_day:
                days = [_day_of(file, i) for i in range((file.last - file.first).days + 1)]
                return [found for day in days for found in await one(day)]
            on_done(result)
            return [result]

        tasks: list[asyncio.Task[list[Fetched]]] = []
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(file)) for file in files]
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [found for task in tasks for found in task.result()]


def _day_of(month: ArchiveFile, index: int) -> ArchiveFile:
    """One day of a monthly file."""
    day = month.first + timedelta(days=index)
    folder = PurePosixPath(
        *("daily" if part == "monthly" else part for part in month.path.parent.parts)
    )
    name = month.path.name.replace(f"{month.first:%Y-%m}.zip", f"{day:%Y-%m-%d}.zip")
    return ArchiveFile(folder / name, day, day)


@dataclass
class _Archive:
    """One session with the archive."""

    downloader: Downloader
    base_url: str
    folder: Path

    async def fetch(self, file: ArchiveFile, today: date) -> Fetched:
        """Bring one file here, unless it is here and right."""
        url = f"{self.base_url}/{quote(str(file.path))}"
        wanted = await self.downloader.retry(url, lambda: self._checksum(url, file.path.name))
        if wanted is None:
            late = MONTHLY_LATE_DAYS if file.monthly else DAILY_LATE_DAYS
            young = (today - file.last).days <= late
            return Fetched(file, Status.NOT_YET if young else Status.NEVER)
        path = self.folder / file.path
        status = Status.FETCHED
        if path.is_file():
            if await asyncio.to_thread(sha256_of, path) == wanted:
                return Fetched(file, Status.KEPT, path, wanted, path.stat().st_size)
            status = Status.RESTATED
        await self.downloader.fetch(url, path, wanted)
        return Fetched(file, status, path, wanted, path.stat().st_size)

    async def _checksum(self, url: str, name: str) -> str | None:
        """SHA-256 that the archive states for a file; None if it has no such file."""
        text = await self.downloader.read(f"{url}.CHECKSUM", CHECKSUM_BYTES_MAX)
        if text is None:
            return None
        match = _CHECKSUM.fullmatch(text.decode("utf-8", "replace").strip())
        if match is None or match["name"] != name:
            raise TryAgain("its .CHECKSUM is not a SHA-256 of that name", damaged=True)
        return match["sha256"].lower()

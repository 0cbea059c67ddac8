"""Rows of one instrument between a source file and the catalog: integers on a decimal grid.

Every reader (``recording``, ``klines``, ``archive``, ``synthetic``) returns one ``Parsed``; only
``catalog`` turns it into Nautilus data. Nothing here knows the trading host.

Units: times are UNIX nanoseconds (int64); prices and sizes are int64 counts of ``10**-decimals``
(exact up to ``DIGITS_MAX`` digits), so nothing is rounded between a file and the catalog.

Ties: within one source no two messages share ``ts_init``; see ``separate_ties``. The order of
events is therefore the same for every reader of the catalog.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qbtc.errors import DataError

type Int64 = NDArray[np.int64]
type Float64 = NDArray[np.float64]

DECIMALS_MAX = 8
"""The finest grid Binance quotes on."""
DIGITS_MAX = 15
"""Integers beyond 10**15 are not exact in a double; a longer number is refused."""
LISTED_MAX = 100
"""Gaps and damaged rows listed one by one in a manifest; the totals are always exact."""

NS_PER_MS = 1_000_000
US_STAMP_MIN = 10**14
"""Binance stamps beyond this are microseconds, others milliseconds (until the year 5138)."""
TS_MIN_NS = 1_000_000_000 * 1_230_768_000  # 2009-01-01: no coin traded before
TS_MAX_NS = 1_000_000_000 * 4_102_444_800  # 2100-01-01


@dataclass(frozen=True)
class Numbers:
    """Decimal numbers as integers on the coarsest grid that holds them all."""

    units: Int64  # (n,), value = units / 10**decimals
    decimals: int

    def at(self, decimals: int) -> Int64:
        """Return the same numbers on a finer grid (n,)."""
        return self.units * np.int64(10 ** (decimals - self.decimals))


@dataclass(frozen=True)
class Quotes:
    """Top-of-book quotes, all arrays (n,)."""

    ts_event: Int64
    ts_init: Int64
    bid: Numbers
    ask: Numbers
    bid_size: Numbers
    ask_size: Numbers


@dataclass(frozen=True)
class Trades:
    """Trades, all arrays (n,); ``sell`` is true where the seller was the aggressor."""

    ts_event: Int64
    ts_init: Int64
    price: Numbers
    size: Numbers
    sell: NDArray[np.bool_]
    trade_id: Int64


CLEAR, UPDATE, DELETE, ADD = 0, 1, 2, 3
"""Book actions of ``Depth.action``."""
F_LAST, F_SNAPSHOT = 128, 32
"""Nautilus record flags: last row of a message; row of a snapshot."""


@dataclass(frozen=True)
class Depth:
    """Book level changes, all arrays (n,); a clear has price and size 0."""

    ts_event: Int64
    ts_init: Int64
    action: NDArray[np.int8]
    ask: NDArray[np.bool_]
    price: Numbers
    size: Numbers
    flags: NDArray[np.uint8]
    sequence: Int64


@dataclass(frozen=True)
class Bars:
    """Klines, all arrays (n,); ``ts`` is the close of the interval (open time + interval)."""

    interval: str
    ts: Int64
    open: Numbers
    high: Numbers
    low: Numbers
    close: Numbers
    volume: Numbers


@dataclass
class Parsed:
    """What one source holds for one instrument, and the facts its manifest states."""

    quotes: Quotes | None = None
    trades: Trades | None = None
    depth: Depth | None = None
    bars: Bars | None = None
    source_counts: dict[str, int] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    synthetic: bool = False

    def counts(self) -> dict[str, int]:
        """Rows by type."""
        return {
            "quotes": 0 if self.quotes is None else len(self.quotes.ts_init),
            "trades": 0 if self.trades is None else len(self.trades.ts_init),
            "depth": 0 if self.depth is None else len(self.depth.ts_init),
            "bars": 0 if self.bars is None else len(self.bars.ts),
        }

    def decimals(self) -> tuple[int, int]:
        """Decimals needed by the prices and by the sizes."""
        prices: list[Numbers] = []
        sizes: list[Numbers] = []
        if self.quotes is not None:
            prices += [self.quotes.bid, self.quotes.ask]
            sizes += [self.quotes.bid_size, self.quotes.ask_size]
        if self.trades is not None:
            prices.append(self.trades.price)
            sizes.append(self.trades.size)
        if self.depth is not None:
            prices.append(self.depth.price)
            sizes.append(self.depth.size)
        if self.bars is not None:
            prices += [self.bars.open, self.bars.high, self.bars.low, self.bars.close]
            sizes.append(self.bars.volume)
        return (
            max((numbers.decimals for numbers in prices), default=0),
            max((numbers.decimals for numbers in sizes), default=0),
        )


class Bounded:
    """A list of facts that keeps the first ``LISTED_MAX`` and counts the rest."""

    def __init__(self) -> None:
        self.total = 0
        self.listed: list[dict[str, Any]] = []

    def add(self, **facts: Any) -> None:
        """Count one, and list it if there is room."""
        self.total += 1
        if self.total <= LISTED_MAX:
            self.listed.append(facts)

    def state(self) -> dict[str, Any]:
        """For the manifest."""
        return {"total": self.total, "listed": self.listed}


def to_numbers(values: Float64, what: str) -> Numbers:
    """Find the coarsest decimal grid (n,) that holds doubles parsed from decimal text.

    Parameters
    ----------
    values
        Finite doubles (n,), each the nearest to a decimal of at most ``DECIMALS_MAX`` places.
    what
        Named in the error.

    Raises
    ------
    DataError
        A number has more decimals or digits than can be kept exactly.
    """
    if len(values) and not np.abs(values).max() < 10.0**DIGITS_MAX:
        raise DataError(f"{what}: number beyond 10^{DIGITS_MAX} or not finite; mend the file")
    for decimals in range(DECIMALS_MAX + 1):
        scale = 10.0**decimals
        units = np.rint(values * scale)
        if np.array_equal(units / scale, values):
            if len(units) and np.abs(units).max() >= 10.0**DIGITS_MAX:
                break
            return Numbers(units.astype(np.int64), decimals)
    raise DataError(
        f"{what}: numbers with more than {DECIMALS_MAX} decimals or {DIGITS_MAX} digits; "
        "is this Binance data?"
    )


def scaled(units: Int64, decimals: int) -> Numbers:
    """Integers on a known grid, brought to the coarsest grid that holds them all."""
    while decimals > 0 and not np.any(units % 10):
        units, decimals = units // 10, decimals - 1
    return Numbers(units, decimals)


def separate_ties(ts: Int64) -> Int64:
    """Make the receive times (n,) of successive messages strictly increasing.

    A message with the time of the one before it moves 1 ns on; nothing else moves. This keeps the
    order of the file through any later merge by time.
    """
    steps = np.arange(len(ts), dtype=np.int64)
    return np.maximum.accumulate(ts - steps) + steps


def to_ns(stamps: Int64) -> Int64:
    """UNIX stamps (n,) in milliseconds or, beyond 10**14, microseconds, as nanoseconds."""
    return np.where(stamps > US_STAMP_MIN, stamps * 1_000, stamps * NS_PER_MS)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal.

    Raises
    ------
    DataError
        It is missing, a folder, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise DataError(f"{path}: no such data file; check the path or fetch it first") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; give a file") from None


def parse_interval(interval: str) -> int:
    """Length of a kline interval in nanoseconds; ``1mo`` is not a fixed length and gives 0.

    Raises
    ------
    DataError
        Not an interval Binance has.
    """
    if interval not in INTERVALS:
        raise DataError(f"interval {interval!r} is not one of {', '.join(INTERVALS)}")
    if interval == "1mo":
        return 0
    unit = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}[interval[-1]]
    return int(interval[:-1]) * unit * 1_000_000_000


INTERVALS: tuple[str, ...] = (
    *("1s", "1m", "3m", "5m", "15m", "30m"),
    *("1h", "2h", "4h", "6h", "8h", "12h"),
    *("1d", "3d", "1w", "1mo"),
)


def find_gaps(ts: Int64, step: int, rows: Bounded, missing_name: str = "missing") -> int:
    """List the holes in regularly spaced times (n,); return how many steps are missing."""
    if step == 0 or len(ts) < 2:
        return 0
    holes = np.flatnonzero(np.diff(ts) > step)
    missing = (ts[holes + 1] - ts[holes]) // step - 1
    for hole, count in zip(holes.tolist(), missing.tolist(), strict=True):
        rows.add(after_ns=int(ts[hole]), until_ns=int(ts[hole + 1]), **{missing_name: count})
    return int(missing.sum())


def check_rising(ts: Int64, what: str) -> None:
    """Raise ``DataError`` naming the first row whose time repeats or goes back."""
    bad = np.flatnonzero(np.diff(ts) <= 0)
    if len(bad) == 0:
        return
    at = int(bad[0]) + 1
    word = "repeats" if ts[at] == ts[at - 1] else "goes back"
    raise DataError(f"{what}: time {word} at row {at + 1}; sort the file and remove duplicates")

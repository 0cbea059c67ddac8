"""Read a raw Binance web-socket recording: ``<receive ns> <json>`` per line, gzip or plain.

What becomes what
-----------------
- ``bookTicker`` → a quote. Spot sends no event time: ``ts_event`` is then the receive time.
- ``trade`` → a trade, or ``aggTrade`` where the recording has no ``trade``. Executions outside the
  book (``X`` other than ``MARKET``: insurance fund, deleveraging) are left out and counted.
- ``depthUpdate`` → one level change per level, the last flagged as the end of its message; size 0
  deletes the level. A REST snapshot (``lastUpdateId``) → a clear and its levels.

Book synchronisation
--------------------
By Binance's rule: differences wait for a snapshot, those it already contains are dropped
(``superseded``), the first kept one must bracket it, then ``U == u + 1`` of the one before (spot)
or ``pu == u`` of it (USD-M). At a hole the book is cleared and the gap is listed; differences up to
the next snapshot are dropped (``unsynchronised``). Where no snapshot follows, the book is rebuilt
from differences alone and the manifest calls it partial.

Time
----
``ts_event`` is the exchange's (``T``, else ``E``). ``ts_init`` is the receive time plus a constant
clock offset: a recorder cannot receive an event before it happened, so the ``OFFSET_QUANTILE`` of
(receive - event) being negative shows a clock that is behind; it is moved forward by that much,
rounded up to ``OFFSET_STEP_MS`` so that files of one recorder share one offset. Lines with equal
receive time keep their order (``separate_ties``).

Damage
------
A line that is not JSON, lacks a field, or holds a number that cannot be (not finite, price or
size not positive, bid >= ask, an update id that repeats) is counted and listed by line. More than
``damaged_rows_max`` (0 unless configured) end the import. A receive time that goes back always
does. Nothing is dropped without a count in the manifest.
"""

import gzip
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from qbtc.data.rows import (
    ADD,
    CLEAR,
    DELETE,
    F_LAST,
    F_SNAPSHOT,
    NS_PER_MS,
    TS_MAX_NS,
    TS_MIN_NS,
    UPDATE,
    US_STAMP_MIN,
    Bounded,
    Depth,
    Float64,
    Int64,
    Parsed,
    Quotes,
    Trades,
    separate_ties,
    to_numbers,
)
from qbtc.errors import DataError

__all__ = ["read_recording"]

RECORDING_BYTES_MAX = 4 * 1024**3
"""Uncompressed size; a longer recording belongs in several files."""
LINE_BYTES_MAX = 4 * 1024**2
FLUSH_ROWS = 1 << 14

OFFSET_QUANTILE = 0.001
OFFSET_STEP_MS = 5

MARKET = "MARKET"
STAMP_MAX = TS_MAX_NS // 1_000
"""The latest exchange time, in microseconds."""

_PARTIAL = re.compile(r"@depth\d+(@|$)")
"""Streams of the top levels only: no part of the book's chain of differences."""


type _Id = Annotated[int, msgspec.Meta(ge=-1, le=2**62)]
type _Stamp = Annotated[int, msgspec.Meta(ge=0, le=STAMP_MAX)]
type _Levels = list[tuple[str, str]]


class _Message(msgspec.Struct, gc=False):
    """Any message of the streams read here; fields by Binance's own names."""

    e: str = ""
    E: _Stamp = 0
    T: _Stamp = 0
    s: str = ""
    U: _Id = -1
    u: _Id = -1
    pu: _Id = -1
    b: str | _Levels | None = None
    a: str | _Id | _Levels | None = None
    B: str = ""
    A: str = ""
    t: _Id = -1
    p: str = ""
    q: str = ""
    m: bool | None = None
    X: str = MARKET
    lastUpdateId: _Id = -1
    bids: _Levels | None = None
    asks: _Levels | None = None


class _Line(_Message, gc=False):
    """A raw message, or the wrapper of a combined stream around one."""

    stream: str = ""
    data: _Message | list[msgspec.Raw] | None = None


@dataclass
class _Table:
    """Rows of one kind as they are read: integer columns and decimal text columns."""

    texts_per_row: int
    rows: list[tuple[int, ...]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    row_parts: list[Int64] = field(default_factory=list)
    text_parts: list[Float64] = field(default_factory=list)

    def flush(self) -> None:
        """Move what was read from Python objects into arrays."""
        if self.rows:
            self.row_parts.append(np.array(self.rows, dtype=np.int64))
            self.rows = []
        if self.texts:
            self.text_parts.append(_parse_decimals(self.texts))
            self.texts = []

    def take(self, width: int) -> tuple[Int64, Float64]:
        """All rows (n, width) and their numbers (n_texts / texts_per_row, texts_per_row)."""
        self.flush()
        rows = np.concatenate([np.empty((0, width), dtype=np.int64), *self.row_parts])
        numbers = np.concatenate([np.empty(0), *self.text_parts])
        return rows, numbers.reshape(-1, self.texts_per_row)


@dataclass
class _Raw:
    """Everything of one symbol in the file, in file order."""

    line_numbers: list[int] = field(default_factory=list)
    recv: list[int] = field(default_factory=list)
    # Rows: (message, event ns, u); numbers: bid, bid size, ask, ask size.
    quotes: _Table = field(default_factory=lambda: _Table(4))
    # Rows: (message, event ns, trade id, sell, in the book); numbers: price, size.
    trades: _Table = field(default_factory=lambda: _Table(2))
    agg_trades: _Table = field(default_factory=lambda: _Table(2))
    # Rows: (message, event ns, U, u, pu, snapshot, bids, asks); numbers: price, size, per level.
    depth: _Table = field(default_factory=lambda: _Table(2))
    latency_ns: list[int] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    damaged: Bounded = field(default_factory=Bounded)
    symbols: Counter[str] = field(default_factory=Counter)
    lines: int = 0


def read_recording(
    path: Path,
    symbol: str,
    *,
    perpetual: bool,
    types: tuple[str, ...] = ("quotes", "trades", "depth"),
    clock_offset_ms: float | None = None,
    damaged_rows_max: int = 0,
) -> Parsed:
    """Read one symbol of a recording.

    Parameters
    ----------
    path
        The recording, gzip or plain.
    symbol
        The exchange's symbol, e.g. ``BTCUSDT``.
    perpetual
        USD-M (chain by ``pu``) or spot (chain by ``U``).
    types
        What to import: ``quotes``, ``trades``, ``depth``.
    clock_offset_ms
        Added to receive times; None = detect.
    damaged_rows_max
        Damaged rows to leave out before the import fails.

    Raises
    ------
    DataError
        Missing, empty, too large, no row of the symbol, time going back, or too much damage.
    """
    if not types:
        raise DataError(f"{path}: types is empty; name quotes, trades or depth")
    if clock_offset_ms is not None and not math.isfinite(clock_offset_ms):
        raise DataError(f"{path}: clock offset {clock_offset_ms} ms is not finite")
    raw = _read_lines(path, symbol, perpetual)
    numbers = np.array(raw.line_numbers, dtype=np.int64)
    recv = np.array(raw.recv, dtype=np.int64)
    offset_ns, clock = _clock(np.array(raw.latency_ns, dtype=np.int64), clock_offset_ms)
    ts = separate_ties(recv) + offset_ns
    parsed = Parsed(facts={"lines": raw.lines, "clock": clock, "clock_offset_ns": offset_ns})
    gaps, trade_gaps = Bounded(), Bounded()
    if "quotes" in types:
        _take_quotes(parsed, raw, ts, numbers)
    if "trades" in types:
        _take_trades(parsed, raw, ts, numbers, trade_gaps)
    if "depth" in types:
        _take_depth(parsed, raw, ts, numbers, gaps, perpetual=perpetual)
    if raw.damaged.total > damaged_rows_max:
        first = raw.damaged.listed[0]
        raise DataError(
            f"{path}: {raw.damaged.total} damaged rows (line {first['line']}: {first['reason']}); "
            "mend the file or raise damaged_rows_max"
        )
    if not any(parsed.counts().values()):
        raise DataError(f"{path}: no {' or '.join(types)} of {symbol} in it")
    parsed.facts |= {
        "gaps": {"sequence": gaps.state(), "trade_id": trade_gaps.state()},
        "ignored": dict(sorted(raw.ignored.items())),
        "damaged": raw.damaged.state(),
    }
    return parsed


def _read_lines(path: Path, symbol: str, perpetual: bool) -> _Raw:
    """Sort every line of the file into the tables of its kind."""
    raw = _Raw()
    decode = msgspec.json.Decoder(_Line).decode
    previous = 0
    for number, line in enumerate(_lines(path, raw), start=1):
        raw.lines = number
        head, _, body = line.partition(b" ")
        try:
            recv = int(head)
        except ValueError:
            raw.damaged.add(line=number, reason="does not start with a receive time")
            continue
        if not TS_MIN_NS < recv < TS_MAX_NS:
            raw.damaged.add(line=number, reason=f"receive time {recv} is not in nanoseconds")
            continue
        try:
            envelope = decode(body)
        except msgspec.DecodeError as error:  # also a ValidationError: a field of another type
            raw.damaged.add(line=number, reason=f"not a message: {error}")
            continue
        if recv < previous:
            raise DataError(
                f"{path}: receive time goes back at line {number}; sort the file by receive time"
            )
        previous = recv
        if isinstance(envelope.data, list) or _PARTIAL.search(envelope.stream):
            raw.ignored[envelope.stream] += 1
            continue
        message = envelope.data or envelope
        if message.s and message.s != symbol:
            raw.symbols[message.s] += 1
            continue
        if message.e == "depthUpdate" and (message.pu >= 0) != perpetual:
            kind = "USD-M: name it with -PERP" if message.pu >= 0 else "spot: name it without -PERP"
            raise DataError(f"{path}: line {number} is of {symbol} {kind}")
        reason = _sort_message(raw, message, recv)
        if reason:
            raw.damaged.add(line=number, reason=reason)
        else:
            raw.line_numbers.append(number)
            raw.recv.append(recv)
        if number % FLUSH_ROWS == 0:
            for table in (raw.quotes, raw.trades, raw.agg_trades, raw.depth):
                table.flush()
    if raw.lines == 0:
        raise DataError(f"{path}: empty; record again")
    if raw.symbols:
        raw.ignored["other symbol"] = raw.symbols.total()
        if not raw.recv:
            seen = ", ".join(sorted(raw.symbols)[:5])
            raise DataError(f"{path}: no {symbol} in it; it holds {seen}")
    return raw


def _sort_message(raw: _Raw, message: _Message, recv: int) -> str:
    """Put one message into its table; returns what is wrong with it, if anything."""
    at = len(raw.recv)
    event = _event_ns(message.T or message.E)
    match message.e:
        case "bookTicker" | "":
            if message.lastUpdateId >= 0:
                return _sort_depth(raw, message, at, event, message.bids, message.asks)
            if not (isinstance(message.b, str) and isinstance(message.a, str)):
                raw.ignored["control"] += 1
                return ""
            if not (message.B and message.A and message.u >= 0):
                return "a bookTicker without u, b, B, a or A"
            raw.quotes.rows.append((at, event, message.u))
            raw.quotes.texts += (message.b, message.B, message.a, message.A)
        case "trade" | "aggTrade":
            trade_id = message.t if message.e == "trade" else message.a
            if message.m is None or not isinstance(trade_id, int) or trade_id < 0 or not event:
                return f"a {message.e} without its id, m or time"
            table = raw.trades if message.e == "trade" else raw.agg_trades
            table.rows.append((at, event, trade_id, message.m, message.X == MARKET))
            table.texts += (message.p, message.q)
        case "depthUpdate":
            bids, asks = message.b, message.a
            if message.U < 0 or message.u < message.U or not event:
                return "a depthUpdate without U, u or time"
            if not (isinstance(bids, list) and isinstance(asks, list)):
                return "a depthUpdate without levels"
            reason = _sort_depth(raw, message, at, event, bids, asks)
            if reason:
                return reason
        case other:
            raw.ignored[other] += 1
            return ""
    if message.E:
        raw.latency_ns.append(recv - _event_ns(message.E))
    return ""


def _event_ns(stamp: int) -> int:
    """Exchange time in nanoseconds; a stream may be asked for microseconds."""
    return stamp * 1_000 if stamp > US_STAMP_MIN else stamp * NS_PER_MS


def _sort_depth(
    raw: _Raw,
    message: _Message,
    at: int,
    event: int,
    bids: _Levels | None,
    asks: _Levels | None,
) -> str:
    if bids is None or asks is None:
        return "a snapshot without bids or asks"
    snapshot = message.lastUpdateId >= 0
    last = message.lastUpdateId if snapshot else message.u
    raw.depth.rows.append(
        (at, event, message.U, last, message.pu, snapshot, len(bids), len(asks)),
    )
    raw.depth.texts += chain.from_iterable(bids)
    raw.depth.texts += chain.from_iterable(asks)
    return ""


def _lines(path: Path, raw: _Raw) -> Iterator[bytes]:
    """Lines without their ends; a torn gzip tail counts as one damaged row."""
    size = 0
    try:
        with _open(path) as file:
            while line := file.readline(LINE_BYTES_MAX):
                size += len(line)
                if size > RECORDING_BYTES_MAX:
                    raise DataError(f"{path}: over {RECORDING_BYTES_MAX} bytes; split the file")
                yield line
    except FileNotFoundError:
        raise DataError(f"{path}: no such recording; check the path") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raw.damaged.add(line=raw.lines + 1, reason=f"gzip is cut off or damaged: {error}")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def _open(path: Path) -> BinaryIO | gzip.GzipFile:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if packed else path.open("rb")


def _parse_decimals(texts: list[str]) -> Float64:
    """Doubles (n,) of decimal texts; NaN where a text is no number."""
    try:
        return np.asarray(pc.cast(pa.array(texts, pa.string()), pa.float64()))
    except pa.ArrowInvalid:
        return np.array([_number_or_nan(text) for text in texts], dtype=np.float64)


def _number_or_nan(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _clock(latency_ns: Int64, given_ms: float | None) -> tuple[int, dict[str, Any]]:
    """Find the constant to add to receive times, and what is known about the clock."""
    facts: dict[str, Any] = {"events_with_exchange_time": len(latency_ns)}
    quantiles = np.array([OFFSET_QUANTILE, 0.5, 0.99, 1.0])
    offset = 0
    low = 0
    if len(latency_ns):
        values = np.quantile(latency_ns, quantiles, method="lower")
        low = int(values[0])
        names = ("low", "p50", "p99", "max")
        facts["receive_minus_event_ms"] = {
            name: value / NS_PER_MS for name, value in zip(names, values.tolist(), strict=True)
        }
    if given_ms is not None:
        offset = round(given_ms * NS_PER_MS)
        facts["offset"] = "given"
    elif low < 0:
        step = OFFSET_STEP_MS * NS_PER_MS
        offset = -(low // step) * step
        facts["offset"] = "detected"
    else:
        facts["offset"] = "none needed"
    facts["offset_ms"] = offset / NS_PER_MS
    facts["events_after_receipt"] = int(np.count_nonzero(latency_ns + offset < 0))
    return offset, facts


def _reject(raw: _Raw, lines: Int64, checks: dict[str, Any]) -> NDArray[np.bool_]:
    """List the rows that fail a check, the first failed one each; returns which to keep (n,)."""
    bad = np.logical_or.reduce(list(checks.values()))
    for row in np.flatnonzero(bad).tolist():
        reason = next(name for name, failed in checks.items() if failed[row])
        raw.damaged.add(line=int(lines[row]), reason=reason)
    keep: NDArray[np.bool_] = np.logical_not(bad)
    return keep


def _going_back(values: Int64) -> NDArray[np.bool_]:
    """Where a value is not above every one before it (n,)."""
    bad = np.zeros(len(values), dtype=np.bool_)
    bad[1:] = values[1:] <= np.maximum.accumulate(values)[:-1]
    return bad


def _take_quotes(parsed: Parsed, raw: _Raw, ts: Int64, lines: Int64) -> None:
    rows, numbers = raw.quotes.take(3)
    parsed.source_counts["quotes"] = len(rows)
    if not len(rows):
        return
    bid, bid_size, ask, ask_size = numbers.T
    with np.errstate(invalid="ignore"):
        keep = _reject(
            raw,
            lines[rows[:, 0]],
            {
                "a quote with a number that is not finite": ~np.isfinite(numbers).all(axis=1),
                "a quote with a price that is not positive": (bid <= 0) | (ask <= 0),
                "a quote with a size that is not positive": (bid_size <= 0) | (ask_size <= 0),
                "a crossed quote (bid >= ask)": bid >= ask,
                "a quote older than the one before": np.r_[False, np.diff(rows[:, 2]) < 0],
            },
        )
    rows, numbers = rows[keep], numbers[keep]
    ts_init = ts[rows[:, 0]]
    bid, bid_size, ask, ask_size = (
        to_numbers(column, "quotes") for column in np.ascontiguousarray(numbers.T)
    )
    parsed.quotes = Quotes(
        ts_event=np.where(rows[:, 1] > 0, rows[:, 1], ts_init),
        ts_init=ts_init,
        bid=bid,
        ask=ask,
        bid_size=bid_size,
        ask_size=ask_size,
    )


def _take_trades(parsed: Parsed, raw: _Raw, ts: Int64, lines: Int64, gaps: Bounded) -> None:
    rows, numbers = raw.trades.take(5)
    aggregated, agg_numbers = raw.agg_trades.take(5)
    if len(rows) and len(aggregated):
        raw.ignored["aggTrade (the recording has trade)"] = len(aggregated)
    elif len(aggregated):
        rows, numbers = aggregated, agg_numbers
        parsed.facts["trades_are"] = "aggTrade"
    off_book = rows[:, 4] == 0
    if off_book.any():
        raw.ignored["trade outside the book (X is not MARKET)"] = int(off_book.sum())
        rows, numbers = rows[~off_book], numbers[~off_book]
    parsed.source_counts["trades"] = len(rows)
    if not len(rows):
        return
    with np.errstate(invalid="ignore"):
        keep = _reject(
            raw,
            lines[rows[:, 0]],
            {
                "a trade with a number that is not finite": ~np.isfinite(numbers).all(axis=1),
                "a trade with a price that is not positive": numbers[:, 0] <= 0,
                "a trade with a size that is not positive": numbers[:, 1] <= 0,
                "a trade id that repeats or goes back": _going_back(rows[:, 2]),
            },
        )
    rows, numbers = rows[keep], numbers[keep]
    ids = rows[:, 2]
    for hole in np.flatnonzero(np.diff(ids) > 1).tolist():
        gaps.add(line=int(lines[rows[hole + 1, 0]]), missing=int(ids[hole + 1] - ids[hole] - 1))
    parsed.trades = Trades(
        ts_event=np.ascontiguousarray(rows[:, 1]),
        ts_init=ts[rows[:, 0]],
        price=to_numbers(np.ascontiguousarray(numbers[:, 0]), "trades"),
        size=to_numbers(np.ascontiguousarray(numbers[:, 1]), "trades"),
        sell=rows[:, 3] == 1,  # the buyer was the maker, so the seller took
        trade_id=np.ascontiguousarray(ids),
    )


@dataclass
class _Step:
    """One message that reaches the catalog: emptied book first, then its levels."""

    message: int
    at: int
    """Row of the message table whose receive time it carries."""
    clear: bool = False
    levels: bool = True


def _take_depth(
    parsed: Parsed,
    raw: _Raw,
    ts: Int64,
    lines: Int64,
    gaps: Bounded,
    *,
    perpetual: bool,
) -> None:
    rows, numbers = raw.depth.take(8)
    n_levels = rows[:, 6] + rows[:, 7]
    parsed.source_counts["depth"] = int(n_levels.sum())
    if not len(rows):
        return
    if raw.symbols and (rows[:, 5] == 1).any():
        raise DataError(
            "the recording holds several symbols and REST snapshots, which name none; "
            "split it by symbol, or import quotes and trades only"
        )
    first = np.r_[0, np.cumsum(n_levels)]
    good = _check_levels(raw, lines[rows[:, 0]], numbers, first)
    sync = _Synchroniser(rows, lines[rows[:, 0]], n_levels, good, gaps, raw, perpetual)
    sync.run()
    parsed.facts["depth"] = {
        "messages": int((rows[:, 5] == 0).sum()),
        "snapshots": int((rows[:, 5] == 1).sum()),
        "clears_added": sum(step.clear for step in sync.steps),
        "superseded_levels": sync.superseded,
        "unsynchronised_levels": sync.unsynchronised,
        "damaged_levels": sync.damaged,
        "partial_from_line": sync.partial_from,
    }
    if sync.steps:
        parsed.depth = _expand(sync.steps, rows, numbers, first, ts)


def _check_levels(raw: _Raw, lines: Int64, numbers: Float64, first: Int64) -> NDArray[np.bool_]:
    """Which depth messages (n,) have only possible levels; the others are listed."""
    with np.errstate(invalid="ignore"):
        bad = ~(np.isfinite(numbers).all(axis=1) & (numbers[:, 0] > 0) & (numbers[:, 1] >= 0))
    per_message = np.diff(np.r_[0, np.cumsum(bad)][first])
    return _reject(raw, lines, {"a depth level with an impossible number": per_message > 0})


class _Synchroniser:
    """Apply Binance's book rule to depth messages; see the module's docstring."""

    def __init__(
        self,
        rows: Int64,
        lines: Int64,
        n_levels: Int64,
        good: NDArray[np.bool_],
        gaps: Bounded,
        raw: _Raw,
        perpetual: bool,
    ) -> None:
        self.rows: list[list[int]] = rows.tolist()
        self.lines: list[int] = lines.tolist()
        self.n_levels: list[int] = n_levels.tolist()
        self.good: list[bool] = good.tolist()
        self.last_snapshot = int(np.flatnonzero((rows[:, 5] == 1) & good).max(initial=-1))
        self.gaps, self.raw, self.perpetual = gaps, raw, perpetual
        self.steps: list[_Step] = []
        self.superseded = self.unsynchronised = self.damaged = 0
        self.partial_from: int | None = None
        self.pending: list[int] = []
        self.last_id: int | None = None
        self.snapshot_id = -1

    def run(self) -> None:
        """Decide the fate of every message, in file order."""
        for message, row in enumerate(self.rows):
            if not self.good[message]:
                self.damaged += self.n_levels[message]
            elif row[5]:
                self._snapshot(message)
            elif self.last_id is None and message < self.last_snapshot:
                self.pending.append(message)
            else:
                self._difference(message, message)

    def _snapshot(self, message: int) -> None:
        snapshot_id = self.rows[message][3]
        if self.last_id is not None and snapshot_id <= self.last_id:
            self.superseded += self.n_levels[message]  # the book is in step and newer
            return
        self.steps.append(_Step(message, message, clear=True))
        self.last_id = self.snapshot_id = snapshot_id
        self.partial_from = None
        pending, self.pending = self.pending, []
        for waiting in pending:
            if self.last_id is None:  # the snapshot was too old for what waited
                self.unsynchronised += self.n_levels[waiting]
            else:
                self._difference(waiting, message)

    def _difference(self, message: int, at: int) -> None:
        _, _, first_id, last_id, previous_id, *_ = self.rows[message]
        if self.last_id is None:  # no snapshot comes: build from differences alone
            self.partial_from = self.lines[message]
            self.steps.append(_Step(message, at, clear=True))
            self.last_id = last_id
            return
        if last_id <= self.snapshot_id:
            self.superseded += self.n_levels[message]
            return
        if last_id <= self.last_id:
            self.damaged += self.n_levels[message]
            self.raw.damaged.add(line=self.lines[message], reason="a depth update id that repeats")
            return
        chained = previous_id == self.last_id if self.perpetual else first_id == self.last_id + 1
        first_kept = self.last_id == self.snapshot_id
        wanted = self.last_id if self.perpetual else self.last_id + 1
        if chained or (first_kept and first_id <= wanted <= last_id):
            self.steps.append(_Step(message, at))
            self.last_id = last_id
            return
        self._gap(message, at)

    def _gap(self, message: int, at: int) -> None:
        self.gaps.add(
            line=self.lines[message], after_id=self.last_id, next_id=self.rows[message][2]
        )
        self.last_id = None
        self.snapshot_id = -1
        if message < self.last_snapshot:
            self.steps.append(_Step(message, at, clear=True, levels=False))
            self.pending.append(message)
        else:
            self._difference(message, at)


def _expand(steps: list[_Step], rows: Int64, numbers: Float64, first: Int64, ts: Int64) -> Depth:
    """Lay the kept messages out as level changes (n,)."""
    message = np.array([step.message for step in steps], dtype=np.int64)
    at = np.array([step.at for step in steps], dtype=np.int64)
    clear = np.array([step.clear for step in steps], dtype=np.int64)
    n_levels = np.array(
        [first[step.message + 1] - first[step.message] if step.levels else 0 for step in steps],
        dtype=np.int64,
    )
    n_rows = clear + n_levels
    keep = n_rows > 0  # an empty message changes nothing
    message, at, clear, n_levels, n_rows = (
        array[keep] for array in (message, at, clear, n_levels, n_rows)
    )
    step_of = np.repeat(np.arange(len(message)), n_rows)
    start = np.r_[0, np.cumsum(n_rows)][:-1]
    within = np.arange(len(step_of)) - start[step_of] - clear[step_of]  # -1 at a clear
    is_clear = within < 0
    level = np.where(is_clear, 0, first[message][step_of] + within)
    price = np.where(is_clear, 0.0, numbers[level, 0])
    size = np.where(is_clear, 0.0, numbers[level, 1])
    snapshot = rows[message, 5][step_of] == 1
    action = np.where(size > 0, np.where(snapshot, ADD, UPDATE), DELETE)
    action = np.where(is_clear, CLEAR, action).astype(np.int8)
    flags = np.where(snapshot | is_clear, F_SNAPSHOT, 0)
    flags[start + n_rows - 1] |= F_LAST
    ts_init = ts[rows[at, 0]][step_of]
    event = rows[message, 1][step_of]
    return Depth(
        ts_event=np.where(event > 0, event, ts_init),
        ts_init=ts_init,
        action=action,
        ask=~is_clear & (within >= rows[message, 6][step_of]),
        price=to_numbers(price, "depth"),
        size=to_numbers(size, "depth"),
        flags=flags.astype(np.uint8),
        sequence=rows[message, 3][step_of],
    )

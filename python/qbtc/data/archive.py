"""Read files of the Binance bulk archive: one CSV, zipped or not, of klines, trades or aggTrades.

The traps, all handled here
---------------------------
- Spot files have no header, USD-M files have one (older ones may not): the first byte decides, and
  a header must be the known one.
- Spot stamps are microseconds from 2025 on and milliseconds before; a stamp beyond 10**14 is read
  as microseconds.
- Booleans are ``True``/``False`` (spot) or ``true``/``false`` (USD-M).
- A zip holds exactly one CSV; its declared size and its ratio are limited before it is opened.

Several files of one kind make one source: they are put in order of time and must not overlap.
Trades carry no receive time: ``ts_init`` is the exchange's time, kept apart by 1 ns where several
share a millisecond.
"""

import io
import re
import zipfile
import zlib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
from numpy.typing import NDArray

from qbtc.data.klines import PRICES, make_bars
from qbtc.data.rows import (
    TS_MAX_NS,
    TS_MIN_NS,
    Bounded,
    Int64,
    Parsed,
    Trades,
    check_rising,
    separate_ties,
    to_ns,
    to_numbers,
)
from qbtc.errors import DataError

__all__ = ["Kind", "parse_name", "read_archive"]

type Kind = Literal["klines", "trades", "aggTrades"]

CSV_BYTES_MAX = 8 * 1024**3
"""Uncompressed; a month of the busiest symbol's trades is about half of it."""
ZIP_RATIO_MAX = 200
"""Real files are between 3 and 15; far beyond is a bomb."""
SNIFF_BYTES = 4096

_KLINES = (
    *("open_time", "open", "high", "low", "close", "volume", "close_time", "quote_volume"),
    *("count", "taker_buy_volume", "taker_buy_quote_volume", "ignore"),
)
_TRADES = ("id", "price", "qty", "quote_qty", "time", "is_buyer_maker")
_AGG_TRADES = (
    *("agg_trade_id", "price", "quantity", "first_trade_id", "last_trade_id"),
    *("transact_time", "is_buyer_maker"),
)
LAYOUTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "klines": (_KLINES,),
    "trades": (_TRADES, (*_TRADES, "is_best_match")),
    "aggTrades": (_AGG_TRADES, (*_AGG_TRADES, "is_best_match")),
}
"""Columns by kind: USD-M, and spot where it has one more."""
_TYPES = {
    "int64": ("open_time", "close_time", "id", "time", "agg_trade_id", "transact_time"),
    "float64": (*PRICES, "volume", "price", "qty", "quantity"),
}
_USED: dict[str, tuple[str, ...]] = {
    "klines": ("open_time", *PRICES, "volume", "close_time"),
    "trades": ("id", "price", "qty", "time", "is_buyer_maker"),
    "aggTrades": ("agg_trade_id", "price", "quantity", "transact_time", "is_buyer_maker"),
}
_NAME = re.compile(
    r"(?P<symbol>[^-]+)-(?P<what>[A-Za-z0-9]+)-(?P<period>\d{4}-\d\d(-\d\d)?)\.(zip|csv)"
)


@dataclass(frozen=True)
class ArchiveName:
    """What the name of an archive file says."""

    symbol: str
    kind: Kind
    interval: str | None


def parse_name(name: str) -> ArchiveName | None:
    """Read ``BTCUSDT-1m-2024-01.zip`` or ``BTCUSDT-aggTrades-2024-01-31.csv``; None if neither."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    if match["what"] in ("trades", "aggTrades"):
        return ArchiveName(match["symbol"], match["what"], None)  # type: ignore[arg-type]
    return ArchiveName(match["symbol"], "klines", match["what"])


def read_archive(paths: list[Path], symbol: str, kind: Kind, interval: str) -> Parsed:
    """Read files of one symbol and kind.

    Parameters
    ----------
    paths
        Zip or CSV files, in any order.
    symbol
        The exchange's symbol; a file named after another one is an error.
    kind, interval
        What the files hold; the interval matters to klines only.

    Raises
    ------
    DataError
        A file is missing, damaged, of another kind, empty, unsorted, or overlaps another; names
        the file and, where there is one, the row.
    """
    if not paths:
        raise DataError("no archive files given; name at least one")
    tables: list[tuple[Path, pa.Table, Int64]] = []
    for path in paths:
        _check_name(path, symbol, kind, interval)
        table = _read_file(path, kind)
        tables.append((path, table, _times(path, table, kind)))
    tables.sort(key=lambda entry: int(entry[2][0]))
    for (path, _, ts), (other, _, later) in pairwise(tables):
        if later[0] < ts[-1] or (kind == "klines" and later[0] == ts[-1]):
            raise DataError(f"{other}: overlaps {path.name} in time; give each day once")
    table = pa.concat_tables([table for _, table, _ in tables])
    times = np.concatenate([ts for _, _, ts in tables])
    if kind == "klines":
        return _klines(paths, table, times, interval)
    return _trades(table, times, kind)


def _check_name(path: Path, symbol: str, kind: Kind, interval: str) -> None:
    said = parse_name(path.name)
    if said is None:
        return
    if said.symbol != symbol:
        raise DataError(f"{path}: is of {said.symbol}, not of {symbol}; name the right instrument")
    if said.kind != kind:
        raise DataError(f"{path}: holds {said.kind}, not {kind}")
    if kind == "klines" and said.interval != interval:
        raise DataError(f"{path}: is of interval {said.interval}, not {interval}")


def _read_file(path: Path, kind: Kind) -> pa.Table:
    """Read the columns used of one file and check its values row by row."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive, archive.open(_only_csv(path, archive)) as file:
                table = _read_csv(path, file, kind)
        elif path.suffix.lower() == ".zip":
            path.open("rb").close()
            raise DataError(f"{path}: not a zip file, or cut off; fetch it again")
        else:
            with path.open("rb") as file:
                table = _read_csv(path, file, kind)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the path or fetch it first") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{path}: damaged zip: {error}; fetch it again") from None
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: not {kind} as the archive has them: {reason}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    if len(table) == 0:
        raise DataError(f"{path}: no rows; nothing to import")
    _check_values(path, table, kind)
    return table


def _only_csv(path: Path, archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    """Find the one CSV and refuse what is too large before a byte of it is unpacked."""
    entries = archive.infolist()
    if len(entries) != 1 or not entries[0].filename.endswith(".csv"):
        names = ", ".join(entry.filename for entry in entries[:3]) or "nothing"
        raise DataError(f"{path}: an archive file holds one CSV, this one {names}")
    entry = entries[0]
    if entry.file_size > CSV_BYTES_MAX:
        raise DataError(f"{path}: unpacks to {entry.file_size} bytes, over {CSV_BYTES_MAX}")
    if entry.file_size > ZIP_RATIO_MAX * max(entry.compress_size, 1024):
        raise DataError(
            f"{path}: unpacks to {entry.file_size} bytes from {entry.compress_size}; "
            "this is no market data"
        )
    return entry


class _Rest(io.RawIOBase):
    """A file whose first bytes were read already."""

    def __init__(self, head: bytes, file: IO[bytes]) -> None:
        self._head, self._file = head, file
        self._left = CSV_BYTES_MAX

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._head[: len(buffer)] or self._file.read(len(buffer))
        self._head = self._head[len(buffer) :]
        self._left -= len(data)
        if self._left < 0:
            raise EOFError(f"over {CSV_BYTES_MAX} bytes")
        buffer[: len(data)] = data
        return len(data)


def _read_csv(path: Path, file: IO[bytes], kind: Kind) -> pa.Table:
    head = file.read(SNIFF_BYTES)
    first = head.split(b"\n", 1)[0].strip().decode("utf-8", "replace").removeprefix("\ufeff")
    if not first:
        raise DataError(f"{path}: empty; nothing to import")
    fields = first.split(",")
    header = not fields[0][:1].isdigit()
    layout = next((names for names in LAYOUTS[kind] if len(names) == len(fields)), None)
    if layout is None or (header and tuple(fields) != layout):
        wanted = " or ".join(str(len(names)) for names in LAYOUTS[kind])
        raise DataError(
            f"{path}: columns {first[:80]!r} are not those of {kind} ({wanted} columns: "
            f"{', '.join(LAYOUTS[kind][0][:5])}, ...)"
        )
    types = {name: kind_ for kind_, names in _TYPES.items() for name in names}
    return csv.read_csv(
        pa.PythonFile(io.BufferedReader(_Rest(head, file)), mode="r"),
        read_options=csv.ReadOptions(column_names=list(layout), skip_rows=int(header)),
        convert_options=csv.ConvertOptions(
            column_types={name: types.get(name, "string") for name in layout},
            include_columns=list(_USED[kind]),
            null_values=[],
            strings_can_be_null=False,
        ),
    )


def _check_values(path: Path, table: pa.Table, kind: Kind) -> None:
    """Refuse numbers that are not finite or not positive (a kline's volume may be 0)."""
    for name in _USED[kind]:
        column = table[name]
        if not pa.types.is_floating(column.type):
            continue
        values = np.asarray(column)
        bad = ~np.isfinite(values) | ((values < 0) if name == "volume" else (values <= 0))
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise DataError(f"{path}: {name} {values[row]} of row {row + 1} is not possible")


def _times(path: Path, table: pa.Table, kind: Kind) -> Int64:
    """Exchange times (n,) of one file in nanoseconds, checked to rise."""
    name = {"klines": "open_time", "trades": "time", "aggTrades": "transact_time"}[kind]
    stamps = to_ns(np.asarray(table[name]))
    bad = np.flatnonzero((stamps < TS_MIN_NS) | (stamps > TS_MAX_NS))
    if len(bad):
        raise DataError(f"{path}: {name} of row {int(bad[0]) + 1} is not in ms or microseconds")
    if kind == "klines":
        check_rising(stamps, str(path))
    else:
        back = np.flatnonzero(np.diff(stamps) < 0)
        if len(back):
            raise DataError(f"{path}: time goes back at row {int(back[0]) + 2}; sort the file")
        ids = np.asarray(table[table.column_names[0]])
        back = np.flatnonzero(np.diff(ids) <= 0)
        if len(back):
            raise DataError(f"{path}: trade id repeats or goes back at row {int(back[0]) + 2}")
    return stamps


def _klines(paths: list[Path], table: pa.Table, opens: Int64, interval: str) -> Parsed:
    what = str(paths[0]) if len(paths) == 1 else f"{len(paths)} files from {paths[0].name}"
    numbers = {
        name: to_numbers(np.asarray(table[name]), f"{what}: {name}") for name in (*PRICES, "volume")
    }
    closes = to_ns(np.asarray(table["close_time"]))
    return make_bars(what, interval, opens, numbers, closes=closes)


def _trades(table: pa.Table, times: Int64, kind: Kind) -> Parsed:
    ids = np.asarray(table[table.column_names[0]])
    size = "qty" if kind == "trades" else "quantity"
    gaps = Bounded()
    for hole in np.flatnonzero(np.diff(ids) > 1).tolist():
        gaps.add(after_id=int(ids[hole]), missing=int(ids[hole + 1] - ids[hole] - 1))
    repeats = np.flatnonzero(np.diff(ids) <= 0)
    if len(repeats):
        raise DataError(f"trade id {int(ids[repeats[0] + 1])} is in two files; give each day once")
    return Parsed(
        trades=Trades(
            ts_event=times,
            ts_init=separate_ties(times),
            price=to_numbers(np.asarray(table["price"]), "price"),
            size=to_numbers(np.asarray(table[size]), size),
            sell=_truths(table["is_buyer_maker"]),
            trade_id=ids,
        ),
        source_counts={"trades": len(ids)},
        facts={"gaps": {"trade_id": gaps.state()}, "trades_are": kind},
    )


def _truths(column: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Read ``True``/``true`` and ``False``/``false`` (n,)."""
    words = pc.utf8_lower(column)
    true, false = pc.equal(words, "true"), pc.equal(words, "false")
    bad = np.flatnonzero(~np.asarray(pc.or_(true, false)))
    if len(bad):
        row = int(bad[0])
        raise DataError(f"is_buyer_maker {column[row].as_py()!r} of row {row + 1} is not a boolean")
    return np.asarray(true)

"""Read packed klines (Parquet) as bars.

Two layouts are known by their columns:

- integers: ``open_time_ms``, ``{open,high,low,close}_c`` (price x 100) and ``volume_e8``
  (quantity x 10**8);
- decimals: ``ts`` (timestamp, open time) and doubles ``open, high, low, close, volume``.

A bar's time is the end of its interval (open time + interval): nothing of it was known before.
Nautilus bars carry open, high, low, close and base volume; taker volume and trade counts stay in
the file. Minutes without trades are kept as bars of volume 0; minutes without a row are gaps.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qbtc.data.rows import (
    NS_PER_MS,
    Bars,
    Bounded,
    Float64,
    Int64,
    Numbers,
    Parsed,
    check_rising,
    find_gaps,
    parse_interval,
    scaled,
    to_numbers,
)
from qbtc.errors import DataError

__all__ = ["make_bars", "read_klines"]

ROWS_MAX = 50_000_000
PRICES = ("open", "high", "low", "close")
PACKED = ("open_time_ms", "open_c", "high_c", "low_c", "close_c", "volume_e8")
DECIMAL = ("ts", *PRICES, "volume")


def read_klines(path: Path, interval: str) -> Parsed:
    """Read one packed file.

    Parameters
    ----------
    path
        The Parquet file.
    interval
        Of its klines, e.g. ``1m``; rows closer together are an error, rows further apart a gap.

    Raises
    ------
    DataError
        Missing, not Parquet, other columns, empty, unsorted, or a bar that cannot be.
    """
    step = parse_interval(interval)
    if step == 0:
        raise DataError(f"{path}: packed klines of interval {interval} are not supported")
    table = _read(path)
    names = set(table.column_names)
    if names.issuperset(PACKED):
        opens = _integers(table, "open_time_ms", path) * NS_PER_MS
        numbers = {name: scaled(_integers(table, f"{name}_c", path), 2) for name in PRICES}
        numbers["volume"] = scaled(_integers(table, "volume_e8", path), 8)
    elif names.issuperset(DECIMAL):
        opens = _integers(table, "ts", path)
        numbers = {
            name: to_numbers(_doubles(table, name, path), f"{path}: {name}") for name in DECIMAL[1:]
        }
    else:
        raise DataError(
            f"{path}: columns {', '.join(sorted(names)[:12])} are not klines; "
            f"expected {', '.join(PACKED)} or {', '.join(DECIMAL)}"
        )
    return make_bars(str(path), interval, opens, numbers)


def make_bars(
    what: str,
    interval: str,
    opens: Int64,
    numbers: dict[str, Numbers],
    *,
    closes: Int64 | None = None,
) -> Parsed:
    """Check klines and lay them out as bars.

    Parameters
    ----------
    what
        Named in errors.
    interval
        Such as ``1m``.
    opens
        Open times (n,), nanoseconds.
    numbers
        ``open``, ``high``, ``low``, ``close`` and base ``volume``, (n,) each.
    closes
        Close times (n,) as Binance gives them, just before the end of the interval; needed where
        the interval has no fixed length.

    Raises
    ------
    DataError
        Unsorted or duplicated times, or an impossible bar; names the row.
    """
    if len(opens) == 0:
        raise DataError(f"{what}: no rows; nothing to import")
    step = parse_interval(interval)
    check_rising(opens, what)
    if step and len(opens) > 1:
        close_rows = np.flatnonzero(np.diff(opens) % step)
        if len(close_rows):
            raise DataError(
                f"{what}: row {int(close_rows[0]) + 2} is not a multiple of {interval} after the "
                "one before; is the interval right?"
            )
        if np.diff(opens).min() > step:
            raise DataError(f"{what}: no two rows are {interval} apart; is the interval right?")
    prices = [numbers[name] for name in PRICES]
    decimals = max(price.decimals for price in prices)
    first, high, low, last = (price.at(decimals) for price in prices)
    volume = numbers["volume"]
    bad = (low <= 0) | (high < np.maximum(first, last)) | (low > np.minimum(first, last))
    bad |= volume.units < 0
    if bad.any():
        row = int(np.flatnonzero(bad)[0]) + 1
        raise DataError(f"{what}: row {row} is not a bar (low <= open, close <= high, volume >= 0)")
    if step:
        ends = opens + step
    elif closes is not None:
        ends = (closes // NS_PER_MS + 1) * NS_PER_MS
    else:
        raise DataError(f"{what}: klines of interval {interval} need close times")
    gaps = Bounded()
    missing = find_gaps(opens, step, gaps)
    return Parsed(
        bars=Bars(interval, ends, **numbers),
        source_counts={"bars": len(opens)},
        facts={
            "gaps": {"bars": gaps.state() | {"missing_bars": missing}},
            "zero_volume_bars": int((volume.units == 0).sum()),
        },
    )


def _read(path: Path) -> pa.Table:
    try:
        with pq.ParquetFile(path) as file:
            if file.metadata.num_rows > ROWS_MAX:
                raise DataError(f"{path}: over {ROWS_MAX} rows; split the file")
            return file.read()
    except FileNotFoundError:
        raise DataError(f"{path}: no such data file; check the path") from None
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: not a readable Parquet file: {reason}") from None


def _integers(table: pa.Table, name: str, path: Path) -> Int64:
    column = table[name]
    _refuse_nulls(column, name, path)
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("ns", column.type.tz))
    try:
        return np.asarray(column.cast(pa.int64()))
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: column {name} is not whole numbers: {error}") from None


def _doubles(table: pa.Table, name: str, path: Path) -> Float64:
    column = table[name]
    _refuse_nulls(column, name, path)
    values: Float64 = np.asarray(column.cast(pa.float64()))
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise DataError(f"{path}: {name} of row {int(bad[0]) + 1} is not finite; mend the file")
    return values


def _refuse_nulls(column: pa.ChunkedArray, name: str, path: Path) -> None:
    if column.null_count:
        raise DataError(f"{path}: column {name} has {column.null_count} missing values")

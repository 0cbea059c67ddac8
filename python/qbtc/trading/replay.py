"""What a node is going to replay, counted and priced from the catalog's own columns.

Nautilus says only how many items its engine processed. Counting the catalog's rows beforehand
tells how many it must be, per type, so that a run can prove that no event was lost; the mids read
here mark the equity to market. Everything is read column-wise by pyarrow; no event object is made.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from numpy.typing import NDArray

__all__ = ["Mids", "Replay", "read_mids", "read_replay"]

_FOLDERS = {
    "quotes": "quotes",
    "trades": "trades",
    "depth": "order_book_deltas",
    "bars": "bars",
}
_F_LAST = 128
"""Flag of the last level change of one book update; the engine processes one batch per flag."""


@dataclass(frozen=True, slots=True)
class Replay:
    """Rows of one instrument inside the run's time span.

    Attributes
    ----------
    counts
        Rows per type: quotes, trades, depth (level changes), bars; absent types are left out.
    items
        What the engine counts: the same, with the level changes of one book update as one.
    span_ns
        First and last ``ts_init``; None if there is nothing in the span.
    bar_types
        Names of the bar types in the catalog.
    """

    counts: dict[str, int]
    items: int
    span_ns: tuple[int, int] | None
    bar_types: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Mids:
    """Mid prices of one instrument over time."""

    ts: NDArray[np.int64]  # (n,) ns, non-decreasing
    mid: NDArray[np.float64]  # (n,)


def read_replay(
    catalog: Path,
    instrument: str,
    types: tuple[str, ...],
    start: int | None,
    end: int | None,
) -> Replay:
    """Count the rows of an instrument and some types from ``start`` to ``end`` (ns, inclusive)."""
    counts: dict[str, int] = {}
    items = 0
    first: list[int] = []
    last: list[int] = []
    bar_types: list[str] = []
    for kind in types:
        columns = ["ts_init", "flags"] if kind == "depth" else ["ts_init"]
        for name, table in _tables(catalog, kind, instrument, columns, start, end):
            if table.num_rows == 0:
                continue
            counts[kind] = counts.get(kind, 0) + table.num_rows
            items += _updates(table) if kind == "depth" else table.num_rows
            span = pc.min_max(table["ts_init"]).as_py()
            first.append(span["min"])
            last.append(span["max"])
            if kind == "bars":
                bar_types.append(name)
    span_ns = (min(first), max(last)) if first else None
    return Replay(counts, items, span_ns, tuple(bar_types))


def read_mids(catalog: Path, instrument: str, start: int | None, end: int | None) -> Mids:
    """Read the mid of every quote; without quotes the close of every bar, else trade prices."""
    for kind, columns in (
        ("quotes", ["bid_price", "ask_price"]),
        ("bars", ["close"]),
        ("trades", ["price"]),
    ):
        for _, table in _tables(catalog, kind, instrument, ["ts_init", *columns], start, end):
            if table.num_rows == 0:
                continue
            prices = [pc.cast(table[name], pa.float64()).to_numpy() for name in columns]
            ts = table["ts_init"].to_numpy()
            mid = np.mean(prices, axis=0)
            order = np.argsort(ts, kind="stable")
            return Mids(ts[order], mid[order])
    return Mids(np.empty(0, np.int64), np.empty(0))


def _tables(
    catalog: Path,
    kind: str,
    instrument: str,
    columns: list[str],
    start: int | None,
    end: int | None,
) -> list[tuple[str, Any]]:
    """Tables of one type and instrument, one per folder; ``ts_init`` as int64 ns."""
    parent = catalog / "data" / _FOLDERS[kind]
    if not parent.is_dir():
        return []
    folders = [
        folder
        for folder in sorted(parent.iterdir())
        if folder.name == instrument
        or (kind == "bars" and folder.name.startswith(f"{instrument}-"))
    ]
    found = []
    for folder in folders:
        table = ds.dataset(sorted(map(str, folder.glob("*.parquet")))).to_table(columns=columns)
        table = table.set_column(
            table.column_names.index("ts_init"), "ts_init", pc.cast(table["ts_init"], pa.int64())
        )
        if start is not None:
            table = table.filter(pc.greater_equal(table["ts_init"], start))
        if end is not None:
            table = table.filter(pc.less_equal(table["ts_init"], end))
        found.append((folder.name, table))
    return found


def _updates(table: Any) -> int:
    """Book updates in a table of level changes; changes after the last flag make one more."""
    flags = table["flags"].to_numpy()
    ends = np.flatnonzero(flags & _F_LAST)
    tail = len(flags) > 0 and (len(ends) == 0 or ends[-1] != len(flags) - 1)
    return len(ends) + int(tail)

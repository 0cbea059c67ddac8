"""The seeded synthetic market as rows; everything made of it is labelled synthetic.

The generator gives what one market event changes at one time: the trade, then the book levels,
then the new top of book. Each of these becomes a message of its own, 1 ns after the one before
(``rows.separate_ties``), so that the order of the generator is the order of the catalog.
"""

from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from qbtc.core.columns import EventKind
from qbtc.core.market import simulate_market
from qbtc.data.rows import (
    ADD,
    CLEAR,
    DELETE,
    F_LAST,
    F_SNAPSHOT,
    UPDATE,
    Depth,
    Numbers,
    Parsed,
    Quotes,
    Trades,
    separate_ties,
    to_numbers,
)
from qbtc.errors import DataError

__all__ = ["make_synthetic"]


def make_synthetic(
    *,
    seed: int,
    duration_s: float,
    edge: float,
    start: str,
    price: float,
    price_decimals: int,
    size_decimals: int,
) -> Parsed:
    """Generate a synthetic market.

    Parameters
    ----------
    seed, duration_s, edge, price
        As in ``_core.simulate_market``.
    start
        Time of the first event, ISO 8601 with offset.
    price_decimals, size_decimals
        The grid, as decimals of the increments.

    Raises
    ------
    DataError
        A parameter is out of its limits.
    """
    columns = simulate_market(
        seed=seed,
        duration_s=duration_s,
        start_ns=_parse_time(start),
        edge=edge,
        price=price,
        price_increment=float(f"1e-{price_decimals}"),
        size_increment=float(f"1e-{size_decimals}"),
    )
    kind, side, event = columns["kind"], columns["side"], columns["ts"]
    is_depth = (kind == EventKind.DEPTH) | (kind == EventKind.DEPTH_CLEAR)
    # A message is one quote, one trade, or the run of book rows of one time.
    starts = np.ones(len(kind), dtype=np.bool_)
    starts[1:] = (event[1:] != event[:-1]) | ~(is_depth[1:] & is_depth[:-1])
    message = np.cumsum(starts) - 1
    ts = separate_ties(event[starts])[message]

    def numbers(name: str, rows: NDArray[np.intp]) -> Numbers:
        return to_numbers(np.ascontiguousarray(columns[name][rows]), "synthetic market")

    quotes = np.flatnonzero(kind == EventKind.QUOTE)
    trades = np.flatnonzero(kind == EventKind.TRADE)
    depth = np.flatnonzero(is_depth)
    size = columns["b"][depth]
    clear = kind[depth] == EventKind.DEPTH_CLEAR
    snapshot = message[depth] == message[0]
    action = np.where(size > 0, np.where(snapshot, ADD, UPDATE), DELETE)
    last = np.r_[message[depth][1:] != message[depth][:-1], True]
    parsed = Parsed(
        quotes=Quotes(
            ts_event=event[quotes],
            ts_init=ts[quotes],
            bid=numbers("a", quotes),
            bid_size=numbers("b", quotes),
            ask=numbers("c", quotes),
            ask_size=numbers("d", quotes),
        ),
        trades=Trades(
            ts_event=event[trades],
            ts_init=ts[trades],
            price=numbers("a", trades),
            size=numbers("b", trades),
            sell=side[trades] == 1,
            trade_id=np.arange(1, len(trades) + 1, dtype=np.int64),
        ),
        depth=Depth(
            ts_event=event[depth],
            ts_init=ts[depth],
            action=np.where(clear, CLEAR, action).astype(np.int8),
            ask=side[depth] == 1,
            price=numbers("a", depth),
            size=numbers("b", depth),
            flags=(np.where(snapshot, F_SNAPSHOT, 0) + np.where(last, F_LAST, 0)).astype(np.uint8),
            sequence=message[depth].astype(np.int64),
        ),
        synthetic=True,
    )
    parsed.source_counts = parsed.counts()
    return parsed


def _parse_time(text: str) -> int:
    """UNIX nanoseconds of an ISO 8601 time; one without offset is UTC."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise DataError(f"start {text!r} is not a time like 2024-01-01T00:00:00Z") from None
    if time.tzinfo is None:
        time = time.replace(tzinfo=UTC)
    if not 1970 <= time.year < 2200:
        raise DataError(f"start {text!r} is not between 1970 and 2200")
    seconds = int(time.timestamp())
    return seconds * 1_000_000_000 + time.microsecond * 1_000

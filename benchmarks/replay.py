"""The peer of the bulk path: hftbacktest replays the same rows in a compiled no-op loop.

It gets its fast depth (a vector over a price range, not the hash map) and the long stride between
strategy calls; book quotes are left out for it, since it has no use for them.
"""

import time
from collections.abc import Callable

import numpy as np
from hftbacktest import BacktestAsset, ROIVectorMarketDepthBacktest
from hftbacktest.types import (
    BUY_EVENT,
    DEPTH_CLEAR_EVENT,
    DEPTH_EVENT,
    EXCH_EVENT,
    LOCAL_EVENT,
    SELL_EVENT,
    TRADE_EVENT,
    event_dtype,
)
from numba import njit
from numpy.typing import NDArray

from qbtc.core.columns import EventColumns

STRIDE_NS = 100_000_000
"""Market time between two (empty) strategy calls."""
_TRADE, _DEPTH, _CLEAR = 1, 2, 3


def replay_rows(columns: EventColumns) -> NDArray[np.void]:
    """Return the trades and depth rows of ``columns`` as hftbacktest events."""
    kind, side = columns.kind, columns.side
    ev = np.zeros(len(kind), dtype=np.uint64)
    ev[kind == _TRADE] = TRADE_EVENT
    ev[kind == _DEPTH] = DEPTH_EVENT
    ev[kind == _CLEAR] = DEPTH_CLEAR_EVENT
    sided = (kind == _TRADE) | (kind == _DEPTH)
    ev[sided & (side == 0)] |= np.uint64(BUY_EVENT)
    ev[sided & (side == 1)] |= np.uint64(SELL_EVENT)
    ev |= np.uint64(EXCH_EVENT | LOCAL_EVENT)
    used = sided | (kind == _CLEAR)
    rows = np.zeros(int(used.sum()), dtype=event_dtype)
    rows["ev"] = ev[used]
    rows["exch_ts"] = rows["local_ts"] = columns.ts[used]
    rows["px"], rows["qty"] = columns.a[used], columns.b[used]
    return rows


@njit
def _elapse(backtest: object, stride_ns: int) -> int:
    calls = 0
    while backtest.elapse(stride_ns) == 0:  # type: ignore[attr-defined]
        calls += 1
    return calls


def replay_burst(rows: NDArray[np.void], tick: float, lot: float) -> Callable[[], float]:
    """Return a burst that replays ``rows`` once: ns per row, building and closing left out."""
    mid = float(np.median(rows["px"][rows["px"] > 0]))
    low, high = 0.95 * mid, 1.05 * mid

    def run() -> float:
        asset = (
            BacktestAsset()
            .data(rows)
            .linear_asset(1.0)
            .constant_order_latency(0, 0)
            .risk_adverse_queue_model()
            .no_partial_fill_exchange()
            .trading_value_fee_model(0.0002, 0.0005)
            .tick_size(tick)
            .lot_size(lot)
            .roi_lb(low)
            .roi_ub(high)
            .last_trades_capacity(0)
        )
        backtest = ROIVectorMarketDepthBacktest([asset])
        start = time.perf_counter_ns()
        _elapse(backtest, STRIDE_NS)
        ns = time.perf_counter_ns() - start
        backtest.close()
        return ns / len(rows)

    return run

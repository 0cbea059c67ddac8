"""Figures of a run from its fills and the market's mids, independent of the venue's account.

All money is in the run's currency, instruments are linear (P&L in the quote currency). With
position ``q`` and cash ``c = -sum(side * price * size)`` after the fills up to ``t``::

    P&L before costs(t) = sum over instruments of multiplier * (c + q * mid(t))
    equity(t)           = start balance + P&L before costs(t) - fees paid up to t

Both are evaluated at every quote (or bar) of the instruments traded, so the drawdown is the true
one at event resolution and not that of a daily curve.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qbtc.trading.replay import Mids
from qbtc.trading.result import Performance

__all__ = ["Curve", "Fill", "curve_of", "performance_of", "thin"]


@dataclass(frozen=True, slots=True)
class Fill:
    """One fill, prices and sizes as numbers."""

    ts_event: int
    strategy: str
    instrument: str
    is_buy: bool
    price: float
    quantity: float
    multiplier: float
    commission: float
    """In the run's currency."""
    is_maker: bool
    order_id: str
    canonical: tuple[str, ...]
    """The row that is hashed: text as the engine prints it, no random ids."""

    @property
    def signed_quantity(self) -> float:
        """Positive for a buy."""
        return self.quantity if self.is_buy else -self.quantity

    @property
    def notional(self) -> float:
        """Money that changed hands, without the commission."""
        return self.price * self.quantity * self.multiplier


@dataclass(frozen=True, slots=True)
class Curve:
    """P&L over time, marked to mid."""

    ts: NDArray[np.int64]  # (n,) ns, non-decreasing
    pnl_before_costs: NDArray[np.float64]  # (n,)
    fees: NDArray[np.float64]  # (n,) paid so far
    net_position: NDArray[np.float64]  # (n,) signed notional at mid

    @property
    def pnl_after_costs(self) -> NDArray[np.float64]:
        """P&L less the fees paid so far."""
        return self.pnl_before_costs - self.fees


def curve_of(fills: Sequence[Fill], mids: dict[str, Mids], span_ns: tuple[int, int]) -> Curve:
    """Mark fills to market over a span. O((n + m) log n) for n marks and m fills.

    Parameters
    ----------
    fills
        In the order of time, instruments mixed.
    mids
        Mids of every instrument.
    span_ns
        The curve begins and ends here, or at the last fill: orders sent at the last events arrive
        after them, and what they cost counts.
    """
    begin, end = span_ns[0], max([span_ns[1], *(fill.ts_event for fill in fills)])
    traded = sorted({fill.instrument for fill in fills})
    times = [mids[name].ts for name in traded if name in mids]
    inner = np.unique(np.concatenate(times)) if times else np.empty(0, np.int64)
    inner = inner[(inner > begin) & (inner < end)]
    ts = np.concatenate(([begin], inner, [end])).astype(np.int64)
    pnl = np.zeros(len(ts))
    fees = np.zeros(len(ts))
    net = np.zeros(len(ts))
    for name in traded:
        own = [fill for fill in fills if fill.instrument == name]
        after = np.searchsorted(np.array([fill.ts_event for fill in own]), ts, side="right")
        signed = np.array([fill.signed_quantity * fill.multiplier for fill in own])
        price = np.array([fill.price for fill in own])
        position = np.concatenate(([0.0], np.cumsum(signed)))[after]
        position[np.abs(position) < 1e-9 * np.abs(signed).max()] = 0.0
        cash = np.concatenate(([0.0], -np.cumsum(signed * price)))[after]
        mid = _mid_at(mids.get(name), ts, fallback=price[0])
        pnl += cash + position * mid
        net += position * mid
        fees += np.concatenate(([0.0], np.cumsum([fill.commission for fill in own])))[after]
    return Curve(ts, pnl, fees, net)


def performance_of(
    name: str,
    fills: Sequence[Fill],
    curve: Curve,
    *,
    orders: int,
    status: str = "complete",
    error: str | None = None,
    fills_sha256: str | None = None,
) -> Performance:
    """Sum up fills and their curve."""
    turnover = sum(fill.notional for fill in fills)
    maker = sum(fill.notional for fill in fills if fill.is_maker)
    fees = float(curve.fees[-1])
    before = float(curve.pnl_before_costs[-1])
    equity = curve.pnl_after_costs
    high = np.maximum.accumulate(np.maximum(equity, 0.0))
    length = float(curve.ts[-1] - curve.ts[0])
    held = float(np.diff(curve.ts)[curve.net_position[:-1] != 0.0].sum())
    return Performance(
        name=name,
        orders=orders,
        fills=len(fills),
        fees=fees,
        pnl_before_costs=before,
        pnl_after_costs=before - fees,
        turnover=turnover,
        max_drawdown=float((high - equity).max()),
        exposure=held / length if length > 0 else 0.0,
        maker_share=maker / turnover if turnover > 0 else None,
        open_positions=_open_positions(fills),
        status=status,  # type: ignore[arg-type]
        error=error,
        fills_sha256=fills_sha256,
    )


def thin(values: Sequence[NDArray[np.float64]], n: int, rows_max: int) -> NDArray[np.int64]:
    """Choose at most about ``rows_max`` of ``n`` rows, keeping every block's extremes.

    A chart of the rows chosen has the highs and lows of the full curve: each of ``rows_max / 4``
    blocks keeps its first and last row and the rows of the least and greatest ``values[0]``.
    """
    if n <= rows_max:
        return np.arange(n)
    edges = np.linspace(0, n, max(rows_max // 4, 1) + 1).astype(np.int64)
    keep: set[int] = {0, n - 1}
    series = values[0]
    for low, high in itertools.pairwise(edges):
        block = series[low:high]
        keep.update((int(low), int(high) - 1, int(low + block.argmin()), int(low + block.argmax())))
    return np.array(sorted(keep))


def _mid_at(mids: Mids | None, ts: NDArray[np.int64], *, fallback: float) -> NDArray[np.float64]:
    """Last mid at or before each time; ``fallback`` before the first."""
    if mids is None or len(mids.ts) == 0:
        return np.full(len(ts), fallback)
    index = np.searchsorted(mids.ts, ts, side="right") - 1
    return np.where(index >= 0, mids.mid[np.maximum(index, 0)], fallback)


def _open_positions(fills: Sequence[Fill]) -> int:
    """Instruments, per strategy, that do not end flat."""
    net: dict[tuple[str, str], float] = {}
    largest: dict[tuple[str, str], float] = {}
    for fill in fills:
        key = (fill.strategy, fill.instrument)
        net[key] = net.get(key, 0.0) + fill.signed_quantity
        largest[key] = max(largest.get(key, 0.0), fill.quantity)
    return sum(abs(value) > 1e-9 * largest[key] for key, value in net.items())

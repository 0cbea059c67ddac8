"""Where the money went: fees and spread of every fill, by the side that paid."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qbtc.trading.rundir import Columns, RunDirectory

__all__ = ["CostLine", "cost_lines", "spread_paid"]


@dataclass(frozen=True, slots=True)
class CostLine:
    """Fills of one liquidity and side; money in the result's currency."""

    liquidity: str
    side: str
    fills: int
    notional: float
    fees: float
    spread: float | None
    """Paid against the mid at the fill (negative = earned); None where no mid is known."""


def cost_lines(run: RunDirectory) -> list[CostLine]:
    """Sum fees and spread by maker or taker, buy or sell."""
    fills, spread = run.fills, spread_paid(run)
    lines = []
    for liquidity in ("MAKER", "TAKER"):
        for side in ("BUY", "SELL"):
            mine = (fills["liquidity"] == liquidity) & (fills["side"] == side)
            if not mine.any():
                continue
            known = spread[mine]
            lines.append(
                CostLine(
                    liquidity=liquidity,
                    side=side,
                    fills=int(mine.sum()),
                    notional=float((fills["price"] * fills["quantity"])[mine].sum()),
                    fees=float(fills["commission"][mine].sum()),
                    spread=None if np.isnan(known).any() else float(known.sum()),
                )
            )
    return lines


def spread_paid(run: RunDirectory) -> NDArray[np.float64]:
    """Return what each fill paid against the last mid at or before it, shape (fills,).

    NaN where no mid is known.

    The mid comes from the signals (one per quote) and the thinned price table together: without
    signals it is only as fresh as that table.
    """
    fills = run.fills
    paid = np.full(fills.rows, np.nan)
    for instrument in dict.fromkeys(fills["instrument"].tolist()):
        mine = np.flatnonzero(fills["instrument"] == instrument)
        source = _mids(run, instrument)
        place = np.searchsorted(source["ts"], fills["ts_event"][mine], side="right") - 1
        mine, place = mine[place >= 0], place[place >= 0]
        sign = np.where(fills["side"][mine] == "BUY", 1.0, -1.0)
        away = sign * (fills["price"][mine] - source["mid"][place])
        paid[mine] = away * fills["quantity"][mine]
    return paid


def _mids(run: RunDirectory, instrument: str) -> Columns:
    """Return columns ``ts`` (ascending) and ``mid`` of one instrument from both tables."""
    tables = [table.where(table["instrument"] == instrument) for table in (run.prices, run.signals)]
    ts, mid = (np.concatenate([table[name] for table in tables]) for name in ("ts", "mid"))
    order = np.argsort(ts, kind="stable")
    return Columns(ts=ts[order], mid=mid[order])

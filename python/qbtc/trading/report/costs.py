"""Where the money went: fees and spread of every fill, by the side that paid."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qbtc.trading.report.rundir import RunDirectory

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
    """Return what each fill paid against its mid, shape (fills,).

    Negative is earned; NaN where the data had no quotes to know a mid from.
    """
    fills = run.fills
    sign = np.where(fills["side"] == "BUY", 1.0, -1.0)
    paid: NDArray[np.float64] = sign * (fills["price"] - fills["mid"]) * fills["quantity"]
    return paid

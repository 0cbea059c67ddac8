"""How good were the signals? Skill by horizon, with intervals that respect time.

Neighbouring signals overlap in what they predict, so rows are not independent and a plain standard
error would flatter every figure. Intervals here come from resampling whole blocks of time
(``BLOCK_S``, two horizons or a 200th of the span, whichever is longest), 5th to 95th percentile;
fewer than ``BLOCKS_MIN`` blocks give no interval at all.

Figures, for the signal ``s = p_up - p_down`` and the later mid return ``r = ln(mid(t+h)/mid(t))``:

==============  =================================================================================
``ic``          Spearman correlation of ``s`` and ``r`` (all rows, zero returns included)
``hit``         share of moves (``r != 0``) whose direction is that of ``s``
``log_loss``    mean of ``-ln q`` over moves, ``q = p_up/(p_up+p_down)`` for up, else ``1-q``; nats
``base_loss``   the same for a constant: the share of up moves seen in hindsight
``decile_bp``   mean signed return of the strongest tenth on each side, basis points, no costs
==============  =================================================================================
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from qbtc.trading.report.rundir import Columns

__all__ = ["HORIZONS_S", "Estimate", "HorizonQuality", "Reliability", "by_horizon", "reliability"]

HORIZONS_S = (0.1, 0.5, 1.0, 5.0)
BLOCK_S = 10.0
BLOCKS_MIN = 8
BLOCKS_MAX = 200
"""Longer spans get longer blocks."""
RESAMPLES = 1000
BOOTSTRAP_SEED = 1
ROWS_MAX = 500_000
"""More signals than this are judged at every k-th one."""
ROWS_MIN = 50
BINS = 10
"""Half as many where blocks of time are few."""

type Floats = NDArray[np.float64]
type Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its 5-95 % interval; ``low`` and ``high`` are None when blocks are too few."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class HorizonQuality:
    """Skill at one horizon; the module docstring defines each figure."""

    horizon_s: float
    rows: int
    moves: int
    blocks: int
    ic: Estimate
    hit: Estimate
    log_loss: Estimate
    base_loss: float
    decile_bp: Estimate


@dataclass(frozen=True, slots=True)
class Reliability:
    """Said against seen, in bins of equal counts: ``said`` (bins,), ``seen`` one per bin."""

    horizon_s: float
    said: Floats
    seen: tuple[Estimate, ...]
    counts: Ints


def horizons_for(ts: Ints) -> tuple[float, ...]:
    """Return ``HORIZONS_S``, or 1, 5, 15 and 60 steps where signals come slower than that."""
    if len(ts) < 2:
        return HORIZONS_S
    step_s = float(np.median(np.diff(ts))) / 1e9
    return HORIZONS_S if step_s <= HORIZONS_S[1] else tuple(k * step_s for k in (1, 5, 15, 60))


def by_horizon(signals: Columns, horizons_s: tuple[float, ...]) -> list[HorizonQuality]:
    """Judge one instrument's signals at each horizon that has enough rows.

    Parameters
    ----------
    signals
        Columns ``ts`` (ns, ascending), ``p_down``, ``p_up``, ``mid``, each of shape (rows,).
    horizons_s
        Seconds.
    """
    found = (_judge(signals, horizon) for horizon in horizons_s)
    return [quality for quality in found if quality is not None]


def reliability(signals: Columns, horizon_s: float) -> Reliability | None:
    """Compare the stated chance of up, given a move, with the share of up moves, bin by bin."""
    rows = _Rows.of(signals, horizon_s)
    moved = rows.returns != 0
    if int(moved.sum()) < ROWS_MIN * BINS:
        return None
    up, said, block = rows.returns[moved] > 0, rows.p_up_given_move()[moved], rows.block[moved]
    bins_max = BINS if len(np.unique(block)) >= 2 * BLOCKS_MIN else BINS // 2
    edges = np.unique(np.quantile(said, np.linspace(0, 1, bins_max + 1)))
    if len(edges) < 3:
        return None
    place = np.clip(np.searchsorted(edges, said, side="right") - 1, 0, len(edges) - 2)
    bins = range(len(edges) - 1)
    return Reliability(
        horizon_s=horizon_s,
        said=np.array([said[place == i].mean() for i in bins]),
        seen=tuple(_mean(up[place == i], block[place == i]) for i in bins),
        counts=np.bincount(place, minlength=len(edges) - 1),
    )


@dataclass(frozen=True, slots=True)
class _Rows:
    """The signals that have a return at this horizon; every array has shape (rows,)."""

    p_down: Floats
    p_up: Floats
    returns: Floats
    block: Ints

    @classmethod
    def of(cls, signals: Columns, horizon_s: float) -> "_Rows":
        ts, mid = signals["ts"], signals["mid"]
        horizon_ns = round(horizon_s * 1e9)
        last = int(np.searchsorted(ts, ts[-1] - horizon_ns, side="right")) if len(ts) else 0
        origin = np.arange(0, last, max(1, -(-last // ROWS_MAX)))
        later = np.searchsorted(ts, ts[origin] + horizon_ns, side="right") - 1
        span_s = (ts[-1] - ts[0]) * 1e-9 if last else 0.0
        block_ns = round(max(BLOCK_S, 2 * horizon_s, span_s / BLOCKS_MAX) * 1e9)
        return cls(
            p_down=signals["p_down"][origin],
            p_up=signals["p_up"][origin],
            returns=np.log(mid[later] / mid[origin]),
            block=(ts[origin] - ts[0]) // block_ns if last else np.zeros(0, np.int64),
        )

    def p_up_given_move(self) -> Floats:
        total = self.p_up + self.p_down
        return np.where(total > 0, self.p_up / np.where(total > 0, total, 1.0), 0.5)


def _judge(signals: Columns, horizon_s: float) -> HorizonQuality | None:
    rows = _Rows.of(signals, horizon_s)
    moved = rows.returns != 0
    moves = int(moved.sum())
    if moves < ROWS_MIN:
        return None
    signal = rows.p_up - rows.p_down
    up = rows.returns[moved] > 0
    said = np.clip(rows.p_up_given_move()[moved], 1e-6, 1 - 1e-6)
    base = float(np.clip(up.mean(), 1e-6, 1 - 1e-6))
    low, high = np.quantile(signal, (0.1, 0.9))
    strong = (signal >= high) | (signal <= low)
    signed = np.where(signal >= high, rows.returns, -rows.returns)[strong] * 1e4
    sided = moved & (signal != 0)
    agree = (signal[sided] > 0) == (rows.returns[sided] > 0)
    return HorizonQuality(
        horizon_s=horizon_s,
        rows=len(signal),
        moves=moves,
        blocks=len(np.unique(rows.block)),
        ic=_correlation(_ranks(signal), _ranks(rows.returns), rows.block),
        hit=_mean(agree, rows.block[sided]),
        log_loss=_mean(-np.log(np.where(up, said, 1 - said)), rows.block[moved]),
        base_loss=-(base * np.log(base) + (1 - base) * np.log(1 - base)),
        decile_bp=_mean(signed, rows.block[strong]),
    )


def _ranks(values: Floats) -> Floats:
    """Average ranks (ties share one), centred, shape (rows,)."""
    ranks: Floats = pd.Series(values).rank().to_numpy(dtype=np.float64, copy=True)
    ranks -= ranks.mean()
    return ranks


def _correlation(x: Floats, y: Floats, block: Ints) -> Estimate:
    """Pearson correlation; of ranks it is Spearman's. Ranks are not recomputed per resample."""

    def correlation(sums: Floats) -> Floats:
        n, sx, sy, sxx, syy, sxy = np.moveaxis(sums, -1, 0)
        spread = np.sqrt(np.maximum((sxx - sx * sx / n) * (syy - sy * sy / n), 0.0))
        covariance = sxy - sx * sy / n
        figure: Floats = np.zeros_like(spread)
        np.divide(covariance, spread, out=figure, where=spread > 0)
        return figure

    return _estimate(np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], -1), block, correlation)


def _mean(values: NDArray[np.float64] | NDArray[np.bool_], block: Ints) -> Estimate:
    if not len(values):
        return Estimate(float("nan"))
    terms = np.stack([np.ones(len(values)), values.astype(np.float64)], -1)
    return _estimate(terms, block, lambda sums: sums[..., 1] / sums[..., 0])


def _estimate(terms: Floats, block: Ints, figure: Callable[[Floats], Floats]) -> Estimate:
    """Block bootstrap of a figure that is a function of sums.

    Parameters
    ----------
    terms
        (rows, k) summands; their sums over any set of rows determine the figure.
    block
        (rows,) block of time each row lies in, ascending.
    figure
        Maps sums of shape (..., k) to figures of shape (...).
    """
    starts = np.flatnonzero(np.diff(block, prepend=block[0] - 1))
    sums: Floats = np.add.reduceat(terms, starts)  # (blocks, k)
    count = len(starts)
    value = float(figure(sums.sum(0)))
    if count < BLOCKS_MIN:
        return Estimate(value)
    draws = np.random.default_rng(BOOTSTRAP_SEED).integers(0, count, (RESAMPLES, count))
    low, high = np.quantile(figure(sums[draws].sum(1)), (0.05, 0.95))
    return Estimate(value, float(low), float(high))

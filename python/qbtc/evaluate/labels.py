"""Labels: the class of the move of the mid over a horizon, beyond a threshold or not.

At a quote of time ``t`` the label is the class of ``10⁴ (mid(t + horizon) / mid(t) - 1)`` in basis
points, where ``mid(s)`` is the last mid at or before ``s``. A row whose horizon leaves the data
has no label. Nothing after ``t + horizon`` is read.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qbtc.config import LabelConfig
from qbtc.core.features import BulkFeatures
from qbtc.errors import DataError

__all__ = ["CLASS_NAMES", "LabelledRows", "forward_return_bp", "horizon_ns", "label_rows"]

CLASS_NAMES = ("down", "flat", "up")


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledRows:
    """Features and classes, in the order of time.

    Attributes
    ----------
    x
        (n, 26) float32, NaN where missing.
    y
        (n,) uint8: 0 down, 1 flat, 2 up.
    ts
        (n,) int64, UNIX ns of the quote.
    """

    x: npt.NDArray[np.float32]
    y: npt.NDArray[np.uint8]
    ts: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, rows: slice) -> "LabelledRows":
        return LabelledRows(x=self.x[rows], y=self.y[rows], ts=self.ts[rows])


def horizon_ns(config: LabelConfig) -> int:
    """Return the horizon in nanoseconds."""
    return round(config.horizon_ms * 1e6)


def forward_return_bp(
    ts: npt.NDArray[np.int64], mid: npt.NDArray[np.float64], horizon: int
) -> npt.NDArray[np.float64]:
    """Return of the mid over ``horizon`` ns, in basis points; NaN where the data ends before.

    Parameters
    ----------
    ts
        (n,) non-decreasing.
    mid
        (n,)
    """
    if not len(ts):
        return np.empty(0)
    later = ts + horizon
    last = np.searchsorted(ts, later, side="right") - 1
    move: npt.NDArray[np.float64] = 1e4 * (mid[last] / mid - 1.0)
    move[later > ts[-1]] = np.nan
    return move


def label_rows(features: BulkFeatures, config: LabelConfig, *, sample_every: int) -> LabelledRows:
    """Label every ``sample_every``-th warm quote.

    Raises
    ------
    DataError
        No quote has both features and a label.
    """
    move = forward_return_bp(features.ts, features.mid, horizon_ns(config))
    usable = np.flatnonzero(features.warm & ~np.isnan(move))[::sample_every]
    if not len(usable):
        raise DataError(
            f"none of {len(features.ts)} quotes has features and a label; "
            f"give more data than warm-up plus a horizon of {config.horizon_ms:g} ms"
        )
    move = move[usable]
    # Up and down are beyond the threshold, strictly; the comparison is exact, nothing is rounded.
    y = np.where(move < -config.threshold_bp, 0, np.where(move > config.threshold_bp, 2, 1))
    return LabelledRows(x=features.X[usable], y=y.astype(np.uint8), ts=features.ts[usable])

"""The 26 streaming features: their table, the event path and the bulk path.

The event path (:class:`FeatureEngine`) is one call per market event; the bulk path
(:func:`bulk_features`) takes whole columns and gives the same bits. A feature is NaN where it is
missing: the source does not carry it, it is not warmed up, or it has gone silent.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qbtc import _core
from qbtc._core import FeatureEngine
from qbtc.core.columns import EventColumns
from qbtc.errors import DataError

__all__ = [
    "FEATURE_NAMES",
    "N_FEATURES",
    "BulkFeatures",
    "FeatureEngine",
    "FeatureInfo",
    "bulk_features",
    "feature_notation",
    "feature_table",
    "schema_sha256",
]


@dataclass(frozen=True)
class FeatureInfo:
    """One row of the feature table."""

    name: str
    group: str
    unit: str
    formula: str
    update_class: str
    """What makes it change: ``quote``, ``trade``, ``depth`` or ``lead``."""
    warm_up_s: float
    """Seconds of history before it is given."""
    stale_s: float
    """Seconds of silence of its source after which it is missing."""


def feature_table() -> tuple[FeatureInfo, ...]:
    """Return the features in the order of every row, as the core describes them."""
    return tuple(FeatureInfo(*row) for row in _core.feature_table())


def feature_notation() -> str:
    """Return the words that the formulas of the table are written in."""
    return _core.feature_notation()


def schema_sha256() -> str:
    """Return the hash of the table; a model refuses features of another hash."""
    return _core.feature_schema_sha256()


FEATURE_NAMES = tuple(row.name for row in feature_table())
N_FEATURES = len(FEATURE_NAMES)


@dataclass(frozen=True, kw_only=True, eq=False)
class BulkFeatures:
    """One row per quote.

    Attributes
    ----------
    X
        (n_quotes, 26) float32, NaN where missing.
    ts
        (n_quotes,) int64, UNIX ns.
    mid
        (n_quotes,) float64, quote currency.
    warm
        (n_quotes,) bool; rows that are not warm are all NaN and give no signal.
    """

    X: npt.NDArray[np.float32]
    ts: npt.NDArray[np.int64]
    mid: npt.NDArray[np.float64]
    warm: npt.NDArray[np.bool_]


def bulk_features(columns: EventColumns) -> BulkFeatures:
    """Compute the features at every quote, on two cores, without the GIL.

    Parameters
    ----------
    columns
        Events in the order in which they became known.

    Raises
    ------
    DataError
        An event is refused (not finite, off the grid, crossed, ...): names field and row.
    """
    try:
        x, ts, mid, warm = _core.bulk_features(columns)
    except _core.CoreInputError as error:
        raise DataError(f"{columns.instrument}: {error}") from None
    return BulkFeatures(X=x, ts=ts, mid=mid, warm=warm)

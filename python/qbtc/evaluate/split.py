"""Time split with purge: train, validation, calibration, test, in this order.

Rows within the purge of a border are dropped on both sides (purge before it, embargo after it;
López de Prado 2018, chapter 7), so no label of one slice looks into the next.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qbtc.config import SplitConfig
from qbtc.errors import DataError
from qbtc.evaluate.labels import CLASS_NAMES, LabelledRows

__all__ = ["SLICE_NAMES", "Split", "split_rows"]

SLICE_NAMES = ("train", "validation", "calibration", "test")
ROWS_MIN = {"train": 500, "validation": 100, "calibration": 100, "test": 100}


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """Four runs of rows; see the module."""

    train: LabelledRows
    validation: LabelledRows
    calibration: LabelledRows
    test: LabelledRows

    def slices(self) -> dict[str, LabelledRows]:
        """Return the slices by name, in the order of time."""
        return {name: getattr(self, name) for name in SLICE_NAMES}

    def seen_until(self, horizon: int) -> int:
        """Last instant (UNIX ns) that any row used for fitting or choosing could see."""
        return int(self.calibration.ts[-1]) + horizon


def slice_bounds(ts: npt.NDArray[np.int64], config: SplitConfig) -> list[tuple[int, int]]:
    """First and last admitted time (UNIX ns, both inclusive) of each slice."""
    fractions = np.cumsum([getattr(config, name) for name in SLICE_NAMES[:-1]])
    first, last = int(ts[0]), int(ts[-1])
    borders = [first + round(fraction * (last - first)) for fraction in fractions]
    purge = round(config.purge_ms * 1e6)
    starts = [first, *(border + purge for border in borders)]
    ends = [*(border - purge for border in borders), last]
    return list(zip(starts, ends, strict=True))


def split_rows(rows: LabelledRows, config: SplitConfig) -> Split:
    """Cut rows by time.

    Raises
    ------
    DataError
        A slice has too few rows, or the training slice lacks a class.
    """
    slices: dict[str, LabelledRows] = {}
    for name, (start, end) in zip(SLICE_NAMES, slice_bounds(rows.ts, config), strict=True):
        first = int(np.searchsorted(rows.ts, start, side="left"))
        last = int(np.searchsorted(rows.ts, end, side="right"))
        slices[name] = rows[first : max(first, last)]
        if len(slices[name]) < ROWS_MIN[name]:
            raise DataError(
                f"slice {name} has {len(slices[name])} rows and needs {ROWS_MIN[name]}; give more "
                "data, a smaller sample_every, or another [split]"
            )
    counts = np.bincount(slices["train"].y, minlength=len(CLASS_NAMES))
    if not counts.all():
        seen = ", ".join(name for name, n in zip(CLASS_NAMES, counts, strict=True) if n)
        raise DataError(
            f"every training row is {seen}; move label.threshold_bp or label.horizon_ms "
            "so that down, flat and up all occur"
        )
    return Split(**slices)

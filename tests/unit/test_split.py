"""The time split: in order, purged, and refused when it cannot be honest."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbtc.config import SplitConfig
from qbtc.errors import DataError
from qbtc.evaluate.labels import LabelledRows
from qbtc.evaluate.split import split_rows

SECOND = 1_000_000_000


def _rows(ts: np.ndarray, y: np.ndarray | None = None) -> LabelledRows:
    n = len(ts)
    classes = np.arange(n) % 3 if y is None else y
    return LabelledRows(
        x=np.zeros((n, 26), np.float32), y=classes.astype(np.uint8), ts=ts.astype(np.int64)
    )


@given(
    seed=st.integers(0, 1000),
    purge_s=st.floats(0.1, 5.0),
    train=st.floats(0.3, 0.6),
    validation=st.floats(0.1, 0.2),
)
def test_no_label_sees_into_the_next_slice(
    seed: int, purge_s: float, train: float, validation: float
) -> None:
    rng = np.random.default_rng(seed)
    ts = np.sort(rng.integers(0, 300 * SECOND, 6000))
    rest = (1 - train - validation) / 2
    config = SplitConfig(
        train=train, validation=validation, calibration=rest, test=rest, purge_ms=purge_s * 1000
    )
    horizon = round(purge_s * SECOND)  # the longest horizon this purge allows
    split = split_rows(_rows(ts), config)
    slices = list(split.slices().values())
    for earlier, later in pairwise(slices):
        assert earlier.ts[-1] + horizon <= later.ts[0]
    assert split.seen_until(horizon) <= split.test.ts[0]


def test_fractions_are_of_time_and_rows_are_lost_only_at_the_borders() -> None:
    ts = np.arange(10_001) * SECOND // 10  # 1000 s
    split = split_rows(_rows(ts), SplitConfig(purge_ms=2000))
    spans = {name: (rows.ts[0] / 1e9, rows.ts[-1] / 1e9) for name, rows in split.slices().items()}
    assert spans == {
        "train": (0.0, 548.0),
        "validation": (552.0, 698.0),
        "calibration": (702.0, 798.0),
        "test": (802.0, 1000.0),
    }


def test_too_few_rows_name_the_slice() -> None:
    with pytest.raises(DataError, match=r"slice train has 5. rows and needs 500"):
        split_rows(_rows(np.arange(100) * SECOND), SplitConfig())


def test_one_class_is_refused_with_the_remedy() -> None:
    ts = np.arange(10_000) * SECOND
    with pytest.raises(DataError, match=r"every training row is flat; move label.threshold_bp"):
        split_rows(_rows(ts, np.ones(10_000)), SplitConfig())

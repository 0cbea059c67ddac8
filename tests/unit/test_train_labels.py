"""Labels look exactly as far as the horizon, and no further."""

import numpy as np
import pytest

from qbtc.config import LabelConfig
from qbtc.core.features import BulkFeatures
from qbtc.errors import DataError
from qbtc.evaluate.labels import forward_return_bp, label_rows


def _slow_return_bp(ts: list[int], mid: list[float], horizon: int) -> list[float]:
    moves = []
    for now, price in zip(ts, mid, strict=True):
        if now + horizon > ts[-1]:
            moves.append(float("nan"))
            continue
        (*_, last) = (m for t, m in zip(ts, mid, strict=True) if t <= now + horizon)
        moves.append(1e4 * (last / price - 1))
    return moves


@pytest.mark.parametrize("seed", range(20))
def test_returns_equal_the_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ts = np.sort(rng.integers(0, 60, 40))  # many equal times
    mid = 100 + rng.normal(size=40).cumsum()
    slow = _slow_return_bp(ts.tolist(), mid.tolist(), 7)
    np.testing.assert_allclose(forward_return_bp(ts, mid, 7), slow, rtol=1e-12)


def test_what_comes_after_the_horizon_changes_nothing() -> None:
    ts = np.arange(100) * 10
    mid = 100 + np.random.default_rng(0).normal(size=100).cumsum()
    before = forward_return_bp(ts, mid, 50)
    for row in range(0, 90, 7):
        changed = mid.copy()
        changed[ts > ts[row] + 50] = 1.0
        assert forward_return_bp(ts, changed, 50)[row] == before[row]


def _features(mid: list[float], warm: bool = True) -> BulkFeatures:
    n = len(mid)
    return BulkFeatures(
        X=np.zeros((n, 26), np.float32),
        ts=np.arange(n) * 1_000_000_000,
        mid=np.array(mid),
        warm=np.full(n, warm),
    )


def test_classes_are_strictly_beyond_the_threshold() -> None:
    rows = label_rows(
        _features([100.0, 100.0, 100.005, 100.004, 50.0, 50.0]),
        LabelConfig(threshold_bp=0.3),
        sample_every=1,
    )
    assert rows.y.tolist() == [1, 2, 1, 0, 1]
    assert rows.ts.tolist() == [i * 1_000_000_000 for i in range(5)]


def test_every_nth_quote_can_be_a_row() -> None:
    rows = label_rows(_features([100.0] * 11), LabelConfig(), sample_every=3)
    assert (rows.ts // 1_000_000_000).tolist() == [0, 3, 6, 9]


@pytest.mark.parametrize(("n", "warm"), [(0, True), (1, True), (50, False)])
def test_data_without_a_labelled_row_is_refused(n: int, warm: bool) -> None:
    with pytest.raises(DataError, match="give more data"):
        label_rows(_features([100.0] * n, warm), LabelConfig(), sample_every=1)

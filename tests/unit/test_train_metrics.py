"""Scores against definitions and against LightGBM-free, slow versions."""

import numpy as np
import numpy.typing as npt
import pytest

from qbtc.evaluate.metrics import (
    apply_temperature,
    block_bootstrap,
    fit_temperature,
    log_losses,
    score,
)

type Doubles = npt.NDArray[np.float64]


def _sample(n: int, seed: int, truth_temperature: float = 1.0) -> tuple[Doubles, npt.NDArray]:
    """Stated probabilities, and classes drawn from them at another temperature."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, 3))
    stated = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    truth = apply_temperature(stated, truth_temperature)
    y = (rng.random(n)[:, None] > truth.cumsum(axis=1)).sum(axis=1)
    return stated, np.minimum(y, 2).astype(np.uint8)


def test_a_perfect_forecast_scores_perfectly() -> None:
    y = np.array([0, 1, 2, 1], np.uint8)
    found = score(np.eye(3)[y], y)
    assert (found.log_loss, found.accuracy, found.auc, found.ece, found.brier) == (0, 1, 1, 0, 0)


def test_the_uniform_forecast_scores_by_arithmetic() -> None:
    y = np.array([0, 1, 2] * 10, np.uint8)
    found = score(np.full((30, 3), 1 / 3), y)
    assert found.log_loss == pytest.approx(np.log(3))
    assert found.auc == 0.5
    assert found.brier == pytest.approx(2 / 3)
    assert found.ece == pytest.approx(0.0, abs=1e-12)


def test_auc_counts_pairs_and_half_of_ties() -> None:
    rng = np.random.default_rng(0)
    p = rng.integers(1, 5, (60, 3)).astype(float)
    p /= p.sum(axis=1, keepdims=True)
    y = rng.integers(0, 3, 60).astype(np.uint8)
    areas = []
    for c in range(3):
        gap = p[y == c, c][:, None] - p[y != c, c][None, :]
        areas.append(((gap > 0) + 0.5 * (gap == 0)).mean())
    assert score(p, y).auc == pytest.approx(np.mean(areas), rel=1e-12)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_temperature_is_recovered_and_lowers_the_loss(temperature: float) -> None:
    p, y = _sample(60_000, 1, temperature)
    found = fit_temperature(p, y)
    assert found == pytest.approx(temperature, rel=0.05)
    softened = apply_temperature(p, found)
    assert log_losses(softened, y).mean() <= log_losses(p, y).mean() + 1e-9
    assert score(softened, y).ece < 0.02


def test_the_block_interval_is_wider_where_rows_repeat() -> None:
    rng = np.random.default_rng(0)
    ts = np.arange(6000) * 10**8  # 600 s
    alone = rng.normal(size=6000)
    together = np.repeat(rng.normal(size=60), 100)  # one value per 10 s
    narrow = block_bootstrap(alone, ts, 10 * 10**9, np.random.default_rng(1))
    wide = block_bootstrap(together, ts, 10 * 10**9, np.random.default_rng(1))
    assert narrow.blocks == wide.blocks == 60
    assert narrow.low < narrow.mean < narrow.high
    assert wide.high - wide.low > 5 * (narrow.high - narrow.low)
    assert wide.high - wide.low == pytest.approx(4 / np.sqrt(60), rel=0.3)


def test_calibration_error_and_brier_equal_their_definitions() -> None:
    p, y = _sample(900, 4, 2.5)
    error = brier = 0.0
    for number in range(15):
        inside = [row for row in range(900) if number / 15 <= p[row].max() < (number + 1) / 15]
        if inside:
            said = sum(p[row].max() for row in inside) / len(inside)
            seen = sum(p[row].argmax() == y[row] for row in inside) / len(inside)
            error += len(inside) / 900 * abs(said - seen)
    for row in range(900):
        brier += sum((p[row, c] - (y[row] == c)) ** 2 for c in range(3)) / 900
    found = score(p, y)
    assert error > 0.1
    assert found.ece == pytest.approx(error, rel=1e-9)
    assert found.brier == pytest.approx(brier, rel=1e-9)


def test_the_block_interval_equals_resampling_rows_block_by_block() -> None:
    rng = np.random.default_rng(3)
    ts = np.sort(rng.integers(0, 12 * 10**9, 300)) + 5
    ts[ts > 8 * 10**9] = 8 * 10**9  # blocks of very different sizes
    values = rng.normal(size=300) + (ts > 7 * 10**9)
    found = block_bootstrap(values, ts, 10**9, np.random.default_rng(7), resamples=400)
    blocks = [values[(ts - ts[0]) // 10**9 == number] for number in range(12)]
    blocks = [block for block in blocks if len(block)]
    draws = np.random.default_rng(7).integers(0, len(blocks), (400, len(blocks)))
    means = sorted(np.concatenate([blocks[i] for i in draw]).mean() for draw in draws)
    assert found.blocks == len(blocks)
    assert found.mean == pytest.approx(values.mean())
    # 399 steps lie between 400 means: 2.5 % of them is 9.975 in from either end.
    assert found.low == pytest.approx(means[9] + 0.975 * (means[10] - means[9]))
    assert found.high == pytest.approx(means[390] - 0.975 * (means[390] - means[389]))

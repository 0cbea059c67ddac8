"""Signal skill: known answers on made-up signals, and intervals that cover what they should."""

import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from qbtc.trading.report import quality
from qbtc.trading.report.charts import thin
from qbtc.trading.report.rundir import Columns

STEP_NS = 100_000_000


def signals(rows: int, *, skill: float, seed: int = 1) -> Columns:
    """Random walk of 0.1 s steps; the signal sees the next step with this skill."""
    rng = np.random.default_rng(seed)
    moves = rng.choice([-1.0, 0.0, 1.0], rows, p=[0.3, 0.4, 0.3])
    mid = 10_000 + np.cumsum(moves) - moves
    lean = np.clip(0.5 + skill * moves / 2 + 0.1 * rng.normal(size=rows), 0.01, 0.99)
    ts = np.arange(rows, dtype=np.int64) * STEP_NS
    return Columns(ts=ts, mid=mid, p_up=0.6 * lean, p_down=0.6 * (1 - lean))


def test_ic_is_spearmans_correlation_of_signal_and_later_return() -> None:
    made = signals(3_000, skill=0.1)
    (found,) = quality.by_horizon(made, (0.1,))
    later = np.log(made["mid"][1:] / made["mid"][:-1])
    expected = spearmanr((made["p_up"] - made["p_down"])[:-1], later).statistic
    assert found.rows == 2_999
    assert found.ic.value == pytest.approx(expected, abs=1e-12)
    assert found.ic.low is not None
    assert found.ic.high is not None
    assert found.ic.low < expected < found.ic.high


def test_hit_rate_and_log_loss_speak_of_moves_only() -> None:
    made = signals(3_000, skill=0.2)
    (found,) = quality.by_horizon(made, (0.1,))
    move = np.diff(made["mid"])
    moved = move != 0
    chance = (made["p_up"] / (made["p_up"] + made["p_down"]))[:-1][moved]
    up = move[moved] > 0
    assert found.moves == moved.sum()
    assert found.hit.value == pytest.approx(np.mean((chance > 0.5) == up))
    loss = -np.mean(np.log(np.where(up, chance, 1 - chance)))
    assert found.log_loss.value == pytest.approx(loss)
    assert found.base_loss == pytest.approx(math.log(2), abs=0.01)


def test_a_signal_that_knows_nothing_is_within_its_intervals() -> None:
    covered = 0
    for seed in range(40):
        (found,) = quality.by_horizon(signals(3_000, skill=0.0, seed=seed), (0.5,))
        assert found.ic.low is not None
        assert found.ic.high is not None
        covered += found.ic.low <= 0 <= found.ic.high
    assert covered >= 30  # 36 expected at 90 %


def test_the_strongest_tenth_is_the_mean_signed_return_of_both_ends() -> None:
    made = signals(3_001, skill=0.2)
    (found,) = quality.by_horizon(made, (0.1,))
    later = np.log(made["mid"][1:] / made["mid"][:-1]) * 1e4
    order = np.argsort((made["p_up"] - made["p_down"])[:-1])
    picked = np.concatenate([-later[order[:300]], later[order[-300:]]])
    assert found.decile_bp.value == pytest.approx(picked.mean())
    assert found.decile_bp.value > 0.2


def test_too_few_blocks_give_no_interval_and_too_few_moves_no_figure() -> None:
    (found,) = quality.by_horizon(signals(500, skill=0.3), (0.1,))
    assert found.blocks == 5
    assert found.ic.low is None
    assert quality.by_horizon(signals(60, skill=0.3), (0.1,)) == []
    assert quality.by_horizon(signals(0, skill=0.3), (0.1,)) == []


def test_the_last_signals_have_no_future_and_are_left_out() -> None:
    (found,) = quality.by_horizon(signals(1_000, skill=0.1), (5.0,))
    assert found.rows == 950


def test_chances_that_mean_what_they_say_lie_on_the_diagonal() -> None:
    rng = np.random.default_rng(3)
    rows = 20_000
    chance = rng.uniform(0.2, 0.8, rows)
    moves = np.where(rng.random(rows) < chance, 1.0, -1.0)
    mid = 100_000 + np.cumsum(moves) - moves
    ts = np.arange(rows, dtype=np.int64) * STEP_NS
    made = Columns(ts=ts, mid=mid, p_up=chance, p_down=1 - chance)
    found = quality.reliability(made, 0.1)
    assert found is not None
    assert found.counts.sum() == rows - 1
    for said, seen in zip(found.said, found.seen, strict=True):
        assert seen.value == pytest.approx(said, abs=0.035)


def test_slow_signals_are_judged_at_slow_horizons() -> None:
    minutes = np.arange(100, dtype=np.int64) * 60_000_000_000
    assert quality.horizons_for(minutes) == (60.0, 300.0, 900.0, 3600.0)
    assert quality.horizons_for(minutes // 1000) == quality.HORIZONS_S


def test_thinning_keeps_ends_and_extremes() -> None:
    values = np.random.default_rng(5).normal(size=100_000)
    rows = thin(values)
    assert len(rows) <= 3_000
    assert {0, 99_999, int(values.argmin()), int(values.argmax())} <= set(rows.tolist())
    assert (np.diff(rows) > 0).all()

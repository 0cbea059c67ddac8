"""Figures follow from fills and mids alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbtc.trading.accounting import Fill, curve_of, performance_of, thin
from qbtc.trading.replay import Mids

SPAN = (0, 100)


def mids(*pairs: tuple[int, float]) -> Mids:
    return Mids(np.array([ts for ts, _ in pairs]), np.array([mid for _, mid in pairs], float))


def fill(ts: int, side: int, price: float, quantity: float = 1.0, **options: object) -> Fill:
    values: dict[str, object] = {
        "strategy": "S-001",
        "instrument": "A",
        "multiplier": 1.0,
        "commission": 0.5,
        "is_maker": False,
        "order_id": "O",
        "canonical": (),
    }
    return Fill(ts_event=ts, is_buy=side > 0, price=price, quantity=quantity, **(values | options))  # type: ignore[arg-type]


def test_a_round_trip_earns_the_difference_less_the_fees() -> None:
    fills = [fill(10, +1, 100.0), fill(50, -1, 103.0, is_maker=True)]
    curve = curve_of(fills, {"A": mids((0, 100), (20, 96), (40, 104), (60, 90))}, SPAN)
    own = performance_of("x", fills, curve, orders=2)
    assert own.pnl_before_costs == 3.0
    assert own.fees == 1.0
    assert own.pnl_after_costs == 2.0
    assert own.turnover == 203.0
    assert own.maker_share == pytest.approx(103 / 203)
    assert own.open_positions == 0
    assert own.max_drawdown == pytest.approx(4.5), "from 0 to -4 - 0.5 at t = 20"
    assert own.exposure == pytest.approx(0.4), "marks at 20, 40 and 60 see it; held from 20 to 60"


def test_an_open_position_is_marked_to_the_last_mid() -> None:
    fills = [fill(10, -1, 100.0, 2.0, multiplier=10.0)]
    curve = curve_of(fills, {"A": mids((0, 100), (90, 99))}, SPAN)
    own = performance_of("x", fills, curve, orders=1)
    assert own.pnl_before_costs == pytest.approx(20.0)
    assert own.open_positions == 1


def test_instruments_add_up() -> None:
    both = {"A": mids((0, 100), (30, 110)), "B": mids((0, 10), (60, 5))}
    fills = [fill(10, +1, 100.0), fill(20, -1, 10.0, 4.0, instrument="B")]
    alone = [curve_of([item], both, SPAN).pnl_before_costs[-1] for item in fills]
    assert curve_of(fills, both, SPAN).pnl_before_costs[-1] == pytest.approx(sum(alone)) == 30.0


def test_nothing_traded_is_nothing_earned() -> None:
    curve = curve_of([], {"A": mids((0, 100))}, SPAN)
    own = performance_of("x", [], curve, orders=0)
    assert (own.pnl_after_costs, own.max_drawdown, own.exposure) == (0, 0, 0)
    assert own.maker_share is None


@given(
    st.lists(
        st.tuples(
            st.integers(1, 99), st.sampled_from([-1, 1]), st.integers(900, 1100), st.integers(1, 9)
        ),
        max_size=20,
    ),
    st.lists(st.integers(900, 1100), min_size=2, max_size=30),
)
def test_equity_is_cash_plus_position_at_mid(
    trades: list[tuple[int, int, int, int]], prices: list[int]
) -> None:
    marks = mids(*((round(i * 99 / len(prices)), price) for i, price in enumerate(prices)))
    fills = [fill(ts, side, price / 10, size) for ts, side, price, size in sorted(trades)]
    curve = curve_of(fills, {"A": marks}, SPAN)
    cash = -sum(item.signed_quantity * item.price for item in fills)
    position = sum(item.signed_quantity for item in fills)
    wanted = cash + position * prices[-1] if fills else 0.0
    assert curve.pnl_before_costs[-1] == pytest.approx(wanted, abs=1e-6)
    assert curve.fees[-1] == pytest.approx(0.5 * len(fills))


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=500), st.integers(8, 100))
def test_a_thinned_curve_keeps_its_ends_and_extremes(values: list[float], rows_max: int) -> None:
    series = np.array(values)
    rows = thin((series,), len(series), rows_max)
    assert len(rows) <= max(rows_max + 2, 8)
    assert rows[0] == 0
    assert rows[-1] == len(series) - 1
    assert series[rows].max() == series.max()
    assert series[rows].min() == series.min()


def test_a_fill_after_the_last_event_costs_what_it_costs() -> None:
    fills = [fill(10, +1, 100.0), fill(105, -1, 98.0)]
    curve = curve_of(fills, {"A": mids((0, 100), (90, 99))}, SPAN)
    own = performance_of("x", fills, curve, orders=2)
    assert curve.ts.tolist() == [0, 90, 105]
    assert (own.pnl_before_costs, own.fees, own.open_positions) == (-2.0, 1.0, 0)


def test_a_quote_marks_its_own_instant_and_losses_count_from_the_first_one() -> None:
    marks = {"A": mids((0, 100), (20, 96), (40, 104))}
    curve = curve_of([fill(0, +1, 101.0)], marks, SPAN)
    assert curve.ts.tolist() == [0, 20, 40, 100]
    assert curve.pnl_before_costs.tolist() == [-1.0, -5.0, 3.0, 3.0]
    assert curve.net_position.tolist() == [100.0, 96.0, 104.0, 104.0]
    assert performance_of("x", [], curve, orders=1).max_drawdown == 5.5, "from 0, not from -1.5"

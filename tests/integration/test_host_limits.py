"""No order of a strategy gets a run past its limits, and every position can be left."""

import re
from pathlib import Path
from textwrap import dedent
from typing import Any

import pyarrow.parquet as pq
import pytest
from hosted import PERP, SPOT, cache, play, strategy, synthetic

from qbtc.trading.host import Outcome

__all__ = ["cache"]  # a fixture

RISK = {"order_notional_max": 2_000.0, "position_notional_max": 2_000.0}
"""About 0.033 BTC."""
LATCHED = RISK | {"drawdown_max": 0.2}
"""The fee of the first order is more than that."""
TRADER = """
def on_start(self):
    self.id = InstrumentId.from_str(self.params.instrument)
    self.instrument = self.instrument_or_fail(self.id)
    self.subscribe_quotes(self.id)
    self.count, self.denied, self.refused = 0, [], []

def on_quote(self, quote):
    self.count += 1
    self.bid, self.ask = float(quote.bid_price), float(quote.ask_price)
    step = getattr(self, f"step_{self.count}", None)
    if step is not None:
        step()

def on_order_denied(self, event):
    self.denied.append(event.reason)

def on_order_modify_rejected(self, event):
    self.refused.append(event.reason)

def size(self, size):
    return self.instrument.make_qty(size)

def price(self, price):
    return self.instrument.make_price(price)

def market(self, size, **options):
    return self.send(self.order_factory.market, size, **options)

def limit(self, size, price, **options):
    return self.send(self.order_factory.limit, size, self.price(price), **options)

def stop(self, size, trigger, **options):
    return self.send(self.order_factory.stop_market, size, self.price(trigger), **options)

def send(self, make, size, *prices, **options):
    side = OrderSide.BUY if size > 0 else OrderSide.SELL
    order = make(self.id, side, self.size(abs(size)), *prices, **options)
    self.submit_order(order)
    return order.client_order_id

def is_open(self, order):
    return self.cache.order(order).is_open

@property
def held(self):
    return sum(position.signed_qty for position in self.cache.positions_open())
"""


def trader(folder: Path, body: str, instrument: str = PERP) -> dict[str, Any]:
    """Write a strategy that acts at the quotes that its ``step_N`` are named after."""
    entry = strategy(folder, TRADER + dedent(body))
    return entry | {"params": {"instrument": instrument}}


def play_through(folder: Path, cache: Path, **options: Any) -> Outcome:
    """Run to the end, with limits unless the options say otherwise; every step had its quote."""
    outcome = play(folder, cache, **({"risk": RISK} | options))
    outcome.raise_if_failed()
    steps = re.findall(r"def step_(\d+)", (folder / "mine.py").read_text())
    last = max(map(int, steps))
    assert outcome.result.data[0].catalog_counts["quotes"] > last
    return outcome


def trade(folder: Path, cache: Path, body: str, **options: Any) -> Outcome:
    """Run one ``trader``."""
    return play_through(folder, cache, strategies=[trader(folder, body)], **options)


def fills(outcome: Outcome) -> list[tuple[str, float]]:
    rows = pq.read_table(outcome.folder / "fills.parquet").to_pylist()
    return [(row["side"], row["quantity"]) for row in rows]


@pytest.mark.parametrize("size", [0.001, 0.033])
def test_changing_a_filled_order_neither_makes_nor_takes_room(
    tmp_path: Path, cache: Path, size: float
) -> None:
    body = f"""
    def step_2(self):
        self.order = self.market(0.030)
    def step_20(self):
        self.modify_order(self.order, quantity=self.size({size}))
        self.market(0.029)
        assert len(self.denied) == 1 and "position_notional_max" in self.denied[0], self.denied
        self.market(0.002)
        assert len(self.denied) == 1, self.denied
    """
    assert sum(size for _, size in fills(trade(tmp_path, cache, body))) == pytest.approx(0.032)


def test_changing_an_order_to_less_than_has_filled_is_left_to_the_venue(
    tmp_path: Path, cache: Path
) -> None:
    body = """
    def step_2(self):
        self.order = self.limit(3, self.ask)
    def on_order_filled(self, event):
        if event.client_order_id == self.order and not self.denied:
            assert 0.001 < float(event.last_qty) < 3, "the best quote held less"
            self.modify_order(self.order, quantity=self.size(0.001))
            self.market(3)
            assert len(self.denied) == 1, self.denied
    def on_stop(self):
        assert len(self.denied) == 1
        assert len(self.refused) == 1 and "below filled" in self.refused[0], self.refused
    """
    wide = {"order_notional_max": 200_000.0, "position_notional_max": 200_000.0}
    trade(tmp_path, cache, body, risk=wide)


def test_an_enlargement_that_comes_too_late_takes_no_room(tmp_path: Path, cache: Path) -> None:
    body = """
    def step_2(self):
        self.order = self.market(0.010)
    def step_3(self):
        self.modify_order(self.order, quantity=self.size(0.030))
    def step_80(self):
        assert self.held == 0.010
        self.market(0.020)
        assert not self.denied, self.denied
    """
    trade(tmp_path, cache, body, venue={"latency_ms": 50.0})


def test_an_enlargement_that_the_venue_refuses_takes_no_room(tmp_path: Path, cache: Path) -> None:
    body = """
    def step_2(self):
        self.order = self.limit(0.010, self.bid * 0.9, post_only=True)
    def step_4(self):
        price = self.price(self.ask * 1.01)
        self.modify_order(self.order, quantity=self.size(0.030), price=price)
    def step_20(self):
        assert len(self.refused) == 1 and "TAKER" in self.refused[0], self.refused
        self.market(0.020)
        assert not self.denied, self.denied
    """
    trade(tmp_path, cache, body)


def test_a_change_refused_here_leaves_an_earlier_one_counted(tmp_path: Path, cache: Path) -> None:
    body = """
    def step_2(self):
        self.order = self.limit(0.001, self.bid * 0.9)
    def step_60(self):
        self.modify_order(self.order, quantity=self.size(0.030))
        self.modify_order(self.order, quantity=self.size(1.0))
        assert len(self.refused) == 1, self.refused
        self.market(0.030)
        assert len(self.denied) == 1, self.denied
    """
    trade(tmp_path, cache, body, venue={"latency_ms": 50.0})


def test_an_order_is_valued_at_its_trigger_price(tmp_path: Path, cache: Path) -> None:
    body = """
    def step_2(self):
        self.stop(0.033, self.ask * 2)
        assert len(self.denied) == 1 and "order of 39" in self.denied[0], self.denied
        self.stop(0.016, self.ask * 2)
        assert len(self.denied) == 1, self.denied
        self.market(0.016)  # beside 1,921 waiting
        assert len(self.denied) == 2 and "position_notional_max" in self.denied[1], self.denied
    """
    trade(tmp_path, cache, body)


def test_a_change_is_valued_at_the_trigger_price_that_it_sets_or_keeps(
    tmp_path: Path, cache: Path
) -> None:
    body = """
    def step_2(self):
        self.order = self.stop(0.020, self.ask * 1.1)
    def step_4(self):
        self.modify_order(self.order, trigger_price=self.price(self.ask * 2))
        assert len(self.refused) == 1, self.refused
        self.modify_order(self.order, trigger_price=self.price(self.ask * 1.6))
    def step_8(self):
        assert float(self.cache.order(self.order).trigger_price) > self.ask * 1.5
        self.modify_order(self.order, quantity=self.size(0.030))
        assert len(self.refused) == 2, self.refused
    """
    trade(tmp_path, cache, body)


def test_a_size_in_the_quote_currency_is_refused_where_limits_are_set(
    tmp_path: Path, cache: Path
) -> None:
    body = """
    def step_2(self):
        self.market(30, quote_quantity=True)
    def on_stop(self):
        assert all("give it in base units" in reason for reason in self.denied), self.denied
    """
    options: dict[str, Any] = {"data": [synthetic(SPOT)]}
    options["strategies"] = [trader(tmp_path, body, SPOT)]
    limited = play_through(tmp_path, cache, **options)
    assert fills(limited) == []
    assert limited.result.outside.risk is not None
    assert limited.result.outside.risk.refused == {"quote_quantity": 1}
    assert fills(play_through(tmp_path, cache, **options, risk=None)) != []


REDUCE_ONLY = {
    "of a flat position is rejected": """
    def step_2(self):
        self.order = self.limit(-0.020, self.bid - 5, reduce_only=True)
    def step_10(self):
        assert str(self.cache.order(self.order).status) == "REJECTED"
        assert self.held == 0
    """,
    "fills no more than the position": """
    def step_2(self):
        self.market(0.010)
    def step_10(self):
        self.market(-0.030, reduce_only=True)
    def step_20(self):
        assert self.held == 0
    """,
    "ends when another closes the position": """
    def step_2(self):
        self.market(0.010)
    def step_10(self):
        self.order = self.limit(-0.010, self.ask * 1.1, reduce_only=True)
    def step_20(self):
        self.market(-0.010)
    def step_30(self):
        assert not self.is_open(self.order)
        assert self.held == 0
    """,
    "ends when another turns the position around": """
    def step_2(self):
        self.market(0.010)
    def step_10(self):
        self.order = self.limit(-0.010, self.ask * 1.1, reduce_only=True)
    def step_20(self):
        self.market(-0.020)
    def step_30(self):
        assert not self.is_open(self.order)
        assert self.held == -0.010
    """,
    "shrinks with the position": """
    def step_2(self):
        self.market(0.030)
    def step_10(self):
        self.order = self.limit(-0.030, self.ask * 1.1, reduce_only=True)
    def step_20(self):
        self.market(-0.020)
    def step_30(self):
        assert float(self.cache.order(self.order).quantity) == 0.010
    """,
    "closes once, together with another on its way": """
    def step_2(self):
        self.market(0.010)
    def step_60(self):
        self.market(-0.010, reduce_only=True)
        self.market(-0.010, reduce_only=True)
    def step_150(self):
        assert self.held == 0
    """,
}


@pytest.mark.parametrize("case", REDUCE_ONLY)
@pytest.mark.parametrize("instrument", [PERP, SPOT])
def test_a_reduce_only_order_opens_nothing_at_the_venue(
    tmp_path: Path, cache: Path, case: str, instrument: str
) -> None:
    """What Nautilus 2.0.0rc7 does and ``RiskGate`` rests on; a release that changes it fails."""
    latency = 50.0 if "on its way" in case else 0.0
    play_through(
        tmp_path,
        cache,
        strategies=[trader(tmp_path, REDUCE_ONLY[case], instrument)],
        data=[synthetic(instrument)],
        venue={"latency_ms": latency},
        risk=None,
    )


def test_a_reduce_only_order_is_of_its_own_strategys_position(tmp_path: Path, cache: Path) -> None:
    body = """
    def step_2(self):
        if str(self.strategy_id).endswith("1"):
            self.market(0.030)
    def step_10(self):
        if str(self.strategy_id).endswith("2"):
            self.market(-0.020, reduce_only=True)
    """
    mine = trader(tmp_path, body)
    outcome = play_through(tmp_path, cache, strategies=[mine, mine], risk=None)
    assert {side for side, _ in fills(outcome)} == {"BUY"}


def test_after_the_latch_a_position_is_left_beside_an_exit_that_rests(
    tmp_path: Path, cache: Path
) -> None:
    body = """
    def step_2(self):
        self.market(0.030)
    def step_10(self):
        self.profit = self.limit(-0.030, self.ask * 1.1, reduce_only=True)
    def step_60(self):
        self.cancel_order(self.profit)
        self.market(-0.030, reduce_only=True)
    def on_stop(self):
        assert not self.denied, self.denied
        assert self.held == 0
    """
    outcome = trade(tmp_path, cache, body, risk=LATCHED, venue={"latency_ms": 20.0})
    assert outcome.result.outside.risk is not None
    assert outcome.result.outside.risk.latched


@pytest.mark.parametrize("leave", ["self.close_all_positions(self.id)", "self.market(-0.030)"])
def test_after_the_latch_nothing_is_opened_and_everything_can_be_closed(
    tmp_path: Path, cache: Path, leave: str
) -> None:
    body = f"""
    def step_2(self):
        self.market(0.030)
    def step_10(self):
        self.limit(-0.030, self.ask + 0.5)  # it would fill after the position is closed
        assert len(self.denied) == 1 and "drawdown_max" in self.denied[0], self.denied
    def step_12(self):
        {leave}
    def on_stop(self):
        assert len(self.denied) == 1, self.denied
        assert self.held == 0
    """
    outcome = trade(tmp_path, cache, body, risk=LATCHED)
    held = sum(size if side == "BUY" else -size for side, size in fills(outcome))
    assert held == pytest.approx(0)
    assert outcome.result.outside.risk is not None
    assert outcome.result.outside.risk.latched


def test_a_bracket_counts_as_its_entry(tmp_path: Path, cache: Path) -> None:
    body = """
    def step_2(self):
        bracket = self.order_factory.bracket(
            self.id, OrderSide.BUY, self.size(0.02),
            tp_price=self.price(self.ask * 1.1), sl_trigger_price=self.price(self.bid * 0.9))
        self.submit_order_list(bracket)
        assert not self.denied, self.denied
    def step_10(self):
        assert self.held == 0.02
        assert len(self.cache.orders_open()) == 2
        self.close_all_positions(self.id)
    def step_20(self):
        assert self.held == 0
        assert not self.cache.orders_open()
    """
    trade(tmp_path, cache, body)

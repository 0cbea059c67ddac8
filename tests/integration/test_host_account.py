"""Our own accounting against the venue's account, in a run with flips on two instruments."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hosted import HOLD, PERP, SPOT, cache, play, strategy, synthetic
from nautilus_trader.model import Bar, BarType, Price, Quantity
from nautilus_trader.persistence import ParquetDataCatalog

from qbtc.config import SyntheticSource, convert
from qbtc.data.catalog import open_source
from qbtc.data.instruments import instrument_for

__all__ = ["cache"]  # a fixture

TRADER = """
def on_start(self):
    self.id = InstrumentId.from_str(self.params.instrument)
    self.instrument = self.instrument_or_fail(self.id)
    self.subscribe_quotes(self.id)
    self.count = 0

def send(self, size):
    side = OrderSide.BUY if size > 0 else OrderSide.SELL
    quantity = self.instrument.make_qty(abs(size))
    self.submit_order(self.order_factory.market(self.id, side, quantity))

def on_quote(self, quote):
    self.count += 1
    if self.count % 40 == 1:  # opens, grows, shrinks, flips both ways
        self.send((0.02, 0.01, -0.02, -0.04, -0.01, 0.07)[self.count // 40 % 6])
    if self.count % 40 == 21:
        price = quote.bid_price if self.count // 40 % 2 else quote.ask_price
        side = OrderSide.BUY if self.count // 40 % 2 else OrderSide.SELL
        quantity = self.instrument.make_qty(0.01)
        self.submit_order(self.order_factory.limit(self.id, side, quantity, price))

def on_stop(self):
    import json, pathlib
    account = self.cache.account_for_venue(self.id.venue)
    (total,) = account.balances_total().values()
    held = [
        (str(position.instrument_id), position.signed_qty, position.avg_px_open)
        for position in self.cache.positions_open()
    ]
    facts = {"balance": float(total.as_decimal()), "positions": held}
    pathlib.Path(PLACE).write_text(json.dumps(facts))
"""


def test_equity_is_the_venues_balance_plus_open_positions_at_mid(
    tmp_path: Path, cache: Path
) -> None:
    place = tmp_path / "account"
    entry = strategy(tmp_path, TRADER.replace("PLACE", repr(str(place))))
    spot = entry | {"params": {"instrument": SPOT}}
    outcome = play(
        tmp_path,
        cache,
        data=[synthetic(), synthetic(SPOT, seed=4)],
        strategies=[entry, spot, entry],
    )
    outcome.raise_if_failed()
    result = outcome.result
    venue: dict[str, Any] = json.loads(place.read_text())
    prices = pq.read_table(outcome.folder / "prices.parquet").to_pandas()
    last = prices.groupby("instrument").mid.last()
    open_pnl = sum(size * (last[name] - price) for name, size, price in venue["positions"])

    fills = pq.read_table(outcome.folder / "fills.parquet").to_pandas()
    assert set(fills.liquidity) == {"MAKER", "TAKER"}
    assert result.performance.fills > 30
    for name, seed in ((PERP, 3), (SPOT, 4)):
        source = convert(synthetic(name, seed=seed), SyntheticSource, "t")
        columns = open_source(source, tmp_path, cache_dir=cache).columns()
        quotes = columns.kind == 0
        ts, mid = columns.ts[quotes], 0.5 * (columns.a + columns.c)[quotes]
        for fill in fills[fills.instrument == name].itertuples():
            known = ts < fill.ts_event if fill.liquidity == "MAKER" else ts <= fill.ts_event
            assert fill.mid == pytest.approx(mid[known][-1], rel=1e-12)
    assert result.performance.open_positions == len(venue["positions"]) > 0
    for name in (f"Mine-{number:03d}" for number in (1, 2, 3)):
        own = fills[fills.strategy == name]
        held = np.cumsum(np.where(own.side == "BUY", own.quantity, -own.quantity))
        assert held.max() > 1e-9 > -1e-9 > held.min(), "it was long and short"
    assert result.start_balance + result.performance.pnl_after_costs == pytest.approx(
        venue["balance"] + open_pnl, abs=1e-5
    )


LEAVE = """
def on_start(self):
    self.id = InstrumentId.from_str(self.params.instrument)
    self.subscribe_quotes(self.id)
    self.held = False

def on_quote(self, quote):
    if not self.held:
        self.held = True
        self.send(OrderSide.BUY)

def send(self, side):
    quantity = self.instrument_or_fail(self.id).make_qty(0.5)
    self.submit_order(self.order_factory.market(self.id, side, quantity))

def on_stop(self):
    self.send(OrderSide.SELL)
"""


@pytest.mark.parametrize("latency_ms", [0.0, 5.0, 500.0])
def test_what_is_sold_at_the_very_end_is_paid_for(
    tmp_path: Path, cache: Path, latency_ms: float
) -> None:
    outcome = play(
        tmp_path,
        cache,
        strategies=[strategy(tmp_path, LEAVE)],
        venue={"latency_ms": latency_ms},
    )
    outcome.raise_if_failed()
    own = outcome.result.performance
    fills = pq.read_table(outcome.folder / "fills.parquet").to_pandas()
    assert own.fills == len(fills) >= 2
    assert own.open_positions == 0
    assert own.fees == pytest.approx(fills.commission.sum(), abs=1e-9)
    assert own.fees == pytest.approx(own.turnover * 0.0005, rel=1e-6)
    positions = pq.read_table(outcome.folder / "positions.parquet").to_pandas()
    assert own.pnl_after_costs == pytest.approx(positions.realized_pnl.sum(), abs=1e-6)
    assert (fills.ts_event.max() > outcome.result.span_ns[1]) == (latency_ms > 0)
    said = any("a market that stands still" in note for note in outcome.result.notes)
    assert said == (latency_ms > 0)


MINUTE_NS = 60_000_000_000
ON_BAR = """
def on_start(self):
    self.id = InstrumentId.from_str(self.params.instrument)
    self.subscribe_bars(self.bar_type_for(self.id))
    self.count = 0

def on_bar(self, bar):
    self.count += 1
    assert bar.ts_init == self.clock.timestamp_ns()
    if self.count == 5:
        quantity = self.instrument_or_fail(self.id).make_qty(1.0)
        self.submit_order(self.order_factory.market(self.id, OrderSide.BUY, quantity))
"""


@pytest.mark.parametrize(("latency_ms", "price"), [(0.0, 144.0), (50.0, 144.0), (90_000.0, 154.0)])
def test_on_bars_an_order_fills_at_the_close_before_it_arrives_and_the_result_says_so(
    tmp_path: Path, cache: Path, latency_ms: float, price: float
) -> None:
    """What Nautilus 2.0.0rc7 does; a new release that changes it fails here."""
    instrument = instrument_for(SPOT)
    kind = BarType.from_str(f"{SPOT}-1-MINUTE-LAST-EXTERNAL")
    start = 1_700_000_000_000_000_000 // MINUTE_NS * MINUTE_NS
    bars = []
    for number in range(10):  # opens at 100, 110, ... and closes 4 higher
        prices = [Price(100 + 10 * number + offset, 2) for offset in (0, 5, -1, 4)]
        closed = start + (number + 1) * MINUTE_NS
        bars.append(Bar(kind, *prices, Quantity(10, 5), closed, closed))
    (tmp_path / "made").mkdir()
    catalog = ParquetDataCatalog(str(tmp_path / "made"))
    catalog.write_instruments([instrument])
    catalog.write_bars(bars)
    source = {"source": "catalog", "instrument": SPOT, "path": "made", "types": ["bars"]}
    entry = strategy(tmp_path, ON_BAR) | {"params": {"instrument": SPOT}}
    outcome = play(
        tmp_path, cache, data=[source], strategies=[entry], venue={"latency_ms": latency_ms}
    )
    outcome.raise_if_failed()
    (fill,) = pq.read_table(outcome.folder / "fills.parquet").to_pylist()
    assert fill["price"] == price
    assert any("bars have no spread" in note for note in outcome.result.notes)


@pytest.mark.parametrize(
    ("instrument", "start"), [(PERP, "07:59:58"), (PERP, "08:00:01"), (SPOT, "07:59:58")]
)
def test_a_span_over_a_funding_time_says_that_funding_is_left_out(
    tmp_path: Path, cache: Path, instrument: str, start: str
) -> None:
    outcome = play(
        tmp_path,
        cache,
        data=[synthetic(instrument, start=f"2024-01-01T{start}Z")],
        strategies=[HOLD | {"params": {"instrument": instrument, "size": 0.01}}],
    )
    said = any("funding" in note for note in outcome.result.notes)
    assert said == (instrument == PERP and start == "07:59:58")

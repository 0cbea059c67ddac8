"""The host runs a config, counts every event, and lets no exception be swallowed."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hosted import FLAT, HOLD, PERP, SPOT, cache, config, play, strategy, synthetic

from qbtc.config import RunConfig, convert
from qbtc.errors import ConfigError, DataError, RunFailed
from qbtc.trading.host import execute
from qbtc.trading.plan import make_plan
from qbtc.trading.result import read_result

__all__ = ["cache"]  # a fixture

BUSY = """
def on_start(self):
    self.id = InstrumentId.from_str(self.params.instrument)
    self.qty = self.instrument_or_fail(self.id).make_qty(0.01)
    self.count = 0
    self.boomed = False
    self.subscribe_quotes(self.id)
    self.subscribe_trades(self.id)
    self.subscribe_book_deltas(self.id, BookType.L2_MBP)
    self.subscribe_topic("mine", self.hear)
    self.subscribe_signal("mine")
    self.clock.set_timer("plain", timedelta(seconds=1))
    self.clock.set_timer("own", timedelta(seconds=1), callback=self.ring)
    self.boom("on_start")

def boom(self, where):
    if where == WHERE and not self.boomed:
        self.boomed = True
        raise ZeroDivisionError(f"a bug in {where}")

def hear(self, message): self.boom("topic handler")
def ring(self, event): self.boom("timer callback")
def on_signal(self, signal): self.boom("on_signal")
def on_time_event(self, event): self.boom("on_time_event")
def on_trade(self, trade): self.boom("on_trade")
def on_book_deltas(self, deltas): self.boom("on_book_deltas")
def on_order_initialized(self, event): self.boom("on_order_initialized")
def on_order_submitted(self, event): self.boom("on_order_submitted")
def on_order_accepted(self, event): self.boom("on_order_accepted")
def on_order_canceled(self, event): self.boom("on_order_canceled")
def on_order_filled(self, event): self.boom("on_order_filled")
def on_order_event(self, event): self.boom("on_order_event")
def on_position_opened(self, event): self.boom("on_position_opened")
def on_position_changed(self, event): self.boom("on_position_changed")
def on_position_closed(self, event): self.boom("on_position_closed")
def on_position_event(self, event): self.boom("on_position_event")
def on_stop(self): self.boom("on_stop")

def on_quote(self, quote):
    self.boom("on_quote")
    self.count += 1
    market = self.order_factory.market
    if self.count == 10:
        self.publish_message("mine", 1)
        self.publish_signal("mine", 1.0, quote.ts_event)
    elif self.count in (20, 40):
        self.submit_order(market(self.id, OrderSide.BUY, self.qty))
    elif self.count == 60:
        low = Price(float(quote.bid_price) * 0.9, quote.bid_price.precision)
        self.submit_order(self.order_factory.limit(self.id, OrderSide.BUY, self.qty, low))
    elif self.count == 100:
        self.cancel_all_orders(self.id)
        self.close_all_positions(self.id)
"""
CALLBACKS = [
    "on_start",
    "on_quote",
    "on_trade",
    "on_book_deltas",
    "topic handler",
    "timer callback",
    "on_signal",
    "on_time_event",
    "on_order_initialized",
    "on_order_submitted",
    "on_order_accepted",
    "on_order_canceled",
    "on_order_filled",
    "on_order_event",
    "on_position_opened",
    "on_position_changed",
    "on_position_closed",
    "on_position_event",
    "on_stop",
]


def test_a_run_leaves_figures_that_add_up(tmp_path: Path, cache: Path) -> None:
    outcome = play(tmp_path, cache, baselines=[FLAT, HOLD])
    result = outcome.result
    outcome.raise_if_failed()

    assert read_result(outcome.folder) == result
    assert result.status == "complete"
    assert not result.partial
    assert result.synthetic
    (data,) = result.data
    assert data.source_counts == data.catalog_counts == data.replayed
    assert data.replayed["quotes"] > 100
    assert data.replayed["trades"] > 100

    (fill,) = pq.read_table(outcome.folder / "fills.parquet").to_pylist()
    prices = pq.read_table(outcome.folder / "prices.parquet").to_pydict()
    own = result.performance
    assert fill["liquidity"] == "TAKER"
    assert fill["commission"] == pytest.approx(fill["price"] * 0.01 * 0.0005, abs=1e-7)
    assert own.fees == pytest.approx(fill["commission"])
    assert own.pnl_before_costs == pytest.approx(0.01 * (prices["mid"][-1] - fill["price"]))
    assert own.pnl_after_costs == pytest.approx(own.pnl_before_costs - own.fees)
    assert own.turnover == pytest.approx(fill["price"] * 0.01)
    assert own.open_positions == 1
    assert own.max_drawdown > 0

    flat, hold = result.baselines
    assert (flat.fills, flat.fees, flat.pnl_after_costs) == (0, 0, 0)
    assert hold.pnl_after_costs == own.pnl_after_costs
    assert hold.fills_sha256 != flat.fills_sha256
    equity = pq.read_table(outcome.folder / "equity.parquet").to_pandas()
    assert set(equity.series) == {"run", "Flat", "BuyAndHold"}
    last = equity[equity.series == "run"].equity.iloc[-1]
    assert last == pytest.approx(result.start_balance + own.pnl_after_costs)


@pytest.mark.parametrize("where", CALLBACKS)
def test_an_exception_in_any_callback_ends_the_run(tmp_path: Path, cache: Path, where: str) -> None:
    entry = strategy(tmp_path, BUSY.replace("WHERE", repr(where)))
    outcome = play(tmp_path, cache, strategies=[entry], baselines=[FLAT])
    with pytest.raises(RunFailed, match=f"a bug in {where}") as caught:
        outcome.raise_if_failed()
    assert any("mine.py" in note and "in boom" in note for note in caught.value.__notes__)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)

    result = read_result(outcome.folder)
    assert result.status == "failed"
    assert result.partial
    assert result.traceback is not None
    assert "mine.py" in result.traceback
    assert result.baselines == (), "nothing is compared with a run that failed"
    if where != "on_stop":
        assert result.events < sum(result.data[0].replayed.values()) / 4


def test_the_same_callbacks_run_through_when_none_raises(tmp_path: Path, cache: Path) -> None:
    outcome = play(tmp_path, cache, strategies=[strategy(tmp_path, BUSY.replace("WHERE", "''"))])
    outcome.raise_if_failed()
    result = outcome.result
    assert result.performance.fills >= 3
    assert result.performance.open_positions == 0
    sampled = result.latency["Mine-001.on_quote"]
    assert sampled.samples > 50
    assert 0 < sampled.p50_ns <= sampled.p99_ns <= sampled.max_ns
    assert sum(sampled.counts) == sampled.samples
    positions = pq.read_table(outcome.folder / "positions.parquet").to_pylist()
    realized = sum(position["realized_pnl"] for position in positions)
    assert realized == pytest.approx(result.performance.pnl_after_costs, abs=1e-6), (
        "our own accounting and the venue's account agree on a closed book"
    )


def test_what_a_strategy_catches_itself_is_its_own_business(tmp_path: Path, cache: Path) -> None:
    body = """
    def on_start(self):
        self.subscribe_quotes(InstrumentId.from_str(self.params.instrument))
        try:
            self.on_reset()
        except ValueError:
            pass

    def on_reset(self): raise ValueError("caught")

    def on_quote(self, quote):
        try:
            [][1]
        except IndexError:
            pass
    """
    # on_reset is called by the strategy itself: caught, so no callback was left by an exception
    body = body.replace("self.on_reset()", "self.helper()").replace("def on_reset", "def helper")
    play(tmp_path, cache, strategies=[strategy(tmp_path, body)]).raise_if_failed()


def test_a_strategy_that_stops_itself_stops_alone(tmp_path: Path, cache: Path) -> None:
    body = """
    def on_start(self):
        self.subscribe_quotes(InstrumentId.from_str(self.params.instrument))
        self.count = 0
        self.name = str(self.strategy_id)

    def on_quote(self, quote):
        self.count += 1
        if self.count == 20 and self.name == "Mine-001":
            self.stop()  # Nautilus keeps its own attributes borrowed until this returns

    def on_stop(self):
        with open(PLACE, "a") as file:
            file.write(f"{self.name} {self.count}\\n")
    """
    place = tmp_path / "stopped"
    entry = strategy(tmp_path, body.replace("PLACE", repr(str(place))))
    outcome = play(tmp_path, cache, strategies=[entry, entry])
    outcome.raise_if_failed()
    quotes = outcome.result.data[0].replayed["quotes"]
    assert place.read_text().splitlines() == ["Mine-001 20", f"Mine-002 {quotes}"]


def test_a_callback_without_a_python_frame_still_fails_the_run(tmp_path: Path, cache: Path) -> None:
    body = """
    def on_start(self):
        self.clock.set_timer("t", timedelta(seconds=1), callback={}.__getitem__)
    """
    outcome = play(tmp_path, cache, strategies=[strategy(tmp_path, body)])
    with pytest.raises(RunFailed, match=r"processed .* of .* events"):
        outcome.raise_if_failed()


def test_a_failing_baseline_fails_the_run(tmp_path: Path, cache: Path) -> None:
    entry = strategy(tmp_path, BUSY.replace("WHERE", "'on_quote'"))
    outcome = play(tmp_path, cache, baselines=[entry])
    with pytest.raises(RunFailed, match=r"baseline Mine: .*a bug in on_quote"):
        outcome.raise_if_failed()
    assert outcome.result.status == "failed"
    assert outcome.result.baselines[0].status == "failed"
    assert outcome.result.performance.status == "complete"
    assert not outcome.result.partial


def test_a_config_error_in_on_start_is_wrong_input(tmp_path: Path, cache: Path) -> None:
    body = """
    def on_start(self):
        self.subscribe_model_signals(InstrumentId.from_str(self.params.instrument))
    """
    outcome = play(tmp_path, cache, strategies=[strategy(tmp_path, body)])
    with pytest.raises(ConfigError, match=r"add \[\[signals\]\]"):
        outcome.raise_if_failed()


def test_several_instruments_and_strategies_share_one_run(tmp_path: Path, cache: Path) -> None:
    both = [synthetic(), synthetic(SPOT, seed=4)]
    spot_hold = HOLD | {"params": {"instrument": SPOT, "size": 0.02}}
    outcome = play(tmp_path, cache, data=both, strategies=[HOLD, spot_hold, HOLD])
    outcome.raise_if_failed()
    result = outcome.result
    assert [item.name for item in result.strategies] == [
        "BuyAndHold-001",
        "BuyAndHold-002",
        "BuyAndHold-003",
    ]
    assert [item.fills for item in result.strategies] == [1, 1, 1]
    assert {item.instrument for item in result.data} == {PERP, SPOT}
    total = sum(item.pnl_after_costs for item in result.strategies)
    assert result.performance.pnl_after_costs == pytest.approx(total)
    assert result.performance.fees == pytest.approx(sum(item.fees for item in result.strategies))


def test_start_and_end_cut_the_replay(tmp_path: Path, cache: Path) -> None:
    cut = {"start": "2024-01-01T00:00:01Z", "end": "2024-01-01T00:00:03Z"}
    outcome = play(tmp_path, cache, **cut)
    outcome.raise_if_failed()
    (data,) = outcome.result.data
    assert 0 < data.replayed["quotes"] < data.catalog_counts["quotes"]
    first, last = data.span_ns
    assert first >= 1_704_067_201_000_000_000
    assert last <= 1_704_067_203_000_000_000
    with pytest.raises(DataError, match="no events between start and end"):
        play(tmp_path, cache, start="2030-01-01")
    assert len(list((tmp_path / "runs").iterdir())) == 1, "no empty run directory is left"


def test_orders_take_the_configured_time_to_arrive(tmp_path: Path, cache: Path) -> None:
    outcome = play(tmp_path, cache, venue={"latency_ms": 250.0})
    (order,) = pq.read_table(outcome.folder / "orders.parquet").to_pylist()
    (fill,) = pq.read_table(outcome.folder / "fills.parquet").to_pylist()
    assert fill["ts_event"] - order["ts_init"] >= 250_000_000


def test_runs_of_one_second_get_directories_of_their_own(tmp_path: Path, cache: Path) -> None:
    folders = {play(tmp_path, cache).folder for _ in range(3)}
    assert len(folders) == 3
    assert all(folder.name.startswith("t-") for folder in folders)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"mode": "live"}, "not available yet"),
        ({"strategies": []}, "no strategies"),
        ({"data": []}, "no data"),
        ({"data": [synthetic(), synthetic()]}, "two .* entries are of"),
        ({"data": [synthetic("BTCUSDT-PERP.BYBIT")]}, "not of venue BINANCE"),
        ({"venue": {"starting_balances": ["1 EUR"]}}, "quoted in USDT"),
        ({"venue": {"maker_fee": "much"}}, "write a share of the value traded"),
        ({"start": "yesterday"}, "2024-08-08T23:55:00Z"),
        ({"name": "a/b"}, "slash"),
        ({"signals": [{"instrument": PERP, "model": "no.safetensors"}]}, "qbtc train"),
        ({"signals": [{"instrument": SPOT, "model": "x"}]}, "no .* of it"),
    ],
)
def test_a_config_that_cannot_run_says_what_to_change(
    tmp_path: Path, cache: Path, options: dict[str, Any], says: str
) -> None:
    from qbtc.errors import InputError

    with pytest.raises(InputError, match=says):
        play(tmp_path, cache, **options)


def test_an_output_that_cannot_be_written_is_found_before_running(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="give another with --output"):
        execute(make_plan(config(), tmp_path), output_dir=tmp_path / "file")


def test_an_l2_venue_needs_depth(tmp_path: Path, cache: Path) -> None:
    catalog = play(tmp_path, cache).result
    assert catalog.status == "complete"
    from functools import partial

    from qbtc.config import SyntheticSource
    from qbtc.data.catalog import open_source

    made = open_source(convert(synthetic(), SyntheticSource, "t"), tmp_path, cache_dir=cache)
    quotes_only = {
        "source": "catalog",
        "instrument": PERP,
        "path": str(made.catalog_path),
        "types": ["quotes", "trades"],
    }
    tree = {"name": "t", "data": [quotes_only], "strategies": [HOLD], "venue": {"book": "L2"}}
    plan = make_plan(convert(tree, RunConfig, "t"), tmp_path)
    with pytest.raises(ConfigError, match='write book = "L1"'):
        execute(plan, output_dir=tmp_path / "runs", opener=partial(open_source, cache_dir=cache))
    tree["venue"] = {"book": "L1"}
    plan = make_plan(convert(tree, RunConfig, "t"), tmp_path)
    outcome = execute(plan, output_dir=tmp_path / "runs")
    outcome.raise_if_failed()
    assert outcome.result.data[0].replayed["depth"] == 0


def test_equity_is_marked_at_every_quote(tmp_path: Path, cache: Path) -> None:
    outcome = play(tmp_path, cache)
    equity = pq.read_table(outcome.folder / "equity.parquet").to_pydict()
    assert np.all(np.diff(equity["ts"]) >= 0)
    assert equity["equity"][0] == outcome.result.start_balance

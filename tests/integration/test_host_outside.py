"""A run tells the outside what it does, hears the bus, and keeps to its limits."""

import asyncio
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hosted import FLAT, PERP, STRATEGIES, cache, config, model, play, strategy, synthetic

from qbtc.errors import BusUnavailable, ConfigError
from qbtc.store import open_store
from qbtc.store.recorder import Recorder
from qbtc.trading.host import Outcome
from qbtc.trading.plan import make_plan

__all__ = ["cache"]

RISK = {
    "order_notional_max": 2_000.0,
    "position_notional_max": 2_000.0,
    "signal_age_ms_max": 60_000.0,
    "price_deviation_bp_max": 1_000.0,
}
NOWHERE = "amqp://guest:secret@127.0.0.1:1/"
MAKER = {
    "path": f"{STRATEGIES}/imbalance_maker.py:ImbalanceMaker",
    "params": {"instrument": PERP, "size": 0.02, "position_max": 0.1, "half_spread_bp": 0.1},
}
TAKER = {
    "path": f"{STRATEGIES}/signal_taker.py:SignalTaker",
    "params": {
        "instrument": PERP,
        "size": 0.02,
        "hold_ms": 50.0,
        "move_bp": 50.0,
        "entropy_max": 2.0,
        "ood_max": 2.0,
    },
}
BUS_TAKER = {
    "path": f"{STRATEGIES}/bus_taker.py:BusTaker",
    "params": {"instrument": PERP, "size": 0.02, "hold_ms": 200.0},
}


def rows(url: str, table: str) -> list[dict[str, Any]]:
    async def read() -> list[dict[str, Any]]:
        store = await open_store(url)
        try:
            return [row async for row in store.export(table)]
        finally:
            await store.close()

    return asyncio.run(read())


def trail(url: str, run_id: str) -> list[dict[str, Any]]:
    async def read() -> list[dict[str, Any]]:
        store = await open_store(url)
        try:
            return list(await store.trail(run_id=run_id))
        finally:
            await store.close()

    return asyncio.run(read())


def table(outcome: Outcome, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(outcome.folder / f"{name}.parquet").to_pylist()
    return found


def exact(number: float) -> Decimal:
    """Read the decimal number that a table has as a float."""
    return Decimal(f"{number:.8f}")


def with_signals(folder: Path) -> dict[str, Any]:
    """Sections of a run with a model's signals, which begin after a minute and are long good."""
    path = model(folder / "m.safetensors", horizon_s=60)
    entry = {"instrument": PERP, "model": str(path)}
    return {"data": [synthetic(duration_s=70.0)], "signals": [entry]}


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/records.db"


def test_the_records_of_a_run_add_up_to_its_positions_and_fees(
    tmp_path: Path, cache: Path, url: str
) -> None:
    options = {"strategies": [MAKER, TAKER], **with_signals(tmp_path)}
    plain = play(tmp_path, cache, **options)
    recorded = play(tmp_path, cache, **options, records={"url": url})
    assert recorded.error is None
    assert recorded.result.fills_sha256 == plain.result.fills_sha256
    assert recorded.result.performance.fills > 10
    assert recorded.result.outside.records is not None
    assert recorded.result.outside.records.counts["waiting"] == 0

    fills = rows(url, "fills")
    sums: dict[str, Decimal] = {}
    for fill in fills:
        sign = 1 if fill["side"] == "BUY" else -1
        sums[fill["strategy"]] = sums.get(fill["strategy"], Decimal(0)) + sign * Decimal(
            fill["quantity"]
        )
    held: dict[str, Decimal] = dict.fromkeys(sums, Decimal(0))
    for position in table(recorded, "positions"):
        held[position["strategy"]] += exact(position["open_quantity"])
    assert sums == held

    own = table(recorded, "fills")
    fees = sum(Decimal(fill["commission"]) for fill in fills)
    assert fees == sum(exact(fill["commission"]) for fill in own)
    values = sum(Decimal(fill["price"]) * Decimal(fill["quantity"]) for fill in fills)
    assert values == sum(exact(fill["price"]) * exact(fill["quantity"]) for fill in own)


def test_every_order_and_event_of_a_run_is_in_the_records_once(
    tmp_path: Path, cache: Path, url: str
) -> None:
    options = {"strategies": [MAKER], "records": {"url": url}, **with_signals(tmp_path)}
    outcomes = [play(tmp_path, cache, **options) for _ in range(2)]
    orders = rows(url, "orders")
    for outcome in outcomes:
        mine = {row["order_id"]: row for row in orders if row["run_id"] == outcome.result.run_id}
        own = {row["order_id"]: row for row in table(outcome, "orders")}
        assert mine.keys() == own.keys()
        for order_id, row in own.items():
            assert Decimal(mine[order_id]["filled"]) == exact(row["filled"])
            assert mine[order_id]["status"] == row["status"]
    events = [row for row in rows(url, "order_events") if row["scope"] == outcomes[0].result.run_id]
    by_order: dict[str, list[int]] = {}
    for row in events:
        by_order.setdefault(row["order_id"], []).append(row["sequence"])
    assert all(sorted(found) == list(range(len(found))) for found in by_order.values())


def test_a_fill_joins_the_signal_that_its_order_acts_on(
    tmp_path: Path, cache: Path, url: str
) -> None:
    outcome = play(
        tmp_path,
        cache,
        strategies=[TAKER],
        **with_signals(tmp_path),
        records={"url": url, "signals": "all"},
    )
    signals = rows(url, "signals")
    published = table(outcome, "signals")
    assert {row["ts_event"] for row in signals} == {row["ts"] for row in published}
    acted = {row["signal_id"]: row for row in signals if row["outcome"] == "acted"}
    joined = [row for row in rows(url, "orders") if row["signal_id"] is not None]
    assert joined
    assert acted.keys() == {row["signal_id"] for row in joined}
    for order in joined:
        signal = acted[order["signal_id"]]
        assert signal["ts_event"] <= order["ts_init"]
        assert order["side"] == ("BUY" if signal["p_up"] > signal["p_down"] else "SELL")
    assert len(trail(url, outcome.result.run_id)) >= len(table(outcome, "fills"))


def test_an_order_beyond_the_limits_is_denied_at_once_and_recorded(
    tmp_path: Path, cache: Path, url: str
) -> None:
    body = """
    def on_start(self):
        self.denied, self.events = [], []
        self.id = InstrumentId.from_str(self.params.instrument)
        self.subscribe_quotes(self.id)
    def on_quote(self, quote):
        if len(self.denied) == 0:
            instrument = self.instrument_or_fail(self.id)
            order = self.order_factory.market(self.id, OrderSide.BUY, instrument.make_qty(1))
            self.submit_order(order, acts_on="my-signal")
            assert self.denied == [order.client_order_id], self.denied
            assert self.events == ["OrderInitialized", "OrderDenied"], self.events
    def on_order_denied(self, event):
        assert "order_notional_max" in event.reason
        self.denied.append(event.client_order_id)
    def on_order_event(self, event):
        self.events.append(type(event).__name__)
    """
    mine = strategy(tmp_path, body)
    outcome = play(tmp_path, cache, strategies=[mine], risk=RISK, records={"url": url})
    assert outcome.error is None
    assert outcome.result.outside.risk is not None
    assert outcome.result.outside.risk.refused == {"order_notional_max": 1}
    assert any("refused by [risk]" in note for note in outcome.result.notes)
    (order,) = rows(url, "orders")
    assert (order["status"], order["signal_id"]) == ("DENIED", "my-signal")
    assert [row["kind"] for row in rows(url, "order_events")] == ["initialized", "denied"]


def test_a_change_beyond_the_limits_is_refused_and_the_order_stays(
    tmp_path: Path, cache: Path
) -> None:
    body = """
    def on_start(self):
        self.refused, self.order = [], None
        self.id = InstrumentId.from_str(self.params.instrument)
        self.subscribe_quotes(self.id)
        self.clock.set_time_alert("change", self.clock.utc_now() + timedelta(seconds=1))
    def on_quote(self, quote):
        if self.order is None:
            instrument = self.instrument_or_fail(self.id)
            price = instrument.make_price(float(quote.bid_price) * 0.9)
            self.order = self.order_factory.limit(
                self.id, OrderSide.BUY, instrument.make_qty(0.02), price)
            self.submit_order(self.order)
    def on_time_event(self, event):
        instrument = self.instrument_or_fail(self.id)
        for size in (1, 0.03):
            self.modify_order(self.order.client_order_id, quantity=instrument.make_qty(size))
    def on_order_modify_rejected(self, event):
        assert "order_notional_max" in event.reason
        self.refused.append(event)
    def on_stop(self):
        assert len(self.refused) == 1
        assert float(self.cache.order(self.order.client_order_id).quantity) == 0.03
    """
    outcome = play(tmp_path, cache, strategies=[strategy(tmp_path, body)], risk=RISK)
    assert outcome.error is None


def test_limits_do_not_change_a_run_that_keeps_to_them(tmp_path: Path, cache: Path) -> None:
    options = {"strategies": [MAKER], **with_signals(tmp_path)}
    wide = {"order_notional_max": 1e9, "position_notional_max": 1e9, "orders_per_minute_max": 10**6}
    limited = play(tmp_path, cache, **options, risk=wide)
    assert limited.result.fills_sha256 == play(tmp_path, cache, **options).result.fills_sha256
    assert limited.result.outside.risk is not None
    assert limited.result.outside.risk.refused == {}


def test_signals_go_over_a_bus_and_come_back_as_orders(
    tmp_path: Path, cache: Path, url: str
) -> None:
    outcome = play(
        tmp_path,
        cache,
        strategies=[BUS_TAKER],
        **with_signals(tmp_path),
        bus={"url": "memory://"},
        bus_signals=[{"instrument": PERP}],
        risk=RISK,
        records={"url": url},
        replay={"speed": 10.0},
    )
    assert outcome.error is None
    bus = outcome.result.outside.bus
    assert bus is not None
    assert bus.problem is None
    assert bus.relay["signals"].sent == len(table(outcome, "signals"))
    assert bus.outcomes["acted"] > 0
    assert bus.relay["fills"].sent == outcome.result.performance.fills > 0
    acted = [row["signal_id"] for row in rows(url, "signals") if row["outcome"] == "acted"]
    assert len(acted) == len(set(acted)) == bus.outcomes["acted"]
    sent = {row["signal_id"] for row in rows(url, "orders") if row["status"] != "DENIED"}
    assert sent == set(acted)


def test_an_exception_in_on_bus_signal_ends_the_run(tmp_path: Path, cache: Path) -> None:
    body = """
    def on_start(self):
        self.subscribe_bus_signals(InstrumentId.from_str(self.params.instrument))
    def on_bus_signal(self, signal):
        raise RuntimeError(f"boom at {signal.action}")
    """
    outcome = play(
        tmp_path,
        cache,
        strategies=[strategy(tmp_path, body)],
        **with_signals(tmp_path),
        bus={"url": "memory://"},
        bus_signals=[{"instrument": PERP}],
        risk=RISK,
        replay={"speed": 10.0},
    )
    assert "boom at" in str(outcome.error)
    assert outcome.result.status == "failed"


def test_a_strategy_that_wants_signals_of_no_bus_is_told_what_to_add(
    tmp_path: Path, cache: Path
) -> None:
    outcome = play(tmp_path, cache, strategies=[BUS_TAKER])
    assert isinstance(outcome.error, ConfigError)
    assert "add [[bus_signals]]" in str(outcome.error)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"bus_signals": [{"instrument": PERP}]}, r"add \[bus\]"),
        ({"bus_signals": [{"instrument": PERP}], "bus": {}}, r"add \[risk\]"),
        ({"bus_signals": [{"instrument": "ETHUSDT.BINANCE"}]}, r"no \[\[data\]\] of it"),
        ({"bus_signals": [{"instrument": PERP}] * 2}, r"two \[\[bus_signals\]\]"),
        ({"name": "two words", "bus": {}}, "ASCII without spaces"),
    ],
)
def test_sections_that_do_not_go_together_are_refused(
    tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        make_plan(config(strategies=[FLAT], **options), tmp_path)


def test_a_bus_without_a_url_is_asked_for(
    tmp_path: Path, cache: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("QBTC_AMQP_URL", raising=False)
    with pytest.raises(ConfigError, match="or set QBTC_AMQP_URL"):
        play(tmp_path, cache, strategies=[FLAT], bus={}, records={"url": url})
    assert not list((tmp_path / "runs").iterdir())


def test_a_run_goes_on_without_its_broker_and_counts_what_it_could_not_tell(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qbtc.trading.outside.FLUSH_S_MAX", 0.2)
    options = {"strategies": [MAKER], **with_signals(tmp_path)}
    outcome = play(tmp_path, cache, **options, bus={"url": NOWHERE, "queue_max": 10})
    assert outcome.error is None
    assert outcome.result.fills_sha256 == play(tmp_path, cache, **options).result.fills_sha256
    bus = outcome.result.outside.bus
    assert bus is not None
    assert bus.relay["signals"].sent == 0
    assert bus.relay["signals"].dropped == len(table(outcome, "signals"))
    assert bus.relay["fills"].dropped == outcome.result.performance.fills
    assert any("did not reach the bus" in note for note in outcome.result.notes)
    assert "secret" not in (outcome.folder / "result.json").read_text()


def test_who_wants_signals_from_a_broker_that_is_away_does_not_start(
    tmp_path: Path, cache: Path
) -> None:
    with pytest.raises(BusUnavailable):
        play(
            tmp_path,
            cache,
            strategies=[BUS_TAKER],
            bus={"url": NOWHERE},
            bus_signals=[{"instrument": PERP}],
            risk=RISK,
        )


def test_rows_that_never_reach_the_database_are_the_runs_problem(
    tmp_path: Path, cache: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Lost at the start and long ago at the end, as in a run that takes hours.
    monkeypatch.setattr("qbtc.store.lane.DROPPED_S", 0.0)
    monkeypatch.setattr("qbtc.trading.outside.Recorder", partial(Recorder, rows_max=0))
    hold = {"path": f"{STRATEGIES}/buy_and_hold.py:BuyAndHold"}
    hold["params"] = {"instrument": PERP, "size": 0.01}  # type: ignore[assignment]
    outcome = play(tmp_path, cache, strategies=[hold], records={"url": url})
    assert outcome.error is None
    records = outcome.result.outside.records
    assert records is not None
    assert records.counts["dropped"] > 0
    said = f"records that are never written: {records.counts['dropped']} dropped"
    assert records.problem == said
    assert f"records: {said}" in outcome.result.notes


def test_a_run_goes_on_without_its_database_and_the_next_one_writes_what_waits(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qbtc.trading.outside.FLUSH_S_MAX", 0.5)
    url = f"sqlite:///{tmp_path}/later/records.db"
    hold = {"path": f"{STRATEGIES}/buy_and_hold.py:BuyAndHold"}
    hold["params"] = {"instrument": PERP, "size": 0.01}  # type: ignore[assignment]
    away = play(tmp_path, cache, strategies=[hold], records={"url": url})
    assert away.error is None
    assert any("records wait, and are kept on disk" in note for note in away.result.notes)
    (tmp_path / "later").mkdir()
    monkeypatch.setattr("qbtc.trading.outside.FLUSH_S_MAX", 20.0)
    back = play(tmp_path, cache, strategies=[hold], records={"url": url})
    fills = rows(url, "fills")
    assert {row["run_id"] for row in fills} == {away.result.run_id, back.result.run_id}
    assert len(fills) == away.result.performance.fills + back.result.performance.fills

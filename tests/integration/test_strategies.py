"""Each strategy on a small made-up market: it trades, and does what its docstring says."""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import numpy as np
import pytest
from nautilus_trader.backtest import BacktestEngine, BacktestEngineConfig
from nautilus_trader.common import DataActor, LoggerConfig
from nautilus_trader.execution import DefaultFillModel, MakerTakerFeeModel, StaticLatencyModel
from nautilus_trader.model import (
    AccountType,
    Bar,
    BarType,
    BookType,
    Currency,
    InstrumentId,
    Money,
    OmsType,
    Price,
    Quantity,
    QuoteTick,
    Venue,
)

from qbtc.data.instruments import instrument_for
from qbtc.errors import ConfigError
from qbtc.trading.strategy import HostLinks, QbtcStrategy, SignalBoard

NAME = "BTCUSDT-PERP.BINANCE"
INSTRUMENT = instrument_for(NAME)
BAR_TYPE = f"{NAME}-1-MINUTE-LAST-EXTERNAL"
START_NS = 1_704_067_200_000_000_000
STRATEGIES = Path(__file__).resolve().parents[2] / "strategies"


@dataclass(frozen=True)
class Spoken:
    """A signal as a test wants it."""

    p_down: float
    p_up: float
    ts_event: int = 0
    entropy: float = 0.8
    ood: float = 0.5

    @property
    def p_flat(self) -> float:
        return 1 - self.p_up - self.p_down

    @property
    def margin(self) -> float:
        low, high = sorted((self.p_down, self.p_flat, self.p_up))[1:]
        return high - low


type Speaker = Callable[[int, QuoteTick], Spoken]
SILENT = Spoken(0.3, 0.3)


class Model(DataActor):
    """Says what the test wants at every quote, before strategies see the quote."""

    def __new__(cls, *_: object) -> Self:
        return super().__new__(cls)

    def __init__(self, board: SignalBoard, speak: Speaker) -> None:
        self._handlers = board.handlers(NAME)
        self._speak = speak
        self._count = 0

    def on_start(self) -> None:
        self.subscribe_quotes(InstrumentId.from_str(NAME))

    def on_quote(self, quote: QuoteTick) -> None:
        signal = self._speak(self._count, quote)
        self._count += 1
        for handler in self._handlers:
            handler(signal, quote)


@dataclass(frozen=True)
class Outcome:
    orders: list[Any]
    fills: list[tuple[int, str, float, float]]  # (ts, side, price, quantity)

    @property
    def position(self) -> float:
        signed = (size if side == "BUY" else -size for _, side, _, size in self.fills)
        return round(sum(signed), 6)

    def positions(self) -> list[float]:
        """Position after each fill."""
        signed = [size if side == "BUY" else -size for _, side, _, size in self.fills]
        return np.round(np.cumsum(signed), 6).tolist()


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"strategies.{name}", STRATEGIES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def run(
    strategy_class: Any,
    params: Any,
    data: Sequence[Any],
    speak: Speaker | None = None,
    *,
    latency_ms: float = 5.0,
) -> Outcome:
    """Run one strategy through Nautilus's engine with costs and latency on."""
    logging = LoggerConfig(bypass_logging=True)
    engine = BacktestEngine(BacktestEngineConfig(bypass_logging=True, logging=logging))
    engine.add_venue(
        Venue("BINANCE"),
        OmsType.NETTING,
        AccountType.MARGIN,
        [Money(1_000_000, Currency.from_str("USDT"))],
        default_leverage=Decimal(10),
        fee_model=MakerTakerFeeModel(Decimal("0.0002"), Decimal("0.0005")),
        latency_model=StaticLatencyModel(base_latency_nanos=round(latency_ms * 1e6)),
        fill_model=DefaultFillModel(prob_fill_on_limit=0.0, prob_slippage=0.0, random_seed=1),
        book_type=BookType.L1_MBP,
    )
    engine.add_instrument(INSTRUMENT)
    engine.add_data(list(data))
    board = SignalBoard((NAME,))
    seen: list[BaseException] = []
    links = HostLinks(board=board, bar_types={NAME: BAR_TYPE})
    strategy = watched(strategy_class, seen)(params, links=links)
    if speak is not None:
        engine.add_actor(Model(board, speak))
    engine.add_strategy(strategy)
    try:
        engine.run()
    finally:
        if seen:
            raise seen[0]
    orders = engine.cache.orders()
    fills = [
        (event.ts_event, event.order_side.name, float(event.last_px), float(event.last_qty))
        for order in orders
        for event in order.events()
        if type(event).__name__ == "OrderFilled"
    ]
    outcome = Outcome(orders=orders, fills=sorted(fills))
    engine.dispose()
    return outcome


def watched(strategy_class: Any, seen: list[BaseException]) -> Any:
    """Keep exceptions of callbacks, which Nautilus would swallow."""

    def keep(function: Any) -> Any:
        def call(self: QbtcStrategy[Any], *args: Any) -> Any:
            try:
                return function(self, *args)
            except BaseException as error:
                seen.append(error)
                raise

        return call

    names = [name for name in vars(strategy_class) if name.startswith("on_")]
    body = {name: keep(vars(strategy_class)[name]) for name in names}
    return type(strategy_class.__name__, (strategy_class,), body)


def quotes(mids: Sequence[float], *, step_ms: float = 50, sizes: Any = None) -> list[QuoteTick]:
    """Quotes one tick wide around the mids; ``sizes`` are (bid, ask) per quote."""
    made = []
    for i, mid in enumerate(mids):
        bid_size, ask_size = (5.0, 5.0) if sizes is None else sizes[i]
        ts = START_NS + round(i * step_ms * 1e6)
        prices = (INSTRUMENT.make_price(mid - 0.05), INSTRUMENT.make_price(mid + 0.05))
        amounts = (INSTRUMENT.make_qty(bid_size), INSTRUMENT.make_qty(ask_size))
        made.append(QuoteTick(INSTRUMENT.id, *prices, *amounts, ts, ts))
    return made


def bars(closes: Sequence[float]) -> list[Bar]:
    bar_type = BarType.from_str(BAR_TYPE)
    made = []
    for i, close in enumerate(closes):
        ts = START_NS + (i + 1) * 60_000_000_000
        price = Price(close, 1)
        made.append(Bar(bar_type, price, price, price, price, Quantity(10, 3), ts, ts))
    return made


def wave(count: int, *, period: int = 120, height: float = 60.0) -> list[float]:
    """A mid that goes up and down, always between two ticks."""
    ticks = np.round(10 * height * np.sin(2 * np.pi * np.arange(count) / period))
    return (60_000.05 + ticks / 10).tolist()


def foresight(mids: Sequence[float], ahead: int) -> Speaker:
    """Signals that know the mid ``ahead`` quotes later."""

    def speak(i: int, quote: QuoteTick) -> Spoken:
        move = mids[min(i + ahead, len(mids) - 1)] - mids[i]
        return Spoken(0.05, 0.9) if move > 0 else Spoken(0.9, 0.05) if move < 0 else SILENT

    return speak


class TestEmaCross:
    def run(self, closes: Sequence[float], **params: Any) -> Outcome:
        module = load("ema_cross")
        given = {"instrument": NAME, "size": 0.5, "fast": 5, "slow": 15, **params}
        return run(module.EmaCross, module.EmaCrossParams(**given), bars(closes))

    def test_it_is_long_in_a_rising_market_and_flat_in_a_falling_one(self) -> None:
        outcome = self.run([*np.linspace(100, 200, 40), *np.linspace(200, 100, 60)])
        assert [side for _, side, _, _ in outcome.fills] == ["BUY", "SELL"]
        assert outcome.positions() == [0.5, 0.0]

    def test_it_goes_short_only_where_it_is_told_to(self) -> None:
        closes = [*np.linspace(100, 200, 40), *np.linspace(200, 100, 60)]
        outcome = self.run(closes, side="both")
        assert outcome.positions() == [0.5, -0.5]

    def test_it_waits_for_the_slow_average(self) -> None:
        assert self.run(np.linspace(100, 200, 14).tolist()).orders == []
        (order,) = self.run(np.linspace(100, 200, 17).tolist()).orders
        assert order.ts_init == START_NS + 15 * 60_000_000_000

    def test_a_choppy_market_costs_it_money(self) -> None:
        outcome = self.run(wave(600, period=20, height=5.0), side="both")
        assert len(outcome.fills) > 20
        assert set(outcome.positions()) == {0.5, -0.5}

    @pytest.mark.parametrize("params", [{"fast": 15}, {"fast": 0}, {"size": 0.0001}])
    def test_it_refuses_averages_and_sizes_that_cannot_work(self, params: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match="EmaCross"):
            self.run([100.0] * 3, **params)


class TestImbalanceMaker:
    def run(
        self, mids: Sequence[float], speak: Speaker | None, sizes: Any = None, **params: Any
    ) -> Outcome:
        module = load("imbalance_maker")
        given = {
            "instrument": NAME,
            "size": 0.1,
            "position_max": 0.3,
            "use_signal": speak is not None,
            **params,
        }
        data = quotes(mids, sizes=sizes)
        return run(module.ImbalanceMaker, module.ImbalanceMakerParams(**given), data, speak)

    def test_it_rests_both_sides_and_stays_inside_its_limit(self) -> None:
        outcome = self.run(wave(2_000), lambda i, quote: SILENT)
        assert len(outcome.fills) > 10
        assert all(order.is_post_only for order in outcome.orders)
        positions = outcome.positions()
        assert max(positions) <= 0.3
        assert min(positions) >= -0.3
        assert {side for _, side, _, _ in outcome.fills} == {"BUY", "SELL"}

    def test_fills_are_at_its_own_prices_not_the_markets(self) -> None:
        outcome = self.run(wave(2_000), lambda i, quote: SILENT)
        prices = {order.client_order_id.value: float(order.price) for order in outcome.orders}
        filled = [order for order in outcome.orders if float(order.filled_qty)]
        assert filled
        for order in filled:
            assert float(order.avg_px) == pytest.approx(prices[order.client_order_id.value])

    def test_the_signal_moves_both_quotes_its_way(self) -> None:
        calm = [60_000.05] * 40

        def first_prices(spoken: Spoken) -> tuple[float, float]:
            outcome = self.run(calm, lambda i, quote: spoken, half_spread_bp=2.0, skew_bp=1.5)
            first = {order.side.name: float(order.price) for order in reversed(outcome.orders)}
            return first["BUY"], first["SELL"]

        down, silent, up = map(first_prices, (Spoken(0.9, 0.05), SILENT, Spoken(0.05, 0.9)))
        assert down[0] < silent[0] < up[0]
        assert down[1] < silent[1] < up[1]
        assert up[0] - silent[0] == pytest.approx(6.0 * 1.5 * 0.85, abs=0.2)

    def test_a_signal_that_is_right_earns_more_than_its_opposite(self) -> None:
        mids = wave(3_000)

        def worth(speak: Speaker) -> float:
            outcome = self.run(mids, speak, half_spread_bp=0.5, skew_bp=3.0)
            sides = [1 if side == "BUY" else -1 for _, side, _, _ in outcome.fills]
            terms = zip(sides, outcome.fills, strict=True)
            return sum(sign * size * (mids[-1] - price) for sign, (_, _, price, size) in terms)

        right = foresight(mids, 10)

        def wrong(i: int, quote: QuoteTick) -> Spoken:
            said = right(i, quote)
            return Spoken(said.p_up, said.p_down)

        assert worth(right) > worth(wrong)

    @pytest.mark.parametrize("doubt", [{"entropy": 1.098}, {"ood": 1.0}])
    def test_it_withdraws_while_the_model_does_not_know(self, doubt: dict[str, float]) -> None:
        calm = [60_000.05] * 80

        def speak(i: int, quote: QuoteTick) -> Spoken:
            return SILENT if i < 40 else Spoken(0.3, 0.3, **doubt)

        outcome = self.run(calm, speak)
        assert len(outcome.orders) == 2
        assert all(order.status.name == "CANCELED" for order in outcome.orders)
        assert all(order.ts_last <= START_NS + 41 * 50_000_000 for order in outcome.orders)

    def test_a_quiet_market_keeps_its_place_in_the_queue(self) -> None:
        outcome = self.run([60_000.05] * 400, lambda i, quote: SILENT)
        assert len(outcome.orders) == 2

    def test_without_a_model_it_leans_on_the_book_alone(self) -> None:
        calm = [60_000.05] * 10
        heavy = [(9.0, 1.0)] * 10
        light = [(1.0, 9.0)] * 10
        bids = [
            max(float(order.price) for order in outcome.orders if order.side.name == "BUY")
            for outcome in (self.run(calm, None, sizes) for sizes in (heavy, light))
        ]
        assert bids[0] >= bids[1]

    def test_it_refuses_a_size_beyond_its_limit(self) -> None:
        with pytest.raises(ConfigError, match="0 < size <= position_max"):
            self.run([60_000.05] * 3, lambda i, quote: SILENT, size=1.0)


class TestSignalTaker:
    def run(self, mids: Sequence[float], speak: Speaker, **params: Any) -> Outcome:
        module = load("signal_taker")
        given = {
            "instrument": NAME,
            "size": 0.1,
            "hold_ms": 500.0,
            "move_bp": 3.0,
            "taker_fee_bp": 0.5,
            **params,
        }
        return run(module.SignalTaker, module.SignalTakerParams(**given), quotes(mids), speak)

    def test_it_trades_the_way_of_the_signal_and_leaves_after_the_horizon(self) -> None:
        mids = wave(400)
        outcome = self.run(mids, foresight(mids, 10))
        assert len(outcome.fills) > 10
        positions = outcome.positions()
        assert set(np.abs(positions[::2])) == {0.1}
        assert set(positions[1::2]) == {0.0}
        pairs = zip(outcome.fills[::2], outcome.fills[1::2], strict=False)
        for (entered, *_), (left, *_) in pairs:
            assert left - entered == 500_000_000

    def test_an_honest_fee_keeps_it_out(self) -> None:
        mids = wave(400)
        assert self.run(mids, foresight(mids, 10), taker_fee_bp=5.0).orders == []

    def test_a_weak_signal_is_not_worth_the_costs(self) -> None:
        assert self.run(wave(400), lambda i, quote: Spoken(0.3, 0.6)).orders == []
        assert self.run(wave(400), lambda i, quote: Spoken(0.05, 0.9)).orders != []

    def test_the_other_signal_takes_the_other_side(self) -> None:
        sides = [
            self.run(wave(30), lambda i, quote, said=said: said).fills[0][1]
            for said in (Spoken(0.05, 0.9), Spoken(0.9, 0.05))
        ]
        assert sides == ["BUY", "SELL"]

    @pytest.mark.parametrize("doubt", [{"entropy": 1.098}, {"ood": 1.0}])
    def test_it_stays_out_while_the_model_does_not_know(self, doubt: dict[str, float]) -> None:
        assert self.run(wave(100), lambda i, quote: Spoken(0.05, 0.9, **doubt)).orders == []

    def test_it_enters_no_oftener_than_it_may(self) -> None:
        outcome = self.run(
            wave(1_000), lambda i, quote: Spoken(0.05, 0.9), entries_per_minute_max=3
        )
        assert len(outcome.orders) == 6

    def test_an_entry_that_fills_too_late_is_closed_at_once(self) -> None:
        mids = wave(40)
        outcome = self.run(
            mids, lambda i, quote: Spoken(0.05, 0.9), hold_ms=1.0, entries_per_minute_max=1
        )
        assert outcome.positions() == [0.1, 0.0]

    def test_it_refuses_parameters_that_are_not_positive(self) -> None:
        with pytest.raises(ConfigError, match="hold_ms"):
            self.run(wave(3), lambda i, quote: SILENT, hold_ms=0.0)

"""Backtest engines that differ in one thing only: what hears the events.

All have the same venue, fees and data, loaded before the clock starts; only ``run`` is timed.
"""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from operator import attrgetter
from typing import Any

import nautilus_trader.model as nt
import numpy as np
from nautilus_trader.backtest import BacktestEngine, BacktestEngineConfig
from nautilus_trader.common import LoggerConfig
from nautilus_trader.execution import MakerTakerFeeModel
from nautilus_trader.persistence import ParquetDataCatalog

from benchmarks.timing import Burst
from qbtc.core.columns import EventColumns, EventKind
from qbtc.data.catalog import Dataset
from qbtc.data.instruments import Instrument
from qbtc.messages import Signal
from qbtc.trading.signal_actor import SignalActor, SignalSession
from qbtc.trading.strategy import HostLinks, QbtcStrategy, SignalBoard, StrategyParams

_LAST = 128
"""Flag of the last level change of one book update."""


class Params(StrategyParams, frozen=True):
    """What a listener listens to."""

    instrument: str
    with_depth: bool = False


class Deaf(QbtcStrategy[Params]):
    """Hears nothing: the engine alone."""


class Noop(QbtcStrategy[Params]):
    """Hears every event and does nothing: the floor for any Python strategy."""

    def on_start(self) -> None:
        instrument_id = nt.InstrumentId.from_str(self.params.instrument)
        self.subscribe_quotes(instrument_id)
        if self.params.with_depth:
            self.subscribe_trades(instrument_id)
            self.subscribe_book_deltas(instrument_id, nt.BookType.L2_MBP)

    def on_quote(self, quote: nt.QuoteTick) -> None:
        pass

    def on_trade(self, trade: nt.TradeTick) -> None:
        pass

    def on_book_deltas(self, deltas: nt.OrderBookDeltas) -> None:
        pass


class Reader(Noop):
    """Reads a quote's four numbers and time, as any Python feature must begin."""

    def on_quote(self, quote: nt.QuoteTick) -> None:
        self.last = (
            quote.ts_init,
            float(quote.bid_price),
            float(quote.bid_size),
            float(quote.ask_price),
            float(quote.ask_size),
        )


class Decider(QbtcStrategy[Params]):
    """Compares two probabilities at every signal."""

    def on_start(self) -> None:
        self.subscribe_model_signals(nt.InstrumentId.from_str(self.params.instrument))

    def on_model_signal(self, signal: Signal, quote: nt.QuoteTick) -> None:
        if signal.p_up > signal.p_down:
            pass  # here it would buy


class OneAnswer:
    """A session without a core: what reading, delivery and decision cost by themselves."""

    def __init__(self, signal: Signal) -> None:
        self._signal = signal

    def on_quote(self, ts: int, bid: float, bid_size: float, ask: float, ask_size: float) -> Signal:
        return self._signal

    def on_trade(self, ts: int, price: float, size: float, aggressor_side: int) -> None:
        pass

    def on_depth_batch(self, ts: int, levels: Sequence[tuple[int, float, float]]) -> None:
        pass

    def on_depth_clear(self, ts: int) -> None:
        pass

    def on_lead_quote(self, ts: int, bid: float, ask: float) -> None:
        pass


@dataclass(frozen=True)
class Feed:
    """Events for an engine."""

    instrument: Instrument
    events: list[Any]
    items: int
    """Events as the engine counts them."""
    with_depth: bool


def quotes_of(columns: EventColumns, instrument: Instrument) -> Feed:
    """Return the quotes of ``columns`` as Nautilus objects."""
    identity, price, size = (
        instrument.id,
        instrument.price_precision,
        instrument.size_precision,
    )
    rows = np.flatnonzero(columns.kind == EventKind.QUOTE)
    names = ("ts", "a", "b", "c", "d")
    events = [
        nt.QuoteTick(
            identity,
            nt.Price(bid, price),
            nt.Price(ask, price),
            nt.Quantity(bid_size, size),
            nt.Quantity(ask_size, size),
            ts,
            ts,
        )
        for ts, bid, bid_size, ask, ask_size in zip(
            *(getattr(columns, name)[rows].tolist() for name in names), strict=True
        )
    ]
    return Feed(instrument, events, len(events), with_depth=False)


def everything_of(dataset: Dataset) -> Feed:
    """Return a catalog's quotes, trades and book updates as Nautilus objects, in time order."""
    catalog, names = ParquetDataCatalog(str(dataset.catalog_path)), [dataset.instrument_id]
    deltas = catalog.query_order_book_deltas(names)
    single = catalog.query_quote_ticks(names) + catalog.query_trade_ticks(names)
    ends = [i + 1 for i, delta in enumerate(deltas) if delta.flags & _LAST]
    updates = [
        nt.OrderBookDeltas(dataset.instrument.id, deltas[first:end])
        for first, end in itertools.pairwise([0, *ends])
    ]
    events = sorted(updates + single, key=attrgetter("ts_init"))
    return Feed(dataset.instrument, events, len(events), with_depth=True)


def listening(cls: type[QbtcStrategy[Params]]) -> Callable[[BacktestEngine, Feed], object]:
    """Return what adds a strategy without signals to an engine."""

    def add(engine: BacktestEngine, feed: Feed) -> object:
        strategy = cls(Params(instrument=str(feed.instrument.id), with_depth=feed.with_depth))
        engine.add_strategy(strategy)
        return strategy

    return add


def deciding(session: Callable[[], SignalSession]) -> Callable[[BacktestEngine, Feed], SignalActor]:
    """Return what adds a signal actor and a strategy that decides at its signals."""

    def add(engine: BacktestEngine, feed: Feed) -> SignalActor:
        name = str(feed.instrument.id)
        board = SignalBoard((name,))
        actor = SignalActor(
            instrument=name,
            session=session(),
            handlers=board.handlers(name),
            silent_before_ns=None,
            with_depth=feed.with_depth,
        )
        strategy = Decider(Params(instrument=name), links=HostLinks(board))
        engine.add_actor(actor)
        engine.add_strategy(strategy)
        return actor

    return add


def run(feed: Feed, add: Callable[[BacktestEngine, Feed], object]) -> tuple[float, Any]:
    """Run an engine over a feed; return ns per event and what ``add`` returned."""
    engine = BacktestEngine(
        BacktestEngineConfig(
            logging=LoggerConfig(bypass_logging=True), bypass_logging=True, run_analysis=False
        )
    )
    engine.add_venue(
        nt.Venue(str(feed.instrument.id.venue)),
        nt.OmsType.NETTING,
        nt.AccountType.MARGIN,
        [nt.Money(1_000_000, nt.Currency.from_str("USDT"))],
        fee_model=MakerTakerFeeModel(Decimal("0.0002"), Decimal("0.0005")),
        book_type=nt.BookType.L2_MBP if feed.with_depth else nt.BookType.L1_MBP,
        default_leverage=Decimal(10),
    )
    engine.add_instrument(feed.instrument)
    engine.add_data(feed.events)
    listener = add(engine, feed)
    start = time.perf_counter_ns()
    engine.run()
    ns = time.perf_counter_ns() - start
    processed = engine.get_result().iterations
    engine.dispose()
    if processed != feed.items:
        raise RuntimeError(f"the engine processed {processed} of {feed.items} events")
    return ns / feed.items, listener


def burst(feed: Feed, add: Callable[[BacktestEngine, Feed], object]) -> Burst:
    """Return a burst that runs an engine once: ns per event."""
    return lambda: run(feed, add)[0]

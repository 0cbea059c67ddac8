"""Strategies for the backtest benchmarks: they differ only in what they do with an event."""

import nautilus_trader.model as nt

from qbtc.messages import Signal
from qbtc.trading.strategy import QbtcStrategy, StrategyParams


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
    """Reads a quote's four numbers and time, as any feature in Python must begin."""

    def on_quote(self, quote: nt.QuoteTick) -> None:
        float(quote.bid_price), float(quote.bid_size)
        float(quote.ask_price), float(quote.ask_size)
        quote.ts_init  # noqa: B018


class Decider(QbtcStrategy[Params]):
    """Compares two probabilities at every signal."""

    def on_start(self) -> None:
        self.subscribe_model_signals(nt.InstrumentId.from_str(self.params.instrument))

    def on_model_signal(self, signal: Signal, quote: nt.QuoteTick) -> None:
        if signal.p_up > signal.p_down:
            pass  # here it would buy

"""Buy once at the first price and keep it: what the market itself did over the span."""

from nautilus_trader.model import Bar, InstrumentId, OrderRejected, OrderSide, QuoteTick

from qbtc.trading.strategy import QbtcStrategy, StrategyParams


class BuyAndHoldParams(StrategyParams, frozen=True):
    """Parameters of ``BuyAndHold``."""

    instrument: str
    """Nautilus id of the instrument to hold."""
    size: float
    """How much to buy, in base units; rounded to the instrument's size increment."""


class BuyAndHold(QbtcStrategy[BuyAndHoldParams]):
    """Buy ``size`` by one market order at the first quote or bar that the venue takes it at."""

    def on_start(self) -> None:
        """Listen to quotes and, where the data has them, bars."""
        self._id = InstrumentId.from_str(self.params.instrument)
        instrument = self.instrument_or_fail(self._id)
        self._quantity = self.quantity_or_fail(instrument, self.params.size)
        self._bar_type = self.bar_type_for(self._id)
        self._listen()

    def on_quote(self, quote: QuoteTick) -> None:
        """Buy at the first quote."""
        self._buy()

    def on_bar(self, bar: Bar) -> None:
        """Buy at the first bar."""
        self._buy()

    def on_order_rejected(self, event: OrderRejected) -> None:
        """Try again at the next price: the first quotes may come before the first book."""
        self._listen()

    def _listen(self) -> None:
        self.subscribe_quotes(self._id)
        if self._bar_type is not None:
            self.subscribe_bars(self._bar_type)

    def _buy(self) -> None:
        self.unsubscribe_quotes(self._id)
        if self._bar_type is not None:
            self.unsubscribe_bars(self._bar_type)
        self.submit_order(self.order_factory.market(self._id, OrderSide.BUY, self._quantity))

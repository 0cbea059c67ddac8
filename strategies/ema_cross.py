"""Follow the trend of bars: long while a fast average of closes is above a slow one.

What it does
    At every closed bar both exponential averages take in the close. Once the slow one has seen
    ``slow`` bars, the strategy holds ``+size`` while fast > slow; otherwise nothing
    (``side = "long"``) or ``-size`` (``side = "both"``). It trades by market orders and waits for
    one to be done before it sends the next.

When it loses
    In a market without trend the averages cross back and forth, and every crossing pays the taker
    fee and half the spread. On one-minute bars those costs are larger than anything the averages
    know about the next minutes. It is here as an example of bars, not as a way to profit.
"""

from typing import Literal

from nautilus_trader.indicators import ExponentialMovingAverage
from nautilus_trader.model import Bar, InstrumentId, OrderFilled, OrderSide

from qbtc.errors import ConfigError
from qbtc.trading.strategy import QbtcStrategy, StrategyParams


class EmaCrossParams(StrategyParams, frozen=True):
    """Parameters of ``EmaCross``."""

    instrument: str
    """Nautilus id; the run's data must have bars of it."""
    size: float
    """Position to hold, in base units; rounded to the instrument's size increment."""
    fast: int = 20
    """Bars of the fast average."""
    slow: int = 60
    """Bars of the slow average; more than ``fast``."""
    side: Literal["long", "both"] = "long"
    """Long or flat, or long or short."""


class EmaCross(QbtcStrategy[EmaCrossParams]):
    """Hold ``size`` on the side of the faster average."""

    def on_start(self) -> None:
        """Listen to the instrument's bars.

        Raises
        ------
        ConfigError
            ``fast`` is not below ``slow``, ``size`` rounds to zero, or the data has no bars.
        """
        params = self.params
        if not 0 < params.fast < params.slow:
            raise ConfigError(
                f"EmaCross: fast = {params.fast} and slow = {params.slow}; use 0 < fast < slow"
            )
        self._id = InstrumentId.from_str(params.instrument)
        self._instrument = self.instrument_or_fail(self._id)
        self._size = float(self.quantity_or_fail(self._instrument, params.size))
        bar_type = self.bar_type_for(self._id)
        if bar_type is None:
            raise ConfigError(f"EmaCross: the run has no bars of {self._id}; add a klines source")
        self._fast = ExponentialMovingAverage(params.fast)
        self._slow = ExponentialMovingAverage(params.slow)
        self._position = 0.0  # base units, signed
        self._working = 0.0  # unfilled part of the order on its way, base units
        self.subscribe_bars(bar_type)

    def on_bar(self, bar: Bar) -> None:
        """Update the averages, then trade towards the side they show."""
        close = float(bar.close)
        self._fast.update_raw(close)
        self._slow.update_raw(close)
        if self._slow.initialized and not self._working:
            self._trade_to(self._target())

    def on_order_filled(self, event: OrderFilled) -> None:
        """Count the fill."""
        quantity = float(event.last_qty)
        self._position = self._rounded(self._position + (quantity if event.is_buy else -quantity))
        self._working = self._rounded(self._working - quantity)

    def on_order_rejected(self, event: object) -> None:
        """Forget the order; the next bar tries again."""
        self._working = 0.0

    on_order_denied = on_order_rejected
    on_order_canceled = on_order_rejected
    on_order_expired = on_order_rejected

    def _target(self) -> float:
        if self._fast.value > self._slow.value:
            return self._size
        return -self._size if self.params.side == "both" else 0.0

    def _trade_to(self, target: float) -> None:
        difference = self._rounded(target - self._position)
        if not difference:
            return
        side = OrderSide.BUY if difference > 0 else OrderSide.SELL
        quantity = self._instrument.make_qty(abs(difference))
        self._working = abs(difference)
        self.submit_order(self.order_factory.market(self._id, side, quantity))

    def _rounded(self, quantity: float) -> float:
        """Remove what adding floats left over."""
        return round(quantity, int(self._instrument.size_precision))

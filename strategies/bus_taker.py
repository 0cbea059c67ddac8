"""Act on signals from the message bus: enter by market order, leave after a time.

What it does
    While flat, at a signal from the bus to buy or sell with at least ``confidence_min``, it sends a
    market order in that direction, and after ``hold_ms`` a second one that closes the position. One
    trade at a time; signals that come during it are ignored. Both orders are recorded as acting on
    the signal that opened the trade.

When it loses
    Whenever the signal is worth less than the fees and the spread of two market orders, which is
    the usual case. It shows how an order comes of a message; the limits in ``[risk]`` are what
    keeps a bad sender from doing harm.
"""

from nautilus_trader.common import TimeEvent
from nautilus_trader.model import InstrumentId, OrderFilled, OrderSide

from qbtc.errors import ConfigError
from qbtc.messages.events import TradingSignal
from qbtc.trading.strategy import QbtcStrategy, StrategyParams


class BusTakerParams(StrategyParams, frozen=True):
    """Parameters of ``BusTaker``."""

    instrument: str
    """Nautilus id; the run needs ``[[bus_signals]]`` of it."""
    size: float
    """Size of a trade, base units."""
    hold_ms: float
    """How long a position is held."""
    confidence_min: float = 0.0
    """Probability below which a signal is not acted on, 0 to 1."""


class BusTaker(QbtcStrategy[BusTakerParams]):
    """Trade what the bus says, one position at a time."""

    def on_start(self) -> None:
        """Listen to the bus.

        Raises
        ------
        ConfigError
            A parameter is not positive, or the run has no ``[[bus_signals]]`` of the instrument.
        """
        params = self.params
        if not params.hold_ms > 0:
            raise ConfigError(f"BusTaker: hold_ms = {params.hold_ms}; must be above 0")
        self._id = InstrumentId.from_str(params.instrument)
        self._instrument = self.instrument_or_fail(self._id)
        self._quantity = self.quantity_or_fail(self._instrument, params.size)
        self._hold_ns = round(params.hold_ms * 1e6)
        self._position = 0.0  # base units, signed
        self._signal = ""  # that the trade acts on; empty while there is none
        self._trades = 0
        self._due = False  # the time to leave has come
        self._working = False  # an order is on its way
        self.subscribe_bus_signals(self._id)

    def on_bus_signal(self, signal: TradingSignal) -> None:
        """Enter, or try again to leave."""
        if self._signal:
            if self._due:
                self._leave()
        elif signal.confidence >= self.params.confidence_min:
            self._trades += 1
            self._signal, self._due, self._working = signal.signal_id, False, True
            side = OrderSide.BUY if signal.action == "BUY" else OrderSide.SELL
            due_ns = self.clock.timestamp_ns() + self._hold_ns
            self.clock.set_time_alert_ns(f"leave-{self._trades}", due_ns)
            self.submit_order(self.order_factory.market(self._id, side, self._quantity))

    def on_time_event(self, event: TimeEvent) -> None:
        """Leave: the time is over."""
        self._due = True
        self._leave()

    def on_order_filled(self, event: OrderFilled) -> None:
        """Count the fill; an entry that fills after its time is closed at once."""
        quantity = float(event.last_qty)
        signed = quantity if event.is_buy else -quantity
        self._position = round(self._position + signed, self._instrument.size_precision)
        order = self.cache.order(event.client_order_id)
        if order is not None and order.is_closed:
            self._working = False
            if self._due:
                self._leave()

    def on_order_rejected(self, event: object) -> None:
        """Wait for the time to leave, or for the next signal after it."""
        self._working = False

    on_order_denied = on_order_rejected
    on_order_canceled = on_order_rejected
    on_order_expired = on_order_rejected

    def _leave(self) -> None:
        """Close what is open; be free again when nothing is."""
        if self._working:
            return
        if not self._position:
            self._signal = ""
            return
        side = OrderSide.SELL if self._position > 0 else OrderSide.BUY
        quantity = self._instrument.make_qty(abs(self._position))
        self._working = True
        order = self.order_factory.market(self._id, side, quantity, reduce_only=True)
        self.submit_order(order, acts_on=self._signal)

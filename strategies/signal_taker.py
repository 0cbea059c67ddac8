"""Cross the spread when the expected move is worth more than it costs to get in and out.

What it does
    While flat, at every model signal it compares, in basis points::

        gain = (p_up - p_down) * move_bp               expected move over the horizon
        cost = 2 * taker_fee_bp + spread + margin_bp   fees both ways, half the spread both ways

    and sends a market order in the direction of the gain when ``|gain| > cost``. It closes after
    ``hold_ms``, the horizon the model speaks of, by a second market order. One trade at a time.
    It does not enter while the model does not know (``entropy_max``, ``ood_max``), while the spread
    is wider than ``spread_bp_max``, or beyond ``entries_per_minute_max``.

When it loses
    At ordinary taker fees the cost is about 10 bp, and a move of one second is about 1 bp: the
    condition is then never met and the strategy does nothing, which is its best result. Set the
    fees to those you really pay. With low fees it loses when ``move_bp`` promises more than the
    market moves, or when the latency eats the move.
"""

from collections import deque

from nautilus_trader.common import TimeEvent
from nautilus_trader.model import InstrumentId, OrderFilled, OrderSide, QuoteTick

from qbtc.errors import ConfigError
from qbtc.messages import Signal
from qbtc.trading.strategy import QbtcStrategy, StrategyParams

MINUTE_NS = 60_000_000_000


class SignalTakerParams(StrategyParams, frozen=True):
    """Parameters of ``SignalTaker``; costs and moves in basis points (bp)."""

    instrument: str
    """Nautilus id; the run needs ``[[signals]]`` of it."""
    size: float
    """Size of a trade, base units."""
    hold_ms: float
    """How long a position is held: the horizon of the model."""
    move_bp: float
    """Mean size of a move over the horizon, given that it is one; measure it, do not hope."""
    taker_fee_bp: float = 5.0
    """Fee of one market order."""
    margin_bp: float = 0.0
    """What must remain after costs."""
    spread_bp_max: float = 2.0
    """No entry at a wider spread."""
    entropy_max: float = 1.09
    """Nats; ln 3 = 1.0986 is a model that knows nothing."""
    ood_max: float = 0.999
    """No entry above this out-of-distribution score: the share of training rows less odd."""
    entries_per_minute_max: int = 60
    """Entries in any 60 seconds."""


class SignalTaker(QbtcStrategy[SignalTakerParams]):
    """Enter by market order on a strong enough signal, leave after the horizon."""

    def on_start(self) -> None:
        """Listen to signals.

        Raises
        ------
        ConfigError
            A parameter is not positive, or the run has no signals of the instrument.
        """
        params = self.params
        for name in ("size", "hold_ms", "move_bp", "entries_per_minute_max"):
            if not getattr(params, name) > 0:
                raise ConfigError(f"SignalTaker: {name} = {getattr(params, name)}; must be above 0")
        self._id = InstrumentId.from_str(params.instrument)
        self._instrument = self.instrument_or_fail(self._id)
        self._quantity = self.quantity_or_fail(self._instrument, params.size)
        self._hold_ns = round(params.hold_ms * 1e6)
        self._fixed_bp = 2 * params.taker_fee_bp + params.margin_bp
        self._position = 0.0  # base units, signed
        self._busy = False  # from the entry to the end of the exit
        self._due = False  # the time to leave has come
        self._working = False  # an order is on its way
        self._trades = 0
        self._entries: deque[int] = deque()  # times of the last minute's entries, ns
        self.subscribe_model_signals(self._id)

    def on_model_signal(self, signal: Signal, quote: QuoteTick) -> None:
        """Enter when the expected move is worth more than in and out cost."""
        if self._busy:
            if self._due and not self._working:
                self._leave()
            return
        gain_bp = (signal.p_up - signal.p_down) * self.params.move_bp
        if abs(gain_bp) > self._fixed_bp and self._worth(abs(gain_bp), signal, quote):
            self._enter(OrderSide.BUY if gain_bp > 0 else OrderSide.SELL, quote.ts_init)

    def on_time_event(self, event: TimeEvent) -> None:
        """Leave: the horizon is over."""
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
        """Wait for the next signal; it leaves again if the time has come."""
        self._working = False

    on_order_denied = on_order_rejected
    on_order_canceled = on_order_rejected
    on_order_expired = on_order_rejected

    def _worth(self, gain_bp: float, signal: Signal, quote: QuoteTick) -> bool:
        """Decide the rarer part: spread, guards and rate."""
        params = self.params
        bid, ask = float(quote.bid_price), float(quote.ask_price)
        spread_bp = 2e4 * (ask - bid) / (ask + bid)
        while self._entries and quote.ts_init - self._entries[0] >= MINUTE_NS:
            self._entries.popleft()
        return (
            gain_bp > self._fixed_bp + spread_bp
            and spread_bp <= params.spread_bp_max
            and signal.entropy <= params.entropy_max
            and signal.ood <= params.ood_max
            and len(self._entries) < params.entries_per_minute_max
        )

    def _enter(self, side: OrderSide, now_ns: int) -> None:
        self._busy, self._due, self._working = True, False, True
        self._trades += 1
        self._entries.append(now_ns)
        self.clock.set_time_alert_ns(f"leave-{self._trades}", now_ns + self._hold_ns)
        self.submit_order(self.order_factory.market(self._id, side, self._quantity))

    def _leave(self) -> None:
        """Close what is open; be free again when nothing is."""
        if self._working:
            return
        if not self._position:
            self._busy = False
            return
        side = OrderSide.SELL if self._position > 0 else OrderSide.BUY
        quantity = self._instrument.make_qty(abs(self._position))
        self._working = True
        self.submit_order(self.order_factory.market(self._id, side, quantity, reduce_only=True))

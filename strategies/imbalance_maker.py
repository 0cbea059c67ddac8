"""Quote both sides of the book with resting orders, leaning where the model expects the mid.

What it does
    At every model signal it works out a reference price, all distances in basis points of it::

        reference = microprice or mid
                    + skew_bp * (p_up - p_down)                  expected move
                    - inventory_bp * position / position_max     wish to be flat

    and wants one buy ``half_spread_bp`` below and one sell ``half_spread_bp`` above, never through
    the other side of the book (orders are post-only). An order whose price is off by more than
    ``requote_bp`` is cancelled and replaced. A side is left empty when its fill would take the
    position beyond ``position_max``. Everything is cancelled while the model does not know: entropy
    above ``entropy_max``, or features unlike those it was trained on (``ood`` above ``ood_max``).

    With ``use_signal = false`` it quotes around the reference without a model, at every market
    quote: the twin that shows what the signal adds.

When it loses
    Resting orders fill when the market comes to them, which is mostly when it goes on against them.
    Earning the spread has to pay for that and for the maker fee, and on a liquid pair the spread is
    a hundredth of a basis point. Expect a loss at ordinary fees; a good lean makes it smaller.
"""

from dataclasses import dataclass
from typing import Literal

from nautilus_trader.model import (
    ClientOrderId,
    InstrumentId,
    OrderCanceled,
    OrderDenied,
    OrderExpired,
    OrderFilled,
    OrderRejected,
    OrderSide,
    QuoteTick,
)

from qbtc.errors import ConfigError
from qbtc.messages import Signal
from qbtc.trading.strategy import QbtcStrategy, StrategyParams

type _Ended = OrderCanceled | OrderRejected | OrderDenied | OrderExpired


class ImbalanceMakerParams(StrategyParams, frozen=True):
    """Parameters of ``ImbalanceMaker``; prices in basis points (bp), sizes in base units."""

    instrument: str
    """Nautilus id; the run needs ``[[signals]]`` of it unless ``use_signal = false``."""
    size: float
    """Size of each resting order."""
    position_max: float
    """No order is placed whose fill would take the position beyond this, long or short."""
    half_spread_bp: float = 1.0
    """Distance of each quote from the reference."""
    skew_bp: float = 1.0
    """How far the reference moves for a signal of one."""
    inventory_bp: float = 0.5
    """How far it moves against a full position."""
    requote_bp: float = 0.3
    """An order off by more than this is replaced; smaller keeps its place in the queue."""
    requote_ms_min: int = 100
    """Time between two replacements on one side."""
    reference: Literal["microprice", "mid"] = "microprice"
    """The microprice weighs each side by the size on the other."""
    entropy_max: float = 1.09
    """Nats; ln 3 = 1.0986 is a model that knows nothing."""
    ood_max: float = 0.999
    """No order rests above this out-of-distribution score: the share of training rows less odd."""
    use_signal: bool = True
    """Lean and stay silent by the model, or quote without one."""


@dataclass(slots=True)
class _Slot:
    """The one order of a side."""

    side: OrderSide
    sign: int  # +1 buy, -1 sell
    order_id: ClientOrderId | None = None
    price: float = 0.0
    cancelling: bool = False
    placed_ns: int = -(1 << 62)


class ImbalanceMaker(QbtcStrategy[ImbalanceMakerParams]):
    """Quote both sides around a leaning reference, inside inventory limits."""

    def on_start(self) -> None:
        """Listen to signals, or to quotes without them.

        Raises
        ------
        ConfigError
            ``position_max`` is below ``size``, or the run has no signals of the instrument.
        """
        params = self.params
        if not 0 < params.size <= params.position_max:
            raise ConfigError(
                f"ImbalanceMaker: size = {params.size} and position_max = {params.position_max};"
                " use 0 < size <= position_max"
            )
        self._id = InstrumentId.from_str(params.instrument)
        self._instrument = self.instrument_or_fail(self._id)
        self._quantity = self.quantity_or_fail(self._instrument, params.size)
        self._tick = float(self._instrument.price_increment)
        self._requote_ns = params.requote_ms_min * 1_000_000
        self._position = 0.0  # base units, signed
        self._slots = (_Slot(OrderSide.BUY, 1), _Slot(OrderSide.SELL, -1))
        if params.use_signal:
            self.subscribe_model_signals(self._id)
        else:
            self.subscribe_quotes(self._id)

    def on_model_signal(self, signal: Signal, quote: QuoteTick) -> None:
        """Quote around the lean, or withdraw while the model does not know."""
        if signal.entropy > self.params.entropy_max or signal.ood > self.params.ood_max:
            self._withdraw()
        else:
            self._quote_around(quote, signal.p_up - signal.p_down)

    def on_quote(self, quote: QuoteTick) -> None:
        """Quote without a model (``use_signal = false``)."""
        self._quote_around(quote, 0.0)

    def on_order_filled(self, event: OrderFilled) -> None:
        """Count the fill; free the side when its order is done."""
        quantity = float(event.last_qty)
        signed = quantity if event.is_buy else -quantity
        self._position = round(self._position + signed, self._instrument.size_precision)
        order = self.cache.order(event.client_order_id)
        if order is None or order.is_closed:
            self._free(event.client_order_id)

    def on_order_canceled(self, event: _Ended) -> None:
        """Free the side."""
        self._free(event.client_order_id)

    on_order_rejected = on_order_canceled
    on_order_denied = on_order_canceled
    on_order_expired = on_order_canceled

    def on_stop(self) -> None:
        """Leave nothing resting."""
        self._withdraw()

    def _quote_around(self, quote: QuoteTick, lean: float) -> None:
        params = self.params
        bid, ask = float(quote.bid_price), float(quote.ask_price)
        middle = 0.5 * (bid + ask)
        if params.reference == "microprice":
            bid_size, ask_size = float(quote.bid_size), float(quote.ask_size)
            middle = (bid * ask_size + ask * bid_size) / (bid_size + ask_size)
        bp = 1e-4 * middle
        full = self._position / params.position_max
        reference = middle + bp * (params.skew_bp * lean - params.inventory_bp * full)
        half = bp * params.half_spread_bp
        self._keep(self._slots[0], min(reference - half, ask - self._tick), bp, quote.ts_init)
        self._keep(self._slots[1], max(reference + half, bid + self._tick), bp, quote.ts_init)

    def _keep(self, slot: _Slot, wanted: float, bp: float, now_ns: int) -> None:
        """Bring one side's order near the wanted price, or take it away at the limit."""
        after = slot.sign * self._position + self.params.size
        allowed = after <= self.params.position_max * (1 + 1e-9)
        if slot.order_id is None:
            if allowed and now_ns - slot.placed_ns >= self._requote_ns:
                self._place(slot, wanted, now_ns)
        elif not slot.cancelling:
            off = abs(slot.price - wanted) > max(bp * self.params.requote_bp, self._tick)
            if not allowed or (off and now_ns - slot.placed_ns >= self._requote_ns):
                self._cancel(slot)

    def _place(self, slot: _Slot, wanted: float, now_ns: int) -> None:
        # Away from the market to the next tick, so that rounding never crosses.
        ticks = wanted / self._tick
        slot.price = self._tick * (ticks // 1 if slot.sign > 0 else -(-ticks // 1))
        order = self.order_factory.limit(
            self._id,
            slot.side,
            self._quantity,
            self._instrument.make_price(slot.price),
            post_only=True,
        )
        slot.order_id, slot.placed_ns, slot.cancelling = order.client_order_id, now_ns, False
        self.submit_order(order)

    def _cancel(self, slot: _Slot) -> None:
        if slot.order_id is not None and not slot.cancelling:
            slot.cancelling = True
            self.cancel_order(slot.order_id)

    def _withdraw(self) -> None:
        for slot in self._slots:
            self._cancel(slot)

    def _free(self, order_id: ClientOrderId) -> None:
        for slot in self._slots:
            if slot.order_id == order_id:
                slot.order_id, slot.cancelling = None, False

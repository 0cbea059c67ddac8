"""What happens to a run's orders, as messages: from Nautilus's events to ``OrderEvent``.

The journal keeps each order's own state, for Nautilus's cache must not be read while an order is
being initialised, and numbers what happened to it. It is told of order events only, by a hook on
``on_order_event`` of every strategy, and only in a run that has somebody to tell.
"""

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

import nautilus_trader.model as nt

from qbtc.messages.events import Fill, OrderEvent

__all__ = ["Journal", "Listener", "OrderState", "decimal_text"]

type Kind = Literal[
    "initialized",
    "denied",
    "submitted",
    "accepted",
    "rejected",
    "updated",
    "triggered",
    "cancelled",
    "expired",
    "filled",
]

_KINDS: dict[type, tuple[Kind, str | None]] = {
    nt.OrderInitialized: ("initialized", "INITIALIZED"),
    nt.OrderDenied: ("denied", "DENIED"),
    nt.OrderSubmitted: ("submitted", "SUBMITTED"),
    nt.OrderAccepted: ("accepted", "ACCEPTED"),
    nt.OrderRejected: ("rejected", "REJECTED"),
    nt.OrderUpdated: ("updated", None),
    nt.OrderTriggered: ("triggered", "TRIGGERED"),
    nt.OrderCanceled: ("cancelled", "CANCELED"),
    nt.OrderExpired: ("expired", "EXPIRED"),
    nt.OrderFilled: ("filled", None),
}
"""Kind of an event, and the order's status after it where the event alone says it. What is not
here (pending changes, refused changes, emulation) leaves an order as it was."""

_LIQUIDITY: dict[str, Literal["maker", "taker", "none"]] = {"MAKER": "maker", "TAKER": "taker"}
_ZERO = Decimal(0)


@dataclass(slots=True)
class OrderState:
    """An order as its events add up."""

    sequence: int
    """Of the next event."""
    instrument: str
    is_buy: bool
    order_type: str
    quantity: Decimal
    price: Decimal | None
    trigger_price: Decimal | None
    reduce_only: bool
    ts_init: int
    filled: Decimal = _ZERO
    value: Decimal = _ZERO
    """Sum of price times quantity of its fills."""
    status: str = "INITIALIZED"
    venue_order_id: str | None = None
    signal_id: str | None = None


type Listener = Callable[[OrderEvent, OrderState], None]
"""Told of an event and of the order after it; it must not keep the state."""
type ChangeListener = Callable[[str, OrderState], None]
"""Told of an order, by id, whose change was refused: nothing happened to it."""


class Journal:
    """Turns events into messages and passes them on.

    Parameters
    ----------
    run_id
        Of the run that the orders belong to.
    listeners
        Told of every event, in this order; a live list.
    """

    def __init__(self, *, run_id: str, listeners: list[Listener]) -> None:
        self._run_id = run_id
        self._listeners = listeners
        self.change_refused: list[ChangeListener] = []
        """Told of every refused change."""
        self._orders: dict[str, OrderState] = {}
        self._signals: dict[str, str] = {}  # signal of an order that is not initialised yet

    def tag(self, order_id: str, signal_id: str) -> None:
        """Note which signal an order acts on, before it is sent."""
        self._signals[order_id] = signal_id

    def state(self, order_id: str) -> OrderState | None:
        """Return an order that was sent."""
        return self._orders.get(order_id)

    def hear(self, event: Any) -> None:
        """Take an event of Nautilus."""
        known = _KINDS.get(type(event))
        if known is None:
            if isinstance(event, nt.OrderModifyRejected):
                self._hear_change_refused(str(event.client_order_id))
            return
        kind, status = known
        order_id = str(event.client_order_id)
        if kind == "initialized":
            self._orders[order_id] = self._initial(event, order_id)
        order = self._orders[order_id]
        fill = None
        if kind == "filled":
            fill = _fill(event)
            quantity = event.last_qty.as_decimal()
            order.filled += quantity
            order.value += quantity * event.last_px.as_decimal()
        elif kind == "updated":
            order.quantity = event.quantity.as_decimal()
            order.price = order.price if event.price is None else event.price.as_decimal()
            if event.trigger_price is not None:
                order.trigger_price = event.trigger_price.as_decimal()
        order.status = status or _open_status(order)
        venue_order_id = getattr(event, "venue_order_id", None)
        if venue_order_id is not None:
            order.venue_order_id = str(venue_order_id)
        reason = getattr(event, "reason", None)
        message = OrderEvent(
            order_id=order_id,
            sequence=order.sequence,
            kind=kind,
            run_id=self._run_id,
            strategy=str(event.strategy_id),
            instrument=order.instrument,
            side="BUY" if order.is_buy else "SELL",
            order_type=order.order_type,
            quantity=decimal_text(order.quantity),
            price=None if order.price is None else decimal_text(order.price),
            filled=decimal_text(order.filled),
            status=order.status,
            venue_order_id=order.venue_order_id,
            signal_id=order.signal_id,
            fill=fill,
            reason=None if reason is None else str(reason),
            ts_event=event.ts_event,
            ts_init=event.ts_init,
        )
        order.sequence += 1
        for listener in self._listeners:
            listener(message, order)

    def _hear_change_refused(self, order_id: str) -> None:
        order = self._orders.get(order_id)
        if order is not None:
            for listener in self.change_refused:
                listener(order_id, order)

    def _initial(self, event: nt.OrderInitialized, order_id: str) -> OrderState:
        return OrderState(
            sequence=0,
            instrument=str(event.instrument_id),
            is_buy=event.order_side == nt.OrderSide.BUY,
            order_type=event.order_type.name,
            quantity=event.quantity.as_decimal(),
            price=None if event.price is None else event.price.as_decimal(),
            trigger_price=(
                None if event.trigger_price is None else event.trigger_price.as_decimal()
            ),
            reduce_only=event.reduce_only,
            ts_init=event.ts_init,
            signal_id=self._signals.pop(order_id, None),
        )


def decimal_text(number: Decimal) -> str:
    """Write a number without an exponent."""
    return f"{number:f}"


def _open_status(order: OrderState) -> str:
    if order.filled >= order.quantity:
        return "FILLED"
    if order.filled:
        return "PARTIALLY_FILLED"
    return "ACCEPTED"


def _fill(event: nt.OrderFilled) -> Fill:
    commission = event.commission
    return Fill(
        trade_id=str(event.trade_id),
        price=decimal_text(event.last_px.as_decimal()),
        quantity=decimal_text(event.last_qty.as_decimal()),
        commission="0" if commission is None else decimal_text(commission.as_decimal()),
        commission_currency=str(event.currency if commission is None else commission.currency),
        liquidity=_LIQUIDITY.get(event.liquidity_side.name, "none"),
    )
